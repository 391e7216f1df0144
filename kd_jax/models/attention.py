"""Scaled dot-product attention: one function, and the kernel that the platform is best at.

On CPU and GPU it is `jax.nn.dot_product_attention` (cuDNN's flash attention on GPU for 16-bit
inputs), on TPU the splash kernel. The platform is that of the mesh in context (`jax.set_mesh`),
so that a program compiled on a CPU host for a TPU topology gets the TPU's kernel, and otherwise
that of the default backend.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from kd_jax.axes import mesh_axes, ways
from kd_jax.models.splash import splash_attention

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

    T may be split over devices ("length"); k and v are then whole along S, and each device mixes
    for its own queries. The result is named "mixed" for `jax.checkpoint`.

    ValueError names an argument that does not fit the others.
    """
    _check(q, k, v, causal, window, q_segments, kv_segments, q_positions)
    platform = _platform()
    if platform == "tpu" and q_positions is None:
        return splash_attention(
            q, k, v, causal=causal, window=window, q_segments=q_segments, kv_segments=kv_segments
        )
    mixed = dot_product_attention(
        q,
        k,
        v,
        causal=causal,
        window=window,
        q_segments=q_segments,
        kv_segments=kv_segments,
        q_positions=q_positions,
        # cuDNN's kernel refuses queries that are split along T.
        cudnn=platform in ("gpu", "cuda") and ways(mesh_axes("length")) == 1,
    )
    return checkpoint_name(mixed, "mixed")


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
