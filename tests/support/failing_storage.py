"""One process of a run whose disk is too small at times: a limit on the size of a file, set by the
system, makes the writes of a checkpoint fail for real. As a script, see `main`.
"""

import argparse
import json
import resource
import signal
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from kd_jax.launch import runtime
from kd_jax.launch.checkpoints import Checkpoints
from kd_jax.launch.errors import StorageFailed
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.types import TrainState

WIDTH = 2**17  # a device's row of the parameters takes half a MiB, and random bits do not compress
LIMIT = 2**16  # bytes that a file may have on the small disk
SPLIT = PartitionSpec(("data", "fsdp"))


def state_of(mesh, step):
    """A state that is told from the others by all of its numbers."""
    rows = np.random.default_rng(step).normal(size=(mesh.size, WIDTH)).astype(np.float32)

    def put(x, spec=SPLIT):
        return jax.make_array_from_callback(x.shape, NamedSharding(mesh, spec), lambda i: x[i])

    whole = PartitionSpec()
    return TrainState(
        step=put(np.int32(step), whole),
        params={"model": {"kernel": put(rows)}},
        opt_state={},
        carry={},
        key=jax.jit(jax.random.key, out_shardings=NamedSharding(mesh, whole))(step),
    )


class SmallDisk:
    """Files of this process are small while it is full, until `lift_at` warnings were shown."""

    def __init__(self):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writes fail with EFBIG
        self.said = []
        self.lift_at = 0
        warnings.simplefilter("always")
        warnings.showwarning = self._show

    def fill(self, process, lift_at=0):
        """process: the one whose disk it is. lift_at: 0 for never."""
        self.lift_at = lift_at and len(self.said) + lift_at
        if jax.process_index() == process:
            resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, resource.RLIM_INFINITY))

    def lift(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def _show(self, message, *_):
        """Somebody reads the warning and makes room."""
        self.said.append(str(message))
        if len(self.said) == self.lift_at:
            self.lift()


def run(folder, patience):
    """The story of one run, and what came of it."""
    mesh = make_mesh(MeshConfig())
    disk, last = SmallDisk(), jax.process_count() - 1
    settings = {"identity": {"beta": 0.1}, "keep": 2, "pauses": (0.0, 0.05), "patience": patience}
    found = {}
    with Checkpoints(folder, **settings) as checkpoints:
        checkpoints.save(10, state_of(mesh, 10))
        checkpoints.wait()
        # In the background: the next step is saved instead.
        disk.fill(last, lift_at=1)
        checkpoints.save(20, state_of(mesh, 20))
        checkpoints.save(30, state_of(mesh, 30))
        found["once"] = checkpoints.steps
        # The save itself, as at the end of a run.
        disk.fill(0, lift_at=1)
        checkpoints.save(40, state_of(mesh, 40), wait=True)
        found["waited"] = checkpoints.steps
        # For good. A process that stops because of something else says so, too.
        disk.fill(last)
        checkpoints.save(50, state_of(mesh, 50))
        checkpoints.wait()
        try:
            checkpoints.save(60, state_of(mesh, 60))
        except StorageFailed as error:
            found |= {"error": str(error), "good": error.step, "code": error.exit_code}
    disk.lift()
    runtime.barrier("read")
    found["files"] = sorted(file.name for file in Path(folder).iterdir())
    with Checkpoints(folder, **settings) as checkpoints:
        like = state_of(mesh, 0)
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        back = checkpoints.restore_latest(abstract)
    assert back is not None
    kernels = [s.params["model"]["kernel"] for s in (back, state_of(mesh, int(back.step)))]
    found["restored"] = int(back.step)
    found["exact"] = bool(jax.jit(lambda x, y: jnp.all(x == y))(*kernels))
    return found | {"warnings": disk.said}


def main(argv=None):
    """python failing_storage.py FOLDER --patience 4; joins others by the environment."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--patience", type=int, default=4)
    args = parser.parse_args(argv)
    runtime.init(2, cache="")
    found = run(args.folder / "checkpoints", args.patience)
    (args.folder / f"found-{jax.process_index()}.json").write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
