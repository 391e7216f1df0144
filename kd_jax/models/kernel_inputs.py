"""Which tap of a decoder is the input of which kernel."""

from kd_jax.models.config import DecoderConfig

_DENSE = {
    "attn": ("attn/q", "attn/k", "attn/v"),
    "o": ("attn/o",),
    "mlp": ("mlp/gate", "mlp/up"),
    "down": ("mlp/down",),
}


def of_layer(config: DecoderConfig) -> dict[str, tuple[str, ...]]:
    """{what is multiplied in a layer: the kernels that multiply it}.

    The kernels of experts, which see some tokens each, are not among them; their router is.
    """
    if not config.experts:
        return _DENSE
    return {"attn": _DENSE["attn"], "o": _DENSE["o"], "mlp": ("mlp/router",)}


def taps(config: DecoderConfig) -> dict[str, str | tuple[str, ...]]:
    """{path of a kernel: the tap of its input}; of stacked layers a tuple of taps, one a layer.

    For Gram matrices (`attribution.grams`). Embeddings are looked up, not multiplied.
    """
    found: dict[str, str | tuple[str, ...]] = {}
    for name, kernels in of_layer(config).items():
        numbered = tuple(f"{name}_input_{i}" for i in range(config.depth))
        for kernel in kernels:
            if config.scan:
                found[f"layers/{kernel}/kernel"] = numbered
            else:
                found |= {f"layers/{i}/{kernel}/kernel": tap for i, tap in enumerate(numbered)}
    return found
