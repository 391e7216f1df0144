"""The diagonal of the Fisher information: how much each weight matters to a model's predictions."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kd_jax.attribution.means import Statistic
from kd_jax.types import Batch, Frozen, Params, PyTree

LogitsOf = Callable[[Params, Frozen, Batch], jax.Array]
Labels = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
TokenLabels = Callable[[jax.Array, jax.Array, Batch], tuple[jax.Array, jax.Array]]


def every_class(key: jax.Array, log_probs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """All C classes, each weighed by its probability: the exact expectation over labels."""
    return jnp.arange(len(log_probs)), jnp.exp(log_probs)


def drawn(samples: int) -> Labels:
    """`samples` labels drawn from the model's own prediction: an unbiased estimate, for large C."""
    if samples < 1:
        raise ValueError(f"samples: got {samples}, takes at least 1")

    def labels(key: jax.Array, log_probs: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = jax.random.categorical(key, log_probs, shape=(samples,))
        return found, jnp.full((samples,), 1 / samples, jnp.float32)

    return labels


def diagonal_fisher(logits: LogitsOf, *, labels: Labels = every_class) -> Statistic:
    """The statistic sum_c p(c|x) (d log p(c|x) / d theta)^2 of an example, for each weight.

    Its mean over examples (`means.mean_over_examples`) is the diagonal of the Fisher information,
    a float32 tree like params["model"]. The expectation is over the model's own predictions: the
    labels of the data are not read (with them it would be the "empirical Fisher", which is another
    quantity). Gradients are squared for each example and class, before any sum: the square of a
    batch's mean gradient is not the Fisher either.

    logits(params, frozen, batch) -> [B, C]; called with one row at a time, under vmap, so that
    examples may not be coupled. labels(key, log_probs [C]) -> (labels int [K], weights f32 [K]):
    the classes that stand for the expectation. Costs K backward passes an example, and as much
    memory as K times the rows of a microbatch times the weights.

    Matena and Raffel 2022 (arXiv 2111.09832), section 3.2 and the released code.
    """

    def of_row(params: Params, frozen: Frozen, row: Batch, key: jax.Array) -> PyTree:
        def log_probs(model: PyTree) -> jax.Array:
            one = jax.tree.map(lambda x: x[None], row)
            z = logits({**params, "model": model}, frozen, one)
            if z.ndim != 2:
                raise ValueError(f"logits: got shape {z.shape}, takes [B, C]")
            return jax.nn.log_softmax(z[0].astype(jnp.float32))

        found, pull = jax.vjp(log_probs, params["model"])
        classes, weights = labels(key, found)

        def squared(label: jax.Array) -> PyTree:
            (gradient,) = pull(jax.nn.one_hot(label, len(found)))
            return jax.tree.map(lambda g: jnp.square(g.astype(jnp.float32)), gradient)

        return _weighted(weights, jax.vmap(squared)(classes))

    def statistic(params: Params, frozen: Frozen, batch: Batch, keys: jax.Array) -> PyTree:
        rows = jax.vmap(of_row, (None, None, 0, 0))(params, frozen, batch, keys)
        return _weighted(batch["weights"].astype(jnp.float32), rows)

    return statistic


def drawn_tokens(samples: int = 1) -> TokenLabels:
    """Tokens drawn from the model's own prediction at every place, `samples` times."""
    if samples < 1:
        raise ValueError(f"samples: got {samples}, takes at least 1")

    def labels(key: jax.Array, log_probs: jax.Array, row: Batch) -> tuple[jax.Array, jax.Array]:
        found = jax.random.categorical(key, log_probs, shape=(samples, len(log_probs)))
        return found, jnp.full((samples,), 1 / samples, jnp.float32)

    return labels


def tokens_of_data(key: jax.Array, log_probs: jax.Array, row: Batch) -> tuple[jax.Array, jax.Array]:
    """row["targets"]: the empirical Fisher of whole sequences, another quantity."""
    return row["targets"][None], jnp.ones((1,), jnp.float32)


def token_fisher(logits: LogitsOf, *, labels: TokenLabels | None = None) -> Statistic:
    """The statistic (d / d theta sum_t sqrt(w_t) log p(y_t | x_<t))^2 of a sequence.

    Its mean over tokens (`means.mean_over_examples` with batch["weights"] [B, T]) estimates the
    diagonal Fisher information of next-token prediction, a float32 tree like params["model"]:
    where y_t are drawn from the prediction at each place (`drawn_tokens`, the default, once), the
    gradients of different places have mean 0 and their products vanish in expectation, so that one
    backward pass a sequence stands for one a token. With `tokens_of_data` they do not vanish.

    logits(params, frozen, batch) -> [B, T, V], written out; called with one row at a time, under
    vmap. labels(key, log_probs [T, V], row) -> (labels int [K, T], weights f32 [K]): sequences of
    labels that stand for the expectation. The texts are the contexts; only `tokens_of_data` reads
    their targets. Memory: K times the rows of a microbatch times the weights.
    """
    labels = drawn_tokens() if labels is None else labels

    def of_row(params: Params, frozen: Frozen, row: Batch, key: jax.Array) -> PyTree:
        def log_probs(model: PyTree) -> jax.Array:
            one = jax.tree.map(lambda x: x[None], row)
            z = logits({**params, "model": model}, frozen, one)
            if z.ndim != 3:
                raise ValueError(f"logits: got shape {z.shape}, takes [B, T, V]")
            return jax.nn.log_softmax(z[0].astype(jnp.float32))

        found, pull = jax.vjp(log_probs, params["model"])
        places = jnp.sqrt(row["weights"].astype(jnp.float32))[:, None]
        sequences, weights = labels(key, found, row)

        def squared(sequence: jax.Array) -> PyTree:
            (gradient,) = pull(places * jax.nn.one_hot(sequence, found.shape[-1]))
            return jax.tree.map(lambda g: jnp.square(g.astype(jnp.float32)), gradient)

        return _weighted(weights, jax.vmap(squared)(sequences))

    def statistic(params: Params, frozen: Frozen, batch: Batch, keys: jax.Array) -> PyTree:
        rows = jax.vmap(of_row, (None, None, 0, 0))(params, frozen, batch, keys)
        return _weighted(jnp.any(batch["weights"] != 0, -1).astype(jnp.float32), rows)

    return statistic


def _weighted(weights: jax.Array, stacked: PyTree) -> PyTree:
    """sum_i w_i x_i over the leading axis; NaN under a zero weight does not count."""

    def total(x: jax.Array) -> jax.Array:
        w = weights.reshape(-1, *(1,) * (x.ndim - 1))
        return jnp.sum(jnp.where(w == 0, 0.0, w * x), axis=0)

    return jax.tree.map(total, stacked)
