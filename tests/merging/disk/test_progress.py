"""The bar on a terminal."""

import io
import sys

import pytest

from kd_jax.merging.disk.progress import drawn


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def said(monkeypatch, stream, quiet=False):
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with drawn(4_000_000_000, quiet=quiet) as progress:
        progress.add(1_000_000_000)
        progress.add(2_000_000_000)
    assert progress.done == 3_000_000_000
    assert progress.seconds > 0
    return stream.getvalue()


def test_a_terminal_sees_what_is_done_of_how_much(monkeypatch):
    assert "3.0/4.0 GB" in said(monkeypatch, Terminal())


@pytest.mark.parametrize(("stream", "quiet"), [(io.StringIO(), False), (Terminal(), True)])
def test_others_see_nothing(monkeypatch, stream, quiet):
    assert said(monkeypatch, stream, quiet) == ""
