"""Scaled dot-product attention: one function, and the kernel that the platform is best at.

On CPU and GPU it is `jax.nn.dot_product_attention` (cuDNN's flash attention on GPU for 16-bit
inputs), on TPU the splash kernel. The platform is that of the mesh in context (`jax.set_mesh`),
so that a program compiled on a CPU host for a TPU topology gets the TPU's kernel, and otherwise
that of the default backend.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax.core.spmd import get_logical_axis_rules
from flax.linen import spmd
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

LANES = 128  # a block of the splash kernel is a multiple of it in both directions
BLOCKS = (512, 256, LANES)
PADDING = -1  # the segment of what the splash kernel is padded with; the data's padding is 0
CUDNN_HEAD_DIM = 128  # cuDNN's limit for training before Hopper


def attention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    *,
    causal: bool = True,
    window: int | None = None,
    q_segments: Int[Array, "B T"] | None = None,
    kv_segments: Int[Array, "B S"] | None = None,
    q_positions: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T H K"]:
    """softmax(q k^T / sqrt(K) + mask) v, the softmax in float32; the result has q's dtype.

    Query i sees key j where all of these hold: j <= p(i) if causal; p(i) - j < window if window
    is given (and j - p(i) < window if not causal); q_segments[i] == kv_segments[j] if segments
    are given. H is a multiple of G: query head h reads key head h // (H / G) (arXiv 2305.13245).

    q_positions: p(i), the place of each query among the keys, for decoding with a cache; by
        default p(i) = i, which asks for T == S where causal or window is used.
    q_segments, kv_segments: both or neither. Padding is a segment of its own (0): it attends to
        itself, so its rows are finite and nothing else sees it. A query that sees no key at all
        is finite away from TPU, and undefined there.

    ValueError names an argument that does not fit the others.
    """
    _check(q, k, v, causal, window, q_segments, kv_segments, q_positions)
    platform = _platform()
    if platform == "tpu" and q_positions is None:
        return splash_attention(
            q, k, v, causal=causal, window=window, q_segments=q_segments, kv_segments=kv_segments
        )
    return dot_product_attention(
        q,
        k,
        v,
        causal=causal,
        window=window,
        q_segments=q_segments,
        kv_segments=kv_segments,
        q_positions=q_positions,
        cudnn=platform in ("gpu", "cuda"),
    )


def dot_product_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool,
    window: int | None,
    q_segments: jax.Array | None = None,
    kv_segments: jax.Array | None = None,
    q_positions: jax.Array | None = None,
    cudnn: bool = False,
) -> jax.Array:
    """`attention` through jax.nn; without segments and positions no mask reaches cuDNN.

    cudnn: use cuDNN's kernel where it takes the inputs (16-bit, K a multiple of 8 up to 128, and
        even lengths where there is a mask); XLA's otherwise.
    """
    mask = None
    if q_segments is not None and kv_segments is not None:
        mask = q_segments[:, None, :, None] == kv_segments[:, None, None, :]  # [B, 1, T, S]
    if q_positions is not None:
        place, keys = q_positions[:, None, :, None], jnp.arange(k.shape[1])[None, None, None, :]
        seen = jnp.ones((1, 1, 1, 1), bool) if not causal else keys <= place
        if window is not None:
            seen &= (place - keys < window) & (keys - place < window)
        mask = seen if mask is None else mask & seen
        causal, window = False, None
    left_right = None if window is None else (window - 1, 0 if causal else window - 1)
    fits = q.dtype.itemsize == 2 and q.shape[-1] % 8 == 0 and q.shape[-1] <= CUDNN_HEAD_DIM
    even = mask is None or (q.shape[1] % 2 == 0 and k.shape[1] % 2 == 0)
    one_sided = left_right is None or causal  # cuDNN's window looks back only
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=mask,
        is_causal=causal,
        local_window_size=left_right,
        implementation="cudnn" if cudnn and fits and even and one_sided else "xla",
    )


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
    """`attention` by the splash kernel (block-sparse flash attention) on TPU.

    Lengths are padded to multiples of 128 with a segment of their own. A kernel cannot be
    partitioned by the compiler: with a mesh in context it runs on each device's rows and heads,
    cut as flax's logical axis rules say for "batch", "heads" and "kv_heads".

    interpret: run the kernel's Python on the CPU, for tests.
    """
    length, source = q.shape[1], k.shape[1]
    block = next(size for size in BLOCKS if max(_up(length), _up(source)) % size == 0)
    rows, columns = (math.ceil(n / block) * block for n in (length, source))
    if q_segments is None or kv_segments is None:
        q_segments = jnp.zeros((q.shape[0], length), jnp.int32)
        kv_segments = jnp.zeros((q.shape[0], source), jnp.int32)
        plain = (rows, columns) == (length, source)
    else:
        plain = False

    def pad(x: jax.Array, to: int, value: int = 0) -> jax.Array:
        widths = [(0, 0), (0, to - x.shape[1])] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(x, widths, constant_values=value)

    def local(q, k, v, q_segments, kv_segments):
        kernel = splash.make_splash_mha(
            mask=masks.MultiHeadMask([_mask(rows, columns, causal, window)] * q.shape[2]),
            block_sizes=_blocks(block),
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
        scaled = (q.astype(jnp.float32) / math.sqrt(q.shape[-1])).astype(q.dtype)
        heads_first = (
            jnp.swapaxes(pad(x, n), 1, 2) for x, n in ((scaled, rows), (k, columns), (v, columns))
        )
        segments = (
            ()
            if plain
            else (
                splash.SegmentIds(
                    pad(q_segments, rows, PADDING), pad(kv_segments, columns, PADDING)
                ),
            )
        )
        out: Any = jax.vmap(kernel)(*heads_first, *segments)
        return jnp.swapaxes(out, 1, 2)[:, :length]

    return _on_shards(local, q, k, v, q_segments, kv_segments)


def _up(n: int) -> int:
    return math.ceil(n / LANES) * LANES


def _mask(rows: int, columns: int, causal: bool, window: int | None) -> masks.Mask:
    if window is not None:
        back = window - 1
        return masks.LocalMask((rows, columns), (back, 0 if causal else back), offset=0)
    return masks.CausalMask((rows, columns)) if causal else masks.FullMask((rows, columns))


def _blocks(block: int) -> splash.BlockSizes:
    return splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )


def _on_shards(local, q, k, v, q_segments, kv_segments):
    """local(...) on each device's rows and heads; as it is where there is no mesh in context."""
    mesh = jax.sharding.get_abstract_mesh()
    rules = get_logical_axis_rules()
    if mesh.empty or not rules:
        return local(q, k, v, q_segments, kv_segments)
    batch, heads, kv_heads = (
        (spmd.logical_to_mesh_axes((name,), rules) or (None,))[0]
        for name in ("batch", "heads", "kv_heads")
    )
    if q.shape[0] % _size(mesh, batch):
        batch = None
    if q.shape[2] % _size(mesh, heads):
        heads = None
    if kv_heads != heads or k.shape[2] % _size(mesh, heads):
        # Heads in groups are cut only along whole groups; else every query head gets its own.
        k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    spec, rows = PartitionSpec(batch, None, heads, None), PartitionSpec(batch, None)
    mapped = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(spec, spec, spec, rows, rows),
        out_specs=spec,
        check_vma=False,  # the kernel's outputs carry no such types
    )
    return mapped(q, k, v, q_segments, kv_segments)


def _size(mesh: jax.sharding.AbstractMesh, axes: str | tuple[str, ...] | None) -> int:
    names = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(mesh.shape[name] for name in names)


def _platform() -> str:
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def _check(q, k, v, causal, window, q_segments, kv_segments, q_positions) -> None:
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape:
        raise ValueError(
            f"q, k, v: got shapes {q.shape}, {k.shape}, {v.shape}, takes [B, T, H, K] and twice "
            "[B, S, G, K]"
        )
    if (q.shape[0], q.shape[3]) != (k.shape[0], k.shape[3]) or q.shape[2] % k.shape[2]:
        raise ValueError(
            f"k: got shape {k.shape} for q {q.shape}, takes the same B and K, and heads that "
            "divide q's"
        )
    if window is not None and window < 1:
        raise ValueError(f"window: got {window}, takes at least 1 (the token itself) or None")
    if (q_segments is None) != (kv_segments is None):
        raise ValueError("q_segments, kv_segments: got one, takes both or neither")
    rows, columns = q.shape[:2], k.shape[:2]
    expected = (
        ("q_segments", q_segments, rows),
        ("kv_segments", kv_segments, columns),
        ("q_positions", q_positions, rows),
    )
    for name, x, shape in expected:
        if x is not None and x.shape != shape:
            raise ValueError(f"{name}: got shape {x.shape}, takes {shape}")
    if q_positions is None and (causal or window is not None) and q.shape[1] != k.shape[1]:
        raise ValueError(
            f"k: got {k.shape[1]} keys for {q.shape[1]} queries, takes as many, or q_positions"
        )
