"""The benchmark: every loss fits both students, strengths by validation, claims both ways."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.experiment_checks import (
    Made,
    changed,
    compiled_quickly,
    outline,
    refusal,
    verdicts,
)

from experiments.distillation import benchmark
from experiments.distillation.parts import benchmark_lessons, benchmark_report
from experiments.distillation.parts.benchmark_methods import METHODS

LAPTOP, SMOKE = benchmark.PRESETS["laptop"], benchmark.PRESETS["smoke"]
TRUTH = np.arange(50) % 10


def test_a_stage_a_student_loss_and_strength():
    found = outline(benchmark, LAPTOP)
    students = {name for name in found if name.split("_")[0] in LAPTOP.pairs}
    assert len(students) == 2 * (2 * (len(METHODS) - 1) + 1)
    assert found["same_kd_0"] == found["cross_at_1"] == ("teacher", "teacher_outputs")
    assert found["same_twin_1"] == ("twin_same", "twin_same_outputs")
    assert found["cross_ft_0"] == ("factor", "factor_outputs")
    assert found["cross_sskd_0"] == ("views", "views_outputs")
    assert found["same_nd_0"] == ("teacher", "teacher_outputs")
    assert set(outline(benchmark, SMOKE)) == {
        "teacher", "teacher_outputs", "same_ce_0", "same_at_0", "costs",
    }  # fmt: skip


def test_what_a_student_depends_on():
    every = set(outline(benchmark, SMOKE))
    slower = dataclasses.replace(SMOKE.learn, rate=1e-4)
    assert changed(benchmark, SMOKE, dataclasses.replace(SMOKE, learn=slower)) == every - {
        "teacher",
        "teacher_outputs",
    }
    elsewhere = dataclasses.replace(SMOKE.pictures, folder="elsewhere")
    assert changed(benchmark, SMOKE, dataclasses.replace(SMOKE, pictures=elsewhere)) == set()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--methods", "kd", "kd"), "methods: got kd kd, takes each once"),
        (("--methods", "nst"), "methods: got nst, takes some of ce kd"),
        (("--pairs", "other"), "pairs: got other, takes some of same cross"),
        (("--strengths", "0"), "strengths"),
        (("--seeds", "1"), "seeds: got 1, takes at least 2"),
        (("--pictures.fold", "3"), "pictures.fold: got 3, takes a divisor of 8"),
        (("--teacher-fold", "4"), "teacher.channels: got 4, takes 16, of its fold"),
    ],
)
def test_bad_values_are_refused_by_name(argv, said):
    assert said in refusal(benchmark, "smoke", *argv)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_loss_fits_a_student(name, monkeypatch):
    """Traced, not run, for the student of another family: taps, widths, sizes, gradients."""
    means = jnp.ones((10, LAPTOP.teacher.widths[-1]))
    here = benchmark_lessons._here(LAPTOP, LAPTOP.cross, {})._replace(
        labels=lambda: TRUTH, means=lambda: means
    )
    monkeypatch.setattr(benchmark_lessons, "_here", lambda *_: here)
    lesson = benchmark_lessons.lesson(LAPTOP, "cross", name, {})
    cost, beside = benchmark_lessons.cost(LAPTOP, lesson)
    alone = LAPTOP.learn.batch_size * 1e5
    assert cost > alone and beside >= 0
    wants_weights = {
        "cc",
        "vid",
        "ab",
        "ft",
        "crd",
        "srd",
        "review",
        "ickd",
        "ofa",
        "dual_head",
        "sskd",
    }
    assert (beside > 0) >= (name in wants_weights)


@pytest.mark.slow
def test_strength_scales_what_is_distilled_and_not_the_labels():
    lesson = benchmark_lessons.lesson(SMOKE, "same", "kd", {})
    rng = np.random.default_rng(0)
    batch = {
        "inputs": rng.integers(0, 256, (4, 8, 8, 1)).astype(np.uint8),
        "targets": np.arange(4, dtype=np.int32),
        "weights": np.ones(4, np.float32),
        "index": np.arange(4, dtype=np.int32),
        "view": np.zeros(4, np.int32),
        "teacher_logits": rng.normal(size=(4, 10)).astype(np.float32),
    }
    params = lesson.model.init(jax.random.key(0))
    found = []
    for strength in (1.0, 0.25):
        frozen = {"strength": jnp.float32(strength)}
        state = lesson.step.init(jax.random.key(1), params, frozen, batch)
        with compiled_quickly():
            found.append(jax.jit(lesson.step)(state, frozen, batch)[1])
    np.testing.assert_allclose(found[0]["ce"], found[1]["ce"], rtol=1e-6)
    np.testing.assert_allclose(0.25 * found[0]["part_0"], found[1]["part_0"], rtol=1e-6)


def ended(test, validation=50.0, seeds=2):
    """An artefact whose students are right on so many % of 50 test images, a bit more each seed."""

    def split(share):
        predicted = np.tile((TRUTH + 1) % 10, (seeds, 1))
        for seed in range(seeds):
            right = round(share / 2) + seed
            predicted[seed, :right] = TRUTH[:right]
        return predicted, 100 * (predicted == TRUTH).mean(1)

    rows = {}
    for name, share in (("test", test), ("validation", validation)):
        predicted, accuracy = split(share)
        rows |= {
            f"9/{name}/predicted": predicted,
            f"9/{name}/accuracy": accuracy,
            f"9/{name}/nll": np.ones(seeds),
        }
    return Made(values={"steps": 9}, rows=rows)


def published(pair, sign):
    """Test accuracies that follow the published ones, or go against them."""
    known = {n: getattr(m, pair) for n, m in METHODS.items() if getattr(m, pair) is not None}
    low, high = min(known.values()), max(known.values())
    return {n: 50 + 30 * sign * ((x - low) / (high - low) - 0.5) for n, x in known.items()}


def report(tmp_path, scores, pairs=("same", "cross")):
    found = {
        pair: {name: [ended(0.0, 40.0), ended(x, 60.0)] for name, x in scores[pair].items()}
        for pair in pairs
    }
    for pair in pairs:
        found[pair]["ce"] = found[pair]["ce"][1:]
    costs = {f"{pair}/{name}": [2.0, 3.0] for pair in pairs for name in scores[pair]}
    return benchmark_report.results(found, ended(90.0, seeds=1), costs, (0.1, 1.0), tmp_path)


def test_claims_on_endings_made_by_hand(tmp_path):
    scores = {pair: published(pair, 1) for pair in ("same", "cross")}
    for pair in scores:
        scores[pair]["standard"] = 70.0
    scores["same"]["kd"] = 52.0  # between VID and CRD, an image from each
    results = report(tmp_path, scores)
    assert verdicts(benchmark, results) == ["holds"] * len(benchmark.CLAIMS)
    assert results.values["same_strength"]["kd"] == 1.0
    assert all(path.exists() for path in results.plots.values())
    turned = {pair: published(pair, -1) for pair in ("same", "cross")}
    for pair in turned:
        turned[pair] |= {"standard": 30.0, "kd": 32.0, "ce": 40.0, "at": 45.0}
    turned["same"] |= {"dkd": 30.0, "crd": 30.0}
    found = verdicts(benchmark, report(tmp_path, turned))
    assert found == ["fails"] * len(benchmark.CLAIMS)


def test_claims_on_what_was_not_run(tmp_path):
    results = report(tmp_path, {"same": {"ce": 40.0, "kd": 50.0}}, pairs=("same",))
    found = verdicts(benchmark, results)
    assert found == ["holds"] + ["not tested"] * (len(found) - 2) + ["holds"]
