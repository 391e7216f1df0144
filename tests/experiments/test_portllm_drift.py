"""An old patch on an updated model: stages, what they depend on, claims on figures made by hand."""

import dataclasses

import numpy as np
import pytest
from support.experiment_checks import Made, changed, outline, refusal, verdicts

from experiments.merging import portllm_drift
from kd_jax.trees import paths

SMOKE = portllm_drift.PRESETS["smoke"]


def test_stages():
    config = dataclasses.replace(SMOKE, seeds=1)
    models = [f"updated_{i}_0" for i in range(3)]
    patches = [f"patch_{i}_0" for i in range(3)]
    expected = {models[0]: (), models[1]: (models[0],), models[2]: (models[1],)}
    expected |= {patch: (model,) for patch, model in zip(patches, models, strict=True)}
    assert outline(portllm_drift, config) == expected | {"ported_0": (*models, *patches)}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"adapter": dataclasses.replace(SMOKE.adapter, rank=2)}, {"patch", "ported"}),
        ({"patch": dataclasses.replace(SMOKE.patch, rate=1e-4)}, {"patch", "ported"}),
        (
            {"pretrain": dataclasses.replace(SMOKE.pretrain, rate=1e-4)},
            {"updated", "patch", "ported"},
        ),
        ({"text": dataclasses.replace(SMOKE.text, folder="elsewhere")}, set()),
    ],
)
def test_what_a_stage_depends_on(change, expected):
    found = changed(portllm_drift, SMOKE, dataclasses.replace(SMOKE, **change))
    assert {name.partition("_")[0] for name in found} == expected


def test_an_update_leaves_the_first_model_as_it_is():
    other = dataclasses.replace(SMOKE, update=dataclasses.replace(SMOKE.update, rate=1e-4))
    found = changed(portllm_drift, SMOKE, other)
    assert not any(name.startswith(("updated_0", "patch_0")) for name in found)
    assert {"updated_1_0", "patch_1_0", "ported_0"} <= found


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--adapter.rank", "0"), "adapter.rank: got 0, takes at least 1"),
        (("--legs", "0"), "legs"),
    ],
)
def test_bad_values_are_refused_by_name(argv, said):
    assert said in refusal(portllm_drift, "smoke", *argv)


def test_a_patch_trains_and_keeps_adapters_alone():
    stages = {stage.name: stage for stage in portllm_drift.stages(SMOKE)}
    start = stages["updated_0_0"].build({})
    training = stages["patch_0_0"].build({"updated_0_0": _Planned(start.weights)})
    names = paths(training.weights.abstract)
    assert names and all(name.endswith(("kernel/a", "kernel/b")) for name in names)
    assert training.frozen is not None and set(training.frozen.abstract) == {"base"}


class _Planned:
    def __init__(self, made):
        self.made = made

    def weights(self):
        return self.made


def ported(updated, old, new, residue=(0.0, 0.2, 0.6)):
    rows = {"updated": updated, "ported": old, "new": new, "residue": residue}
    rows["drift"] = (0.0, 0.1, 0.2)
    return [
        Made(rows={name: np.array(x, float) + 0.01 * seed for name, x in rows.items()})
        for seed in range(3)
    ]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (ported((5, 5, 5), (2, 2.2, 3.0), (2, 2.1, 2.1)), ["holds"] * 4),
        (ported((5, 4, 3), (2, 6, 5), (2, 2, 2), (0, 0.9, 0.9)), ["fails"] * 4),
    ],
)
def test_claims_on_figures_made_by_hand(tmp_path, found, expected):
    artefacts = {f"ported_{seed}": x for seed, x in enumerate(found)}
    config = dataclasses.replace(SMOKE, seeds=3)
    results = portllm_drift.report(config, artefacts, tmp_path)
    assert verdicts(portllm_drift, results) == expected
    assert [row["steps since"] for row in results.tables[0].rows] == [0, 20, 40]
    assert all(path.exists() for path in results.plots.values())
