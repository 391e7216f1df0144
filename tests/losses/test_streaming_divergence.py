import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.losses.divergences import forward_kl
from kd_jax.losses.streaming import token_forward_kl
from kd_jax.types import Factored, Logits

B, T, D, V = 2, 10, 6, 17
WEIGHTS = jnp.asarray(np.random.default_rng(1).standard_normal((B, T)), jnp.float32)


def close(got, want, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, want)


def heads():
    rng = np.random.default_rng(0)
    student = Factored(
        jnp.asarray(rng.standard_normal((B, T, D)), jnp.float32),
        jnp.asarray(rng.standard_normal((V, D)), jnp.float32),
        0.7,
        3.0,
    )
    teacher = Factored(
        jnp.asarray(rng.standard_normal((B, T, D + 3)), jnp.float32),
        jnp.asarray(rng.standard_normal((V, D + 3)), jnp.float32),
        1.3,
    )
    return student, teacher


@pytest.mark.parametrize("student_dense", [False, True], ids=["factored", "logits"])
@pytest.mark.parametrize("teacher_dense", [False, True], ids=["factored", "logits"])
def test_forward_kl_equals_the_dense_form(student_dense, teacher_dense):
    student, teacher = heads()
    student = Logits(student.logits()) if student_dense else student
    teacher = Logits(teacher.logits()) if teacher_dense else teacher

    def value_and_gradients(f):
        def loss(student, teacher):
            kl = f(student, teacher)
            return (kl * WEIGHTS).sum(), kl

        (_, kl), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(student, teacher)
        return kl, *grads

    *got, to_teacher = value_and_gradients(
        lambda s, t: token_forward_kl(s, t, temperature=2.0, chunk=4)
    )
    *want, _ = value_and_gradients(lambda s, t: forward_kl(s.logits(), t.logits(), temperature=2.0))
    close(got, want)
    assert not any(np.any(g) for g in jax.tree.leaves(to_teacher))


def test_forward_kl_is_zero_at_the_teacher():
    _, teacher = heads()
    loss = jax.value_and_grad(
        lambda s: token_forward_kl(s, teacher, temperature=0.5, chunk=3).sum()
    )
    value, grad = jax.jit(loss)(teacher)
    np.testing.assert_allclose(value, 0.0, atol=1e-5)
    jax.tree.map(lambda g: np.testing.assert_allclose(g, 0.0, atol=1e-4), grad)


def test_forward_kl_takes_a_traced_temperature_and_second_derivatives():
    student, teacher = heads()

    def outer(f):
        def value(h, tau):
            return (f(student._replace(hidden=h), teacher, tau) * WEIGHTS).sum()

        def slope(h, tau):
            return jnp.square(jax.grad(value)(h, tau)).sum()

        return jax.jit(jax.grad(slope))(student.hidden, jnp.float32(1.7))

    got = outer(lambda s, t, tau: token_forward_kl(s, t, temperature=tau, chunk=4))
    want = outer(lambda s, t, tau: forward_kl(s.logits(), t.logits(), temperature=tau))
    close(got, want, rtol=1e-4, atol=1e-5)
