"""Stored log-probabilities of a reference: refused for other data or another model."""

import dataclasses
import json
import os
import shutil
import types

import jax.numpy as jnp
import numpy as np
import pytest
from support import toy_experiment as toy

from kd_jax.launch import precompute, run
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.errors import UserError
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.stages import Compute, Stage, materialise
from kd_jax.launch.weights import from_checkpoint

DATA = {
    "chosen": {"inputs": np.arange(12, dtype=np.int32).reshape(3, 4)},
    "rejected": {"inputs": np.arange(12, 24, dtype=np.int32).reshape(3, 4)},
    "index": np.arange(3, dtype=np.int32),
}

# --- hashes


def changed(**entries):
    return precompute.data_hash({**DATA, **entries})


def test_the_hash_of_data_is_of_names_dtypes_shapes_and_bytes():
    base = precompute.data_hash(DATA)
    assert len(base) == 64
    assert changed() == base
    assert precompute.data_hash(dict(reversed(DATA.items()))) == base
    assert changed(index=jnp.arange(3)) == base  # wherever it lies
    strided = np.repeat(np.arange(3, dtype=np.int32), 2)[::2]
    assert changed(index=strided) == base
    others = [
        changed(index=np.array([0, 2, 1], np.int32)),
        changed(index=np.arange(3, dtype=np.uint32)),
        changed(index=np.arange(3, dtype=np.int32)[:, None]),
        changed(chosen=DATA["rejected"], rejected=DATA["chosen"]),
        changed(chosen={"targets": DATA["chosen"]["inputs"]}),
        changed(weights=np.ones(3, np.float32)),
        changed(weights=np.zeros((0, 3), np.float32)),
    ]
    assert len({base, *others}) == 1 + len(others)
    with pytest.raises(ValueError, match="chosen/inputs: got objects"):
        changed(chosen={"inputs": np.array([None])})


def test_the_hash_of_a_model_is_an_artefacts_or_of_its_files(tmp_path):
    assert precompute.model_hash(Artefact("finetune", "0123abcd", None)) == "0123abcd"
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    a.write_bytes(b"header" + bytes(200_000))
    b.write_bytes(b"more")
    base = precompute.model_hash([a, b])
    assert precompute.model_hash([str(b), a]) == base
    moved = tmp_path / "elsewhere"
    shutil.copytree(tmp_path, moved)
    assert precompute.model_hash([moved / a.name, moved / b.name]) == base
    found = {base, precompute.model_hash([a])}
    b.rename(tmp_path / "c.safetensors")
    found.add(precompute.model_hash([a, tmp_path / "c.safetensors"]))
    (tmp_path / "c.safetensors").rename(b)
    data = bytearray(a.read_bytes())
    data[150_000] = 1  # the header is the same
    a.write_bytes(data)
    found.add(precompute.model_hash([a, b]))
    assert len(found) == 4
    with pytest.raises(UserError, match="nothing: there is no such file"):
        precompute.model_hash([a, tmp_path / "nothing"])


def test_a_change_throughout_any_16_mib_of_a_large_file_is_noticed(tmp_path):
    file, size = tmp_path / "large", 2**28 + 2**23
    with file.open("wb") as stream:
        stream.truncate(size)  # sparse: it takes no room
    found = {precompute.model_hash([file])}
    for start, length in ((2**24 + 1, 2**24), (size - 1000, 1000)):
        with file.open("r+b") as stream:
            stream.seek(start)
            stream.write(os.urandom(length))
        found.add(precompute.model_hash([file]))
    assert len(found) == 3


# --- the stage in a run


def module_of(data=DATA, model=None, use=lambda rows: None):
    """The toy experiment with a reference that is scored, and a stage that uses the scores."""

    def score(found, arrays):
        weights = materialise(found["pretrain"].weights(), make_mesh(), toy.RULES)
        kernel = np.asarray(weights["kernel"])
        columns = {name: arrays[name]["inputs"] @ kernel for name in ("chosen", "rejected")}
        return columns | {"mean": float(columns["chosen"].mean())}

    def model_of(found):
        return model or precompute.model_hash(found["pretrain"])

    def used(found):
        def read():
            rows = precompute.rows_of(
                found["reference"], data=precompute.data_hash(data), model=model_of(found)
            )
            use(rows)
            return None, {"margin": float((rows["chosen"] - rows["rejected"]).sum())}

        return Compute(read)

    def stages(config):
        scored = precompute.stage(
            "reference",
            score=score,
            data=lambda: DATA,
            model=lambda found: precompute.model_hash(found["pretrain"]),
            needs=("pretrain",),
            depends={"what": "the reference's scores"},
        )
        # It depends on nothing, so that only the hashes tell what has changed.
        return *toy.stages(config), scored, Stage("use", used, ("pretrain", "reference"), {})

    module = types.ModuleType(toy.__name__)
    vars(module).update({**vars(toy), "stages": stages})
    return module


def execute(folder, **changes):
    config = dataclasses.replace(toy.PRESETS["laptop"], steps=1, pretrain_steps=1)
    return run.execute(module_of(**changes), "support.toy_experiment", "laptop", config, folder)


def folder_of(folder, name):
    (found,) = (folder / "stages").glob(f"{name}-*[!l]")  # not one that is ".partial"
    return found


def artefact(folder, name):
    return Artefact(name, folder_of(folder, name).name[-8:], folder_of(folder, name))


def die(rows):
    raise toy.Died


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A run that was ended when it had scored, and lost its reference since."""
    folder = tmp_path_factory.mktemp("run") / "scored"
    with pytest.raises(toy.Died):
        execute(folder, use=die)
    tree = folder_of(folder, "pretrain") / "tree"
    kernel = np.asarray(materialise(from_checkpoint(tree), make_mesh(), toy.RULES)["kernel"])
    shutil.rmtree(tree)
    with pytest.raises(ValueError, match="saved no arrays"):
        artefact(folder, "pretrain").weights()
    return folder, kernel


def test_scores_are_stored_with_both_hashes_and_read_without_the_reference(scored, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(scored[0], folder)
    stored = artefact(folder, "reference")
    assert stored.values == {
        "data": precompute.data_hash(DATA),
        "model": artefact(folder, "pretrain").hash,
        "mean": float((DATA["chosen"]["inputs"] @ scored[1]).mean()),
    }
    got = []
    execute(folder, use=got.append)
    (rows,) = got
    assert rows.keys() == {"chosen", "rejected"}
    for name, row in rows.items():
        np.testing.assert_array_equal(row, DATA[name]["inputs"] @ scored[1])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data": {**DATA, "index": np.zeros(3, np.int32)}}, ["data"]),
        ({"model": "another"}, ["model"]),
        ({"data": {**DATA, "index": np.zeros(3, np.int32)}, "model": "another"}, ["data", "model"]),
    ],
)
def test_scores_of_other_data_or_of_another_model_are_refused(scored, changes, named):
    folder, _ = scored
    with pytest.raises(UserError) as caught:
        execute(folder, **changes)
    message = str(caught.value)
    stored = json.loads((folder_of(folder, "reference") / "artefact.json").read_text())
    here = {"data": precompute.data_hash(changes.get("data", DATA)), "model": "another"}
    for what in ("data", "model"):
        said = f"{what} {stored['values'][what][:12]} there, {here[what][:12]} here"
        assert (said in message) == (what in named), message
    assert f"remove {folder_of(folder, 'reference')} to compute them again" in message


def test_what_is_no_precomputed_stage_is_a_mistake_of_the_program(scored, tmp_path):
    with pytest.raises(ValueError, match="finetune stored no hashes"):
        precompute.rows_of(artefact(scored[0], "finetune"), data="", model="")
    taken = precompute.stage(
        "s", score=lambda found, data: {"model": 1.0}, data=lambda: DATA, model=lambda found: "m"
    )
    work = taken.build({})
    assert isinstance(work, Compute)
    with pytest.raises(ValueError, match="stage s: score returned model"):
        work.run()
