"""How much a model gives away a secret that it should not have learnt."""

from collections.abc import Sequence

import numpy as np


def exposure(secret: float, others: Sequence[float] | np.ndarray) -> float:
    """log2 R - log2 rank, in bits, of a secret among R candidates: itself and R - 1 others.

    secret, others: the candidates' negative log-likelihoods, in any unit. rank: 1 for the
    likeliest; a tie counts half. 0 is the least likely of all, log2 R gives the secret away to
    whoever asks the model for the likeliest, and a model that knows nothing gives about 1.44 bits
    in the mean over secrets. ValueError for no others and for nan.
    Source: Carlini et al. 2019, arXiv 1802.08232, section 4.
    """
    x = np.asarray(others, np.float64)
    if x.ndim != 1 or not len(x):
        raise ValueError(f"others: got shape {x.shape}, takes [R - 1], at least one")
    if np.isnan(x).any() or np.isnan(secret):
        raise ValueError("secret, others: got nan, take negative log-likelihoods")
    rank = 1 + (x < secret).sum() + 0.5 * (x == secret).sum()
    return float(np.log2(len(x) + 1) - np.log2(rank))
