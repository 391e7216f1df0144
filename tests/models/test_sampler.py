"""The sampler against full forward passes, hand-made distributions and its own promises."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.models import decode, sampler
from kd_jax.models.decoder import DecoderConfig, decoder
from kd_jax.models.sampler import filter_logits, generate

TINY = DecoderConfig(vocab=32, width=16, depth=2, heads=4, kv_heads=2, head_dim=8, mlp=24)
RICH = dataclasses.replace(
    TINY, scan=False, window=3, qk_norm=True, qkv_bias=True, tied=True, softcap=2.0
)
PROMPTS = np.random.default_rng(0).integers(1, 32, (3, 6)).astype(np.int32)
LENGTHS = np.array([6, 1, 4], np.int32)
KEY = jax.random.key(0)
NEW = 7


@functools.cache
def weights(config):
    draw = np.random.default_rng(1).standard_normal
    shapes = jax.eval_shape(decoder(config).init, KEY)
    return jax.tree.map(lambda x: (0.6 * draw(x.shape)).astype(np.float32), shapes)


@functools.cache
def greedy_by_full_passes(config):
    """Each token is the likeliest after a whole forward pass over all before it."""
    forward = jax.jit(lambda x: decoder(config).apply(weights(config), {"inputs": x}).head.logits())
    tokens = np.zeros((3, PROMPTS.shape[1] + NEW), np.int32)
    for row, length in enumerate(LENGTHS):
        tokens[row, :length] = PROMPTS[row, :length]
    for i in range(NEW):
        logits = np.asarray(forward(tokens))
        for row, length in enumerate(LENGTHS):
            tokens[row, length + i] = logits[row, length + i - 1].argmax()
    return np.stack([row[n : n + NEW] for row, n in zip(tokens, LENGTHS, strict=True)])


def greedy(config=TINY, prompts=PROMPTS, params=None, **settings):
    params = weights(config) if params is None else params
    return generate(config, params, prompts, LENGTHS, KEY, **{"max_new": NEW, **settings})


@pytest.mark.slow
@pytest.mark.parametrize("config", [TINY, RICH], ids=["plain", "rich and unrolled"])
def test_greedy_equals_full_forward_passes(config):
    tokens, count = greedy(config)
    np.testing.assert_array_equal(tokens, greedy_by_full_passes(config))
    np.testing.assert_array_equal(count, [NEW] * 3)
    assert len(np.unique(tokens)) > 3  # a constant would prove little


@pytest.mark.slow
def test_a_row_stops_at_its_first_stop_token_and_is_zero_after():
    full = greedy_by_full_passes(TINY)
    stop = (int(full[0, 2]), int(full[1, 4]))
    tokens, count = greedy(stop=stop)
    for row in range(3):
        hits = np.flatnonzero(np.isin(full[row], stop))
        end = hits[0] + 1 if len(hits) else NEW
        assert count[row] == end
        np.testing.assert_array_equal(tokens[row, :end], full[row, :end])
        np.testing.assert_array_equal(tokens[row, end:], 0)
    assert count[0] <= 3 and count[1] <= 5


def test_the_loop_ends_when_every_row_has(monkeypatch):
    steps = []
    real = decode.step

    def counted(*arguments):
        jax.debug.callback(lambda: steps.append(1))
        return real(*arguments)

    monkeypatch.setattr(decode, "step", counted)
    stop = tuple(sorted({int(t) for t in greedy_by_full_passes(TINY)[:, 1]}))
    _, count = greedy(stop=stop, max_new=20)
    jax.effects_barrier()
    assert len(steps) == int(np.max(count)) - 1 <= 1


@pytest.mark.parametrize("temperature", [0.0, 1.5], ids=["greedy", "drawn"])
def test_rows_do_not_see_each_other_or_padding(temperature):
    first, _ = greedy(temperature=temperature)
    changed = PROMPTS.copy()
    changed[0] = changed[0, ::-1]
    changed[1, 1:] = 9  # padding
    changed[2, 4:] = 30
    other, _ = greedy(temperature=temperature, prompts=changed)
    np.testing.assert_array_equal(first[1:], other[1:])
    assert (np.asarray(first[0]) != np.asarray(other[0])).any()


@pytest.mark.slow
def test_draws_follow_the_distribution():
    """2000 draws of one token: frequencies within 4.5 standard errors, none where filtered."""
    rows = 2000
    prompts, lengths = np.tile(PROMPTS[:1], (rows, 1)), np.full(rows, 6, np.int32)
    out = decoder(TINY).apply(weights(TINY), {"inputs": PROMPTS[:1]})
    logits = np.asarray(out.head.logits())[0, -1].astype(np.float64)
    wanted = np.exp((logits - logits.max()) / 4.0)
    order = np.argsort(-wanted)
    wanted[order[9:]] = 0
    wanted /= wanted.sum()
    before = np.cumsum(wanted[order]) - wanted[order]
    wanted[order[before >= 0.8]] = 0
    wanted /= wanted.sum()
    settings = {"temperature": 4.0, "top_k": 9, "top_p": 0.8, "max_new": 1}
    tokens, _ = generate(TINY, weights(TINY), prompts, lengths, KEY, **settings)
    found = np.bincount(np.asarray(tokens)[:, 0], minlength=32) / rows
    assert (found[wanted == 0] == 0).all() and 3 <= (wanted > 0).sum() < 9
    assert (np.abs(found - wanted) <= 4.5 * np.sqrt(wanted * (1 - wanted) / rows)).all()


def test_filters_by_hand():
    logits = jnp.log(jnp.array([[0.1, 0.4, 0.2, 0.3]]))

    def kept(**settings):
        return np.isfinite(filter_logits(logits, **settings))[0].tolist()

    assert kept(top_k=2) == [False, True, False, True]
    assert kept(top_p=0.39) == [False, True, False, False]
    assert kept(top_p=0.41) == [False, True, False, True]  # the token that crosses stays
    assert kept(top_p=0.95) == [True, True, True, True]
    # After top-k the rest is renormalised: 4/7 and 3/7.
    assert kept(top_k=2, top_p=0.5) == [False, True, False, False]
    assert kept() == [True] * 4


def test_compiled_once():
    greedy()
    before = sampler._generate._cache_size()
    greedy(params=jax.tree.map(lambda x: 2 * x, weights(TINY)), prompts=PROMPTS[::-1])
    assert sampler._generate._cache_size() == before


@pytest.mark.parametrize(
    "settings",
    [{"max_new": 0}, {"temperature": -1.0}, {"top_k": 33}, {"top_p": 0.0}],
    ids=lambda settings: list(settings)[0],
)
def test_settings_out_of_range_are_named(settings):
    with pytest.raises(ValueError, match=f"{list(settings)[0]}: got .* takes"):
        greedy(**settings)


def test_lengths_must_fit_the_prompts():
    with pytest.raises(ValueError, match="lengths: got shape"):
        generate(TINY, weights(TINY), PROMPTS, LENGTHS[:2], KEY, max_new=2)


@pytest.mark.slow
def test_banned_tokens_are_never_drawn_and_nothing_else_changes():
    full = greedy_by_full_passes(TINY)
    banned = (int(full[0, 0]), int(full[1, 2]))
    tokens, _ = greedy(banned=banned)
    assert not np.isin(tokens, banned).any()
    logits = decoder(TINY).apply(weights(TINY), {"inputs": PROMPTS}).head.logits()
    last = np.array(logits)[np.arange(3), LENGTHS - 1]
    last[:, banned] = -np.inf
    np.testing.assert_array_equal(tokens[:, 0], last.argmax(-1))
    hot, _ = greedy(banned=banned, temperature=5.0)
    assert not np.isin(hot, banned).any()
    unused = sorted(set(range(32)) - set(full.ravel().tolist()))
    np.testing.assert_array_equal(greedy(banned=unused[:2])[0], full)


def test_banned_ids_are_checked():
    with pytest.raises(ValueError, match=r"banned: got \(32,\), takes ids from 0 to 31"):
        greedy(banned=(32,))
