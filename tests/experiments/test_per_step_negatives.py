"""Chains of arithmetic with a shortcut: problems, demonstrations, what is learnt of, claims."""

import dataclasses

import numpy as np
import pytest
from support.experiment_checks import Made, changed, outline, refusal, verdicts

from experiments.preference import per_step_negatives
from experiments.preference.parts import chains, chains_stages
from experiments.preference.parts.chains_report import METHODS
from kd_jax.launch.artefacts import Artefact

SMOKE, LAPTOP = (per_step_negatives.PRESETS[name] for name in ("smoke", "laptop"))
TASK = LAPTOP.task


def test_stages_and_what_they_depend_on():
    begun, written, pits = ("base_0",), ("base_0", "written_0"), ("base_0", "pits_0")
    assert outline(per_step_negatives, SMOKE) == {
        "base_0": (),
        "written_0": begun,
        "pits_0": written,
        "sft_0": begun,
        "rft_0": written,
        "dpo_0": written,
        "per_step_0": pits,
    }
    everything = set(outline(per_step_negatives, SMOKE))
    after = {"written_0", "pits_0", "rft_0", "dpo_0", "per_step_0"}
    for change, expected in (
        ({"beta": 0.2}, {"dpo_0", "per_step_0"}),
        ({"rollouts": 3}, {"pits_0", "per_step_0"}),
        ({"imitate": SMOKE.prefer}, set()),  # the same numbers
        ({"imitate": SMOKE.learn}, {"sft_0", "rft_0"}),
        ({"samples": 3}, after),
        ({"shortcut": 0.2}, everything),
    ):
        found = changed(per_step_negatives, SMOKE, dataclasses.replace(SMOKE, **change))
        assert found == expected, change


@pytest.mark.parametrize(
    ("flag", "value"),
    [("length", "2"), ("shortcut", "1.5"), ("factors", "2"), ("modulus", "5"), ("rollouts", "0")],
)
def test_bad_values_are_refused(flag, value):
    assert flag.replace("modulus", "model.vocab") in refusal(
        per_step_negatives, "smoke", f"--{flag}", value
    )


@pytest.mark.parametrize("runs", [False, True])
def test_problems(runs):
    found = chains.drawn(TASK, 200, (0, 1), runs=runs)
    assert found.prompts.shape == (200, TASK.steps + 2) and found.prompts.max() == TASK.equals
    for prompt, numbers, multiplies in zip(*found, strict=True):
        number = prompt[0]
        for token, said, times in zip(prompt[1:-1], numbers, multiplies, strict=True):
            # + 1 to + 10 are 11 to 20, times 2 to times 9 are 21 to 28.
            assert times == (token >= 21)
            number = (number * (token - 19) if times else number + token - 10) % 11
            assert said == number
        where = np.flatnonzero(multiplies)
        gaps = np.diff(where)
        assert TASK.steps - 1 not in where
        assert (gaps == 1).all() and len(where) in (2, 3) if runs else (gaps > 1).all()
    assert len({tuple(x) for x in found.multiplies}) == (5 if runs else 7)
    assert TASK.vocabulary == 31 and TASK.end == 30


def test_demonstrations_end_right_and_leave_out_some_multiplications():
    asked = chains.drawn(TASK, 500, (0, 1), runs=False)
    shown = chains.demonstrations(TASK, asked, (0, 2))
    assert all(chains.right(x, text) for x, text in zip(asked.numbers, shown, strict=True))
    wrong = shown != asked.numbers
    assert (wrong <= asked.multiplies).all()
    np.testing.assert_array_equal(shown[wrong], asked.before[wrong])
    left_out = chains.shortcuts(asked, shown.tolist())
    assert left_out == pytest.approx(TASK.shortcut, abs=0.05)
    assert chains.shortcuts(asked, asked.numbers.tolist()) == 0
    assert chains.shortcuts(asked, [text[:-1].tolist() for text in shown]) == 0
    every = chains.demonstrations(TASK._replace(shortcut=1.0), asked, (0, 2))
    assert chains.shortcuts(asked, every.tolist()) == 1


def test_the_verifier_looks_at_length_and_answer_alone():
    numbers = np.array([3, 4, 5])
    assert chains.right(numbers, [3, 4, 5]) and chains.right(numbers, np.array([9, 9, 5]))
    assert not chains.right(numbers, [3, 4, 6])
    assert not chains.right(numbers, [4, 5]) and not chains.right(numbers, [])


def artefact(asked, texts):
    """As a stage of self-play keeps them; texts [N][K]."""
    most = asked.numbers.shape[1] + 1
    tokens = np.array([[text + [0] * (most - len(text)) for text in own] for own in texts])
    kept = Artefact("written", "0123", None)
    vars(kept)["rows"] = {
        "tokens": tokens, "lengths": np.array([[len(text) for text in own] for own in texts])
    }  # fmt: skip
    return kept


def test_rft_learns_demonstrations_and_each_other_right_response_once():
    asked = chains_stages._learnt(SMOKE, 0)
    shown = chains.demonstrations(SMOKE.task, asked, (0, chains_stages.LAZY)).tolist()
    texts = []
    for numbers, demonstration in zip(asked.numbers.tolist(), shown, strict=True):
        other = [(numbers[0] + 1) % 3, *numbers[1:]]
        wrong = [*numbers[:-1], (numbers[-1] + 1) % 3]
        texts.append([other, wrong, demonstration, other, numbers[:-1]])
    rows = chains_stages._with_own(SMOKE, 0, artefact(asked, texts))
    answers = [
        x[w != 0][:-1].tolist() for x, w in zip(rows["targets"], rows["weights"], strict=True)
    ]
    expected = []
    for demonstration, own in zip(shown, texts, strict=True):
        expected += [demonstration] if own[0] == demonstration else [demonstration, own[0]]
    assert answers == expected and len(expected) > len(shown)
    first = chains_stages._demonstrated(SMOKE, 0)
    assert first["inputs"].shape == (SMOKE.problems, 2 * SMOKE.length + 2)


def test_the_first_wrong_response_that_has_all_its_steps():
    numbers = np.array([1, 2, 3])
    texts = [[1, 2, 3], [0, 0], [1, 2, 4], [0, 0, 0]]
    assert chains_stages._first_wrong(numbers, texts) == [1, 2, 4]
    assert chains_stages._first_wrong(numbers, texts[:2]) is None


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (("sft", "rft", "dpo", "per_step"), ["holds"] * 5),
        (("per_step", "dpo", "rft", "sft"), ["fails"] * 5),
    ],
)
def test_claims_on_endings_made_by_hand(tmp_path, order, expected):
    found = {}
    for seed in (0, 1):
        for method in METHODS:
            place = order.index(method) if method in order else 0
            right = 0.5 + 0.1 * place + 0.001 * seed
            last = {
                "step": 9,
                "chains/familiar_right": 0.9,
                "chains/broken_right": right,
                "chains/familiar_shortcuts": 1 - right,
                "chains/broken_shortcuts": 0.1,
            }
            found[f"{method}_{seed}"] = Made(history=[{**last, "chains/broken_right": 0.0}, last])
        found[f"written_{seed}"] = Made(values={"pairs": 5})
        found[f"pits_{seed}"] = Made({"pairs": 3, "wrong": 4}, {"places": np.array([0, 2, 2])})
    config = dataclasses.replace(SMOKE, seeds=2)
    results = per_step_negatives.report(config, found, tmp_path)
    assert verdicts(per_step_negatives, results) == expected
    assert results.values["dpo_over_rft"][0] == pytest.approx(10 if expected[0] == "holds" else -10)
    assert all(path.exists() for path in results.plots.values())
