"""What weak_to_strong measures: texts and samples under combinations of big and small models."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.distillation.common import text as text_lib
from experiments.distillation.parts import styles
from kd_jax.data import shapes
from kd_jax.launch import evaluation, generation
from kd_jax.launch.stages import Program
from kd_jax.losses import fusion
from kd_jax.models import contrast, decoder
from kd_jax.models.config import DecoderConfig
from kd_jax.objectives.combinators import frozen_weights
from kd_jax.objectives.combined import Combine, combined_scores
from kd_jax.steps import make_eval_step

# own, other: the small model fine-tuned to the style that is measured, and to the other style.
MODELS = ("big", "small", "own", "other", "big_tuned")
PAIR = ("big", "small", "own")
BOTH = (*PAIR, "other")


class Variant(NamedTuple):
    """A model made of others: which of MODELS, and what of their logits."""

    models: tuple[str, ...]
    combine: Combine


class Measured(NamedTuple):
    """What is measured, of models of these two sizes.

    coefficients: betas of EFT, and coefficients of the small models' shifts. amplified: the beta of
    the samples within the big model's nucleus of probability top_p. step: between the coefficients
    that dynamic fusion chooses from. prompt: characters of a held-out row that samples go on from.
    sampled: variants that are sampled from. rows: in a batch.
    """

    text: text_lib.Text
    big: DecoderConfig
    small: DecoderConfig
    coefficients: tuple[float, ...]
    amplified: float
    top_p: float
    step: float
    prompt: int
    sampled: tuple[str, ...]
    rows: int

    def config_of(self, model: str) -> DecoderConfig:
        return self.big if model.startswith("big") else self.small


def eft(beta: float) -> str:
    return f"eft_{beta:g}"


def alone(alpha: float) -> str:
    return f"alone_{alpha:g}"


def both(alpha: float) -> str:
    return f"both_{alpha:g}"


def _first(logits: jax.Array) -> jax.Array:
    return logits


def _fixed(alpha: float, big: jax.Array, small: jax.Array, *tuned: jax.Array) -> jax.Array:
    experts = jnp.stack(tuned, -2)
    return fusion.fused_log_probs(big, small, experts, jnp.full(len(tuned), alpha))


def _dynamic(step: float, big: jax.Array, small: jax.Array, *tuned: jax.Array) -> jax.Array:
    experts = jnp.stack(tuned, -2)
    lines = fusion.alpha_lines(len(tuned), step=step)
    alpha = fusion.solve_alpha(big, small, experts, lines)
    return fusion.fused_log_probs(big, small, experts, alpha)


def _amplified(
    beta: float, top_p: float, big: jax.Array, small: jax.Array, tuned: jax.Array
) -> jax.Array:
    log_probs = fusion.eft_log_probs(big, small, tuned, beta=beta)
    return fusion.within(log_probs, fusion.nucleus(big, top_p=top_p))


@functools.cache  # the same functions for all stages, so that they share compilations
def scored(coefficients: tuple[float, ...], step: float) -> dict[str, Variant]:
    """What texts are scored under."""
    found = {name: Variant((name,), _first) for name in ("big", "small", "own", "big_tuned")}
    for x in coefficients:
        found |= {
            eft(x): Variant(PAIR, functools.partial(fusion.eft_log_probs, beta=x)),
            alone(x): Variant(PAIR, functools.partial(_fixed, x)),
            both(x): Variant(BOTH, functools.partial(_fixed, x)),
        }
    dynamic = functools.partial(_dynamic, step)
    return found | {"dynamic": Variant(PAIR, dynamic), "dynamic_both": Variant(BOTH, dynamic)}


@functools.cache
def drawn(amplified: float, top_p: float, step: float) -> dict[str, Variant]:
    """What may be sampled from."""
    sharp = functools.partial(_amplified, amplified, top_p)
    found = {x: y for x, y in scored((1.0,), step).items() if x not in (alone(1.0), both(1.0))}
    return found | {"amplified": Variant(PAIR, sharp)}


def _among(variant: Variant, *logits: jax.Array) -> jax.Array:
    return variant.combine(*(logits[MODELS.index(name)] for name in variant.models))


@functools.cache
def _step(measured: Measured) -> Any:
    models = [(decoder.decoder(measured.config_of(name)), frozen_weights(name)) for name in MODELS]
    variants = scored(measured.coefficients, measured.step)
    combine = {name: functools.partial(_among, variant) for name, variant in variants.items()}
    return make_eval_step(combined_scores(models, combine))


NOTHING = {"model": {}, "aux": {}}


def measure(
    measured: Measured, style: styles.Style, weights: Mapping[str, Any], mesh: Mesh, seed: int
) -> dict[str, float]:
    """Of each variant the cross-entropy on held-out text of the style, in nats a character; as
    "rate_..." the rate of the style in samples; weights: by MODELS.

    "oracle": the best of the fixed coefficients (alone and both) for each row by itself.
    """
    held_out = style.corpus(measured.text).held_out
    _, rows = evaluation.evaluate(
        _step(measured),
        NOTHING,
        {},
        weights,
        text_lib.rows(held_out),
        batch_size=measured.rows,
        mesh=mesh,
    )
    tokens = rows.pop("tokens").sum()
    fixed = [name(x) for name in (alone, both) for x in measured.coefficients]
    rows["oracle"] = np.max([rows[name] for name in fixed], 0)
    found = {name: float(-row.sum(dtype=np.float64) / tokens) for name, row in rows.items()}
    prompts = held_out[:, : measured.prompt].tolist()
    for name in measured.sampled:
        models, settings = _sampling(measured, name, weights)
        written = generation.generate(*models, prompts, seed=seed, mesh=mesh, **settings)
        found[f"rate_{name}"] = style.rate([styles.decoded(x) for x in written])
    return found


def programs(measured: Measured, weights: Mapping[str, Any], mesh: Mesh) -> dict[str, Program]:
    """What `measure` runs; weights: ShapeDtypeStructs."""
    batch = shapes.text(measured.rows, measured.text.length)
    found = {"scores": evaluation.program(_step(measured), NOTHING, {}, weights, batch, mesh=mesh)}
    for name in measured.sampled:
        models, settings = _sampling(measured, name, weights)
        found[name] = generation.program(*models, length=measured.prompt, mesh=mesh, **settings)
    return found


def _sampling(
    measured: Measured, name: str, weights: Mapping[str, Any]
) -> tuple[tuple[Any, Any], dict[str, Any]]:
    """(configs, weights) and the settings of `generation`."""
    models, combine = drawn(measured.amplified, measured.top_p, measured.step)[name]
    settings = {
        "max_new": measured.text.length + 1 - measured.prompt,
        "batch_size": measured.rows,
        "temperature": 1.0,
        "sample": contrast.generate_difference,
        "combine": combine,
    }
    configs = tuple(measured.config_of(model) for model in models)
    return (configs, tuple(weights[model] for model in models)), settings
