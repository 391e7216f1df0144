"""Training on what the student writes itself: GKD's mixture, as the `prepare` of a training.

write = functools.partial(rollouts.continued, config, max_new=128)
Training(step, ..., prepare=on_policy(write, share=0.5))
"""

from collections.abc import Callable

import jax

from kd_jax.objectives.combinators import own_weights
from kd_jax.types import Batch, Frozen, Policy, PyTree, TrainState

# (weights, batch, key) -> the batch with answers of the model's own.
Write = Callable[[PyTree, Batch, jax.Array], Batch]
Prepare = Callable[[TrainState, Frozen, Batch], Batch]

# The step folds its number into the state's key; no step has this one.
_DRAWS = 2**32 - 1


def on_policy(write: Write, *, share: float, policy: Policy = own_weights) -> Prepare:
    """With probability `share` a batch's answers are the student's own, else the data's.

    share: lambda of GKD (Agarwal et al. 2023, arXiv 2306.13649, algorithm 1); 0 is fixed data and
        1 purely on-policy. One draw decides for a batch, from the state's key and step. The
        weights that write are those at the draw, so with `prepare_every` above 1 they lag behind.
    A policy of the teacher's weights makes it sequence-level distillation with fresh samples.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share: got {share}, takes a number in [0, 1]")

    def prepare(state: TrainState, frozen: Frozen, batch: Batch) -> Batch:
        decide, draw = draw_keys(state)
        weights = policy(state.params, frozen)
        own = jax.random.bernoulli(decide, share)
        return jax.lax.cond(own, lambda: write(weights, batch, draw), lambda: {**batch})

    return prepare


def draw_keys(state: TrainState) -> tuple[jax.Array, jax.Array]:
    """Two keys of a draw, apart from those that the step itself takes from the same state."""
    of_draws = jax.random.fold_in(state.key, _DRAWS)
    first, second = jax.random.split(jax.random.fold_in(of_draws, state.step))
    return first, second
