"""Checkpoints of a run: saved in the background, exact, tied to the identity of the run.

The orbax v1 API, which may still change, is used here and in weights.py only.
"""

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from kd_jax.launch import runtime
from kd_jax.launch.config import differences, plain
from kd_jax.launch.errors import NonFinite, UserError
from kd_jax.types import TrainState

PyTree = Any


class Checkpoints:
    """The checkpoints in one folder: the latest `keep`, and the best.

    identity: plain data that decides the result; a checkpoint saved under another is refused.
    every: a checkpoint each so many steps (`fit` asks). best(metrics) -> a number: the checkpoint
    with the largest stays, too. origins: where frozen weights came from (path, hash), kept with
    each checkpoint; frozen weights themselves are not.

    UserError when the folder cannot be written. All processes of a run share the folder.
    """

    def __init__(
        self,
        folder: str | Path,
        identity: Mapping[str, Any],
        keep: int = 2,
        best: Callable[[Mapping[str, float]], float] | None = None,
        *,
        every: int = 100,
        origins: Mapping[str, Any] | None = None,
    ):
        from orbax.checkpoint import v1

        if keep < 1 or every < 1:
            raise ValueError(f"keep: got {keep}, every: got {every}; both take at least 1")
        self.every = every
        self._identity = json.loads(json.dumps(plain(identity)))
        self._origins = plain(origins or {})
        self._best = best
        self._folder = Path(os.path.abspath(os.path.expanduser(folder)))
        _check_writable(self._folder)
        self._scores: dict[int, float] = {}
        policy: Any = _Keep(keep, self._scores)
        # Any: what it returns is annotated as every kind of JSON.
        self._orbax: Any = v1.training.Checkpointer(
            str(self._folder),
            preservation_policy=policy,
            cleanup_tmp_directories=True,
        )
        for step in self.steps if best is not None else []:
            # One that cannot be read has no score; restore_latest deals with it.
            with contextlib.suppress(Exception):
                self._scores[step] = self._orbax.metadata(step).custom_metadata["score"]

    @property
    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in order."""
        return [found.step for found in self._orbax.checkpoints]

    def save(
        self, step: int, state: TrainState, *, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Starts saving and returns once the state has been copied; saves a step once.

        NonFinite when the parameters are not finite; nothing is saved then.
        """
        if step in self.steps:
            return
        arrays = _encode(state)
        sums, finite = _fingerprint(arrays)
        if not bool(finite):
            raise NonFinite(step - 1, "a parameter after it")
        score = None if self._best is None else float(self._best(metrics or {}))
        if score is not None:
            self._scores[step] = score
        self._orbax.save_async(
            step,
            arrays,
            force=True,
            custom_metadata={
                "score": score,
                "identity": self._identity,
                "origins": self._origins,
                "fingerprint": [int(x) for x in jax.device_get(sums)],
            },
        )

    def restore_latest(self, abstract: TrainState) -> TrainState | None:
        """The newest state that can be read whole, or None when none was ever saved.

        abstract: ShapeDtypeStructs with the shardings to restore to, which may be of another mesh
        than it was saved from. A checkpoint that cannot be read is passed over for the one before
        with a warning, and removed once an older one is restored.

        UserError when a checkpoint has another identity, or when there are some and none is whole.
        """
        self.wait()
        steps = self.steps
        faults: dict[int, str] = {}
        for step in reversed(steps):
            state, fault = self._try(step, abstract)
            if runtime.everywhere(fault is None):
                for broken in faults:
                    self._orbax.delete(broken)
                return state
            faults[step] = fault or "another process cannot read it"
            warnings.warn(
                f"{self._folder}: the checkpoint of step {step} is corrupt and is skipped "
                f"({faults[step]})",
                RuntimeWarning,
                stacklevel=2,
            )
        if steps:
            raise UserError(
                f"{self._folder}: none of the checkpoints {steps} can be read; remove it "
                f"to start again ({faults[steps[-1]]})"
            )
        return None

    def restore_best(self, abstract: TrainState) -> TrainState:
        """The state that `best` ranked highest. ValueError when none was ranked."""
        self.wait()
        ranked = {step: self._scores[step] for step in self.steps if step in self._scores}
        if not ranked:
            raise ValueError(f"{self._folder}: no checkpoint was saved with best=...")
        top = max(ranked, key=lambda step: ranked[step])
        state, fault = self._try(top, abstract)
        if state is None or not runtime.everywhere(fault is None):
            raise UserError(f"{self._folder}: the best checkpoint, step {top}: {fault}")
        return state

    def wait(self) -> None:
        """Until what is being saved is on disk."""
        self._orbax.wait()

    def close(self) -> None:
        self._orbax.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _try(self, step: int, abstract: TrainState) -> tuple[TrainState | None, str | None]:
        """(state, None), or (None, what is wrong with the checkpoint)."""
        try:
            saved = self._orbax.metadata(step).custom_metadata or {}
            identity, sums = saved["identity"], saved["fingerprint"]
        except Exception as error:  # a broken file can raise anything
            return None, f"metadata: {_first_line(error)}"
        changed = differences(self._identity, identity)
        if changed:
            raise UserError(
                f"{self._folder} holds a run with another identity ({'; '.join(changed)}); give "
                "the same values, or another --workdir"
            )
        try:
            arrays = self._orbax.load(step, _abstract(abstract))
            found, _ = _fingerprint(arrays)
        except Exception as error:
            return None, _first_line(error)
        if [int(x) for x in jax.device_get(found)] != sums:
            return None, "its arrays are not those that were saved"
        return _decode(arrays, abstract), None


class _Keep:
    """Which checkpoints stay: the latest, and the one with the highest score."""

    def __init__(self, latest: int, scores: Mapping[int, float]):
        self._latest, self._scores = latest, scores

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [found.step for found in checkpoints]
        ranked = [step for step in steps if step in self._scores]
        best = max(ranked, key=lambda step: self._scores[step], default=None)
        return [step in steps[-self._latest :] or step == best for step in steps]


def _check_writable(folder: Path) -> None:
    probe = folder / f".writable-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from None


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}" if text else type(error).__name__


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _key_impl(abstract: Any) -> Any:
    """The kind of a typed key of which only shape and dtype are there."""
    found = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), abstract)
    return found[0]


def _encode(state: PyTree) -> PyTree:
    """Typed keys as their data."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, state)


def _abstract(state: PyTree) -> PyTree:
    """The ShapeDtypeStructs of `_encode`'s result; key data replicates."""

    def leaf(x: Any) -> Any:
        if not _is_key(x):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        data = jax.eval_shape(jax.random.key_data, x)
        whole = NamedSharding(x.sharding.mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=whole)

    return jax.tree.map(leaf, state)


def _decode(arrays: PyTree, abstract: PyTree) -> PyTree:
    """The state. It passes through jit, because restored arrays may not be donatable as they are,
    and a step would then hold two copies of the state."""

    def wrap(arrays: PyTree) -> PyTree:
        return jax.tree.map(
            lambda x, like: (
                jax.random.wrap_key_data(x, impl=_key_impl(like)) if _is_key(like) else x
            ),
            arrays,
            abstract,
        )

    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    with warnings.catch_warnings():
        # Where donation fails there is a second copy for a moment, and no more to say about it.
        warnings.filterwarnings("ignore", message="Some donated buffers were not usable")
        return jax.jit(wrap, out_shardings=shardings, donate_argnums=0)(arrays)


@jax.jit
def _fingerprint(state: PyTree) -> tuple[jax.Array, jax.Array]:
    """(u32[leaves], bool): the sum of each leaf's bits mod 2**32, whatever its sharding, which
    tells a checkpoint that was read right; and whether all parameters are finite.
    """
    sums = [_bits(x).sum(dtype=jnp.uint32) for x in jax.tree.leaves(state)]
    floats = [
        jnp.isfinite(x).all()
        for x in jax.tree.leaves(state.params)
        if jnp.issubdtype(x.dtype, jnp.inexact)
    ]
    return jnp.stack(sums), jnp.stack([jnp.bool_(True), *floats]).all()


def _bits(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag])
    if jnp.issubdtype(x.dtype, jnp.floating):
        kinds = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}
        x = jax.lax.bitcast_convert_type(x, kinds[x.dtype.itemsize])
    return x.astype(jnp.uint32)
