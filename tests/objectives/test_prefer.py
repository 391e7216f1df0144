"""Objectives on pairs: the laws of all objectives, and every term against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.bigram import text_batch
from support.linear import assert_trees_close
from support.objective_laws import FROZEN, KEY, LAWS, MODEL, PARAMS, Case, batch_for, one_step

from kd_jax.losses.preference import free, margin, tokens, transport
from kd_jax.losses.preference.pairs import Pairs
from kd_jax.objectives import prefer_terms as terms
from kd_jax.objectives.prefer import Seen as Found
from kd_jax.objectives.prefer import prefer
from kd_jax.objectives.references import online, precomputed
from kd_jax.steps import make_train_step
from kd_jax.types import Context

SIDES = ("chosen", "rejected")
DPO = functools.partial(margin.dpo, beta=0.1)
TDPO1 = terms.of_sums(functools.partial(tokens.tdpo1, beta=0.1), terms.kl_from_reference)
TDPO2 = terms.of_sums(functools.partial(tokens.tdpo2, beta=0.1, alpha=0.5), terms.kl_from_reference)
LD_DPO = terms.length_desensitised(functools.partial(tokens.ld_dpo, beta=0.1, alpha=0.3))
AOT = terms.over_the_batch(functools.partial(transport.aot, beta=0.1))
AOT_UNPAIRED = terms.over_the_batch(functools.partial(transport.aot_unpaired, beta=0.1))
KL = {"kl": terms.kl_to_reference()}


def with_text_weights(rows=4, seed=0):
    """Whose NLL is over what is weighed: what else a prompt holds is tested by itself."""
    batch = text_batch(rows, seed=seed)
    return batch | {"text_weights": 2 * batch["weights"]}


def longer_rejected(rows=4, seed=0):
    """Completions of the two sides differ in length: one has the lengths of the other, turned."""
    batch = text_batch(rows, seed=seed)
    return batch if seed == 0 else batch | {"weights": batch["weights"][::-1]}


def case(losses, *, referenced=True, text=longer_rejected, metrics={}):
    def make(model):
        return prefer(model, losses, online(model) if referenced else None, metrics=metrics)

    return Case(make, SIDES, text=text)


CASES = {
    "dpo": case({"dpo": DPO}),
    "free": case(
        {
            "cpo": functools.partial(free.cpo, beta=0.1),
            "nll": terms.chosen_nll(0.5),
            "text": terms.chosen_text_nll(1.0),
        },
        referenced=False,
        text=with_text_weights,
    ),
    "tokens": case(
        {
            "by_sequence": terms.chosen_nll_by_sequence(0.2),
            "penalty": terms.kl_to_reference(0.3),
            "tdpo1": TDPO1,
            "tdpo2": TDPO2,
            "ld_dpo": LD_DPO,
            "wpo": terms.own_first(DPO),
        },
        metrics=KL,
    ),
    "aot": case({"paired": AOT, "unpaired": AOT_UNPAIRED}),
}


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", CASES)
def test_laws(law, name):
    law(CASES[name])


class Seen:
    """The two sides of a batch in float64: what tests work out by hand."""

    def __init__(self, batch, params=PARAMS, reference=FROZEN["reference"]):
        self.logs, self.own, self.mask, self.fixed = {}, {}, {}, {}
        for side in SIDES:
            rows = batch[side]
            self.mask[side] = np.asarray(rows["weights"], np.float64)
            self.logs[side], self.fixed[side] = (_log_p(rows, x) for x in (params, reference))
            self.own[side] = _picked(rows, self.logs[side])
        self.reference = {side: _picked(batch[side], self.fixed[side]) for side in SIDES}

    def sums(self, values, mask=None):
        """(chosen, rejected): over weighed tokens."""
        mask = self.mask if mask is None else mask
        return tuple((values[side] * mask[side]).sum(1) for side in SIDES)

    def ratios(self, mask=None):
        own, fixed = (self.sums(x, mask) for x in (self.own, self.reference))
        return tuple(p - r for p, r in zip(own, fixed, strict=True))

    def divergence(self, first, second):
        return {s: (np.exp(first[s]) * (first[s] - second[s])).sum(-1) for s in SIDES}


def _log_p(rows, params):
    hidden = np.asarray(params["embedding"], np.float64)[np.asarray(rows["inputs"])]
    z = hidden @ np.asarray(params["unembedding"], np.float64).T
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def _picked(rows, logs):
    return np.take_along_axis(logs, np.asarray(rows["targets"])[..., None], -1)[..., 0]


def softplus(x):
    return np.log1p(np.exp(x))


def dpo(c, r):
    return softplus(-0.1 * (c - r))


def metrics_of(name):
    return one_step(CASES[name], batch_for(CASES[name]))[1]


def by_hand(name):
    return Seen(batch_for(CASES[name]))


def test_metrics_of_a_step_against_numpy():
    measured = case({"dpo": DPO}, metrics=KL)
    batch = batch_for(measured)
    seen, (state, found) = Seen(batch), one_step(measured, batch)
    # What is measured moves no weight.
    assert_trees_close(state.params, one_step(CASES["dpo"], batch)[0].params)
    c, r = seen.ratios()
    chosen, rejected = seen.sums(seen.own)
    kl = seen.divergence(seen.logs, seen.fixed)
    count = sum(m.sum() for m in seen.mask.values())
    expected = {
        "loss": dpo(c, r).mean(),
        "dpo": dpo(c, r).mean(),
        "chosen": chosen.mean(),
        "rejected": rejected.mean(),
        "chosen_ratio": c.mean(),
        "rejected_ratio": r.mean(),
        "margin": (c - r).mean(),
        "accuracy": (c > r).mean(),
        "kl": sum(x.sum() for x in seen.sums(kl)) / count,
    }
    assert found.keys() - {"grad_norm"} == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=1e-5, err_msg=key)


def test_the_nll_of_cpo_is_a_mean_over_tokens_and_that_of_rpo_over_sequences():
    seen = by_hand("free")
    chosen, rejected = seen.sums(seen.own)
    lengths = seen.mask["chosen"].sum(1)
    assert len(set(lengths)) > 1
    found = metrics_of("free")
    nll = -chosen.sum() / lengths.sum()
    np.testing.assert_allclose(found["nll"], 0.5 * nll, rtol=1e-5)
    cpo = softplus(-0.1 * (chosen - rejected)).mean()
    np.testing.assert_allclose(found["cpo"], cpo, rtol=1e-5)
    np.testing.assert_allclose(found["loss"], cpo + found["nll"] + found["text"], rtol=1e-5)
    assert "margin" not in found
    seen = by_hand("tokens")
    by_sequence = 0.2 * (-seen.sums(seen.own)[0] / seen.mask["chosen"].sum(1)).mean()
    np.testing.assert_allclose(metrics_of("tokens")["by_sequence"], by_sequence, rtol=1e-5)


def test_a_padding_pair_without_tokens_has_no_part_in_the_mean_over_sequences():
    lengths, weights = jnp.array([4.0, 0.0]), jnp.array([1.0, 0.0])

    def value(sums):
        pairs = Pairs(sums, sums, chosen_lengths=lengths, rejected_lengths=lengths)
        seen = Found({}, pairs, weights, sums[:, None], {})
        return terms.chosen_nll_by_sequence(0.2).term(seen).value

    found, grad = jax.value_and_grad(value)(jnp.array([-6.0, 0.0]))
    np.testing.assert_allclose(found, 0.2 * 6 / 4, rtol=1e-6)
    np.testing.assert_allclose(grad, [-0.2 / 4, 0.0], rtol=1e-6)


def test_the_nll_of_orpo_covers_the_prompt_and_no_padding():
    batch = batch_for(CASES["free"])
    prompt = (jnp.arange(6)[None, :] == 0).astype(jnp.float32)
    for side in SIDES:
        batch[side]["text_weights"] = batch[side]["weights"] + prompt
    seen = Seen(batch)
    weights = np.asarray(batch["chosen"]["text_weights"])
    expected = -(seen.own["chosen"] * weights).sum() / weights.sum()
    np.testing.assert_allclose(one_step(CASES["free"], batch)[1]["text"], expected, rtol=1e-5)
    del batch["chosen"]["text_weights"], batch["rejected"]["text_weights"]
    with pytest.raises(ValueError, match="takes 'text_weights' besides"):
        one_step(CASES["free"], batch)


def test_the_kl_penalty_is_exact_and_of_a_token():
    seen = by_hand("tokens")
    kl = seen.sums(seen.divergence(seen.logs, seen.fixed))
    tokens = sum(m.sum() for m in seen.mask.values())
    expected = 0.3 * sum(x.sum() for x in kl) / tokens
    np.testing.assert_allclose(metrics_of("tokens")["penalty"], expected, rtol=1e-4)


@pytest.mark.parametrize(("name", "alpha"), [("tdpo1", 1.0), ("tdpo2", 0.5)])
def test_tdpo_takes_the_kl_of_the_reference(name, alpha):
    seen = by_hand("tokens")
    c, r = seen.ratios()
    k_chosen, k_rejected = seen.sums(seen.divergence(seen.fixed, seen.logs))
    expected = softplus(-0.1 * (c - r - alpha * (k_rejected - k_chosen))).mean()
    np.testing.assert_allclose(metrics_of("tokens")[name], expected, rtol=1e-5)


@pytest.mark.parametrize(("loss", "stopped"), [(TDPO1, False), (TDPO2, True)])
def test_gradients_of_tdpo_are_those_written_out(loss, stopped):
    """By logits [P, T, V], with the stop-gradient of TDPO2 alone."""
    batch = batch_for(CASES["tokens"])
    objective = prefer(MODEL, {"tdpo": loss}, online(MODEL))

    def ours(model):
        params = {"model": model, "aux": {}}
        return objective.loss(params, {}, FROZEN, batch, Context(KEY, jnp.int32(0))).loss

    def dense(model):
        ratios, kls = [], []
        for side in SIDES:
            rows = batch[side]
            p, q = (
                jax.nn.log_softmax(MODEL.apply(x, rows).head.logits())
                for x in (model, FROZEN["reference"])
            )
            own = jnp.take_along_axis(p - q, rows["targets"][..., None], -1)[..., 0]
            ratios.append((own * rows["weights"]).sum(1))
            kls.append(((jnp.exp(q) * (q - p)).sum(-1) * rows["weights"]).sum(1))
        (c, r), (k_chosen, k_rejected) = ratios, kls
        if stopped:
            k_chosen = jax.lax.stop_gradient(k_chosen)
        drift = (0.5 if stopped else 1.0) * (k_rejected - k_chosen)
        return -jax.nn.log_sigmoid(0.1 * (c - r - drift)).mean()

    assert_trees_close(jax.jit(jax.grad(ours))(PARAMS), jax.jit(jax.grad(dense))(PARAMS), rtol=1e-4)


def test_ld_dpo_weighs_the_tail_of_the_longer_completion():
    seen = by_hand("tokens")
    lengths = [seen.mask[side].sum(1) for side in SIDES]
    assert (lengths[0] != lengths[1]).any()
    shorter = np.minimum(*lengths)[:, None]
    # Completions are contiguous: the n-th weighed token is where the running count is n.
    weights = {s: m * np.where(m.cumsum(1) <= shorter, 1.0, 0.3) for s, m in seen.mask.items()}
    expected = dpo(*seen.ratios(weights)).mean()
    np.testing.assert_allclose(metrics_of("tokens")["ld_dpo"], expected, rtol=1e-5)


def test_wpo_weighs_pairs_by_how_much_they_are_the_policys_own():
    seen = by_hand("tokens")
    typical = {s: seen.own[s] - np.log((np.exp(seen.logs[s]) ** 2).sum(-1)) for s in SIDES}
    means = (t / m.sum(1) for t, m in zip(seen.sums(typical), seen.mask.values(), strict=True))
    weight = np.exp(sum(means))
    expected = (weight * dpo(*seen.ratios())).mean()
    np.testing.assert_allclose(metrics_of("tokens")["wpo"], expected, rtol=1e-5)


def test_aot_sorts_over_the_whole_batch_and_refuses_to_be_cut():
    seen = by_hand("aot")
    (pc, pr), (rc, rr) = seen.sums(seen.own), seen.sums(seen.reference)
    d = np.sort(pc - pr) - np.sort(rc - rr)
    np.testing.assert_allclose(metrics_of("aot")["paired"], softplus(-0.1 * d).mean(), rtol=1e-5)
    d = np.sort(pc - rc) - np.sort(pr - rr)
    found = metrics_of("aot")["unpaired"]
    np.testing.assert_allclose(found, softplus(-0.1 * d).mean(), rtol=1e-5)
    with pytest.raises(ValueError, match="couples the examples"):
        make_train_step(CASES["aot"].make(MODEL), None, microbatches=2)  # pyright: ignore[reportArgumentType]


def test_statistics_of_a_reference_need_one_that_is_run():
    batch = batch_for(CASES["dpo"])
    for side in SIDES:
        batch[side]["reference_log_probs"] = jnp.zeros(4)
    params = {"model": PARAMS, "aux": {}}
    ctx = Context(KEY, jnp.int32(0))
    objective = prefer(MODEL, {"tdpo": TDPO1}, precomputed())
    with pytest.raises(ValueError, match=r"reference: got no whole predictions, takes references"):
        objective.loss(params, {}, FROZEN, batch, ctx)
    # One that reads the policy alone takes any.
    prefer(MODEL, {"wpo": terms.own_first(DPO)}, precomputed()).loss(params, {}, {}, batch, ctx)


def test_a_stored_reference_is_the_online_one_stored():
    batch = batch_for(CASES["dpo"])
    seen = Seen(batch)
    expected = metrics_of("dpo")
    for side, sums in zip(SIDES, seen.sums(seen.reference), strict=True):
        batch[side]["reference_log_probs"] = jnp.asarray(sums, jnp.float32)
    stored = Case(lambda m: prefer(m, {"dpo": DPO}, precomputed()), SIDES)
    params = {"model": PARAMS, "aux": {}}
    output = stored.make(MODEL).loss(params, {}, {}, batch, Context(KEY, jnp.int32(0)))
    np.testing.assert_allclose(output.loss, expected["loss"], rtol=1e-5)
