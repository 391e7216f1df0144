import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from support import tiny_run

from kd_jax.launch.checkpoints import Checkpoints
from kd_jax.launch.errors import NonFinite, UserError
from kd_jax.launch.mesh import MeshConfig, make_mesh

# Orbax leaves reads under way when one of them fails; what they then raise reaches nobody, and
# those that had not begun are never awaited.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]

IDENTITY = {"beta": 0.1, "data": {"names": ("a", "b")}}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])


@pytest.fixture(scope="module")
def made(mesh):
    """(state, abstract, its values)."""
    state, abstract = tiny_run.start(tiny_run.train_step(), mesh)
    return state, abstract, tiny_run.values_of(state, mesh)


def other(state, k):
    """A state that is told from the others by its bias."""
    model = state.params["model"] | {"bias": state.params["model"]["bias"] + k}
    return state._replace(step=jnp.int32(k), params=state.params | {"model": model})


def save(folder, state, steps, **settings):
    with Checkpoints(folder, IDENTITY, **settings) as checkpoints:
        for k in steps:
            checkpoints.save(k, other(state, k), metrics={"score": -abs(k - 2)})
        checkpoints.wait()
        return checkpoints.steps


def test_what_comes_back_is_what_went_in(mesh, made, tmp_path):
    state, abstract, values = made
    save(tmp_path, state, [0])
    with Checkpoints(tmp_path, IDENTITY) as checkpoints:
        back = checkpoints.restore_latest(abstract)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    for x, y in zip(jax.tree.leaves(back), jax.tree.leaves(abstract), strict=True):
        assert x.dtype == y.dtype and x.sharding.is_equivalent_to(y.sharding, x.ndim)
    for path, x in tiny_run.values_of(back, mesh).items():
        np.testing.assert_array_equal(x, values[path], err_msg=path)
    assert jnp.issubdtype(back.key.dtype, jax.dtypes.prng_key)
    # It can be given to a step that reuses its memory.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kernel = back.params["model"]["layers"]["first"]
        jax.jit(lambda s: s._replace(step=s.step + 1), donate_argnums=0)(back)
    assert kernel.is_deleted()


def test_a_state_may_move_to_another_mesh(made, tmp_path):
    state, _, values = made
    save(tmp_path, state, [0])
    wide = make_mesh(MeshConfig(fsdp=4, tensor=2))
    with Checkpoints(tmp_path, IDENTITY) as checkpoints:
        back, _ = tiny_run.start(tiny_run.train_step(), wide, checkpoints)
    assert back.params["model"]["layers"]["first"].sharding.spec == P("fsdp", "tensor")
    assert back.params["model"]["layers"]["first"].sharding.mesh.shape["fsdp"] == 4
    for path, x in tiny_run.values_of(back, wide).items():
        np.testing.assert_array_equal(x, values[path], err_msg=path)


def test_it_keeps_the_latest_and_the_best(made, tmp_path):
    state, abstract, _ = made
    assert save(tmp_path / "latest", state, [1, 2, 3, 4], keep=2) == [3, 4]
    best = {"keep": 1, "best": lambda metrics: metrics["score"]}
    assert save(tmp_path / "best", state, [1, 2, 3, 4], **best) == [2, 4]
    with Checkpoints(tmp_path / "best", IDENTITY, **best) as checkpoints:
        assert int(checkpoints.restore_latest(abstract).step) == 4
        assert int(checkpoints.restore_best(abstract).step) == 2
        checkpoints.save(5, other(state, 5), metrics={"score": -3})  # remembers across starts
        checkpoints.wait()
        assert checkpoints.steps == [2, 5]


def test_nothing_saved_is_none(made, tmp_path):
    with Checkpoints(tmp_path, IDENTITY) as checkpoints:
        assert checkpoints.restore_latest(made[1]) is None
        with pytest.raises(ValueError, match="best"):
            checkpoints.restore_best(made[1])


def files(folder):
    return sorted(f for f in folder.rglob("*") if f.is_file())


def truncate(folder):
    for file in files(folder):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def lose_data(folder):
    for file in files(folder):
        if "/d/" in str(file):
            file.unlink()


def lose_metadata(folder):
    (folder / "_CHECKPOINT_METADATA").unlink()


def flip_a_bit(folder):
    """In the middle of the file with the arrays."""
    file = max(files(folder / "state" / "d"), key=lambda f: f.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.write_bytes(data)


def lose_state(folder):
    shutil.rmtree(folder / "state")


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGE = [truncate, lose_data, lose_metadata, flip_a_bit, lose_state, empty]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda f: f.__name__)
@pytest.mark.parametrize("best", [None, lambda metrics: metrics["score"]], ids=["", "best"])
def test_a_damaged_latest_checkpoint_is_skipped_with_a_warning(made, tmp_path, damage, best):
    state, abstract, _ = made
    save(tmp_path, state, [3, 6], best=best)
    damage(tmp_path / "6")
    with Checkpoints(tmp_path, IDENTITY, best=best) as checkpoints:
        with pytest.warns(RuntimeWarning, match="step 6 is corrupt and is skipped"):
            back = checkpoints.restore_latest(abstract)
        assert int(back.step) == 3
        np.testing.assert_array_equal(back.params["model"]["bias"], np.full(4, 3.0, np.float32))
        # The run goes on, and saves that step again.
        checkpoints.save(6, other(state, 6), metrics={"score": 0})
        checkpoints.wait()
        assert checkpoints.steps == [3, 6]
    with Checkpoints(tmp_path, IDENTITY, best=best) as checkpoints:
        assert int(checkpoints.restore_latest(abstract).step) == 6


def test_arrays_that_changed_on_disk_are_noticed(made, tmp_path):
    """Readable, of the right shapes, and wrong: the arrays of another step in its place."""
    state, abstract, _ = made
    save(tmp_path, state, [3, 6])
    shutil.rmtree(tmp_path / "6" / "state")
    shutil.copytree(tmp_path / "3" / "state", tmp_path / "6" / "state")
    with (
        Checkpoints(tmp_path, IDENTITY) as checkpoints,
        pytest.warns(RuntimeWarning, match="not those that were saved"),
    ):
        assert int(checkpoints.restore_latest(abstract).step) == 3


def test_when_none_can_be_read_it_stops(made, tmp_path):
    state, abstract, _ = made
    save(tmp_path, state, [3, 6])
    lose_data(tmp_path / "3")
    lose_data(tmp_path / "6")
    with Checkpoints(tmp_path, IDENTITY) as checkpoints:
        with (
            pytest.warns(RuntimeWarning, match="corrupt"),
            pytest.raises(UserError, match=r"none of the checkpoints \[3, 6\] can be read"),
        ):
            checkpoints.restore_latest(abstract)
        assert checkpoints.steps == [3, 6]  # nothing was removed


def test_a_save_that_was_cut_off_is_no_checkpoint(made, tmp_path):
    state, abstract, _ = made
    save(tmp_path, state, [3])
    shutil.copytree(tmp_path / "3", tmp_path / "6.orbax-checkpoint-tmp")
    truncate(tmp_path / "6.orbax-checkpoint-tmp")
    with Checkpoints(tmp_path, IDENTITY) as checkpoints:
        assert checkpoints.steps == [3]
        assert int(checkpoints.restore_latest(abstract).step) == 3
        checkpoints.save(6, other(state, 6))
    assert not list(tmp_path.glob("*tmp*"))


def test_another_identity_is_refused_with_the_difference(made, tmp_path):
    state, abstract, _ = made
    save(tmp_path, state, [3])
    with Checkpoints(tmp_path, {"beta": 0.2, "data": {"names": ["a", "b"]}}) as checkpoints:
        with pytest.raises(UserError) as caught:
            checkpoints.restore_latest(abstract)
        message = str(caught.value)
        assert all(word in message for word in ("beta", "0.1", "0.2", "--workdir"))
        assert "names" not in message and "\n" not in message
        assert checkpoints.steps == [3]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written") as caught:
        Checkpoints(tmp_path / "file" / "checkpoints", IDENTITY)
    assert caught.value.exit_code == 2


def test_the_last_save_of_a_run_is_awaited(made, tmp_path):
    state, _, _ = made
    with Checkpoints(tmp_path, IDENTITY) as checkpoints:
        checkpoints.save(3, other(state, 3))
        checkpoints.save(3, other(state, 3), wait=True)  # of a step that is under way, too
        assert [file.name for file in tmp_path.iterdir()] == ["3"]
        checkpoints.save(6, other(state, 6), wait=True)
        assert sorted(file.name for file in tmp_path.iterdir()) == ["3", "6"]


def test_parameters_that_are_not_finite_are_not_saved(made, tmp_path):
    state, _, _ = made
    with Checkpoints(tmp_path, IDENTITY) as checkpoints:
        with pytest.raises(NonFinite, match="step 4"):
            model = state.params["model"] | {"bias": jnp.full(4, np.nan)}
            checkpoints.save(5, state._replace(params=state.params | {"model": model}))
        assert checkpoints.steps == []


def test_saving_goes_on_while_the_state_is_overwritten(mesh, made, tmp_path):
    """The copy is taken before save returns: a donated state does not reach the disk."""
    state, abstract, _ = made
    state = jax.tree.map(lambda x: x, other(state, 1))
    state = jax.jit(lambda s: jax.tree.map(jnp.copy, s))(state)
    bump = jax.jit(
        lambda s: jax.tree.map(lambda x: x + 1 if x.dtype == jnp.float32 else x, s),
        donate_argnums=0,
    )
    with Checkpoints(tmp_path, IDENTITY) as checkpoints:
        expected = tiny_run.values_of(state, mesh)
        checkpoints.save(1, state)
        for _ in range(5):
            state = bump(state)
        back = checkpoints.restore_latest(abstract)
    for path, x in tiny_run.values_of(back, mesh).items():
        np.testing.assert_array_equal(x, expected[path], err_msg=path)
