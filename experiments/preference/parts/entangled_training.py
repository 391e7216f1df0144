"""One model, first supervised and then trained on pairs, with its entanglement along the way."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kd_jax.evaluation import entanglement
from kd_jax.evaluation.entanglement import Products
from kd_jax.losses.preference import margin
from kd_jax.losses.preference.pairs import Pairs
from kd_jax.losses.sequence import sequence_log_probs
from kd_jax.losses.streaming import forward_token_log_probs
from kd_jax.models import decoder
from kd_jax.models.config import DecoderConfig
from kd_jax.objectives.prefer import prefer
from kd_jax.objectives.references import model_sequence_log_probs, online
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import next_token_nll
from kd_jax.steps import make_train_step
from kd_jax.types import Batch


class Recipe(NamedTuple):
    """sft_rate, sft_steps: of Adam. rate, steps: of plain gradient descent on DPO with `beta`.

    small: the rate of the single steps whose changes are predicted. probes: random directions.
    """

    sft_rate: float
    sft_steps: int
    rate: float
    steps: int
    beta: float
    small: float
    probes: int


@functools.cache  # one program for all seeds and suffixes, which have the same shapes
def program(model: DecoderConfig, recipe: Recipe) -> Any:
    """(key, demonstrations [S, B, ...], pairs) -> {name: array}, jitted.

    Demonstrations: a batch for each supervised step; the pairs are one batch for all steps of DPO.
    """
    net = decoder.decoder(model)
    dpo = functools.partial(margin.dpo, beta=recipe.beta)
    supervised = make_train_step(
        supervise(net, {"nll": next_token_nll}), optax.adam(recipe.sft_rate)
    )
    preferred = make_train_step(prefer(net, {"dpo": dpo}, online(net)), optax.sgd(recipe.rate))
    log_probs = functools.partial(model_sequence_log_probs, net)

    def forward_log_probs(weights: Any, rows: Batch) -> jax.Array:
        found = forward_token_log_probs(net.apply(weights, rows).head, rows["targets"])
        return sequence_log_probs(found, rows["weights"])

    def run(key: jax.Array, demonstrations: Batch, pairs: Batch) -> Mapping[str, jax.Array]:
        first = jax.tree.map(lambda x: x[0], demonstrations)
        state = supervised.init(key, net.init(key), {}, first)
        state, learnt = jax.lax.scan(
            lambda state, rows: supervised(state, {}, rows), state, demonstrations
        )
        reference = state.params["model"]
        chosen, rejected = pairs["chosen"], pairs["rejected"]
        before = entanglement.exact(log_probs, reference, chosen, rejected)
        estimate = entanglement.probed(
            forward_log_probs, reference, chosen, rejected, key=key, probes=recipe.probes
        )
        fixed = (log_probs(reference, chosen), log_probs(reference, rejected))
        predicted = entanglement.predicted_changes(
            before, *entanglement.coefficients(dpo, Pairs(*fixed, *fixed)), recipe.small
        )

        def alone(one: Batch) -> tuple[jax.Array, jax.Array]:
            """The measured changes of a pair by one small step on it alone."""
            sides = [jax.tree.map(lambda x: x[None], one[s]) for s in ("chosen", "rejected")]
            old = [log_probs(reference, rows) for rows in sides]

            def loss(weights: Any) -> jax.Array:
                return dpo(Pairs(*(log_probs(weights, rows) for rows in sides), *old)).sum()

            step = jax.grad(loss)(reference)
            moved = jax.tree.map(lambda x, g: x - recipe.small * g, reference, step)
            chosen, rejected = (log_probs(moved, rows) for rows in sides)
            return (chosen - old[0])[0], (rejected - old[1])[0]

        frozen = {"reference": reference}
        state = preferred.init(key, reference, frozen, pairs)
        _, along = jax.lax.scan(
            lambda state, _: preferred(state, frozen, pairs), state, length=recipe.steps
        )
        return {
            "nll": learnt["loss"],
            "chosen": along["chosen_ratio"],
            "rejected": along["rejected_ratio"],
            "cosine": before.cosine,
            "products": jnp.stack(before),
            "probed": jnp.stack(estimate.mean),
            "predicted": jnp.stack(predicted),
            "measured": jnp.stack(jax.lax.map(alone, pairs)),
        }

    return jax.jit(run)


def summary(found: Mapping[str, jax.Array]) -> dict[str, Any]:
    """Numbers of a run, means over pairs, and its curves."""
    x = {name: np.asarray(value, np.float64) for name, value in found.items()}
    inner, chosen, rejected = x["products"]
    conditions = entanglement.conditions(Products(*found["products"]))
    rises, falls = (np.asarray(condition) for condition in conditions)
    error = np.abs(x["predicted"] - x["measured"]).sum() / np.abs(x["measured"]).sum()
    noise = np.abs(x["probed"] - x["products"]).mean(1) / np.abs(x["products"]).mean(1)
    return {
        "nll": float(x["nll"][-1]),
        "cosine": float(x["cosine"].mean()),
        "inner": float(inner.mean()),
        "chosen_norm": float(np.sqrt(chosen).mean()),
        "rejected_norm": float(np.sqrt(rejected).mean()),
        "ideal": float((rises & falls).mean()),
        "both_fall": float((falls & ~rises).mean()),
        "both_rise": float((rises & ~falls).mean()),
        "chosen_change": float(x["chosen"][-1]),
        "rejected_change": float(x["rejected"][-1]),
        "prediction_error": float(error),
        "probe_error": float(noise.mean()),
        "chosen_curve": x["chosen"],
        "rejected_curve": x["rejected"],
        "predicted": x["predicted"],
        "measured": x["measured"],
    }
