"""The command line: what is wrong is said in one line, with exit code 2, and leaves nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import toy_experiment as toy

from kd_jax.launch import cli, run
from kd_jax.launch.config import Settings
from kd_jax.launch.environment import scrub
from kd_jax.launch.errors import NonFinite, Preempted, UserError

NAME = "support.toy_experiment"
ROOT = Path(run.__file__).parents[2]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kd_jax.launch.runtime.init", lambda: None)
    return tmp_path


def test_flags_override_the_preset():
    argv = ["smoke", "--optim.rate", "0.5", "--mesh.fsdp", "4", "--log-every", "3"]
    command = cli.parse(toy, NAME, [*argv, "--workdir", "w"])
    assert command.config == toy.Config(
        steps=4,
        optim=toy.Optim(rate=0.5),
        mesh=toy.PRESETS["smoke"].mesh.__class__(fsdp=4),
        log_every=3,
    )
    assert (command.preset, command.workdir, command.plan) == ("smoke", "w", None)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("", "name a preset: smoke, laptop"),
        ("--beta 1", "the preset comes first, before --beta: smoke, laptop"),
        ("smok", "unknown preset smok; takes smoke, laptop"),
        ("smoke --step 3", "unknown argument --step (given 3); did you mean --steps?"),
        ("smoke --optim.rte 3", "did you mean --optim.rate?"),
        ("smoke --optim.rate x", "--optim.rate: could not convert string to float: 'x'"),
        ("smoke --steps", "Missing value for argument '--steps'"),
        ("smoke extra", "unknown argument extra"),
        ("smoke --steps 0", "steps: got 0, takes at least 1"),
        ("smoke --log-every 0", "log_every: got 0, takes at least 1"),
        ("smoke --mesh.fsdp 3", "does not divide the 8 devices"),
        ("smoke --mesh.data 2", "does not make up the 8 devices"),
        ("smoke --file /nowhere/x", "/nowhere/x: No such file or directory"),
        ("smoke --workdir file", "is a file; a run takes a folder"),
        ("smoke --workdir file/run", "cannot be written (Not a directory)"),
        ("smoke --workdir gs://bucket/run", "mount the bucket"),
        ("smoke --workdir full", "full holds files that are not of a run"),
        ("smoke --plan tpu", "--plan: got tpu, takes names such as v5e:4x4"),
        ("smoke --plan cpu:64", "this process has 8 simulated devices"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_nothing(argv, message, here, capsys):
    (here / "file").touch()
    (here / "full").mkdir()
    (here / "full" / "thesis.tex").touch()
    assert run.main(NAME, argv.split()) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert sorted(str(x.relative_to(here)) for x in here.rglob("*")) == [
        "file",
        "full",
        "full/thesis.tex",
    ]


def test_an_unknown_module_is_one_line(capsys):
    assert run.main("experiments.absent", ["smoke"]) == 2
    assert "python -m experiments lists all" in capsys.readouterr().err
    assert run.main("kd_jax.trees", ["smoke"]) == 2
    assert "is no experiment: it has no Config, PRESETS" in capsys.readouterr().err


def test_help_shows_every_flag_with_its_docstring(capsys):
    with pytest.raises(SystemExit) as stop:
        run.main(NAME, ["--help"])
    assert stop.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.startswith(toy.__doc__.split("\n", 1)[0])
    assert "presets: smoke, laptop" in out
    for text in ("--optim.rate FLOAT Learning rate. (default: 0.1)", "--mesh.fsdp INT", "--plan"):
        assert text in out
    for field in Settings.__dataclass_fields__:
        assert f"--{field.replace('_', '-')}" in out


def test_a_folder_of_another_identity_is_refused_and_shown(here, capsys):
    header = {"module": NAME, "identity": {"optim": {"rate": 0.2}, "pretrain_steps": 4, "seed": 0}}
    (here / "run").mkdir()
    (here / "run" / "config.json").write_text(json.dumps(header))
    assert run.main(NAME, ["smoke", "--workdir", "run"]) == 2
    error = capsys.readouterr().err
    assert "optim.rate: 0.2 there, 0.1 here; steps: absent there, 4 here" in error
    assert list(here.iterdir()) == [here / "run"]


@pytest.mark.slow
def test_a_failure_after_something_was_finished_keeps_it(here, monkeypatch, capsys):
    def fails(artefacts):
        raise UserError("no such data")

    two = toy.stages(toy.PRESETS["smoke"])
    stages = (two[0], two[1]._replace(build=fails))
    monkeypatch.setattr(toy, "stages", lambda config: stages)
    assert run.main(NAME, ["smoke", "--workdir", "run"]) == 2
    assert capsys.readouterr().err == "error: stage finetune: no such data\n"
    assert len(list((here / "run").glob("stages/pretrain-*/artefact.json"))) == 1


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (NonFinite(7, "the loss"), 1, "stage pretrain: step 7: the loss is not finite"),
        (Preempted(3), 75, "stage pretrain: preempted after 3 steps"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_exit_codes(error, code, text, monkeypatch, capsys):
    def fails(*args):
        raise error

    monkeypatch.setattr(run, "carry_out", fails)
    assert run.main(NAME, ["smoke"]) == code
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.err.count("\n") == 1


def test_errors_that_are_ours_come_with_their_traceback(monkeypatch):
    monkeypatch.setattr(run, "carry_out", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.main(NAME, ["smoke"])


def test_nothing_private_is_written_down():
    assert scrub(
        {
            "command": "python -m experiments.x laptop --workdir /home/ada/runs/a --beta 0.1/2",
            "paths": ["~/models/llama", "gs://my-bucket/run/3", "experiments/results/x", "1 / 2"],
            "n": 3,
        }
    ) == {
        "command": "python -m experiments.x laptop --workdir .../a --beta 0.1/2",
        "paths": [".../llama", ".../3", "experiments/results/x", "1 / 2"],
        "n": 3,
    }


@pytest.mark.slow
def test_a_module_is_run_with_python_m_and_help_starts_no_backend(here):
    """The one test in a process of its own: exit code, streams, and what was imported."""
    code = f"""
import sys
from jax._src import xla_bridge
from kd_jax.launch.run import main
for argv in (["smoke", "--help"], ["smoke", "--list-stages"], ["smoke", "--bad"]):
    try:
        code = main("{NAME}", argv)
    except SystemExit as stop:
        code = stop.code
    print("EXIT", code, xla_bridge.backends_are_initialized())
"""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        check=False,
    )
    said = [line for line in done.stdout.splitlines() if line.startswith("EXIT")]
    assert said == ["EXIT 0 False", "EXIT 0 False", "EXIT 2 False"], done.stderr
    assert done.stderr.count("\n") == 1
