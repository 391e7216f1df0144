"""A teacher with its own tokens: values at the pairs, laws, and limits with one tokeniser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.bigram import bigram_model, text_batch
from support.linear import assert_trees_close
from support.objective_laws import FROZEN, KEY, LAWS, MODEL, PARAMS, Case, one_step

from kd_jax.data.alignment import pairs_by_bytes
from kd_jax.losses.divergences import jensen_shannon
from kd_jax.objectives.distil import distil, token_divergence
from kd_jax.objectives.universal import shared_token_divergence, universal_logits
from kd_jax.types import Context


def jsd(s, t):
    return jensen_shannon(s, t, beta=0.3)


def texts(rows: int, seed: int = 0) -> dict:
    """The student's text and a longer one of the teacher's, of which some positions are paired."""
    ours, theirs = text_batch(rows, seed=seed), text_batch(rows, length=9, seed=seed + 50)
    places = np.arange(rows) % 5
    read = [np.arange(6) * 2 for _ in places], [np.arange(9) + p % 2 for p in places]
    pairs = pairs_by_bytes(*read, np.asarray(ours["weights"]), np.asarray(theirs["weights"]))
    return ours | {"teacher": theirs, "pairs": jax.tree.map(jnp.asarray, pairs)}


IDS = np.array([4, 0, 2], np.int32), np.array([1, 3, 0], np.int32)
CASES = {
    "universal": Case(lambda model: universal_logits(model, model, 0.7, hard=0.3), text=texts),
    "soft only": Case(lambda model: universal_logits(model, model), text=texts),
    "shared": Case(
        lambda model: shared_token_divergence(model, model, jsd, IDS, 0.7, hard=0.3), text=texts
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", CASES)
def test_laws(law, name):
    law(CASES[name])


def wide(rows=7):
    """A teacher of another vocabulary."""
    draw = np.random.default_rng(3).standard_normal
    return {name: jnp.asarray(draw((rows, 3)), jnp.float32) for name in PARAMS}


def softmax(params, ids):
    hidden = np.asarray(params["embedding"], np.float64)[ids]
    e = np.exp(hidden @ np.asarray(params["unembedding"], np.float64).T)
    return e / e.sum(-1, keepdims=True)


def test_values_against_a_loop_in_numpy():
    """Over pairs and over tokens, each with its own mean; vocabularies of 5 and 7."""
    batch, teacher, frozen = texts(4), wide(), {"teacher": wide()}
    pairs = jax.tree.map(np.asarray, batch["pairs"])
    distances, shared, nll = [], [], []
    for row in range(4):
        found = zip(*(pairs[name][row] for name in ("student", "teacher", "weights")), strict=True)
        for i, j, weight in found:
            if weight:
                q = softmax(PARAMS, int(batch["inputs"][row, i]))
                p = softmax(teacher, int(batch["teacher"]["inputs"][row, j]))
                both = np.sort(p)[::-1], np.append(np.sort(q)[::-1], [0, 0])
                distances.append(np.abs(both[0] - both[1]).sum())
                p, q = p[IDS[1]] / p[IDS[1]].sum(), q[IDS[0]] / q[IDS[0]].sum()
                shared.append((p * np.log(p / q)).sum())
        for t in range(6):
            if batch["weights"][row, t]:
                q = softmax(PARAMS, int(batch["inputs"][row, t]))
                nll.append(-np.log(q[int(batch["targets"][row, t])]))
    assert 0 < len(distances) < len(nll)

    def terms(objective):
        params, ctx = {"model": PARAMS, "aux": {}}, Context(KEY, jnp.int32(0))
        return objective.loss(params, {}, frozen, batch, ctx).terms

    found = terms(universal_logits(MODEL, MODEL, 0.7, hard=0.3))
    np.testing.assert_allclose(found["universal"].value, 0.7 * np.mean(distances), rtol=1e-5)
    np.testing.assert_allclose(found["nll"].value, 0.3 * np.mean(nll), rtol=1e-5)

    def kl(s, t):
        p, q = jax.nn.softmax(t), jax.nn.softmax(s)
        return (p * jnp.log(p / q)).sum(-1)

    found = terms(shared_token_divergence(MODEL, MODEL, kl, IDS))
    assert list(found) == ["shared"]
    np.testing.assert_allclose(found["shared"].value, np.mean(shared), rtol=1e-5)


def with_itself():
    """The teacher reads the student's tokens: every position is paired with itself."""
    batch = text_batch()
    weights = np.asarray(batch["weights"])
    read = [np.arange(6) + 1] * 4
    pairs = pairs_by_bytes(read, read, weights, weights)
    return batch | {"teacher": batch, "pairs": jax.tree.map(jnp.asarray, pairs)}


def value_and_grad(objective, batch, frozen=FROZEN):
    aux, carry = objective.init(KEY, PARAMS, frozen, batch)

    def loss(model):
        params = {"model": model, "aux": aux}
        return objective.loss(params, carry, frozen, batch, Context(KEY, jnp.int32(0))).loss

    return jax.jit(jax.value_and_grad(loss))(PARAMS)


def test_with_one_tokeniser_and_vocabulary_it_is_the_token_divergence():
    everything = (np.arange(5), np.arange(5))
    ours = shared_token_divergence(MODEL, MODEL, jsd, everything, 0.7, hard=0.3)
    theirs = token_divergence(lambda s, t, y: jsd(s, t), 0.7, hard=0.3)
    assert_trees_close(
        value_and_grad(ours, with_itself()),
        value_and_grad(distil(MODEL, MODEL, {"kd": theirs}), text_batch()),
    )


def test_a_permuted_vocabulary_of_the_teacher_changes_nothing():
    """ULD does not see it, and shared tokens follow their ids."""
    order = np.array([3, 0, 4, 1, 2])
    teacher = FROZEN["teacher"]
    permuted = FROZEN | {"teacher": teacher | {"unembedding": teacher["unembedding"][order]}}
    objective = universal_logits(MODEL, MODEL)
    assert_trees_close(
        value_and_grad(objective, texts(4)), value_and_grad(objective, texts(4), permuted)
    )
    one, two = (
        shared_token_divergence(MODEL, MODEL, jsd, (np.arange(5), ids))
        for ids in (np.arange(5), np.argsort(order))
    )
    assert_trees_close(value_and_grad(one, texts(4)), value_and_grad(two, texts(4), permuted))


def test_a_student_that_is_its_teacher_is_at_no_distance():
    value = value_and_grad(universal_logits(MODEL, MODEL), with_itself(), {"teacher": PARAMS})[0]
    np.testing.assert_allclose(value, 0.0, atol=1e-6)


def test_streamed_and_dense_heads_agree():
    dense = bigram_model(factored=False)
    for make in (universal_logits, lambda s, t: shared_token_divergence(s, t, jsd, IDS)):
        one, two = (value_and_grad(make(model, model), texts(4)) for model in (MODEL, dense))
        assert_trees_close(one, two)


def test_pairs_behind_the_last_move_nothing():
    """More of them, and whatever positions they name."""
    batch = texts(4)
    pairs = batch["pairs"]
    off = pairs["weights"] == 0
    more = {name: jnp.pad(x, [(0, 0), (0, 3)]) for name, x in pairs.items()}
    other = {name: jnp.where(off, 4, pairs[name]) for name in ("student", "teacher")}
    objective = universal_logits(MODEL, MODEL, hard=0.3)
    want = value_and_grad(objective, batch)
    assert_trees_close(value_and_grad(objective, batch | {"pairs": more}), want)
    assert_trees_close(value_and_grad(objective, batch | {"pairs": pairs | other}), want)


def test_no_logits_but_those_of_pairs():
    """Of the teacher, and of the student where there is no hard loss: never [B, T, V]."""
    batch = texts(4)
    objective = universal_logits(MODEL, MODEL)

    def loss(model):
        return objective.loss(
            {"model": model, "aux": {}}, {}, {"teacher": wide()}, batch, Context(KEY, jnp.int32(0))
        ).loss

    text = str(jax.make_jaxpr(jax.grad(loss))(PARAMS))
    assert "f32[4,6,7]" in text and "f32[4,9,7]" not in text  # 6 pairs of at most 6 and 9 tokens


def test_a_step_without_pairs_learns_from_its_own_tokens_alone():
    batch = texts(4)
    batch["pairs"] = batch["pairs"] | {"weights": jnp.zeros_like(batch["pairs"]["weights"])}
    metrics = one_step(CASES["universal"], batch)[1]
    assert metrics["universal"] == 0 and np.isfinite(metrics["loss"]) and metrics["loss"] > 0


def test_refusals():
    objective, ctx = universal_logits(MODEL, MODEL), Context(KEY, jnp.int32(0))
    said = "^batch: got index, inputs, targets, weights, takes teacher and pairs besides$"
    with pytest.raises(ValueError, match=said):
        objective.loss({"model": PARAMS, "aux": {}}, {}, FROZEN, text_batch(), ctx)
    for tokens in ((IDS[0], IDS[1][:2]), (IDS[0][:0], IDS[1][:0])):
        with pytest.raises(
            ValueError, match=r"tokens: got shapes \(\d,\) and \(\d,\), takes \[K\]"
        ):
            shared_token_divergence(MODEL, MODEL, jsd, tokens)
