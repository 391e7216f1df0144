"""Learning from a stored teacher: equal to the same loss with the teacher at hand."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bigram import VOCABULARY, text_batch
from support.hlo import arrays_in
from support.objective_laws import FROZEN, KEY, LAWS, MODEL, PARAMS, Case, one_step

from kd_jax.data.top_k_records import Known, Layout, decode, encode, error_bound
from kd_jax.losses import top_k
from kd_jax.losses.divergences import forward_kl
from kd_jax.objectives.distil import distil, soft_tokens, token_divergence
from kd_jax.objectives.offline import COLUMNS, stored_top_k
from kd_jax.objectives.score import top_k_scores
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import next_token_nll
from kd_jax.steps import make_eval_step, make_train_step

RULES = {
    "tail": top_k.top_k_kl_with_tail,
    "renormalised": lambda z, i, p, tail: top_k.top_k_kl_renormalised(z, i, p),
    "partial": lambda z, i, p, tail: top_k.top_k_kl_partial(z, i, p),
}
few = settings(max_examples=15, derandomize=True, deadline=None)


def columns(batch, k):
    """What a cache would add, without its rounding; zeros where nothing is weighed."""
    found = top_k.likeliest(MODEL.apply(FROZEN["teacher"], batch).head.logits(), k=k)
    kept = batch["weights"] != 0
    masked = [jnp.where(kept.reshape(kept.shape + (1,) * (x.ndim - 2)), x, 0) for x in found]
    return dict(zip(COLUMNS, masked, strict=True))


def stored(rule, k, scale=1.0, hard=0.0):
    """The objective with its columns made on the spot, for laws that make batches themselves."""

    def make(model):
        objective = supervise(model, {"kd": stored_top_k(RULES[rule], scale, hard=hard)})

        def loss(params, carry, frozen, batch, ctx):
            known = top_k.likeliest(model.apply(frozen["teacher"], batch).head.logits(), k=k)
            batch = batch | dict(zip(COLUMNS, known, strict=True))
            return objective.loss(params, carry, frozen, batch, ctx)

        return objective._replace(loss=loss)

    return Case(make)


CASES = {
    "tail": stored("tail", 2),
    "renormalised": stored("renormalised", 3),
    "partial": stored("partial", 2),
    "half hard": stored("tail", 2, 0.5, 0.5),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", CASES)
def test_laws(law, name):
    law(CASES[name])


def trained(objective, batch, frozen):
    step = make_train_step(objective, optax.sgd(0.5))
    state, metrics = jax.jit(step.apply)(step.init(KEY, PARAMS, frozen, batch), frozen, batch)
    return state.params["model"], metrics["loss"]


def online(rule, k, hard=0.0):
    def loss(s, t, y):
        return RULES[rule](s, *top_k.likeliest(t, k=k))

    return distil(MODEL, MODEL, {"kd": token_divergence(loss, hard=hard)})


@pytest.mark.parametrize("hard", [0.0, 0.3])
@pytest.mark.parametrize(("rule", "k"), [("tail", 2), ("renormalised", 3), ("partial", 5)])
def test_the_step_is_that_with_the_teacher_at_hand(rule, k, hard):
    """And the teacher is not there; what was not kept is 0 in the columns."""
    batch = text_batch()
    offline = supervise(MODEL, {"kd": stored_top_k(RULES[rule], hard=hard)})
    params, loss = trained(offline, batch | columns(batch, k), {})
    expected, value = trained(online(rule, k, hard), batch, FROZEN)
    np.testing.assert_allclose(loss, value, rtol=1e-5)
    for name, x in params.items():
        np.testing.assert_allclose(x, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_with_the_whole_vocabulary_it_is_the_forward_kl(rule):
    batch = text_batch()
    offline = supervise(MODEL, {"kd": stored_top_k(RULES[rule])})
    params, loss = trained(offline, batch | columns(batch, VOCABULARY), {})
    expected, value = trained(distil(MODEL, MODEL, {"kd": soft_tokens()}), batch, FROZEN)
    np.testing.assert_allclose(loss, value, rtol=1e-5)
    for name, x in params.items():
        np.testing.assert_allclose(x, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_what_stands_at_unweighed_positions_is_not_looked_at():
    batch = text_batch()
    made = batch | columns(batch, 2)
    hidden = batch["weights"] == 0
    spoilt = made | {
        "top_k_ids": jnp.where(hidden[..., None], 3, made["top_k_ids"]),
        "top_k_log_probs": jnp.where(hidden[..., None], -7.0, made["top_k_log_probs"]),
        "top_k_log_tail": jnp.where(hidden, -jnp.inf, made["top_k_log_tail"]),
    }
    for rule in RULES.values():
        (one, value), (two, same) = (
            trained(supervise(MODEL, {"kd": stored_top_k(rule)}), x, {}) for x in (made, spoilt)
        )
        assert value == same
        jax.tree.map(np.testing.assert_array_equal, one, two)


def test_a_batch_without_columns_is_refused():
    with pytest.raises(ValueError, match="takes top_k_log_tail besides"):
        batch = text_batch()
        lacking = {k: x for k, x in (batch | columns(batch, 2)).items() if k != "top_k_log_tail"}
        trained(supervise(MODEL, {"kd": stored_top_k(RULES["tail"])}), lacking, {})


@pytest.mark.parametrize("chunk", [1, 4, 512])
def test_scores_in_pieces_are_those_of_the_whole_head(chunk):
    """Which only the last chunk, of all positions, writes out."""
    batch = text_batch()
    whole = top_k.likeliest(MODEL.apply(PARAMS, batch).head.logits(), k=3)._asdict()
    step = make_eval_step(top_k_scores(MODEL, 3, chunk=chunk))
    arguments = {"model": PARAMS, "aux": {}}, {}, {}, batch
    output = jax.jit(step)(*arguments)
    assert not output.terms and output.rows.keys() == whole.keys()
    for name, x in output.rows.items():
        np.testing.assert_allclose(x, whole[name], rtol=1e-5, atol=1e-6)
    logits = (*batch["inputs"].shape, VOCABULARY)
    assert (logits in arrays_in(jax.make_jaxpr(step)(*arguments))) == (chunk == 512)


# --- what rounding and the rest cost


def random_logits(seed, size, scale):
    s, t = scale * np.random.default_rng(seed).standard_normal((2, 6, size)).astype(np.float32)
    return jnp.asarray(s), jnp.asarray(t)


def rounded(layout, found):
    row = Known(*map(np.asarray, found))
    return decode(layout, encode(layout, row, np.ones(len(row.log_tail))), length=6)


@pytest.mark.slow
@given(
    st.integers(0, 2**31 - 1),
    st.sampled_from([(2, 11), (20, 64), (64, 64)]),
    st.sampled_from([8, 16]),
    st.sampled_from([1.0, 4.0]),
)
@few
def test_rounding_moves_value_and_gradient_by_no_more_than_the_bound(seed, size, bits, scale):
    layout = Layout(*size, bits)
    s, t = random_logits(seed, layout.vocabulary, scale)
    exact = top_k.likeliest(t, k=layout.k)
    stored_ = rounded(layout, exact)
    for rule in ("tail", "renormalised"):
        value, grad = _value_and_gradient(RULES[rule], s, exact)
        other, moved = _value_and_gradient(RULES[rule], s, stored_)
        # Renormalised, both sides are divided by what is held: the part of the bound without tail.
        d = error_bound(layout)
        assert np.abs(grad - moved).sum(-1).max() <= d + 1e-5
        log_q = np.asarray(jax.nn.log_softmax(s), np.float64)
        inside = np.take_along_axis(log_q, np.asarray(exact.ids), -1)
        outside = np.log1p(-np.minimum(np.exp(inside).sum(-1, keepdims=True), 1 - 1e-9))
        all_q = (
            inside
            if rule == "renormalised" or size[0] == size[1]
            else np.concatenate([inside, outside], -1)
        )
        n, T = max(2, all_q.shape[-1]), min(d / 2, 0.5)
        entropy = -T * np.log(T) - (1 - T) * np.log(1 - T)
        bound = T * np.log(n - 1) + entropy + T * np.ptp(all_q, -1)
        assert (np.abs(value - other) <= bound + 1e-5).all()


@functools.partial(jax.jit, static_argnums=0)
def _value_and_gradient(rule, s, known):
    value = rule(s, *known)
    return value, jax.grad(lambda s: rule(s, *known).sum())(s)


@pytest.mark.slow
@given(st.integers(0, 2**31 - 1), st.integers(1, 10))
@few
def test_the_tail_loses_what_the_rests_differ_by(seed, k):
    """KL - KL with the tail = tail * KL(teacher's rest || student's rest), at least 0."""
    s, t = random_logits(seed, 11, 2.0)
    known = top_k.likeliest(t, k=k)
    lost = forward_kl(s, t) - top_k.top_k_kl_with_tail(s, *known)
    inside = np.zeros(s.shape, bool)
    np.put_along_axis(inside, np.asarray(known.ids), True, -1)
    of_rest = forward_kl(jnp.where(inside, -1e9, s), jnp.where(inside, -1e9, t))
    np.testing.assert_allclose(lost, jnp.exp(known.log_tail) * of_rest, rtol=1e-3, atol=1e-5)
    assert (lost >= -1e-5).all()


# --- sequence-level distillation


def test_text_of_the_teacher_teaches_its_distribution():
    """Card S6: the expected gradient over what the teacher writes is that of the forward KL on the
    beginnings that it writes. Two steps after token 0, every text with its probability."""
    log_p = np.asarray(
        jax.nn.log_softmax(FROZEN["teacher"]["embedding"] @ FROZEN["teacher"]["unembedding"].T),
        np.float64,
    )
    pairs = np.array(list(itertools.product(range(VOCABULARY), repeat=2)), np.int32)
    p = np.exp(log_p[0, pairs[:, 0]] + log_p[pairs[:, 0], pairs[:, 1]])
    batch = {
        "inputs": jnp.asarray(np.stack([np.zeros(len(pairs), np.int32), pairs[:, 0]], 1)),
        "targets": jnp.asarray(pairs),
        "weights": jnp.asarray(np.tile(p[:, None], (1, 2)), jnp.float32),
        "index": jnp.arange(len(pairs)),
    }
    written, _ = trained(supervise(MODEL, {"nll": next_token_nll}), batch, {})
    matched, _ = trained(distil(MODEL, MODEL, {"kd": soft_tokens()}), batch, FROZEN)
    for name, x in written.items():
        assert np.abs(x - PARAMS[name]).max() > 1e-3
        np.testing.assert_allclose(x, matched[name], rtol=1e-4, atol=1e-6)


def test_one_step_of_laws_sees_the_columns():
    """So that the laws are about this objective: another k, another loss."""
    two, three = (one_step(stored("tail", k), text_batch())[1]["loss"] for k in (2, 3))
    assert abs(float(two) - float(three)) > 1e-4
