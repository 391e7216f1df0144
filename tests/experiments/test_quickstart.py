"""The quickstart: which runs it starts, its table, its exit codes. Nothing is trained here."""

import pytest

from experiments import quickstart
from kd_jax.launch import cli
from kd_jax.launch.errors import NonFinite, Preempted, UserError

FOUND = {
    quickstart.DISTIL: {"accuracy": {"digits": {"alone": [80.0, 84.0], "taught": [90.0, 95.0]}}},
    quickstart.UNLEARN: {
        "models": {
            "finetune": [{"forget_probability": 0.9, "retain_probability": 0.8}],
            "npo_rt": [{"forget_probability": 0.1, "retain_probability": 0.7}],
        }
    },
    quickstart.MERGE: {
        "methods": {"unsearched": {"pretrained": {"2": [30.0]}, "TIES": {"2": [75.5]}}}
    },
}


@pytest.fixture
def started(monkeypatch):
    """The runs that it starts, each with results made by hand."""
    found = []

    def execute(module, name, preset, config, folder, **_):
        assert config is module.PRESETS[preset]
        found.append((name, preset, folder))
        return {"values": FOUND[name], "plots": {"accuracy": "plots/accuracy.png"}}

    monkeypatch.setattr(quickstart.runtime, "init", lambda: None)
    monkeypatch.setattr(quickstart.run, "execute", execute)
    return found


def test_it_distils_unlearns_and_merges_each_in_a_folder_of_its_own(started, tmp_path, capsys):
    assert quickstart.main(["--workdir", str(tmp_path)]) == 0
    names = ("kd_digits", "npo_tofu", "digits_merge")
    assert [(n.rsplit(".")[-1], p, f) for n, p, f in started] == [
        (name, "smoke", tmp_path / name) for name in names
    ]
    out = capsys.readouterr().out
    for text in ("82.0 %", "92.5 %", "90.0 %", "10.0 %", "80.0 %", "70.0 %", "30.0 %", "75.5 %"):
        assert text in out
    assert str(tmp_path / "npo_tofu" / "plots" / "accuracy.png") in out


def test_rows_say_before_and_after():
    rows = quickstart._rows({name: {"values": values} for name, values in FOUND.items()})
    ends = [(row["before"].split()[-2], row["after"].split()[-2]) for row in rows]
    assert ends == [("82.0", "92.5"), ("90.0", "10.0"), ("80.0", "70.0"), ("30.0", "75.5")]


@pytest.mark.parametrize("name", FOUND)
def test_its_experiments_have_a_smoke_preset(name):
    assert "smoke" in cli.load(name).PRESETS


@pytest.mark.parametrize(
    ("error", "code"), [(UserError("no data"), 2), (NonFinite(3, "loss"), 1), (Preempted(3), 75)]
)
def test_exit_codes_are_those_of_the_experiments(
    started, monkeypatch, tmp_path, capsys, error, code
):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(quickstart.run, "execute", fail)
    assert quickstart.main(["--workdir", str(tmp_path)]) == code
    assert capsys.readouterr().err == f"error: {error}\n"


def test_its_command_line(started, capsys):
    with pytest.raises(SystemExit) as stop:
        quickstart.main(["--help"])
    assert stop.value.code == 0 and "--workdir" in capsys.readouterr().out
    assert quickstart.main(["--wrokdir", "x"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: unrecognized arguments: --wrokdir x") and error.count("\n") == 1
    assert started == []
