"""The command line: python -m kd_jax.merging RECIPE.yaml OUT/."""

import argparse
import sys
from collections.abc import Sequence

from kd_jax.merging.disk.errors import MergeError, WriteFailed
from kd_jax.merging.disk.run import merge

_EPILOG = """\
docs/merging.md tells what a recipe can say (mergekit's YAML and more) and what differs. A merge
that was interrupted goes on with the same command: shards that are finished are kept. Exit codes: 0
done, 1 the output could not be written, 2 something to put right, 130 Ctrl-C.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m kd_jax.merging",
        description="Merge Hugging Face safetensors checkpoints out of core, by a recipe.",
        epilog=_EPILOG,
    )
    parser.add_argument("recipe", metavar="RECIPE.yaml", help="what to merge, and how")
    parser.add_argument("out", metavar="OUT", help="folder to make; must not be there, or empty")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="default: a processor each, at most 4"
    )
    parser.add_argument(
        "--process", type=int, default=0, metavar="K", help="which of the processes this is, from 0"
    )
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="how many write this output together"
    )
    parser.add_argument(
        "--no-hashes", action="store_true", help="leave the inputs' SHA-256 out of the model card"
    )
    parser.add_argument("--quiet", action="store_true", help="say nothing but errors")
    given = parser.parse_args(argv)
    if given.threads is not None and given.threads < 1:
        parser.error(f"--threads: got {given.threads}, takes at least 1")
    try:
        result = merge(
            given.recipe,
            given.out,
            threads=given.threads,
            process=given.process,
            processes=given.processes,
            hashes=not given.no_hashes,
            quiet=given.quiet,
        )
    except (MergeError, WriteFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the finished shards", file=sys.stderr)
        return 130
    if given.quiet:
        return 0
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    if result.waiting:
        print(f"this process is done; {result.waiting} shards are other processes'")
    else:
        speed = result.nbytes / 1e9 / max(result.seconds, 1e-9)
        print(f"wrote {given.out}: {result.nbytes / 1e9:.2f} GB read and written, {speed:.2f} GB/s")
    return 0
