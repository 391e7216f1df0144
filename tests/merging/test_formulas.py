"""The shared formulas: the same numbers from NumPy and JAX, by hand, and without importing JAX."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.merging import formulas as f

BOTH = pytest.mark.parametrize("xp", [np, jnp])


def f32(xp, x):
    return xp.asarray(x, dtype=xp.float32)


@BOTH
def test_slerp(xp):
    dot, a, b = f32(xp, 0.0), f32(xp, 1.0), f32(xp, 4.0)
    first, second = f.slerp(f.cosine(dot, a, b), 0.25)
    np.testing.assert_allclose([first, second], [0.9238795, 0.38268343], rtol=1e-6)
    np.testing.assert_allclose(f.cosine(f32(xp, 3.0), a, 9 * b), 0.5, rtol=1e-6)
    for zero in (f.cosine(f32(xp, 0), f32(xp, 0), b), f.cosine(f32(xp, 0), a, f32(xp, 0))):
        assert zero == 0
    np.testing.assert_allclose(f.slerp(f32(xp, -0.9999), 0.25), [0.75, 0.25], rtol=1e-6)
    clamped = f.cosine(f32(xp, 3e-7), a * 1e-6, a * 1e-6, floor=1e-3)
    np.testing.assert_allclose(clamped, 3e-4, rtol=1e-5)


@BOTH
def test_stock_ratio(xp):
    np.testing.assert_allclose(f.stock_ratio(f32(xp, np.sqrt(0.5)), 2), 0.828427, rtol=1e-5)
    np.testing.assert_allclose(f.stock_ratio(f32(xp, [1, 0, 0.5]), 3), [1, 0, 0.75], rtol=1e-6)
    # The pole at -1/2 is cut off from -1/5, where the ratio is -1, on.
    got = f.stock_ratio(f32(xp, [-0.19, -0.2, -0.5, -0.6]), 3)
    np.testing.assert_allclose(got, [-0.57 / 0.62, -1, -1, -1], rtol=1e-5)


@BOTH
def test_keep_probability(xp):
    got = f.keep_probability(f32(xp, [4, 2, 3, 1]), 4, 0.5, 0.15)
    np.testing.assert_allclose(got, [0.65, 0.45, 0.55, 0.35], rtol=1e-6)
    np.testing.assert_allclose(f.keep_probability(f32(xp, [1]), 1, 0.5, 0.15), [0.5], rtol=1e-6)
    for density, epsilon in ((0.1, 0.1), (0.9, 0.1), (0.5, -0.1)):
        with pytest.raises(ValueError, match="epsilon: got"):
            f.keep_probability(f32(xp, [1, 2]), 2, density, epsilon)


@BOTH
def test_realised_scale(xp):
    got = [f.realised_scale(f32(xp, a), f32(xp, b)) for a, b in ((3, 2), (0, 0), (1, 0))]
    np.testing.assert_allclose(got, [1.5, 1, 1])


@BOTH
def test_signs_and_disjoint_merges(xp):
    values = [f32(xp, [1, -2, 3, 1, 0]), f32(xp, [3, 1, -4, -1, 0])]
    total = values[0] + values[1]
    sign = f.elected(total, 0)
    assert sign.dtype == xp.int8
    np.testing.assert_array_equal(sign, [1, -1, -1, 0, 0])
    np.testing.assert_array_equal(f.elected(total, 1), [1, -1, -1, 1, 1])
    np.testing.assert_array_equal(f.disjoint_sum(sign, values), [4, -2, -4, 0, 0])
    mean = f.disjoint_mean(sign, values)
    assert mean.dtype == xp.float32
    np.testing.assert_array_equal(mean, [2, -2, -4, 0, 0])
    np.testing.assert_array_equal(f.disjoint_max(sign, values), [3, -2, -4, 0, 0])
    # Entries voted 0.5 tau_1 and 1.5 tau_2.
    np.testing.assert_array_equal(
        f.disjoint_mean(sign, [0.5 * values[0], 1.5 * values[1]], [0.5, 1.5]), [2.5, -2, -4, 0, 0]
    )


def test_counts():
    assert f.kept(10, 0.25) == 2
    with pytest.raises(ValueError, match="density: 0.1 of 8 entries keeps none"):
        f.kept(8, 0.1)
    assert f.surviving_ranks(10, 0.4, 0.2) == (2, 6)
    assert f.surviving_ranks(10, 0.4, 0.2, remove_first=False) == (2, 4)
    assert f.surviving_ranks(10, 0.4, 0.7) == (7, 10)
    assert f.surviving_ranks(10, 0.2, 0.4, remove_first=False) == (2, 2)
    assert f.surviving_ranks_of_leaf(10, 0.4, 0.2) == (2, 6)
    assert f.surviving_ranks_of_leaf(10, 0.9, 0.2) == (1, 10)
    assert f.surviving_ranks_of_leaf(10, 0.4, 0.01) == (0, 4)
    assert f.surviving_ranks_of_leaf(10, 1.0, 0.2) == (0, 10)
    with pytest.raises(ValueError, match=r"remove: got 1.5, takes a number in \[0, 1\]"):
        f.surviving_ranks(10, 0.4, 1.5)
    with pytest.raises(ValueError, match="density: got -0.1"):
        f.surviving_ranks_of_leaf(10, -0.1, 0.2)


def test_seeds_of_names():
    # Fixed for all time: merges drawn from them can be repeated.
    assert f.name_seed("model.norm.weight") == 3570285554
    names = [f"layers/{i}/w" for i in range(100)]
    assert len({f.name_seed(n) for n in names}) == 100


def test_gradients_stay_finite_at_the_edges():
    zero = jax.grad(lambda a: f.cosine(a, a, jnp.float32(2.0)))(0.0)
    parallel = jax.grad(lambda c: f.slerp(c, 0.3)[0])(1.0)
    pole = jax.grad(lambda c: f.stock_ratio(c, 3))(-0.5)
    assert np.isfinite([zero, parallel, pole]).all()


def test_the_module_alone_imports_neither_library():
    code = "import sys; exec(open(sys.argv[1]).read()); print({'jax', 'numpy'} & {*sys.modules})"
    out = subprocess.run(
        [sys.executable, "-c", code, f.__file__], check=True, capture_output=True, text=True
    )
    assert out.stdout == "set()\n"
