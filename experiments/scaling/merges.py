"""How fast merges of language models of 1B to 70B are, and what fits.

No paper's claim: merges of random weights, so that a mesh can be chosen before the weights are
there. `--plan` compiles them for chips that are not there; a run measures seconds a merge.

    python -m experiments.scaling.merges smoke                          # 10 s
    python -m experiments.scaling.merges laptop                         # half a minute
    python -m experiments.scaling.merges 70b --plan v5p:4x4x4
    python -m experiments.scaling.merges 7b --mesh.data 1 --mesh.fsdp -1   # on a slice

Weights are in bfloat16, sharded by the decoder's rules, and stay so: the result lies where the base
lay, whose memory it takes. SLERP and model stock take each leaf of each layer by itself, although
layers are stacked; the threshold of TIES is over the whole model.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import tyro

from kd_jax import trees
from kd_jax.launch import plots, run, weights
from kd_jax.launch.claims import Results, Table
from kd_jax.launch.config import Settings, check_positive
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.sharding import shardings_of
from kd_jax.launch.stages import Compute, Program, Stage, materialise, shapes_on
from kd_jax.launch.weights import Weights
from kd_jax.merging.average import average, slerp
from kd_jax.merging.breadcrumbs import breadcrumbs
from kd_jax.merging.dare import dare
from kd_jax.merging.della import della
from kd_jax.merging.model_stock import model_stock
from kd_jax.merging.rules import Merge, by_path, each_layer
from kd_jax.merging.sparse import merge_sparse
from kd_jax.merging.ties import merge_agreeing, ties
from kd_jax.models import decoder, sizes
from kd_jax.models.decoder import DecoderConfig

CLAIMS = ()
TINY = DecoderConfig(
    vocab=512, width=64, depth=2, heads=4, kv_heads=2, head_dim=16, mlp=128, dtype="bfloat16"
)
SMALL = DecoderConfig(
    vocab=4096, width=256, depth=8, heads=4, kv_heads=2, head_dim=64, mlp=768, dtype="bfloat16"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    model: tyro.conf.Fixed[tyro.conf.Suppress[DecoderConfig]]
    """What is merged."""
    methods: tuple[str, ...] = (
        "average", "slerp", "model_stock", "ties", "dare_ties", "della", "breadcrumbs"
    )  # fmt: skip
    """Of average, slerp, model_stock, ties, dare_ties, della, breadcrumbs."""
    models: int = 2
    """Fine-tuned models beside the base; SLERP takes one."""
    repeats: int = 3
    """Merges that are timed, of which the fastest counts."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "models", "repeats")
        unknown = sorted(set(self.methods) - set(METHODS))
        if unknown or not self.methods:
            raise ValueError(
                f"methods: got {', '.join(unknown) or 'none'}, takes {', '.join(METHODS)}"
            )
        if "model_stock" in self.methods and self.models < 2:
            raise ValueError("models: got 1, model_stock takes at least 2")


def _layerwise(merge: Merge) -> Merge:
    return by_path([("layers/.*", each_layer(merge)), (".*", merge)])


def _sparse(sparsify: Callable[..., Any], **kwargs: Any) -> Merge:
    return functools.partial(merge_sparse, sparsify=sparsify, **kwargs)


# {method: (the merge, once a key is there; how many models it takes, None for all)}
METHODS: dict[str, tuple[Callable[[jax.Array], Merge], int | None]] = {
    "average": (lambda key: lambda base, models: average([base, *models]), None),
    "slerp": (lambda key: _layerwise(lambda base, models: slerp(base, models[0], 0.5)), 1),
    "model_stock": (lambda key: _layerwise(model_stock), None),
    "ties": (lambda key: functools.partial(ties, density=0.2), None),
    "dare_ties": (
        lambda key: _sparse(functools.partial(dare, drop=0.5), key=key, combine=merge_agreeing),
        None,
    ),
    "della": (
        lambda key: _sparse(functools.partial(della, density=0.5), key=key, combine=merge_agreeing),
        None,
    ),
    "breadcrumbs": (
        lambda key: _sparse(functools.partial(breadcrumbs, keep=0.15, remove=0.006), scale=0.3),
        None,
    ),
}

PRESETS = {
    "smoke": Config(model=TINY, methods=("slerp", "ties", "dare_ties", "breadcrumbs"), repeats=1),
    "laptop": Config(model=SMALL),
    "1b": Config(mesh=MeshConfig(1, -1), model=sizes.TINYLLAMA_1B),
    "7b": Config(mesh=MeshConfig(1, -1), model=sizes.LLAMA2_7B),
    "70b": Config(mesh=MeshConfig(1, -1), model=sizes.LLAMA2_70B),
}


def stages(config: Config) -> tuple[Stage, ...]:
    return tuple(
        Stage(method, functools.partial(_merging, config, method)) for method in config.methods
    )


def _merging(config: Config, method: str, _: Any) -> Compute:
    model = dataclasses.replace(config.model, param_dtype=config.model.dtype)
    rules = decoder.rules(model)
    makes, takes = METHODS[method]
    count = config.models if takes is None else takes

    def drawn(seed: int) -> Weights:
        return weights.from_init(decoder.decoder(model).init, jax.random.key(seed))

    def merging(placed: Any) -> Any:
        """The result takes the memory of the base."""
        merge = makes(jax.random.key(0))
        return jax.jit(merge, out_shardings=shardings_of(placed), donate_argnums=0)

    def measure() -> tuple[None, Mapping[str, Any]]:
        mesh = make_mesh(config.mesh)
        base, *models = (materialise(drawn(seed), mesh, rules) for seed in range(count + 1))
        entries = trees.size(base)
        size = sum(x.nbytes for x in jax.tree.leaves(base))
        merge, seconds = merging(base), []
        for _ in range(1 + config.repeats):  # the first compiles
            started = time.perf_counter()
            base = jax.block_until_ready(merge(base, models))
            seconds.append(time.perf_counter() - started)
        fastest = min(seconds[1:])
        return None, {
            "parameters": entries,
            "seconds": fastest,
            "gigabytes_per_second": (count + 2) * size / fastest / 1e9,
        }

    def plan(mesh: Any) -> Mapping[str, Program]:
        base, *models = (shapes_on(drawn(seed), mesh, rules) for seed in range(count + 1))
        return {"merge": Program(merging(base), (base, models))}

    return Compute(measure, plan=plan)


def report(config: Config, artefacts: Mapping[str, Any], folder: Any) -> Results:
    found = {method: artefacts[method].values for method in config.methods}
    rows = [{"method": method} | dict(values) for method, values in found.items()]
    entries = found[config.methods[0]]["parameters"]
    plot = plots.bars(
        folder / "plots" / "seconds.png",
        {method: {"seconds": values["seconds"]} for method, values in found.items()},
        y="seconds a merge",
        title=f"{entries / 1e6:.1f}M parameters, {config.models} models and a base",
    )
    return Results({"merges": found}, [Table("Speed of a merge", rows)], {"seconds": plot})


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
