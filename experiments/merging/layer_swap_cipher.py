"""Layer swapping: a task learned in one language, and the layers of another language around it.

Paper: arXiv 2410.01335. A character language model learns a text and a little of a task, words
written backwards, in language A; then the text in B too, in which every character is replaced by
one of another alphabet. From there one expert learns the task in A, another one the text in B.
Layer swapping puts the first and the last layers of the language's expert around the inner layers
of the task's. Measured is the task in B, in which nothing learned it: the share of letters of new
words written backwards that are right. Which layers are swapped is chosen on validation words, as
is the scale of task arithmetic.

That the languages share inner layers, as those of large models are thought to, is given and not
learned: when B begins, its characters have the embeddings and the rows of the head of those of A,
but for one direction that tells the languages apart.

Claim: the swap is better at the task in B than either expert and than merges of all layers alike.

    python -m experiments.merging.layer_swap_cipher smoke     # generated text, 2 layers: 15 s
    python -m experiments.merging.layer_swap_cipher laptop    # tiny Shakespeare, 6 layers, 3 seeds

`laptop` needs the file of tiny Shakespeare (environment KD_JAX_DATA, or --text.folder).
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.distillation.common import text as text_lib
from experiments.distillation.common.config import SMALL
from experiments.distillation.common.learning import Learning
from experiments.distillation.common.text import Text
from experiments.merging.lm import ciphers, learners, swap_report, words
from kd_jax.launch import run
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.claims import Results
from kd_jax.launch.config import Settings, check_positive
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.sharding import shardings_of
from kd_jax.launch.stages import Compute, Stage, Training, materialise
from kd_jax.launch.weights import Weights
from kd_jax.merging.arithmetic import task_arithmetic
from kd_jax.merging.average import average
from kd_jax.merging.layers import blend_layers, layer_change, zones
from kd_jax.models import decoder
from kd_jax.models.config import DecoderConfig

CLAIMS = swap_report.CLAIMS
CIPHER = ciphers.OTHER_ALPHABET
SPLITS: tuple[words.Split, ...] = ("validation", "test")
SCALES = tuple(i / 10 for i in range(1, 11))  # of task arithmetic, tried on validation words


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    text: Text
    model: DecoderConfig
    share: float = 0.2
    """Part of the rows in A that are of the task, in pretraining."""
    pretrain: Learning
    """Learning the first language."""
    both: Learning
    """Learning both languages."""
    learn: Learning
    """How each expert learns."""
    transitions: tuple[int, ...] = (0, 1)
    """Layers next to each swapped block that are means of both experts."""
    asked: int = 192
    """Words of each of validation and test that are measured."""
    score_batch: int = 64
    """Rows measured at once."""
    seeds: int = 3
    """Repetitions of everything, pretraining included."""
    seed: int = 0
    """The first of them."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "asked", "score_batch", "seeds")
        if not 0 < self.share < 1:
            raise ValueError(f"share: got {self.share}, takes more than 0 and less than 1")
        if self.model.depth < 2:
            raise ValueError(f"model.depth: got {self.model.depth}, takes at least 2")
        if not self.transitions or min(self.transitions) < 0:
            raise ValueError("transitions: takes numbers from 0, at least one")

    @property
    def repetitions(self) -> range:
        return range(self.seed, self.seed + self.seeds)

    @property
    def swaps(self) -> list[tuple[int, int, int]]:
        """(bottom, top, transition), without those that make an expert."""
        depth = self.model.depth
        return [
            (bottom, top, transition)
            for transition in self.transitions
            for bottom in range(depth)
            for top in range(depth - bottom)
            if bottom + top
        ]


PRESETS = {
    "smoke": Config(
        text=Text(length=24, held_out=32),
        # Untied: the embedding goes with the bottom, the head with the top.
        model=dataclasses.replace(SMALL, vocab=2 * len(CIPHER), depth=2, tied=False),
        # One step for all of them: it compiles once.
        pretrain=Learning(rate=1e-2, steps=20),
        both=Learning(rate=1e-2, steps=20),
        learn=Learning(rate=1e-2, steps=20),
        transitions=(0,),
        asked=16,
        seeds=2,
    ),
    "laptop": Config(
        text=Text(shakespeare=True, length=24, held_out=128),
        model=dataclasses.replace(
            SMALL,
            vocab=2 * len(CIPHER),
            width=64,
            depth=6,
            heads=4,
            kv_heads=4,
            mlp=128,
            tied=False,
        ),
        pretrain=Learning(rate=3e-3, steps=800),
        both=Learning(rate=1e-3, steps=100),
        learn=Learning(rate=5e-4, steps=150),
        seed=10,
    ),
}


def stages(config: Config) -> tuple[Stage, ...]:
    """For each seed: pretrained, task, language, and merged, which measures."""
    found = []
    for seed in config.repetitions:
        shared = learners.shared(config, seed) | {"share": config.share}
        names = ("first", "base", "task", "language")
        first, base, task, language = (f"{name}_{seed}" for name in names)
        found.append(Stage(first, functools.partial(_first, config, seed), (), shared))
        build = functools.partial(_base, config, seed, first)
        found.append(Stage(base, build, (first,), {"both": config.both}))
        for name, make in ((task, _task), (language, _language)):
            build = functools.partial(make, config, seed, base)
            found.append(Stage(name, build, (base,), {"learn": config.learn, "seed": seed}))
        measured = {"transitions": config.transitions, "asked": config.asked}
        build = functools.partial(_merged, config, base, task, language)
        found.append(Stage(f"merged_{seed}", build, (base, task, language), measured))
    return tuple(found)


def _first(config: Config, seed: int, found: Any) -> Training:
    def rows() -> dict[str, Any]:
        return text_lib.rows(learners.mixed(config.text, config.share))

    return learners.training(config, config.pretrain, seed, rows)


def _base(config: Config, seed: int, first: str, found: Mapping[str, Artefact]) -> Training:
    def rows() -> dict[str, Any]:
        plain = learners.mixed(config.text, config.share)
        return text_lib.rows(np.concatenate([plain, CIPHER[text_lib.load(config.text).train]]))

    start = found[first].weights()

    def bilingual(placed: Any) -> Any:
        make = functools.partial(_alike, key=jax.random.key(seed))
        return jax.jit(make, out_shardings=shardings_of(placed))(start.make(placed))

    weights = Weights(start.abstract, bilingual)
    return learners.training(config, config.both, seed, rows, weights)


def _alike(params: Any, key: jax.Array) -> Any:
    """The weights with characters of B like those of A, but for one small direction."""
    tables = {}
    for place, name in enumerate(("embed", "unembed")):
        table = params[name]["embedding"][: len(CIPHER)]
        apart = jax.random.normal(jax.random.fold_in(key, place), table[:1].shape, table.dtype)
        tables[name] = {"embedding": jnp.concatenate([table, table + 0.02 * apart])}
    return {**params, **tables}


def _task(config: Config, seed: int, base: str, found: Mapping[str, Artefact]) -> Training:
    def rows() -> dict[str, Any]:
        return text_lib.rows(words.task(config.text, config.learn.steps * config.learn.batch_size))

    return learners.training(config, config.learn, seed, rows, found[base].weights())


def _language(config: Config, seed: int, base: str, found: Mapping[str, Artefact]) -> Training:
    def rows() -> dict[str, Any]:
        return text_lib.rows(CIPHER[text_lib.load(config.text).train])

    return learners.training(config, config.learn, seed, rows, found[base].weights())


def _merged(
    config: Config, base: str, task: str, language: str, found: Mapping[str, Artefact]
) -> Compute:
    """Values {model}/{measure}; rows "swaps" and "swaps_validation" [swaps] in per cent."""

    def measure() -> tuple[None, Mapping[str, Any]]:
        mesh, rules = make_mesh(config.mesh), decoder.rules(config.model)
        start, *experts = (
            materialise(found[x].weights(), mesh, rules) for x in (base, task, language)
        )
        asked = {split: words.questions(config.text, split, config.asked) for split in SPLITS}
        in_b = {split: ciphers.enciphered(rows, CIPHER) for split, rows in asked.items()}
        right = functools.partial(learners.right, config.model, mesh=mesh, rows=config.score_batch)
        held_out = text_lib.rows(text_lib.load(config.text).held_out)

        def all_of(params: Any) -> dict[str, float]:
            nll = functools.partial(
                learners.nll, config.model, params, mesh=mesh, rows=config.score_batch
            )
            return {
                "task in A": right(params, asked["test"]),
                "task in B": right(params, in_b["test"]),
                "text in A": nll(held_out),
                "text in B": nll(ciphers.enciphered(held_out, CIPHER)),
            }

        def swapped(swap: tuple[int, int, int]) -> Any:
            bottom, top, transition = swap
            share = zones(config.model.depth, bottom=bottom, top=top, transition=transition)
            return _blended(*experts, jnp.asarray(share))

        def summed(scale: float) -> Any:
            return _summed(start, experts, jnp.float32(scale))

        on_validation = np.array([right(swapped(x), in_b["validation"]) for x in config.swaps])
        on_test = np.array([right(swapped(x), in_b["test"]) for x in config.swaps])
        chosen = config.swaps[int(on_validation.argmax())]
        scale = max(SCALES, key=lambda x: right(summed(x), in_b["validation"]))
        models = {
            "pretrained": start,
            "task expert": experts[0],
            "language expert": experts[1],
            "average": average(experts),
            "task arithmetic": summed(scale),
            "layer swap": swapped(chosen),
        }
        values: dict[str, Any] = {
            f"{name}/{measure}": value
            for name, params in models.items()
            for measure, value in all_of(params).items()
        }
        for name, expert in zip(("task", "language"), experts, strict=True):
            values[f"{name}_change"] = np.asarray(layer_change(expert, start).mean_absolute)
        values |= {"swaps": on_test, "swaps_validation": on_validation, "scale": scale}
        return None, values | {"chosen": list(chosen)}

    return Compute(measure)


_blended = jax.jit(blend_layers)
_summed = jax.jit(lambda base, models, scale: task_arithmetic(base, models, scale=scale))


def report(config: Config, artefacts: Mapping[str, Any], folder: Path) -> Results:
    found = [artefacts[f"merged_{seed}"] for seed in config.repetitions]
    return swap_report.results(config.model.depth, config.swaps, found, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
