"""The least time that a step can take on a chip, from its FLOPs, bytes and traffic."""

from collections.abc import Mapping

from kd_jax.launch.planning.chips import Chip
from kd_jax.launch.planning.collectives import Traffic

ASSUMPTIONS = (
    "Roofline: compute, memory and network overlap perfectly, so a step takes the longest of them.",
    "Compute: all FLOPs of the traced program (matrix products and convolutions; attention dense, "
    "without the causal half), spread evenly, at the bf16 peak.",
    "Memory: a floor; arguments read once, outputs written once, temporaries written and read "
    "once.",
    "Network: the compiled program's collectives as rings, over all links of a chip at once; what "
    "goes between slices (dcn) and to the host's memory takes no time here.",
    "Utilization: FLOPs without recomputation over what the chips could do in that time. A real "
    "step is slower; a plan is not a measurement.",
)


def of(
    chip: Chip,
    devices: int,
    *,
    flops: float,
    model_flops: float,
    memory: float,
    traffic: Traffic,
) -> Mapping[str, float]:
    """Seconds {"compute", "memory", "network", "step"}, and "utilization".

    flops and model_flops: of the whole mesh. memory and traffic: bytes of a chip.
    """
    compute = flops / (devices * chip.flops)
    streamed = memory / chip.hbm_bandwidth
    network = sum(n for kind, n in traffic.items() if kind != "dcn") / chip.ici_bandwidth
    step = max(compute, streamed, network)
    return {
        "compute": compute,
        "memory": streamed,
        "network": network,
        "step": step,
        "utilization": model_flops / (devices * chip.flops * step) if step else 0.0,
    }
