import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from kd_jax.losses.classification import label_log_probs
from kd_jax.losses.streaming import token_forward_kl, token_log_probs
from kd_jax.types import Factored, Logits

B, T, D, V = 2, 10, 6, 17
CURVES = pytest.mark.parametrize("curve", [(1.0, None), (0.7, 3.0)], ids=["plain", "softcap"])


@pytest.fixture(scope="module")
def case():
    return make(B, T, D, V)


def make(B, T, D, V, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return {
        "hidden": jnp.asarray(rng.standard_normal((B, T, D)), dtype),
        "unembedding": jnp.asarray(rng.standard_normal((V, D)), dtype),
        "targets": jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32),
        "weights": jnp.asarray(rng.standard_normal((B, T)), jnp.float32),
    }


def streamed(hidden, unembedding, case, curve=(1.0, None), chunk=4):
    lp = token_log_probs(Factored(hidden, unembedding, *curve), case["targets"], chunk=chunk)
    return (lp * case["weights"]).sum()


def dense(hidden, unembedding, case, curve=(1.0, None)):
    lp = label_log_probs(Factored(hidden, unembedding, *curve).logits(), case["targets"])
    return (lp * case["weights"]).sum()


def reference(hidden, unembedding, case, curve):
    """The same in float64 numpy."""
    scale, cap = curve
    z = scale * (hidden @ unembedding.T)
    z = z if cap is None else cap * np.tanh(z / cap)
    top = z.max(-1, keepdims=True)
    lse = np.log(np.exp(z - top).sum(-1)) + top[..., 0]
    picked = np.take_along_axis(z, np.asarray(case["targets"])[..., None], -1)[..., 0]
    return ((picked - lse) * np.asarray(case["weights"], np.float64)).sum()


def close(got, want, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, want)


@pytest.mark.parametrize(
    ("chunk", "curve"),
    [(1, (1.0, None)), (4, (1.0, None)), (4, (0.7, 3.0)), (5, (0.7, None)), (512, (1.0, 3.0))],
    ids=str,
)
def test_equals_the_dense_form(case, chunk, curve):
    def value_and_gradients(f):
        def loss(h, w):
            lp = f(Factored(h, w, *curve))
            return (lp * case["weights"]).sum(), lp

        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(case["hidden"], case["unembedding"])

    targets = case["targets"]
    got = value_and_gradients(lambda head: token_log_probs(head, targets, chunk=chunk))
    want = value_and_gradients(lambda head: token_log_probs(Logits(head.logits()), targets))
    assert got[1].shape == (B, T)
    assert got[1].dtype == jnp.float32
    close(got, want)


@CURVES
def test_gradient_against_float64_finite_differences(case, curve):
    h, w = (np.asarray(case[name], np.float64) for name in ("hidden", "unembedding"))
    grad = jax.jit(jax.grad(partial(streamed, curve=curve), (0, 1)))
    grads = grad(case["hidden"], case["unembedding"], case)
    rng, step = np.random.default_rng(0), 1e-5
    for _ in range(5):
        u, v = rng.standard_normal(h.shape), rng.standard_normal(w.shape)
        up = reference(h + step * u, w + step * v, case, curve)
        down = reference(h - step * u, w - step * v, case, curve)
        slope = (np.asarray(grads[0]) * u).sum() + (np.asarray(grads[1]) * v).sum()
        np.testing.assert_allclose(slope, (up - down) / (2 * step), rtol=1e-4)


def test_scale_and_softcap_may_be_learned(case):
    h, w = case["hidden"], case["unembedding"]
    curve = (jnp.float32(0.7), jnp.float32(3.0))
    close(
        jax.jit(jax.grad(lambda c: streamed(h, w, case, c)))(curve),
        jax.jit(jax.grad(lambda c: dense(h, w, case, c)))(curve),
        rtol=1e-4,
    )


@CURVES
def test_second_derivatives_equal_the_dense_form(case, curve):
    def outer(f):
        def inner(h, w):
            return sum(jnp.sin(g).sum() for g in jax.grad(f, (0, 1))(h, w, case, curve))

        return jax.jit(jax.grad(inner, (0, 1)))(case["hidden"], case["unembedding"])

    close(outer(streamed), outer(dense), rtol=1e-4, atol=1e-4)


def test_unrolled_descent_step_is_differentiable(case):
    # An outer gradient through an inner step on the head's own weights.
    def after_step(f, w):
        h = case["hidden"]
        return f(h, w + 0.1 * jax.grad(f, 1)(h, w, case), case)

    close(
        jax.jit(jax.grad(partial(after_step, streamed)))(case["unembedding"]),
        jax.jit(jax.grad(partial(after_step, dense)))(case["unembedding"]),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("axes", [(0, None), (0, 0)], ids=["hidden", "both"])
def test_vmap(case, axes):
    hidden = jnp.stack([case["hidden"], 2 * case["hidden"]])
    unembedding = case["unembedding"]
    if axes == (0, 0):
        unembedding = jnp.stack([unembedding, -unembedding])

    def mapped(f):
        grad = jax.value_and_grad(f, (0, 1))
        return jax.jit(jax.vmap(lambda h, w: grad(h, w, case), axes))(hidden, unembedding)

    close(mapped(streamed), mapped(dense))


def test_ids_outside_the_vocabulary_are_finite(case):
    targets = case["targets"].at[0, 3].set(-100)
    head = Factored(case["hidden"], case["unembedding"])
    log_probs = jax.jit(partial(token_log_probs, chunk=4))
    got = log_probs(head, targets)
    np.testing.assert_allclose(got[0, 3], -jax.nn.logsumexp(head.logits()[0, 3]), rtol=1e-5)
    np.testing.assert_array_equal(got[1], log_probs(head, case["targets"])[1])


def test_bfloat16_inputs_give_float32_values_and_their_own_gradients():
    case = make(2, 64, 16, 33, jnp.bfloat16)
    h, w = case["hidden"], case["unembedding"]
    value, grads = jax.jit(jax.value_and_grad(streamed, (0, 1)))(h, w, case)
    assert value.dtype == jnp.float32
    assert all(g.dtype == jnp.bfloat16 for g in grads)
    exact = jax.jit(jax.value_and_grad(dense, (0, 1)))(
        h.astype(jnp.float32), w.astype(jnp.float32), case
    )
    np.testing.assert_allclose(value, exact[0], rtol=1e-4)
    # 16 chunks summed in float32 and rounded once: within half a step of bfloat16 and the rounding
    # of the logits' gradient. A bfloat16 sum is several times worse.
    for got, want in zip(grads, exact[1], strict=True):
        error = jnp.linalg.norm(got.astype(jnp.float32) - want) / jnp.linalg.norm(want)
        assert error < 3e-3


def equations(jaxpr):
    """Every equation of a jaxpr, with those inside it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def sizes(f, *args):
    jaxpr = jax.make_jaxpr(f)(*args).jaxpr
    return [v.aval.size for eqn in equations(jaxpr) for v in eqn.outvars]


@pytest.fixture(scope="module")
def wide():
    return make(2, 32, 8, 64)


def test_no_array_of_all_logits_is_ever_made(wide):
    full = 2 * 32 * 64
    args = (wide["hidden"], wide["unembedding"], wide)

    def second(h, w, case):
        inner = jax.grad(streamed, (0, 1))
        return jax.grad(lambda h, w: sum(jnp.sin(g).sum() for g in inner(h, w, case)), (0, 1))(h, w)

    first = jax.jit(jax.value_and_grad(streamed, (0, 1)))
    assert max(sizes(first, *args)) < full
    assert max(sizes(second, *args)) < full
    assert max(sizes(jax.value_and_grad(dense, (0, 1)), *args)) >= full  # the walk sees them


def test_no_array_of_all_logits_in_the_divergence(wide):
    def loss(h, w, teacher_w):
        student, teacher = Factored(h, w), Factored(2 * h, teacher_w)
        return (token_forward_kl(student, teacher, chunk=4) * wide["weights"]).sum()

    args = (wide["hidden"], wide["unembedding"], -wide["unembedding"])
    assert max(sizes(jax.value_and_grad(loss, (0, 1)), *args)) < 2 * 32 * 64


def test_compiled_memory_is_a_fraction_of_the_dense_form():
    case = jax.eval_shape(lambda: make(2, 512, 16, 2048))

    def temporary(f):
        step = jax.jit(lambda c: jax.value_and_grad(f, (0, 1))(c["hidden"], c["unembedding"], c))
        memory = step.lower(case).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    assert temporary(partial(streamed, chunk=64)) < temporary(dense) / 4


def test_a_frozen_unembedding_costs_no_gradient(wide):
    def products(f, *argnums):
        jaxpr = jax.make_jaxpr(jax.jit(jax.grad(f, argnums)))(
            wide["hidden"], wide["unembedding"], wide
        )
        return [
            eqn.outvars[0].aval.shape
            for eqn in equations(jaxpr.jaxpr)
            if eqn.primitive.name == "dot_general"
        ]

    # Logits forward and again backward, the gradient of hidden, and of the unembedding.
    assert sorted(products(streamed, 0, 1)) == [(2, 4, 8), (2, 4, 64), (2, 4, 64), (64, 8)]
    assert sorted(products(streamed, 0)) == [(2, 4, 8), (2, 4, 64), (2, 4, 64)]
    assert sorted(products(streamed, 1)) == [(2, 4, 64), (2, 4, 64), (64, 8)]


def test_a_vocabulary_sharded_over_devices_gives_the_same():
    case = make(4, 12, 8, 32)
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    rows, words = NamedSharding(mesh, P("data")), NamedSharding(mesh, P("tensor"))
    shardings = {"hidden": rows, "unembedding": words, "targets": rows, "weights": rows}

    def f(c):
        grad = jax.value_and_grad(streamed, (0, 1))
        return grad(c["hidden"], c["unembedding"], c, (0.5, 5.0))

    want = jax.jit(f)(case)
    sharded = jax.jit(f, in_shardings=(shardings,))
    got = sharded(jax.device_put(case, shardings))
    close(got, want)
    assert got[1][1].sharding.is_equivalent_to(words, 2)
    # The logits stay apart: nothing as large as one chunk of the whole vocabulary is gathered.
    text = sharded.lower(case).compile().as_text() or ""
    assert "f32[4,4,32]" not in text
    assert "f32[2,4,32]" not in text
    assert "f32[2,4,8]" in text


def test_bad_arguments_are_named(case):
    head = Factored(case["hidden"], case["unembedding"])
    log_probs, kl = inspect.unwrap(token_log_probs), inspect.unwrap(token_forward_kl)
    with pytest.raises(ValueError, match="chunk: got 0"):
        log_probs(head, case["targets"], chunk=0)
    with pytest.raises(ValueError, match=r"targets: got shape \(2, 9\)"):
        log_probs(head, case["targets"][:, 1:])
    with pytest.raises(
        ValueError, match=r"head: got hidden \(2, 10, 6\) and unembedding \(6, 17\)"
    ):
        log_probs(head._replace(unembedding=head.unembedding.T), case["targets"])
    with pytest.raises(ValueError, match=r"student.z: got shape \(10, 17\)"):
        kl(Logits(head.logits()[0]), head)
    with pytest.raises(ValueError, match=r"teacher: got \[B, T, V\] of \(2, 10, 16\)"):
        kl(head, head._replace(unembedding=head.unembedding[1:]))
    with pytest.raises(ValueError, match="temperature: got -1.0"):
        kl(head, head, temperature=-1.0)
