"""npo_tofu on a user's own data, from end to end."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest
from support.config_reads import unread_fields
from support.experiment_checks import compiled_quickly

from experiments.unlearning import npo_tofu
from experiments.unlearning.common import lm, qa, runs
from kd_jax.launch import cli, run
from kd_jax.launch.artefacts import find
from kd_jax.launch.config import identity
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.stages import keys, materialise
from kd_jax.models import decoder

NAME, SMOKE = npo_tofu.__name__, npo_tofu.PRESETS["smoke"]


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


@pytest.mark.slow
def test_ones_own_data_from_end_to_end(tmp_path):
    own = own_data(tmp_path)
    # Of the methods few, to save time, but with every kind of part.
    methods = ("npo", "npo_rt", "idk_ap", "undial")
    config, folder = dataclasses.replace(own, methods=methods), tmp_path / "run"
    qa.load.cache_clear()
    lm._words.cache_clear()

    def go(config):
        with compiled_quickly():
            results = run.execute(npo_tofu, NAME, "smoke", config, folder)
        assert results["values"]["forget_quality"] == {}  # there are no wrong answers
        assert len(results["claims"]) == len(npo_tofu.CLAIMS)
        assert len(results["plots"]) == 3 * 4  # of each group of methods

    unread = unread_fields(config, go)
    # What places authors is not read where the files are one's own; it is read without them.
    authors = {
        "data.tofu",
        "data.forget_authors",
        "data.retain_authors",
        "data.holdout_authors",
        "data.seed",
        "data.folder",
    }
    assert set(unread) <= authors
    for given in (
        SMOKE,
        dataclasses.replace(SMOKE, data=dataclasses.replace(SMOKE.data, tofu=True)),
    ):
        qa.load.cache_clear()
        unread = set(unread) & set(unread_fields(given, lambda c: _load(c.data)))
    assert not unread
    _references_are_scores_of_the_finetuned_model(config, folder)


def _load(data):
    with pytest.MonkeyPatch.context() as patch:
        names = ("full", "forget10_perturbed", "retain_perturbed")
        names += ("real_authors_perturbed", "world_facts_perturbed")
        records = [{"question": "Who?", "answer": str(i)} for i in range(4000)]
        patch.setattr(qa.prepare, "load", lambda *_, manual_dir: dict.fromkeys(names, records))
        patch.setattr(qa.prepare, "texts", list)
        return qa.load(data)


def _references_are_scores_of_the_finetuned_model(config, folder):
    stages = {stage.name: stage for stage in npo_tofu.stages(config)}
    hashes = keys(tuple(stages.values()), NAME, identity(config))
    names = ("finetune_0", "finetune_0_score", "reference_0")
    found = {name: find(name, hashes[name], [folder]) for name in names}
    language = lm.open_language(None, config.decoder, config.data, config.seed)
    mesh = make_mesh(config.mesh)
    weights = materialise(found["finetune_0"].weights(), mesh, decoder.rules(language.config))
    rows = qa.answer_rows(language.tokenizer(), qa.load(config.data).forget, config.data.length)
    log_probs = jax.nn.log_softmax(language.model.apply(weights, rows).head.logits())
    chosen = np.take_along_axis(np.asarray(log_probs), rows["targets"][..., None], -1)[..., 0]
    expected = (chosen * rows["weights"]).sum(1)
    reference = found["reference_0"].rows["forget"]
    np.testing.assert_allclose(reference, expected, rtol=1e-5)
    np.testing.assert_allclose(
        found["finetune_0_score"].values["forget_probability"],
        np.exp(expected / rows["weights"].sum(1)).mean(),
        rtol=1e-5,
    )
    # Each row of a batch carries its own, whatever the order.
    for name in ("npo_0", "npo_rt_0"):
        batch = stages[name].build(found).batches(1, slice(0, 8))["forget"]
        np.testing.assert_array_equal(batch["reference_log_probs"], reference[batch["index"]])
        np.testing.assert_array_equal(batch["inputs"], rows["inputs"][batch["index"]])
    # So NPO starts at ratio 0, with the loss 2 / beta * log 2.
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    first = next(x for x in lines if x.get("stage") == "npo_0" and "loss" in x)
    np.testing.assert_allclose(first["log_ratio"], 0.0, atol=1e-3)
    np.testing.assert_allclose(first["loss"], 2 / config.beta * np.log(2), rtol=1e-4)


def test_a_model_of_ones_own_is_exported_and_others_are_not(tmp_path, monkeypatch):
    exported = []
    monkeypatch.setattr(runs, "language", lambda *_: "language")
    monkeypatch.setattr(lm, "export", lambda *args: exported.append(args))
    own = own_data(tmp_path)
    artefacts = {"npo_rt_0": types.SimpleNamespace(weights=lambda: "weights")}
    for config in (SMOKE, own, dataclasses.replace(npo_tofu.PRESETS["laptop"], data=own.data)):
        npo_tofu.export(config, artefacts, tmp_path)
    assert [(x[0], x[1], x[-1].name) for x in exported] == [("language", "weights", "npo_rt")]


def test_edited_files_of_ones_own_are_other_data(tmp_path):
    config = own_data(tmp_path)
    before = keys(npo_tofu.stages(config), NAME, identity(config))
    write_pairs(tmp_path / "keep.jsonl", "kept", rows=9)
    qa.load.cache_clear()
    assert not set(before.values()) & set(
        keys(npo_tofu.stages(config), NAME, identity(config)).values()
    )
