"""The main job in small: distil, unlearn and merge on this machine's devices, in a few minutes.

    python -m experiments.quickstart [--workdir FOLDER]

Runs the `smoke` presets of three experiments one after the other, each in a folder of its own,
and ends with a table of what they did. Sizes are tiny: it shows that everything works, not that
the papers' claims hold; for that there are the `laptop` presets. A second start resumes the first.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_jax.launch import cli, environment, run, runtime, tables
from kd_jax.launch.claims import Table

DISTIL = "experiments.distillation.kd_digits"
UNLEARN = "experiments.unlearning.npo_tofu"
MERGE = "experiments.merging.digits_merge"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes as those of the experiments."""
    argv = sys.argv[1:] if argv is None else argv
    return run.exit_code(lambda: _main(argv))


def _main(argv: Sequence[str]) -> None:
    parser = cli.Parser(prog="python -m experiments.quickstart", description=__doc__)
    parser.add_argument("--workdir", default="runs/quickstart", help="folder of the three runs")
    folder = Path(parser.parse_args(argv).workdir)
    runtime.init()
    found = {}
    for name in (DISTIL, UNLEARN, MERGE):
        print(f"\n=== {name} ===", flush=True)
        module = cli.load(name)
        found[name] = run.execute(
            module,
            name,
            "smoke",
            module.PRESETS["smoke"],
            folder / name.rsplit(".", 1)[1],
            command=environment.command_line("experiments.quickstart", argv),
        )
    if not runtime.is_main():
        return
    tables.show(Table("What happened, in small", _rows(found)))
    for name, data in found.items():
        for plot in data["plots"].values():
            print(f"plot: {folder / name.rsplit('.', 1)[1] / plot}")


def _rows(found: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """One line a kind of work: what was done, what is better when, before and after."""
    digits = found[DISTIL]["values"]["accuracy"]["digits"]
    models = found[UNLEARN]["values"]["models"]
    merged = found[MERGE]["values"]["methods"]["unsearched"]

    def mean(values: Sequence[float]) -> str:
        return f"{sum(values) / len(values):.1f} %"

    def share(model: str, part: str) -> str:
        return mean([100 * seed[f"{part}_probability"] for seed in models[model]])

    return [
        {
            "work": "distil: a small net learns digits from 200 images",
            "measure": "test accuracy (higher is better)",
            "before": f"labels alone {mean(digits['alone'])}",
            "after": f"with a teacher {mean(digits['taught'])}",
        },
        {
            "work": "unlearn: a language model forgets an author (NPO+RT)",
            "measure": "probability of the answers to forget (lower)",
            "before": share("finetune", "forget"),
            "after": share("npo_rt", "forget"),
        },
        {
            "work": "  and keeps the other authors",
            "measure": "probability of the answers to keep (higher)",
            "before": share("finetune", "retain"),
            "after": share("npo_rt", "retain"),
        },
        {
            "work": "merge: two specialists become one net (TIES)",
            "measure": "accuracy kept of the specialists' (higher)",
            "before": f"pretrained {mean(merged['pretrained']['2'])}",
            "after": f"merged {mean(merged['TIES']['2'])}",
        },
    ]


if __name__ == "__main__":
    raise SystemExit(main())
