"""Runs every experiment of a family at `smoke`, one after the other in this process.

    python -m tools.smoke --families      # their names
    python -m tools.smoke unlearning

Start-up and compiled programs are shared, and compiled without most of XLA's optimisations, which
would take longer than the runs. A run may take 20 s on two cores; one that uses more
than twice that in processor time fails. That clock stands still while other work has the machine.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.__main__ import find

LIMIT = 20.0  # seconds
CORES = 2


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
    import jax

    from kd_jax.launch import run

    jax.config.update("jax_disable_most_optimizations", True)
    faults, lines = [], []
    with tempfile.TemporaryDirectory() as folder:
        for module in [e.module for e in found if e.family == arguments.family]:
            start, used = time.perf_counter(), time.process_time()
            code = run.main(module, ["smoke", "--workdir", str(Path(folder, module))])
            seconds, used = time.perf_counter() - start, time.process_time() - used
            lines.append(
                f"{module} smoke: exit code {code}, {seconds:.1f} s, {used:.1f} s of processor time"
            )
            if code != 0:
                faults.append(f"{module}: exit code {code}")
            elif used > LIMIT * CORES:
                faults.append(f"{module}: {used:.0f} s of processor time, over {LIMIT * CORES:.0f}")
    print(*lines, sep="\n")
    if faults:
        print(*faults, sep="\n", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
