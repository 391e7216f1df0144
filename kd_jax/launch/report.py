"""Writes REPRODUCTIONS.md from the published results.

python -m kd_jax.launch.report            # writes it
python -m kd_jax.launch.report --check    # exit code 1 if it is not up to date
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kd_jax.launch.cli import Parser
from kd_jax.launch.errors import UserError
from kd_jax.launch.tables import cell

HEAD = """# Reproductions

Made by `make report` from the published results; do not edit. A claim's predicate was written
before the run. *holds*: the whole interval satisfies it. *fails*: none of it does. *inconclusive*:
the interval allows both. *not tested*: this preset does not measure it.
"""


def render(results: str | Path) -> str:
    """The text of REPRODUCTIONS.md; depends on nothing but the files under `results`."""
    folder = Path(results)
    by_module: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for file in sorted(folder.glob("**/results.json")):
        data = json.loads(file.read_text())
        by_module.setdefault(data["module"], []).append((file.parent, data))
    parts = [HEAD]
    if not by_module:
        parts.append("Nothing is published yet.\n")
    for module, runs in sorted(by_module.items()):
        parts.append(f"## {module.removeprefix('experiments.')}\n\n{runs[0][1]['title']}\n")
        rows = ["| claim | paper | ours | preset | verdict |", "| --- | --- | --- | --- | --- |"]
        notes, made, pictures = [], [], []
        for place, data in runs:
            for claim in data["claims"]:
                rows.append(_row(claim, data["preset"]))
                if claim["tried"] and claim["verdict"] in ("fails", "inconclusive"):
                    notes.append(
                        f"- *{claim['verdict']}* ({data['preset']}): {claim['statement']} "
                        f"Tried: {claim['tried']}"
                    )
            made.append(_made(place, data))
            pictures += _pictures(place, data)
        parts.append("\n".join(rows) + "\n")
        if notes:
            parts.append("\n".join(notes) + "\n")
        parts.append("\n".join(made) + "\n")
        if pictures:
            parts.append("\n".join(pictures) + "\n")
    return "\n".join(parts)


def _row(claim: dict[str, Any], preset: str) -> str:
    effect = claim["effect"]
    ours = "–"
    if effect is not None:
        ours = f"{cell(effect['estimate'])} [{cell(effect['low'])}, {cell(effect['high'])}]"
    paper = f"{claim['paper_value']} ({claim['source']})"
    texts = [claim["statement"], paper, ours, preset, f"**{claim['verdict']}**"]
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


def _made(place: Path, data: dict[str, Any]) -> str:
    environment = json.loads((place / "environment.json").read_text())
    git = environment["git"]
    commit = "no commit"
    if git is not None:
        commit = git["commit"][:10] + (" with changes" if git["dirty"] else "")
    devices = environment["devices"]
    minutes = data["seconds"] / 60
    return (
        f"- [{data['preset']}]({place.as_posix()}): {environment['date'][:10]}, {commit}, "
        f"{devices['count']} x {devices['kind']}, {minutes:.1f} minutes"
    )


def _pictures(place: Path, data: dict[str, Any]) -> list[str]:
    """The run's plots; one that was too large to be published is left out."""
    found = {name: place / plot for name, plot in data["plots"].items()}
    return [f"![{name}]({file.as_posix()})" for name, file in found.items() if file.exists()]


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m kd_jax.launch.report", description=__doc__)
    parser.add_argument("--results", default="experiments/results")
    parser.add_argument("--into", default="REPRODUCTIONS.md")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if stale")
    try:
        arguments = parser.parse_args(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    text, file = render(arguments.results), Path(arguments.into)
    if arguments.check:
        fresh = file.exists() and file.read_text() == text
        print(f"{file} is up to date" if fresh else f"{file} is stale: run `make report`")
        return 0 if fresh else 1
    file.write_text(text)
    print(f"wrote {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
