"""Which divergence: every loss between next-token distributions, under one protocol.

Papers: Hinton et al. 2015 (arXiv 1503.02531), GKD (arXiv 2306.13649), DistiLLM (arXiv 2402.03898),
adaptive KL (arXiv 2404.02657), decoupled KD (arXiv 2203.08679), TAID (arXiv 2501.16937) and others.
A character language model learns a text. Shallower and narrower students learn from it on the same
text: with each loss from the same initial weights, on the same batches, at the same rate, and once
from the text alone.

Measured are both KL divergences between student and teacher, on held-out text and on what the
student itself goes on to write.

Claim: a teacher helps, and the divergence that is trained is the one that gets small.

    python -m experiments.distillation.divergence_zoo smoke     # generated text, two losses: 20 s
    python -m experiments.distillation.divergence_zoo laptop    # tiny Shakespeare, 3 seeds

`laptop` needs the file of tiny Shakespeare (environment KD_JAX_DATA, or --text.folder).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np

from experiments.distillation.common import measuring
from experiments.distillation.common import text as text_lib
from experiments.distillation.common.learning import Learning
from kd_jax.data import shapes, sources
from kd_jax.evaluation.intervals import mean_interval
from kd_jax.launch import plots, run, weights
from kd_jax.launch.claims import Claim, Effect, Results, Table, above
from kd_jax.launch.config import Settings, check_positive
from kd_jax.launch.stages import Stage, Training
from kd_jax.losses import divergences, top_k
from kd_jax.models import decoder
from kd_jax.models.config import DecoderConfig
from kd_jax.objectives.distil import TokenLoss, distil, token_divergence
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.taid import taid
from kd_jax.objectives.terms import next_token_nll
from kd_jax.steps import make_train_step
from kd_jax.types import Model, Objective


class Arm(NamedTuple):
    """A way to train: (student, teacher, steps) -> Objective."""

    label: str
    make: Callable[[Model, Model, int], Objective]


def _by(label: str, loss: TokenLoss) -> Arm:
    return Arm(label, lambda s, t, steps: distil(s, t, {"kd": token_divergence(loss)}))


def _tail(s: jax.Array, t: jax.Array, y: jax.Array) -> jax.Array:
    """The teacher's four likeliest characters and the rest as one."""
    log_p, ids = jax.lax.top_k(jax.nn.log_softmax(t), 4)
    return top_k.top_k_kl_with_tail(s, ids, log_p, top_k.log_tail(log_p))


ARMS = {
    "alone": Arm("text alone", lambda s, t, steps: supervise(s, {"nll": next_token_nll})),
    "forward": _by("forward KL", lambda s, t, y: divergences.forward_kl(s, t)),
    "reverse": _by("reverse KL", lambda s, t, y: divergences.reverse_kl(s, t)),
    "jsd": _by("JSD 0.5", lambda s, t, y: divergences.jensen_shannon(s, t, beta=0.5)),
    "skew": _by("skew KL 0.1", lambda s, t, y: divergences.skew_forward_kl(s, t, alpha=0.1)),
    "skew_reverse": _by(
        "skew reverse KL 0.1", lambda s, t, y: divergences.skew_reverse_kl(s, t, alpha=0.1)
    ),
    "tvd": _by("total variation", lambda s, t, y: divergences.total_variation(s, t)),
    "adaptive": _by("adaptive KL", lambda s, t, y: divergences.adaptive_kl(s, t)),
    "decoupled": _by(
        "decoupled KD 0.5", lambda s, t, y: divergences.decoupled_kl(s, t, y, others=0.5)
    ),
    "top_4": _by("top 4 and the rest", _tail),
    "split_4": _by("TopKLD 4 (inferred)", lambda s, t, y: top_k.top_k_split_kl(s, t, k=4)),
    "taid": Arm("TAID", lambda s, t, steps: taid(s, t, steps=steps)),
}
Name = Literal[
    "alone", "forward", "reverse", "jsd", "skew", "skew_reverse", "tvd", "adaptive", "decoupled",
    "top_4", "split_4", "taid",
]  # fmt: skip
MEASURES = {
    "nll": "held-out text: NLL",
    "forward": "held-out text: KL(teacher || student)",
    "reverse": "held-out text: KL(student || teacher)",
    "own_forward": "own text: KL(teacher || student)",
    "own_reverse": "own text: KL(student || teacher)",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    text: text_lib.Text = dataclasses.field(default_factory=text_lib.Text)
    teacher: DecoderConfig
    student: DecoderConfig
    learn_teacher: Learning
    learn: Learning
    methods: tuple[Name, ...] = get_args(Name)
    """Losses that are compared."""
    seeds: int = 3
    """Students of each kind; seed s fixes initial weights and the order of rows."""
    seed: int = 0
    """The first of them."""
    prompt: int = 16
    """Characters of a held-out row that a student goes on from."""
    evaluations: int = 4
    """How often a student is measured."""
    score_batch: int = 64
    """Rows measured at once."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "seeds", "prompt", "evaluations", "score_batch")
        if self.prompt > self.text.length:
            raise ValueError(
                f"prompt: got {self.prompt}, takes up to text.length, {self.text.length}"
            )
        if not self.methods or len(set(self.methods)) < len(self.methods):
            said = " ".join(self.methods) or "none"
            raise ValueError(f"methods: got {said}, takes each once, at least one")

    @property
    def repetitions(self) -> range:
        return range(self.seed, self.seed + self.seeds)


_SMALL = DecoderConfig(
    vocab=len(text_lib.CHARACTERS), width=32, depth=1, heads=2, kv_heads=2, head_dim=16, mlp=64,
    tied=True, scan=False, remat=False,
)  # fmt: skip

PRESETS = {
    "smoke": Config(
        text=text_lib.Text(length=32, held_out=32),
        teacher=_SMALL,
        student=dataclasses.replace(_SMALL, width=16, mlp=32),
        learn_teacher=Learning(rate=1e-2, steps=60),
        learn=Learning(rate=1e-2, steps=40),
        methods=("alone", "forward", "taid"),
        seeds=2,
        evaluations=1,
        score_batch=32,
        prompt=8,
    ),
    "laptop": Config(
        text=text_lib.Text(shakespeare=True, length=64, held_out=512),
        teacher=dataclasses.replace(
            _SMALL, width=128, depth=4, heads=4, kv_heads=4, head_dim=32, mlp=384
        ),
        student=dataclasses.replace(
            _SMALL, width=64, depth=1, heads=2, kv_heads=2, head_dim=32, mlp=128
        ),
        learn_teacher=Learning(rate=2e-3, steps=3000, batch_size=64),
        learn=Learning(rate=3e-3, steps=1000, batch_size=32),
        seed=10,
    ),
}


def _better(first: str, second: str, measure: str):
    """By how much the second loss ends farther off than the first: paired seeds."""

    def read(results: Results) -> Effect | None:
        ends = results.values["ends"]
        if first not in ends or second not in ends or len(ends[first][measure]) < 2:
            return None
        return Effect(*mean_interval(np.subtract(ends[second][measure], ends[first][measure])))

    return read


CLAIMS = (
    Claim(
        "A student of forward KL is nearer to the teacher on held-out text than one of text alone "
        "(difference of KL(teacher || student), above 0).",
        "arXiv 1503.02531, section 3",
        "qualitative, other data",
        _better("forward", "alone", "forward"),
        above(0.0),
    ),
    Claim(
        "It predicts the text itself better too (difference of NLL, above 0).",
        "arXiv 1503.02531, section 4",
        "speech: 58.9 % of frames without, 60.8 % with the ensemble's targets",
        _better("forward", "alone", "nll"),
        above(0.0),
    ),
    Claim(
        "Reverse KL makes KL(student || teacher) smaller than forward KL does, on what the student "
        "writes (difference, above 0).",
        "arXiv 2306.08543, section 2 (why reverse KL)",
        "qualitative: mode seeking",
        _better("reverse", "forward", "own_reverse"),
        above(0.0),
    ),
    Claim(
        "Skew KL is nearer to the teacher than forward KL on the student's own text (difference of "
        "KL(student || teacher), above 0).",
        "arXiv 2402.03898 (tables UNVERIFIED)",
        "better than forward KL on instruction following",
        _better("skew", "forward", "own_reverse"),
        above(0.0),
    ),
    Claim(
        "Adaptive KL is nearer to the teacher than forward KL on held-out text (difference of "
        "KL(teacher || student), above 0).",
        "arXiv 2404.02657 (tables UNVERIFIED)",
        "better than forward and reverse KL",
        _better("adaptive", "forward", "forward"),
        above(0.0),
    ),
    Claim(
        "TAID predicts the text better than forward KL (difference of NLL, above 0).",
        "arXiv 2501.16937 (tables UNVERIFIED)",
        "better than all of these on instruction tuning",
        _better("taid", "forward", "nll"),
        above(0.0),
    ),
)


def stages(config: Config) -> tuple[Stage, ...]:
    shared = {"text": dataclasses.asdict(config.text), "seed": config.seed}
    teacher = Stage(
        "teacher",
        lambda _: _teacher(config),
        (),
        shared | {x: dataclasses.asdict(getattr(config, x)) for x in ("teacher", "learn_teacher")},
    )
    return (teacher,) + tuple(
        Stage(
            f"{name}_{seed}",
            functools.partial(_student, config, name, seed),
            ("teacher",),
            _depends(config) | {"method": name, "seed": seed},
        )
        for seed in config.repetitions
        for name in config.methods
    )


def _depends(config: Config) -> dict[str, Any]:
    """What a student depends on besides its loss and its teacher."""
    return {
        "student": dataclasses.asdict(config.student),
        "learn": dataclasses.asdict(config.learn),
        "measured": [config.prompt, config.evaluations, config.score_batch],
    }


def _teacher(config: Config) -> Training:
    model = decoder.decoder(config.teacher)
    objective = supervise(model, {"nll": next_token_nll})
    return _training(config, config.teacher, objective, config.learn_teacher, config.seed)


def _student(config: Config, name: str, seed: int, found: Mapping[str, Any]) -> Training:
    models = (decoder.decoder(x) for x in (config.student, config.teacher))
    objective = ARMS[name].make(*models, config.learn.steps)
    measured = measuring.Measured(
        config.text, config.student, config.teacher, config.prompt, config.score_batch, seed
    )
    training = _training(config, config.student, objective, config.learn, seed)
    return training._replace(
        frozen=weights.joined(teacher=found["teacher"].weights()),
        frozen_rules={"teacher": decoder.rules(config.teacher)},
        evaluations=(measuring.along(measured, max(1, config.learn.steps // config.evaluations)),),
    )


def _training(
    config: Config, model: DecoderConfig, objective: Objective, learning: Learning, seed: int
) -> Training:
    @functools.cache
    def source() -> sources.Source:
        train = text_lib.rows(text_lib.load(config.text).train)
        return sources.array_batches(train, seed=seed, name="text", batch_size=learning.batch_size)

    return Training(
        step=make_train_step(objective, learning.optimizer()),
        weights=weights.from_init(decoder.decoder(model).init, jax.random.key(seed)),
        batches=lambda step, rows: source()(step, rows),
        batch=shapes.text(learning.batch_size, config.text.length),
        batch_size=learning.batch_size,
        steps=learning.steps,
        rules=decoder.rules(model),
        seed=seed,
    )


def report(config: Config, artefacts: Mapping[str, Any], folder: Path) -> Results:
    ends, rows, made = {}, [], {}
    lines: dict[str, dict[str, plots.Line]] = {name: {} for name in ("forward", "own_reverse")}
    for name in config.methods:
        label = ARMS[name].label
        series = {
            measure: [
                artefacts[f"{name}_{seed}"].series(f"held_out/{measure}")
                for seed in config.repetitions
            ]
            for measure in MEASURES
        }
        ends[name] = {m: [values[-1] for _, values in found] for m, found in series.items()}
        rows.append({"loss": label} | {MEASURES[m]: _over_seeds(x) for m, x in ends[name].items()})
        for measure, drawn in lines.items():
            each = np.array([values for _, values in series[measure]])
            effects = [_over_seeds(column.tolist()) for column in each.T]
            drawn[label] = plots.Line(
                series[measure][0][0], *([e[i] for e in effects] for i in range(3))
            )
    for measure, drawn in lines.items():
        made[measure] = plots.lines(
            folder / "plots" / f"{measure}.png",
            drawn,
            x="training step",
            y="nats a token",
            title=MEASURES[measure],
        )
    for measure in ("forward", "own_reverse"):
        made[f"{measure}_ends"] = plots.ranking(
            folder / "plots" / f"{measure}_ends.png",
            {ARMS[name].label: _over_seeds(ends[name][measure]) for name in config.methods},
            x="nats a token",
            title=f"{MEASURES[measure]}: less is nearer",
        )
    title = f"After training, nats a token (95 % over {config.seeds} seeds)"
    return Results({"ends": ends}, [Table(title, rows)], made)


def _over_seeds(values: list[float]) -> Effect:
    if len(values) == 1:
        return Effect(values[0], values[0], values[0])
    return Effect(*mean_interval(np.asarray(values)))


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
