"""Peaks of accelerators: what rooflines and utilisations are fractions of.

A number is of one device as jax shows it: a chip, but for TPU7x half of one.
"""

from typing import Any, NamedTuple

GIB = 2**30
TERA, GIGA = 1e12, 1e9


class Chip(NamedTuple):
    """flops: dense bf16 FLOP/s. hbm: usable bytes. hbm_bandwidth: bytes/s.

    ici_bandwidth: bytes/s that it sends over all its links together, in one direction.
    """

    name: str
    flops: float
    hbm: float
    hbm_bandwidth: float
    ici_bandwidth: float


# FLOP/s and bandwidths of TPUs: cloud.google.com/tpu/docs/v4, v5e, v5p, v6e and tpu7x. They give
# the links of a chip in both directions (v5p 1200 GB/s, v6e 800, TPU7x 1200) or in one, in bits
# (v4 2400 Gbit/s, v5e 1600). Memory: what the compiler of libtpu 0.0.51 says a program may use.
TPUS = {
    "v4": Chip("v4", 275 * TERA, 30.75 * GIB, 1228 * GIGA, 300 * GIGA),
    "v5e": Chip("v5e", 197 * TERA, 15.75 * GIB, 819 * GIGA, 200 * GIGA),
    "v5p": Chip("v5p", 459 * TERA, 95.73 * GIB, 2765 * GIGA, 600 * GIGA),
    "v6e": Chip("v6e", 918 * TERA, 31.24 * GIB, 1638 * GIGA, 400 * GIGA),
    "tpu7x": Chip("tpu7x", 2307 / 2 * TERA, 94.74 * GIB, 7380 / 2 * GIGA, 600 / 2 * GIGA),
}

# NVIDIA's data sheets of the SXM modules: dense bf16 (half of what is given with sparsity), memory
# as sold, NVLink in one direction.
H100 = Chip("H100 SXM", 989 * TERA, 80 * GIGA, 3350 * GIGA, 450 * GIGA)
H200 = Chip("H200 SXM", 989 * TERA, 141 * GIGA, 4800 * GIGA, 450 * GIGA)
A100_40 = Chip("A100 SXM 40GB", 312 * TERA, 40 * GIGA, 1555 * GIGA, 300 * GIGA)
A100_80 = Chip("A100 SXM 80GB", 312 * TERA, 80 * GIGA, 2039 * GIGA, 300 * GIGA)

# By jax's device_kind. Cards for PCIe have other peaks and are not here.
KINDS = {
    "TPU v4": TPUS["v4"],
    "TPU v5 lite": TPUS["v5e"],
    "TPU v5e": TPUS["v5e"],
    "TPU v5": TPUS["v5p"],
    "TPU v5p": TPUS["v5p"],
    "TPU v6 lite": TPUS["v6e"],
    "TPU v6e": TPUS["v6e"],
    "TPU7x": TPUS["tpu7x"],
    "NVIDIA H100 80GB HBM3": H100,
    "NVIDIA H200": H200,
    "NVIDIA A100-SXM4-40GB": A100_40,
    "NVIDIA A100-SXM4-80GB": A100_80,
}


def of_topology(topology: str) -> Chip | None:
    """The chip of "v5e" or "v5e:4x4"; None for one that is not known, as "cpu:8"."""
    return TPUS.get(topology.partition(":")[0])


def of_device(device: Any) -> Chip | None:
    """The chip of a jax device, by its kind; None for one that is not known."""
    return KINDS.get(device.device_kind)
