"""Publishing a run, and REPRODUCTIONS.md made from what is published."""

import json

import pytest

from kd_jax.launch import publish, report
from kd_jax.launch.errors import UserError

CLAIM = {
    "statement": "Students with soft targets | labels are better.",
    "source": "Table 1",
    "paper_value": "98.9",
    "effect": {"estimate": 0.0123456, "low": 0.01, "high": 0.02},
    "verdict": "holds",
    "tried": "more seeds",
}


def make_run(folder, preset="laptop", claims=(CLAIM,), module="experiments.distillation.kd"):
    folder.mkdir(parents=True)
    results = {
        "module": module,
        "preset": preset,
        "hash": "abc",
        "title": "Soft targets teach more.",
        "claims": list(claims),
        "seconds": 90.0,
        "plots": {},
    }
    environment = {
        "date": "2026-01-02T03:04:05+00:00",
        "git": {"commit": "0123456789abcdef", "dirty": False},
        "devices": {"count": 2, "kind": "cpu"},
        "command": "python -m x --workdir /home/ada/run",
    }
    config = {"hash": "abc", "config": {"data": "/home/ada/my.jsonl"}}
    for name, data in (("results", results), ("environment", environment), ("config", config)):
        (folder / f"{name}.json").write_text(json.dumps(data))
    (folder / "plots").mkdir()
    (folder / "plots" / "small.png").write_bytes(b"x" * 100)
    (folder / "plots" / "large.png").write_bytes(b"x" * 300_001)
    (folder / "tables").mkdir()
    (folder / "tables" / "t.csv").write_text("a\n1\n")
    (folder / "metrics.jsonl").write_text("".join(f'{{"step": {i}}}\n' for i in range(1000)))
    (folder / "stages").mkdir()
    (folder / "stages" / "weights").write_bytes(b"x" * 1000)
    return folder


def test_publish_copies_the_small_files_and_nothing_private(tmp_path):
    run, into = make_run(tmp_path / "run"), tmp_path / "results"
    target, left_out = publish.publish(run, into)
    assert target == into / "distillation" / "kd" / "laptop"
    assert sorted(x.relative_to(target).as_posix() for x in target.rglob("*") if x.is_file()) == [
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "plots/small.png",
        "results.json",
        "tables/t.csv",
    ]
    assert len(left_out) == 1
    assert "large.png: 300 kB" in left_out[0]
    assert "ada" not in "".join(x.read_text() for x in target.glob("*.json"))
    steps = [json.loads(x)["step"] for x in (target / "metrics.jsonl").read_text().splitlines()]
    assert (len(steps), steps[0], steps[-1]) == (400, 0, 999)
    assert steps == sorted(set(steps))


def test_publishing_again_replaces_what_was_there(tmp_path):
    run, into = make_run(tmp_path / "run"), tmp_path / "results"
    target, _ = publish.publish(run, into)
    (target / "stale.json").write_text("{}")
    publish.publish(run, into)
    assert not (target / "stale.json").exists()
    assert [x.name for x in target.parent.iterdir()] == ["laptop"]


@pytest.mark.parametrize("name", ["results", "config", "environment"])
def test_a_run_that_is_not_finished_is_refused(tmp_path, name):
    run = make_run(tmp_path / "run")
    (run / f"{name}.json").unlink()
    with pytest.raises(UserError, match=f"{name}.json is missing"):
        publish.publish(run, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_results_of_another_config_are_refused(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "config.json").write_text('{"hash": "other"}')
    with pytest.raises(UserError, match="run it again"):
        publish.publish(run, tmp_path / "results")


def test_the_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run")
    assert publish.main(["run"]) == 0
    assert report.main(["--check"]) == 0
    (tmp_path / "REPRODUCTIONS.md").write_text("edited")
    assert report.main(["--check"]) == 1
    capsys.readouterr()
    for main, argv in ((publish.main, ["absent"]), (publish.main, []), (report.main, ["--bad"])):
        assert main(argv) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1


def test_reproductions_shows_every_claim_and_failures_with_what_was_tried(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed = CLAIM | {"verdict": "fails", "statement": "It is faster."}
    untested = CLAIM | {"verdict": "not tested", "effect": None}
    publish.publish(make_run(tmp_path / "a"), "experiments/results")
    publish.publish(make_run(tmp_path / "b", "gpu", [failed, untested]), "experiments/results")
    publish.publish(make_run(tmp_path / "c", module="experiments.merging.a"), "experiments/results")
    text = report.render("experiments/results")
    assert text == report.render("experiments/results")
    one = text.index("## distillation.kd")
    two = text.index("## merging.a")
    assert text[one:two] == (
        "## distillation.kd\n\n"
        "Soft targets teach more.\n\n"
        "| claim | paper | ours | preset | verdict |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| It is faster. | 98.9 (Table 1) | 0.01235 [0.01, 0.02] | gpu | **fails** |\n"
        "| Students with soft targets \\| labels are better. | 98.9 (Table 1) | – | gpu "
        "| **not tested** |\n"
        "| Students with soft targets \\| labels are better. | 98.9 (Table 1) "
        "| 0.01235 [0.01, 0.02] | laptop | **holds** |\n\n"
        "- *fails* (gpu): It is faster. Tried: more seeds\n\n"
        "- [gpu](experiments/results/distillation/kd/gpu): 2026-01-02, 0123456789, 2 x cpu, "
        "1.5 minutes\n"
        "- [laptop](experiments/results/distillation/kd/laptop): 2026-01-02, 0123456789, 2 x cpu, "
        "1.5 minutes\n\n"
    )


def test_reproductions_shows_the_plots_that_were_published(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "run")
    plots = {"kept": "plots/small.png", "too large": "plots/large.png"}
    results = json.loads((run / "results.json").read_text()) | {"plots": plots}
    (run / "results.json").write_text(json.dumps(results))
    publish.publish(run, "experiments/results")
    text = report.render("experiments/results")
    folder = "experiments/results/distillation/kd/laptop"
    assert text.endswith(f"\n\n![kept]({folder}/plots/small.png)\n")


def test_without_results_it_says_so(tmp_path):
    assert "Nothing is published yet." in report.render(tmp_path)
