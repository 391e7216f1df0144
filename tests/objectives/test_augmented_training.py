"""Augmentation as the `prepare` of a training: what becomes of a batch, a loss of two labels."""

import functools

import jax
import numpy as np
import optax
import pytest

from kd_jax.launch.loop import fit
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.sharding import shardings_of
from kd_jax.launch.weights import abstract_state, from_arrays, init_state
from kd_jax.losses.classification import cross_entropy
from kd_jax.models import mlp
from kd_jax.objectives.augment.images import chain, crop, each, flip
from kd_jax.objectives.augment.mix import cutmix, mixup
from kd_jax.objectives.augment.prepare import augmented
from kd_jax.objectives.on_policy import draw_keys
from kd_jax.objectives.supervise import supervise
from kd_jax.steps import make_train_step
from kd_jax.trees import flatten
from kd_jax.types import weighted_sum

pytestmark = pytest.mark.slow  # all together

ROWS = 8
CHANGE = chain(flip, functools.partial(crop, pad=1))
MODEL = mlp.mlp(mlp.MLPConfig(inputs=16, widths=(6,), classes=3))


def batches(step, rows):
    """Images in u8; the last row is padding."""
    rng = np.random.default_rng([5, step])
    batch = {
        "inputs": rng.integers(0, 256, (ROWS, 4, 4, 1)).astype(np.uint8),
        "targets": rng.integers(0, 3, ROWS).astype(np.int32),
        "weights": np.ones(ROWS, np.float32),
        "index": rng.permutation(100)[:ROWS].astype(np.int32),
    }
    batch["weights"][-1] = 0
    return {name: value[rows] for name, value in batch.items()}


def two_labels(output, batch):
    """lam CE(own label) + (1 - lam) CE(the partner's), a mean over examples."""
    z, lam = output.head.logits(), batch["lam"]
    loss = lam * cross_entropy(z, batch["targets"])
    loss += (1 - lam) * cross_entropy(z, batch["partner_targets"])
    return weighted_sum(loss, batch["weights"])


STEP = make_train_step(supervise(MODEL, {"labels": two_labels}), optax.sgd(0.1))
PREPARE = augmented(CHANGE, mix=cutmix)
WHOLE = batches(0, slice(None))


@functools.cache
def first_state():
    return jax.jit(lambda: STEP.init(jax.random.key(2), MODEL.init(jax.random.key(1)), {}, WHOLE))()


def trained(mesh):
    weights = from_arrays(jax.device_get(first_state().params["model"]))
    after = jax.eval_shape(PREPARE, first_state(), {}, WHOLE)
    abstract = abstract_state(STEP, weights, {}, after, rules=mlp.RULES, mesh=mesh)
    return fit(
        STEP,
        init_state(STEP, weights, {}, after, jax.random.key(2), abstract),
        {},
        batches,
        steps=3,
        mesh=mesh,
        shardings=shardings_of(abstract),
        batch_size=ROWS,
        prepare=PREPARE,
    )


def test_a_training_on_augmented_images_is_the_same_on_eight_devices():
    one = trained(make_mesh(MeshConfig(), jax.devices()[:1]))
    eight = trained(make_mesh(MeshConfig()))
    for (path, a), b in zip(
        flatten(one.params).items(), jax.tree.leaves(eight.params), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=path)


def test_what_a_batch_becomes():
    state = first_state()
    alone, together = draw_keys(state)
    got = jax.jit(augmented(CHANGE, mix=mixup))(state, {}, WHOLE)
    images = jax.jit(each(CHANGE))(alone, WHOLE["inputs"] / np.float32(255), WHOLE["index"])
    mixed = jax.jit(mixup)(together, images, WHOLE["index"], WHOLE["weights"])
    np.testing.assert_allclose(got["inputs"], mixed.images, atol=1e-6)
    np.testing.assert_allclose(got["lam"], mixed.lam, atol=1e-6)
    np.testing.assert_array_equal(got["partner_targets"], WHOLE["targets"][mixed.partners])
    for name in ("targets", "weights", "index"):
        np.testing.assert_array_equal(got[name], WHOLE[name])
    assert got["lam"][-1] == 1
    # Another step draws anew; without a mix only the images differ; floating images are not scaled.
    later = jax.jit(augmented(CHANGE))(state._replace(step=state.step + 1), {}, WHOLE)
    assert set(later) == set(WHOLE)
    assert np.abs(later["inputs"] - images).max() > 0.1
    floating = WHOLE | {"inputs": WHOLE["inputs"].astype(np.float32)}
    np.testing.assert_array_equal(augmented()(state, {}, floating)["inputs"], floating["inputs"])
    with pytest.raises(ValueError, match="inputs: got int32, takes uint8 or floating"):
        augmented()(state, {}, WHOLE | {"inputs": WHOLE["inputs"].astype(np.int32)})


def test_padding_moves_no_number():
    state = first_state()
    shorter = jax.tree.map(lambda x: x[:-1], WHOLE)
    loss = jax.jit(lambda batch: STEP(state, {}, PREPARE(state, {}, batch))[1]["loss"])
    np.testing.assert_allclose(loss(WHOLE), loss(shorter), rtol=1e-6)
