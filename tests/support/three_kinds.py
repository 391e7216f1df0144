"""A student is distilled in two rounds, a language model unlearns, and two are merged, in seconds.

The three kinds of work as one experiment, small enough for many processes on two cores. As a
script it is one process of a run and writes down which files it wrote (see `main`).
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

import jax
import numpy as np

from kd_jax import optim
from kd_jax.data import pairs, sources
from kd_jax.launch import rounds, run, weights
from kd_jax.launch.claims import Results, Table
from kd_jax.launch.config import Settings, not_identity
from kd_jax.launch.evaluation import evaluate
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.stages import Compute, Evaluation, Stage, Training, materialise, mesh_of
from kd_jax.losses import _pieces
from kd_jax.losses.divergences import reverse_kl
from kd_jax.merging.ties import ties
from kd_jax.models import decoder
from kd_jax.objectives.combinators import add, on
from kd_jax.objectives.distil import distil, token_divergence
from kd_jax.objectives.references import online
from kd_jax.objectives.score import sequence_scores
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.terms import next_token_nll
from kd_jax.objectives.unlearn.preference import negative_preference
from kd_jax.steps import make_eval_step, make_train_step

ROWS, LENGTH, VOCAB, SCORED = 8, 8, 32, 21  # no batch size here divides 21
DECODER = decoder.DecoderConfig(
    vocab=VOCAB, width=16, depth=1, heads=2, kv_heads=2, head_dim=8, mlp=32, remat=False
)
MODEL, RULES = decoder.decoder(DECODER), decoder.rules(DECODER)
STUDENT_CONFIG = dataclasses.replace(DECODER, width=8, head_dim=4, mlp=16)
STUDENT = decoder.decoder(STUDENT_CONFIG)
_pieces._LOGITS, _pieces._TOKENS = 1, 4  # several pieces of the vocabulary's losses a device
SCORE = make_eval_step(sequence_scores(MODEL))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    steps: int = 3
    mesh: MeshConfig = not_identity(MeshConfig(data=-1, fsdp=2, tensor=2))


PRESETS = {"smoke": Config()}
CLAIMS = ()


def _text(count: int, seed: int) -> dict[str, np.ndarray]:
    drawn = np.random.default_rng(seed).integers(VOCAB, size=(count, LENGTH + 1), dtype=np.int32)
    scored = np.ones((count, LENGTH), np.float32)
    scored[:, :2] = 0  # a prompt
    index = np.arange(count, dtype=np.int32)
    return {"inputs": drawn[:, :-1], "targets": drawn[:, 1:], "weights": scored, "index": index}


def _shapes(batch) -> dict:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dict(batch))


def _start(model, seed: int) -> weights.Weights:
    return weights.from_init(model.init, jax.random.key(seed))


def stages(config: Config) -> tuple[Stage, ...]:
    def distilled(_) -> Training:
        text = sources.array_batches(_text(30, 1), seed=0, name="text", batch_size=ROWS)
        loss = token_divergence(lambda s, t, _: reverse_kl(s, t), 0.5, hard=0.5)
        return Training(
            step=make_train_step(distil(STUDENT, MODEL, {"kd": loss}), optim.adamw(1e-2)),
            weights=_start(STUDENT, 0),
            frozen=weights.joined(teacher=_start(MODEL, 1)),
            frozen_rules={"teacher": RULES},
            batches=text,
            batch=_shapes(text(0, slice(0, ROWS))),
            batch_size=ROWS,
            steps=config.steps,
            rules=decoder.rules(STUDENT_CONFIG),
            result=rounds.whole,
        )

    def further(found) -> Training:
        return distilled(found)._replace(start=found["distilled"].weights(), steps=2 * config.steps)

    def unlearned(_) -> Training:
        source = pairs.forget_retain(
            {"forget": _text(11, 2)}, {"retain": _text(30, 3)}, seed=0, batch_size=ROWS
        )
        forget = negative_preference(MODEL, online(MODEL), beta=0.1)
        retain = supervise(MODEL, {"nll": next_token_nll})
        objective = add({"forget": on("forget", forget), "retain": on("retain", retain)})

        def score(params, carry, frozen):
            _, rows = evaluate(
                SCORE, params, {}, {}, _text(SCORED, 4), batch_size=ROWS, mesh=mesh_of(params)
            )
            return {"log_prob": float(rows["log_prob"].mean()), "each": rows["log_prob"]}

        return Training(
            step=make_train_step(objective, optim.adamw(1e-2), microbatches=2),
            weights=_start(MODEL, 2),
            frozen=weights.joined(reference=_start(MODEL, 2)),
            batches=source,
            batch=_shapes(source(0, slice(0, ROWS))),
            batch_size=ROWS,
            steps=config.steps,
            rules=RULES,
            evaluations=(Evaluation("scores", 2, score),),
        )

    def merged(found) -> Compute:
        def merge():
            mesh = make_mesh(config.mesh)
            base, other = (materialise(_start(MODEL, i), mesh, RULES) for i in (2, 3))
            ours = materialise(found["unlearned"].weights(), mesh, RULES)
            return jax.jit(lambda *x: ties(x[0], x[1:], density=0.5))(base, ours, other), {}

        return Compute(merge)

    return (
        Stage("distilled", distilled),
        Stage("further", further, ("distilled",)),
        Stage("unlearned", unlearned),
        Stage("merged", merged, ("unlearned",)),
    )


def report(config: Config, artefacts, folder) -> Results:
    values = artefacts["unlearned"].values
    return Results({"scores": values}, [Table("Scores", [values])])


def main(folder: str, written: str) -> int:
    """Runs it in `folder`; the files that this process writes, moves or removes there go to
    <written>-<process>.
    """
    paths: set[str] = set()

    def watch(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str):
            mode, flags = arguments[1], arguments[2]
            writes = any(c in mode for c in "wax+") if mode else flags & (os.O_WRONLY | os.O_RDWR)
            if writes:
                paths.add(arguments[0])
        elif event in ("os.rename", "os.remove", "shutil.rmtree"):
            paths.update(str(x) for x in arguments[:2] if isinstance(x, str | os.PathLike))

    sys.addaudithook(watch)
    code = run.main("support.three_kinds", ["smoke", "--workdir", folder])
    ours = sorted(path for path in paths if path.startswith(folder))
    Path(f"{written}-{jax.process_index()}").write_text(json.dumps(ours))
    return code


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
