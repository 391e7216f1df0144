"""Which of a prompt's K completions is preferred to which: by rewards, a preference or a verifier.

Nothing here reads texts: completions are places 0 to K - 1, and the result says which two make a
pair. Where nothing is preferred there is no pair, so that every pair is a real preference.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np

from kd_jax.data import order

# (prompts, first, second), i64 [M] each -> [M], the probability that the first completion of a
# prompt is preferred to its second: 0 or 1 where the preference is certain or has been drawn.
Preference = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class Choices(NamedTuple):
    """P pairs, i64 [P] each: a prompt's number, and the places of two of its completions."""

    prompts: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray


def best_and_worst(rewards: np.ndarray) -> Choices:
    """The completions of the highest and of the lowest reward, one pair a prompt.

    rewards: [N, K], finite; of equals the first. A prompt whose rewards are all equal has no pair.
    """
    rewards = _of_completions("rewards", rewards).astype(np.float64)
    if not np.isfinite(rewards).all():
        raise ValueError("rewards: got nan or an infinity, takes finite numbers")
    prompts = np.flatnonzero(rewards.max(1) > rewards.min(1))
    kept = rewards[prompts]
    return Choices(prompts, kept.argmax(1), kept.argmin(1))


def tournament(preference: Preference, *, prompts: int, samples: int, seed: int) -> Choices:
    """The winner and the loser of a knock-out among each prompt's K completions.

    The winners of the first round play on for the winner, its losers for the loser (who loses
    on), K - 1 and K / 2 - 1 matches. Last, the two are compared, unless they have met as the only
    two: 11 comparisons for K = 8 in all. Only a winner who is preferred to the loser, with a
    probability above 1/2, makes a pair; elsewhere the first of two goes on in a tie.

    prompts: N; samples: K, a power of 2 from 2. Who meets whom is drawn from the seed and the
    prompt's number. preference: called once a round, on the matches of all prompts. A drawn one
    gives two completions the same answer whenever they meet, in either order; with K = 2 they meet
    once.
    Source: INPO, arXiv 2407.00617, section 4.
    """
    if samples < 2 or samples & (samples - 1):
        raise ValueError(f"samples: got {samples}, takes a power of 2, at least 2")
    numbers = np.arange(prompts)
    draw = [_shuffled(seed, "tournament", n, samples) for n in range(prompts)]
    places = np.array(draw, np.int64).reshape(prompts, samples)
    winners, losers, probability = _round(preference, numbers, places)
    while winners.shape[1] > 1:
        winners = _round(preference, numbers, winners)[0]
        losers = _round(preference, numbers, losers)[1]
    if samples > 2:
        probability = preference(numbers, winners[:, 0], losers[:, 0])
        kept = np.asarray(probability) > 0.5
    else:
        kept = probability[:, 0] != 0.5
    return Choices(numbers[kept], winners[kept, 0], losers[kept, 0])


def verified(correct: np.ndarray, *, most: int, seed: int) -> Choices:
    """Correct completions against incorrect ones, at most `most` pairs a prompt.

    correct: bool [N, K]. Each completion is in one pair at most; which, is drawn from the seed and
    the prompt's number. A prompt whose completions are all correct or all incorrect has no pair.
    Ordered by prompt.
    """
    correct = _of_completions("correct", correct)
    if correct.dtype != np.bool_:
        raise ValueError(f"correct: got {correct.dtype}, takes booleans")
    if most < 1:
        raise ValueError(f"most: got {most}, takes at least 1")
    prompts, chosen, rejected = [], [], []
    for number, right in enumerate(correct):
        places = _shuffled(seed, "verified", number, len(right))
        good, bad = places[right[places]], places[~right[places]]
        count = min(len(good), len(bad), most)
        prompts += [number] * count
        chosen += good[:count].tolist()
        rejected += bad[:count].tolist()
    return Choices(*(np.array(x, np.int64) for x in (prompts, chosen, rejected)))


def first_of_equals(completions: Sequence[Hashable]) -> np.ndarray:
    """bool [K]: completions that do not equal an earlier one; what rejection sampling keeps of."""
    seen: set[Hashable] = set()
    fresh = []
    for completion in completions:
        fresh.append(completion not in seen)
        seen.add(completion)
    return np.array(fresh, bool)


def _round(
    preference: Preference, numbers: np.ndarray, places: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(winners, losers, probability of the first), [N, m / 2] each, of neighbours in [N, m]."""
    first, second = places[:, 0::2], places[:, 1::2]
    of = np.repeat(numbers, first.shape[1])
    asked = np.asarray(preference(of, first.ravel(), second.ravel()), np.float64)
    if asked.shape != of.shape or not ((asked >= 0) & (asked <= 1)).all():
        raise ValueError(
            f"preference: got shape {asked.shape}, takes probabilities of shape {of.shape}"
        )
    probability = asked.reshape(first.shape)
    wins = probability >= 0.5
    return np.where(wins, first, second), np.where(wins, second, first), probability


def _shuffled(seed: int, what: str, number: int, size: int) -> np.ndarray:
    return np.argsort(order.fractions(seed, what, int(number), size), kind="stable")


def _of_completions(name: str, x: np.ndarray) -> np.ndarray:
    x = np.asarray(x)
    if x.ndim != 2 or x.shape[1] < 1:
        raise ValueError(f"{name}: got shape {x.shape}, takes [N, K], K completions of N prompts")
    return x
