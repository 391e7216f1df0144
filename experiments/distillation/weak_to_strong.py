"""Fine-tuning a small model and adding what it changed to a big one, at decoding time.

Papers: Mitchell et al. 2023, an emulator for fine-tuning using small language models (EFT, arXiv
2310.12962); Fan et al. 2024, on giant's shoulders: dynamic logits fusion (arXiv 2406.15480).
Two character language models, a big and a small one, learn a general text with some sums in it.
The small one is fine-tuned to each of two styles, words without punctuation, and sums in lines; the
big one is not, but for comparison. Its next character is predicted from its own logits and the
shift that fine-tuning made to those of the small model: by EFT, at several coefficients, and with
coefficients that are solved for at every character, from the expert of the style or from both.

Measured are the cross-entropy on held-out text of the styles, and the rate of the style in samples.

Claim: EFT predicts a style better than the big model and than the small one fine-tuned to it, and
coefficients solved for are better than fixed ones.

    python -m experiments.distillation.weak_to_strong smoke     # generated text: 15 s
    python -m experiments.distillation.weak_to_strong laptop    # tiny Shakespeare, 3 seeds

`laptop` needs the file of tiny Shakespeare (environment KD_JAX_DATA, or --text.folder).
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from experiments.distillation.common import runs
from experiments.distillation.common import text as text_lib
from experiments.distillation.common.config import SMALL, TEACHER
from experiments.distillation.common.learning import Learning
from experiments.distillation.common.text import Text
from experiments.distillation.parts import fused, styles, weak_to_strong_report
from experiments.distillation.parts.styles import STYLES
from kd_jax.launch import run
from kd_jax.launch.claims import Results
from kd_jax.launch.config import Settings, check_positive, identity
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.stages import Compute, Stage, Training, materialise, shapes_on
from kd_jax.models import decoder
from kd_jax.models.config import DecoderConfig
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import next_token_nll

CLAIMS = weak_to_strong_report.CLAIMS
Found = Mapping[str, Any]
Sampled = Literal["big", "own", "eft_1", "amplified", "dynamic", "dynamic_both", "big_tuned"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    text: Text = dataclasses.field(default_factory=Text)
    big: DecoderConfig
    small: DecoderConfig
    learn: Learning
    """How either learns the general text."""
    tune: Learning
    """How either is fine-tuned to a style."""
    sums: float = 0.2
    """Share of the general text's rows that are sums."""
    coefficients: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0)
    """Fixed ones that are compared: EFT's beta, and of the shifts of one expert or both."""
    amplified: float = 1.5
    """EFT's beta where it is sampled amplified."""
    top_p: float = 0.9
    """It is then sampled among the big model's likeliest characters of this probability."""
    step: float = 0.1
    """Dynamic fusion chooses coefficients from 0 to 2 that are so far apart."""
    sampled: tuple[Sampled, ...] = ("big", "own", "eft_1", "amplified", "dynamic", "dynamic_both",
                                    "big_tuned")  # fmt: skip
    """What samples are drawn from."""
    prompt: int = 16
    """Characters of a held-out row that a sample goes on from."""
    score_batch: int = 64
    """Rows measured at once."""
    seeds: int = 3
    """Repetitions; seed s fixes initial weights and the order of rows."""
    seed: int = 0
    """The first of them."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "amplified", "prompt", "score_batch", "seeds")
        if not 0 < self.sums < 1:
            raise ValueError(f"sums: got {self.sums}, takes a number between 0 and 1")
        if not {0.0, 1.0} <= set(self.coefficients):
            said = " ".join(f"{x:g}" for x in self.coefficients) or "none"
            raise ValueError(f"coefficients: got {said}, takes 0 and 1 among others")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: got {self.top_p}, takes a number in (0, 1]")
        if not 0 < self.step <= 1:
            raise ValueError(f"step: got {self.step}, takes a number in (0, 1]")
        if self.prompt > self.text.length:
            raise ValueError(
                f"prompt: got {self.prompt}, takes up to text.length, {self.text.length}"
            )

    @property
    def repetitions(self) -> range:
        return range(self.seed, self.seed + self.seeds)


PRESETS = {
    "smoke": Config(
        text=Text(length=32, held_out=32),
        big=SMALL,
        small=dataclasses.replace(SMALL, width=16, mlp=32),
        learn=Learning(rate=1e-2, steps=60),
        tune=Learning(rate=3e-3, steps=20),
        coefficients=(0.0, 1.0),
        step=0.5,
        sampled=("eft_1",),
        seeds=1,
        score_batch=32,
        prompt=8,
    ),
    "laptop": Config(
        text=Text(shakespeare=True, length=64, held_out=512),
        big=TEACHER,
        small=SMALL,
        learn=Learning(rate=4e-3, steps=1200),
        tune=Learning(rate=1e-3, steps=200),
        seed=10,  # sizes and rates were chosen on seeds from 0
    ),
}


def stages(config: Config) -> tuple[Stage, ...]:
    return tuple(
        stage
        for seed in config.repetitions
        for stage in (
            *(_general(config, size, seed) for size in ("big", "small")),
            *(_tuned(config, size, style, seed) for style in STYLES for size in ("big", "small")),
            *(_score(config, style, seed) for style in STYLES),
        )
    )


def _training(config: Config, size: str, learning: Learning, seed: int, rows: Any) -> Training:
    """rows() -> tokens [N, T + 1] to learn from."""
    model: DecoderConfig = getattr(config, size)
    objective = supervise(decoder.decoder(model), {"nll": next_token_nll})
    return runs.training(config, model, objective, learning, seed, lambda: text_lib.rows(rows()))


def _general(config: Config, size: str, seed: int) -> Stage:
    rows = functools.partial(styles.general, config.text, config.sums)
    parts = {name: identity(getattr(config, name)) for name in ("text", size, "learn")}
    return Stage(
        f"{size}_{seed}",
        lambda _: _training(config, size, config.learn, seed, rows),
        (),
        parts | {"sums": config.sums, "seed": seed},
    )


def _tuned(config: Config, size: str, style: str, seed: int) -> Stage:
    start = f"{size}_{seed}"

    def build(found: Found) -> Training:
        made = _training(
            config, size, config.tune, seed, lambda: STYLES[style].corpus(config.text).train
        )
        return made._replace(weights=found[start].weights())

    depends = {"tune": identity(config.tune), "style": style, "seed": seed}
    return Stage(f"{size}_{style}_{seed}", build, (start,), depends)


def _score(config: Config, style: str, seed: int) -> Stage:
    (other,) = (name for name in STYLES if name != style)
    named = ("big", "small", f"small_{style}", f"small_{other}", f"big_{style}")
    stage_of = {model: f"{x}_{seed}" for model, x in zip(fused.MODELS, named, strict=True)}
    measured = fused.Measured(
        config.text,
        config.big,
        config.small,
        config.coefficients,
        config.amplified,
        config.top_p,
        config.step,
        config.prompt,
        config.sampled,
        config.score_batch,
    )

    def build(found: Found) -> Compute:
        def placed(make: Any, mesh: Any) -> dict[str, Any]:
            return {
                model: make(found[x].weights(), mesh, decoder.rules(measured.config_of(model)))
                for model, x in stage_of.items()
            }

        def measure() -> tuple[None, Mapping[str, Any]]:
            mesh = make_mesh(config.mesh)
            return None, fused.measure(
                measured, STYLES[style], placed(materialise, mesh), mesh, seed
            )

        return Compute(
            measure, plan=lambda mesh: fused.programs(measured, placed(shapes_on, mesh), mesh)
        )

    needed = ("text", "big", "small")  # what the stages it needs depend on
    depends = {name: x for name, x in measured._asdict().items() if name not in needed}
    return Stage(f"{style}_score_{seed}", build, tuple(stage_of.values()), depends | {"seed": seed})


def report(config: Config, artefacts: Found, folder: Path) -> Results:
    return weak_to_strong_report.results(
        config.coefficients, config.sampled, config.repetitions, artefacts, folder
    )


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
