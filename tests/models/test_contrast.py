"""Sampling from the combined logits of several decoders, against full forward passes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.losses.fusion import alpha_lines, fused_log_probs, solve_alpha
from kd_jax.losses.logit_difference import uld_sampling
from kd_jax.models.contrast import generate_difference
from kd_jax.models.decoder import DecoderConfig, decoder
from kd_jax.models.sampler import generate
from kd_jax.models.truncated import truncated, truncated_config

CONFIG = DecoderConfig(
    vocab=32, width=16, depth=2, heads=4, kv_heads=2, head_dim=8, mlp=24, remat=False
)
SMALL = dataclasses.replace(truncated_config(CONFIG, 1), window=3)
PROMPTS = np.random.default_rng(0).integers(1, 32, (3, 6)).astype(np.int32)
LENGTHS = np.array([6, 1, 4], np.int32)
KEY, NEW = jax.random.key(0), 7
COMBINE = functools.partial(uld_sampling, weight=-0.8, top=0.1)


def first(base, assistant):
    return base


def weights():
    draw = np.random.default_rng(1).standard_normal
    shapes = jax.eval_shape(decoder(CONFIG).init, KEY)
    params = jax.tree.map(lambda x: (0.6 * draw(x.shape)).astype(np.float32), shapes)
    other = jax.tree.map(lambda x: x + np.float32(0.1) * draw(x.shape).astype(np.float32), params)
    return params, truncated(CONFIG, other, 1)


def both(**settings):
    settings = {"combine": COMBINE, "max_new": NEW} | settings
    return generate_difference((CONFIG, SMALL), weights(), PROMPTS, LENGTHS, KEY, **settings)


def solved(big, small, *tuned):
    """Coefficients of their own at every token: dynamic logits fusion."""
    experts = jnp.stack(tuned, -2)
    alpha = solve_alpha(big, small, experts, alpha_lines(len(tuned), step=0.25))
    return fused_log_probs(big, small, experts, alpha)


FOUR = (CONFIG, SMALL, SMALL, SMALL)


def four():
    """A big model, a small one and two changed copies of it."""
    big, small = weights()
    draw = np.random.default_rng(2).standard_normal
    changed = [
        jax.tree.map(lambda x: x + np.float32(0.4) * draw(x.shape).astype(np.float32), small)
        for _ in range(2)
    ]
    return (big, small, *changed)


def fused(prompts=PROMPTS, rows=slice(None), **settings):
    settings = {"combine": solved, "max_new": NEW, "numbers": jnp.arange(3)[rows]} | settings
    return generate_difference(FOUR, four(), prompts[rows], LENGTHS[rows], KEY, **settings)


def by_full_passes(configs=(CONFIG, SMALL), params=None, combine=COMBINE):
    """Each token is the likeliest under whole forward passes of all over all before it."""
    params = params or weights()

    @jax.jit
    def forward(x):
        found = [
            decoder(config).apply(p, {"inputs": x}).head.logits()
            for config, p in zip(configs, params, strict=True)
        ]
        return combine(*found)

    tokens = np.zeros((3, PROMPTS.shape[1] + NEW), np.int32)
    for row, length in enumerate(LENGTHS):
        tokens[row, :length] = PROMPTS[row, :length]
    for i in range(NEW):
        logits = np.asarray(forward(tokens))
        for row, length in enumerate(LENGTHS):
            tokens[row, length + i] = logits[row, length + i - 1].argmax()
    return np.stack([row[n : n + NEW] for row, n in zip(tokens, LENGTHS, strict=True)])


@pytest.mark.slow
def test_four_models_and_coefficients_solved_for_at_every_token():
    expected = by_full_passes(FOUR, four(), solved)
    tokens, count = fused()
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_array_equal(count, [NEW] * 3)
    big, _ = generate(CONFIG, four()[0], PROMPTS, LENGTHS, KEY, max_new=NEW)
    assert np.any(tokens != big) and len(np.unique(tokens)) > 3


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.5], ids=["greedy", "drawn"])
def test_rows_see_neither_each_other_nor_padding(temperature):
    first, _ = fused(temperature=temperature)
    changed = PROMPTS.copy()
    changed[0] = changed[0, ::-1]
    changed[1, 1:] = 9  # padding
    changed[2, 4:] = 30
    other, _ = fused(changed, temperature=temperature)
    np.testing.assert_array_equal(first[1:], other[1:])
    assert (np.asarray(first[0]) != np.asarray(other[0])).any()
    # A row by itself, under its number, with less padding than in the batch.
    alone, _ = fused(PROMPTS[:, :4], slice(2, 3), temperature=temperature)
    np.testing.assert_array_equal(alone[0], first[2])


@pytest.mark.slow
def test_greedy_equals_full_forward_passes_of_both():
    expected = by_full_passes()
    tokens, count = both()
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_array_equal(count, [NEW] * 3)
    base, _ = generate(CONFIG, weights()[0], PROMPTS, LENGTHS, KEY, max_new=NEW)
    assert np.any(tokens != base)
    # Rows stop on their own.
    stop = int(expected[0, 2])
    cut, count = both(stop=(stop,))
    assert count[0] <= 3
    np.testing.assert_array_equal(cut[0, : count[0]], expected[0, : count[0]])


@pytest.mark.slow
def test_the_first_model_alone_is_what_the_sampler_draws():
    settings = {"max_new": NEW, "temperature": 0.8, "top_k": 9}
    expected = generate(CONFIG, weights()[0], PROMPTS, LENGTHS, KEY, **settings)
    jax.tree.map(np.testing.assert_array_equal, both(combine=first, **settings), expected)


def test_refusals():
    other = dataclasses.replace(SMALL, vocab=33)
    with pytest.raises(ValueError, match="vocabularies of 32 and 33"):
        generate_difference(
            (CONFIG, other), weights(), PROMPTS, LENGTHS, KEY, combine=first, max_new=1
        )
    with pytest.raises(ValueError, match="params: got 1, takes those of each of configs, 2"):
        generate_difference(
            (CONFIG, SMALL), weights()[:1], PROMPTS, LENGTHS, KEY, combine=first, max_new=1
        )
    with pytest.raises(ValueError, match="max_new: got 0"):
        both(max_new=0)
    with pytest.raises(ValueError, match="temperature: got -1"):
        both(temperature=-1.0)
    with pytest.raises(ValueError, match="lengths: got shape"):
        generate_difference(
            (CONFIG, SMALL), weights(), PROMPTS, jnp.ones(2, int), KEY, combine=first, max_new=1
        )
