"""The rest of torchdistill's set as parts: laws, two-stage methods, and what an export holds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.images import CLASSES, FROZEN, KEY, PARAMS, STUDENT, TEACHER, Laws, image_batch

from kd_jax.losses import features
from kd_jax.losses.contrastive import other_classes
from kd_jax.losses.self_supervised import least_wrong, view_similarities
from kd_jax.models.resnet import ResNetConfig, resnet
from kd_jax.objectives.distil import distil, labels, soft_labels
from kd_jax.objectives.stored import nothing, stored_teacher
from kd_jax.objectives.transfer import attached, hints, logits, maps, probabilistic
from kd_jax.objectives.transfer import self_supervised as views
from kd_jax.objectives.transfer.contrastive import contrastive
from kd_jax.steps import make_train_step
from kd_jax.types import Context

pytestmark = pytest.mark.slow  # all together

SELVES = image_batch(8)
# Four views of each image: one target, and one weight.
SELVES |= {k: SELVES[k][jnp.arange(8) // 4 * 4] for k in ("targets", "weights")}
TELLER = attached.attached(TEACHER, "pooled", attached.projection(8, 5), "views")
FACTORED = attached.attached(TEACHER, "map", attached.paraphraser(4, 2), "factor")


def with_module(model, seed=5):
    return {"teacher": model.init(jax.random.key(seed)) | {"model": FROZEN["teacher"]}}


SET = Laws(
    {
        "embeddings": maps.matched(features.hint, ("logits",), ("logits",), 15.0),
        "layers": maps.matched(features.squared_distance, ("logits",), ("logits",)),
        "flow": maps.flow((("class_map", "class_map"),), (("class_map", "class_map"),)),
        "channels": maps.channel_similarity("deep", "map"),
        "affinity": maps.affinity("map", "deep"),
        "wide_affinity": maps.affinity("map", "map", side=3),
        "review": maps.review(("map", "deep"), ("map", "deep"), width=3),
        "precision": probabilistic.precision_weighted("logits", "logits"),
        "boundary": hints.activation_boundary(("map", "deep"), ("map", "deep")),
        "log_power": hints.log_power("pooled", "pooled"),
        "directions": logits.directions(),
        "norm": hints.output_norm("pooled", 0.1, power=2),
        "factor": attached.factor_transfer("map", "factor"),
        "adaptation": attached.knowledge_adaptation("map", "factor"),
    },
    image_batch(),
    teacher=FACTORED,
    frozen=with_module(FACTORED),
)
VIEWS = Laws(
    {
        "ce": views.on_plain(labels()),
        "kd": views.on_plain(soft_labels(0.9, temperature=4.0)),
        "ss": views.view_relations("pooled", "views"),
        "tf": views.augmented_labels(ratio=0.5),
    },
    SELVES,
    teacher=TELLER,
    frozen=with_module(TELLER),
    padding=8,
)


@pytest.mark.parametrize("laws", [SET, VIEWS], ids=["set", "views"])
def test_laws(laws):
    laws.check()


@pytest.mark.parametrize(
    ("model", "parts", "batch"),
    [
        (
            FACTORED,
            {"mse": maps.matched(features.hint, ("factor/back",), ("map",))},
            image_batch(),
        ),
        (TELLER, {"ss": views.view_contrast("views")}, SELVES),
    ],
    ids=["paraphraser", "views"],
)
def test_what_is_attached_is_trained_alone(model, parts, batch):
    objective = distil(model, TEACHER, parts, policy=attached.beside("teacher"))
    step = make_train_step(objective, optax.adam(0.03))
    module = model.init(jax.random.key(5))["attached"]
    state, apply = step.init(KEY, module, FROZEN, batch), jax.jit(step.apply)
    losses = []
    for _ in range(60):
        state, metrics = apply(state, FROZEN, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]
    assert jax.tree.structure(state.params["model"]) == jax.tree.structure(module)


def test_rotations_are_made_of_images_and_read_from_what_is_stored():
    """By hand, of images turned before; stored outputs come to the same as a running teacher."""
    images = image_batch(2)
    turned = {name: jnp.repeat(x, 4, 0) for name, x in images.items()}
    turned["inputs"] = jnp.stack([jnp.rot90(x, k) for x in images["inputs"] for k in range(4)])
    by_hand = VIEWS.objective
    aux, carry = by_hand.init(KEY, PARAMS, VIEWS.frozen, turned)
    params, ctx = {"model": PARAMS, "aux": aux}, Context(KEY, jnp.int32(0))
    want = by_hand.loss(params, carry, VIEWS.frozen, turned, ctx)

    over = views.over_rotations(by_hand)
    found = over.loss(params, carry, VIEWS.frozen, images, ctx)
    said = views.in_rotations(TELLER).apply(VIEWS.frozen["teacher"], images, taps=("views",))
    assert said.head.logits().shape == (2, 4, CLASSES)
    stored = {"teacher_logits": said.head.logits(), "teacher_views": said.taps["views"]}
    reading = views.over_rotations(
        distil(STUDENT, stored_teacher(), VIEWS.parts, teacher_policy=nothing)
    )
    read = reading.loss(params, carry, {}, images | stored, ctx)
    for name in VIEWS.parts:
        for output in (found, read):
            np.testing.assert_allclose(
                output.terms[name].value, want.terms[name].value, rtol=1e-5, err_msg=name
            )
    assert jax.tree.map(jnp.shape, over.init(KEY, PARAMS, VIEWS.frozen, images)[0]) == jax.tree.map(
        jnp.shape, aux
    )


def test_views_by_hand():
    output = loss_of(VIEWS)
    weights = np.asarray(SELVES["weights"]).reshape(2, 4)[:, 1:].ravel()
    rows = np.array([1, 2, 3, 5, 6, 7])
    t = TEACHER.apply(FROZEN["teacher"], SELVES, taps=("pooled",))
    s = STUDENT.apply(PARAMS, SELVES, taps=("pooled",))

    def kl(p, q):
        p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (p, q))
        return (p * np.log(p / q)).sum(1)

    zt, zs = (np.asarray(x.head.logits(), np.float64)[rows] for x in (t, s))
    kept = np.asarray(least_wrong(jnp.array(zt), SELVES["targets"][rows], ratio=0.5)) * weights
    want = 2.7 * 16 * (kl(zt / 4, zs / 4) * kept).sum() / kept.sum()
    np.testing.assert_allclose(output.terms["tf"].value, want, rtol=1e-4)

    def project(weights, x):
        x = jax.nn.relu(x @ weights["layer_0"]["kernel"])
        return x @ weights["layer_1"]["kernel"]

    near_t = view_similarities(project(VIEWS.frozen["teacher"]["attached"], t.taps["pooled"]))
    aux = VIEWS.objective.init(KEY, PARAMS, VIEWS.frozen, SELVES)[0]["ss"]
    near_s = view_similarities(project(aux, s.taps["pooled"]))
    kept = np.asarray(least_wrong(near_t, jnp.arange(6) // 3, ratio=0.75)) * weights
    want = (
        10 * 0.25 * (kl(2 * np.asarray(near_t), 2 * np.asarray(near_s)) * kept).sum() / kept.sum()
    )
    np.testing.assert_allclose(output.terms["ss"].value, want, rtol=1e-4)
    plain = kl(*(np.asarray(x.head.logits())[[0, 4]] / 4 for x in (t, s)))
    want = 0.9 * 16 * np.average(plain, weights=np.asarray(SELVES["weights"])[[0, 4]])
    np.testing.assert_allclose(output.terms["kd"].value, want, rtol=1e-4)


def loss_of(laws):
    objective = laws.objective
    aux, carry = objective.init(KEY, PARAMS, laws.frozen, laws.batch)
    params, ctx = {"model": PARAMS, "aux": aux}, Context(KEY, jnp.int32(0))
    return objective.loss(params, carry, laws.frozen, laws.batch, ctx)


def standard(x, eps):
    return (x - x.mean(0)) / np.sqrt(x.var(0) + eps)


def test_projected_and_adapted_features_by_hand():
    parts = {name: SET.parts[name] for name in ("log_power", "adaptation")}
    laws = SET._replace(parts=parts)
    aux = laws.objective.init(KEY, PARAMS, laws.frozen, laws.batch)[0]
    output, weights = loss_of(laws), np.asarray(laws.batch["weights"])
    s = STUDENT.apply(PARAMS, laws.batch, taps=("map", "pooled")).taps
    t = FACTORED.apply(laws.frozen["teacher"], laws.batch, taps=("factor", "pooled")).taps

    x = standard(np.asarray(s["pooled"] @ aux["log_power"]["kernel"], np.float64), 1e-4)
    apart = np.abs(x - standard(np.asarray(t["pooled"], np.float64), 1e-4))
    want = 2 * np.log((apart**4).sum())
    np.testing.assert_allclose(output.terms["log_power"].value, want, rtol=1e-4)

    kernel = np.asarray(aux["adaptation"]["conv"]["kernel"], np.float64)
    around = np.pad(np.asarray(s["map"], np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    places = [(i, j) for i in range(3) for j in range(3)]
    x = np.sum([around[:, i : i + 4, j : j + 4] @ kernel[i, j] for i, j in places], 0)
    x = np.maximum(standard(x.reshape(-1, 2), 1e-5), 0).reshape(6, -1)
    y = np.asarray(t["factor"], np.float64).reshape(6, -1)
    x, y = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
    want = 50 * np.average(np.abs(x - y).mean(1), weights=weights)
    np.testing.assert_allclose(output.terms["adaptation"].value, want, rtol=1e-4)


def test_a_replaced_front_is_trained_alone():
    """GHND: a copy of the teacher, matched at two later layers."""
    front = {"one": TEACHER.init(jax.random.key(8))["one"]}
    layers = maps.matched(features.squared_distance, ("deep", "logits"), ("deep", "logits"))
    step = make_train_step(
        distil(TEACHER, TEACHER, {"ghnd": layers}), optax.adam(0.03), trains=r"model/one"
    )
    batch = image_batch()
    state, apply = step.init(KEY, FROZEN["teacher"] | front, FROZEN, batch), jax.jit(step.apply)
    losses = []
    for _ in range(60):
        state, metrics = apply(state, FROZEN, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.2 * losses[0]
    for name in ("two", "head"):
        np.testing.assert_array_equal(state.params["model"][name], FROZEN["teacher"][name])


def test_an_export_holds_the_student_alone():
    _, state = SET.start()
    model = state.params["model"]
    assert jax.tree.structure(model) == jax.tree.structure(PARAMS)
    assert sum(x.size for x in jax.tree.leaves(state.params["aux"])) > 0
    image = image_batch()
    assert STUDENT.apply(model, image).head.logits().shape == (6, CLASSES)


def test_channels_are_divided_by_the_batch_once_more():
    part = {"channels": maps.channel_similarity("map", "map", 1.0)}
    batch = image_batch()
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), batch)
    one, two = (loss_of(Laws(part, b)).terms["channels"].value for b in (batch, twice))
    np.testing.assert_allclose(two, one / 2, rtol=1e-4)


def test_networks_with_statistics_of_their_own():
    """A student's running statistics move beside what its parts remember; a teacher's stay."""
    small, large = (
        resnet(ResNetConfig(blocks=(1, 1), widths=w, channels=2, classes=CLASSES))
        for w in ((2, 4), (3, 6))
    )
    parts = {
        "ce": labels(),
        "at": maps.attention(("block_0", "block_1"), ("block_0", "block_1")),
        "crd": contrastive(
            "pooled", "pooled", examples=8, negatives=other_classes(np.arange(8) % 3, 2), width=3
        ),
    }
    batch = image_batch(8)
    frozen = {"teacher": large.init(KEY), "teacher_state": large.state()}
    step = make_train_step(distil(small, large, parts), optax.sgd(0.1))
    state = step.init(KEY, small.init(KEY), frozen, batch)
    assert jax.tree.structure(state.carry["model"]) == jax.tree.structure(small.state())
    new, metrics = jax.jit(step.apply)(state, frozen, batch)
    moved = jax.tree.map(lambda x, y: bool(np.any(x != y)), state.carry, new.carry)
    assert all(jax.tree.leaves(moved)) and np.isfinite(metrics["loss"])
