"""Parts of image_tables: descent, augmentation, what is lost, teachers from files."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from support.experiment_checks import Made

from experiments.distillation import image_tables
from experiments.distillation.common.classifiers import classifier
from experiments.distillation.common.descent import Descent
from experiments.distillation.parts import tables_images, tables_methods, tables_stages
from experiments.distillation.parts.tables_images import Crop, Images
from kd_jax.data import image_sets
from kd_jax.launch.stages import Compute
from kd_jax.losses.divergences import decoupled_kl, forward_kl
from kd_jax.models.resnet import ImageNetResNetConfig, ResNetConfig
from kd_jax.objectives.augment.prepare import floating
from kd_jax.trees import flatten
from kd_jax.types import Context, TrainState

SMOKE = image_tables.PRESETS["smoke"]
KEY = jax.random.key(0)


def pictures(count, side=8, channels=1, classes=10):
    generator = np.random.default_rng(1)
    return {
        "inputs": generator.integers(0, 255, (count, side, side, channels)).astype(np.uint8),
        "targets": generator.integers(0, classes, count).astype(np.int32),
        "weights": np.ones(count, np.float32),
        "index": np.arange(count, dtype=np.int32),
    }


def test_rates_fall_by_steps():
    learn = Descent(rate=0.4, epochs=10, batch_size=50, decays=(5, 8), factor=0.1)
    assert learn.steps(1000) == 200
    rate = learn.schedule(1000)
    found = [np.asarray(rate(step)) for step in (0, 99, 100, 159, 160, 199)]
    np.testing.assert_allclose(found, [0.4, 0.4, 0.04, 0.04, 0.004, 0.004], rtol=1e-5)
    rising = dataclasses.replace(learn, warm_up=2).schedule(1000)
    found = [np.asarray(rising(step)) for step in (0, 10, 40, 99, 100)]
    np.testing.assert_allclose(found, [0.0, 0.1, 0.4, 0.4, 0.04], rtol=1e-5)
    # Epochs that no batch divides.
    assert Descent(rate=1.0, epochs=3, batch_size=64).steps(100) == 5


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("everywhere", [False, True])
def test_two_steps_of_descent(nesterov, everywhere):
    learn = Descent(
        rate=0.1, epochs=1, momentum=0.9, nesterov=nesterov, weight_decay=0.01,
        decay_vectors=everywhere,
    )  # fmt: skip
    optimizer = learn.optimizer(1000)
    params = {"kernel": jnp.array([2.0]), "bias": jnp.array([3.0])}
    state, gradient = optimizer.init(params), {"kernel": 1.0, "bias": -1.0}
    expected = {"kernel": 2.0, "bias": 3.0}
    trace = {"kernel": 0.0, "bias": 0.0}
    for _ in range(2):
        grads = {name: jnp.array([x]) for name, x in gradient.items()}
        updates, state = optimizer.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        for name in expected:
            g = gradient[name]
            g += 0.01 * expected[name] if everywhere or name == "kernel" else 0.0
            trace[name] = 0.9 * trace[name] + g
            expected[name] -= 0.1 * (g + 0.9 * trace[name] if nesterov else trace[name])
    for name, x in expected.items():
        assert float(params[name][0]) == pytest.approx(x, rel=1e-5)


def test_images_are_moved_and_mirrored():
    images, batch = Images(name="digits", pad=1, flip=True), pictures(64)
    state = TrainState(jnp.int32(3), {}, {}, {}, jax.random.key(4))
    found = np.asarray(tables_images.augment(images)(state, {}, batch)["inputs"])
    wide = np.pad(np.asarray(floating(batch["inputs"])), ((0, 0), (1, 1), (1, 1), (0, 0)))
    seen = set()
    for image, padded in zip(found, wide, strict=True):
        windows = {
            (y, x, mirrored): np.flip(padded[y : y + 8, x : x + 8], 1)
            if mirrored
            else padded[y : y + 8, x : x + 8]
            for y in range(3)
            for x in range(3)
            for mirrored in (False, True)
        }
        here = [name for name, window in windows.items() if np.allclose(image, window)]
        assert len(here) == 1
        seen.add(here[0])
    assert len(seen) > 12
    plain = tables_images.augment(dataclasses.replace(images, pad=0, flip=False))
    still = plain(state, {}, batch)["inputs"]
    np.testing.assert_allclose(still, floating(batch["inputs"]), rtol=1e-6)


def test_photographs_are_cropped(monkeypatch):
    shapes = ((12, 17), (20, 9), (11, 11))
    generator = np.random.default_rng(2)
    records = [
        {"image": generator.integers(0, 255, (*shape, 3)).astype(np.uint8), "label": i}
        for i, shape in enumerate(shapes)
    ]
    asked = []

    def read(name, *, manual_dir):
        asked.append((name, manual_dir))
        return {"train": records, "test": records[:2]}

    monkeypatch.setattr(image_sets, "records", read)
    images = Images(name="imagenet2012", crop=Crop(side=6, shorter=8), pad=0, folder="here")
    source = tables_images.batches(images, seed=0, batch_size=3)
    assert not asked
    batch = source(0, slice(0, 3))
    assert batch["inputs"].shape == (3, 6, 6, 3) and sorted(batch["targets"]) == [0, 1, 2]
    test = tables_images.test(images)
    assert test["inputs"].shape == (2, 6, 6, 3) and list(test["targets"]) == [0, 1]
    assert asked == [("imagenet2012", "here")]


@functools.partial(jax.jit, static_argnums=(0, 3))
def _logits(model, params, batch, train):
    return model.apply(params, batch, state=model.state(), train=train).head.logits()


def _terms(method, losses, step):
    config = dataclasses.replace(SMOKE, losses=losses)
    student, teacher = config.student, config.teacher
    models = config.model(student), config.model(teacher)
    batch = pictures(6)
    keys = jax.random.split(KEY)
    params, taught = models[0].init(keys[0]), models[1].init(keys[1])
    frozen = {"teacher": taught, "teacher_state": models[1].state()}
    made = tables_methods.objective(
        method, losses, (student, models[0]), (teacher, models[1]), epoch=5.0
    )
    aux, carry = made.init(KEY, params, frozen, batch)
    ctx = Context(step=jnp.int32(step), key=KEY, train=True)
    lost = jax.jit(functools.partial(made.loss, ctx=ctx))
    output = lost({"model": params, "aux": aux}, carry, frozen, batch)
    z, t = _logits(models[0], params, batch, True), _logits(models[1], taught, batch, False)
    return {name: float(x.value) for name, x in output.terms.items()}, z, t, batch["targets"]


@pytest.mark.slow
def test_what_is_lost():
    losses = tables_methods.Losses(
        smoothing=0.2,
        kd=tables_methods.Soft(hard=0.3, soft=0.6, temperature=3.0),
        dkd=tables_methods.Decoupled(others=5.0, temperature=2.0, warm_up=2),
        dist=tables_methods.Correlated(inter=1.5, intra=0.5, temperature=2.0),
    )
    found, z, t, y = _terms("ce", losses, 0)
    log_p = np.asarray(jax.nn.log_softmax(z), np.float64)
    smooth = -(0.8 * log_p[np.arange(6), y] + 0.2 * log_p.mean(1)).mean()
    assert found == {"ce": pytest.approx(smooth, rel=1e-5)}
    found, *_ = _terms("kd", losses, 0)
    kl = float(forward_kl(z, t, temperature=3.0).mean())
    assert found["ce"] == pytest.approx(0.3 * smooth, rel=1e-5)
    assert found["kd"] == pytest.approx(0.6 * 9 * kl, rel=1e-4)
    # Two epochs of five steps: half way up.
    found, *_ = _terms("dkd", losses, 5)
    kl = float(decoupled_kl(z, t, jnp.asarray(y), target=1.0, others=5.0, temperature=2.0).mean())
    assert found["ce"] == pytest.approx(smooth, rel=1e-5)
    assert found["dkd"] == pytest.approx(0.5 * 4 * kl, rel=1e-4)
    found, *_ = _terms("dist", losses, 0)
    p, q = (np.asarray(jax.nn.softmax(x / 2.0), np.float64) for x in (z, t))
    inter = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    intra = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    assert found["dist"] == pytest.approx(4 * (1.5 * inter + 0.5 * intra), rel=1e-3)
    found, *_ = _terms("ofa", dataclasses.replace(losses, ofa=1.0), 0)
    soft = -(np.asarray(jax.nn.softmax(t)) * log_p).sum(1).mean()
    assert found["last"] == pytest.approx(soft, rel=1e-4)
    assert set(found) == {"ce", "last", "exits"} and found["exits"] > 0


def test_a_teacher_of_a_file(tmp_path, monkeypatch):
    network = ImageNetResNetConfig(blocks=(1,), widths=(4,), channels=1, classes=10, stem_side=3)
    file = tmp_path / "teacher.safetensors"
    config = dataclasses.replace(
        SMOKE, teacher=network, teacher_weights=str(file), score_batch=16, methods=("ce", "kd")
    )
    model, examples = config.model(network), pictures(24)
    monkeypatch.setattr(tables_images, "test", lambda _: examples)
    params, state = model.init(jax.random.key(3)), model.state()
    assert config.model(network) is model
    names = tables_stages.modules(network)
    tensors = {}
    for tree in (params, state):
        for path, x in flatten(tree).items():
            layer, leaf = path.rsplit("/", 1)
            ends = {"mean": "running_mean", "var": "running_var", "bias": "bias"}
            x = np.asarray(x)
            x = x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T
            name = f"{names[layer].name}.{ends.get(leaf, 'weight')}"
            tensors[name] = np.ascontiguousarray(x)
    safetensors.numpy.save_file(tensors, file)
    stage = image_tables.stages(config)[0]
    work = stage.build({})
    assert isinstance(work, Compute)
    tree, values = work.run()
    jax.tree.map(np.testing.assert_array_equal, tree, {"teacher": params, "teacher_state": state})
    assert jax.tree.map(jnp.shape, tree) == jax.tree.map(jnp.shape, work.shapes)
    right = model.apply(params, examples, state=state).head.logits().argmax(1)
    assert values["accuracy"] == pytest.approx(100 * np.mean(right == examples["targets"]))
    assert tables_stages.accuracy(Made(values)) == values["accuracy"]
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        tables_stages._given(config, "none").run()


def test_images_are_normalised_where_the_tables_do():
    network = ResNetConfig(blocks=(1,), widths=(4,), classes=100)
    plain = classifier(network, 1)
    normal = tables_stages._model(network, "cifar100")
    params, batch = plain.init(KEY), pictures(2, channels=3)
    mean, std = image_sets.IMAGE_SETS["cifar100"].statistics or ((), ())
    by_hand = (batch["inputs"] / 255.0 - np.array(mean)) / np.array(std)
    run_one = functools.partial(plain.apply, params, state=plain.state())
    np.testing.assert_allclose(
        normal.apply(params, batch, state=plain.state()).head.logits(),
        run_one({**batch, "inputs": by_hand.astype(np.float32)}).head.logits(),
        rtol=1e-4,
        atol=1e-5,
    )
    assert tables_stages._model(SMOKE.teacher, "digits") is classifier(SMOKE.teacher, 1)
