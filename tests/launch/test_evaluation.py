import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny_run

from kd_jax.launch.evaluation import evaluate, stream
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.types import Output, Term, weighted_sum


@pytest.fixture(scope="module")
def params():
    return {"model": tiny_run.init_params(5.0), "aux": {}}


def by_hand(params, data):
    """float64, one example after the other."""
    model = jax.tree.map(lambda x: np.asarray(x, np.float64), params["model"])
    hidden = np.tanh(data["inputs"].astype(np.float64) @ model["layers"]["first"])
    out = hidden @ model["layers"]["second"] + model["bias"]
    error = ((out - data["targets"]) ** 2).mean(-1)
    weights = data["weights"].astype(np.float64)
    size = np.abs(out).mean(-1)
    return error, (error * weights).sum() / weights.sum(), (size * weights).sum() / weights.sum()


@pytest.mark.parametrize("count", [1, 15, 16, 21, 32])
@pytest.mark.parametrize("config", [MeshConfig(), MeshConfig(fsdp=2, tensor=2)])
def test_it_is_exact_on_uneven_data(params, config, count):
    data = tiny_run.examples(count)
    data["weights"] = np.linspace(0.5, 2.0, count).astype(np.float32)
    error, mean, size = by_hand(params, data)
    values, rows = evaluate(
        tiny_run.EVAL_STEP, params, {}, {}, data, batch_size=8, mesh=make_mesh(config)
    )
    np.testing.assert_allclose(values["error"], mean, rtol=1e-5)
    np.testing.assert_allclose(values["size"], size, rtol=1e-5)
    assert values["loss"] == values["error"]
    assert set(rows) == {"error"} and rows["error"].shape == (count,)
    np.testing.assert_allclose(rows["error"], error, rtol=1e-4, atol=1e-6)


def test_rows_come_in_the_order_of_the_index(params):
    mesh = make_mesh()
    data = tiny_run.examples(21)
    values, rows = evaluate(tiny_run.EVAL_STEP, params, {}, {}, data, batch_size=8, mesh=mesh)
    mixed = np.random.default_rng(0).permutation(21)
    shuffled = {name: x[mixed] for name, x in data.items()}
    again, same = evaluate(tiny_run.EVAL_STEP, params, {}, {}, shuffled, batch_size=8, mesh=mesh)
    np.testing.assert_allclose(same["error"], rows["error"], rtol=1e-5)
    np.testing.assert_allclose(again["loss"], values["loss"], rtol=1e-6)
    del data["index"]  # then it is the order they are given in
    _, plain = evaluate(tiny_run.EVAL_STEP, params, {}, {}, data, batch_size=8, mesh=mesh)
    np.testing.assert_array_equal(plain["error"], rows["error"])


@pytest.mark.parametrize("count", [1, 16, 21])
def test_a_stream_gives_the_same_rows_batch_by_batch(params, count):
    mesh, data = make_mesh(), tiny_run.examples(count)
    settings = {"batch_size": 8, "mesh": mesh}
    _, rows = evaluate(tiny_run.EVAL_STEP, params, {}, {}, data, **settings)
    batches = list(stream(tiny_run.EVAL_STEP, params, {}, {}, data, **settings))
    assert [len(batch["error"]) for batch in batches] == [8] * (count // 8) + [count % 8] * (
        count % 8 > 0
    )
    np.testing.assert_array_equal(np.concatenate([b["error"] for b in batches]), rows["error"])


def test_padding_is_marked_in_every_mapping():
    """Sums of index and weight tell padding from data, nested mappings included."""

    def step(params, carry, frozen, batch):
        a, b = batch["forget"], batch["retain"]
        seen = (a["index"] >= 0) & (b["index"] >= 0)
        return Output(
            {"total": Term(jnp.sum(a["x"] * a["weights"] + b["x"] * b["weights"]), jnp.float32(1))},
            {"count": Term(jnp.sum(seen, dtype=jnp.float32), jnp.float32(0.5))},
            {"x": a["x"]},
        )

    x = np.arange(1, 12, dtype=np.float32)
    part = {"x": x, "weights": np.ones(11, np.float32)}
    data = {"forget": part, "retain": part | {"x": 10 * x}}
    values, rows = evaluate(step, {}, {}, {}, data, batch_size=8, mesh=make_mesh())
    assert values["total"] == 11 * x.sum() / 2  # two batches, each of weight 1
    assert values["count"] == 11 / (2 * 0.5)
    np.testing.assert_array_equal(rows["x"], x)


def test_sums_are_kept_in_float64():
    def step(params, carry, frozen, batch):
        return Output({"x": weighted_sum(batch["x"], batch["weights"])})

    x = np.full(1024, 0.1, np.float32)
    x[0] = 1e7
    data = {"x": x, "weights": np.ones(1024, np.float32)}
    values, _ = evaluate(step, {}, {}, {}, data, batch_size=8, mesh=make_mesh())
    # In float32 every later batch would be lost beside 1e7.
    np.testing.assert_allclose(values["x"] * 1024 - 1e7, 102.3, atol=2.0)


def test_it_compiles_once(params):
    step = chex.assert_max_traces(lambda *args: tiny_run.EVAL_STEP(*args), n=1)
    mesh = make_mesh()
    for count in (21, 13):
        evaluate(step, params, {}, {}, tiny_run.examples(count), batch_size=8, mesh=mesh)


def test_what_cannot_be_evaluated_is_said(params):
    data = tiny_run.examples(21)
    mesh = make_mesh()

    def run(data, step=tiny_run.EVAL_STEP):
        return evaluate(step, params, {}, {}, data, batch_size=8, mesh=mesh)

    with pytest.raises(ValueError, match="takes weights too"):
        run({"inputs": data["inputs"]})
    with pytest.raises(ValueError, match="same number"):
        run(data | {"targets": data["targets"][:-1]})
    with pytest.raises(ValueError, match="at least 1"):
        run({name: x[:0] for name, x in data.items()})

    def moving(params, carry, frozen, batch):
        scale = batch["index"].max().astype(jnp.float32)
        return Output({"x": weighted_sum(batch["inputs"][:, 0], batch["weights"], scale)})

    with pytest.raises(ValueError, match="term x: its scale changed"):
        run(data, moving)

    def clash(params, carry, frozen, batch):
        term = weighted_sum(batch["inputs"][:, 0], batch["weights"])
        return Output({"x": term}, {"x": term})

    with pytest.raises(ValueError, match="x is taken"):
        run(data, clash)
