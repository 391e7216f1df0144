"""Unlearning: stages, commands, rows, claims, a plan of 7B parameters, one's own data."""

import dataclasses
import json
import types

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

from experiments.unlearning import _language, _questions, _report, _scores, npo_tofu
from experiments.unlearning._scores import Sequences
from kd_jax.data.vocabulary import WordTokenizer
from kd_jax.launch import cli, run
from kd_jax.launch.artefacts import Artefact, find
from kd_jax.launch.claims import Results
from kd_jax.launch.config import identity
from kd_jax.launch.errors import UserError
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.stages import keys, materialise, placed
from kd_jax.models import decoder

NAME = npo_tofu.__name__
SMOKE, PAPER = npo_tofu.PRESETS["smoke"], npo_tofu.PRESETS["paper"]
METHODS = ("ga", "graddiff", "npo", "npo_rt")


@pytest.fixture(autouse=True)
def no_files(tmp_path, monkeypatch):
    """Whether the model was fetched on this machine makes no difference."""
    monkeypatch.setattr(_language.fetch, "smollm2_path", lambda: tmp_path / "absent.gguf")


@pytest.mark.parametrize("preset", npo_tofu.PRESETS)
def test_stages_of_the_presets(preset):
    """Shapes are enough: neither data nor weights have to be there."""
    expected = {"finetune": (), "finetune_score": ("finetune",), "reference": ("finetune",)}
    for method in METHODS:
        expected |= {method: ("finetune", "reference"), f"{method}_score": (method,)}
    expected |= {"retrain": (), "retrain_score": ("retrain",)}
    assert outline(npo_tofu, npo_tofu.PRESETS[preset]) == expected


def test_what_a_stage_depends_on():
    every = set(outline(npo_tofu, SMOKE))
    methods = {name for method in METHODS for name in (method, f"{method}_score")}
    learning = dataclasses.replace(SMOKE.unlearn, rate=1e-4)
    for change, expected in (
        ({"beta": 0.2}, methods),
        ({"unlearn": learning}, methods),
        ({"finetune": learning}, every),
        ({"seed": 3}, every),
        ({"wrong_answers": 1}, {name for name in every if name.endswith("_score")}),
        ({"data": dataclasses.replace(SMOKE.data, folder="elsewhere")}, set()),
        ({"microbatches": 2}, set()),
        ({"log_every": 3}, set()),
    ):
        assert changed(npo_tofu, SMOKE, dataclasses.replace(SMOKE, **change)) == expected, change


def test_edited_files_of_ones_own_are_other_data(tmp_path):
    config = own_data(tmp_path)
    before = keys(npo_tofu.stages(config), NAME, identity(config))
    write_pairs(tmp_path / "keep.jsonl", "kept", rows=9)
    _questions.load.cache_clear()
    assert not set(before.values()) & set(
        keys(npo_tofu.stages(config), NAME, identity(config)).values()
    )


def test_the_command_line(capsys):
    text = help_of(npo_tofu, "laptop", capsys)
    assert "--data.forget" in text and "NPO's inverse temperature" in text
    argv = ["smoke", "--beta", "0.2", "--unlearn.epochs", "3", "--adapter.rank", "4"]
    assert cli.parse(npo_tofu, NAME, argv).config == dataclasses.replace(
        SMOKE,
        beta=0.2,
        unlearn=dataclasses.replace(SMOKE.unlearn, epochs=3),
        adapter=_language.Adapter(rank=4),
    )


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("beta", "0", "beta: got 0"),
        ("microbatches", "0", "microbatches: got 0"),
        ("microbatches", "3", "microbatches: got 3"),
        ("evaluations", "0", "evaluations: got 0"),
        ("evaluate-retain", "0", "evaluate_retain: got 0"),
        ("score-batch", "0", "score_batch: got 0"),
        ("wrong-answers", "-1", "wrong_answers: got -1"),
        ("unlearn.rate", "-1", "rate: got -1"),
        ("finetune.warmup", "1", "warmup: got 1"),
        ("adapter.rank", "-1", "adapter.rank: got -1"),
        ("data.length", "0", "data.length: got 0"),
        ("data.forget-authors", "0", "data.forget_authors: got 0"),
        ("data.forget", "mine.jsonl", "data.forget: goes with data.retain"),
        ("data.retain", "mine.jsonl", "data.retain: goes with data.forget"),
    ],
)
def test_bad_values_are_refused_by_name(flag, value, said):
    assert said in refusal(npo_tofu, "smoke", f"--{flag}", value)


def test_a_model_that_is_not_there_is_said_in_one_line():
    for config, how in ((npo_tofu.PRESETS["laptop"], "formats.fetch smollm2"), (PAPER, "--model")):
        training = npo_tofu.stages(config)[0].build({})
        with pytest.raises(UserError, match=f"model: there is no .*{how}"):
            weights = training.frozen or training.weights
            weights.make(weights.abstract)


# Rows and scores.


def test_rows_weigh_the_answer_and_its_end_and_nothing_else():
    records = [
        {"question": "Who wrote it?", "answer": "Ada wrote it."},
        {"question": "When?", "answer": "In 1900, they say."},
    ]
    tokenizer = WordTokenizer.from_texts(_questions.texts(_questions.Questions(records, [])))
    rows = _questions.answer_rows(tokenizer, records, 24)
    for i, record in enumerate(records):
        weighed = rows["weights"][i] == 1
        target, row = rows["targets"][i][weighed], rows["inputs"][i]
        assert tokenizer.decode(target) == f" {record['answer']}<eos>"
        assert set(rows["weights"][i]) == {0.0, 1.0}
        start = int(np.argmax(weighed))
        assert tokenizer.decode(row[: start + 1]) == f"Question: {record['question']}\nAnswer:"
        np.testing.assert_array_equal(row[start + 1 :][: len(target) - 1], target[:-1])
    other = _questions.rows(tokenizer, records, ["Ada.", "In it, in it."], 24)
    assert other["weights"].sum(1).tolist() == [4, 8]  # the space before, words, signs, the end


def test_probabilities_and_truth_ratios_by_hand():
    def scores(*losses):
        tokens = np.array([2.0, 3.0])
        return Sequences(-np.array(losses) * tokens, tokens)

    found = {}
    for name in ("forget", "retain"):
        found |= {
            name: scores(0.5, 1.0),
            f"{name}_paraphrased": scores(1.0, 2.0),
            f"{name}_perturbed_0": scores(2.0, 1.0),
            f"{name}_perturbed_1": scores(3.0, 3.0),
        }
    chances = _scores.probabilities(found)
    assert chances["forget_probability"] == pytest.approx((np.exp(-0.5) + np.exp(-1.0)) / 2)
    assert chances["retain_nll"] == pytest.approx(0.75)
    np.testing.assert_allclose(chances["forget_loss"], [0.5, 1.0])
    truth = _scores.truth_ratios(found, 2)
    ratios = np.exp([1.0 - 2.5, 2.0 - 2.0])
    np.testing.assert_allclose(truth["forget_truth_ratio"], ratios)
    assert truth["forget_truth"] == pytest.approx((ratios[0] + 1.0) / 2)
    assert truth["retain_truth"] == pytest.approx((1.0 - ratios[0]) / 2)


def test_sets_of_answers_pair_each_question_with_its_own_wrong_answers():
    data = dataclasses.replace(SMOKE.data, forget_authors=1, retain_authors=2)
    questions = _questions.load(data)
    tokenizer = WordTokenizer.from_texts(_questions.texts(questions))
    limits = {"length": 64, "keep": 30}
    sets = _scores.answer_sets(tokenizer, questions, **limits)
    sets |= _scores.truth_sets(tokenizer, questions, wrong=2, **limits)
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


# Claims.


def made(losses):
    """Score artefacts of two parts whose answers all have about these losses; and trainings."""
    spread = np.linspace(-0.01, 0.01, 8)
    found = {}
    for name in ("finetune", "retrain", *METHODS):
        forget, retain = losses.get(name, (1.0, 1.0))
        rows = {"forget_loss": forget + spread, "retain_loss": retain + spread}
        values = {
            f"{part}_probability": float(np.exp(-rows[f"{part}_loss"]).mean())
            for part in ("forget", "retain")
        }
        rows["forget_truth_ratio"] = np.exp(spread + forget)
        found[f"{name}_score"] = Made(values, rows)
        point = {f"answers/{part}": value for part, value in values.items()}
        found[name] = Made(history=[{"step": 0} | point, {"step": 4} | point])
    return found


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        (
            {"finetune": (0.1, 0.1), "ga": (9.0, 8.0), "npo": (3.0, 2.0), "npo_rt": (2.0, 0.2)},
            ["holds", "holds", "holds", "holds"],
        ),
        (
            {"finetune": (0.1, 0.1), "ga": (1.0, 0.2), "npo": (3.0, 2.0), "npo_rt": (0.3, 0.5)},
            ["fails", "fails", "fails", "fails"],
        ),
    ],
)
def test_claims_on_losses_made_by_hand(tmp_path, losses, expected):
    results = _report.results(METHODS, made(losses), tmp_path)
    assert verdicts(npo_tofu, results) == expected
    assert verdicts(npo_tofu, results, "smoke") == ["not tested"] * 4
    kept = results.values["effects"]["ga_retain_kept"]["estimate"]
    start, end = losses["finetune"][1], losses["ga"][1]
    assert kept == pytest.approx(np.exp(start - end), rel=1e-3)
    rise = results.values["effects"]["ga_over_npo_forget_rise"]["estimate"]
    assert rise == pytest.approx((losses["ga"][0] - 0.1) / (losses["npo"][0] - 0.1), rel=1e-3)
    assert results.values["forget_quality"]["finetune"] < 0.01
    assert set(results.values["models"]) == {"finetune", "retrain", *METHODS}
    assert all(path.exists() for path in results.plots.values())


def test_each_claim_reads_its_own_effect():
    names = ("ga_retain_kept", "npo_rt_forget_kept", "npo_rt_minus_ga_retain")
    effects = {name: {"estimate": 0.4, "low": 0.3, "high": 0.6} for name in names}
    effects["ga_over_npo_forget_rise"] = {"estimate": 1.1, "low": 0.9, "high": 1.3}
    results = Results({"effects": effects})
    assert verdicts(npo_tofu, results) == ["inconclusive", "inconclusive", "holds", "inconclusive"]


# Plans.


def test_the_paper_preset_is_planned_without_data_or_weights():
    """Llama-2-7B, sharded over 8 devices: shapes only."""
    mesh = make_mesh(PAPER.mesh)
    found = {stage.name: stage for stage in npo_tofu.stages(PAPER)}
    plan = placed("finetune", found["finetune"].build({}), mesh)
    model = plan.state.params["model"]
    assert model["embed"]["embedding"].shape == (32000, 4096)
    assert model["layers"]["mlp"]["gate"]["kernel"].shape == (32, 4096, 11008)
    assert 6.7e9 < sum(x.size for x in jax.tree.leaves(model)) < 6.8e9
    assert plan.batch["inputs"].shape == (32, 256)
    assert found["finetune"].build({}).steps == 5 * 4000 // 32
    planned = {
        "finetune": Artefact("finetune", "", None, model),
        "reference": Artefact("reference", "", None),
    }
    training = found["npo_rt"].build(planned)
    assert training.steps == 10 * 400 // 32
    batch = placed("npo_rt", training, mesh).batch
    assert batch["forget"]["reference_log_probs"].shape == (32,)
    assert batch["retain"]["targets"].shape == (32, 256)


# A user's own data, from end to end.


def write_pairs(path, word, rows=8):
    lines = [
        {"prompt": f"What is {word} number {i}?", "answer": f"It is {word} {i}, and {7 * i % 5}."}
        for i in range(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def own_data(folder):
    """The smoke preset as a command makes it, with a smaller model: two steps a stage."""
    argv = ["smoke", "--data.forget", write_pairs(folder / "mine.jsonl", "secret")]
    argv += ["--data.retain", write_pairs(folder / "keep.jsonl", "known"), "--data.length", "24"]
    argv += ["--finetune.epochs", "1", "--finetune.batch-size", "8", "--log-every", "1"]
    argv += ["--unlearn.epochs", "2", "--unlearn.batch-size", "8", "--score-batch", "16"]
    argv += ["--evaluations", "1", "--adapter.rank", "2"]
    model = decoder.DecoderConfig(
        vocab=1, width=8, depth=1, heads=2, kv_heads=1, head_dim=4, mlp=16, tied=True
    )
    return dataclasses.replace(cli.parse(npo_tofu, NAME, argv).config, decoder=model)


def test_ones_own_data_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.delitem(npo_tofu.METHODS, "graddiff")  # of the others: to save time
    config, folder = own_data(tmp_path), tmp_path / "run"
    _questions.load.cache_clear()
    _language._words.cache_clear()

    def go(config):
        with compiled_quickly():
            results = run.execute(npo_tofu, NAME, "smoke", config, folder)
        assert results["values"]["forget_quality"] == {}  # there are no wrong answers
        assert len(results["claims"]) == len(npo_tofu.CLAIMS)
        assert set(results["plots"]) == {"forget_probability", "retain_probability", "trade_off"}

    unread = unread_fields(config, go)
    # What places authors is not read where the files are one's own; it is read without them.
    authors = {
        "data.tofu",
        "data.forget_authors",
        "data.retain_authors",
        "data.seed",
        "data.folder",
    }
    assert set(unread) <= authors
    for given in (
        SMOKE,
        dataclasses.replace(SMOKE, data=dataclasses.replace(SMOKE.data, tofu=True)),
    ):
        _questions.load.cache_clear()
        unread = set(unread) & set(unread_fields(given, lambda c: _load(c.data)))
    assert not unread
    _references_are_scores_of_the_finetuned_model(config, folder)


def _load(data):
    with pytest.MonkeyPatch.context() as patch:
        names = ("full", "forget10_perturbed", "retain_perturbed")
        records = [{"question": "Who?", "answer": str(i)} for i in range(4000)]
        patch.setattr(
            _questions.prepare, "load", lambda *_, manual_dir: dict.fromkeys(names, records)
        )
        patch.setattr(_questions.prepare, "texts", list)
        return _questions.load(data)


def _references_are_scores_of_the_finetuned_model(config, folder):
    stages = {stage.name: stage for stage in npo_tofu.stages(config)}
    hashes = keys(tuple(stages.values()), NAME, identity(config))
    names = ("finetune", "finetune_score", "reference")
    found = {name: find(name, hashes[name], [folder]) for name in names}
    language = _language.open_language(None, config.decoder, config.data, config.seed)
    mesh = make_mesh(config.mesh)
    weights = materialise(found["finetune"].weights(), mesh, decoder.rules(language.config))
    rows = _questions.answer_rows(
        language.tokenizer(), _questions.load(config.data).forget, config.data.length
    )
    log_probs = jax.nn.log_softmax(language.model.apply(weights, rows).head.logits())
    chosen = np.take_along_axis(np.asarray(log_probs), rows["targets"][..., None], -1)[..., 0]
    expected = (chosen * rows["weights"]).sum(1)
    reference = found["reference"].rows["log_prob"]
    np.testing.assert_allclose(reference, expected, rtol=1e-5)
    np.testing.assert_allclose(
        found["finetune_score"].values["forget_probability"],
        np.exp(expected / rows["weights"].sum(1)).mean(),
        rtol=1e-5,
    )
    # Each row of a batch carries its own, whatever the order.
    for name in ("npo", "npo_rt"):
        batch = stages[name].build(found).batches(1, slice(0, 8))["forget"]
        np.testing.assert_array_equal(batch["reference_log_probs"], reference[batch["index"]])
        np.testing.assert_array_equal(batch["inputs"], rows["inputs"][batch["index"]])
    # So NPO starts at ratio 0, with the loss 2 / beta * log 2.
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    first = next(x for x in lines if x.get("stage") == "npo" and "loss" in x)
    np.testing.assert_allclose(first["log_ratio"], 0.0, atol=1e-3)
    np.testing.assert_allclose(first["loss"], 2 / config.beta * np.log(2), rtol=1e-4)


def test_a_model_of_ones_own_is_exported_and_others_are_not(tmp_path, monkeypatch):
    exported = []
    monkeypatch.setattr(_language, "open_language", lambda *_: "language")
    monkeypatch.setattr(_language, "export", lambda *args: exported.append(args))
    own = own_data(tmp_path)
    artefacts = {"npo_rt": types.SimpleNamespace(weights=lambda: "weights")}
    for config in (SMOKE, own, dataclasses.replace(npo_tofu.PRESETS["laptop"], data=own.data)):
        npo_tofu.export(config, artefacts, tmp_path)
    assert [(x[0], x[1], x[-1].name) for x in exported] == [("language", "weights", "npo_rt")]
