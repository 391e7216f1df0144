"""Re-introduction in context: what the contexts hold, stages, and claims on scores made by hand."""

import dataclasses

import numpy as np
import pytest
from support.experiment_checks import Made, changed, help_of, outline, refusal, verdicts

from experiments.unlearning import ununlearning
from experiments.unlearning.common import qa, runs
from experiments.unlearning.parts import prompts
from kd_jax.evaluation import reintroduction
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.mesh import make_mesh

SMOKE, LAPTOP = (ununlearning.PRESETS[name] for name in ("smoke", "laptop"))
TOLD = ("related", "described", "verbatim")


@pytest.fixture
def words():
    """The questions of the smoke preset and their tokeniser."""
    return qa.load(SMOKE.data), runs.language(SMOKE, 0).tokenizer()


def test_all_contexts_are_of_one_length_and_end_with_the_question(words):
    questions, tokenizer = words
    plain = prompts.examples(tokenizer, questions, "plain", 48)
    for kind in prompts.KINDS:
        for one, bare in zip(prompts.examples(tokenizer, questions, kind, 48), plain, strict=True):
            assert one.answer == bare.answer
            extra = 0 if kind == "plain" else 48
            assert len(one.prompt) == extra + len(bare.prompt)
            assert one.prompt[extra:] == bare.prompt


def test_contexts_tell_what_they_say(words):
    """And nothing of the answer before the kinds that do."""
    questions, tokenizer = words
    for number, record in enumerate(questions.forget):
        rows = {k: prompts.rows_of(k, number, questions) for k in prompts.KINDS if k != "plain"}
        asked = (record["question"], record["answer"])
        assert rows["verbatim"][-1] == asked
        paraphrased = (record["paraphrased_question"], record["paraphrased_answer"])
        assert rows["described"][-1] == paraphrased
        assert rows["verbatim"][:-1] == rows["described"][:-1] == rows["related"]
        given = [r for r in questions.forget if (r["question"], r["answer"]) in rows["related"]]
        assert given and all(r["author"] == record["author"] for r in given)
        assert record not in given
        shares = [
            reintroduction.copyable(answer, record["answer"]) for _, answer in rows["related"]
        ]
        assert shares == sorted(shares)
        kept = {(r["question"], r["answer"]) for r in questions.retain}
        assert set(rows["irrelevant"]) == kept
        told = tokenizer.decode(prompts.context(tokenizer, rows["verbatim"], 48))
        assert reintroduction.gives_away(told, record["answer"])
        for kind in ("irrelevant", "related", "described"):
            told = tokenizer.decode(prompts.context(tokenizer, rows[kind], 48))
            assert not reintroduction.gives_away(told, record["answer"]), kind
    starts = {prompts.rows_of("irrelevant", i, questions)[0] for i in range(20)}
    assert len(starts) > 5


def test_a_context_longer_than_its_rows_is_refused(words):
    questions, tokenizer = words
    rows = prompts.rows_of("related", 0, questions)
    with pytest.raises(ValueError, match="context: got 100000, takes at most"):
        prompts.context(tokenizer, rows, 100_000)


def test_stages():
    expected = {
        "finetune_0": (),
        "finetune_0_score": ("finetune_0",),
        "reference_0": ("finetune_0",),
        "npo_rt_0": ("finetune_0", "reference_0"),
        "npo_rt_0_score": ("npo_rt_0",),
        "retrain_0": (),
        "retrain_0_score": ("retrain_0",),
    }
    expected |= {f"{name}_contexts": (name,) for name in ("finetune_0", "npo_rt_0", "retrain_0")}
    assert outline(ununlearning, SMOKE) == expected
    twice = outline(ununlearning, dataclasses.replace(SMOKE, seeds=2))
    assert set(twice) == {*expected, *(name.replace("_0", "_1") for name in expected)}


def test_what_a_stage_depends_on():
    every = set(outline(ununlearning, SMOKE))
    contexts = {name for name in every if name.endswith("_contexts")}
    scores = {name for name in every if name.endswith("_score")}
    unlearnt = {name for name in every if name.startswith("npo_rt")}
    for change, expected in (
        ({"context": 40}, contexts),
        ({"generate": 3}, contexts | scores),
        ({"beta": 0.2}, unlearnt),
        ({"score_batch": 8}, set()),
        ({"seed": 1}, None),
    ):
        other = dataclasses.replace(SMOKE, **change)
        if expected is None:
            assert not every & set(outline(ununlearning, other))
        else:
            assert changed(ununlearning, SMOKE, other) == expected, change


def test_a_plan_has_both_lengths():
    language = runs.language(SMOKE, 0)
    stage = next(s for s in ununlearning.stages(SMOKE) if s.name == "retrain_0_contexts")
    planned = Artefact("retrain_0", "", None, language.weights.abstract)
    found = stage.build({"retrain_0": planned}).plan(make_mesh(SMOKE.mesh))
    assert set(found) == {"answers", "answers_in_context", "writing", "writing_in_context"}
    for name, length in (("answers", 64), ("answers_in_context", 112)):
        assert found[name].arguments[-1]["inputs"].shape == (16, length)
    assert found["writing_in_context"].arguments[1]["tokens"].shape == (16, 112)


def test_the_command_line(capsys):
    assert "Tokens of a context" in help_of(ununlearning, "laptop", capsys)
    assert "context: got 0" in refusal(ununlearning, "smoke", "--context", "0")
    assert "generate: got 0" in refusal(ununlearning, "smoke", "--generate", "0")
    own = ("--data.forget", "mine.jsonl", "--data.retain", "keep.jsonl")
    assert "data.forget: got mine.jsonl" in refusal(ununlearning, "smoke", *own)


def made(recalls, losses, seeds=1):
    """Contexts' artefacts: {model: {kind: its recall and loss}}, the same where none is given."""
    spread = np.linspace(-0.01, 0.01, 10)
    found = {}
    for seed in range(seeds):
        for model in ununlearning.MODELS:
            rows = {}
            for kind in prompts.KINDS:
                level = recalls.get(model, {}).get(kind, 0.2)
                rows[f"{kind}_rouge"] = level + spread
                rows[f"{kind}_loss"] = losses.get(model, {}).get(kind, 2.0) + spread[::-1] + seed
                rows[f"{kind}_copyable"] = np.full(10, 0.5)
            found[f"{model}_{seed}_contexts"] = Made({"texts": []}, rows)
            values = {f"{part}_probability": 0.5 for part in ("forget", "retain")}
            columns = {f"{part}_loss": 0.7 + spread for part in ("forget", "retain")}
            found[f"{model}_{seed}_score"] = Made(values, columns)
    return found


BACK = {"verbatim": 0.9, "described": 0.5, "related": 0.4}
LIKELY = {"verbatim": 0.1, "described": 0.5, "related": 0.9}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recalls", "losses", "expected"),
    [
        ({"npo_rt": BACK, "retrain": BACK}, {"npo_rt": LIKELY, "retrain": LIKELY}, ["holds"] * 5),
        # A gain that any context brings is none.
        (
            {m: dict.fromkeys((*TOLD, "irrelevant"), 0.9) for m in ("npo_rt", "retrain")},
            {m: dict.fromkeys((*TOLD, "irrelevant"), 0.1) for m in ("npo_rt", "retrain")},
            ["fails"] * 5,
        ),
        (
            {"retrain": BACK},
            {"npo_rt": LIKELY | {"related": 3.0}},
            ["fails", "holds", "holds", "fails", "fails"],
        ),
    ],
)
def test_claims_on_scores_made_by_hand(tmp_path, recalls, losses, expected):
    results = ununlearning.report(SMOKE, made(recalls, losses), tmp_path)
    assert verdicts(ununlearning, results) == expected
    assert verdicts(ununlearning, results, "smoke") == ["not tested"] * 5
    assert len(results.tables) == 5 and len(results.plots) == 4
    assert all(path.exists() for path in results.plots.values())
    gain = results.values["net_gains"]["rouge"]["retrain"]["verbatim"]["estimate"]
    wanted = recalls.get("retrain", {})
    assert gain == pytest.approx(wanted.get("verbatim", 0.2) - wanted.get("irrelevant", 0.2))
    figure = results.values["figures"]["probability"]["npo_rt"]["described"]["estimate"]
    assert figure == pytest.approx(
        np.exp(-losses.get("npo_rt", {}).get("described", 2.0)), rel=1e-3
    )


@pytest.mark.slow
def test_a_claim_that_questions_do_not_settle(tmp_path):
    found = made({}, {})
    rows = found["npo_rt_0_contexts"].rows
    rows["verbatim_rouge"] = 0.2 + np.linspace(-0.2, 0.21, 10)
    results = ununlearning.report(SMOKE, found, tmp_path)
    assert verdicts(ununlearning, results)[0] == "inconclusive"


def test_several_seeds_are_averaged(tmp_path):
    config = dataclasses.replace(SMOKE, seeds=2)
    results = ununlearning.report(config, made({"retrain": BACK}, {}, seeds=2), tmp_path)
    figure = results.values["figures"]["probability"]["retrain"]["plain"]
    assert figure["estimate"] == pytest.approx((np.exp(-2) + np.exp(-3)) / 2, rel=1e-3)
    assert results.values["net_gains"]["rouge"]["retrain"]["verbatim"]["low"] == pytest.approx(0.7)
