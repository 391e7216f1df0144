"""The parts of the usual baselines: whatever padding, devices and microbatches, one number."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.images import FROZEN, KEY, PARAMS, STUDENT, TEACHER, Laws, image_batch

from kd_jax.losses import batch_relations, maps
from kd_jax.losses import contrastive as crd
from kd_jax.losses import logits as of_logits
from kd_jax.losses.divergences import forward_kl
from kd_jax.losses.features import direction
from kd_jax.objectives.distil import distil, labels
from kd_jax.objectives.parts import scheduled_part, warm_up
from kd_jax.objectives.transfer import contrastive, hints, logits, probabilistic, relations
from kd_jax.objectives.transfer.maps import attention
from kd_jax.steps import make_train_step
from kd_jax.types import Context

pytestmark = pytest.mark.slow  # all together

BATCH = image_batch()
PAIR = ("deep", "deep")
NEGATIVES = crd.other_classes(np.arange(9) % 3, 4)
RELATIONS = {
    "distances": relations.distances("pooled", "deep"),
    "angles": relations.angles("pooled", "pooled"),
    "similarities": relations.similarities(*PAIR),
    "probabilities": relations.probabilities("pooled", "pooled", 300.0),
    "congruence": relations.correlation_congruence(*PAIR, 1.0, width=5),
    "contrastive": contrastive.contrastive(
        "pooled", "pooled", examples=9, negatives=NEGATIVES, width=5
    ),
}
OTHERS = {
    "attention": attention(("map", "deep"), ("deep", "deep")),
    "distance": attention(("map",), ("map",), 1.0, loss=maps.attention_distance),
    "variational": probabilistic.variational("map", "deep"),
    "smaller": hints.map_hint("map", "deep"),
    "larger": hints.map_hint("deep", "map"),
    "same": hints.map_hint("map", "map"),
    "decoupled": logits.decoupled(),
    "standardised": logits.standardised_labels(),
    "correlated": logits.correlated(2.0, temperature=4.0),
    "levels": logits.levels(),
    "unmasked": logits.levels(masked=False),
}


@pytest.mark.parametrize("parts", [RELATIONS, OTHERS], ids=["relations", "others"])
def test_laws(parts):
    Laws(parts, BATCH).check()


def output_of(parts, batch=BATCH, carry=None, step=0):
    objective = distil(STUDENT, TEACHER, parts)
    aux, start = objective.init(KEY, PARAMS, FROZEN, batch)
    params, ctx = {"model": PARAMS, "aux": aux}, Context(KEY, jnp.int32(step))
    output = objective.loss(params, start if carry is None else carry, FROZEN, batch, ctx)
    return objective, params, start, output


def taps(model, params, batch=BATCH):
    found = model.apply(params, batch, taps=("map", "deep", "pooled", "logits")).taps
    return {n: x.reshape(len(x), -1) if n == "pooled" else x for n, x in found.items()}


OURS, THEIRS = taps(STUDENT, PARAMS), taps(TEACHER, FROZEN["teacher"])


def test_pairs_weigh_the_product_of_their_weights():
    w = np.asarray(BATCH["weights"])
    output = output_of(RELATIONS)[-1]
    two = np.einsum("i,j->ij", w, w)
    values = batch_relations.similarities(OURS["deep"], THEIRS["deep"])
    by_hand = 3000 * (values * two).sum() / two.sum()
    np.testing.assert_allclose(output.terms["similarities"].value, by_hand, rtol=1e-5)
    three = np.einsum("i,j,k->ijk", w, w, w)
    values = batch_relations.angles(OURS["pooled"], THEIRS["pooled"])
    by_hand = 50 * (values * three).sum() / three.sum()
    np.testing.assert_allclose(output.terms["angles"].value, by_hand, rtol=1e-5)


def test_banks_and_constants_are_written_once_a_step():
    part = {"crd": RELATIONS["contrastive"]}
    objective, params, start, output = output_of(part)
    memory = start["memory"]["crd"]
    assert memory["student"]["bank"].shape == (9, 5) and np.isinf(memory["student"]["log_z"])
    assert np.abs(memory["teacher"]["bank"]).max() <= (3 / 5) ** 0.5
    ctx = Context(KEY, jnp.int32(0))
    carry = objective.update(start, params, FROZEN, output, ctx)
    after = carry["memory"]["crd"]

    # By hand: the student meets the teacher's bank, divided by the first batch's mean times n.
    aux = params["aux"]["crd"]
    v = {
        name: direction(x["pooled"] @ aux[name]["kernel"] + aux[name]["bias"][None])
        for name, x in (("student", OURS), ("teacher", THEIRS))
    }
    key = jax.random.fold_in(KEY, 0)
    drawn = jnp.stack([NEGATIVES(jax.random.fold_in(key, i), jnp.int32(i % 3)) for i in range(6)])
    columns = jnp.concatenate([jnp.arange(6)[:, None], drawn], 1)
    total = 0.0
    for one, other in (("student", "teacher"), ("teacher", "student")):
        x = jnp.exp(jnp.einsum("bk,bmk->bm", v[one], memory[other]["bank"][columns]) / 0.07)
        z = x.mean() * 9
        np.testing.assert_allclose(after[one]["log_z"], jnp.log(z), rtol=1e-5)
        c, x = 4 / 9 + 1e-7, x / z
        total += -jnp.log(x[:, 0] / (x[:, 0] + c)) - jnp.log(4 / 9 / (x[:, 1:] + c)).sum(1)
        mixed = 0.5 * memory[one]["bank"][:6] + 0.5 * v[one]
        mixed /= jnp.linalg.norm(mixed, axis=1, keepdims=True)
        np.testing.assert_allclose(after[one]["bank"][:6], mixed, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(after[one]["bank"][6:], memory[one]["bank"][6:])
    w = BATCH["weights"]
    expected = 0.8 * (total * w).sum() / w.sum()
    np.testing.assert_allclose(output.terms["crd"].value, expected, rtol=1e-4)

    # The constant stays that of the first batch.
    other = image_batch(seed=3)
    later = output_of(part, other, carry)[-1]
    again = objective.update(carry, params, FROZEN, later, ctx)["memory"]["crd"]
    assert again["student"]["log_z"] == after["student"]["log_z"]
    assert np.any(again["student"]["bank"][:6] != after["student"]["bank"][:6])


def test_levels_are_kd_and_two_correlations():
    s, t = (jnp.asarray(x["logits"]) for x in (OURS, THEIRS))
    even = BATCH | {"weights": jnp.ones(6)}
    parts = {
        "one": logits.levels(2.0, temperatures=(4.0,), masked=False),
        "half": logits.levels(2.0, temperatures=(4.0,)),
    }
    terms = output_of(parts, even)[-1].terms
    kl = 16 * forward_kl(s, t, temperature=4.0).mean()
    rows = kl + of_logits.batch_correlation(s, t, temperature=4.0).mean()
    classes = of_logits.class_correlation(s, t, temperature=4.0).mean()
    np.testing.assert_allclose(terms["one"].value, 2 * (rows + classes), rtol=1e-5)
    # Of six examples three, and of three classes two, are at most at the median.
    np.testing.assert_allclose(terms["half"].value, 2 * (rows / 2 + 2 / 3 * classes), rtol=1e-5)


def test_a_scheduled_part_warms_up():
    parts = {"ce": labels(), "dkd": scheduled_part(logits.decoupled(0.5), warm_up(4))}
    full = output_of({"dkd": logits.decoupled(0.5)})[-1].terms["dkd"].value
    for step, share in ((0, 0.0), (1, 0.25), (4, 1.0), (9, 1.0)):
        value = output_of(parts, step=step)[-1].terms["dkd"].value
        np.testing.assert_allclose(value, share * full, rtol=1e-6)
    with pytest.raises(ValueError, match="steps: got 0"):
        warm_up(0)


def test_stages_in_pairs_and_maps_that_fit():
    with pytest.raises(ValueError, match="takes as many as the student's"):
        attention(("map", "deep"), ("deep",))
    # Sides 2 and 4 are a transposed convolution; 4 to 3 would be a size of 2, 1 to 4 nothing.
    with pytest.raises(ValueError, match="got a map of side 1, takes half the teacher's 4"):
        hints._size(1, 4)
    assert hints._size(4, 3) == 2


def test_what_is_remembered_can_be_donated():
    """No array stands twice in the state."""
    step = make_train_step(distil(STUDENT, TEACHER, RELATIONS), optax.sgd(0.01))
    leaves = jax.tree.leaves(step.init(KEY, PARAMS, FROZEN, BATCH).carry)
    assert len({id(leaf) for leaf in leaves}) == len(leaves)
