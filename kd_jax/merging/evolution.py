"""Evolutionary merging: recipes found by search (arXiv 2403.13187).

Two spaces. In parameter space a recipe is a density and a weight of DARE-TIES for each model and
group of layers. In data-flow space the weights stay as they are: an example passes through layers
of several models, and the search decides which, and how its stream is scaled between them. Both are
functions of arrays whose shapes do not depend on the recipe: a population is one `jax.vmap`, and no
candidate is compiled anew.

The paper's merges are mergekit's and its search is that of Optuna and EvoJAX; its constants
(population, generations) are UNVERIFIED.
"""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kd_jax import trees
from kd_jax.merging._checks import check_models
from kd_jax.merging.arithmetic import task_vector
from kd_jax.merging.dare import dare
from kd_jax.merging.ties import disjoint_sum, merge_agreeing
from kd_jax.types import PyTree


def of_groups(
    values: Float[Array, "N G"], base: PyTree, groups: Callable[[str], Hashable]
) -> PyTree:
    """A tree of the base's paths with f32 [N] leaves: the column of each leaf's group.

    groups: path -> any label, a layer's name say; column g belongs to the g-th label in the order
    of the leaves. With `str` every leaf is a group of its own. For `dare_ties` and for
    `adaptive.add_layerwise`, task arithmetic with coefficients by layer.
    """
    labels = list(dict.fromkeys(groups(path) for path in trees.paths(base)))
    if values.shape[1] != len(labels):
        raise ValueError(
            f"values: got {values.shape[1]} columns, takes one for each of the {len(labels)} groups"
        )
    columns = jnp.asarray(values, jnp.float32)
    return trees.map_with_path(lambda path, _: columns[:, labels.index(groups(path))], base)


def dare_ties(
    base: PyTree, models: Sequence[PyTree], key: jax.Array, *, density: PyTree, weight: PyTree
) -> PyTree:
    """base + sum over agreeing n of w_n dare(tau_n, drop = 1 - d_n), in the dtypes of the base.

    base, models: trees of the same paths and shapes, floating leaves. density, weight: trees of the
    base's paths with leaves [N] (`of_groups`), which may be traced: densities in (0, 1], weights
    not normalised, of either sign. Each task vector is thinned out at random (1 - density dropped,
    the rest divided by density), multiplied by its weight, and votes for signs; the values that
    agree with the elected sign are summed (mergekit's dare_ties without normalisation). All of it
    is elementwise, but for the majority sign of cancelled votes, over all leaves (`ties.elect`).
    Differentiable in the weights, not in the densities. With the same key all recipes see the same
    random numbers: an entry that a density keeps, every larger one keeps as well.

    Density 1 and a weight of 1 for one model, 0 for the others, give that model.
    arXiv 2403.13187, section 3.1.
    """
    check_models(models, base)
    for name, tree in (("density", density), ("weight", weight)):
        wanted = {path: (len(models),) for path in trees.paths(base)}
        got = {path: jnp.shape(x) for path, x in trees.flatten(tree).items()}
        if got != wanted:
            raise ValueError(
                f"{name}: got leaves {got}, takes ({len(models)},) at the base's paths"
            )

    def thin(n: int, model: PyTree) -> PyTree:
        own = jax.random.fold_in(key, n)

        def leaf(path: str, tau: jax.Array, d: jax.Array, w: jax.Array) -> jax.Array:
            return w[n] * dare({path: tau}, own, drop=1.0 - d[n])[path]

        return trees.map_with_path(leaf, task_vector(base, model), density, weight)

    return merge_agreeing(base, [thin(n, x) for n, x in enumerate(models)], merge=disjoint_sum)


def data_flow(
    block: Callable[[PyTree, jax.Array], jax.Array],
    blocks: PyTree,
    stream: jax.Array,
    indicator: Float[Array, " steps"],
    scales: Float[Array, "M M"],
) -> jax.Array:
    """The stream after a path through the layers of several models.

    block(params of a layer, stream) -> stream, of the same shape. blocks: the M layers of all
    models one after the other, leaves [M, ...]. The path goes r times through all of them: step t
    of r M applies layer t mod M where indicator[t] > 0, and leaves the stream as it is elsewhere.
    A layer j that comes after layer i takes the stream times scales[i, j]; the first one takes it
    as it is.
    The program is the same for every indicator, which may be traced; all r M layers are computed,
    taken or not. Differentiable in the scales. ValueError unless indicator has r M entries.

    The indicator of one model's layers, in order, with scales 1 is that model.
    arXiv 2403.13187, section 3.2.
    """
    count = _layers(blocks)
    if indicator.shape[0] % count or not indicator.shape[0]:
        raise ValueError(
            f"indicator: got {indicator.shape[0]} entries, takes a multiple of the {count} layers"
        )
    if scales.shape != (count, count):
        raise ValueError(f"scales: got shape {scales.shape}, takes ({count}, {count})")

    def step(carry: tuple[jax.Array, jax.Array], x: PyTree) -> tuple[Any, None]:
        stream, last = carry
        taken, j, params = x
        scale = jnp.where(last < 0, 1.0, scales[last, j]).astype(stream.dtype)
        then = block(params, scale * stream)
        return (jnp.where(taken, then, stream), jnp.where(taken, j, last)), None

    def round_(carry: Any, taken: jax.Array) -> tuple[Any, None]:
        return jax.lax.scan(step, carry, (taken, jnp.arange(count), blocks))

    start = (stream, jnp.int32(-1))
    return jax.lax.scan(round_, start, indicator.reshape(-1, count) > 0)[0][0]


def flow_path(indicator: Any, scales: Any) -> list[tuple[int, float]]:
    """The path that `data_flow` takes, to look at: (layer, scale of its input), in order."""
    indicator, scales = np.asarray(indicator), np.asarray(scales)
    path: list[tuple[int, float]] = []
    for j in (int(t) % len(scales) for t in np.flatnonzero(indicator > 0)):
        path.append((j, float(scales[path[-1][0], j]) if path else 1.0))
    return path


def _layers(blocks: PyTree) -> int:
    sizes = {path: jnp.shape(x)[:1] for path, x in trees.flatten(blocks).items()}
    if len(set(sizes.values())) != 1 or () in sizes.values():
        raise ValueError(f"blocks: got leading axes {sizes}, takes one number of layers for all")
    return next(iter(sizes.values()))[0]


class Evolution(NamedTuple):
    """What a search found. best: [D], the best of all candidates, and its score.

    scores: [G, P], of every candidate of each generation.
    """

    best: np.ndarray
    score: float
    scores: np.ndarray


def evolve(
    score: Callable[..., jax.Array],
    start: Any,
    *given: PyTree,
    sigma: float,
    generations: int,
    population: int | None = None,
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
) -> Evolution:
    """Maximise score(x [D], *given) -> number by CMA-ES: generations * population evaluations.

    score: pure and traceable; a population is one call of jit(vmap(score)), compiled once for a
    score and the shapes of `given` (models, examples), which are the same for all candidates; what
    a score makes (a merge) is there P times. A score that is not finite counts as the worst.
    start: [D], the mean of the first generation, and sigma its standard deviation (0.5 and 1/6 for
    recipes in [0, 1]). population: by default 4 + int(3 ln D). bounds: (low, high) of every
    coordinate. The search ends early where the library finds it converged. The same seed gives the
    same search. The best candidate is chosen on what `score` measures: keep examples that it has
    not seen.

    Needs the extra `evolve` (cmaes). Source: Hansen 2016, arXiv 1604.00772.
    """
    try:
        from cmaes import CMA  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ImportError("cmaes is not installed: pip install 'kd_jax[evolve]'") from None

    mean = np.asarray(start, np.float64)
    if mean.ndim != 1 or not mean.size:
        raise ValueError(f"start: got shape {mean.shape}, takes [D]")
    if generations < 1:
        raise ValueError(f"generations: got {generations}, takes at least 1")
    box = None if bounds is None else np.tile(np.asarray(bounds, np.float64), (mean.size, 1))
    search = CMA(mean=mean, sigma=sigma, bounds=box, population_size=population, seed=seed)
    evaluate = _of_population(score, len(given))
    best, best_score, history = mean, -np.inf, []
    for _ in range(generations):
        asked = np.stack([search.ask() for _ in range(search.population_size)])
        found = np.asarray(evaluate(jnp.asarray(asked, jnp.float32), *given), np.float64)
        found = np.where(np.isfinite(found), found, -np.inf)
        history.append(found)
        search.tell([(x, -value) for x, value in zip(asked, found, strict=True)])
        if found.max() > best_score:
            best, best_score = asked[found.argmax()], float(found.max())
        if search.should_stop():
            break
    return Evolution(best, best_score, np.stack(history))


@functools.lru_cache(maxsize=16)  # a search of the same score with other models is not compiled
def _of_population(score: Callable[..., jax.Array], given: int) -> Any:
    return jax.jit(jax.vmap(score, (0, *(None,) * given)))
