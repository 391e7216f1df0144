"""Random masks that only the seed, the tensor's name and the model's place in the recipe decide."""

import hashlib

import numpy as np


def stream(seed: int, tensor: str, model: int, purpose: str) -> np.random.Generator:
    """A counter-based generator (Philox) with a key of its own for each of these."""
    text = f"{seed}/{model}/{purpose}/{tensor}".encode()
    key = int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))


class Bernoulli:
    """Tells block after block, in order, which entries are kept, each with the same probability.

    Exact to 2^-32 with eight random bits an entry: more are drawn, from another stream, only for
    the one entry in 256 at which eight do not decide. Blocks but the last have a multiple of eight
    entries, or the stream would depend on their size.
    """

    def __init__(self, probability: float, seed: int, tensor: str, model: int):
        scaled = probability * 256.0
        self._sure = int(scaled)
        self._rest = scaled - self._sure
        self._bytes = stream(seed, tensor, model, "bytes")
        self._more = stream(seed, tensor, model, "more")

    def mask(self, size: int, out: np.ndarray) -> np.ndarray:
        """The next `size` entries; out: booleans, written and returned."""
        if self._sure >= 256:
            out.fill(True)
            return out
        words = self._bytes.integers(0, 2**64, -(-size // 8), np.uint64)
        drawn = words.astype("<u8", copy=False).view(np.uint8)[:size]
        np.less(drawn, np.uint8(self._sure), out=out)
        undecided = np.flatnonzero(drawn == self._sure)
        out[undecided] = self._more.random(len(undecided)) < self._rest
        return out
