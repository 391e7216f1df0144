"""Latent adversarial training: forgetting while the activations are pushed to remember.

Sheshadri et al. 2024 (arXiv 2407.15549). An attack adds a perturbation to activations of the
prompt that makes the model say what it should forget; the model then learns under it.

step = make_train_step(latent_adversarial(model), optimizer)
Training(step, ..., prepare=latent_attack(model, places=("block_4",), eps=1.5), prepare_every=4)

Places are those of the model's `add`. In a pre-norm decoder "block_k" is the released code's place,
the output of layer k's MLP, because the stream only adds it. One prompt, then its answer, in a row:
packed rows have several.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kd_jax.losses import _checks, latent
from kd_jax.losses.streaming import over_vocabulary
from kd_jax.objectives.combinators import add, on, own_weights, scaled
from kd_jax.objectives.score import sequence_scores
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import next_token_nll
from kd_jax.types import (
    Batch,
    Context,
    Frozen,
    Model,
    ModelOutput,
    Objective,
    Output,
    Policy,
    TrainState,
    stateless,
    weighted_sum,
)

# In a text batch: {place: f32 [B, T, D]}, what `perturbed` adds there.
PERTURBATION = "perturbation"
# PyTorch's default, which the released attack runs with (UNVERIFIED: it names no value).
WEIGHT_DECAY = 0.01

Perturbation = dict[str, jax.Array]


def perturbed(model: Model) -> Model:
    """The model with batch["perturbation"] added to its activations, without gradient to it.

    Any objective on it is trained under the attack. ValueError for a batch without one, and for
    places that the caller adds to as well.
    """

    def apply(params: Any, inputs: Batch, *, add: Mapping[str, Any] = {}, **settings: Any) -> Any:
        if PERTURBATION not in inputs:
            names = ", ".join(sorted(inputs))
            raise ValueError(f"batch: got {names}, takes {PERTURBATION!r} besides: latent_attack")
        delta = jax.lax.stop_gradient(inputs[PERTURBATION])
        both = sorted(set(add) & set(delta))
        if both:
            raise ValueError(f"{', '.join(both)}: added by the caller and by the perturbation")
        return model.apply(params, inputs, add={**add, **delta}, **settings)

    return model._replace(apply=apply)


def away(model: Model, *, threshold: float = -5.0, policy: Policy = own_weights) -> Objective:
    """mean over weighed tokens of -log(1 - p(target)), 0 for tokens with log p < threshold.

    The tokens that are forgotten already count in the mean, as in the released code.
    """

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        output = model.apply(policy(params, frozen), batch, key=ctx.key, train=ctx.train)
        losses = _away(output, batch, threshold)
        return Output({"away": weighted_sum(losses, batch["weights"])})

    return stateless(loss)


def latent_adversarial(
    model: Model,
    *,
    toward: float = 1.0,
    away_from: float = 1.0,
    sft: float = 1.0,
    policy: Policy = own_weights,
) -> Objective:
    """The defender: (toward NLL(refusal) + away_from away(forget) + sft NLL(retain)) / their sum.

    "refusal" and "forget" are the same prompts with the answer wanted and the one to forget; both
    run under the perturbation that `latent_attack` found, "retain" without. All are means over
    weighed tokens. Coefficients are 1, 1 and 1 in the paper's unlearning of Harry Potter and 1, 1
    and 4 for WMDP. With eps = 0 it is fine-tuning on refusals and retained rows, plus `away`.
    Source: arXiv 2407.15549, Eq. 3 and 5, and the released code (normalised coefficients).
    """
    whole = toward + away_from + sft
    if min(toward, away_from, sft) < 0 or not whole > 0:
        raise ValueError(
            f"toward, away_from, sft: got {toward}, {away_from}, {sft}, take numbers from 0, and "
            "one above"
        )
    attacked, nll = perturbed(model), {"nll": next_token_nll}
    parts = {
        "refusal": scaled(supervise(attacked, nll, policy=policy), toward / whole),
        "forget": scaled(away(attacked, policy=policy), away_from / whole),
        "retain": scaled(supervise(model, nll, policy=policy), sft / whole),
    }
    return add({name: on(name, part) for name, part in parts.items()})


def latent_attack(
    model: Model,
    *,
    places: Collection[str],
    eps: float,
    rate: float = 5e-2,
    steps: int = 16,
    toward: float = 1.0,
    away_from: float = 0.0,
    policy: Policy = own_weights,
) -> Callable[[TrainState, Frozen, Batch], Batch]:
    """The adversary, as the `prepare` of a training: batch with a perturbation of its prompts.

    Finds delta that minimises toward * NLL(forget) + away_from * away(refusal) for the model as it
    is, by `steps` steps of AdamW at `rate` from 0; after each step every token's delta is put back
    into the L2 ball of radius eps. delta is 0 but at prompt tokens, up to the one that predicts
    the answer's first. Parts "forget" and (where the batch has it) "refusal" get it as
    "perturbation"; what else is in the batch stays. Costs `steps` forward and backward passes
    through the activations on the whole batch (not cut into microbatches); the parameters get no
    gradient. Defaults are the paper's; eps is 1.5 for Harry Potter, 2 for WMDP, and the WMDP
    adversary has both coefficients 1. Source: arXiv 2407.15549, Eq. 2 and the released code; its
    AdamW, too, moves every element by about `rate` a step, whatever the batch's size.
    """
    _check_attack(places, eps, steps)

    def prepare(state: TrainState, frozen: Frozen, batch: Batch) -> Batch:
        weights = policy(state.params, frozen)

        def loss(delta: Perturbation) -> jax.Array:
            found = toward * _nll(model, weights, batch["forget"], delta)
            if away_from:
                output = model.apply(weights, batch["refusal"], add=delta)
                losses = _away(output, batch["refusal"], -5.0)
                found += away_from * weighted_sum(losses, batch["refusal"]["weights"]).value
            return found

        start = _start(model, weights, batch["forget"], places)
        delta = _descend(loss, start, batch["forget"], eps=eps, rate=rate, steps=steps)
        parts = [name for name in ("forget", "refusal") if name in batch]
        return {**batch, **{name: {**batch[name], PERTURBATION: delta} for name in parts}}

    return prepare


def attacked_scores(
    model: Model,
    *,
    places: Collection[str],
    eps: float,
    rate: float = 5e-2,
    steps: int = 16,
    policy: Policy = own_weights,
) -> Objective:
    """Rows "log_prob" and "tokens" of a text batch under an attack made for its own answers.

    What an adversary with access to activations gets out of a finished model: as
    `score.sequence_scores`, after `latent_attack` with toward = 1. Never trained on.
    """
    _check_attack(places, eps, steps)

    scored = sequence_scores(perturbed(model), policy=policy)

    def loss(params, carry, frozen, batch, ctx: Context) -> Output:
        weights = policy(params, frozen)

        def toward(delta: Perturbation) -> jax.Array:
            return _nll(model, weights, batch, delta)

        start = _start(model, weights, batch, places)
        delta = _descend(toward, start, batch, eps=eps, rate=rate, steps=steps)
        return scored.loss(params, carry, frozen, {**batch, PERTURBATION: delta}, ctx)

    return stateless(loss)


def prompt_mask(weights: jax.Array) -> jax.Array:
    """bool [B, T]: inputs up to the one that predicts the answer's first token; none in rows
    without weights. weights [B, T] of a text batch."""
    answer = weights != 0
    before = jnp.cumsum(answer, axis=-1) - answer == 0
    return before & jnp.any(answer, axis=-1, keepdims=True)


def _check_attack(places: Collection[str], eps: float, steps: int) -> None:
    if not places:
        raise ValueError("places: got none, takes at least one")
    if isinstance(places, str):
        raise ValueError(f"places: got {places!r}, takes names, as ({places!r},)")
    _checks.not_negative("eps", eps)
    if steps < 1:
        raise ValueError(f"steps: got {steps}, takes at least 1")


def _nll(model: Model, weights: Any, batch: Batch, delta: Perturbation) -> jax.Array:
    output = model.apply(weights, batch, add=delta)
    return next_token_nll(output, batch).value


def _away(output: ModelOutput, batch: Batch, threshold: float) -> jax.Array:
    """f32 [B, T]."""

    def row(logits, others, targets, fixed):
        return latent.away(logits, targets, threshold=threshold)

    return over_vocabulary(row, output.head, batch["targets"])


def _start(model: Model, weights: Any, batch: Batch, places: Collection[str]) -> Perturbation:
    """Zeros of the shapes of the places."""
    taps = jax.eval_shape(lambda: model.apply(weights, batch, taps=tuple(places)).taps)
    return {name: jnp.zeros(tap.shape, jnp.float32) for name, tap in taps.items()}


def _descend(
    loss: Callable[[Perturbation], jax.Array],
    start: Perturbation,
    batch: Batch,
    *,
    eps: float,
    rate: float,
    steps: int,
) -> Perturbation:
    """AdamW on the perturbation, projected after each step."""
    mask = prompt_mask(batch["weights"])[..., None]
    optimizer = optax.adamw(rate, weight_decay=WEIGHT_DECAY)

    def project(x: jax.Array) -> jax.Array:
        return jnp.where(mask, latent.project_l2(x, eps=eps), 0.0)

    def step(held: Any, _: None) -> tuple[Any, None]:
        delta, state = held
        updates, state = optimizer.update(jax.grad(loss)(delta), state, delta)
        return (jax.tree.map(project, optax.apply_updates(delta, updates)), state), None

    (delta, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), None, length=steps)
    return jax.lax.stop_gradient(delta)
