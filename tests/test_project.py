"""The project around the code: what its pages name exists, and importing it costs little."""

import ast
import dataclasses
import functools
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from experiments import __main__ as listing
from tools import api_reference

ROOT = Path(__file__).parent.parent
# docs/api.md is made from docstrings, whose examples name no real module.
PAGES = sorted(p for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")] if p.name != "api.md")
EXPERIMENTS = [e.module for e in listing.find()]
STATES = {"functions", "smoke", "published"}


def module_file(name: str) -> Path | None:
    """The file of a module of this repository, by its dotted name."""
    base = ROOT.joinpath(*name.split("."))
    for file in (base.with_suffix(".py"), base / "__init__.py"):
        if file.is_file():
            return file
    return None


def defines(name: str) -> bool:
    """Is there a module `a.b` that defines `c`, for the name a.b.c? Nothing is imported."""
    module, _, attribute = name.rpartition(".")
    file = module_file(module)
    if file is None:
        return False
    tree = ast.parse(file.read_text())
    return any(getattr(node, "name", None) == attribute for node in tree.body)


def papers() -> list[dict[str, str]]:
    lines = [x for x in (ROOT / "PAPERS.md").read_text().splitlines() if x.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert head == ["id", "paper", "functions", "test", "experiment", "state", "verified"]
    return [dict(zip(head, row, strict=True)) for row in rows]


@pytest.mark.parametrize("row", papers(), ids=lambda row: row["id"])
def test_every_name_of_a_paper_exists(row):
    functions, tests = (re.findall("`(.+?)`", row[column]) for column in ("functions", "test"))
    assert functions, "no function"
    assert tests, "no test"
    for name in functions:
        assert defines(name), name
    for name in tests:
        assert (ROOT / name).is_file(), name
    modules = re.findall("`(.+?)`", row["experiment"])
    assert set(modules) <= set(EXPERIMENTS)
    assert row["state"] in STATES
    assert bool(modules) == (row["state"] != "functions"), "an experiment and its state go together"
    assert row["verified"]


def test_published_papers_have_a_published_result():
    for row in papers():
        results = [
            ROOT.joinpath("experiments", "results", *module.split(".")[1:])
            for module in re.findall("`(.+?)`", row["experiment"])
        ]
        published = any(list(folder.glob("*/results.json")) for folder in results)
        assert published == (row["state"] == "published"), row["id"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_have_the_outline_of_one(name):
    module = importlib.import_module(name)
    assert f"python -m {name} smoke" in module.__doc__, "the docstring says how to run it"
    assert {"smoke", "laptop"} <= set(module.PRESETS)
    assert all(isinstance(preset, module.Config) for preset in module.PRESETS.values())
    assert module.CLAIMS or "No paper's claim" in module.__doc__
    assert callable(module.stages)
    assert callable(module.report)


@functools.cache
def _attributes(folder: Path) -> frozenset[str]:
    """The names of all attributes that the code in a folder reads."""
    nodes = [n for file in folder.rglob("*.py") for n in ast.walk(ast.parse(file.read_text()))]
    return frozenset(node.attr for node in nodes if isinstance(node, ast.Attribute))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_field_of_a_config_is_read(name):
    """By the experiment, its helpers or the launcher: a flag that nothing reads is a lie."""
    module = importlib.import_module(name)
    read = _attributes(Path(module.__file__).parent) | _attributes(ROOT / "kd_jax/launch")

    def unread(config) -> list[str]:
        fields = dataclasses.fields(config)
        beside = _attributes(Path(inspect.getfile(type(config))).parent)
        own = [f.name for f in fields if f.name not in read | beside]
        parts = [getattr(config, f.name) for f in fields]
        ours = [x for x in parts if type(x).__module__.startswith("experiments.")]
        return own + [field for x in ours if dataclasses.is_dataclass(x) for field in unread(x)]

    assert unread(module.PRESETS["smoke"]) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_links_on_pages_lead_somewhere(page):
    text = page.read_text()
    for module in re.findall(r"python -m ((?:kd_jax|experiments|benchmarks|tools)[\w.]*)", text):
        module = module.rstrip(".")
        file = module_file(module)
        assert file is not None, f"python -m {module}"
        if file.name == "__init__.py":
            file = file.with_name("__main__.py")
        assert file.is_file() and "__main__" in file.read_text(), f"python -m {module}"
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z]+)", text) + re.findall(r"^make ([a-z]+)", text, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), f"make {target}"
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / link).exists(), f"link to {link}"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_on_pages_run(page, tmp_path, monkeypatch):
    """The Python blocks of a page, one after the other, as a reader would paste them."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    exec(compile("\n".join(blocks), page.name, "exec"), {"__name__": "example"})


def test_presets_named_on_pages_exist():
    for page in PAGES:
        for name, preset in re.findall(
            r"python -m (experiments\.\w+\.\w+) (\w+)", page.read_text()
        ):
            assert name in EXPERIMENTS, f"{page.name}: {name}"
            assert preset in importlib.import_module(name).PRESETS, f"{page.name}: {name} {preset}"


def test_import_starts_no_backend_and_loads_little():
    code = """
import sys
import jax
import optax
before = set(sys.modules)
import kd_jax
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized(), "a backend was started"
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= {"kd_jax", "jax"}


def test_every_part_of_the_package_has_an_import_contract():
    """A new folder must say what it may import (launch may import what it runs)."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = settings["tool"]["importlinter"]["contracts"]
    bound = {
        source.split(".")[1] for c in contracts for source in c["source_modules"] if "." in source
    }
    there = {
        path.stem
        for path in (ROOT / "kd_jax").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert there - bound == {"__init__", "launch"}


def test_tested_versions_lie_in_the_declared_ranges():
    from packaging.requirements import Requirement

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    pinned = {name.lower().replace("_", "-"): version for name, version in pinned.items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        wanted = Requirement(line)
        version = pinned[wanted.name.lower().replace("_", "-")]
        assert version in wanted.specifier, f"{line}: tested with {version}"


def test_reference_shows_signatures_fields_and_docstrings(tmp_path):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack/_hidden.py").write_text('"""Hidden."""\n')
    (tmp_path / "pack/shown.py").write_text(
        '"""Topic."""\n'
        "class Point(NamedTuple):\n"
        '    """A point."""\n'
        "    x: float = 0.0\n"
        "    _y: float = 0.0\n"
        "    def norm(self) -> float:\n"
        '        """Its length."""\n'
        "def f(a: int, /, b=1, *rest, key: str, **more) -> int:\n"
        '    """The sum."""\n'
        "def g(*, first_long_argument: Mapping[str, Sequence[int]],\n"
        "      second_long_argument: Mapping[str, int] = {}, third: int = 2):\n"
        "    pass\n"
        "def _private():\n"
        '    """Private."""\n'
    )
    text = api_reference.render(tmp_path / "pack")
    assert "class Point(NamedTuple):\n    x: float = 0.0\n```" in text
    assert "def f(a: int, /, b=1, *rest, key: str, **more) -> int" in text
    assert "    third: int = 2,\n)" in text
    assert "def norm(self) -> float" in text
    assert "def g(\n    *,\n    first_long_argument: Mapping[str, Sequence[int]],\n" in text
    assert all(words in text for words in ("Topic.", "A point.", "Its length.", "The sum."))
    assert "idden" not in text
    assert "rivate" not in text
