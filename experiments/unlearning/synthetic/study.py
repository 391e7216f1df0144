"""The synthetic study of NPO: logistic regression on random features, by full gradient descent.

Samples of two normal distributions with labels drawn from a sigmoid; features are ReLU(W x) with W
fixed; p(y = 1 | x) = sigmoid(theta . features). Methods differ in a term on the forget samples and
one on the retain samples, each a mean over its samples. All of it in float32: updates are summed
with compensation, so that many small ones are not rounded off.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.losses.classification import cross_entropy, label_log_probs
from kd_jax.losses.divergences import forward_kl
from kd_jax.losses.unlearning import gradient_ascent, npo, refusal_preference


class Sizes(NamedTuple):
    inputs: int
    features: int
    forget: int
    retain: int
    test: int


class Samples(NamedTuple):
    """features [n, N], labels [n] of 0 and 1."""

    features: jax.Array
    labels: jax.Array


class Problem(NamedTuple):
    """What one seed draws. positives [n_forget]: labels of IDK and DPO, each 1 by chance 1/2."""

    forget: Samples
    retain: Samples
    positives: jax.Array
    forget_test: Samples
    retain_test: Samples


class Weights(NamedTuple):
    """theta [N] of the model before unlearning and of the one that never saw the forget samples."""

    reference: jax.Array
    retrained: jax.Array


def draw(key: jax.Array, gap: float, sizes: Sizes) -> Problem:
    """Forget inputs are N(gap 1, I), retain inputs N(-gap 1, I); the two label rules are opposed.

    With s = (x - mean) . 1 / sqrt(d), P(y = 1) is sigmoid(s + 1) on forget inputs and
    sigmoid(-s - 1) on retain inputs. W [N, d] has entries N(0, 1 / d).
    """
    keys = iter(jax.random.split(key, 10))
    shape = (sizes.features, sizes.inputs)
    first = jax.random.normal(next(keys), shape) / jnp.sqrt(sizes.inputs)

    def samples(n: int, sign: float) -> Samples:
        noise = jax.random.normal(next(keys), (n, sizes.inputs))
        chance = jax.nn.sigmoid(sign * (noise.sum(-1) / jnp.sqrt(sizes.inputs) + 1.0))
        labels = jax.random.bernoulli(next(keys), chance).astype(jnp.int32)
        inputs = sign * gap + noise
        return Samples(jax.nn.relu(jnp.matmul(inputs, first.T, precision="highest")), labels)

    return Problem(
        samples(sizes.forget, 1.0),
        samples(sizes.retain, -1.0),
        jax.random.bernoulli(next(keys), 0.5, (sizes.forget,)).astype(jnp.int32),
        samples(sizes.test, 1.0),
        samples(sizes.test, -1.0),
    )


def logits(theta: jax.Array, features: jax.Array) -> jax.Array:
    """[n, 2]: the first class has the logit 0."""
    # In full float32 where the hardware would rather multiply fewer bits.
    z = jnp.matmul(features, theta, precision="highest")
    return jnp.stack([jnp.zeros_like(z), z], -1)


def descend(
    loss: Callable[[jax.Array], jax.Array], start: jax.Array, rate: Any, *, steps: int, every: int
) -> jax.Array:
    """Points of gradient descent at steps 0, every, 2 every, ..., steps: [steps / every + 1, N]."""

    def step(carry: tuple, _: None) -> tuple:
        theta, lost = carry
        # Kahan's summation: what rounding takes from an update is put into the next.
        update = -rate * jax.grad(loss)(theta) - lost
        moved = theta + update
        return (moved, (moved - theta) - update), None

    def stretch(carry: tuple, _: None) -> tuple:
        carry, _ = jax.lax.scan(step, carry, length=every)
        return carry, carry[0]

    _, points = jax.lax.scan(stretch, (start, jnp.zeros_like(start)), length=steps // every)
    return jnp.concatenate([start[None], points])


def learn(problem: Problem, *, rate: float, steps: int) -> Weights:
    """Cross-entropy from zero, on all samples and on those to retain."""

    def fit(samples: Samples) -> jax.Array:
        def loss(theta: jax.Array) -> jax.Array:
            return cross_entropy(logits(theta, samples.features), samples.labels).mean()

        start = jnp.zeros(samples.features.shape[-1])
        return descend(loss, start, rate, steps=steps, every=steps)[-1]

    both = jax.tree.map(lambda *parts: jnp.concatenate(parts), problem.forget, problem.retain)
    return Weights(fit(both), fit(problem.retain))


def distances(theta: jax.Array, retrained: jax.Array, problem: Problem) -> jax.Array:
    """[2]: mean KL(retrained || theta) on fresh forget and retain inputs, in nats."""
    return jnp.stack(
        [
            forward_kl(logits(theta, x.features), logits(retrained, x.features)).mean()
            for x in (problem.forget_test, problem.retain_test)
        ]
    )


# Terms on forget samples: logits now and of the reference [n, 2], labels, positives -> [n].


def ascent(z: jax.Array, of_reference: jax.Array, labels: Any, positives: Any, beta: Any) -> Any:
    return gradient_ascent(label_log_probs(z, labels)[:, None])[:, 0]  # an answer of one token


def ignorance(z: jax.Array, of_reference: jax.Array, labels: Any, positives: Any, beta: Any) -> Any:
    return cross_entropy(z, positives)


def negative(z: jax.Array, of_reference: jax.Array, labels: Any, positives: Any, beta: Any) -> Any:
    return npo(label_log_probs(z, labels), label_log_probs(of_reference, labels), beta=beta)


def preferred(z: jax.Array, of_reference: jax.Array, labels: Any, positives: Any, beta: Any) -> Any:
    pairs = [label_log_probs(x, y) for x in (z, of_reference) for y in (positives, labels)]
    return refusal_preference(*pairs, beta=beta)


# Terms on retain samples: logits now and of the reference [n, 2], labels -> [n].


def retained(z: jax.Array, of_reference: jax.Array, labels: jax.Array) -> jax.Array:
    return cross_entropy(z, labels)


def unchanged(z: jax.Array, of_reference: jax.Array, labels: jax.Array) -> jax.Array:
    return forward_kl(z, of_reference)


class Method(NamedTuple):
    label: str
    forget: Callable[..., jax.Array]
    retain: Callable[..., jax.Array] | None = None


METHODS = {
    "ga": Method("GA", ascent),
    "ga_rt": Method("GA+RT", ascent, retained),
    "ga_kl": Method("GA+KL", ascent, unchanged),
    "idk_rt": Method("IDK+RT", ignorance, retained),
    "dpo": Method("DPO", preferred),
    "dpo_rt": Method("DPO+RT", preferred, retained),
    "dpo_kl": Method("DPO+KL", preferred, unchanged),
    "npo": Method("NPO", negative),
    "npo_rt": Method("NPO+RT", negative, retained),
    "npo_kl": Method("NPO+KL", negative, unchanged),
}


def loss_of(
    method: Method, reference: jax.Array, problem: Problem, beta: Any
) -> Callable[[jax.Array], jax.Array]:
    """theta -> the method's loss on a problem; both terms have the coefficient 1."""
    forget, retain = problem.forget, problem.retain

    def loss(theta: jax.Array) -> jax.Array:
        z, before = logits(theta, forget.features), logits(reference, forget.features)
        total = method.forget(z, before, forget.labels, problem.positives, beta).mean()
        if method.retain is not None:
            z, before = logits(theta, retain.features), logits(reference, retain.features)
            total += method.retain(z, before, retain.labels).mean()
        return total

    return loss


# Programs: all seeds at once, along the first axis of what they take.


@functools.cache
def drawn(sizes: Sizes) -> Any:
    """(seeds [S], gap) -> problems."""
    return jax.jit(
        lambda seeds, gap: jax.vmap(lambda seed: draw(jax.random.key(seed), gap, sizes))(seeds)
    )


@functools.cache
def learned(rate: float, steps: int) -> Any:
    """problems -> weights."""
    return jax.jit(jax.vmap(functools.partial(learn, rate=rate, steps=steps)))


@functools.cache
def unlearned(method: Method, steps: int, every: int) -> Any:
    """(problems, weights, rate, beta) -> distances along the way [S, points, 2]."""

    def run(problem: Problem, weights: Weights, rate: Any, beta: Any) -> jax.Array:
        loss = loss_of(method, weights.reference, problem, beta)
        points = descend(loss, weights.reference, rate, steps=steps, every=every)
        return jax.lax.map(lambda theta: distances(theta, weights.retrained, problem), points)

    return jax.jit(jax.vmap(run, (0, 0, None, None)))


@functools.cache
def swept(steps: int, every: int) -> Any:
    """(problems, weights, rate, betas [K]) -> (distances of GA [S, points, 2], the same of NPO by
    beta [S, K, points, 2], how far each ends from GA's end, over the length of GA's way [S, K]).
    """

    def run(problem: Problem, weights: Weights, rate: Any, betas: jax.Array) -> Any:
        start = weights.reference

        def path(method: Method, beta: Any) -> tuple[jax.Array, jax.Array]:
            loss = loss_of(method, start, problem, beta)
            points = descend(loss, start, rate, steps=steps, every=every)
            along = jax.lax.map(lambda x: distances(x, weights.retrained, problem), points)
            return points[-1], along

        end, along = path(METHODS["ga"], 1.0)
        ends, paths = jax.vmap(lambda beta: path(METHODS["npo"], beta))(betas)
        apart = jnp.linalg.norm(ends - end[None], axis=-1) / jnp.linalg.norm(end - start)
        return along, paths, apart

    return jax.jit(jax.vmap(run, (0, 0, None, None)))


def nearly_orthogonal(key: jax.Array, samples: int, inputs: int) -> Samples:
    """Random unit vectors [n, n] in coordinates of their span, with labels drawn by chance 1/2.

    Gradient descent from zero stays in the span, so that n coordinates do for `inputs`.
    """
    of_inputs, of_labels = jax.random.split(key)
    x = jax.random.normal(of_inputs, (samples, inputs))
    x /= jnp.linalg.norm(x, axis=-1, keepdims=True)
    features = jnp.linalg.cholesky(jnp.matmul(x, x.T, precision="highest"))
    return Samples(features, jax.random.bernoulli(of_labels, 0.5, (samples,)).astype(jnp.int32))


@functools.cache
def diverged(method: Method, steps: int, every: int) -> Any:
    """(samples, rate, beta) -> |X (theta(t) - theta(0))| along unlearning from zero [S, points]."""

    def run(samples: Samples, rate: Any, beta: Any) -> jax.Array:
        start = jnp.zeros(samples.features.shape[-1])
        problem = Problem(samples, samples, samples.labels, samples, samples)
        loss = loss_of(method, start, problem, beta)
        points = descend(loss, start, rate, steps=steps, every=every)
        return jnp.linalg.norm(jnp.matmul(points, samples.features.T, precision="highest"), axis=-1)

    return jax.jit(jax.vmap(run, (0, None, None)))
