"""Responses in steps: what each step is worth by rollouts, and pairs at the first step that fails.

A response y = (y_1, ..., y_S) to a prompt x is right or wrong as a whole, r in {0, 1}. Its value
after i steps is the probability that the model that wrote it, going on from there, ends right:

    V_i = E[r | x, y_1, ..., y_i],  V_0 = V(x),  V_S = r,  A_i = V_i - V_{i-1}.

Source: Setlur et al. 2024, arXiv 2406.14532, section 6. Which step is chosen, and what it is
compared with, is this package's reading of it (UNVERIFIED).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kd_jax.data.pairs import Pair


class Rollout(NamedTuple):
    """A continuation of a prompt and some steps, to the end, by the model that wrote them."""

    steps: Sequence[Sequence[int]]
    right: bool


def step_values(right: np.ndarray) -> np.ndarray:
    """The mean of K rollouts after each prefix: f64 [..., S] of bool or 0 and 1 [..., S, K]."""
    right = np.asarray(right)
    if right.ndim < 2 or right.shape[-1] < 1:
        raise ValueError(f"right: got shape {right.shape}, takes [S, K], K rollouts of S prefixes")
    return right.astype(np.float64).mean(-1)


def step_advantages(values: np.ndarray, start: float | np.ndarray) -> np.ndarray:
    """A_i = V_i - V_{i-1}, f64 [..., S], of V_1 to V_S [..., S] and V_0 = start [...].

    They sum to V_S - V_0, the response's reward less what was to be expected of the prompt.
    """
    values, start = np.asarray(values, np.float64), np.asarray(start, np.float64)
    if start.shape != values.shape[:-1]:
        raise ValueError(f"start: got shape {start.shape}, takes one value a response")
    return np.diff(values, axis=-1, prepend=start[..., None])


def first_pit(advantages: np.ndarray, *, least: float) -> int | None:
    """The first step whose advantage is below -least, from 0; None where there is none.

    advantages: [S]. least: from 0; a mean of K rollouts is uncertain by up to 1 / (2 sqrt(K)), a
    difference of two by up to 1 / sqrt(2 K), so 1 / sqrt(K) keeps out most of what is chance.
    """
    if least < 0:
        raise ValueError(f"least: got {least}, takes numbers from 0")
    pits = np.flatnonzero(np.asarray(advantages) < -least)
    return int(pits[0]) if len(pits) else None


def step_pair(
    prompt: Sequence[int],
    steps: Sequence[Sequence[int]],
    rollouts: Sequence[Sequence[Rollout]],
    *,
    right: bool = False,
    least: float,
) -> Pair | None:
    """The pair at the first pit of a response; None where no step is a pit, or none is better.

    rollouts: of each prefix of 0 to S - 1 steps, K each; right: whether the response itself is.
    The pair's prompt is x and the steps before the pit; rejected are the response's own steps from
    the pit on, chosen is the first right rollout from there that begins with another step. So a
    response of one step gives a pair of whole responses.
    """
    if len(rollouts) != len(steps) or not steps:
        raise ValueError(f"rollouts: got {len(rollouts)} sets, takes one for each of {len(steps)}")
    found = [step_values(np.array([[one.right for one in own]]))[0] for own in rollouts]
    advantages = step_advantages(np.array([*found[1:], right]), found[0])
    pit = first_pit(advantages, least=least)
    if pit is None:
        return None
    own = list(steps[pit])
    better = [one for one in rollouts[pit] if one.right and list(one.steps[0]) != own]
    if not better:
        return None
    return Pair([*prompt, *_joined(steps[:pit])], _joined(better[0].steps), _joined(steps[pit:]))


def _joined(steps: Sequence[Sequence[int]]) -> list[int]:
    return [token for step in steps for token in step]
