"""Lists the experiments: python -m experiments [--names PRESET].

Reads the files without importing them: quick, and no backend is started. An experiment is a module
that assigns PRESETS; the first paragraph of its docstring is its claim.
"""

import argparse
import ast
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn


class Listed(NamedTuple):
    module: str
    family: str
    claim: str
    presets: tuple[str, ...]


def find(folder: Path | None = None) -> list[Listed]:
    """The experiments under `folder`, by family and name."""
    root = folder or Path(__file__).parent
    found = []
    for file in sorted(root.rglob("*.py")):
        place = file.relative_to(root).with_suffix("").parts
        if any(part.startswith(("_", ".")) for part in place):
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
        presets = _presets(tree)
        if presets is not None:
            claim = " ".join((ast.get_docstring(tree) or "").split("\n\n", 1)[0].split())
            family = "/".join(place[:-1])
            found.append(Listed(".".join((root.name, *place)), family, claim, presets))
    return sorted(found, key=lambda e: (e.family, e.module))


def _presets(tree: ast.Module) -> tuple[str, ...] | None:
    """The keys of the dict display that the module assigns to PRESETS, or None."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(t, ast.Name) and t.id == "PRESETS" for t in targets):
            keys = getattr(getattr(node, "value", None), "keys", [])
            return tuple(str(k.value) for k in keys if isinstance(k, ast.Constant))
    return None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; {self.prog} --help says more\n")


def main(argv: Sequence[str] | None = None) -> int:
    parser = _Parser(prog="python -m experiments", description=__doc__)
    parser.add_argument(
        "--names", metavar="PRESET", help="print only the names of the modules with this preset"
    )
    arguments = parser.parse_args(argv)
    experiments = find()
    if arguments.names:
        for e in experiments:
            if arguments.names in e.presets:
                print(e.module)
        return 0
    for family in dict.fromkeys(e.family for e in experiments):
        print(family or "overview")
        for e in experiments:
            if e.family == family:
                print(f"  {e.module}\n      {e.claim}\n      presets: {', '.join(e.presets)}")
        print()
    print("Run one with: python -m MODULE PRESET, or see its flags: python -m MODULE PRESET --help")
    print("All kinds of work in small: python -m experiments.quickstart")
    return 0


if __name__ == "__main__":
    sys.exit(main())
