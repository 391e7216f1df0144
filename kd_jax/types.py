"""The types everything hangs on: what objectives return, what steps carry, what models look like.

Alphabet for shapes, here and everywhere: B batch, T length, V vocabulary, D width, H heads,
C classes, L layers, N models, P pairs.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PyTree = Any
Params = Mapping[str, Any]  # {"model": ..., "aux": ...}
Frozen = Mapping[str, Any]  # what is read and never trained
Batch = Mapping[str, Any]  # arrays with a leading axis B, or a mapping of such mappings
Metrics = dict[str, jax.Array]


class Term(NamedTuple):
    """A weighted mean kept as its two sums, so that it stays exact however the batch is cut.

    value = scale * total / weight, and 0 where weight is 0 (in the gradient too).

    total: sum over what is weighed (tokens, sequences or pairs: the objective's docstring says
        which) of weight times loss; f32 scalar.
    weight: sum of the weights; f32 scalar. It may depend on batch, frozen and key, never on
        params or carry: the step divides by the weight of the whole batch before it
        differentiates (`make_train_step` checks it when it is traced).
    scale: coefficient of the term in the loss; may be read from carry.
    """

    total: jax.Array
    weight: jax.Array
    scale: jax.Array | float = 1.0

    @property
    def value(self) -> jax.Array:
        """scale * total / weight, or 0 where the weight is 0."""
        empty = self.weight == 0
        return self.scale * jnp.where(empty, 0.0, self.total) / jnp.where(empty, 1.0, self.weight)


def weighted_sum(x: jax.Array, weights: jax.Array | None = None, scale: Any = 1.0) -> Term:
    """The only reduction in the package: Term(sum of weights * x, sum of weights).

    x: any shape, unreduced losses; weights: the same shape, or None for all ones. Entries of x
    under a zero weight are replaced, not multiplied, so that a NaN there stays out of the value.
    """
    x = x.astype(jnp.float32)
    if weights is None:
        return Term(x.sum(), jnp.asarray(x.size, jnp.float32), scale)
    if weights.shape != x.shape:
        raise ValueError(f"weights: got shape {weights.shape}, takes the shape of x, {x.shape}")
    weights = weights.astype(jnp.float32)
    return Term(jnp.where(weights == 0, 0.0, x * weights).sum(), weights.sum(), scale)


class Output(NamedTuple):
    """What an objective returns.

    terms: the loss is the sum of their values.
    metrics: reported, never differentiated; Terms too, so that they are exact.
    rows: per-example arrays [B, ...], concatenated over microbatches in the batch's order.
    state: the model's own non-trained state after this forward pass (BatchNorm statistics);
        averaged over microbatches, and written to carry by the objective's `update`.
    """

    terms: dict[str, Term]
    metrics: dict[str, Term] = {}
    rows: dict[str, jax.Array] = {}
    state: PyTree = ()

    @property
    def loss(self) -> jax.Array:
        return sum((term.value for term in self.terms.values()), jnp.zeros(()))


class Context(NamedTuple):
    """What a loss may read besides its inputs. `train` is a Python bool, the rest are arrays.

    key: fresh for each step and microbatch. step: int32 scalar. stats: the values of the
    objective's `stats` over the whole batch, without gradient; in `loss` only, else empty.
    """

    key: jax.Array
    step: jax.Array
    train: bool = True
    stats: Mapping[str, jax.Array] = {}


class TrainState(NamedTuple):
    """Arrays only: exactly what a checkpoint holds."""

    step: jax.Array  # int32 scalar: finished steps
    params: Params
    opt_state: PyTree
    carry: PyTree
    key: jax.Array


class Logits(NamedTuple):
    """A head that fits in memory: z [..., V]."""

    z: jax.Array

    def logits(self) -> jax.Array:
        """f32 [..., V]."""
        return self.z.astype(jnp.float32)


class Factored(NamedTuple):
    """A vocabulary head not yet multiplied out: logits = cap(scale * hidden @ unembedding.T).

    hidden [B, T, D], unembedding [V, D]; cap(z) = softcap * tanh(z / softcap), or z when None.
    """

    hidden: jax.Array
    unembedding: jax.Array
    scale: float = 1.0
    softcap: float | None = None

    def logits(self) -> jax.Array:
        """f32 [B, T, V]: for small vocabularies, tests and decoding only."""
        z = self.scale * jnp.einsum(
            "...d,vd->...v", self.hidden, self.unembedding, preferred_element_type=jnp.float32
        )
        return z if self.softcap is None else self.softcap * jnp.tanh(z / self.softcap)


Head = Logits | Factored


class ModelOutput(NamedTuple):
    head: Head
    taps: Mapping[str, jax.Array] = {}
    state: PyTree = {}


class Model(NamedTuple):
    """A model as pure functions.

    init(key) -> params.
    apply(params, inputs, *, state={}, key=None, train=False, taps=(), add={}) -> ModelOutput.
        `inputs` is the batch's mapping: "inputs" always, "segments" and "positions" where the
        model knows them. `taps` names features to return; `add` maps names of places to arrays
        added there.
    state() -> the initial non-trained state (BatchNorm statistics); {} for most.
    """

    init: Callable[[jax.Array], PyTree]
    apply: Callable[..., ModelOutput]
    state: Callable[[], PyTree] = dict


Policy = Callable[[Params, Frozen], PyTree]
Grad = Callable[..., tuple[Params, Output]]


def keep(carry: PyTree, new_params: Params, frozen: Frozen, output: Output, ctx: Context) -> PyTree:
    """The `update` of an objective whose carry does not change."""
    return carry


class Objective(NamedTuple):
    """A method as pure functions, in the manner of `optax.GradientTransformation`.

    init(key, params, frozen, batch) -> (aux_params, carry): the method's own trainable parts and
        its state; `eval_shape`-able. `params` here is the model's part alone.
    loss(params, carry, frozen, batch, ctx) -> Output: reads carry, never writes it. `params` is
        {"model": ..., "aux": ...}.
    update(carry, new_params, frozen, output, ctx) -> carry: once a step, after the optimiser.
    stats(params, carry, frozen, batch, ctx) -> {name: Term}: summed over microbatches first and
        handed to `loss` as values in ctx.stats.
    whole_batch: the loss couples examples; microbatches are refused.
    """

    init: Callable[..., tuple[PyTree, PyTree]]
    loss: Callable[..., Output]
    update: Callable[..., PyTree] = keep
    stats: Callable[..., dict[str, Term]] | None = None
    whole_batch: bool = False


def stateless(loss: Callable[..., Output], *, whole_batch: bool = False) -> Objective:
    """The objective of a loss without aux parameters and carry."""
    return Objective(lambda key, params, frozen, batch: ({}, {}), loss, whole_batch=whole_batch)


class GradientRule(NamedTuple):
    """How parameters are moved along gradients.

    gradients(grad, params, frozen, key) -> (grads, output), where grad(params, only=None) ->
        (grads, output) is exact over microbatches and mesh; `only` names one term, or the first
        component of terms named "component/term".
    updates(updates, frozen) -> updates: applied after the optimiser.
    """

    gradients: Callable[[Grad, Params, Frozen, jax.Array], tuple[Params, Output]]
    updates: Callable[[PyTree, Frozen], PyTree] = lambda updates, frozen: updates


@dataclasses.dataclass(frozen=True)  # jax.jit takes it; it does not take a callable tuple
class TrainStep:
    """A step as two pure functions that know no mesh; call it as step(state, frozen, batch).

    init(key, params, frozen, batch) -> TrainState; `params` is the model's part alone, and batch
        one global batch (only shapes are read).
    apply(state, frozen, batch) -> (state, metrics).
    """

    init: Callable[..., TrainState]
    apply: Callable[[TrainState, Frozen, Batch], tuple[TrainState, Metrics]]

    def __call__(
        self, state: TrainState, frozen: Frozen, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        return self.apply(state, frozen, batch)
