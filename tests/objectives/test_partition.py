"""A student that keeps what it knows: the part on a teacher and on its own beginning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.images import FROZEN, KEY, PARAMS, STUDENT, TEACHER, Laws, image_batch

from kd_jax.losses.partition import partitioned_kl, teacher_is_surer, teacher_knows_label
from kd_jax.objectives.distil import distil
from kd_jax.objectives.transfer.partition import partitioned, surer, with_initial
from kd_jax.types import Context

BATCH = image_batch()
PAIR = with_initial(TEACHER, STUDENT)
START = STUDENT.init(jax.random.key(5))
BOTH = {
    "teacher": {
        "teacher": FROZEN["teacher"],
        "teacher_state": {},
        "initial": START,
        "initial_state": {},
    }
}
PARTS = {"labels": partitioned(2.0, temperature=2.0), "sure": partitioned(chosen=surer)}


def test_laws():
    assert jax.tree.structure(PAIR.init(KEY)) == jax.tree.structure(BOTH["teacher"])
    Laws(PARTS, BATCH, teacher=PAIR, frozen=BOTH).check()


@pytest.mark.parametrize("name", PARTS)
def test_by_hand(name):
    objective = distil(STUDENT, PAIR, PARTS)
    params = {"model": PARAMS, "aux": {n: {} for n in PARTS}}
    output = objective.loss(params, {}, BOTH, BATCH, Context(KEY, jnp.int32(0)))
    s, t, initial = (
        m.apply(p, BATCH).head.logits()
        for m, p in ((STUDENT, PARAMS), (TEACHER, FROZEN["teacher"]), (STUDENT, START))
    )
    if name == "labels":
        mask, tau, scale = teacher_knows_label(t, initial, BATCH["targets"]), 2.0, 8.0
    else:
        mask, tau, scale = teacher_is_surer(t, initial), 1.0, 1.0
    assert 0 < mask.sum() < 6
    values = partitioned_kl(s, t, initial, mask, temperature=tau)
    want = scale * np.average(values, weights=BATCH["weights"])
    np.testing.assert_allclose(output.terms[name].value, want, rtol=1e-5)
