"""MTARD: a step by hand, balances in carry, and an attack that stays in its ball."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.images import CHANNELS, CLASSES, image_batch, image_model, with_padding
from support.linear import assert_trees_close

from kd_jax.losses.balance import mean_kl
from kd_jax.losses.classification import cross_entropy
from kd_jax.models.resnet import ResNetConfig, resnet
from kd_jax.objectives.transfer.adversarial import attacked, two_teachers
from kd_jax.steps import make_train_step

pytestmark = pytest.mark.slow  # all together

KEY = jax.random.key(0)
STUDENT, CLEAN, ROBUST = (image_model(w) for w in (3, 4, 5))
PARAMS = STUDENT.init(jax.random.key(1))
FROZEN = {"clean": CLEAN.init(jax.random.key(2)), "robust": ROBUST.init(jax.random.key(3))}
PLAIN = image_batch()
PLAIN["inputs"] = jax.nn.sigmoid(PLAIN["inputs"])  # in [0, 1]
BATCH = PLAIN | {"attacked": 1 - PLAIN["inputs"]}
OBJECTIVE = two_teachers(STUDENT, CLEAN, ROBUST, share_rate=0.5, temperature_rate=0.1)


def trained(objective=OBJECTIVE, frozen=FROZEN, batches=(BATCH,)):
    step = make_train_step(objective, optax.sgd(0.5))
    state, apply = step.init(KEY, PARAMS, frozen, batches[0]), jax.jit(step.apply)
    found = [(state, None)]
    for batch in batches:
        found.append(apply(found[-1][0], frozen, batch))
    return found


def losses(params, taus=(1.0, 1.0)):
    ours = [STUDENT.apply(params, {"inputs": BATCH[k]}) for k in ("inputs", "attacked")]
    theirs = [
        m.apply(FROZEN[n], {"inputs": BATCH[k]})
        for m, n, k in ((CLEAN, "clean", "inputs"), (ROBUST, "robust", "attacked"))
    ]
    return [
        float(np.average(mean_kl(s.head.logits(), t.head.logits(), temperature=tau), weights=W))
        for s, t, tau in zip(ours, theirs, taus, strict=True)
    ]


W = np.asarray(PLAIN["weights"])


def test_two_steps_by_hand():
    (start, _), (one, first), (two, second) = trained(batches=(BATCH, BATCH))
    leaves = jax.tree.leaves(start.carry)
    assert len({id(leaf) for leaf in leaves}) == len(leaves)  # each can be donated
    clean, robust = losses(PARAMS)
    np.testing.assert_allclose([first["clean"], first["robust"]], [clean / 2, robust / 2], 1e-5)
    np.testing.assert_allclose(one.carry["share"], 0.5)
    assert {float(x) for x in one.carry["temperatures"].values()} <= {1.0, np.float32(1.1)}
    assert float(one.carry["temperatures"]["clean"] + one.carry["temperatures"]["robust"]) > 2
    taus = [float(one.carry["temperatures"][n]) for n in ("clean", "robust")]
    now = losses(one.params["model"], taus)
    progress = [x / y for x, y in zip(now, (clean, robust), strict=True)]
    share = 0.5 - 0.5 * (0.5 - progress[0] / sum(progress))
    assert abs(share - 0.5) > 1e-4
    np.testing.assert_allclose(second["share"], share, rtol=1e-4)
    want = [share * now[0], (1 - share) * now[1]]
    np.testing.assert_allclose([second["clean"], second["robust"]], want, rtol=1e-4)
    np.testing.assert_allclose(two.carry["share"], share, rtol=1e-4)
    np.testing.assert_allclose(
        [two.carry["first"][n] for n in ("clean", "robust")], (clean, robust), 1e-5
    )


def test_padding_moves_nothing_and_microbatches_are_refused():
    assert_trees_close(trained()[1], trained(batches=(with_padding(BATCH),))[1], rtol=1e-4)
    with pytest.raises(ValueError, match="takes 1: this objective couples the examples"):
        make_train_step(OBJECTIVE, optax.sgd(0.1), microbatches=2)


def test_equal_teachers_and_images_move_no_balance():
    same = {"clean": FROZEN["clean"], "robust": FROZEN["clean"]}
    objective = two_teachers(STUDENT, CLEAN, CLEAN, share_rate=0.5, temperature_rate=0.1)
    batch = BATCH | {"attacked": BATCH["inputs"]}
    (state, _), *later = trained(objective, same, (batch, batch))
    for new, metrics in later:
        np.testing.assert_allclose(metrics["clean"], metrics["robust"], rtol=1e-6)
        np.testing.assert_allclose(new.carry["share"], 0.5, rtol=1e-6)
        assert_trees_close(new.carry["temperatures"], state.carry["temperatures"])


@pytest.mark.parametrize("radius", [0.1, 0.0])
def test_an_attack_stays_near_and_raises_the_loss(radius):
    state = trained()[0][0]
    prepare = jax.jit(attacked(STUDENT, radius=radius, step=0.03, steps=5))
    x = prepare(state, FROZEN, PLAIN)["attacked"]
    beside = prepare(state, FROZEN, with_padding(PLAIN))["attacked"]
    np.testing.assert_allclose(beside[:6], x, atol=1e-6)
    far = jnp.abs(x - PLAIN["inputs"]).max()
    assert far <= radius + 1e-6 and x.min() >= 0 and x.max() <= 1

    def loss(images):
        z = STUDENT.apply(PARAMS, {"inputs": images}).head.logits()
        return cross_entropy(z, PLAIN["targets"])

    if radius:
        assert far > 0.09 and (loss(x) > loss(PLAIN["inputs"]) + 1e-3).all()
    else:
        np.testing.assert_array_equal(x, PLAIN["inputs"])


def test_statistics_of_both_passes_are_kept():
    model = resnet(ResNetConfig(blocks=(1,), widths=(2,), channels=CHANNELS, classes=CLASSES))
    objective = two_teachers(model, CLEAN, ROBUST)
    step = make_train_step(objective, optax.sgd(0.1))
    state = step.init(KEY, model.init(KEY), FROZEN, BATCH)
    new, _ = jax.jit(step.apply)(state, FROZEN, BATCH)
    params = state.params["model"]
    want = state.carry["model"]
    for name in ("inputs", "attacked"):
        want = model.apply(params, {"inputs": BATCH[name]}, state=want, train=True).state
    assert_trees_close(new.carry["model"], want)
