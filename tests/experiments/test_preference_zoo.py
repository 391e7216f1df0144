"""The zoo: stages, what they depend on, claims on artefacts made by hand, a tiny run."""

import dataclasses

import jax
import numpy as np
import pytest
from support.config_reads import unread_fields
from support.experiment_checks import (
    Made,
    changed,
    compiled_quickly,
    help_of,
    outline,
    refusal,
    verdicts,
)

from experiments.preference import zoo
from experiments.preference.parts import zoo_report
from experiments.preference.parts.zoo_methods import METHODS
from kd_jax.launch import run
from kd_jax.launch.mesh import make_mesh

SMOKE, LAPTOP = zoo.PRESETS["smoke"], zoo.PRESETS["laptop"]
NAME = zoo.__name__


def test_stages():
    assert outline(zoo, LAPTOP) == {"worlds": ()} | dict.fromkeys(METHODS, ("worlds",))
    assert outline(zoo, SMOKE) == {"worlds": ()} | dict.fromkeys(("dpo", "cpo", "kto"), ("worlds",))


def test_what_a_stage_depends_on():
    def moved(**fields):
        return changed(zoo, SMOKE, dataclasses.replace(SMOKE, **fields))

    everything = {"worlds", *SMOKE.methods}
    assert moved(log_every=3) == set()
    assert moved(steps=20) == moved(rate=0.1) == moved(every=2) == set(SMOKE.methods)
    assert moved(pairs=3) == moved(seed=11) == moved(sft_steps=3) == everything


def test_the_command_line(capsys):
    assert "--sft-rate" in help_of(zoo, "laptop", capsys)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--methods", "dpo", "nothing"), "methods: got nothing, takes some of sft dpo"),
        (("--methods", "dpo", "dpo"), "methods: got dpo dpo, takes each once"),
        (("--seeds", "1"), "seeds: got 1, takes at least 2"),
        (("--seed", "1"), "seed: got 1, takes at least seeds, 2"),
        (("--steps", "11"), "steps: got 11, takes a multiple of every, 5"),
        (("--pairs", "0"), "pairs: got 0"),
    ],
)
def test_bad_values_are_refused_by_name(argv, said):
    assert said in refusal(zoo, "smoke", *argv)


# Claims.


def path(win, kl=2.0, chosen=0.0, peak=None):
    """Rows of a stage whose strengths are alike, three seeds that differ a little."""
    spread = 1 + 0.01 * np.arange(3)[:, None]
    ends = {
        "win_rate": [0.5, win if peak is None else peak, win],
        "kl": [0.0, kl / 2, kl],
        "chosen": [0.0, chosen / 2, chosen],
    }
    ends |= dict.fromkeys(("rejected", "accuracy", "reward", "length"), [0.0, 1.0, 1.0])
    rows = {key: np.repeat((spread * np.array(x))[None], 4, 0) for key, x in ends.items()}
    return Made(
        {"strength": 1}, {f"{p}/{k}": x for k, x in rows.items() for p in ("tuning", "test")}
    )


def made(good=True):
    up, down = (0.5, -5.0) if good else (-5.0, 0.5)
    stages = {name: path(0.8 if good else 0.4, chosen=up) for name in METHODS}
    stages |= {
        "dpo": path(0.75, kl=3.0, chosen=down, peak=0.85 if good else None),
        "simpo": path(0.8 if good else 0.6, kl=4.0 if good else 1.0, chosen=down),
        "kto": path(0.8 if good else 0.5),
        "ipo_sums": path(0.7 if good else 0.45, kl=1.0 if good else 5.0),
        "cpo_formula": path(0.6, chosen=-5.0 if good else 5.0),
        "orpo_formula": path(0.6, chosen=0.0),
        "ccpo": path(0.7 if good else 0.5),
    }
    best = np.tile(np.linspace(0, 8, 5), (3, 1))
    stages["worlds"] = Made(rows={"best_kl": best, "best_win_rate": 0.5 + best / 20})
    return stages


def test_claims_that_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo_report, "_plots", lambda *_: {})
    results = zoo.report(LAPTOP, made(good=False), tmp_path)
    assert verdicts(zoo, results) == ["fails"] * len(zoo.CLAIMS)


def test_claims_that_hold(tmp_path):
    results = zoo.report(LAPTOP, made(), tmp_path)
    assert verdicts(zoo, results) == ["holds"] * len(zoo.CLAIMS)
    assert verdicts(zoo, results, "smoke") == ["not tested"] * len(zoo.CLAIMS)
    assert all(p.exists() for p in results.plots.values()) and len(results.plots) == 5
    rows = {row["loss"]: row for row in results.tables[0].rows}
    assert len(rows) == len(METHODS)
    row = rows["SimPO"]
    assert row["strength"] == METHODS["simpo"].betas[1]
    assert row["best at that KL"] == pytest.approx(0.5 + 4.04 / 20)


def test_claims_about_losses_that_were_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo_report, "_plots", lambda *_: {})
    config = dataclasses.replace(LAPTOP, methods=("dpo",))
    results = zoo.report(config, made(), tmp_path)
    found = verdicts(zoo, results)
    assert found.count("holds") == 3 and found.count("not tested") == len(found) - 3


def test_win_rates_at_a_budget_are_read_between_measurements():
    kl = np.array([[0.0, 0.5, 2.0], [0.0, 1.0, 3.0]])
    wins = np.array([[0.5, 0.6, 0.9], [0.5, 0.7, 0.8]])
    found = zoo_report._at_budget({"kl": kl, "win_rate": wins})
    assert found.estimate == pytest.approx((0.7 + 0.7) / 2)
    assert zoo_report._at_budget({"kl": kl / 10, "win_rate": wins}) is None


def test_every_program_is_planned():
    config = dataclasses.replace(SMOKE, methods=("dpo",))
    mesh = make_mesh(config.mesh)
    worlds, trained = zoo.stages(config)
    drawn = worlds.build({})
    assert set(drawn.plan(mesh)) == {"draw", "best"}
    planned = zoo.Artefact("worlds", "0", None, drawn.shapes)
    (program,) = trained.build({"worlds": planned}).plan(mesh).values()
    program.jitted.lower(*program.arguments)
    for made in (program, *drawn.plan(mesh).values()):
        assert all(x.sharding.mesh == mesh for x in jax.tree.leaves(made.arguments))


@pytest.mark.slow
def test_a_tiny_run_reads_every_field_of_the_config(tmp_path):
    def go(config):
        with compiled_quickly():
            results = run.execute(zoo, NAME, "smoke", config, tmp_path / "run")
        assert {claim["verdict"] for claim in results["claims"]} == {"not tested"}

    assert unread_fields(SMOKE, go) == []
