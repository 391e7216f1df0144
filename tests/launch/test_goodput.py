import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from support import tiny_run

from kd_jax.launch import runtime
from kd_jax.launch.checkpoints import Checkpoints
from kd_jax.launch.errors import UserError
from kd_jax.launch.goodput import LOST, Events, goodput, summary
from kd_jax.launch.loop import Hook
from kd_jax.launch.mesh import MeshConfig, make_mesh

TESTS = Path(__file__).parents[1]


def log(*events):
    """Lines of (time, event, step, more) of the stage "a"; a start is a process's."""
    lines = []
    for time, event, *rest in events:
        step = rest[0] if rest else None
        more = rest[1] if len(rest) > 1 else {}
        stage = None if event == "start" else "a"
        record = {"time": time, "event": event, "stage": stage, "step": step}
        lines.append(json.dumps(record | more) + "\n")
    return lines


def lost(**seconds):
    return dict.fromkeys(LOST, 0.0) | {k.replace("_", "-"): float(v) for k, v in seconds.items()}


# One start, of 100 seconds.
WHOLE = log(
    (0, "start"),
    (10, "ready", 0),
    (11, "evaluation_begin", 0),
    (15, "evaluation_end", 0),
    (25, "compiled", 0, {"seconds": 8}),
    (45, "step", 10),
    (55, "save_begin", 15),
    (58, "save_end", 15),
    (68, "step", 20),
    (70, "evaluation_begin", 20),
    (80, "evaluation_end", 20),
    (99, "step", 30),
    (100, "stop", 30),
)


def test_one_start_loses_what_is_no_step():
    found = goodput(WHOLE)
    assert found.seconds == 100
    assert found.lost == lost(start_up=10 + 1 + 2, compile=8, save=3, evaluation=4 + 10)
    assert found.goodput == pytest.approx(0.62)


def test_what_a_restart_does_again_counts_once():
    again = log(
        (130, "start"),
        (135, "ready", 15),
        (136, "compiled", 15, {"seconds": 1}),
        (146, "step", 20),
        (166, "step", 30),
        (166, "stop", 30),
    )
    found = goodput(WHOLE + again)
    # Steps 16 to 30 of the first start: 10 s up to step 20, 2 s to its evaluation, 19 + 1 to 30.
    assert found.lost == lost(
        start_up=13 + 5, compile=8 + 1, save=3, evaluation=14, down=30, repeated=10 + 2 + 19 + 1
    )
    assert found.seconds == 166
    assert found.goodput == pytest.approx((20 + 10 + 30) / 166)


def test_a_piece_between_two_lines_is_kept_in_part():
    """Resumed from step 4, in the middle of the 10 steps between two lines."""
    lines = log(
        (0, "start"),
        (0, "ready", 0),
        (0, "compiled", 0, {"seconds": 0}),
        (10, "step", 10),
        (20, "start"),
        (20, "ready", 4),
        (20, "compiled", 4, {"seconds": 0}),
        (26, "step", 10),
    )
    found = goodput(lines)
    assert found.lost == lost(repeated=6, down=10)
    assert found.goodput == pytest.approx(10 / 26)


def test_a_later_restart_can_go_back_further_than_an_earlier_one():
    def start(time, step):
        return (
            (time, "start"),
            (time, "ready", step),
            (time, "compiled", step, {"seconds": 0}),
            (time + 10, "step", step + 10),
        )

    found = goodput(log(*start(0, 0), *start(10, 10), *start(20, 5)))
    assert found.lost == lost(repeated=5 + 10)
    assert found.goodput == pytest.approx(0.5)


def test_stages_are_apart_and_what_lies_between_them_is_other():
    first = [json.loads(line) for line in WHOLE]
    second = [
        record | {"time": record["time"] + 140, "stage": "b"} for record in first[1:]
    ]  # ready at 150
    between = [
        {"time": 120, "event": "start", "stage": "merge", "step": None},
        {"time": 140, "event": "start", "stage": "b", "step": None},
    ]
    found = goodput(map(json.dumps, [*first, *between, *second]))
    assert found.lost == lost(start_up=26, compile=16, save=6, evaluation=28, other=40)
    assert found.goodput == pytest.approx(124 / 240)
    # Stage b from step 0 again takes nothing from stage a.
    assert goodput(map(json.dumps, [*first, *between])).lost["repeated"] == 0


def test_what_a_process_does_before_its_first_stage_is_start_up():
    """Even after a start that was killed at work."""
    stage = {"event": "start", "stage": "a", "step": None}
    killed = WHOLE[:6]  # up to a step after 45 s
    rest = [log((60, "start"))[0], json.dumps(stage | {"time": 70}), *log((75, "ready", 0))]
    found = goodput([*killed, *rest])
    assert found.lost == lost(start_up=13 + 10 + 5, compile=8, evaluation=4, down=15, repeated=20)


def test_a_start_that_fails_as_it_compiles_keeps_nothing():
    found = goodput(log((0, "start"), (5, "ready", 0), (65, "stop", 1), (70, "start")))
    assert found.goodput == 0
    assert found.lost == lost(start_up=65, down=5)


def test_torn_lines_and_empty_files_are_read():
    assert goodput([*WHOLE, '{"time": 2'])[:2] == goodput(WHOLE)[:2]
    assert goodput([*WHOLE[:5], '{"time": 2\n', *WHOLE[5:]])[:2] == goodput(WHOLE)[:2]
    assert goodput([]) == (0.0, lost(), 0.0)
    assert goodput(WHOLE[:1]) == (0.0, lost(), 0.0)


def test_a_clock_that_goes_back_costs_nothing():
    found = goodput(log((100, "start"), (110, "ready", 0), (90, "start"), (95, "ready", 0)))
    assert found.lost == lost(start_up=15) and found.seconds == 15


def test_summary_says_it_in_a_line():
    assert (
        summary(goodput(WHOLE))
        == "goodput 62% of 0:01:40, lost: evaluation 14%, start-up 13%, compile 8%, save 3%"
    )
    assert summary(goodput([])) == "goodput 0% of 0:00:00"


def test_a_file_goes_on_after_a_torn_line(tmp_path):
    path = tmp_path / "run" / "events.jsonl"
    events = Events(path, began=12.5)
    events.begin("a")
    events.add("ready", 3)
    events.add("compiled", 3, seconds=0.5)
    lines = [json.loads(line) for line in path.read_text().splitlines()]  # flushed, not closed
    assert [(line["event"], line["stage"], line["step"]) for line in lines] == [
        ("start", None, None),
        ("start", "a", None),
        ("ready", "a", 3),
        ("compiled", "a", 3),
    ]
    assert lines[0]["time"] == 12.5 and lines[3]["seconds"] == 0.5
    events.close()
    path.write_text(path.read_text()[:-20])
    Events(path).close()
    assert [
        json.loads(line)["event"] for line in (path.read_text().splitlines()[i] for i in (2, 4))
    ] == ["ready", "start"]


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "is_main", lambda: False)
    events = Events(tmp_path / "events.jsonl")
    events.begin("a")
    events.add("step", 1)
    events.close()
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_said_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/events.jsonl: cannot be written"):
        Events(tmp_path / "file" / "events.jsonl")


# --- a run that is killed and goes on

STEPS, EVERY, KILLED = 12, 3, 8


def start(folder, hooks=()):
    mesh = make_mesh(MeshConfig(), jax.devices()[:2])
    events = Events(folder / "events.jsonl")
    events.begin("train")
    with Checkpoints(folder / "checkpoints", {}, every=EVERY) as checkpoints:
        tiny_run.train(
            mesh,
            steps=STEPS,
            checkpoints=checkpoints,
            hooks=[hook(checkpoints) for hook in hooks],
            events=events,
            log_every=2,
        )
    events.close()


def killing(checkpoints):
    """Ends the process after step `KILLED`, with what was saved on disk."""

    def run(step, state, frozen):
        if step == KILLED:
            checkpoints.wait()
            os.kill(os.getpid(), signal.SIGKILL)

    return Hook(4, run)


@pytest.mark.slow
def test_a_killed_run_and_its_rest(tmp_path):
    code = (
        "import sys, pathlib; from kd_jax.launch import runtime; runtime.init(2, cache='');"
        "sys.path.insert(0, sys.argv[2]); import test_goodput as t;"
        "t.start(pathlib.Path(sys.argv[1]), [t.killing])"
    )
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "KD_JAX_"))}
    paths = f"{TESTS}{os.pathsep}{TESTS.parent}"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)],
        env=keep | {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-4000:]
    file = tmp_path / "events.jsonl"
    killed = [json.loads(line) for line in file.read_text().splitlines()]
    with file.open("a") as torn:
        torn.write('{"time": 17')
    start(tmp_path)
    assert [(r["event"], r["step"]) for r in killed] == [
        ("start", None),
        ("start", None),
        ("ready", 0),
        ("compiled", 0),
        ("step", 2),
        ("save_begin", 3),
        ("save_end", 3),
        ("step", 4),
        ("evaluation_begin", 4),
        ("evaluation_end", 4),
        ("step", 6),
        ("save_begin", 6),
        ("save_end", 6),
        ("step", 8),
        ("evaluation_begin", 8),
    ]
    whole = file.read_text().splitlines()
    rest = [json.loads(line) for line in whole[len(killed) + 1 :]]
    assert [r["event"] for r in rest[:4]] == ["start", "start", "ready", "compiled"]
    assert rest[2]["step"] == 6 and rest[-1]["event"] == "stop" and rest[-1]["step"] == STEPS
    found = goodput(whole)
    assert 0 < found.goodput < 1
    assert found.seconds == pytest.approx(rest[-1]["time"] - killed[0]["time"])
    # Steps 7 and 8, after the last save: all the time up to the evaluation in which it was killed.
    assert found.lost["repeated"] == pytest.approx(killed[-1]["time"] - killed[-3]["time"])
    assert found.lost["down"] == pytest.approx(rest[0]["time"] - killed[-1]["time"])
    assert min(found.lost[name] for name in ("start-up", "compile", "save", "evaluation")) > 0
