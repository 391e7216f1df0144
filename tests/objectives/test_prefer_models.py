"""Objectives on pairs with adapters for the policy, and without a written-out vocabulary."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.bigram import text_batch
from support.hlo import arrays_in

from kd_jax.losses.preference import margin, tokens
from kd_jax.models import lora
from kd_jax.models.decoder import DecoderConfig, decoder
from kd_jax.objectives import prefer_terms as terms
from kd_jax.objectives.combinators import frozen_weights
from kd_jax.objectives.prefer import prefer
from kd_jax.objectives.references import online
from kd_jax.types import Context, Factored, Model, ModelOutput

SIDES = ("chosen", "rejected")
KEY = jax.random.key(0)
DPO = functools.partial(margin.dpo, beta=0.1)
TDPO1 = terms.of_sums(functools.partial(tokens.tdpo1, beta=0.1), terms.kl_from_reference)
KL = {"kl": terms.kl_to_reference()}


def test_an_adapted_policy_has_its_base_for_the_reference():
    config = DecoderConfig(vocab=16, width=8, depth=1, heads=2, kv_heads=1, head_dim=4, mlp=8)
    model = decoder(config)
    base = model.init(jax.random.key(0))
    adapter = lora.init(jax.random.key(1), base, ".*/kernel", rank=2)
    policy = lambda params, frozen: lora.attach(frozen["base"], params["model"], alpha=4)  # noqa: E731
    objective = prefer(
        model,
        {"tdpo": TDPO1},
        online(model, frozen_weights("base")),
        metrics=KL,
        policy=policy,
    )
    batch = {side: text_batch(seed=i) for i, side in enumerate(SIDES)}

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(adapter):
        params = {"model": adapter, "aux": {}}
        found = objective.loss(params, {}, {"base": base}, batch, Context(KEY, jnp.int32(0)))
        return found.loss, found

    # A fresh adapter changes nothing: the policy is its own reference.
    (value, output), gradient = loss(adapter)
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    for name in ("margin", "chosen_ratio", "kl"):
        np.testing.assert_allclose(output.metrics[name].value, 0, atol=1e-5)
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient))
    moved = jax.tree.map(lambda x, g: x - 20 * g, adapter, gradient)
    (value, output), _ = loss(moved)
    assert value < np.log(2) and output.metrics["margin"].value > 0
    assert output.metrics["kl"].value > 0


@pytest.mark.parametrize("losses", [{"tdpo": TDPO1}, {"dpo": DPO, "kl": terms.kl_to_reference()}])
def test_no_loss_of_tokens_writes_out_a_vocabulary(losses):
    """Of 4096 tokens and a vocabulary of 32768, forward and backward."""
    pairs, length, vocabulary, width = 2, 1024, 2**15, 8

    def apply(params, inputs, *, state={}, key=None, train=False, taps=(), add={}):
        hidden = params["embedding"][inputs["inputs"] % 7]
        return ModelOutput(Factored(hidden, params["unembedding"]), {}, state)

    shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    params = {"embedding": shape((7, width)), "unembedding": shape((vocabulary, width))}
    ids = jax.ShapeDtypeStruct((pairs, length), jnp.int32)
    rows = {"inputs": ids, "targets": ids, "weights": shape((pairs, length))}
    model = Model(lambda key: {}, apply)
    objective = prefer(model, losses, online(model))

    def loss(weights, reference, batch, key):
        params, frozen = {"model": weights, "aux": {}}, {"reference": reference}
        return objective.loss(params, {}, frozen, batch, Context(key, jnp.int32(0))).loss

    batch = dict.fromkeys(SIDES, rows)
    key = jax.eval_shape(lambda: jax.random.key(0))
    program = jax.jit(jax.grad(loss)).lower(params, params, batch, key).compile()
    sizes = {int(np.prod(dims)) for dims in arrays_in(program.as_text())}
    whole = 2 * pairs * length * vocabulary
    assert vocabulary * width in sizes
    assert max(sizes) <= whole // 4
