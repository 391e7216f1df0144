"""Fine-tunes on disjoint authors, merged: stages, groups, claims on probabilities made by hand."""

import dataclasses

import numpy as np
import pytest
from support.experiment_checks import Made, changed, outline, refusal, verdicts

from experiments.merging import smollm_merge
from experiments.merging.lm import authors as authors_lib
from experiments.merging.lm import authors_report
from experiments.merging.lm.authors import HELD_OUT, Authors

SMOKE = smollm_merge.PRESETS["smoke"]
EXPERTS = ("model_A", "model_B")
MERGES = tuple(smollm_merge.MERGES)


def test_stages():
    expected = {"pretrained": ()} | dict.fromkeys(EXPERTS, ())
    expected |= {f"{name}_score": (name,) for name in EXPERTS} | dict.fromkeys(MERGES, EXPERTS)
    assert outline(smollm_merge, SMOKE) == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"density": 0.3}, {"ties"}),
        ({"scale": 0.3}, {"arithmetic"}),
        ({"drop": 0.9}, {"dare_ties"}),
        ({"asked": 4}, {"pretrained", "model_A_score", "model_B_score", *MERGES}),
        (
            {"learn": dataclasses.replace(SMOKE.learn, epochs=1)},
            {*EXPERTS, "model_A_score", "model_B_score", *MERGES},
        ),
        ({"authors": dataclasses.replace(SMOKE.authors, folder="elsewhere")}, set()),
    ],
)
def test_what_a_stage_depends_on(change, expected):
    assert changed(smollm_merge, SMOKE, dataclasses.replace(SMOKE, **change)) == expected


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--density", "1.5"), "density: got 1.5"),
        (("--drop", "1"), "drop: got 1"),
        (("--authors.groups", "1"), "groups: got 1, takes at least 2"),
    ],
)
def test_bad_values_are_refused_by_name(argv, said):
    assert said in refusal(smollm_merge, "smoke", *argv)


def test_groups_of_authors_are_disjoint():
    found = authors_lib.records(Authors(groups=3, each=2))
    assert list(found) == ["A", "B", "C", HELD_OUT]
    asked = [{record["question"] for record in group} for group in found.values()]
    assert [len(group) for group in asked] == [40] * 4
    assert len(set.union(*asked)) == 160


def artefacts(groups, learned, others, merged, held_out=0.1, n=8):
    """Each model's probability of the answers of its own group, of others', and of a merge's."""
    spread = np.linspace(-0.01, 0.01, n)
    found = {"pretrained": Made(rows=dict.fromkeys((*groups, HELD_OUT), 0.05 + spread))}
    for own in groups:
        rows = {g: (learned if g == own else others) + spread for g in groups}
        found[f"model_{own}_score"] = Made(rows=rows | {HELD_OUT: held_out + spread})
    for name in MERGES:
        rows = dict.fromkeys(groups, merged.get(name, 0.3) + spread)
        found[name] = Made(rows=rows | {HELD_OUT: held_out + spread})
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("merged", "learned", "others", "expected"),
    [
        ({"sum": 0.5, "ties": 0.4, "average": 0.3}, 0.9, 0.2, ["holds"] * 4),
        ({"sum": 0.2, "ties": 0.1, "average": 0.3}, 0.2, 0.4, ["fails"] * 4),
    ],
)
def test_claims_on_probabilities_made_by_hand(tmp_path, merged, learned, others, expected):
    config = dataclasses.replace(SMOKE, authors=Authors(groups=3))
    found = artefacts(config.authors.names, learned, others, merged)
    results = smollm_merge.report(config, found, tmp_path)
    assert verdicts(smollm_merge, results) == expected
    table = {row["model"]: row for row in results.tables[0].rows}
    assert table["learned B"]["B"] == pytest.approx(learned)
    assert table["learned B"]["A"] == pytest.approx(others)
    assert table["average"]["learned answers"].estimate == pytest.approx(merged["average"])
    assert table[authors_report.OTHERS]["learned answers"].estimate == pytest.approx(others)
    assert all(path.exists() for path in results.plots.values())


@pytest.mark.slow
def test_the_other_models_are_those_of_the_other_groups(tmp_path):
    found = artefacts(("A", "B"), 0.9, 0.2, {})
    found["model_A_score"].rows["B"][:] = 0.4
    labels = {name: name.replace("model_", "learned ").replace("_score", "") for name in found}
    labels |= {name: merge.label for name, merge in smollm_merge.MERGES.items()}
    results = authors_report.results(labels, ("A", "B"), found, tmp_path)
    others = np.array(results.values["learned"][authors_report.OTHERS])
    np.testing.assert_allclose(others[8:], 0.4)  # of B's questions: the model that learned A
    np.testing.assert_allclose(others[:8].mean(), 0.2)
