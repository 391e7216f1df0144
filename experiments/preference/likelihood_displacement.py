"""Who gains when a language model learns a preference, and which pairs do the harm.

Paper: Razin et al. 2024, unintentional unalignment (arXiv 2410.08847). SmolLM2-135M-Instruct first
sees what is chosen later, so that it is likely (longer before the pairs than before the words).
With adapters, and the weights without them for the reference, it then learns by DPO:

- to answer questions with No rather than Never: what happens to Yes, on other questions;
- pairs of refusals, preferred to other refusals or to compliance, each pair by itself: how the
  chosen answer's log-probability changes, against CHES, edit similarity and cosine of last states;
- half of these pairs together: those of lowest CHES, and as many at random.

A panel beside them: one hidden state and ten tokens, of which the chosen and the rejected one have
rows of the unembedding that are more or less alike.

Claim: probability goes to third answers, CHES tells where, and leaving such pairs out helps.

Measured at `laptop` (two CPU cores, 2026-11): Yes goes from 0.04 to 0.11 as No is preferred to
Never; No rises too, from 0.29 to 0.78. Learnt together, pairs of refusals lower refusals after
other questions, and compliance more; CHES does not tell which pairs do it.

    python -m experiments.preference.likelihood_displacement smoke     # a tiny model: 10 s
    python -m experiments.preference.likelihood_displacement laptop    # SmolLM2-135M, 3 seeds

`laptop` needs the model (python -m kd_jax.formats.fetch smollm2).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.distillation.common.config import SMALL
from experiments.preference.parts import (
    displaced_report,
    displaced_stages,
    displaced_toy,
    displaced_training,
    refusals,
)
from experiments.preference.parts.displaced_training import Programs, Recipe
from kd_jax.data.vocabulary import WordTokenizer
from kd_jax.launch import run, weights
from kd_jax.launch.claims import Results
from kd_jax.launch.config import Settings, check_positive, identity
from kd_jax.launch.language import Language, open_language
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.stages import Compute, Stage, materialise
from kd_jax.models import decoder, sizes
from kd_jax.models.config import DecoderConfig

CLAIMS = displaced_report.CLAIMS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    model: str | None = None
    """smollm2, a Hugging Face folder or a GGUF file; none is `decoder` untrained."""
    decoder: DecoderConfig
    """The model's shape without `model`."""
    word_start_steps: int = 12
    """Supervised steps on what is chosen later, before the words."""
    pair_start_steps: int = 40
    """The same before the pairs."""
    start_rows: int = 16
    """Their rows."""
    word_steps: int = 12
    """Steps of DPO on the words."""
    pairs: int = 16
    """Pairs of refusals."""
    pair_steps: int = 10
    """Steps on each of them alone."""
    share: float = 0.5
    """Of the pairs, how many are kept."""
    kept_steps: int = 6
    """Steps on those that are kept."""
    rank: int = 4
    """Of the adapters on all projections."""
    alpha: float = 16.0
    """Their product is scaled by alpha / rank."""
    rate: float = 2e-4
    """Learning rate of Adam."""
    beta: float = 0.1
    """DPO's beta."""
    toy_seeds: int = 20
    """Hidden states of the panel."""
    seeds: int = 3
    """Sets of questions and pairs."""
    seed: int = 0
    """The first of them."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "word_start_steps", "pair_start_steps", "start_rows")
        check_positive(self, "word_steps", "pairs", "pair_steps", "kept_steps", "rank")
        check_positive(self, "alpha", "rate", "beta", "toy_seeds", "seeds")
        if not 0 < self.share <= 1:
            raise ValueError(f"share: got {self.share}, takes a number above 0 and up to 1")

    @property
    def repetitions(self) -> range:
        return range(self.seed, self.seed + self.seeds)

    @property
    def recipe(self) -> Recipe:
        return Recipe(self.rank, self.alpha, self.rate, self.beta)


PRESETS = {
    "smoke": Config(
        decoder=SMALL,
        word_start_steps=1,
        pair_start_steps=2,
        word_steps=2,
        pairs=4,
        pair_steps=1,
        kept_steps=1,
        seeds=2,
    ),
    "laptop": Config(
        model="smollm2", decoder=dataclasses.replace(sizes.SMOLLM2_135M, remat=False), seed=20
    ),
}


def stages(config: Config) -> tuple[Stage, ...]:
    language = _opened(config)
    shared = [config.model, identity(config.decoder), list(config.recipe)]
    toy = Stage(
        "toy", lambda _: Compute(lambda: (None, displaced_toy.measured(config.toy_seeds))), (),
        config.toy_seeds,
    )  # fmt: skip
    found = [toy]
    for part, steps in (("word", config.word_start_steps), ("pair", config.pair_start_steps)):
        start = functools.partial(_start, config, language, steps)
        found.append(Stage(f"{part}_start", start, (), [*shared, steps, config.start_rows]))
    for seed in config.repetitions:
        word = functools.partial(displaced_stages.one_word, steps=config.word_steps, seed=seed)
        alone = functools.partial(
            displaced_stages.by_pairs,
            count=config.pairs,
            steps=config.pair_steps,
            seed=seed,
        )
        on = [*shared, seed]
        pairs = [config.pairs, config.pair_steps]
        found += [
            Stage(
                f"word_{seed}",
                _stage(config, language, "word_start", word),
                ("word_start",),
                [*on, config.word_steps],
            ),
            Stage(
                f"pairs_{seed}",
                _stage(config, language, "pair_start", alone),
                ("pair_start",),
                on + pairs,
            ),
            Stage(
                f"kept_{seed}",
                functools.partial(_kept, config, language, seed),
                ("pair_start", f"pairs_{seed}"),
                [*on, config.kept_steps, config.share],
            ),
        ]
    return tuple(found)


def _kept(config: Config, language: Language, seed: int, found: Mapping[str, Any]) -> Compute:
    def measure(programs: Programs, language: Language, base: Any) -> dict[str, Any]:
        return displaced_stages.kept(
            programs,
            language,
            base,
            config.kept_steps,
            seed,
            found[f"pairs_{seed}"].rows["ches_normalised"],
            config.share,
        )

    return _stage(config, language, "pair_start", measure)(found)


def _start(config: Config, language: Language, steps: int, found: Mapping[str, Any]) -> Compute:
    def learnt() -> tuple[Any, Mapping[str, Any]]:
        base = _base(config, language)
        programs = displaced_training.programs(language.config, config.recipe)
        adapters, nll = displaced_training.begun(programs, language, base, steps, config.start_rows)
        return adapters, {"nll": np.array(nll)}

    return Compute(learnt, displaced_training.adapters(language.weights.abstract, config.recipe))


def _base(config: Config, language: Language) -> Any:
    return materialise(language.weights, make_mesh(config.mesh), decoder.rules(language.config))


def _stage(
    config: Config, language: Language, start: str, measure: Callable[..., dict[str, Any]]
) -> Callable[[Mapping[str, Any]], Compute]:
    def build(found: Mapping[str, Any]) -> Compute:
        def measured() -> tuple[None, Mapping[str, Any]]:
            begun = materialise(found[start].weights(), make_mesh(config.mesh))
            base = displaced_training.merged(_base(config, language), begun, config.alpha)
            programs = displaced_training.programs(language.config, config.recipe)
            return None, measure(programs, language, base)

        return Compute(measured)

    return build


def _opened(config: Config) -> Language:
    if config.model is not None:
        return open_language(config.model, config.decoder)
    tokenizer = WordTokenizer.from_texts(refusals.texts())
    like = dataclasses.replace(config.decoder, vocab=tokenizer.vocab_size)
    model = decoder.decoder(like)
    start = weights.from_init(model.init, jax.random.key(config.seed))
    return Language(like, model, lambda: tokenizer, start)


def report(config: Config, artefacts: Mapping[str, Any], folder: Path) -> Results:
    by_part = {
        part: [artefacts[f"{part}_{seed}"] for seed in config.repetitions]
        for part in ("word", "pairs", "kept")
    }
    return displaced_report.results(artefacts["toy"], **by_part, folder=folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
