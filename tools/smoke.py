"""Runs every experiment of a family at `smoke`, one after the other in this process.

    python -m tools.smoke --families      # their names
    python -m tools.smoke unlearning

Start-up and compiled programs are shared, and compiled without most of XLA's optimisations, which
would take longer than the runs. A run should take 20 s on two cores; one that uses more than four
times that in processor time fails: programs compile up to twice as slowly on a machine with other
work. The limit is that of a machine that counts at PACE, and longer by as much as this one is
slower around the run.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.__main__ import find

LIMIT = 20.0  # seconds
MOST = 4  # times LIMIT, in processor time
PACE = 0.3  # seconds of processor time, of `_count`


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.smoke", description=__doc__)
    found = [e for e in find() if "smoke" in e.presets]
    families = sorted({e.family for e in found})
    parser.add_argument("family", nargs="?", choices=families)
    parser.add_argument("--families", action="store_true", help="print the families' names")
    arguments = parser.parse_args(argv)
    if arguments.families:
        print(*families, sep="\n")
        return 0
    if arguments.family is None:
        parser.error(f"name a family: {', '.join(families)}")
    # Before jax starts. XLA's newer way to compile fusions on a CPU takes half as long again.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false"
    import jax

    from kd_jax.launch import run

    jax.config.update("jax_disable_most_optimizations", True)
    faults, lines = [], []
    with tempfile.TemporaryDirectory() as folder:
        for module in [e.module for e in found if e.family == arguments.family]:
            before = _count()
            start, used = time.perf_counter(), time.process_time()
            code = run.main(module, ["smoke", "--workdir", str(Path(folder, module))])
            seconds, used = time.perf_counter() - start, time.process_time() - used
            limit = LIMIT * MOST * max(1.0, before / PACE, _count() / PACE)
            lines.append(
                f"{module} smoke: exit code {code}, {seconds:.1f} s, "
                f"{used:.1f} s of processor time (limit {limit:.0f})"
            )
            if code != 0:
                faults.append(f"{module}: exit code {code}")
            elif used > limit:
                faults.append(f"{module}: {used:.0f} s of processor time, over {limit:.0f}")
    print(*lines, sep="\n")
    if faults:
        print(*faults, sep="\n", file=sys.stderr)
    return 1 if faults else 0


def _count() -> float:
    """How slow this machine is now: seconds of processor time to count to five million."""
    start, total = time.process_time(), 0
    for number in range(5_000_000):
        total += number
    return time.process_time() - start


if __name__ == "__main__":
    sys.exit(main())
