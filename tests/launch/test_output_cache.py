"""A teacher's stored outputs: the same as at hand, by view, refused for anything else."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.linear import assert_trees_close

from kd_jax.data import sources
from kd_jax.launch import output_cache, run
from kd_jax.launch.claims import Results
from kd_jax.launch.config import Settings
from kd_jax.launch.errors import UserError
from kd_jax.launch.mesh import MeshConfig
from kd_jax.launch.output_cache import About
from kd_jax.launch.precompute import data_hash
from kd_jax.launch.stages import Stage, Training
from kd_jax.launch.weights import from_init
from kd_jax.models.mlp import MLPConfig, mlp
from kd_jax.objectives.augment.images import crop, flip
from kd_jax.objectives.augment.prepare import as_stored
from kd_jax.objectives.distil import distil, hint, labels, soft_labels
from kd_jax.objectives.stored import nothing, stored_teacher
from kd_jax.steps import make_train_step
from kd_jax.types import TrainState

IMAGES = {
    "inputs": np.random.default_rng(0).integers(0, 256, (10, 4, 4, 1)).astype(np.uint8),
    "targets": (np.arange(10) % 3).astype(np.int32),
    "weights": np.ones(10, np.float32),
    "index": np.arange(10, dtype=np.int32),
}
TEACHER = mlp(MLPConfig(inputs=16, widths=(5,), classes=3))
STUDENT = mlp(MLPConfig(inputs=16, widths=(4,), classes=3))
WEIGHTS = TEACHER.init(jax.random.key(1))
VIEWS = (3, 8)
ABOUT = About("teacher", data_hash(IMAGES), ("hidden_0",), "flip, crop 1", VIEWS)


def shapes(rows):
    return {n: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype) for n, x in IMAGES.items()}


def augment(key, image):
    one, two = jax.random.split(key)
    return crop(two, flip(one, image), pad=1)


def stored_stage(mesh, rows=4, **changes):
    return output_cache.stage(
        "outputs",
        **{
            "model": TEACHER,
            "weights": lambda found: from_init(lambda: {"teacher": WEIGHTS, "teacher_state": {}}),
            "teacher": lambda found: "teacher",
            "data": lambda: IMAGES,
            "batch": shapes(rows),
            "mesh": mesh,
            "taps": ("hidden_0",),
            "augment": augment,
            "augmentation": ABOUT.augmentation,
            "views": VIEWS,
        }
        | changes,
    )


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stage") / "files"
    folder.mkdir()
    work = stored_stage(MeshConfig(data=2, tensor=4)).build({})
    return folder, work.files(folder)


def seen(view):
    """The images of a view, one by one."""
    keys = [jax.random.fold_in(jax.random.key(view), i) for i in range(10)]
    images = IMAGES["inputs"].astype(np.float32) / 255
    return {"inputs": jnp.stack([augment(k, x) for k, x in zip(keys, images, strict=True)])}


def test_outputs_are_the_teachers_on_each_view(stored):
    """Of 10 images, which no batch of 8 divides."""
    cache = output_cache.opened(stored[0], ABOUT)
    for place, view in enumerate(VIEWS):
        found = cache.columns(np.arange(10), np.full(10, place))
        output = TEACHER.apply(WEIGHTS, seen(view), taps=("hidden_0",))
        expected = {
            "teacher_logits": output.head.logits(),
            "teacher_hidden_0": output.taps["hidden_0"],
        }
        assert_trees_close(found, expected)
    assert stored[1] == {"bytes": 2 * 10 * (3 + 5) * 4, "images": 20}


def test_padding_is_zeros_and_only_what_is_wanted_is_read(stored):
    cache = output_cache.opened(stored[0], ABOUT, only=())
    found = cache.columns(np.array([2, -1]), np.array([1, 1]))
    assert list(found) == ["teacher_logits"]
    assert (found["teacher_logits"][1] == 0).all() and (found["teacher_logits"][0] != 0).any()


@pytest.mark.slow
def test_the_mesh_and_the_batch_change_nothing(stored, tmp_path):
    stored_stage(MeshConfig(data=8), rows=8).build({}).files(tmp_path)
    index, places = np.arange(10), np.arange(10) % 2
    one, two = (output_cache.opened(x, ABOUT).columns(index, places) for x in (stored[0], tmp_path))
    assert_trees_close(one, two)


def test_every_epoch_has_the_next_view(stored):
    """10 images in batches of 4: an epoch ends within the third batch."""
    source = sources.array_batches(IMAGES, seed=0, name="images", batch_size=4)
    batches = output_cache.joined(source, output_cache.opened(stored[0], ABOUT), batch_size=4)
    views = np.concatenate([batches(step, slice(0, 4))["view"] for step in range(10)])
    np.testing.assert_array_equal(views, np.repeat((3, 8, 3, 8), 10))
    whole, part = batches(2, slice(0, 4)), batches(2, slice(1, 3))
    for name, x in part.items():
        np.testing.assert_array_equal(whole[name][1:3], x)
    wanted = output_cache.shapes(TEACHER, shapes(4), ("hidden_0",))
    added = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in whole.items() if n in wanted}
    assert added == wanted


@pytest.mark.slow
def test_training_on_stored_outputs_is_training_beside_the_teacher(stored):
    parts = {"ce": labels(), "kd": soft_labels(), "hint": hint("hidden_0", "hidden_0")}
    source = sources.array_batches(IMAGES, seed=0, name="images", batch_size=4)
    batches = output_cache.joined(source, output_cache.opened(stored[0], ABOUT), batch_size=4)
    params = STUDENT.init(jax.random.key(2))
    ends = []
    for objective, frozen in (
        (distil(STUDENT, stored_teacher(), parts, teacher_policy=nothing), {}),
        (distil(STUDENT, TEACHER, parts), {"teacher": WEIGHTS}),
    ):
        step = make_train_step(objective, optax.adam(0.01))
        state = step.init(jax.random.key(0), params, frozen, batches(0, slice(0, 4)))
        for number in range(3):
            batch = as_stored(augment)(state, frozen, batches(number, slice(0, 4)))
            state, _ = jax.jit(step)(state, frozen, batch)
        ends.append(state.params)
    assert_trees_close(*ends)
    assert not np.allclose(ends[0]["model"]["layer_0"]["kernel"], params["layer_0"]["kernel"])


def test_without_augmentation_images_stay_as_they_are():
    state = TrainState(jnp.int32(0), {}, {}, {}, jax.random.key(0))
    batch = dict(IMAGES)
    assert as_stored(None)(state, {}, batch) is batch


# --- whose they are


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher": "another"}, "teacher: teacher there, another here"),
        ({"data": "other"}, f"data: {ABOUT.data} there, other here"),
        ({"taps": ()}, "taps"),
        ({"augmentation": "flip, crop 2"}, "augmentation: flip, crop 1 there, flip, crop 2 here"),
        ({"views": (3,)}, "views: "),
    ],
)
def test_outputs_of_something_else_are_refused(stored, changes, said):
    with pytest.raises(UserError, match="stored of something else") as error:
        output_cache.opened(stored[0], ABOUT._replace(**changes))
    assert said in str(error.value) and "to compute it again" in str(error.value)


def test_what_a_kill_left_is_refused(stored, tmp_path):
    with pytest.raises(UserError, match="outputs.json: there is no such file"):
        output_cache.opened(tmp_path, ABOUT)
    for file in stored[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "teacher_logits.npy").unlink()
    with pytest.raises(UserError, match="teacher_logits.npy: there is no such file"):
        output_cache.opened(tmp_path, ABOUT)
    (tmp_path / "outputs.json").write_text("{")
    with pytest.raises(UserError, match="not a folder of stored outputs"):
        output_cache.opened(tmp_path, ABOUT)


def test_files_of_other_sizes_are_refused(stored, tmp_path):
    for file in stored[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    np.save(tmp_path / "teacher_logits.npy", np.zeros((2, 9, 3), np.float32))
    with pytest.raises(UserError, match="of different sizes"):
        output_cache.opened(tmp_path, ABOUT)


def test_rows_that_are_missing_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="got 4 rows, takes one for each of 10 images"):
        output_cache.write(tmp_path, ABOUT, [[{"teacher_logits": np.zeros((4, 3))}]], 10)
    assert not (tmp_path / "outputs.json").exists()


def test_a_stored_teacher_says_which_columns_it_lacks():
    teacher = stored_teacher()
    with pytest.raises(ValueError, match="takes teacher_logits, teacher_deep besides"):
        teacher.apply({}, IMAGES, taps=("deep",))
    with pytest.raises(ValueError, match="add: got deep; stored outputs cannot be changed"):
        teacher.apply({}, IMAGES, add={"deep": 0})


# --- in a run


@pytest.mark.slow
def test_a_run_stores_once_and_trains_without_the_teacher(tmp_path):
    config = Settings()

    def students(found):
        about = json.loads((found["outputs"].files / "outputs.json").read_text())
        cache = output_cache.opened(found["outputs"].files, ABOUT)
        assert about["images"] == cache.images == 10
        source = sources.array_batches(IMAGES, seed=0, name="images", batch_size=8)
        objective = distil(STUDENT, stored_teacher(), {"kd": soft_labels()}, teacher_policy=nothing)
        return Training(
            step=make_train_step(objective, optax.sgd(0.1)),
            weights=from_init(STUDENT.init, jax.random.key(0)),
            batches=output_cache.joined(source, cache, batch_size=8),
            batch=shapes(8) | output_cache.shapes(TEACHER, shapes(8), ("hidden_0",)),
            batch_size=8,
            steps=2,
            rules=((".*", ()),),
            prepare=as_stored(augment),
        )

    module = types.SimpleNamespace(
        stages=lambda config: (
            stored_stage(config.mesh, rows=8),
            Stage("student", students, ("outputs",)),
        ),
        report=lambda config, found, folder: Results(
            {"names": sorted(found["student"].weights().abstract)}
        ),
        CLAIMS=(),
        PRESETS={"smoke": config},
    )
    found = run.execute(module, "module", "smoke", config, tmp_path / "run")
    # The export is the student alone.
    assert found["values"]["names"] == ["layer_0", "layer_1"]
