"""Generation over a whole set of prompts, the same whatever the batch size, mesh and hosts."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from kd_jax.launch.beat import beat
from kd_jax.launch.prefetch import own_rows, place
from kd_jax.launch.sharding import batch_sharding, on_mesh, replicated
from kd_jax.launch.stages import Program
from kd_jax.models import sampler

PyTree = Any
Sampler = Callable[..., tuple[jax.Array, jax.Array]]


def generate(
    config: Any,
    weights: PyTree,
    prompts: Sequence[Sequence[int]],
    *,
    batch_size: int,
    mesh: Mesh,
    length: int | None = None,
    seed: int = 0,
    max_new: int,
    stop: Sequence[int] = (),
    sample: Sampler = sampler.generate,
    **sampling: Any,
) -> list[np.ndarray]:
    """The new tokens of each of N prompts, i32 [n_i], n_i <= max_new, in the prompts' order.

    A text ends before its first token of `stop`, which is left out. Greedy by default; sampling:
    temperature, top_k and top_p of `models.sampler.generate`.

    prompts: token ids, at least one each; the same in every process, and every process gets all
        texts. length: what they are padded to, by default that of the longest; another one
        compiles again. The last batch is filled up with copies of the first prompt.
    weights: plain weights in the layout of config, on the mesh.
    seed: of the draws; those of a prompt depend on it, its number and nothing else.
    sample: what draws a batch, called like `models.sampler.generate` with `sampling` besides.
        `models.contrast.generate_difference` takes several models: config and weights are then
        tuples, and `combine` is one of `sampling`.

    ValueError for no prompts, an empty one, and one longer than length: nothing is cut here.
    """
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    if not len(lengths) or lengths.min() < 1:
        raise ValueError(f"prompts: got {len(lengths)}, takes some, of at least one token each")
    length = int(lengths.max()) if length is None else length
    if lengths.max() > length:
        raise ValueError(f"length: got {length}, takes at least the prompts' {lengths.max()}")
    tokens = np.zeros((len(lengths), length), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    sharding = batch_sharding(mesh)
    own = own_rows(sharding, batch_size)
    run = _compiled(config, mesh, max_new, tuple(stop), sample, tuple(sorted(sampling.items())))
    whole = replicated(mesh)
    number = jax.make_array_from_callback((), whole, lambda _: np.asarray(seed, np.uint32))

    def part(start: int, piece: slice) -> dict[str, np.ndarray]:
        numbers = np.arange(start + piece.start, start + piece.stop, dtype=np.int32)
        rows = np.where(numbers < len(lengths), numbers, 0)
        return {"tokens": tokens[rows], "lengths": lengths[rows], "numbers": numbers}

    found: list[np.ndarray] = []
    waiting: Any = None
    for start in range(0, len(lengths), batch_size):
        # One batch is under way while the one before is fetched.
        batch = place(functools.partial(part, start), sharding, batch_size, own)
        output = run(weights, batch, number)
        beat()
        if waiting is not None:
            found += _texts(waiting, stop)
        waiting = output
    found += _texts(waiting, stop)
    return found[: len(lengths)]


def program(
    config: Any,
    weights: PyTree,
    *,
    batch_size: int,
    length: int,
    mesh: Mesh,
    max_new: int,
    stop: Sequence[int] = (),
    sample: Sampler = sampler.generate,
    **sampling: Any,
) -> Program:
    """What `generate` runs, for a plan; weights: ShapeDtypeStructs that carry shardings."""
    rows = batch_sharding(mesh)

    def column(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *shape), np.int32, sharding=rows)

    batch = {"tokens": column(length), "lengths": column(), "numbers": column()}
    seed = jax.ShapeDtypeStruct((), np.uint32, sharding=replicated(mesh))
    run = _compiled(config, mesh, max_new, tuple(stop), sample, tuple(sorted(sampling.items())))
    return Program(run, (weights, batch, seed))


@functools.lru_cache(maxsize=64)
def _compiled(
    config: Any,
    mesh: Mesh,
    max_new: int,
    stop: tuple[int, ...],
    sample: Sampler,
    sampling: tuple[tuple[str, Any], ...],
) -> Any:
    def run(weights: PyTree, batch: Any, seed: jax.Array) -> tuple[jax.Array, jax.Array]:
        return sample(
            config,
            weights,
            batch["tokens"],
            batch["lengths"],
            jax.random.key(seed),
            numbers=batch["numbers"],
            max_new=max_new,
            stop=stop,
            **dict(sampling),
        )

    # Replicated outputs: every process gets the texts of all.
    return jax.jit(
        on_mesh(run, mesh),
        in_shardings=(None, batch_sharding(mesh), replicated(mesh)),
        out_shardings=replicated(mesh),
    )


def _texts(output: Any, stop: Sequence[int]) -> list[np.ndarray]:
    tokens, counts = jax.device_get(output)
    ended = np.isin(tokens[np.arange(len(tokens)), counts - 1], np.asarray(stop, np.int32))
    return [row[:n] for row, n in zip(tokens, counts - ended, strict=True)]
