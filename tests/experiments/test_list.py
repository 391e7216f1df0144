"""python -m experiments lists every experiment without importing it."""

import importlib.util
import subprocess
import sys
from pathlib import Path

from experiments import __main__ as listing

ROOT = Path(listing.__file__).parent.parent

MODULE = '''"""A student learns more
from a teacher than from labels.

More text.
"""
raise RuntimeError("imported")
PRESETS{annotation} = {{"smoke": 1, "laptop": 2}}
'''


def fake(tmp_path, name, text):
    file = tmp_path / "experiments" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return tmp_path / "experiments"


def test_find_reads_claim_family_and_presets(tmp_path):
    fake(tmp_path, "__main__.py", "")
    fake(tmp_path, "distillation/_common.py", MODULE.format(annotation=""))
    fake(tmp_path, "distillation/helpers.py", '"""No experiment."""\nx = 1\n')
    fake(tmp_path, "quickstart.py", MODULE.format(annotation=": dict[str, int]"))
    root = fake(tmp_path, "distillation/kd_digits.py", MODULE.format(annotation=""))
    claim = "A student learns more from a teacher than from labels."
    assert listing.find(root) == [
        ("experiments.quickstart", "", claim, ("smoke", "laptop")),
        ("experiments.distillation.kd_digits", "distillation", claim, ("smoke", "laptop")),
    ]


def test_names_gives_modules_with_the_preset(tmp_path, capsys, monkeypatch):
    root = fake(tmp_path, "merging/ties.py", MODULE.format(annotation=""))
    fake(tmp_path, "merging/other.py", '"""Other."""\nPRESETS = {"paper": 1}\n')
    monkeypatch.setattr(listing, "__file__", str(root / "__main__.py"))
    listing.main(["--names", "smoke"])
    assert capsys.readouterr().out == "experiments.merging.ties\n"


def test_every_listed_experiment_exists_and_says_its_claim():
    for listed in listing.find():
        assert importlib.util.find_spec(listed.module) is not None
        assert listed.claim.endswith("."), f"{listed.module}: first paragraph {listed.claim!r}"
        assert "smoke" in listed.presets, listed.module


def test_listing_starts_no_backend():
    code = (
        "import sys; sys.argv[1:] = []; from experiments.__main__ import main; main(); "
        "assert 'jax' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "python -m MODULE PRESET" in done.stdout
