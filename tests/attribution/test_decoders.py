"""Gram matrices and Fisher information of decoders, against NumPy and loops over tokens."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.bigram import bigram_model
from support.experiment_checks import compiled_quickly
from support.linear import assert_trees_close

from kd_jax import trees
from kd_jax.attribution.fisher import drawn_tokens, token_fisher, tokens_of_data
from kd_jax.attribution.grams import gram_matrices
from kd_jax.attribution.means import mean_of, mean_over_examples
from kd_jax.merging.regmean import regmean
from kd_jax.models import kernel_inputs, layout
from kd_jax.models.config import DecoderConfig
from kd_jax.models.decoder import decoder

STACKED = DecoderConfig(vocab=4, width=8, depth=2, heads=2, kv_heads=1, head_dim=4, mlp=6)
PLAIN = dataclasses.replace(STACKED, scan=False, remat=False)
SHALLOW = dataclasses.replace(PLAIN, depth=1)
KEY = jax.random.key(0)
BIGRAM = bigram_model()


@pytest.fixture(autouse=True)
def quickly():
    with compiled_quickly():
        yield


@functools.cache
def params_of(config):
    params = decoder(dataclasses.replace(config, scan=True)).init(KEY)
    return params if config.scan else layout.unstack(params)


def batch_of(rows=4, length=3, seed=0):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 4, (rows, length + 1)).astype(np.int32)
    lengths = 1 + np.arange(rows) % length
    weights = (np.arange(length)[None] < lengths[:, None]).astype(np.float32)
    return {"inputs": ids[:, :-1], "targets": ids[:, 1:], "weights": weights}


def features(config, params, frozen, batch):
    names = kernel_inputs.taps(config)
    taps = decoder(config).apply(params["model"], batch, taps=set(jax.tree.leaves(names))).taps
    return jax.tree.map(taps.get, names)


def passed(statistic, params, batches, microbatches=1):
    step = mean_over_examples(statistic, microbatches=microbatches)
    state = step.init(KEY, params, {}, batches[0])
    apply = jax.jit(step.apply)
    for batch in batches:
        state, _ = apply(state, {}, batch)
    return mean_of(state, {})


def grams(config, batches, microbatches=1):
    statistic = gram_matrices(functools.partial(features, config))
    return passed(statistic, params_of(config), batches, microbatches)


@pytest.mark.slow
def test_every_tap_is_what_its_kernels_multiply():
    batch, params = batch_of(), params_of(PLAIN)
    names = [f"{n}_input_{i}" for n in ("attn", "o", "mlp", "down") for i in range(2)]
    names += ["embed", "block_0", "block_1", "value_0", "value_1"]
    taps = jax.tree.map(np.float64, decoder(PLAIN).apply(params, batch, taps=set(names)).taps)
    for i, before in enumerate((taps["embed"], taps["block_0"])):
        layer = trees.flatten(jax.tree.map(np.float64, params["layers"][str(i)]))

        def norm(x, name, layer=layer):
            mean = (x**2).mean(-1, keepdims=True)
            return x / np.sqrt(mean + PLAIN.norm_eps) * layer[f"{name}/scale"]

        found = {n: taps[f"{n}_input_{i}"] for n in ("attn", "o", "mlp", "down")}
        after = before + found["o"] @ layer["attn/o/kernel"]
        gate, up = (found["mlp"] @ layer[f"mlp/{n}/kernel"] for n in ("gate", "up"))
        for seen, expected in (
            (found["attn"], norm(before, "attn_norm")),
            (taps[f"value_{i}"].reshape(4, 3, 4), found["attn"] @ layer["attn/v/kernel"]),
            (found["mlp"], norm(after, "mlp_norm")),
            (found["down"], gate / (1 + np.exp(-gate)) * up),
            (taps[f"block_{i}"], after + found["down"] @ layer["mlp/down/kernel"]),
        ):
            np.testing.assert_allclose(seen, expected, rtol=1e-4, atol=1e-5)


def test_stacked_layers_give_the_same_inputs_and_experts_their_routers():
    batch = batch_of()
    stacked = features(STACKED, {"model": params_of(STACKED)}, {}, batch)
    plain = features(PLAIN, {"model": params_of(PLAIN)}, {}, batch)
    assert len(stacked) == 7 and len(plain) == 14
    for path, layers in stacked.items():
        for i, x in enumerate(layers):
            np.testing.assert_allclose(
                x, plain[path.replace("layers", f"layers/{i}")], rtol=1e-4, atol=1e-6
            )
    experts = dataclasses.replace(STACKED, experts=2, experts_per_token=1)
    found = features(experts, {"model": decoder(experts).init(KEY)}, {}, batch)
    assert {path for path in found if "mlp" in path} == {"layers/mlp/router/kernel"}
    with pytest.raises(ValueError, match="down_input_0"):
        decoder(experts).apply(decoder(experts).init(KEY), batch, taps=("down_input_0",))


def test_a_pass_is_the_second_moment_over_tokens():
    batches = [batch_of(seed=seed) for seed in range(2)]
    sums, count = {}, 0
    for batch in batches:
        mask = np.asarray(batch["weights"]) != 0
        count += mask.sum()
        for path, x in features(PLAIN, {"model": params_of(PLAIN)}, {}, batch).items():
            rows = np.asarray(x, np.float64)[mask]
            sums[path] = sums.get(path, 0) + rows.T @ rows
    expected = {path: jnp.asarray(x / count) for path, x in sums.items()}
    found = grams(PLAIN, batches)
    assert_trees_close(found, expected, rtol=1e-4)
    stacked = grams(STACKED, batches, microbatches=2)
    for path, x in stacked.items():
        layers = [found[path.replace("layers", f"layers/{i}")] for i in range(2)]
        np.testing.assert_allclose(x, layers, rtol=1e-4, atol=1e-6)


def spoilt(batch):
    hidden = batch["weights"] == 0
    changed = {n: np.where(hidden, (batch[n] + 1) % 4, batch[n]) for n in ("inputs", "targets")}
    return batch | changed


def padded(batch):
    return {name: np.concatenate([x, np.zeros_like(x)]) for name, x in batch.items()}


def test_padding_moves_no_gram():
    batch = batch_of()
    for other in (spoilt(batch), padded(batch)):
        assert_trees_close(grams(PLAIN, [other]), grams(PLAIN, [batch]), rtol=1e-4)


def test_regmean_of_one_model_is_that_model():
    batch, params = batch_of(8, 6), params_of(STACKED)
    found = grams(STACKED, [batch])
    assert_trees_close(jax.jit(regmean)([params], [found]), params, rtol=1e-4, atol=1e-5)


def logits(params, frozen, batch):
    return decoder(SHALLOW).apply(params["model"], batch).head.logits()


def all_texts(key, log_probs, row):
    """Every sequence of labels with its probability: the exact expectation."""
    found = jnp.array(list(itertools.product(range(4), repeat=len(log_probs))))
    chosen = jnp.take_along_axis(log_probs[None], found[..., None], -1)[..., 0]
    return found, jnp.exp(chosen.sum(-1))


@functools.cache
def token_gradients():
    """A loop over tokens: log p [B, T, V] and its gradient for every place and label."""
    batch, params = batch_of(2, 2), params_of(SHALLOW)

    def log_probs(model):
        return jax.nn.log_softmax(logits({"model": model}, {}, batch))

    return batch, log_probs(params), jax.jit(jax.jacrev(log_probs))(params)


@functools.cache
def exact_fisher():
    statistic = token_fisher(logits, labels=all_texts)
    return passed(statistic, params_of(SHALLOW), [token_gradients()[0]])


@pytest.mark.slow
def test_the_expectation_over_labels_is_the_fisher_of_every_token():
    batch, log_p, slopes = token_gradients()
    found = exact_fisher()
    chances = np.exp(log_p) * batch["weights"][..., None] / batch["weights"].sum()

    def exact(slope):
        return jnp.tensordot(jnp.asarray(chances), slope**2, ([0, 1, 2], [0, 1, 2]))

    assert_trees_close(found, jax.tree.map(exact, slopes), rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_labels_of_the_data_and_labels_that_are_drawn():
    batch, log_p, slopes = token_gradients()
    found = passed(token_fisher(logits, labels=tokens_of_data), params_of(SHALLOW), [batch])
    labels = jax.nn.one_hot(batch["targets"], 4) * batch["weights"][..., None]

    def empirical(slope):
        return (
            sum(jnp.tensordot(labels[b], slope[b], ([0, 1], [0, 1])) ** 2 for b in range(2))
            / batch["weights"].sum()
        )

    assert_trees_close(found, jax.tree.map(empirical, slopes), rtol=1e-3, atol=1e-6)
    many = passed(token_fisher(logits, labels=drawn_tokens(400)), params_of(SHALLOW), [batch])
    a, b = (np.concatenate([x.ravel() for x in jax.tree.leaves(t)]) for t in (many, exact_fisher()))
    assert abs(a.sum() / b.sum() - 1) < 0.15
    assert np.corrcoef(a, b)[0, 1] > 0.95


def bigram_logits(params, frozen, batch):
    return BIGRAM.apply(params["model"], batch).head.logits()


def test_padding_and_microbatches_move_no_fisher():
    batch, params = batch_of(4, 2), BIGRAM.init(KEY)
    statistic = token_fisher(bigram_logits)
    expected = passed(statistic, params, [batch])
    found = passed(statistic, params, [spoilt(batch)], microbatches=2)
    assert_trees_close(found, expected, rtol=1e-4)
    of_data = token_fisher(bigram_logits, labels=tokens_of_data)
    expected = passed(of_data, params, [batch])
    assert_trees_close(passed(of_data, params, [padded(spoilt(batch))]), expected, rtol=1e-4)


def test_refusals():
    with pytest.raises(ValueError, match="samples: got 0"):
        drawn_tokens(0)
    with pytest.raises(ValueError, match=r"logits: got shape \(1, 4\), takes \[B, T, V\]"):
        passed(token_fisher(lambda *x: logits(*x)[:, 0]), params_of(SHALLOW), [batch_of()])
