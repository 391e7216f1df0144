"""The splash kernel (block-sparse flash attention on TPU) on the shards of a mesh."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax.core.spmd import get_logical_axis_rules
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import NamedSharding, PartitionSpec

from kd_jax.axes import mesh_axes, ways

LANES = 128  # a block is a multiple of it in both directions
BLOCKS = (512, 256, LANES)
PADDING = -1  # the segment of what is added to fill blocks; the data's padding is 0


def splash_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool,
    window: int | None,
    q_segments: jax.Array | None = None,
    kv_segments: jax.Array | None = None,
    interpret: bool = False,
) -> jax.Array:
    """`attention` by the splash kernel; its residuals are named "mixed" for `jax.checkpoint`.

    Lengths are padded to whole blocks, multiples of 128, with a segment of their own. A kernel
    cannot be partitioned by the compiler: with a mesh in context it runs on each device's rows,
    queries and heads, cut as flax's logical axis rules say for "batch", "length", "heads" and
    "kv_heads"; k and v are whole along S. Nothing moves along T where each device's part of it is
    whole blocks.

    interpret: run the kernel's Python on the CPU, for tests.
    """
    batch, length, heads, kv_heads = map(mesh_axes, ("batch", "length", "heads", "kv_heads"))
    batch, length, heads = (
        None if size % ways(axes) else axes
        for size, axes in zip(q.shape, (batch, length, heads), strict=False)
    )
    if kv_heads != heads or k.shape[2] % ways(heads):
        # Heads in groups are cut only along whole groups; else every query head gets its own.
        k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))

    shards = ways(length)
    block_q, rows = _blocks_of(q.shape[1] // shards)
    block_kv, columns = _blocks_of(k.shape[1])
    rows *= shards
    segments = ()
    if q_segments is not None and kv_segments is not None:
        segments = (q_segments, kv_segments)
    elif (rows, columns) != (q.shape[1], k.shape[1]):
        segments = (jnp.zeros(q.shape[:2], jnp.int32), jnp.zeros(k.shape[:2], jnp.int32))
    segments = tuple(_pad(x, n, PADDING) for x, n in zip(segments, (rows, columns), strict=False))
    mask = _mask(rows, columns, causal, window)
    kernel = splash.make_splash_mha(
        mask=masks.MultiHeadMask([mask] * (q.shape[2] // ways(heads))),
        block_sizes=_block_sizes(block_q, block_kv),
        head_shards=1,
        q_seq_shards=shards,
        residual_checkpoint_name="mixed",
        interpret=interpret,
    )
    scaled = (q.astype(jnp.float32) / math.sqrt(q.shape[-1])).astype(q.dtype)
    inputs = (_pad(scaled, rows), _pad(k, columns), _pad(v, columns), *segments)
    mesh = jax.sharding.get_abstract_mesh()
    run = _local
    if not mesh.empty and get_logical_axis_rules():
        queries = PartitionSpec(batch, length, heads, None)
        keys = PartitionSpec(batch, None, heads, None)
        own = (PartitionSpec(batch, length), PartitionSpec(batch, None))
        run = jax.shard_map(
            _local,
            mesh=mesh,
            in_specs=(
                # Each device gets the mask of its own queries.
                kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(None, length))),
                queries,
                keys,
                keys,
                *own[: len(segments)],
            ),
            out_specs=queries,
            check_vma=False,  # the kernel's outputs carry no such types
        )
    return run(kernel, *inputs)[:, : q.shape[1]]


def _local(
    kernel: Any, q: jax.Array, k: jax.Array, v: jax.Array, *segments: jax.Array
) -> jax.Array:
    """The kernel over one device's [B, T, H, K], [B, S, G, K] and segments."""
    heads_first = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    ids = splash.SegmentIds(*segments) if segments else None
    out: Any = jax.vmap(kernel)(*heads_first, ids)
    return jnp.swapaxes(out, 1, 2)


def _blocks_of(length: int) -> tuple[int, int]:
    """(size of a block, length padded to whole blocks)."""
    whole = math.ceil(length / LANES) * LANES
    return next(size for size in BLOCKS if whole % size == 0), whole


def _pad(x: jax.Array, to: int, value: int = 0) -> jax.Array:
    widths = [(0, 0), (0, to - x.shape[1])] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, widths, constant_values=value)


def _mask(rows: int, columns: int, causal: bool, window: int | None) -> masks.Mask:
    if window is not None:
        back = window - 1
        return masks.LocalMask((rows, columns), (back, 0 if causal else back), offset=0)
    return masks.CausalMask((rows, columns)) if causal else masks.FullMask((rows, columns))


def _block_sizes(block_q: int, block_kv: int) -> splash.BlockSizes:
    return splash.BlockSizes(
        block_q=block_q,
        block_kv=block_kv,
        block_kv_compute=block_kv,
        block_q_dkv=block_q,
        block_kv_dkv=block_kv,
        block_kv_dkv_compute=block_kv,
        block_q_dq=block_q,
        block_kv_dq=block_kv,
    )
