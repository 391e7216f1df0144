import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from support import tiny_run

from kd_jax.launch.errors import UserError
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.sharding import (
    activation_rules,
    check_activations,
    on_mesh,
    replicated,
    shard_state,
    shard_tree,
    shardings_of,
)
from kd_jax.launch.weights import abstract_state
from kd_jax.types import TrainState


def shaped(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


def specs(tree):
    return jax.tree.map(lambda s: s.spec, tree)


def test_names_lie_on_their_axes(mesh):
    tree = {"embed": shaped(32, 8), "layers": {"q": shaped(3, 8, 16), "scale": shaped(3, 8)}}
    rules = [
        ("embed", ("vocab", "embed")),
        (r"layers/q", ("layers", "embed", "heads")),
        (r".*scale", None),
    ]
    assert specs(shard_tree(tree, rules, mesh)) == {
        "embed": P("tensor", "fsdp"),
        "layers": {"q": P(None, "fsdp", "tensor"), "scale": P()},
    }


@pytest.mark.parametrize(
    "rules, shape, error, words",
    [
        ([("b", (None,))], (4,), ValueError, ["no rule", "w"]),
        ([("w", (None,)), ("b", (None,))], (4,), ValueError, ["no path", "'b'"]),
        ([("w", ("embed",))], (4, 4), ValueError, ["w", "1 dimensions", "(4, 4)"]),
        ([("w", ("embbed",))], (4,), ValueError, ["w", "embbed"]),
        ([("w", ("heads", "mlp"))], (4, 4), ValueError, ["w", "heads and mlp", "tensor"]),
        (
            [("w", ("embed", "kv_heads"))],
            (4, 3),
            UserError,
            ["w", "dimension 1", "kv_heads", "size 3", "tensor=2", "--mesh.tensor"],
        ),
        ([("w", ("batch",))], (6,), UserError, ["size 6", "data=2 * fsdp=2"]),
    ],
)
def test_strict(mesh, rules, shape, error, words):
    with pytest.raises(error) as caught:
        shard_tree({"w": shaped(*shape)}, rules, mesh)
    assert all(word in str(caught.value) for word in words)


def state_of(optimizer, params, aux=None, carry=None):
    params = {"model": params, "aux": aux or {}}

    def build(params):
        opt = optimizer.init(params)
        return TrainState(jnp.int32(0), params, opt, carry or {}, jax.random.key(0))

    return jax.eval_shape(build, params)


PARAMS = {"w": jnp.zeros((8, 16)), "inner": {"w": jnp.zeros((4, 8))}, "b": jnp.zeros(16)}
RULES = [("w", ("embed", "mlp")), ("inner/w", ("mlp", None)), ("b", ("mlp",))]


def test_the_optimisers_state_follows_the_parameters(mesh):
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.partition(
            {"a": optax.adamw(optax.constant_schedule(0.1)), "s": optax.sgd(0.1, momentum=0.9)},
            {"model": {"w": "a", "inner": {"w": "s"}, "b": "a"}, "aux": {}},
        ),
    )
    found = shard_state(state_of(optimizer, PARAMS), RULES, mesh)
    leaves = jax.tree_util.tree_leaves_with_path(found.opt_state)
    by_end = {}
    for path, sharding in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        by_end.setdefault(name.split("model/")[-1] if "model/" in name else "scalar", []).append(
            sharding.spec
        )
    assert set(by_end["w"]) == {P("fsdp", "tensor")} and len(by_end["w"]) == 2
    assert set(by_end["inner/w"]) == {P("tensor", None)} and len(by_end["inner/w"]) == 1
    assert set(by_end["b"]) == {P("tensor")}
    assert set(by_end["scalar"]) == {P()}
    assert found.step.spec == found.key.spec == P()


def test_factored_statistics_drop_the_axis_they_lack(mesh):
    optimizer = optax.adafactor(0.1, min_dim_size_to_factor=4)
    params = {"w": jnp.zeros((8, 16)), "square": jnp.zeros((8, 8)), "b": jnp.zeros(16)}
    rules = [("w|square", ("embed", "mlp")), ("b", ("mlp",))]
    state = state_of(optimizer, params)
    found = shard_state(state, rules, mesh)
    flat = {
        jax.tree_util.keystr(path, simple=True, separator="/"): (leaf.shape, sharding.spec)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(state.opt_state),
            jax.tree.leaves(found.opt_state),
            strict=True,
        )
    }
    of = {name.split("/", 1)[-1]: value for name, value in flat.items() if "/v" in name}
    rows = {value for name, value in of.items() if name.endswith("model/w")}
    assert ((8,), P("fsdp")) in rows and ((16,), P("tensor")) in rows
    square = [value for name, value in of.items() if name.endswith("square")]
    assert ((8,), P()) in square  # either axis could be the one that is gone
    assert ((16,), P("tensor")) in of.values()  # the unfactored second moment of b


def test_carry_follows_and_extra_rules_come_first(mesh):
    aux = {"proj": jnp.zeros((8, 6))}
    carry = {
        "ema": PARAMS,
        "bank": jnp.zeros((32, 8)),
        "teacher": {"w": jnp.zeros((4, 4))},  # another shape than the parameter w
    }
    state = state_of(optax.adam(0.1), PARAMS, aux, carry)
    found = shard_state(state, RULES, mesh)
    assert found.carry["ema"]["w"].spec == P("fsdp", "tensor")
    assert found.carry["bank"].spec == found.carry["teacher"]["w"].spec == P()
    assert found.params["aux"]["proj"].spec == P()

    extra = [("carry/bank", ("batch", None)), ("aux/proj", ("embed", None))]
    found = shard_state(state, RULES, mesh, extra=extra)
    assert found.carry["bank"].spec == P(("data", "fsdp", "expert"), None)
    assert found.params["aux"]["proj"].spec == P("fsdp", None)
    moments = [s.spec for s in jax.tree.leaves(found.opt_state[0].mu["aux"])]
    assert moments == [P("fsdp", None)]
    assert found.carry["ema"]["w"].spec == P("fsdp", "tensor")

    with pytest.raises(ValueError, match=r"'carry/bonk'.*carry/bank"):
        shard_state(state, RULES, mesh, extra=[("carry/bonk", (None, None))])


def test_activations_resolve_only_on_a_mesh(mesh):
    def f(x):
        return jnp.sin(nn.with_logical_constraint(x * 2.0, ("batch", "mlp")))

    x = jax.device_put(np.ones((8, 4), np.float32), replicated(mesh))
    assert jax.jit(f)(x).sharding.is_fully_replicated
    inside = jax.jit(on_mesh(f, mesh))(x).sharding
    assert inside.is_equivalent_to(NamedSharding(mesh, P(("data", "fsdp"), "tensor")), 2)
    np.testing.assert_array_equal(f(x), jax.jit(on_mesh(f, mesh))(x))


def test_an_activation_cut_unevenly_names_the_flag(mesh):
    def f(x):
        def body(x, _):
            heads = nn.with_logical_constraint(x.reshape(4, 3, 2), ("batch", "kv_heads", None))
            return heads.reshape(4, 6), None

        return jax.lax.scan(jax.checkpoint(body), x, None, length=2)[0]

    with activation_rules(mesh):
        jaxpr = jax.make_jaxpr(f)(jnp.ones((4, 6)))
    with pytest.raises(UserError, match=r"size 3 .*tensor=2.*--mesh.tensor.*kv_heads"):
        check_activations(jaxpr)


def test_a_state_is_born_where_it_belongs(mesh):
    step = tiny_run.train_step()
    state, abstract = tiny_run.start(step, mesh)
    assert shardings_of(state) == shardings_of(abstract)
    kernel = state.params["model"]["layers"]["first"]
    assert kernel.sharding.spec == P("fsdp", "tensor")
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(4, 8)}
    ema = state.carry["inner"]["ema"]["layers"]["first"]
    assert ema.sharding.spec == P("fsdp", "tensor")
    one, _ = tiny_run.start(step, make_mesh(MeshConfig(), jax.devices()[:1]))
    here, there = tiny_run.values_of(state, mesh), jax.device_get(one.params["model"]["layers"])
    np.testing.assert_array_equal(here["params/model/layers/first"], there["first"])


def test_a_step_that_changes_the_models_tree_is_refused(mesh):
    step = tiny_run.train_step()
    broken = dataclasses.replace(
        step, init=lambda *args: step.init(*args)._replace(params={"model": {}, "aux": {}})
    )
    with pytest.raises(ValueError, match="layers/first only in weights"):
        abstract_state(
            broken, tiny_run.weights(), {}, tiny_run.BATCH, rules=tiny_run.RULES, mesh=mesh
        )
