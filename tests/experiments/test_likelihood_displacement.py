"""Who gains by a preference: stages, data, the panel, claims on endings made by hand."""

import dataclasses

import numpy as np
import pytest
from support.experiment_checks import Made, changed, outline, refusal, verdicts

from experiments.preference import likelihood_displacement
from experiments.preference.parts import displaced_toy, displaced_training, refusals
from experiments.preference.parts.displaced_report import ARMS
from experiments.preference.parts.displaced_stages import SCORES

SMOKE = likelihood_displacement.PRESETS["smoke"]


@pytest.mark.parametrize("preset", ["smoke", "laptop"])
def test_three_stages_a_seed_and_a_panel(preset):
    config = likelihood_displacement.PRESETS[preset]
    expected = {"toy": (), "word_start": (), "pair_start": ()}
    for seed in config.repetitions:
        expected[f"word_{seed}"] = ("word_start",)
        expected[f"pairs_{seed}"] = ("pair_start",)
        expected[f"kept_{seed}"] = ("pair_start", f"pairs_{seed}")
    assert outline(likelihood_displacement, config) == expected


def test_what_a_stage_depends_on():
    every = set(outline(likelihood_displacement, SMOKE)) - {"toy"}

    def of(*parts):
        return {f"{part}_{seed}" for part in parts for seed in SMOKE.repetitions}

    for name, value, expected in (
        ("rate", 1e-3, every),
        ("rank", 2, every),
        ("model", "elsewhere", every),
        ("word_start_steps", 5, {"word_start"} | of("word")),
        ("pair_start_steps", 5, {"pair_start"} | of("pairs", "kept")),
        ("word_steps", 5, of("word")),
        ("pair_steps", 5, of("pairs", "kept")),
        ("pairs", 6, of("pairs", "kept")),
        ("share", 0.3, of("kept")),
        ("kept_steps", 5, of("kept")),
        ("toy_seeds", 5, {"toy"}),
    ):
        config = dataclasses.replace(SMOKE, **{name: value})
        assert changed(likelihood_displacement, SMOKE, config) == expected, name


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--share", "0"), "share: got 0.0, takes a number above 0"),
        (("--rank", "0"), "rank"),
        (("--model", "nowhere"), "there is no nowhere; give --model"),
    ],
)
def test_bad_values_are_refused_by_name(argv, said):
    if argv[0] == "--model":
        config = dataclasses.replace(SMOKE, model=argv[1])
        with pytest.raises(Exception, match=said):
            likelihood_displacement._opened(config).tokenizer()
    else:
        assert said in refusal(likelihood_displacement, "smoke", *argv)


def test_pairs_prefer_refusals_to_others_and_to_compliance_by_turns():
    pairs = refusals.draw(12, seed=3)
    assert pairs == refusals.draw(12, seed=3) != refusals.draw(12, seed=4)
    for i, (question, chosen, rejected) in enumerate(pairs):
        assert question in refusals.REQUESTS[:-4]
        assert chosen in refusals.REFUSALS and chosen != rejected
        assert rejected in (refusals.REFUSALS if i % 2 else refusals.COMPLIANCES)


def test_batches_of_words_and_of_pairs():
    language = likelihood_displacement._opened(SMOKE)
    words = displaced_training.words(language, refusals.YES_NO[:3])
    np.testing.assert_array_equal(words["chosen"]["inputs"], words["rejected"]["inputs"])
    np.testing.assert_array_equal(words["chosen"]["weights"].sum(1), 1)
    assert len(set(words["chosen"]["targets"][words["chosen"]["weights"] > 0])) == 1
    pairs = displaced_training.encoded(language, refusals.draw(4, 0))
    answers = displaced_training.answers(language, refusals.REQUESTS[-2:], refusals.REFUSALS)
    assert pairs["chosen"]["inputs"].shape[1] == answers["inputs"].shape[1]
    assert len(answers["inputs"]) == 2 * len(refusals.REFUSALS)
    unknown = language.tokenizer().unk_id
    for batch in (words["chosen"], pairs["chosen"], pairs["rejected"], answers):
        assert not (batch["inputs"] == unknown).any() and (batch["weights"].sum(1) > 0).all()


def test_alike_rows_of_the_unembedding_displace():
    found = displaced_toy.measured(20)
    change, third = found["toy_change"].mean(1), found["toy_third"].mean(1)
    assert change[0] > 2 and change[-1] < 0
    assert third[0] == 0 and third[-1] > 0.4


def toy(sign):
    change = np.stack([sign * np.array([1.0, 1.1, 1.2]) * (2 - i) for i in range(5)])
    return Made(rows={"toy_change": change, "toy_third": 2.5 - change})


def endings(sign, seeds):
    made = {}
    for seed in seeds:
        x = sign * (1 + 0.1 * seed)
        made[f"word_{seed}"] = Made(
            values={"winners": "a|b", "follows": 0.5 * x},
            rows={
                "changes": np.array([-x, -2.0, x]),
                "before": np.full(3, 0.1),
                "after": np.full(3, 0.2),
            },
        )
        strengths = dict(zip(SCORES, (-0.2, -0.5, -0.1, -0.2), strict=True))
        made[f"pairs_{seed}"] = Made(
            values={"falling": 0.5} | {f"spearman_{n}": s * x for n, s in strengths.items()}
        )
        made[f"kept_{seed}"] = Made(
            values={
                f"{arm}_{what}": (x if arm == "lowest" and what in ("chosen", "refusals") else 0.0)
                for arm in ARMS
                for what in ("chosen", "rejected", "refusals", "compliances")
            }
        )
    return made


@pytest.mark.parametrize(("sign", "expected"), [(1, "holds"), (-1, "fails")])
def test_claims_on_endings_made_by_hand(tmp_path, sign, expected):
    config = dataclasses.replace(likelihood_displacement.PRESETS["laptop"], seed=0)
    made = endings(sign, config.repetitions) | {"toy": toy(sign)}
    results = likelihood_displacement.report(config, made, tmp_path)
    assert verdicts(likelihood_displacement, results) == [expected] * 10
    assert all(path.exists() for path in results.plots.values())
    assert [row["word"] for row in results.tables[0].rows] == ["No", "Never", "Yes"]


def test_a_single_seed_is_not_tested(tmp_path):
    config = dataclasses.replace(SMOKE, seeds=1)
    made = endings(1, config.repetitions) | {"toy": toy(1)}
    results = likelihood_displacement.report(config, made, tmp_path)
    assert verdicts(likelihood_displacement, results)[:8] == ["not tested"] * 8
