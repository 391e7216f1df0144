"""Reports of experiments are tested without drawing, which would take most of their time."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch):
    """Plots are empty files. `make smoke` draws those of every experiment."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", lambda _, path, **how: Path(path).touch())
