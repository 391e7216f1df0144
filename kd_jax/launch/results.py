"""A run's results: asked of the experiment, judged, written and shown."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from kd_jax.launch import cli, tables
from kd_jax.launch.artefacts import Artefact, write_json
from kd_jax.launch.claims import Effect, Results, Table, judge
from kd_jax.launch.config import plain


def conclude(
    module: ModuleType,
    config: Any,
    found: Mapping[str, Artefact],
    folder: Path,
    header: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes tables/ and results.json, prints both, and returns what results.json holds.

    header: its first entries. results.json is written last: a run that has it is complete.
    """
    results: Results = module.report(config, dict(found), folder)
    judged = [judge(claim, results, header["preset"]) for claim in module.CLAIMS]
    plots = {plot: _inside(folder, path) for plot, path in results.plots.items()}
    for table in results.tables:
        slug = re.sub(r"[^a-z0-9]+", "-", table.title.lower()).strip("-")
        (folder / "tables").mkdir(exist_ok=True)
        (folder / "tables" / f"{slug}.md").write_text(tables.as_markdown(table))
        (folder / "tables" / f"{slug}.csv").write_text(tables.as_csv(table))
    made = [{k: a.about[k] for k in ("name", "hash", "seconds")} for a in found.values()]
    data = plain(
        {
            **header,
            "title": cli.claim_of(module),
            "claims": judged,
            "values": results.values,
            "tables": [table._asdict() for table in results.tables],
            "plots": plots,
            "stages": made,
            "seconds": sum(stage["seconds"] for stage in made),
        }
    )
    write_json(folder / "results.json", data)
    for table in results.tables:
        tables.show(table)
    if judged:
        tables.show(Table("Claims", [_row(claim) for claim in judged]))
    for plot, path in plots.items():
        print(f"plot {plot}: {_shown(folder / path)}")
    print(f"results: {_shown(folder / 'results.json')}")
    return data


def _row(claim: Mapping[str, Any]) -> dict[str, Any]:
    effect = claim["effect"]
    return {
        "claim": claim["statement"],
        "paper": claim["paper_value"],
        "ours": effect and Effect(**{k: float(v) for k, v in effect.items()}),
        "verdict": claim["verdict"],
    }


def _inside(folder: Path, path: str | Path) -> str:
    full = (folder / path).resolve()
    if not full.is_relative_to(folder.resolve()):
        raise ValueError(f"plot {path} lies outside the run's folder {folder}")
    return full.relative_to(folder.resolve()).as_posix()


def _shown(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
