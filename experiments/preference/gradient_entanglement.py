"""Why chosen completions become less likely: they share tokens with the rejected ones.

Paper: Yuan et al. 2024, a common pitfall of margin-based alignment (arXiv 2410.13828). A small
language model learns reviews, each followed by "sentiment : positive" or "negative" and a suffix of
n words that says nothing. Pairs prefer the right label to the wrong one before the same suffix. DPO
goes on from there by plain gradient descent, n = 0, 5 and 15.

Measured are the inner product and norms of the gradients of both completions' log-probabilities,
pair by pair, exactly and by random probes; what a small step on a pair changes, against what they
predict; and the log-probabilities along DPO.

Claim: shared words turn the gradients the same way, and chosen goes down with rejected.

Measured at `laptop` (two CPU cores, 2026-11), n = 0, 5, 15: cosines -0.99, 0.51 and 0.73. The first
condition is met by nearly all pairs all the same, and chosen changes by +0.3, -1.2 and -0.7 nats,
the latter two within the spread of seeds, where rejected falls by 23 to 38.

    python -m experiments.preference.gradient_entanglement smoke     # 10 s
    python -m experiments.preference.gradient_entanglement laptop    # six seeds

It needs nothing.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.preference.parts import entangled_report, entangled_training, sentiments
from experiments.preference.parts.entangled_training import Recipe
from kd_jax.data import collate, pairs
from kd_jax.launch import run
from kd_jax.launch.claims import Results
from kd_jax.launch.config import Settings, check_positive
from kd_jax.launch.stages import Compute, Stage
from kd_jax.models.config import DecoderConfig

CLAIMS = entangled_report.CLAIMS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    suffixes: tuple[int, ...] = (0, 5, 15)
    """Shared words after the label; claims compare the first, the middle and the last of three."""
    text: int = 6
    """Words of a review."""
    width: int = 32
    """Width of the language model."""
    depth: int = 2
    """Its layers."""
    pairs: int = 32
    """Pairs that DPO learns."""
    batch: int = 64
    """Reviews in a supervised batch."""
    sft_steps: int = 300
    """Supervised steps of Adam."""
    sft_rate: float = 3e-3
    """Their learning rate."""
    steps: int = 800
    """Steps of DPO, plain gradient descent on all pairs."""
    rate: float = 0.01
    """Their learning rate."""
    beta: float = 0.1
    """DPO's beta."""
    small: float = 1e-2
    """Learning rate of the single steps that are predicted."""
    probes: int = 200
    """Random directions of the estimate without gradients."""
    seeds: int = 6
    """Models of each suffix, with data of their own."""
    seed: int = 0
    """The first of them."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "text", "width", "depth", "pairs", "batch", "sft_steps", "sft_rate")
        check_positive(self, "steps", "rate", "beta", "small", "probes", "seeds")
        if len(self.suffixes) != 3 or list(self.suffixes) != sorted(set(self.suffixes)):
            got = " ".join(map(str, self.suffixes))
            raise ValueError(f"suffixes: got {got}, takes three numbers that rise")

    @property
    def repetitions(self) -> range:
        return range(self.seed, self.seed + self.seeds)


PRESETS = {
    "smoke": Config(pairs=4, batch=8, sft_steps=10, steps=4, depth=1, probes=4, seeds=2),
    "laptop": Config(seed=10),
}


def stages(config: Config) -> tuple[Stage, ...]:
    return tuple(
        Stage(
            f"suffix_{n}_{seed}",
            functools.partial(_compute, config, n, seed),
            (),
            _on(config, n, seed),
        )
        for seed in config.repetitions
        for n in config.suffixes
    )


def _on(config: Config, suffix: int, seed: int) -> Any:
    model = [config.text, max(config.suffixes), config.width, config.depth]
    return [suffix, seed, model, config.pairs, config.batch, list(_recipe(config))]


def _recipe(config: Config) -> Recipe:
    return Recipe(**{name: getattr(config, name) for name in Recipe._fields})


def _model(config: Config) -> DecoderConfig:
    heads = max(1, config.width // 16)
    return DecoderConfig(
        vocab=sentiments.VOCABULARY, width=config.width, depth=config.depth, heads=heads,
        kv_heads=heads, head_dim=16, mlp=2 * config.width, tied=False, scan=False, remat=False,
    )  # fmt: skip


def _compute(config: Config, suffix: int, seed: int, found: Mapping[str, Any]) -> Compute:
    def measured() -> tuple[None, Mapping[str, Any]]:
        shape = sentiments.Draw(config.text, suffix)
        # The same length for all suffixes, and so the same program.
        length = config.text + 2 + max(config.suffixes)
        rows = config.batch * config.sft_steps
        shown = sentiments.draw(rows + config.pairs, shape, seed)
        demonstrations = collate.collate_qa(
            sentiments.demonstrations(shown[:rows]), length=length, eos_id=None
        )
        batches = jax.tree.map(
            lambda x: np.reshape(x, (config.sft_steps, config.batch, *x.shape[1:])), demonstrations
        )
        batch = pairs.collate_pairs(shown[rows:], length=length, eos_id=None)
        program = entangled_training.program(_model(config), _recipe(config))
        return None, entangled_training.summary(program(jax.random.key(seed), batches, batch))

    return Compute(measured)


def report(config: Config, artefacts: Mapping[str, Any], folder: Path) -> Results:
    found = {
        n: [artefacts[f"suffix_{n}_{seed}"] for seed in config.repetitions] for n in config.suffixes
    }
    return entangled_report.results(found, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
