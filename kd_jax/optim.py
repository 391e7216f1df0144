"""Optimisers and schedules: optax in float32, with clipping, decay by path and float32 masters.

A schedule is an optax schedule: int32 step -> learning rate. Wherever a learning rate is asked
for, a number or a schedule will do.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from kd_jax.trees import Rule, as_predicate, map_with_path

PyTree = Any
LearningRate = float | optax.Schedule

UNDECAYED = r".*(bias|scale)"


def _decayed(undecayed: Rule) -> Callable[[PyTree], PyTree]:
    """The mask of the leaves that weight decay applies to."""
    predicate = as_predicate(undecayed)
    return lambda params: map_with_path(lambda path, _: not predicate(path), params)


def _finished(tx: optax.GradientTransformation, clip: float | None) -> optax.GradientTransformation:
    """`tx` behind the clipping, in float32 throughout: optax's moments are else the parameters'."""
    if clip is not None:
        if not clip > 0:
            raise ValueError(f"clip: got {clip}, takes a positive norm, or None for no clipping")
        tx = optax.chain(optax.clip_by_global_norm(clip), tx)

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        return tx.update(_float32(updates), state, _float32(params))

    return optax.GradientTransformation(lambda params: tx.init(_float32(params)), update)


def _float32(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def _decoupled(
    unit: optax.GradientTransformation,
    learning_rate: LearningRate,
    weight_decay: float,
    undecayed: Rule,
) -> optax.GradientTransformation:
    """learning_rate * (updates of `unit`, made with rate 1, - weight_decay * params)."""
    return optax.chain(
        unit,
        optax.add_decayed_weights(-weight_decay, _decayed(undecayed)),
        optax.scale_by_learning_rate(learning_rate, flip_sign=False),
    )


def adamw(
    learning_rate: LearningRate,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    undecayed: Rule = UNDECAYED,
    clip: float | None = None,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019).

    undecayed: rule over paths of leaves without decay, by default biases and norm scales.
    clip: global gradient norm, applied before the moments.
    """
    tx = optax.adamw(
        learning_rate,
        b1,
        b2,
        eps,
        weight_decay=weight_decay,
        mask=_decayed(undecayed),
    )
    return _finished(tx, clip)


def sgd(
    learning_rate: LearningRate,
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    undecayed: Rule = UNDECAYED,
    clip: float | None = None,
) -> optax.GradientTransformation:
    """Stochastic gradient descent; weight decay is added to the gradient, as PyTorch does."""
    tx = optax.sgd(learning_rate, momentum or None, nesterov)
    if weight_decay:
        tx = optax.chain(optax.add_decayed_weights(weight_decay, _decayed(undecayed)), tx)
    return _finished(tx, clip)


def adafactor(
    learning_rate: LearningRate,
    *,
    weight_decay: float = 0.0,
    undecayed: Rule = UNDECAYED,
    clip: float | None = None,
) -> optax.GradientTransformation:
    """Adafactor with factored second moments (Shazeer & Stern 2018), optax's defaults.

    Decay is decoupled and scaled by the learning rate, as in `adamw`; optax's own is not scaled.
    """
    tx = _decoupled(optax.adafactor(1.0), learning_rate, weight_decay, undecayed)
    return _finished(tx, clip)


def muon(
    learning_rate: LearningRate,
    *,
    weight_decay: float = 0.0,
    undecayed: Rule = UNDECAYED,
    orthogonalised: Rule = r".*kernel",
    clip: float | None = None,
) -> optax.GradientTransformation:
    """Muon on the matrices that `orthogonalised` selects, Adam on the rest (Jordan et al. 2024).

    The last two axes of a leaf are the matrix; leading axes (layers) are batched.
    """
    predicate = as_predicate(orthogonalised)

    def dimensions(params: PyTree) -> PyTree:
        def of(path: str, x: jax.Array) -> contrib.MuonDimensionNumbers | None:
            if x.ndim < 2 or not predicate(path):
                return None
            return contrib.MuonDimensionNumbers(x.ndim - 2, x.ndim - 1)

        return map_with_path(of, params)

    # optax's own mask covers only the orthogonalised part, so decay is added here, to both.
    directions = contrib.muon(1.0, muon_weight_dimension_numbers=dimensions)
    return _finished(_decoupled(directions, learning_rate, weight_decay, undecayed), clip)


class MastersState(NamedTuple):
    masters: PyTree
    inner: PyTree


def float32_masters(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Run `tx` on float32 copies of the parameters; the parameters stay their rounding.

    For bfloat16 parameters: an update smaller than their spacing is not lost but collects in the
    master. The state holds the masters (4 bytes a parameter) besides that of `tx`.
    """

    def init(params: PyTree) -> MastersState:
        # Copies even of float32 leaves: the state is donated beside the parameters.
        masters = jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params)
        return MastersState(masters, tx.init(masters))

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None
    ) -> tuple[PyTree, MastersState]:
        if params is None:
            raise ValueError("params: got None, takes the parameters that the updates are for")
        updates, inner = tx.update(_float32(updates), state.inner, state.masters)
        masters = jax.tree.map(jnp.add, state.masters, updates)
        # apply_updates adds in float32 and rounds once, so params end as the rounded masters.
        steps = jax.tree.map(lambda m, p: m - p.astype(jnp.float32), masters, params)
        return steps, MastersState(masters, inner)

    return optax.GradientTransformation(init, update)


def warmup_cosine(peak: float, *, warmup: int, steps: int, final: float = 0.0) -> optax.Schedule:
    """Linear from 0 to `peak` in `warmup` steps, then half a cosine to `final` at `steps`."""
    _check_span(warmup, steps)
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, warmup),
            optax.cosine_decay_schedule(peak, steps - warmup, final / peak if peak else 0.0),
        ],
        [warmup],
    )


def linear(peak: float, *, warmup: int, steps: int, final: float = 0.0) -> optax.Schedule:
    """Linear from 0 to `peak` in `warmup` steps, then linear to `final` at `steps`."""
    _check_span(warmup, steps)
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, warmup),
            optax.linear_schedule(peak, final, steps - warmup),
        ],
        [warmup],
    )


def wsd(peak: float, *, warmup: int, decay: int, steps: int, final: float = 0.0) -> optax.Schedule:
    """Warm-up, stable, decay: linear to `peak`, constant, linear to `final` in the last `decay`."""
    _check_span(warmup, steps)
    if not 0 <= decay <= steps - warmup:
        raise ValueError(f"decay: got {decay}, takes 0 to steps - warmup = {steps - warmup}")
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, warmup),
            optax.constant_schedule(peak),
            optax.linear_schedule(peak, final, decay),
        ],
        [warmup, steps - decay],
    )


def _check_span(warmup: int, steps: int) -> None:
    if not 0 <= warmup < steps:
        raise ValueError(f"warmup: got {warmup}, takes 0 to fewer than steps={steps}")
