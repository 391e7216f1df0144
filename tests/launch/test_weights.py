import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import v1

from kd_jax.launch import weights
from kd_jax.launch.errors import UserError
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.sharding import with_shardings


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


def init(key, scale):
    return {"w": scale * jax.random.normal(key, (8, 4)), "b": jnp.zeros(4, jnp.bfloat16)}


def placed(made, mesh):
    shardings = {"w": NamedSharding(mesh, P("fsdp", "tensor")), "b": NamedSharding(mesh, P())}
    return with_shardings(made.abstract, shardings)


def check(made, mesh, expected):
    tree = made.make(placed(made, mesh))
    assert tree["w"].sharding.spec == P("fsdp", "tensor")
    for name, x in expected.items():
        assert tree[name].dtype == x.dtype == made.abstract[name].dtype
        np.testing.assert_array_equal(np.asarray(tree[name]), np.asarray(x))
    return tree


def test_from_init_does_not_depend_on_the_mesh(mesh):
    args = (jax.random.key(3), 2.0)
    check(weights.from_init(init, *args), mesh, init(*args))


@pytest.mark.parametrize("kind", ["numpy", "one device", "mesh"])
def test_from_arrays_never_shares_a_buffer(mesh, kind):
    expected = jax.tree.map(np.asarray, init(jax.random.key(3), 1.0))
    given = expected
    if kind == "one device":
        given = jax.tree.map(jnp.asarray, expected)
    if kind == "mesh":
        given = weights.from_arrays(expected)
        given = given.make(placed(given, mesh))
    made = weights.from_arrays(given)
    tree = check(made, mesh, expected)
    # A training step overwrites what it is given.
    jax.block_until_ready(jax.jit(lambda t: jax.tree.map(jnp.negative, t), donate_argnums=0)(tree))
    assert tree["w"].is_deleted()
    for name, x in expected.items():
        np.testing.assert_array_equal(np.asarray(given[name]), x)
    check(made, mesh, expected)


def test_from_checkpoint(mesh, tmp_path):
    expected = init(jax.random.key(3), 1.0)
    v1.save(str(tmp_path / "tree"), expected)
    made = weights.from_checkpoint(tmp_path / "tree")
    assert made.abstract["w"].shape == (8, 4)
    check(made, mesh, expected)
    with pytest.raises(UserError, match="no readable checkpoint"):
        weights.from_checkpoint(tmp_path / "nothing")


def test_joined(mesh):
    first = weights.from_init(init, jax.random.key(0), 1.0)
    both = weights.joined(base=first, mask=weights.from_arrays({"m": np.arange(4.0)}))
    assert both.abstract["mask"]["m"].shape == (4,)
    where = {
        "base": placed(first, mesh),
        "mask": with_shardings({"m": both.abstract["mask"]["m"]}, {"m": NamedSharding(mesh, P())}),
    }
    tree = both.make(where)
    assert tree["base"]["w"].sharding.spec == P("fsdp", "tensor")
    np.testing.assert_array_equal(tree["mask"]["m"], np.arange(4.0))


def test_cast_narrows_floating_leaves_only(mesh):
    tree = {"w": np.full((8, 4), 1.001, np.float32), "b": np.arange(4, dtype=np.int32)}
    made = weights.cast(weights.from_arrays(tree), jnp.bfloat16)
    check(made, mesh, {"w": jnp.full((8, 4), 1.001, jnp.bfloat16), "b": tree["b"]})
