"""MUSE on a small scale: passages, stages, what they read, claims on figures made by hand."""

import dataclasses

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
    real_data,
    refusal,
    verdicts,
)

from experiments.unlearning import muse_small
from experiments.unlearning.muse import measures, plays
from kd_jax.launch import cli
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.stages import placed, shapes_on
from kd_jax.launch.weights import Weights
from kd_jax.models import decoder

NAME = muse_small.__name__
LAPTOP = muse_small.PRESETS["laptop"]
SMOKE = dataclasses.replace(muse_small.PRESETS["smoke"], methods=("ga", "npo_klr"))


def test_stages():
    expected = {"target_0": (), "retrained_0": ()}
    for method in ("ga", "npo_klr"):
        expected |= {f"{method}_all_0": ("target_0",), f"{method}_1_0": ("target_0",)}
        expected |= {f"{method}_2_0": (f"{method}_1_0",)}  # a stream
    expected |= {"reinforced_all_0": ("target_0",)}
    expected |= {"task_vector_all_0": ("target_0", "reinforced_all_0")}
    expected |= {"reinforced_1_0": ("target_0",), "task_vector_1_0": ("target_0", "reinforced_1_0")}
    expected |= {"reinforced_2_0": ("task_vector_1_0",)}
    expected |= {"task_vector_2_0": ("task_vector_1_0", "reinforced_2_0")}
    assert outline(muse_small, SMOKE) == expected
    single = [f"npo_gdr_{part}_0" for part in ("all", 1, 2)]
    preset = outline(muse_small, muse_small.PRESETS["smoke"])
    assert [name for name in preset if name.startswith("npo")] == single
    # Target, retrained; six methods and a task vector of two stages, at once and in 4 requests.
    assert len(outline(muse_small, LAPTOP)) == 3 * (2 + 6 * 5 + 2 * 5)


def test_what_a_stage_depends_on():
    every = set(outline(muse_small, SMOKE))
    negated = {name for name in every if name.startswith(("reinforced", "task_vector"))}
    trained = every - negated - {"target_0", "retrained_0"}
    learning = dataclasses.replace(SMOKE.unlearn, rate=1e-4)
    for change, expected in (
        ({"beta": 0.2}, trained),
        ({"unlearn": learning}, trained),
        ({"evaluations": 2}, trained),
        ({"reinforce": learning}, negated),
        ({"finetune": learning}, every),
        ({"data": dataclasses.replace(SMOKE.data, length=64)}, every),
        ({"data": dataclasses.replace(SMOKE.data, folder="elsewhere")}, set()),
        ({"score_batch": 32}, set()),
    ):
        assert changed(muse_small, SMOKE, dataclasses.replace(SMOKE, **change)) == expected, change


def planned(config):
    """Every training, and the programs of its evaluation, from shapes alone; a batch of each."""
    mesh, found = make_mesh(config.mesh), {}
    model = decoder.decoder(config.model)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    for stage in muse_small.stages(config):
        artefacts = {name: Artefact(name, "", None, shapes) for name in stage.needs}
        built = stage.build(artefacts)
        if hasattr(built, "step"):
            place = placed(stage.name, built, mesh)
            programs = built.evaluations[0].plan(place.state.params, {}, place.frozen)
            found[stage.name] = built, built.batches(0, slice(0, built.batch_size))
        else:
            programs = built.plan(mesh)
        assert set(programs) == {"scores", "continuations"}
    return found


def test_batches_are_of_the_passages_of_their_request():
    found, passages = planned(SMOKE), plays.load(SMOKE.data)
    parts = {
        "target_0": [*passages.forget, *passages.retain],
        "retrained_0": passages.retain,
        "reinforced_2_0": passages.forget[8:],
        "ga_all_0": passages.forget,
        "ga_1_0": passages.forget[:8],
        "ga_2_0": passages.forget[8:],
    }
    for name, texts in parts.items():
        training, batch = found[name]
        steps = range(len(texts) // 8)
        batches = [training.batches(i, slice(0, 8)) for i in steps]
        rows = [b.get("forget", b) for b in batches]
        inputs = np.concatenate([b["inputs"] for b in rows]).tolist()
        # An epoch is a permutation of them.
        assert sorted(inputs) == sorted(text[:-1] for text in texts), name
        for path, leaf in jax.tree_util.tree_leaves_with_path(training.batch):
            whole = dict(jax.tree_util.tree_leaves_with_path(batch))[path]
            assert (whole.shape, whole.dtype) == (leaf.shape, leaf.dtype)
    retained = found["ga_2_0"][1]["retain"]["inputs"].tolist()
    assert all(row in [text[:-1] for text in passages.retain] for row in retained)


def test_every_field_is_read(tmp_path):
    def go(config):
        plays.load.cache_clear()
        planned(config)
        muse_small.report(config, made(config), tmp_path)

    # Where the files lie is asked for real ones alone.
    assert unread_fields(SMOKE, go) == ["data.folder"]


def test_passages():
    data = SMOKE.data
    passages = plays.load(data)
    counts = [len(x) for x in (passages.forget, passages.holdout, passages.retain)]
    assert counts == [16, 16, 16]
    every = [*passages.forget, *passages.holdout, *passages.retain]
    assert {len(text) for text in every} == {data.length + 1}
    assert len({tuple(text) for text in every}) == len(every)
    assert max(map(max, every)) < data.vocabulary
    # In turns: what follows a passage to forget is held out.
    text = passages.pieces.decode
    source = plays._generated(data)[0]
    start = text(passages.forget[0]) + text(passages.holdout[0]) + text(passages.forget[1])
    assert source.startswith(start)
    rows = plays.rows(every[:3])
    np.testing.assert_array_equal(rows["inputs"][:, 1:], rows["targets"][:, :-1])
    assert rows["targets"][0].tolist() == every[0][1:] and (rows["weights"] == 1).all()
    prompt, truth = plays.halves(every[0])
    assert prompt + truth == every[0] and len(truth) == data.length // 2


def test_pieces_lose_nothing():
    texts = ["To be, or not to be:\nthat is the question; to be, to be.", "Exeunt."]
    pieces = plays.Pieces.from_texts(texts, len(plays.CHARACTERS) + 2)
    assert pieces.tokens[-2:] == (" be", " to")  # three each; the others are spelled
    for text in (*texts, " A  b\n\n c", ""):
        assert pieces.decode(pieces.encode(text)) == text
    assert len(pieces.encode(" to be")) == 2 and len(pieces.encode(" question")) == 9
    assert pieces.decode(pieces.encode("naïve")) == "na?ve"
    assert pieces.decode([10_000]) == "?"


@pytest.mark.data
def test_the_plays_begin_where_they_should():
    with real_data():
        passages = plays.load(LAPTOP.data)
    text = passages.pieces.decode
    assert text(passages.forget[0]).startswith("SAMPSON:\nGregory, o' my word")
    assert text(passages.retain[0]).startswith("First Citizen:\nBefore we proceed")
    assert [len(x) for x in passages[1:]] == [64, 64, 64]


@pytest.mark.slow
def test_the_figures_of_a_model_that_knows_nothing():
    weights = decoder.decoder(SMOKE.model).init(jax.random.key(0))
    mesh = make_mesh(SMOKE.mesh)
    placed_ = shapes_on(Weights(weights, lambda x: x), mesh, decoder.rules(SMOKE.model))
    weights = jax.tree.map(lambda x, y: jax.device_put(x, y.sharding), weights, placed_)
    with compiled_quickly():
        found = measures.measure(SMOKE, weights, mesh, (1, 2))
    assert set(found) == {
        f"{name}_{n}" for name in ("verbatim", "recall", "auc", "recall_retain") for n in (1, 2)
    }
    assert found["recall_2"] < 20 and found["verbatim_2"] < 20 and 0.2 < found["auc_2"] < 0.8
    assert found["recall_retain_1"] == found["recall_retain_2"]


# Claims.


def point(verbatim, recall, auc, kept, requests=(1, 2)):
    found = {}
    for number in requests:
        found |= {f"muse/verbatim_{number}": verbatim, f"muse/recall_{number}": recall}
        found |= {f"muse/auc_{number}": auc, f"muse/recall_retain_{number}": kept}
    return found


def made(config, ga_verbatim=2.0, leak=0.02, first=90.0, last=60.0):
    """Artefacts of all stages: a target that remembers, methods that forget as asked."""
    found = {}
    for seed in config.repetitions:
        shift = 0.1 * seed  # seeds differ a little
        target = point(100.0 - shift, 100.0 - shift, 0.0, 100.0)
        found[f"target_{seed}"] = Made(history=[point(0, 0, 0.5, 0), target])
        gold = point(6.0 + shift, 30.0, 0.5, 99.0)
        found[f"retrained_{seed}"] = Made(history=[point(0, 0, 0.5, 0), gold])
        for method in (*config.methods, "task_vector"):
            for request in ("all", *config.requests):
                kept = (first if request == 1 else last) - shift
                end = point(ga_verbatim + shift, 20.0, leak, kept)
                values = {name.removeprefix("muse/"): value for name, value in end.items()}
                stage = f"{method}_{request}_{seed}"
                found[stage] = Made(values, history=[target, end])
    return found


THREE = dataclasses.replace(SMOKE, seeds=3)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ["holds"] * 6),
        # Nothing was removed, so that nothing can be said of what removing it leaks.
        (
            {"ga_verbatim": 50.0},
            ["holds", "fails", "holds", "not tested", "holds", "holds"],
        ),
        # Perfect: as the retrained model.
        (
            {"leak": 0.5, "first": 100.0, "last": 100.0},
            ["holds", "holds", "fails", "fails", "fails", "fails"],
        ),
        ({"first": 60.0, "last": 90.0}, ["holds"] * 4 + ["fails"] * 2),
    ],
)
def test_claims_on_figures_made_by_hand(tmp_path, change, expected):
    artefacts = made(THREE, **change)
    for seed in range(3):  # the retained words of a perfect model
        artefacts[f"retrained_{seed}"].history[-1].update(
            {f"muse/recall_retain_{n}": 99.0 for n in (1, 2)}
        )
    results = muse_small.report(THREE, artefacts, tmp_path)
    assert verdicts(muse_small, results) == expected
    assert verdicts(muse_small, results, "smoke") == ["not tested"] * 6
    assert all(path.exists() for path in results.plots.values())
    everything = results.values["all"]
    assert everything["ga"]["privacy_leakage"]["estimate"] == pytest.approx(
        200 * (change.get("leak", 0.02) - 0.5)
    )
    assert everything["retrained"]["met"] == dict.fromkeys(everything["retrained"]["met"], 3)
    assert everything["target"]["met"]["verbatim"] == 0
    assert set(results.values["requests"]) == {"1", "2"}


def test_a_figure_is_of_the_last_model(tmp_path):
    artefacts = made(SMOKE)
    artefacts["ga_all_0"].history.insert(1, point(77.0, 7.0, 0.7, 7.0))
    results = muse_small.report(SMOKE, artefacts, tmp_path)
    assert results.values["all"]["ga"]["verbatim"]["estimate"] == 2.0


def test_the_command_line(capsys):
    text = help_of(muse_small, "laptop", capsys)
    assert "--data.requests" in text and "besides the task vector" in text
    argv = ["smoke", "--methods", "npo", "ga_gdr", "--data.forget", "16", "--seeds", "2"]
    assert cli.parse(muse_small, NAME, argv).config == dataclasses.replace(
        SMOKE,
        methods=("npo", "ga_gdr"),
        data=dataclasses.replace(SMOKE.data, forget=16),
        seeds=2,
    )


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("beta", "0", "beta: got 0"),
        ("seeds", "0", "seeds: got 0"),
        ("evaluations", "0", "evaluations: got 0"),
        ("data.requests", "0", "requests: got 0"),
        ("data.length", "3", "data.length: got 3"),
        ("data.vocabulary", "10", "data.vocabulary: got 10"),
    ],
)
def test_bad_values_are_refused_by_name(flag, value, said):
    assert said in refusal(muse_small, "smoke", f"--{flag}", value)


def test_a_text_that_is_too_short_is_refused(monkeypatch):
    monkeypatch.setattr(plays, "_generated", lambda data: ["short"] * 2)
    with pytest.raises(ValueError, match="data.forget: takes 32 passages of 45 tokens"):
        plays.load(dataclasses.replace(SMOKE.data, length=44))
