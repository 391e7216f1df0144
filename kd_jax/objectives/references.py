"""Reference log-probabilities of sequences, for NPO, DPO and their like.

A reference is a function (params, frozen, batch) -> f32 [B]: the log-probability of each row's
weighed targets under a model that does not learn.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from kd_jax.losses.sequence import sequence_log_probs
from kd_jax.losses.streaming import token_log_probs
from kd_jax.objectives.combinators import frozen_weights
from kd_jax.types import Batch, Frozen, Head, Model, Params, Policy

Reference = Callable[[Params, Frozen, Batch], jax.Array]


def model_sequence_log_probs(
    model: Model, weights, batch: Batch, *, key: jax.Array | None = None, train: bool = False
) -> jax.Array:
    """log p(weighed targets | inputs) of each row, a sum over tokens: f32 [B]."""
    output = model.apply(weights, batch, key=key, train=train)
    return sequence_log_probs(token_log_probs(output.head, batch["targets"]), batch["weights"])


class Online(NamedTuple):
    """A reference that is run: its whole predictions can be asked for too."""

    model: Model
    policy: Policy

    def head(self, params: Params, frozen: Frozen, batch: Batch) -> Head:
        """Its predictions over [B, T]; no gradient."""
        weights = self.policy(params, frozen)
        return jax.lax.stop_gradient(self.model.apply(weights, batch).head)

    def __call__(self, params: Params, frozen: Frozen, batch: Batch) -> jax.Array:
        weights = self.policy(params, frozen)
        return jax.lax.stop_gradient(model_sequence_log_probs(self.model, weights, batch))


def online(model: Model, policy: Policy = frozen_weights("reference")) -> Online:
    """One more forward pass a step, of the reference weights; no gradient."""
    return Online(model, policy)


def precomputed(name: str = "reference_log_probs") -> Reference:
    """batch[name] f32 [B], computed once by an evaluation pass: the data and the reference are
    fixed, so nothing is lost and a forward pass a step is saved."""

    def reference(params: Params, frozen: Frozen, batch: Batch) -> jax.Array:
        if name not in batch:
            raise ValueError(f"batch: got {', '.join(sorted(batch))}, takes {name!r} besides")
        return batch[name]

    return reference
