"""Heads over a part of their vocabulary: what is cut off counts nowhere, on any mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.sharding import TABLE, on_mesh
from kd_jax.losses.classification import label_log_probs
from kd_jax.losses.divergences import jensen_shannon
from kd_jax.losses.summed import weighted_sum_over_vocabulary
from kd_jax.losses.vocabulary import chosen, common, first
from kd_jax.types import Factored, Logits

B, T, D, E, SIZE = 8, 6, 4, 3, 21  # 21 tokens: a mesh of 4 does not divide them
STUDENT, TEACHER = 24, 28  # rows of the heads


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


HIDDEN, UNEMBEDDING = draw(0, B, T, D), draw(1, STUDENT, D)
OTHER = draw(2, B, T, E), 3 * draw(3, TEACHER, E)
TARGETS = jnp.asarray(np.random.default_rng(4).integers(0, SIZE, (B, T)), jnp.int32)
WEIGHTS = jnp.asarray(np.random.default_rng(5).random((B, T)) < 0.7, jnp.float32)


def row(logits, others, targets, fixed):
    return jensen_shannon(logits, others[0], beta=0.3) - label_log_probs(logits, targets)


def padded(hidden, unembedding, other=OTHER, *, kind=lambda head: head):
    heads = {
        "student": kind(Factored(hidden, unembedding, 0.7, 3.0)),
        "teacher": kind(Factored(*other)),
    }
    ours, theirs = common(heads, SIZE)
    return weighted_sum_over_vocabulary(
        row, ours, WEIGHTS, TARGETS, others=(theirs,), chunk=4
    ).total


def unpadded(hidden, unembedding):
    """From the arrays without the padded rows."""
    z = Factored(hidden, unembedding[:SIZE], 0.7, 3.0).logits()
    t = Factored(OTHER[0], OTHER[1][:SIZE]).logits()
    return (WEIGHTS * row(z, (t,), TARGETS, ())).sum()


def both(f, *args):
    return jax.jit(jax.value_and_grad(f, (0, 1)))(*args)


def close(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)


@pytest.mark.parametrize(
    "kind", [lambda head: head, lambda head: Logits(head.logits())], ids=["streamed", "dense"]
)
def test_a_padded_head_is_the_unpadded_one(kind):
    found = both(functools.partial(padded, kind=kind), HIDDEN, UNEMBEDDING)
    close(found, both(unpadded, HIDDEN, UNEMBEDDING))
    np.testing.assert_array_equal(found[1][1][SIZE:], 0.0)


def test_whatever_the_padded_rows_hold():
    other = OTHER[0], OTHER[1].at[SIZE:].set(1e30)
    found = both(functools.partial(padded, other=other), HIDDEN, UNEMBEDDING.at[SIZE:].set(1e30))
    close(found, both(unpadded, HIDDEN, UNEMBEDDING))


@pytest.mark.parametrize(
    "layout",
    [MeshConfig(tensor=4), MeshConfig(fsdp=2, context=2, tensor=2)],
    ids=["tensor", "all"],
)
def test_a_mesh_changes_nothing(layout):
    mesh = make_mesh(layout)

    def put(x, *spec):
        return jax.device_put(x, NamedSharding(mesh, P(*spec)))

    given = put(HIDDEN, TABLE["batch"], "context"), put(UNEMBEDDING, "tensor", "fsdp")
    other = put(OTHER[0], TABLE["batch"], "context"), put(OTHER[1], "tensor")
    f = jax.jit(jax.value_and_grad(on_mesh(padded, mesh), (0, 1)))
    close(f(*given, other), both(unpadded, HIDDEN, UNEMBEDDING))


def test_chosen_tokens_are_columns_of_the_logits():
    tokens = np.array([5, 0, 20, 7], np.int32)
    head = Factored(HIDDEN, UNEMBEDDING, 0.7, 3.0)
    want = head.logits()[..., tokens]
    for one in (head, Logits(head.logits())):
        np.testing.assert_allclose(chosen(one, tokens).logits(), want, rtol=1e-6)


@pytest.mark.parametrize("wrong", [-1, STUDENT])
def test_chosen_tokens_are_rows_of_the_head(wrong):
    with pytest.raises(ValueError, match=f"tokens: got {wrong}, takes 0 to 23, the rows of the"):
        chosen(Factored(HIDDEN, UNEMBEDDING), np.array([0, wrong]))


def test_equal_heads_need_no_size():
    heads = {name: Factored(HIDDEN, UNEMBEDDING) for name in ("student", "teacher")}
    assert common(heads, None) == common(heads, STUDENT) == list(heads.values())


def test_errors_name_the_sizes_and_the_way_out():
    heads = {
        "student": Factored(HIDDEN, UNEMBEDDING),
        "teacher": Logits(Factored(*OTHER).logits()),
    }
    with pytest.raises(ValueError) as error:
        common(heads, None)
    assert str(error.value) == (
        "vocabulary: got none for heads of different sizes (student 24, teacher 28); give "
        "vocabulary=, the number of tokens that they share: of one tokeniser, its size"
    )
    for size in (0, 25):
        with pytest.raises(ValueError, match=f"vocabulary: got {size}, takes 1 to 24, the rows"):
            first(heads["student"], size)
