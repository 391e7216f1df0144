"""A stored teacher's students: stages, what they depend on, claims on ends made by hand."""

import dataclasses

import numpy as np
import pytest
from support.experiment_checks import (
    Made,
    changed,
    outline,
    refusal,
    verdicts,
)

from experiments.distillation import offline_topk
from experiments.distillation.common import text as text_lib
from experiments.distillation.parts import offline_report, offline_stages

SMOKE = offline_topk.PRESETS["smoke"]


@pytest.mark.parametrize("preset", offline_topk.PRESETS)
def test_stages_of_the_presets(preset):
    config = offline_topk.PRESETS[preset]
    expected = {"teacher": ()} | {f"cache_{k}": ("teacher",) for k in config.kept}
    for seed in config.repetitions:
        own = {f"written_{seed}": ("teacher",), f"alone_{seed}": (), f"same_{seed}": ()}
        own[f"sampled_{seed}"] = ("teacher", f"written_{seed}")
        for rule in config.rules:
            own |= {f"{rule}_{k}_{seed}": ("teacher", f"cache_{k}") for k in config.kept}
        scores = {f"{x}_score": ("teacher", x) for x in own if not x.startswith("written")}
        expected |= own | scores
    assert outline(offline_topk, config) == expected


def test_no_student_has_the_teacher_in_memory():
    found = {name: Made() for name in ("teacher", "cache_2", "written_0")}
    trained = [
        stage.build(found)
        for stage in offline_topk.stages(SMOKE)
        if not stage.name.endswith("_score") and stage.name.split("_")[0] not in _NOT_STUDENTS
    ]
    assert len(trained) == len(SMOKE.rules) * len(SMOKE.kept) + len(offline_stages.TEXTS)
    assert all(training.frozen is None for training in trained)


_NOT_STUDENTS = ("teacher", "cache", "written")


def test_what_a_stage_depends_on():
    every = set(outline(offline_topk, SMOKE))
    of_k = {x for x in every if x.startswith(("cache_", "tail_"))}
    of_prompts = {x for x in every if x.startswith(("written", "sampled", "same"))}
    students = {x for x in every if not x.startswith(_NOT_STUDENTS)}
    for change, expected in (
        ({"bits": 16}, of_k),
        ({"samples": 65}, of_prompts),
        ({"prompt": 9}, of_prompts),
        ({"learn": dataclasses.replace(SMOKE.learn, rate=1e-4)}, students),
        ({"learn_teacher": dataclasses.replace(SMOKE.learn_teacher, rate=1e-4)},
         every - {"alone_0", "same_0"}),
        ({"text": dataclasses.replace(SMOKE.text, length=31)}, every),
    ):  # fmt: skip
        found = changed(offline_topk, SMOKE, dataclasses.replace(SMOKE, **change))
        assert found == expected, change


def test_both_students_of_samples_start_from_the_same_beginnings():
    prompts = offline_stages._prompts(SMOKE, 5)
    rows = text_lib.rows(offline_stages._beginnings(SMOKE, 5), given=SMOKE.prompt)
    np.testing.assert_array_equal(rows["inputs"][:, : SMOKE.prompt], prompts)
    # The first character behind the prompt is the first to be learnt.
    assert (rows["weights"][0] != 0).argmax() == SMOKE.prompt - 1


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--kept", "97"), "k: got 97, takes 1 to the vocabulary's 96"),
        (("--kept", "2", "2"), "kept: got 2 2, takes each once"),
        (("--rules", "tail", "tail"), "rules: got tail tail, takes each once"),
        (("--bits", "3"), "bits: got 3, takes 4 to 16"),
        (("--samples", "0"), "samples: got 0"),
    ],
)
def test_bad_values_are_refused_by_name(argv, said):
    assert said in refusal(offline_topk, "smoke", *argv)


def artefacts(ends, rules, kept):
    """Two repetitions; a student's KL is ends[name], its NLL 1 more; seeds differ a little."""
    found = {f"cache_{k}": Made({"tokens": 10, "bytes": 90, "bytes_per_token": 9.0}) for k in kept}
    for seed in (0, 1):
        for name in (*(f"{rule}_{k}" for rule in rules for k in kept), *offline_stages.TEXTS):
            value = ends[name] + 0.01 * seed
            found[f"{name}_{seed}_score"] = Made({"forward": value, "nll": 1 + value})
    return found


def judged(ends, folder, rules=tuple(offline_stages.RULES), kept=(1, 2, 4, 96)):
    made = artefacts(ends, rules, kept)
    results = offline_report.results(rules, kept, (0, 1), made, folder, 96)
    assert all(path.exists() for path in results.plots.values())
    return verdicts(offline_topk, results)


def test_claims(tmp_path):
    ends = {f"{rule}_{k}": 0.3 for rule in offline_stages.RULES for k in (1, 2, 4, 96)}
    ends |= {f"renormalised_{k}": 0.5 for k in (1, 2, 4)}
    ends |= {"alone": 0.3, "sampled": 0.3, "same": 0.4}
    assert judged(ends, tmp_path) == ["holds"] * 6
    worse = ends | {"tail_2": 0.6, "partial_96": 0.31, "sampled": 0.5}
    assert judged(worse, tmp_path) == ["holds", "fails", "holds", "fails", "fails", "fails"]
    few = judged(ends, tmp_path, ("tail", "renormalised"), (2,))
    assert few == ["not tested", "holds", "not tested", "not tested", "holds", "holds"]
