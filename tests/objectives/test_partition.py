"""A student that keeps what it knows: the part on a teacher and on its own beginning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.images import FROZEN, KEY, PARAMS, STUDENT, TEACHER, Laws, image_batch

from kd_jax.losses.partition import (
    chosen_kl,
    knows_label_best,
    partitioned_kl,
    teacher_is_surer,
    teacher_knows_label,
)
from kd_jax.objectives.distil import distil
from kd_jax.objectives.transfer.partition import (
    partitioned,
    partitioned_among,
    surer,
    surest,
    with_initial,
    with_teachers,
)
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


@pytest.mark.slow
def test_laws():
    assert jax.tree.structure(PAIR.init(KEY)) == jax.tree.structure(BOTH["teacher"])
    Laws(PARTS, BATCH, teacher=PAIR, frozen=BOTH).check()


@pytest.mark.slow
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


SECOND = TEACHER.init(jax.random.key(6))
PANEL = with_teachers(STUDENT, {"one": TEACHER, "two": TEACHER})
ALL = {
    "teacher": {
        "initial": {"weights": START, "state": {}},
        "teachers": {
            "one": {"weights": FROZEN["teacher"], "state": {}},
            "two": {"weights": SECOND, "state": {}},
        },
    }
}
AMONG = {
    "labels": partitioned_among(2.0, temperature=2.0),
    "sure": partitioned_among(chosen=surest),
}


@pytest.mark.slow  # compiles once more for eight devices
def test_laws_of_several():
    assert jax.tree.structure(PANEL.init(KEY)) == jax.tree.structure(ALL["teacher"])
    Laws(AMONG, BATCH, teacher=PANEL, frozen=ALL).check()


@pytest.mark.slow
def test_several_by_hand():
    objective = distil(STUDENT, PANEL, AMONG)
    params = {"model": PARAMS, "aux": {n: {} for n in AMONG}}
    output = objective.loss(params, {}, ALL, BATCH, Context(KEY, jnp.int32(0)))
    logits = jnp.stack(
        [
            m.apply(p, BATCH).head.logits()
            for m, p in ((STUDENT, START), (TEACHER, FROZEN["teacher"]), (TEACHER, SECOND))
        ]
    )
    taps = PANEL.apply(ALL["teacher"], BATCH, taps=("sources", "map")).taps
    np.testing.assert_allclose(taps["sources"], logits.swapaxes(0, 1), rtol=1e-5)
    own = STUDENT.apply(START, BATCH, taps=("map",)).taps
    np.testing.assert_array_equal(taps["map"], own["map"])
    chosen = knows_label_best(logits, BATCH["targets"])
    assert len(set(np.asarray(chosen).tolist())) == 3
    student = STUDENT.apply(PARAMS, BATCH).head.logits()
    values = chosen_kl(student, logits, chosen, temperature=2.0)
    want = 8 * np.average(values, weights=BATCH["weights"])
    np.testing.assert_allclose(output.terms["labels"].value, want, rtol=1e-5)


def test_teachers_are_needed():
    with pytest.raises(ValueError, match="teachers: got none"):
        with_teachers(STUDENT, {})
