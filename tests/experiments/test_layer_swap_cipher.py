"""Layer swapping between two languages: stages, rows, claims on figures made by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.experiment_checks import Made, changed, outline, refusal, verdicts

from experiments.distillation.common.text import CHARACTERS, Text
from experiments.merging import layer_swap_cipher
from experiments.merging.lm import ciphers, swap_report, words

SMOKE = layer_swap_cipher.PRESETS["smoke"]


def test_stages():
    expected = {}
    for seed in SMOKE.repetitions:
        first, base, task, language = (f"{x}_{seed}" for x in ("first", "base", "task", "language"))
        expected |= {first: (), base: (first,), task: (base,), language: (base,)}
        expected |= {f"merged_{seed}": (base, task, language)}
    assert outline(layer_swap_cipher, SMOKE) == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"asked": 8}, {"merged"}),
        ({"transitions": (0, 1)}, {"merged"}),
        ({"learn": dataclasses.replace(SMOKE.learn, rate=1e-4)}, {"task", "language", "merged"}),
        (
            {"both": dataclasses.replace(SMOKE.both, rate=1e-4)},
            {"base", "task", "language", "merged"},
        ),
        ({"share": 0.3}, {"first", "base", "task", "language", "merged"}),
        ({"text": dataclasses.replace(SMOKE.text, folder="elsewhere")}, set()),
    ],
)
def test_what_a_stage_depends_on(change, expected):
    found = changed(layer_swap_cipher, SMOKE, dataclasses.replace(SMOKE, **change))
    assert {name.partition("_")[0] for name in found} == expected


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--share", "1"), "share: got 1"),
        (("--transitions", "-1"), "transitions: takes numbers from 0"),
        (("--model.depth", "1"), "model.depth: got 1, takes at least 2"),
    ],
)
def test_bad_values_are_refused_by_name(argv, said):
    assert said in refusal(layer_swap_cipher, "smoke", *argv)


def test_a_character_and_its_cipher_start_alike():
    table = jnp.asarray(np.random.default_rng(0).normal(size=(2 * len(CHARACTERS), 3)))
    params = {"embed": {"embedding": table}, "unembed": {"embedding": -table}, "layers": {}}
    found = layer_swap_cipher._alike(params, jax.random.key(0))
    for name, part in (("embed", table), ("unembed", -table)):
        of_a, of_b = np.split(np.asarray(found[name]["embedding"]), 2)
        np.testing.assert_array_equal(of_a, part[: len(CHARACTERS)])
        apart = of_b - of_a
        np.testing.assert_allclose(apart, apart[:1].repeat(len(apart), 0), atol=1e-6)
        assert 0 < np.abs(apart).max() < 0.1


def test_swaps_are_all_that_are_no_expert():
    config = dataclasses.replace(SMOKE, transitions=(0,))
    assert config.swaps == [(0, 1, 0), (1, 0, 0)]
    six = dataclasses.replace(config, model=dataclasses.replace(config.model, depth=6))
    assert len(six.swaps) == 20 and (3, 2, 0) in six.swaps
    assert all(0 < bottom + top < 6 for bottom, top, _ in six.swaps)


SWAPS = [(0, 1, 0), (1, 0, 0), (1, 1, 0)]


def merged(right, swaps, validation, outer):
    """One seed: per cent of the task in B by model, and what each swap reaches."""
    values = {f"{name}/{m}": 1.0 for name in swap_report.MODELS for m in swap_report.MEASURES}
    values |= {f"{name}/task in B": x for name, x in zip(swap_report.MODELS, right, strict=True)}
    inner = {"task": 1.0 - outer["task"], "language": 1.0 - outer["language"]}
    rows = {
        f"{name}_change": np.array([outer[name] / 2, inner[name], outer[name] / 2])
        for name in outer
    }
    rows |= {"swaps": np.array(swaps), "swaps_validation": np.array(validation)}
    return Made(values | {"chosen": [1, 1, 0], "scale": 0.4}, rows)


@pytest.mark.parametrize(
    ("right", "validation", "outer", "expected"),
    [
        ((10, 30, 35, 40, 42, 60), (20, 30, 60), {"task": 0.4, "language": 0.8}, ["holds"] * 5),
        ((10, 30, 65, 70, 62, 60), (60, 30, 20), {"task": 0.8, "language": 0.4}, ["fails"] * 5),
    ],
)
def test_claims_on_figures_made_by_hand(tmp_path, right, validation, outer, expected):
    # One end: the test result of the swap that validation prefers, though the other's is higher.
    swaps = [x + 1.0 for x in validation[:2]][::-1] + [validation[2] + 1.0]
    found = [merged([x + 0.1 * seed for x in right], swaps, validation, outer) for seed in range(3)]
    results = swap_report.results(3, SWAPS, found, tmp_path)
    assert verdicts(layer_swap_cipher, results) == expected
    assert results.values["right"]["one end"][0] == min(validation[:2]) + 1.0
    assert results.values["right"]["better expert"][0] == max(right[1:3])
    assert all(path.exists() for path in results.plots.values())
    alone = swap_report.results(3, SWAPS, found[:1], tmp_path)
    assert verdicts(layer_swap_cipher, alone) == ["not tested"] * 5


def test_questions_end_in_the_answer_that_is_weighed():
    text = Text(length=24)
    batch = words.questions(text, "test", 12)
    for inputs, targets, weights in zip(
        batch["inputs"], batch["targets"], batch["weights"], strict=True
    ):
        given = "".join(CHARACTERS[i] for i, w in zip(inputs, weights, strict=True) if not w)
        answer = "".join(CHARACTERS[i] for i, w in zip(targets, weights, strict=True) if w)
        word = given.rstrip("\n").rpartition("\n")[2].removesuffix(",")
        assert answer == word[::-1] + "\n"
        assert word in words.words(text, "test")
    known = set(words.words(text, "train"))
    assert not known & {*words.words(text, "test"), *words.words(text, "validation")}
    lines = "".join(CHARACTERS[i] for i in words.task(text, 4).flatten()).split("\n")[:-1]
    assert {line.partition(",")[0] for line in lines} <= known


@pytest.mark.parametrize(
    "cipher", [ciphers.OTHER_CASE, ciphers.OTHER_ALPHABET], ids=["case", "own"]
)
def test_a_second_language_is_one_to_one(cipher):
    batch = words.questions(Text(length=24), "validation", 4)
    other = ciphers.enciphered(batch, cipher)
    back = np.zeros(2 * len(CHARACTERS), int)
    back[cipher] = np.arange(len(CHARACTERS))
    np.testing.assert_array_equal(back[other["inputs"]], batch["inputs"])
    assert (other["targets"] != batch["targets"]).mean() > 0.5
    np.testing.assert_array_equal(other["weights"], batch["weights"])
