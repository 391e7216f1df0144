"""Class-relation distillation by its card: assignments, swapped views, and its learnt weight."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.losses.discovery import class_relation, sinkhorn, swapped_cross_entropy

OLD = jnp.array([[0.6, 0.2, -0.1], [-0.2, 0.5, 0.1]])[None, None]
NEW = jnp.array([[0.5, 0.1, 0.0, 0.3, 0.2], [0.0, 0.2, 0.1, 0.8, -0.3]])[None, None]


@pytest.mark.slow
def test_the_cards_numbers():
    one = class_relation(OLD[:, :, :1], NEW[:, :, :1])
    np.testing.assert_allclose(one, [[[14.127271]]], rtol=1e-5)
    np.testing.assert_allclose(class_relation(OLD, NEW).mean(), 14.709255, rtol=1e-5)
    found = sinkhorn(jnp.array([[0.3, 0.2], [0.25, 0.1], [0.1, 0.4]]))
    want = [[0.918444, 0.081556], [0.968366, 0.031634], [0.003764, 0.996236]]
    np.testing.assert_allclose(found, want, atol=2e-6)


def test_the_weight_is_learnt_and_the_old_model_is_not():
    loss = jax.jit(jax.grad(lambda o, z: class_relation(o, z).mean(), (0, 1)))
    of_old, of_new = loss(OLD, NEW)
    assert not np.any(of_old) and np.all(of_new[..., 3:] != 0)
    # With all views alike, the known block at the old one has a gradient through w alone.
    same = NEW.at[..., :3].set(OLD)
    one = slice(0, 1)
    slope = loss(OLD[:, :, one], same[:, :, one])[1]
    np.testing.assert_allclose(slope, 0.0, atol=1e-5)  # w of one entry is 1


def test_weights_of_examples_and_none_at_all():
    both = class_relation(OLD, NEW)
    one = class_relation(OLD, NEW, jnp.array([1.0, 0.0]))
    first = class_relation(OLD[:, :, :1], NEW[:, :, :1])
    np.testing.assert_allclose(one[..., :1], first, rtol=1e-5)
    plain = class_relation(OLD, NEW, weigh=False)
    p, q = (np.exp(z / 0.4) for z in (np.asarray(NEW)[..., :3], np.asarray(OLD)))
    p, q = (x / x.sum(-1, keepdims=True) for x in (p, q))
    np.testing.assert_allclose(plain, -16 * (q * np.log(p)).sum(-1), rtol=1e-5)
    assert np.any(np.abs(plain - both) > 0.1)


def test_absent_examples_are_assigned_nowhere():
    z = jnp.array(np.random.default_rng(2).uniform(-1, 1, (5, 3)))
    there = jnp.array([True, False, True, True, False])
    found = sinkhorn(z.at[1].set(1e3), there)
    np.testing.assert_allclose(found[there], sinkhorn(z[there]), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found[~there], 0.0)
    assert not np.any(sinkhorn(z, jnp.zeros(5, bool)))


def test_assignments_are_balanced_rows():
    z = jnp.array(np.random.default_rng(0).uniform(-1, 1, (8, 4)))
    q = sinkhorn(z, eps=0.5, steps=40)
    np.testing.assert_allclose(q.sum(1), 1.0, rtol=1e-4)
    np.testing.assert_allclose(q.sum(0), 2.0, rtol=1e-3)
    assert np.isfinite(sinkhorn(1e3 * z)).all()


def test_views_predict_the_others_assignments():
    rng = np.random.default_rng(1)
    z, q = rng.standard_normal((3, 1, 2, 4)), rng.dirichlet(np.ones(4), (2, 1, 2))
    log_p = z / 0.1 - np.log(np.exp(z / 0.1).sum(-1, keepdims=True))
    pairs = [(u, v) for v in range(2) for u in range(3) if u != v]
    want = sum(-(q[v] * log_p[u]).sum(-1) for u, v in pairs) / len(pairs)
    found = swapped_cross_entropy(jnp.array(z), jnp.array(q))
    np.testing.assert_allclose(found, want, rtol=1e-4)


def test_new_classes_are_needed():
    with pytest.raises(ValueError, match="got 3 classes, takes more than the 3 known"):
        inspect.unwrap(class_relation)(OLD, NEW[..., :3])
