"""Data-partition transfer by its card: who teaches what, and ties."""

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.losses.divergences import forward_kl
from kd_jax.losses.partition import (
    chosen_kl,
    flips,
    is_surest,
    knows_label_best,
    partitioned_kl,
    teacher_is_surer,
    teacher_knows_label,
)

S = jnp.array([[1.0, 2.0, 0.0], [0.5, -1.0, 1.5]])
T = jnp.array([[3.0, 1.0, 0.0], [0.0, -2.0, 2.0]])
INITIAL = jnp.array([[0.0, 0.5, 0.0], [2.0, 0.0, 1.9]])


def test_the_cards_numbers():
    for labels, mask, want in (([0, 2], [1, 1], 0.449318), ([1, 0], [0, 0], 0.149421)):
        found = teacher_knows_label(T, INITIAL, jnp.array(labels))
        np.testing.assert_array_equal(found, mask)
        loss = partitioned_kl(S, T, INITIAL, found).mean()
        np.testing.assert_allclose(loss, want, rtol=1e-5)


def test_ties_go_to_the_student_who_starts_in_a_stationary_point():
    labels = jnp.array([0, 2])
    assert not teacher_knows_label(T, T, labels).any() and not teacher_is_surer(T, T).any()
    assert teacher_is_surer(T, INITIAL).all() and not teacher_is_surer(INITIAL, T).any()
    own = jnp.zeros(2, bool)
    slope = jax.grad(lambda s: partitioned_kl(s, T, INITIAL, own).sum())(INITIAL)
    np.testing.assert_allclose(slope, 0.0, atol=1e-7)
    mixed = partitioned_kl(S, T, INITIAL, jnp.array([True, False]), temperature=2.0)
    want = [forward_kl(S, x, temperature=2.0)[i] for i, x in enumerate((T, INITIAL))]
    np.testing.assert_allclose(mixed, want, rtol=1e-6)


def test_flips():
    labels = jnp.array([0, 2])
    gained, lost = flips(S, T, labels)
    np.testing.assert_array_equal(gained, [1, 0])
    np.testing.assert_array_equal(lost, [0, 0])
    np.testing.assert_array_equal(flips(T, S, labels)[1], [1, 0])


def test_of_several_the_one_who_knows_best_teaches():
    labels, third = jnp.array([0, 2]), jnp.array([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]])
    many = jnp.stack([INITIAL, T, third])
    best, surest = knows_label_best(many, labels), is_surest(many)
    np.testing.assert_array_equal(best, [2, 1])  # of the label
    np.testing.assert_array_equal(surest, [2, 2])  # of any class
    found = chosen_kl(S, many, best, temperature=2.0)
    want = [forward_kl(S, many[m], temperature=2.0)[i] for i, m in enumerate((2, 1))]
    np.testing.assert_allclose(found, want, rtol=1e-6)
    # Ties are the student's, who is the first.
    np.testing.assert_array_equal(knows_label_best(jnp.stack([T, T]), labels), 0)
    np.testing.assert_array_equal(is_surest(jnp.stack([T, T])), 0)


def test_one_teacher_of_several_is_the_partition_of_two():
    rng = np.random.default_rng(0)
    s, t, initial = jnp.array(rng.standard_normal((3, 20, 4)))
    labels = jnp.array(rng.integers(0, 4, 20))
    for mask, chosen in (
        (
            teacher_knows_label(t, initial, labels),
            knows_label_best(jnp.stack([initial, t]), labels),
        ),
        (teacher_is_surer(t, initial), is_surest(jnp.stack([initial, t]))),
    ):
        np.testing.assert_array_equal(mask, chosen)
        found = chosen_kl(s, jnp.stack([initial, t]), chosen)
        np.testing.assert_allclose(found, partitioned_kl(s, t, initial, mask), rtol=1e-6)
