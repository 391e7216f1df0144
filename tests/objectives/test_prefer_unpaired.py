"""KTO and BCO: the laws of all objectives, values against NumPy, means over the whole batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.bigram import padded, text_batch
from support.linear import assert_trees_close
from support.objective_laws import FROZEN, KEY, LAWS, MODEL, PARAMS, Case, batch_for, one_step

from kd_jax.data.collate import Example
from kd_jax.data.pairs import mismatched
from kd_jax.objectives.prefer_unpaired import bco, kto
from kd_jax.objectives.references import online
from kd_jax.steps import make_eval_step, make_train_step

KINDS = ("desirable", "undesirable")


def text(rows=4, seed=0):
    """Mismatched rows, the third part, of which the mean is above 0 and that of one half is not."""
    return text_batch(rows, seed=6 if seed == 2 else seed)


CASES = {
    "kto": Case(
        lambda m: kto(m, online(m), beta=0.5, desirable_weight=1.2, undesirable_weight=0.7),
        (*KINDS, "mismatched"),
        text=text,
    ),
    "bco": Case(lambda m: bco(m, online(m), beta=0.5), KINDS),
}


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", CASES)
def test_laws(law, name):
    law(CASES[name])


def ratios(rows, params=PARAMS):
    """log p / p_ref of each row, in float64."""

    def sums(params):
        hidden = np.asarray(params["embedding"], np.float64)[np.asarray(rows["inputs"])]
        z = hidden @ np.asarray(params["unembedding"], np.float64).T
        logs = z - np.log(np.exp(z).sum(-1, keepdims=True))
        picked = np.take_along_axis(logs, np.asarray(rows["targets"])[..., None], -1)[..., 0]
        return (picked * np.asarray(rows["weights"])).sum(1)

    return sums(params) - sums(FROZEN["reference"])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def kto_by_hand(batch):
    z = max(0.0, ratios(batch["mismatched"]).mean())
    c, r = (ratios(batch[kind]) for kind in KINDS)
    good, bad = 1.2 * (1 - sigmoid(0.5 * (c - z))), 0.7 * (1 - sigmoid(0.5 * (z - r)))
    return np.concatenate([good, bad]).mean()


@pytest.mark.parametrize("swapped", [False, True])
def test_kto_against_numpy(swapped):
    """Once with a mean above 0, once with one below, which is clamped."""
    case, batch = CASES["kto"], batch_for(CASES["kto"])
    if swapped:
        batch = batch | {"mismatched": text_batch(seed=5)}
    baseline = ratios(batch["mismatched"]).mean()
    assert (baseline < 0) == swapped
    found = one_step(case, batch)[1]
    np.testing.assert_allclose(found["baseline"], baseline, rtol=1e-4)
    np.testing.assert_allclose(found["loss"], kto_by_hand(batch), rtol=1e-5)
    for kind in KINDS:
        np.testing.assert_allclose(found[f"{kind}_ratio"], ratios(batch[kind]).mean(), rtol=1e-4)


def test_the_baseline_of_kto_is_clamped_after_the_mean_over_microbatches():
    """A clamp in each microbatch would raise it: one has a mean below 0, the other one above."""
    batch = batch_for(CASES["kto"])
    rows = batch["mismatched"]
    halves = [ratios(jax.tree.map(lambda x, j=j: x[j::2], rows)).mean() for j in range(2)]
    assert min(halves) < 0 < max(halves)
    found = one_step(CASES["kto"], batch, microbatches=2)[1]
    np.testing.assert_allclose(found["loss"], kto_by_hand(batch), rtol=1e-5)


def test_marked_rows_are_the_two_parts():
    case, batch = CASES["kto"], batch_for(CASES["kto"])
    order = np.array([3, 6, 0, 5, 1, 7, 2, 4])  # of 4 desirable rows and then 4 undesirable ones
    rows = jax.tree.map(
        lambda a, b: jnp.concatenate([a, b])[order], batch["desirable"], batch["undesirable"]
    )
    rows |= {"desirable": jnp.asarray(order < 4, jnp.int32), "mismatched": batch["mismatched"]}
    step = make_train_step(case.make(MODEL), optax.sgd(0.5))
    state, found = jax.jit(step.apply)(step.init(KEY, PARAMS, FROZEN, rows), FROZEN, rows)
    expected = one_step(case, batch)
    assert_trees_close((state.params, found), (expected[0].params, expected[1]))


def test_batches_without_marks_are_refused():
    with pytest.raises(
        ValueError, match="batch: got index, inputs, .*, takes the parts desirable and"
    ):
        bco(MODEL, online(MODEL), beta=0.1).init(KEY, PARAMS, FROZEN, text_batch())


def _of_real(rows, model):
    found = ratios(rows, jax.tree.map(np.asarray, model))
    return found[np.asarray(rows["index"]) >= 0]


@functools.cache
def run_of_bco(microbatches):
    """Three steps on different batches, one of them half padding: metrics of each, and rewards."""
    step = make_train_step(CASES["bco"].make(MODEL), optax.sgd(0.5), microbatches=microbatches)
    parts = [
        {kind: text_batch(8, seed=2 * i + j) for j, kind in enumerate(KINDS)} for i in range(3)
    ]
    parts[1] = {kind: padded(text_batch(4, seed=9), 4) for kind in KINDS}
    state, apply = step.init(KEY, PARAMS, FROZEN, parts[0]), jax.jit(step.apply)
    metrics, rewards = [], []
    for batch in parts:
        rewards.append([0.5 * _of_real(batch[kind], state.params["model"]) for kind in KINDS])
        state, found = apply(state, FROZEN, batch)
        metrics.append(found)
    return state, metrics, rewards


def test_the_shift_of_bco_is_the_mean_of_all_rewards_so_far():
    _, metrics, rewards = run_of_bco(1)
    for i, found in enumerate(metrics):
        shift = np.concatenate([x for pair in rewards[: i + 1] for x in pair]).mean()
        np.testing.assert_allclose(found["shift"], shift, rtol=1e-4)
        good, bad = rewards[i]
        terms = [np.log1p(np.exp(-(good - shift))), np.log1p(np.exp(bad - shift))]
        np.testing.assert_allclose(found["loss"], np.concatenate(terms).mean(), rtol=1e-4)


def test_and_the_same_in_microbatches():
    whole, cut = run_of_bco(1), run_of_bco(4)
    assert_trees_close(whole[0], cut[0], rtol=1e-4, atol=1e-5)
    assert_trees_close(whole[1], cut[1], rtol=1e-4, atol=1e-5)


def test_both_are_evaluated():
    for name, case in CASES.items():
        objective, batch = case.make(MODEL), batch_for(case)
        _, carry = objective.init(KEY, PARAMS, FROZEN, batch)
        params = {"model": PARAMS, "aux": {}}
        output = jax.jit(make_eval_step(objective))(params, carry, FROZEN, batch)
        np.testing.assert_allclose(output.loss, one_step(case, batch)[1]["loss"], rtol=1e-5)
        assert name in output.terms


def test_mismatched_examples_are_rolled():
    rows = [Example([i], [10 + i]) for i in range(3)]
    assert [(x.prompt, x.answer) for x in mismatched(rows)] == [
        ([0], [11]),
        ([1], [12]),
        ([2], [10]),
    ]
    with pytest.raises(ValueError, match="examples: got 1, takes at least 2"):
        mismatched(rows[:1])
