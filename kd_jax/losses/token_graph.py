"""Relations between the tokens of a batch: the graph of nearest neighbours, identity, context.

All of this is UNVERIFIED: neither the paper's text nor its authors' code was read, and the formulas
are those of a written summary. "Knowledge distillation via token-level relationship graph" (TRG),
2023. Tokens are places of maps; teacher and student have the same ones.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from kd_jax.losses import _checks, _geometry
from kd_jax.losses._logs import kl


def adjacency(
    tokens: Float[Array, "n D"],
    present: Bool[Array, " n"] | None = None,
    *,
    neighbours: int = 8,
    sigma: ArrayLike = 1.0,
) -> Float[Array, "n n"]:
    """exp(-||x_i - x_j||^2 / (2 sigma)) where i is among the nearest of j, else 0: f32 [n, n].

    j's nearest are `neighbours` other tokens that are present, of equally near ones the first. Not
    symmetric; sigma, not its square, as the summary writes it.
    """
    _checks.positive("sigma", sigma)
    n = tokens.shape[0]
    if not 0 < neighbours < n:
        raise ValueError(f"neighbours: got {neighbours}, takes 1 to {n - 1}, the other tokens")
    here = _geometry.those(present, tokens)
    x = _geometry.without_absent(tokens.astype(jnp.float32), here)
    square = jnp.square(x[:, None] - x[None]).sum(-1)
    other = here[:, None] & here[None] & ~jnp.eye(n, dtype=bool)
    far = jnp.where(other, jax.lax.stop_gradient(square), jnp.inf)
    order = jnp.argsort(jnp.argsort(far, axis=0, stable=True), axis=0, stable=True)
    return jnp.where((order < neighbours) & other, jnp.exp(-square / (2 * sigma)), 0.0)


def local(
    student: Float[Array, "n D"],
    teacher: Float[Array, "n E"],
    present: Bool[Array, " n"] | None = None,
    *,
    neighbours: int = 8,
    sigma: ArrayLike = 1.0,
) -> Float[Array, " n"]:
    """KL(softmax_j A^t_ij || softmax_j A^s_ij), A as `adjacency`: f32 [n], nats.

    The summary has the two the other way round; this is the usual order of a teacher and a student.
    The softmax is over all present tokens: most entries are 0, and rows nearly uniform.
    """
    _geometry.same_examples(student, teacher)
    here = _geometry.those(present, student)

    def logs(x: jax.Array) -> jax.Array:
        a = adjacency(x, here, neighbours=neighbours, sigma=sigma)
        return jax.nn.log_softmax(jnp.where(here[None], a, -1e9))

    return kl(logs(teacher), logs(student))


def identity(
    student: Float[Array, "n K"],
    teacher: Float[Array, "n K"],
    present: Bool[Array, " n"] | None = None,
    *,
    temperature: ArrayLike,
) -> Float[Array, " n"]:
    """-log softmax_j(cos(s_i, t_j) / temperature)_i: each token finds its teacher's: f32 [n]."""
    _checks.same_shape(student=student, teacher=teacher)
    _checks.positive("temperature", temperature)
    here = _geometry.those(present, student)
    s, t = (
        _geometry.normalised(_geometry.without_absent(x.astype(jnp.float32), here))
        for x in (student, teacher)
    )
    near = jnp.where(here[None], s @ t.T / temperature, -1e9)
    return jax.nn.logsumexp(near, -1) - jnp.diagonal(near)


def context(student: Float[Array, "B P D"], teacher: Float[Array, "B P E"]) -> Float[Array, " B"]:
    """The mean over an image's pairs of (C^t - C^s)^2, C = softmax(F F^T / sqrt(D)): f32 [B]."""

    def relations(x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        return jax.nn.softmax(jnp.einsum("bpd,bqd->bpq", x, x) / x.shape[-1] ** 0.5)

    ours, theirs = relations(student), relations(teacher)
    _checks.same_shape(student=ours, teacher=theirs)
    return jnp.square(theirs - ours).mean((1, 2))
