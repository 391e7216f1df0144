"""Sums with the gradient on the way: the same as values weighed and added, whatever the cuts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.planning.collectives import traffic
from kd_jax.launch.sharding import TABLE, on_mesh
from kd_jax.losses.classification import label_log_probs
from kd_jax.losses.divergences import forward_kl, jensen_shannon
from kd_jax.losses.streaming import over_vocabulary
from kd_jax.losses.summed import weighted_sum_over_vocabulary
from kd_jax.types import Factored, Logits, weighted_sum

B, T, D, E, V = 8, 10, 6, 5, 24
CURVES = pytest.mark.parametrize("curve", [(1.0, None), (0.7, 3.0)], ids=["plain", "softcap"])


def make(dtype=jnp.float32, T=T, V=V):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    weights = rng.random((B, T)).astype(np.float32) * (rng.random((B, T)) < 0.7)
    return {
        "hidden": draw(B, T, D),
        "unembedding": draw(V, D),
        "teacher": (draw(B, T, E), draw(V, E)),
        "targets": jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32),
        "weights": jnp.asarray(weights),
    }


CASE = make()


def row(logits, others, targets, share):
    """Half hard, half soft."""
    soft = jensen_shannon(logits, others[0], beta=0.5)
    return share * soft - (1 - share) * label_log_probs(logits, targets)


def summed(hidden, unembedding, curve=(1.0, None), *, case=CASE, chunk=4):
    return weighted_sum_over_vocabulary(
        row,
        Factored(hidden, unembedding, *curve),
        case["weights"],
        case["targets"],
        0.5,
        others=[Factored(*case["teacher"])],
        chunk=chunk,
    ).total


def dense(hidden, unembedding, curve=(1.0, None), *, case=CASE):
    z, t = Factored(hidden, unembedding, *curve).logits(), Factored(*case["teacher"]).logits()
    return (case["weights"] * row(z, (t,), case["targets"], 0.5)).sum()


def both(f, *args):
    return jax.jit(jax.value_and_grad(f, (0, 1)))(*args)


def close(got, want, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, want)


@CURVES
@pytest.mark.parametrize("chunk", [1, 4, 512])
def test_equals_the_dense_form(chunk, curve):
    args = CASE["hidden"], CASE["unembedding"]
    want = both(functools.partial(dense, curve=curve), *args)
    close(both(functools.partial(summed, curve=curve, chunk=chunk), *args), want)
    np.testing.assert_allclose(summed(*args, curve, chunk=chunk), want[0], rtol=1e-5)


def test_a_dense_head_is_summed_too():
    def loss(z):
        teacher = Logits(Factored(*CASE["teacher"]).logits())
        return weighted_sum_over_vocabulary(
            lambda z, others, rows, fixed: forward_kl(z, others[0]),
            Logits(z),
            CASE["weights"],
            others=[teacher],
            chunk=3,
        ).total

    z = Factored(CASE["hidden"], CASE["unembedding"]).logits()
    q, p = jax.nn.softmax(z), jax.nn.softmax(Factored(*CASE["teacher"]).logits())
    np.testing.assert_allclose(jax.grad(loss)(z), CASE["weights"][..., None] * (q - p), atol=1e-6)


def test_what_is_scaled_afterwards_is_scaled():
    args = CASE["hidden"], CASE["unembedding"]
    ours, theirs = (both(lambda h, w, f=f: jnp.sin(f(h, w) / 40), *args) for f in (summed, dense))
    close(ours, theirs)


def test_it_is_a_term():
    term = weighted_sum_over_vocabulary(
        lambda z, others, targets, fixed: -label_log_probs(z, targets),
        Factored(CASE["hidden"], CASE["unembedding"]),
        CASE["weights"],
        CASE["targets"],
        scale=0.3,
    )
    values = -label_log_probs(
        Factored(CASE["hidden"], CASE["unembedding"]).logits(), CASE["targets"]
    )
    close(tuple(term), tuple(weighted_sum(values, CASE["weights"], 0.3)))


def test_second_derivatives_equal_the_dense_form():
    def outer(f):
        return lambda h, w: sum(jnp.sin(g).sum() for g in jax.grad(f, (0, 1))(h, w))

    args = CASE["hidden"], CASE["unembedding"]
    close(both(outer(summed), *args)[1], both(outer(dense), *args)[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("argument", [0, 1])
def test_only_what_is_asked_for(argument):
    """A frozen head, or a frozen body: the other's gradient is not made."""
    args = CASE["hidden"], CASE["unembedding"]
    grad = jax.jit(jax.grad(summed, argument))
    close(grad(*args), jax.grad(dense, argument)(*args))
    text = str(jax.make_jaxpr(jax.grad(summed, argument))(*args))
    assert (f"f32[1,1,{V},{D}]" in text) == (argument == 1)


def test_scale_and_softcap_may_be_learned():
    args = CASE["hidden"], CASE["unembedding"]
    curve = jnp.float32(0.7), jnp.float32(3.0)
    ours, theirs = (jax.grad(f, 2)(*args, curve) for f in (summed, dense))
    close(ours, theirs, rtol=1e-4)


def test_tokens_without_weight_move_nothing():
    """Not even where the teacher is no distribution there."""
    off = CASE["weights"] == 0
    states, unembedding = CASE["teacher"]
    broken = CASE | {
        "teacher": (jnp.where(off[..., None], 1e30, states), unembedding),
        "targets": jnp.where(off, -100, CASE["targets"]),
    }
    args = CASE["hidden"], CASE["unembedding"]
    close(both(functools.partial(summed, case=broken), *args), both(summed, *args))


def test_sixteen_bits():
    case = make(jnp.bfloat16)
    args = case["hidden"], case["unembedding"]
    value, grads = both(functools.partial(summed, case=case), *args)
    wide = [x.astype(jnp.float32) for x in args]
    teacher = {"teacher": tuple(x.astype(jnp.float32) for x in case["teacher"])}
    want, theirs = both(functools.partial(dense, case=case | teacher), *wide)
    assert [g.dtype for g in grads] == [jnp.bfloat16, jnp.bfloat16]
    np.testing.assert_allclose(value, want, rtol=1e-3)
    close([g.astype(jnp.float32) for g in grads], list(theirs), rtol=3e-2, atol=3e-2)


LAYOUTS = pytest.mark.parametrize(
    "layout",
    [
        MeshConfig(),
        MeshConfig(fsdp=2),
        MeshConfig(tensor=4),
        MeshConfig(fsdp=2, context=2, tensor=2),
    ],
    ids=["data", "fsdp", "tensor", "all"],
)


def placed(mesh, case=CASE):
    specs = {"hidden": P(TABLE["batch"], "context"), "unembedding": P("tensor", "fsdp")}
    return [jax.device_put(case[x], NamedSharding(mesh, spec)) for x, spec in specs.items()]


@LAYOUTS
def test_a_mesh_changes_nothing(layout):
    mesh = make_mesh(layout)
    f = jax.jit(jax.value_and_grad(on_mesh(summed, mesh), (0, 1)))
    close(f(*placed(mesh)), both(dense, CASE["hidden"], CASE["unembedding"]))


@LAYOUTS
def test_no_logits_and_no_gradient_of_the_head_travel_in_the_loop(layout):
    """A token more asks for less traffic than a row of its device's logits."""
    mesh = make_mesh(layout)
    vocabulary = 256

    def sent(length):
        case = make(T=length, V=vocabulary)
        f = jax.value_and_grad(on_mesh(functools.partial(summed, case=case), mesh), (0, 1))
        program = jax.jit(f).lower(*placed(mesh, case)).compile()
        return sum(traffic(program.as_text() or "").values())

    tokens = B * 32 * layout.tensor // 8  # of each device, more
    assert sent(40) - sent(8) < 4 * tokens * vocabulary // layout.tensor


def test_the_values_are_those_of_the_streamed_form():
    values = over_vocabulary(
        row,
        Factored(CASE["hidden"], CASE["unembedding"]),
        CASE["targets"],
        0.5,
        others=[Factored(*CASE["teacher"])],
        chunk=3,
    )
    np.testing.assert_allclose(
        summed(CASE["hidden"], CASE["unembedding"]), (CASE["weights"] * values).sum(), rtol=1e-5
    )


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match=r"weights: got shape \(8, 9\), takes \[B, T\]"):
        summed(CASE["hidden"], CASE["unembedding"], case=CASE | {"weights": jnp.ones((8, 9))})
