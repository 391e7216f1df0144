"""What evolve_digits searches: recipes of merges, and paths through the blocks of two models.

`config` is that of the experiment. A model's trunk is its blocks, {"block_0": ..., ...}; the stem,
the last norm and the head are the pretrained model's in all of them.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.merging.common import measuring
from experiments.merging.common.specialists import Models
from experiments.merging.common.tasks import Benchmark, Examples, digits, examples
from kd_jax.merging.adaptive import add_layerwise
from kd_jax.merging.arithmetic import add_task_vectors, task_vector
from kd_jax.merging.evolution import dare_ties, data_flow, evolve, flow_path, of_groups
from kd_jax.models import residual_mlp
from kd_jax.models.residual_mlp import ResidualMLPConfig
from kd_jax.trees import paths
from kd_jax.types import Model, PyTree

ENDS, GROUPS = "ends", 2  # groups of blocks that have a density and a weight each
LARGEST = 1.2  # of the scales of task arithmetic
SPREAD = 0.2  # of the scales between layers, for one unit of the search


@functools.cache  # one object for each, so that compiled functions are found again
def benchmark(width: int, hidden: int, depth: int) -> Benchmark:
    """Residual perceptrons of digits, whose blocks are merged or passed through."""
    sizes = ResidualMLPConfig(inputs=64, width=width, depth=depth, hidden=hidden, classes=10)
    inner = residual_mlp.residual_mlp(sizes)

    def init(key: jax.Array) -> PyTree:
        params = inner.init(key)
        blocks = params.pop("blocks")
        return {ENDS: params} | {f"block_{i}": _at(blocks, i) for i in range(depth)}

    def apply(params: PyTree, inputs: Mapping[str, jax.Array], **given: Any):
        return inner.apply({**params[ENDS], "blocks": stacked([params])}, inputs, **given)

    images = digits((1,)).splits  # of which only the images are used
    return Benchmark(Model(init, apply), ENDS, ((".*", ()),), 8, images)


def _at(tree: PyTree, i: int) -> PyTree:
    return jax.tree.map(lambda x: x[i], tree)


def stacked(trunks: Sequence[Mapping[str, PyTree]]) -> PyTree:
    """The blocks of one trunk after the other, leaves [M, ...]."""
    blocks = [
        trunk[f"block_{i}"]
        for trunk in trunks
        for i in range(sum(name.startswith("block_") for name in trunk))
    ]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)


def _group(depth: int, path: str) -> int:
    """The lower or the upper half of the blocks."""
    return int(path.split("/")[0].removeprefix("block_")) * GROUPS // depth


def _fitness(bench: Benchmark, head: PyTree, trunk: PyTree, sets: Examples) -> jax.Array:
    """Per cent, a mean over tasks."""
    return 100 * measuring.correct(bench, head, trunk, sets).mean()


def _recipe(bench: Benchmark, depth: int, x: jax.Array, base, thetas, key) -> PyTree:
    """DARE-TIES with the densities and weights of x [2 N G], all in [0, 1]."""
    density, weight = x.reshape(2, len(thetas), GROUPS)
    columns = functools.partial(of_groups, base=base, groups=functools.partial(_group, depth))
    lowest = jnp.clip(density, 0.02, 1.0)  # nothing can be divided by a density of 0
    return dare_ties(base, thetas, key, density=columns(lowest), weight=columns(weight))


def _coefficients(bench: Benchmark, depth: int, x: jax.Array, base, thetas, key) -> PyTree:
    """Task arithmetic with a coefficient for each leaf and model, x [N * leaves]."""
    vectors = [task_vector(base, theta) for theta in thetas]
    scales = of_groups(x.reshape(len(thetas), -1), base, str)
    return add_layerwise(base, vectors, scales)


def _scale(bench: Benchmark, depth: int, x: jax.Array, base, thetas, key) -> PyTree:
    """Task arithmetic with one scale, x [1] in [0, 1]."""
    vectors = [task_vector(base, theta) for theta in thetas]
    return add_task_vectors(base, vectors, scale=LARGEST * x[0])


@functools.cache
def _score(make: Callable[..., PyTree], bench: Benchmark, depth: int) -> Callable[..., jax.Array]:
    def score(x, base, thetas, key, head, sets) -> jax.Array:
        return _fitness(bench, head, make(bench, depth, x, base, thetas, key), sets)

    return score


@functools.cache
def _each(score: Callable[..., jax.Array]) -> Any:
    """The score of each row of xs [E, D]."""

    @jax.jit
    def scores(xs, *given) -> jax.Array:
        return jax.lax.map(lambda x: score(x, *given), xs, batch_size=16)

    return scores


@functools.cache
def _made(make: Callable[..., PyTree], bench: Benchmark, depth: int) -> Any:
    return jax.jit(functools.partial(make, bench, depth))


def _running_best(scores: np.ndarray) -> np.ndarray:
    return np.maximum.accumulate(np.asarray(scores, np.float64).reshape(-1))


def merged(config: Any, seed: int, models: Models) -> dict[str, Any]:
    """{"arm/T/fitness" and "arm/T/test": per cent}; rows "arm/best": best fitness so far, of T max.

    All searches see the same images and evaluate as often.
    """
    found: dict[str, Any] = {}
    bench, depth = config.benchmark, config.depth
    evaluations = config.generations * config.population
    for count in config.counts:
        tasks = list(models.specialists)[:count]
        thetas = [models.specialists[task] for task in tasks]
        seen = examples(bench, tasks, "validation", slice(config.fitness))
        test = examples(bench, tasks, "test")
        key = jax.random.key(seed)  # the same masks for all candidates
        inputs = (models.base, thetas, key)
        given = (*inputs, models.head, Examples(*map(jnp.asarray, seen)))
        width = 2 * count * GROUPS
        drawn = np.random.default_rng(seed).random((evaluations, width))
        tried = {
            "default recipe": (_recipe, np.full((1, width), 0.5)),
            "random": (_recipe, drawn),
            "grid": (_scale, np.linspace(0, 1, evaluations + 1)[1:, None]),
        }
        best: dict[str, tuple[Any, np.ndarray, float]] = {}
        for arm, (make, xs) in tried.items():
            scores = np.asarray(
                _each(_score(make, bench, depth))(jnp.asarray(xs, jnp.float32), *given)
            )
            best[arm] = (make, xs[scores.argmax()], float(scores.max()))
            if arm == "random" and count == config.counts[-1]:
                found[f"{arm}/best"] = _running_best(scores)
        leaves = len(paths(models.base))
        for arm, make, start in (
            ("CMA-ES", _recipe, np.full(width, 0.5)),
            ("CMA-ES by leaf", _coefficients, np.full(count * leaves, 0.5)),
        ):
            search = evolve(
                _score(make, bench, depth),
                start,
                *given,
                sigma=1 / 6,
                generations=config.generations,
                population=config.population,
                bounds=(0.0, 1.0),
                seed=seed + 1,
            )
            best[arm] = (make, search.best, search.score)
            if count == config.counts[-1]:
                found[f"{arm}/best"] = _running_best(search.scores)
        for arm, (make, x, fitness) in best.items():
            trunk = _made(make, bench, depth)(jnp.asarray(x, jnp.float32), *inputs)
            reached = measuring.accuracy(bench, models.head, trunk, test)
            found |= {f"{arm}/{count}/fitness": fitness, f"{arm}/{count}/test": reached.mean()}
        alone = [measuring.accuracy(bench, models.head, x, test).mean() for x in thetas]
        found[f"best specialist/{count}/test"] = max(alone)
        if count == 2:
            make, x, _ = best["CMA-ES"]
            merge = _made(make, bench, depth)(jnp.asarray(x, jnp.float32), *inputs)
            found |= _flows(config, seed, models, thetas, merge, seen, test)
    return {k: v if isinstance(v, np.ndarray) else float(v) for k, v in found.items()}


@functools.cache
def _through(rounds: int) -> Callable[..., jax.Array]:
    """Whether each image [T, N] is named rightly on the path of x [r M + M * M]."""

    def right(x: jax.Array, blocks: PyTree, ends: PyTree, sets: Examples) -> jax.Array:
        layers = jax.tree.leaves(blocks)[0].shape[0]
        indicator, scales = x[: rounds * layers], x[rounds * layers :].reshape(layers, layers)

        def of_task(task: Examples) -> jax.Array:
            stream = residual_mlp.stem(ends, task.inputs)
            stream = data_flow(residual_mlp.block, blocks, stream, indicator, 1.0 + SPREAD * scales)
            return residual_mlp.readout(ends, stream).argmax(-1) == task.targets

        return jax.lax.map(of_task, sets)

    return right


@functools.cache
def _flow_score(right: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    return lambda *given: 100 * right(*given).mean()


def _flows(
    config: Any,
    seed: int,
    models: Models,
    thetas: Sequence[PyTree],
    merge: PyTree,
    seen: Examples,
    test: Examples,
) -> dict[str, float]:
    """Paths through the blocks of two specialists, and of their merge and the first of them."""
    rounds, depth = config.rounds, config.depth
    right = _through(rounds)
    score = _flow_score(right)
    seen, test = (Examples(*map(jnp.asarray, x)) for x in (seen, test))
    found: dict[str, float] = {}
    layers = 2 * depth
    start = np.zeros(rounds * layers + layers**2)
    # The first model's blocks once, in order; every other layer is left out.
    start[: rounds * layers] = -0.5
    start[:depth] = 0.5
    for arm, pool in (("path", thetas), ("merge, then path", [merge, thetas[0]])):
        given = (stacked(pool), models.head)
        search = evolve(
            score,
            start,
            *given,
            seen,
            sigma=0.5,
            generations=config.flow_generations,
            population=config.flow_population,
            seed=seed + 1,
        )
        best = {arm: (search.best, search.score)}
        if arm == "path":
            evaluations = config.flow_generations * config.flow_population
            noise = np.random.default_rng(seed).standard_normal((evaluations, len(start)))
            drawn = start + 0.5 * noise
            scores = np.asarray(_each(score)(jnp.asarray(drawn, jnp.float32), *given, seen))
            best["random path"] = (drawn[scores.argmax()], float(scores.max()))
        for name, (x, fitness) in best.items():
            (reached,) = _each(score)(jnp.asarray(x, jnp.float32)[None], *given, test)
            taken = flow_path(x[: rounds * layers], np.ones((layers, layers)))
            found |= {f"{name}/fitness": fitness, f"{name}/test": float(reached)}
            found[f"{name}/layers"] = len(taken)
            found[f"{name}/second model"] = sum(j >= depth for j, _ in taken)
    return found
