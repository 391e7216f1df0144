"""Gradient rules: plain, masked, surgery over terms, sharpness-aware, unrolled.

A rule sees only grad(params, only=None) -> (grads, output), which is exact over microbatches and
mesh, so it neither knows nor changes how a batch is cut. `params` is the trained part.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kd_jax.types import Frozen, Grad, GradientRule, Output, Params

PyTree = Any


def plain() -> GradientRule:
    """The gradient of the sum of all terms."""
    return GradientRule(lambda grad, params, frozen, key: grad(params))


def masked(name: str, rule: GradientRule | None = None) -> GradientRule:
    """Move only the coordinates where frozen[name] is true.

    frozen[name]: a tree of booleans (or 0/1) of the shapes of params["model"]; aux parameters are
    not masked. The mask is applied to gradients before the optimiser (so that its statistics see
    no masked gradient) and to updates after it (so that weight decay and momentum move nothing):
    masked coordinates stay bitwise equal.
    """
    inner = rule or plain()

    def gradients(grad, params, frozen, key):
        grads, output = inner.gradients(grad, params, frozen, key)
        return _where_model(frozen[name], grads, 0.0), output

    def updates(updates: PyTree, frozen: Frozen) -> PyTree:
        # Adding -0.0 leaves every float as it is, bit for bit; adding +0.0 turns -0.0 into +0.0.
        return _where_model(frozen[name], inner.updates(updates, frozen), -0.0)

    return GradientRule(gradients, updates)


def _where_model(mask: PyTree, tree: Params, otherwise: float) -> Params:
    def choose(x, m):
        return None if x is None else jnp.where(m, x, jnp.asarray(otherwise, x.dtype))

    # None stands where a parameter is not trained; the mask has a leaf there.
    model = jax.tree.map(choose, tree["model"], mask, is_leaf=lambda x: x is None)
    return {**tree, "model": model}


def project_conflicts(gradients: Sequence[PyTree], key: jax.Array) -> PyTree:
    """PCGrad: each gradient loses its component against every gradient that it conflicts with.

    g_i <- g_i - min(0, <g_i, g_j>) / |g_j|^2 * g_j for all j != i in random order; the result is
    the sum over i (Yu et al. 2020, Algorithm 1). All projections stay in the span of the given
    gradients, so only their Gram matrix is needed: N^2 inner products and one weighted sum.
    """
    n = len(gradients)
    gram = jnp.stack([jnp.stack([_inner(a, b) for b in gradients]) for a in gradients])

    def project(i: jax.Array, key: jax.Array) -> jax.Array:
        order = jax.random.permutation(key, n)

        def against(step: jax.Array, coefficients: jax.Array) -> jax.Array:
            j = order[step]
            conflict = jnp.minimum(coefficients @ gram[:, j], 0.0)
            share = jnp.where(gram[j, j] > 0, conflict / jnp.maximum(gram[j, j], 1e-30), 0.0)
            return coefficients.at[j].add(jnp.where(i == j, 0.0, -share))

        return jax.lax.fori_loop(0, n, against, jnp.eye(n)[i])

    coefficients = jax.vmap(project)(jnp.arange(n), jax.random.split(key, n)).sum(0)
    return jax.tree.map(
        lambda *g: sum(c.astype(x.dtype) * x for c, x in zip(coefficients, g, strict=True)),
        *gradients,
    )


def yield_to_first(gradients: Sequence[PyTree], key: jax.Array) -> PyTree:
    """The first gradient and the sum of the others, less its component against the first.

    g + h - min(0, <h, g>) / |g|^2 * g, over the whole vector: of two terms only the second gives
    way. Yang et al. 2024 (dual-head distillation), arXiv 2411.08937, by released code.
    """
    first, *others = gradients
    rest = jax.tree.map(lambda *g: sum(g[1:], g[0]), *others)
    square = _inner(first, first)
    conflict = jnp.minimum(_inner(rest, first), 0.0)
    share = 1.0 - jnp.where(square > 0, conflict / jnp.maximum(square, 1e-30), 0.0)
    return jax.tree.map(lambda g, h: share.astype(g.dtype) * g + h, first, rest)


def _inner(a: PyTree, b: PyTree) -> jax.Array:
    products = jax.tree.map(
        lambda x, y: jnp.sum(x.astype(jnp.float32) * y.astype(jnp.float32)), a, b
    )
    return jax.tree.reduce(jnp.add, products, jnp.float32(0))


def surgery(
    terms: Sequence[str],
    combine: Callable[[Sequence[PyTree], jax.Array], PyTree] = project_conflicts,
) -> GradientRule:
    """combine(gradients of each named term, key).

    Each name is a term, or the component before "/" of several. Every term has to be named once,
    else ValueError: a term left out would be left out of training, one named twice count double.
    """

    def gradients(grad: Grad, params: Params, frozen: Frozen, key: jax.Array):
        results = [grad(params, only=name) for name in terms]
        output: Output = results[0][1]
        _check_named("terms", terms, output)
        return combine([g for g, _ in results], key), output

    return GradientRule(gradients)


def _check_named(argument: str, names: Sequence[str], output: Output) -> None:
    wrong = [t for t in output.terms if sum(belongs(t, name) for name in names) != 1]
    if wrong:
        raise ValueError(
            f"{argument}: got {', '.join(names)}, takes each term once; not so {', '.join(wrong)}"
        )


def belongs(term: str, only: str | None) -> bool:
    """Is the term the one named `only`, or one of the component `only`?"""
    return only is None or term == only or term.startswith(only + "/")


def sam(radius: float) -> GradientRule:
    """Sharpness-aware minimisation: the gradient at params + radius * g / |g|.

    g is the gradient at params (Foret et al. 2021, Eq. 2 and 4, p = 2). Two gradient evaluations
    a step; the reported output is the one at params.
    """
    if not radius > 0:
        raise ValueError(f"radius: got {radius}, takes a positive number")

    def gradients(grad: Grad, params: Params, frozen: Frozen, key: jax.Array):
        ascent, output = grad(params)
        size = radius / jnp.maximum(optax.tree.norm(ascent), 1e-12)
        nearby = jax.tree.map(lambda p, g: p + (size * g).astype(p.dtype), params, ascent)
        return grad(nearby)[0], output

    return GradientRule(gradients)


def unrolled(*, inner: str, outer: str, steps: int, learning_rate: float) -> GradientRule:
    """The gradient of the outer term after `steps` of gradient descent on the inner term.

    phi_0 = params; phi_{k+1} = phi_k - learning_rate * grad inner(phi_k); the result is
    d outer(phi_steps) / d params, through the inner steps (MAML; Finn et al. 2017, Eq. 1).
    ValueError for a term that is neither, or both: it would be left out of training.
    """
    if steps < 1:
        raise ValueError(f"steps: got {steps}, takes at least 1")

    def gradients(grad: Grad, params: Params, frozen: Frozen, key: jax.Array):
        def adapt(phi: Params) -> Params:
            for _ in range(steps):
                slope, _ = grad(phi, only=inner)
                phi = jax.tree.map(lambda p, g: p - learning_rate * g, phi, slope)
            return phi

        adapted, pull_back = jax.vjp(adapt, params)
        outer_grads, output = grad(adapted, only=outer)
        _check_named("inner, outer", (inner, outer), output)
        return pull_back(outer_grads)[0], output

    return GradientRule(gradients)


def bilevel(*, inner: str, outer: str, learning_rate: float) -> GradientRule:
    """Of the model: grad inner. Of the aux parameters: d outer(phi) / d aux, through one step.

    phi = model - learning_rate * grad_model inner(model, aux), so that what is in aux learns what
    the outer term (on other data) gains by one step of the model; the gradient of outer at phi with
    respect to aux itself is added. One step instead of the inner problem's solution. The output is
    that at the present parameters. ValueError as `unrolled`.
    """

    def gradients(grad: Grad, params: Params, frozen: Frozen, key: jax.Array):
        def adapt(aux: PyTree) -> tuple[PyTree, tuple[PyTree, Output]]:
            slopes, output = grad({**params, "aux": aux}, only=inner)
            step = jax.tree.map(
                lambda p, g: p - learning_rate * g, params["model"], slopes["model"]
            )
            return step, (slopes["model"], output)

        adapted, pull_back, (of_model, output) = jax.vjp(adapt, params["aux"], has_aux=True)
        _check_named("inner, outer", (inner, outer), output)
        slopes, _ = grad({**params, "model": adapted}, only=outer)
        (through,) = pull_back(slopes["model"])
        of_aux = jax.tree.map(jnp.add, through, slopes["aux"])
        return {**slopes, "model": of_model, "aux": of_aux}, output

    return GradientRule(gradients)
