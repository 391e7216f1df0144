"""Runs the benchmarks, prints a table and writes bench.json: python -m benchmarks [NAME ...]."""

import argparse
import importlib
import json
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

import benchmarks
from benchmarks import Row

NAMES = sorted(
    module.name
    for module in pkgutil.iter_modules(benchmarks.__path__)
    if not module.name.startswith("_")
)


def show(rows: Sequence[Row]) -> None:
    table = Table("benchmark", "ours", "reference", "unit", "ratio")
    for column in (1, 2, 4):
        table.columns[column].justify = "right"
    for row in rows:
        numbers = f"{row.ours:.1f}", f"{row.reference:.1f}"
        table.add_row(row.name, *numbers, row.unit, f"{row.ratio:.2f}")
    Console().print(table)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=benchmarks.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--json", default="bench.json", help="file to write")
    arguments = parser.parse_args(argv)
    unknown = sorted(set(arguments.names) - set(NAMES))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    rows = []
    for name in arguments.names or NAMES:
        rows += importlib.import_module(f"benchmarks.{name}").rows()
    show(rows)
    data = [{**row._asdict(), "ratio": row.ratio} for row in rows]
    Path(arguments.json).write_text(json.dumps(data, indent=2) + "\n")
    print(f"wrote {arguments.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
