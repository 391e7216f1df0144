"""A mixture of experts in place of a decoder's MLP: every token goes through its best k of them.

No expert has a capacity and no token is dropped, so that what a token gets does not depend on the
tokens around it. The experts may be split over devices ("experts"), their hidden layers too
("mlp"), and the tokens as those of any other layer.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from kd_jax.axes import mesh_axes, ways
from kd_jax.models.lora import merge
from kd_jax.types import Term

# (pattern of a path, logical name of each axis), where the mixture is a decoder's layers/mlp.
RULES = (
    (r"layers/mlp/router/kernel", ("layers", "embed", None)),
    (r"layers/mlp/(gate|up)/kernel", ("layers", "experts", "embed", "mlp")),
    (r"layers/mlp/down/kernel", ("layers", "experts", "mlp", "embed")),
)

# The kernel's gradient: rows of each group contracted, [M, K] x [M, N] -> [E, K, N].
_OVER_ROWS = jax.lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((0,), (0,)), ((), ())),
    lhs_ragged_dimensions=[0],
    rhs_group_dimensions=[],
)


def moe_mlp(
    layer: Mapping[str, Any],
    x: Float[Array, "B T D"],
    *,
    per_token: int,
    renormalise: bool = True,
) -> tuple[Float[Array, "B T D"], Float[Array, "B T E"]]:
    """y = sum over the token's k experts of p_e down_e(silu(gate_e x) * up_e x), in x's dtype.

    layer: router/kernel [D, E], gate/kernel and up/kernel [E, D, F], down/kernel [E, F, D].
    per_token: k, from 1 to E. renormalise: see `route`.

    Also gives the router's logits, f32 [B, T, E]; router, weights and the sum over experts are
    float32. The wide products are named "gate_up" for `jax.checkpoint`.

    With a mesh and flax's logical axis rules in context each device runs the experts it holds: the
    tokens of the devices that hold the other experts are gathered, and what a device adds to each
    of them is summed back to where it came from. The tokens of one device are taken at a time, and
    again in the backward pass, so that wide arrays have min(k, E on a device) rows for each token
    of one device: enough for any routing. Most of them stay empty; the TPU's kernel is given the
    sizes of the groups and need not visit them (not measured).

    ValueError: sizes that do not fit one another.
    """
    kernels = merge({name: layer[name]["kernel"] for name in ("router", "gate", "up", "down")})
    _check(kernels, x, per_token)
    # At the default precision a TPU would round both operands to bfloat16.
    logits = jnp.einsum(
        "btd,de->bte",
        x.astype(jnp.float32),
        kernels["router"].astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
    experts, hidden = _mesh_axes("experts"), _mesh_axes("mlp")
    batch, length = (
        () if size % ways(axes) else axes
        for size, axes in zip(x.shape, (_mesh_axes("batch"), _mesh_axes("length")), strict=False)
    )
    run = functools.partial(
        _on_device,
        per_token=per_token,
        renormalise=renormalise,
        tokens=batch + length,
        experts=experts,
        hidden=hidden,
    )
    if batch + length + experts + hidden:
        tokens = PartitionSpec(batch or None, length or None)
        wide = PartitionSpec(experts or None, None, hidden or None)
        run = jax.shard_map(
            run,
            mesh=jax.sharding.get_abstract_mesh(),
            in_specs=(tokens, tokens, wide, wide, PartitionSpec(experts or None, hidden or None)),
            out_specs=tokens,
        )
    return run(x, logits, kernels["gate"], kernels["up"], kernels["down"]), logits


def route(
    logits: Float[Array, "... E"], *, per_token: int, renormalise: bool = True
) -> tuple[Float[Array, "... k"], Int[Array, "... k"]]:
    """(weights, experts) of each token's k best: softmax over all E, then the k largest.

    renormalise: divide a token's weights by their sum (Mixtral, arXiv 2401.04088, section 2.1;
    Qwen3 with norm_topk_prob). Of equal experts the lower index is taken.
    """
    probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    weights, chosen = jax.lax.top_k(probabilities, per_token)
    if renormalise:
        weights /= weights.sum(-1, keepdims=True)
    return weights, chosen


def expert_load(
    router_logits: Float[Array, "B T E"], weights: Float[Array, "B T"], *, per_token: int
) -> Term:
    """A Term whose value is f [E], the part of all choices that fell on each expert; sums to 1.

    total: sum over tokens of weight times (is e among the token's k?) / k, f32 [E] and without
    gradient; weight: the sum of weights. f belongs to the whole batch: an objective gives this
    in `stats` and reads f from ctx.stats, or says `whole_batch` and takes its value in `loss`.
    """
    _, chosen = jax.lax.top_k(router_logits, per_token)
    hits = jax.nn.one_hot(chosen, router_logits.shape[-1], dtype=jnp.float32).sum(-2) / per_token
    weights = weights.astype(jnp.float32)
    return Term(jnp.einsum("bt,bte->e", weights, hits), weights.sum())


def load_balance(
    router_logits: Float[Array, "B T E"], load: Float[Array, " E"]
) -> Float[Array, "B T"]:
    """E sum_e f_e p_e(token), f32 [B, T], unreduced.

    Its weighted mean over tokens, `weighted_sum(load_balance(logits, f), weights, 0.01)`, is the
    loss of Switch, E sum_e f_e P_e (arXiv 2101.03961, Eq. 4 to 6), for one layer: 1 where experts
    are used evenly. load: f, the value of `expert_load`. (Mixtral in transformers has k times
    this, over the tokens of all layers at once.)
    """
    probabilities = jax.nn.softmax(router_logits.astype(jnp.float32), axis=-1)
    return load.size * jnp.einsum("bte,e->bt", probabilities, load)


def _on_device(
    x: jax.Array,
    logits: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
    *,
    per_token: int,
    renormalise: bool,
    tokens: tuple[str, ...],
    experts: tuple[str, ...],
    hidden: tuple[str, ...],
) -> jax.Array:
    """One device's tokens [B, T, D] through all experts, of which it holds gate [E', D, F'].

    tokens, experts, hidden: the mesh axes that split B and T, E, and F.
    """
    gathered = tuple(axis for axis in experts if axis in tokens)
    summed = hidden + tuple(axis for axis in experts if axis not in tokens)
    wide = experts + hidden
    weights, chosen = route(logits, per_token=per_token, renormalise=renormalise)
    # Cast here: the transpose sums gradients over devices, once a token and once a kernel.
    kernels = [_varying(kernel, wide, tokens) for kernel in (gate, up, down)]
    own = [_varying(a.reshape(-1, a.shape[-1]), tokens, wide) for a in (x, chosen, weights)]
    first = gate.shape[0] * jax.lax.axis_index(experts) if experts else 0

    def mixture(part: list[jax.Array]) -> jax.Array:
        x, chosen, weights = part
        return _mixture(kernels, x, chosen - first, weights)

    if gathered:
        parts = [jax.lax.all_gather(a, gathered) for a in own]  # each [devices, N, ...]
        y = jax.lax.map(jax.checkpoint(mixture, prevent_cse=False), parts)
        y = jax.lax.psum_scatter(y, gathered)
    else:
        y = mixture(own)
    if summed:
        y = jax.lax.psum(y, summed)
    return y.astype(x.dtype).reshape(x.shape)


def _mixture(
    kernels: Sequence[jax.Array], x: jax.Array, chosen: jax.Array, weights: jax.Array
) -> jax.Array:
    """What these experts add to tokens x [N, D]: f32 [N, D].

    kernels: gate, up and down. chosen [N, k] counts from the first of these experts; those of
    other devices are outside [0, E'). Rows are sorted by expert, so that a product takes each
    expert's rows with its kernel.
    """
    gate, up, down = kernels
    (count, per_token), held = chosen.shape, gate.shape[0]
    chosen = chosen.reshape(-1)
    own = (chosen >= 0) & (chosen < held)
    expert = jnp.where(own, chosen, held)
    order = jnp.argsort(expert)  # stable; choices of other devices' experts come last
    sizes = jnp.sum(expert[:, None] == jnp.arange(held)[None], axis=0, dtype=jnp.int32)
    # A token chooses k different experts: at most this many rows are for those here.
    rows = count * min(per_token, held)
    order, used = order[:rows], jnp.arange(rows) < sizes.sum()
    token = jnp.where(used, order // per_token, count)
    # Where a choice's row is. Rows past the last group are neither read nor do they reach x in
    # the backward pass: an index past the end reads zeros, and nothing is added there.
    place = jnp.full(count * per_token, rows).at[order].set(jnp.where(used, jnp.arange(rows), rows))

    taken = x.at[token].get(mode="fill", fill_value=0)
    gate, up = (checkpoint_name(_grouped(taken, k, sizes), "gate_up") for k in (gate, up))
    out = _grouped(jax.nn.silu(gate) * up, down, sizes)
    out = out.at[place].get(mode="fill", fill_value=0).reshape(count, per_token, -1)
    return jnp.einsum("nkd,nk->nd", out.astype(jnp.float32), weights)


def _varying(x: jax.Array, axes: tuple[str, ...], over: tuple[str, ...]) -> jax.Array:
    """x, which differs over some mesh axes, typed as one that differs over the others too."""
    missing = tuple(axis for axis in over if axis not in axes)
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def _grouped(x: jax.Array, kernels: jax.Array, sizes: jax.Array) -> jax.Array:
    """x [M, K] times kernels [E, K, N], the first sizes[0] rows with the first, and so on: [M, N].

    Dtypes as in `parts.matmul`.
    """
    if x.dtype.itemsize == 2:
        return _narrow_grouped(x, kernels, sizes)
    return jax.lax.ragged_dot(x, kernels.astype(x.dtype), sizes)


@jax.custom_vjp
def _narrow_grouped(x: jax.Array, kernels: jax.Array, sizes: jax.Array) -> jax.Array:
    out = jax.lax.ragged_dot(x, kernels.astype(x.dtype), sizes, preferred_element_type=jnp.float32)
    return out.astype(x.dtype)


def _forward(x, kernels, sizes):
    return _narrow_grouped(x, kernels, sizes), (x, kernels, sizes)


def _backward(residuals, grad):
    x, kernels, sizes = residuals
    to_x = jax.lax.ragged_dot(
        grad,
        jnp.swapaxes(kernels, 1, 2).astype(x.dtype),
        sizes,
        preferred_element_type=jnp.float32,
    )
    to_kernels = jax.lax.ragged_dot_general(
        x, grad, sizes, _OVER_ROWS, preferred_element_type=jnp.float32
    )
    return to_x.astype(x.dtype), to_kernels.astype(kernels.dtype), None


_narrow_grouped.defvjp(_forward, _backward)


def _mesh_axes(name: str) -> tuple[str, ...]:
    """The mesh axes of a logical name that cut it; () outside a mesh."""
    axes = mesh_axes(name) or ()
    return tuple(axis for axis in ((axes,) if isinstance(axes, str) else axes) if ways(axis) > 1)


def _check(kernels: Mapping[str, jax.Array], x: jax.Array, per_token: int) -> None:
    if x.ndim != 3 or kernels["gate"].ndim != 3:
        raise ValueError(
            f"x, gate/kernel: got shapes {x.shape}, {kernels['gate'].shape}, takes [B, T, D] and "
            "[E, D, F]"
        )
    experts, width, hidden = kernels["gate"].shape
    shapes = {
        "router": (x.shape[-1], experts),
        "gate": (experts, x.shape[-1], hidden),
        "up": (experts, width, hidden),
        "down": (experts, hidden, width),
    }
    for name, shape in shapes.items():
        if kernels[name].shape != shape:
            raise ValueError(f"{name}/kernel: got shape {kernels[name].shape}, takes {shape}")
    if not 1 <= per_token <= experts:
        raise ValueError(f"per_token: got {per_token}, takes 1 to {experts}, the number of experts")
