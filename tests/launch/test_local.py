"""The launcher for one machine, with workers that need no jax."""

import os
import signal
import sys
import textwrap
import time

import pytest
from support import processes

from kd_jax.launch import local, workers
from kd_jax.launch.errors import UserError

# What every script below begins with.
HEAD = """
import os, pathlib, signal, subprocess, sys, time
def index(): return int(os.environ.get("JAX_PROCESS_ID", 0))
def beat(): pathlib.Path(os.environ["KD_JAX_BEAT"]).touch()
def wait_for(*paths):
    while not all(os.path.exists(path) for path in paths): time.sleep(0.01)
"""


def script(text):
    return ["python", "-c", HEAD + textwrap.dedent(text)]


def launch(text, count=2, *, devices=1, heartbeat=1, grace=0.3, **more):
    """Here, in this process, with deadlines that a test can wait for."""
    settings = {"devices": devices, "heartbeat": heartbeat, "grace": grace} | more
    return local.run(script(text), count, **settings)


def test_workers_get_their_place_and_their_lines_come_with_it(capfd, monkeypatch):
    monkeypatch.setenv("KD_JAX_OWN", "kept")
    names = "JAX_NUM_PROCESSES KD_JAX_DEVICES KD_JAX_HEARTBEAT KD_JAX_OWN JAX_COORDINATOR_ADDRESS"
    code = launch(f"print(*map(os.environ.get, {names.split()}))", 3, devices=2, heartbeat=7)
    lines = capfd.readouterr().out.splitlines()
    assert code == 0 and sorted(line[:4] for line in lines) == ["[0] ", "[1] ", "[2] "]
    (same,) = {line[4:] for line in lines}
    assert same.startswith("3 2 7 kept 127.0.0.1:")


def test_one_worker_joins_nothing_and_speaks_for_itself(capfd, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("JAX_", "KD_JAX_"))]:
        monkeypatch.delenv(name)
    code = launch('print([x for x in os.environ if "JAX" in x])', 1, devices=None)
    said = capfd.readouterr()
    assert code == 0 and not said.err
    assert sorted(eval(said.out)) == ["KD_JAX_BEAT", "KD_JAX_HEARTBEAT"]


def test_output_arrives_whole_and_on_its_own_stream(capfdbinary):
    """Long lines of several workers, a byte that is no text, and a last line without an end."""
    launch(
        """
        out = sys.stdout.buffer
        for i in range(40):
            out.write(bytes([65 + index()]) * 20_000 + b"\\n")
        out.write(b"\\xff")
        sys.stderr.write("oops")
        """,
        3,
    )
    said = capfdbinary.readouterr()
    longs = [b"[%d] " % i + bytes([65 + i]) * 20_000 for i in range(3)]
    expected = [line for line in longs for _ in range(40)] + [b"[%d] \xff" % i for i in range(3)]
    assert sorted(said.out.splitlines()) == sorted(expected)
    assert sorted(said.err.splitlines()) == [b"[%d] oops" % i for i in range(3)]


@pytest.mark.slow
def test_a_line_comes_when_it_is_said():
    """From a worker that goes on, through a launcher whose own output is a file."""
    command = script('print("here"); time.sleep(600)')
    launcher = processes.start(
        [*processes.LAUNCHER, "-n", "2", "--devices", "1", "--", *command], PYTHONUNBUFFERED=""
    )
    processes.wait_for(lambda: "[1] here" in launcher.said(), launcher, timeout=60)
    launcher.process.send_signal(signal.SIGTERM)
    assert processes.finish(launcher)[0] == [143]


def test_arguments_arrive_as_they_were_given(capfd):
    arguments = ["a b", "", "it's", 'a "word"', "$HOME *", "--", "-n", "two\nlines", "ü"]
    show = [*script("print(ascii(sys.argv[1:]))"), *arguments]
    assert local.main(["-n", "1", "--", *show]) == 0
    assert eval(capfd.readouterr().out) == arguments


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "-n"),
        (["-n", "two"], "-n"),
        (["-n", "2", "--devices", "1"], "behind --"),
        (["-n", "2", "--devices", "1", "--"], "behind --"),
        (["-n", "2", "python", "x.py"], "unrecognized"),
        (["-n", "0", "--", "true"], "-n: got 0, takes at least 1"),
        (["-n", "2", "--", "true"], "--devices: not given"),
        (["-n", "1", "--devices", "0", "--", "true"], "--devices: got 0"),
        (["-n", "1", "--heartbeat", "0", "--", "true"], "--heartbeat: got 0"),
        (["-n", "1", "--stuck", "nan", "--", "true"], "--stuck: got nan"),
        (["-n", "1", "--grace", "-1", "--", "true"], "--grace: got -1"),
        (["-n", "1", "--", "no-such-command"], "cannot start no-such-command: No such file"),
    ],
)
def test_a_bad_command_is_one_line(argv, says, capfd):
    assert local.main(argv) == 2
    said = capfd.readouterr()
    assert says in said.err and said.err.count("\n") == 1 and not said.out


def test_the_heartbeat_of_the_environment_is_the_default(capfd, monkeypatch):
    monkeypatch.setenv("KD_JAX_HEARTBEAT", "17")
    command = script('print(os.environ["KD_JAX_HEARTBEAT"])')
    assert local.main(["-n", "1", "--", *command]) == 0
    assert local.main(["-n", "1", "--heartbeat", "18", "--", *command]) == 0
    assert capfd.readouterr().out.split() == ["17", "18"]


def test_after_a_failure_the_others_have_time_to_end(capfd):
    code = launch(
        """
        if index() == 1: sys.exit(3)
        time.sleep(1)
        print("saved")
        """,
        grace=60,
    )
    said = capfd.readouterr()
    assert code == 3 and said.out == "[0] saved\n"
    assert said.err == "launcher: worker 1 failed with exit code 3\n"


def test_who_does_not_end_is_asked_first(tmp_path, capfd):
    """Neither before the time nor for good: it may still save."""
    ready = tmp_path / "ready"
    code = launch(
        f"""
        if index() == 1:
            wait_for({str(ready)!r})
            os.abort()
        signal.signal(signal.SIGTERM, lambda *_: (print("saving"), sys.exit(75)))
        pathlib.Path({str(ready)!r}).touch()
        time.sleep(600)
        """,
        grace=0.5,
    )
    said = capfd.readouterr()
    assert code == 75 and said.out == "[0] saving\n"
    assert "worker 1 stopped because a peer was lost" in said.err
    assert "worker 0 stopped as asked (75)" in said.err


def test_a_stopped_worker_is_ended_with_all_that_it_has_started(tmp_path, capfd):
    """As where healthy ones abort for want of its heartbeat. SIGTERM does nothing to it."""
    ticks = tmp_path / "ticks"
    tick = f"while True: open({str(ticks)!r}, 'a').write('.'); time.sleep(0.02)"
    code = launch(
        f"""
        if index() == 0:
            wait_for({str(ticks)!r})
            os.abort()
        subprocess.Popen([sys.executable, "-c", "import time\\n" + {tick!r}])
        os.kill(os.getpid(), signal.SIGSTOP)
        """
    )
    assert code == 134
    assert "worker 1 had to be ended (SIGKILL)" in capfd.readouterr().err
    size = ticks.stat().st_size
    time.sleep(0.3)
    assert ticks.stat().st_size == size


@pytest.mark.slow
def test_no_progress_ends_all_and_names_who_stood_still_first(tmp_path, capfd):
    """The others beat once more, a moment later: soon they wait for it."""
    still = str(tmp_path / "still")
    code = launch(
        f"""
        for _ in range(5):
            beat()
            time.sleep(0.2)
        if index() != 1:
            wait_for({still!r})
            time.sleep(0.01)
        beat()
        pathlib.Path({still!r}).touch()
        time.sleep(600)
        """,
        3,
        stuck=1.5,
    )
    said = capfd.readouterr().err
    assert code == 134 and "worker 1 has made no progress for 1.5 s; ending all\n" in said
    assert "workers 0, 1, 2 had to be ended (SIGTERM)" in said


@pytest.mark.slow
def test_who_never_beats_is_not_judged():
    assert launch("time.sleep(2.5)", stuck=1) == 0


def test_a_command_that_cannot_start_leaves_no_worker(tmp_path, monkeypatch, capfd):
    """The second of two fails to start: the first is ended."""
    start, begun = workers.start, []

    def start_one(*arguments):
        if begun:
            raise UserError("cannot start python: no more processes")
        begun.append(start(*arguments))
        return begun[-1]

    monkeypatch.setattr(local, "start", start_one)
    with pytest.raises(UserError, match="no more processes"):
        launch("time.sleep(600)")
    assert begun[0].forced and begun[0].ended()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signals", "expected"),
    [
        ([signal.SIGTERM], 75),  # each worker says so
        ([signal.SIGHUP], 75),  # a terminal that goes away
        ([signal.SIGINT], 130),
        ([signal.SIGTERM, signal.SIGTERM], 143),
        ([signal.SIGINT, signal.SIGINT], 130),
    ],
)
def test_signals_are_passed_on_and_a_second_one_kills(signals, expected):
    """Where two signals are sent, the workers take no notice of the first."""
    obey = "sys.exit(75)" if len(signals) == 1 else "None"
    command = script(
        f"""
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: (print("got", number), {obey}))
        if {len(signals)} == 2:
            signal.signal(signal.SIGINT, lambda number, _: print("got", number))
        print("ready")
        while True: time.sleep(0.05)
        """
    )
    options = ["-n", "2", "--devices", "1", "--grace", "60", "--"]
    launcher = processes.start([*processes.LAUNCHER, *options, *command])
    processes.wait_for(lambda: launcher.said().count("ready") == 2, launcher, timeout=60)
    for i, number in enumerate(signals):
        launcher.process.send_signal(number)
        if i + 1 < len(signals):
            processes.wait_for(lambda: launcher.said().count("got") == 2, launcher, timeout=60)
    codes, said = processes.finish(launcher, timeout=60)
    assert codes == [expected]
    if signals[0] != signal.SIGINT:
        assert said.count(f"got {signal.SIGTERM}\n") == 2
    assert ("had to be ended (SIGKILL)" in said) == (len(signals) == 2)


@pytest.mark.slow
def test_nohup_stays_in_force():
    """SIGHUP is ignored by who was started so."""
    command = script('print("ready"); time.sleep(1.5)')
    launcher = processes.start(
        ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *processes.LAUNCHER, "-n", "1", "--", *command]
    )
    processes.wait_for(lambda: "ready" in launcher.said(), launcher, timeout=60)
    launcher.process.send_signal(signal.SIGHUP)
    assert processes.finish(launcher, timeout=60)[0] == [0]


def test_python_is_this_interpreter(capfd):
    assert launch("print(sys.executable)", 1) == 0
    assert capfd.readouterr().out.strip() == sys.executable
