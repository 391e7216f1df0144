"""What would make a program fit, said of what takes the memory."""

import math
from collections.abc import Mapping

from kd_jax.launch.planning.chips import GIB
from kd_jax.launch.planning.footprint import Footprint

SHARE = 0.25  # of all bytes: what takes less is not worth a sentence
PARTS = 64  # at most, into which a batch is worth cutting further


def sentences(
    footprint: Footprint, temporaries: float, room: float, mesh: Mapping[str, int], slices: int
) -> list[str]:
    """room: bytes of a chip that may be used. mesh: the sizes of its axes, over so many slices."""
    sizes = footprint.bytes
    state = sizes["parameters"] + sizes["optimizer"] + sizes["carry"]
    total = state + sizes["frozen"] + sizes["batch"] + temporaries
    found = []
    if state >= SHARE * total:
        found.append(_of_state(state, total, room, mesh, slices))
    if temporaries >= SHARE * total:
        found.append(_of_temporaries(temporaries, total, room, footprint.rows))
    if sizes["frozen"] >= SHARE * total:
        found.append(_of_frozen(sizes["frozen"], footprint.narrowed))
    return found


def _of_state(state: float, total: float, room: float, mesh: Mapping[str, int], slices: int) -> str:
    said = f"Parameters, optimiser and carry take {_gib(state)}: "
    split, most = mesh["fsdp"], mesh["data"] * mesh["fsdp"] // slices
    wider = [n for n in range(split + 1, most + 1) if most % n == 0]
    for ways in wider:
        if total - state + state * split / ways <= room:
            return f"{said}--mesh.fsdp {ways} leaves {_gib(state * split / ways)}."
    chips = more = math.prod(mesh.values())
    while total * chips / more > room:
        more *= 2
    spread = f"split over all chips of a slice (--mesh.fsdp {most}), " if wider else ""
    return (
        f"{said}{spread}take about {more} chips, or an optimiser with less state "
        "(kd_jax.optim.adafactor)."
    )


def _of_temporaries(temporaries: float, total: float, room: float, rows: int) -> str:
    said = f"Activations and temporaries take {_gib(temporaries)}: "
    parts = 2
    while total - temporaries + temporaries / parts > room and parts < PARTS:
        parts *= 2
    ways = ["recompute each layer (remat)"]
    if rows >= parts:
        ways.insert(0, f"cut a batch into {parts} times as many microbatches")
    else:
        ways.append("split sequences (--mesh.context) or heads and vocabulary (--mesh.tensor)")
    return f"{said}{', '.join(ways)}, or take a smaller batch."


def _of_frozen(frozen: float, narrowed: float) -> str:
    said = f"Frozen models take {_gib(frozen)}: "
    if narrowed:
        said += f"bfloat16 leaves {_gib(frozen - narrowed)}; "
    return (
        f"{said}keep them in the host's memory (Training(host=...)), or compute what they give "
        "once, in a stage before."
    )


def _gib(size: float) -> str:
    return f"{size / GIB:.3g} GiB a chip"
