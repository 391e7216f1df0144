"""What unlearning experiments share: rows, sets of answers, figures, methods, intervals."""

import dataclasses

import jax
import numpy as np
import pytest
from support.experiment_checks import Made

from experiments.unlearning import npo_tofu
from experiments.unlearning.common import lm, qa, reporting, runs, scorers
from experiments.unlearning.common.methods import METHODS, Name, Setting
from kd_jax.data.vocabulary import WordTokenizer
from kd_jax.launch.claims import Effect
from kd_jax.models import decoder
from kd_jax.objectives.combinators import frozen_weights, own_weights
from kd_jax.types import Context

SMOKE = npo_tofu.PRESETS["smoke"]


def test_rows_weigh_the_answer_and_its_end_and_nothing_else():
    records = [
        {"question": "Who wrote it?", "answer": "Ada wrote it."},
        {"question": "When?", "answer": "In 1900, they say."},
    ]
    tokenizer = WordTokenizer.from_texts(qa.texts(qa.Questions(records, [])))
    rows = qa.answer_rows(tokenizer, records, 24)
    for i, record in enumerate(records):
        weighed = rows["weights"][i] == 1
        target, row = rows["targets"][i][weighed], rows["inputs"][i]
        assert tokenizer.decode(target) == f" {record['answer']}<eos>"
        assert set(rows["weights"][i]) == {0.0, 1.0}
        start = int(np.argmax(weighed))
        assert tokenizer.decode(row[: start + 1]) == f"Question: {record['question']}\nAnswer:"
        np.testing.assert_array_equal(row[start + 1 :][: len(target) - 1], target[:-1])
    other = qa.rows(tokenizer, records, ["Ada.", "In it, in it."], 24)
    assert other["weights"].sum(1).tolist() == [4, 8]  # the space before, words, signs, the end


def test_probabilities_and_truth_ratios_by_hand():
    def scores(*losses):
        tokens = np.array([2.0, 3.0])
        return {"log_prob": -np.array(losses) * tokens, "tokens": tokens}

    found = {}
    for name in ("forget", "retain"):
        found |= {
            name: scores(0.5, 1.0),
            f"{name}_paraphrased": scores(1.0, 2.0),
            f"{name}_perturbed_0": scores(2.0, 1.0),
            f"{name}_perturbed_1": scores(3.0, 3.0),
        }
    chances = scorers.probabilities(found)
    assert chances["forget_probability"] == pytest.approx((np.exp(-0.5) + np.exp(-1.0)) / 2)
    assert chances["retain_nll"] == pytest.approx(0.75)
    np.testing.assert_allclose(chances["forget_loss"], [0.5, 1.0])
    truth = scorers.truth_ratios(found, "forget", 2) | scorers.truth_ratios(found, "retain", 2)
    ratios = np.exp([1.0 - 2.5, 2.0 - 2.0])
    np.testing.assert_allclose(truth["forget_truth_ratio"], ratios)
    assert truth["forget_truth"] == pytest.approx((ratios[0] + 1.0) / 2)
    assert truth["retain_truth"] == pytest.approx((1.0 - ratios[0]) / 2)
    # Real authors have no paraphrases: the answer itself is right, and competes with the wrong.
    plain = {name: x for name, x in found.items() if "paraphrased" not in name}
    plain = {name.replace("retain", "real_authors"): x for name, x in plain.items()}
    truth = scorers.truth_ratios(plain, "real_authors", 2)
    np.testing.assert_allclose(truth["real_authors_truth_ratio"], np.exp([0.5 - 2.5, 1.0 - 2.0]))
    chosen = scorers.choices(plain, "real_authors", 2)["real_authors_probability"]
    p = np.exp(-np.array([[0.5, 2.0, 3.0], [1.0, 1.0, 3.0]]))
    assert chosen == pytest.approx((p[:, 0] / p.sum(1)).mean())


def test_sets_of_answers_pair_each_question_with_its_own_wrong_answers():
    data = dataclasses.replace(SMOKE.data, forget_authors=1, retain_authors=2)
    questions = qa.load(data)
    tokenizer = WordTokenizer.from_texts(qa.texts(questions))
    limits = {"length": 64, "keep": 30}
    sets = scorers.answer_sets(tokenizer, questions, **limits)
    for name, records in (("forget", questions.forget), ("retain", questions.retain[:30])):
        sets |= scorers.truth_sets(tokenizer, name, records, length=64, wrong=2)
    assert {name: len(x["index"]) for name, x in sets.items()} == {
        **dict.fromkeys(("forget", "forget_paraphrased"), 20),
        **dict.fromkeys(("forget_perturbed_0", "forget_perturbed_1"), 20),
        **dict.fromkeys(("retain", "retain_paraphrased"), 30),
        **dict.fromkeys(("retain_perturbed_0", "retain_perturbed_1"), 30),
    }

    def answer(name, row):
        part = sets[name]
        return tokenizer.decode(part["targets"][row][part["weights"][row] == 1], skip_special=True)

    for name, records in (("forget", questions.forget), ("retain", questions.retain)):
        for row in (0, 7, 19):
            assert answer(name, row) == f" {records[row]['answer']}"
            assert answer(f"{name}_paraphrased", row) == f" {records[row]['paraphrased_answer']}"
            for i in range(2):
                wrong = records[row]["perturbed_answer"][i]
                assert answer(f"{name}_perturbed_{i}", row) == f" {wrong}"


def test_holdout_authors_are_others():
    data = dataclasses.replace(SMOKE.data, forget_authors=1, retain_authors=2, holdout_authors=1)
    questions = qa.load(data)
    assert [len(part) for part in questions] == [20, 40, 20]
    asked = [{record["question"] for record in part} for part in questions]
    assert not asked[0] & asked[1] and not asked[0] & asked[2] and not asked[1] & asked[2]


def test_membership_is_told_by_the_loss():
    """Members (to forget) have a lower loss than the holdout: an AUC of 1; the reverse: 0."""

    def rows(loss):
        losses = np.asarray(loss, np.float64)
        return {"log_prob": -losses, "tokens": np.ones(3), "min_k": losses, "min_k_pp": -losses}

    low, high = rows([0.1, 0.2, 0.3]), rows([1.0, 2.0, 3.0])
    assert scorers.attacked({"forget": low, "holdout": high}) == {
        "loss_auc": 1.0,
        "min_k_auc": 1.0,
        "min_k_pp_auc": 0.0,
    }


# Methods.


def test_a_command_line_offers_every_method():
    assert set(METHODS) == set(Name.__args__)
    assert len({method.label for method in METHODS.values()}) == len(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_reads_the_parts_and_the_reference_that_it_names(name):
    """And no others: each is traced with those alone, and fails without one of them."""
    method = METHODS[name]
    config = dataclasses.replace(lm.TINY, vocab=32, width=16, mlp=16)
    model = decoder.decoder(config)
    reference = frozen_weights("reference") if method.reference else None
    setting = Setting(model, own_weights, reference, 0.1, config.depth, 10)  # pyright: ignore[reportArgumentType]
    objective = method.objective(setting)
    weights = jax.eval_shape(model.init, jax.random.key(0))
    frozen = {"reference": weights} if method.reference else {}
    batch = runs.batch_shapes(method.parts, 2, 8)

    def loss(weights, frozen, batch):
        aux, carry = objective.init(jax.random.key(0), weights, frozen, batch)
        ctx = Context(jax.random.key(1), np.int32(0))
        if objective.stats is not None:
            params = {"model": weights, "aux": aux}
            stats = objective.stats(params, carry, frozen, batch, ctx)
            ctx = ctx._replace(stats={name: term.value for name, term in stats.items()})
        return objective.loss({"model": weights, "aux": aux}, carry, frozen, batch, ctx).loss

    assert jax.eval_shape(loss, weights, frozen, batch).shape == ()
    for part in method.parts:
        fewer = {other: rows for other, rows in batch.items() if other != part}
        with pytest.raises((KeyError, ValueError)):
            jax.eval_shape(loss, weights, frozen, fewer)
    if method.reference:
        with pytest.raises(KeyError, match="reference"):
            jax.eval_shape(loss, weights, {}, batch)


# Figures.


def score(forget, retain):
    rows = {"forget_loss": np.asarray(forget), "retain_loss": np.asarray(retain)}
    values = {f"{part}_probability": float(np.exp(-rows[f"{part}_loss"]).mean()) for part in PARTS}
    return Made(values, rows)


PARTS = ("forget", "retain")


def test_figures_of_several_seeds_have_students_interval():
    """By hand: means 0.2 and 0.4; t(0.975, 1) = 12.7062, standard error 0.1."""
    found = [score(-np.log([0.1, 0.3]), [0.0]), score(-np.log([0.4, 0.4]), [0.0])]
    effect = reporting.figure(found, "forget_probability")
    np.testing.assert_allclose(effect, [0.3, 0.3 - 1.270620, 0.3 + 1.270620], rtol=1e-5)
    assert reporting.figure(found, "forget_rouge") is None


def test_figures_of_one_seed_have_an_interval_over_questions():
    one = [score(-np.log([0.1, 0.3, 0.2, 0.2]), [0.0] * 4)]
    low = [score(-np.log([0.05, 0.15, 0.1, 0.1]), [0.0] * 4)]
    effect = reporting.figure(one, "forget_probability")
    assert effect.estimate == pytest.approx(0.2)
    assert 0.1 < effect.low < 0.2 < effect.high < 0.3
    # Both sides see the same questions: here one is half of the other, whichever are drawn.
    np.testing.assert_allclose(reporting.share(low, one, "forget_probability"), 0.5)
    less = reporting.difference(low, one, "forget_probability")
    assert less.estimate == pytest.approx(-0.1) and less.high < 0


def test_a_figure_without_an_interval_is_shown_as_a_number():
    assert reporting.shown(reporting.over_seeds([0.25])) == 0.25
    assert reporting.shown(Effect(0.2, 0.1, 0.3)) == Effect(0.2, 0.1, 0.3)


def test_leakage_and_quality_are_against_the_retrained_model_of_the_same_seed():
    ratios = np.linspace(0.1, 1.0, 8)
    made = [
        Made({"min_k_auc": auc}, {"forget_truth_ratio": ratio})
        for auc, ratio in ((0.75, ratios), (0.5, ratios), (0.5, 10 * ratios))
    ]
    # ((1 - .75) - (1 - .5)) / (1 - .5) = -50 %.
    leak = reporting.privacy_leakage(made[:2], [made[1], made[1]])
    np.testing.assert_allclose(leak, [-50.0, 0.0], atol=1e-6)
    quality = reporting.forget_quality([made[0], made[2]], [made[1], made[1]])
    assert quality[0] == 1.0 and quality[1] < 0.01
