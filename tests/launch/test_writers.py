import io
import json
import sys

import pytest
import rich.console

from kd_jax.launch import writers
from kd_jax.launch.errors import UserError
from kd_jax.launch.progress import Progress, time_left


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_jsonl_is_legal_json_at_once(tmp_path):
    path = tmp_path / "deep" / "metrics.jsonl"
    writer = writers.Jsonl(path, tags={"stage": "a"})
    writer.scalars(3, {"loss": 0.5, "odd": float("nan"), "far": float("inf")})
    assert lines(path) == [{"step": 3, "stage": "a", "loss": 0.5, "odd": "nan", "far": "inf"}]
    assert "NaN" not in path.read_text()
    writer.close()


def test_jsonl_of_a_resumed_run_is_that_of_an_uninterrupted_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for stage, steps in (("a", (2, 4)), ("b", (2, 4, 6))):
        writer = writers.Jsonl(path, start=-1, tags={"stage": stage})
        for step in steps:
            writer.scalars(step, {"loss": step / 2})
        writer.close()
    with path.open("a") as file:
        file.write('{"step": 8, "stage": "b", "lo')  # killed here
    writer = writers.Jsonl(path, start=3, tags={"stage": "b"})
    writer.scalars(4, {"loss": 2.0})
    writer.close()
    assert [(r["stage"], r["step"]) for r in lines(path)] == [
        ("a", 2),
        ("a", 4),
        ("b", 2),
        ("b", 4),
    ]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/metrics.jsonl: cannot be written"):
        writers.Jsonl(tmp_path / "file" / "metrics.jsonl")


def test_tensorboard_writes_each_stage_to_its_own_run(tmp_path):
    for stage in ("a", "b"):
        writer = writers.TensorBoard(tmp_path, prefix=f"{stage}/")
        writer.scalars(1, {"loss": 0.25})
        writer.close()
    for stage in ("a", "b"):
        (file,) = (tmp_path / stage).glob("events.out.tfevents.*")
        assert b"loss" in file.read_bytes()


def test_wandb_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'kd_jax\[wandb\]'"):
        writers.Wandb(project="p")


def test_writers_go_to_all(tmp_path):
    both = writers.Writers(*(writers.Jsonl(tmp_path / f"{i}.jsonl") for i in range(2)))
    both.scalars(1, {"x": 1.0})
    both.close()
    assert lines(tmp_path / "0.jsonl") == lines(tmp_path / "1.jsonl") == [{"step": 1, "x": 1.0}]


def test_progress_is_quiet_without_a_terminal(capfd):
    with Progress("train", 10) as progress:
        progress.update(5, 0.5, 100.0, 0.1)
    assert capfd.readouterr() == ("", "")


def test_progress_shows_loss_throughput_and_time_left(monkeypatch):
    shown = io.StringIO()
    console = rich.console.Console
    monkeypatch.setattr(
        rich.console,
        "Console",
        lambda stderr: console(file=shown, force_terminal=True, width=120),
    )
    with Progress("train", 10) as progress:
        progress.update(5, 0.125, 1234.0, 2.0)
    assert all(
        word in shown.getvalue() for word in ("train", "5/10", "loss 0.125", "1.23e+03 rows/s")
    )
    assert "ETA 0:00:10" in shown.getvalue()
    assert time_left(3723.4) == "ETA 1:02:03"
    assert time_left(float("inf")) == ""
