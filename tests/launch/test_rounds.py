"""A training in rounds: the whole state goes on, to the bit, also after a kill."""

import types

import jax
import numpy as np
import optax
import pytest
from support import tiny_run

from kd_jax.launch import requests, rounds, run
from kd_jax.launch.claims import Results
from kd_jax.launch.config import Settings
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.stages import Evaluation, Stage, Training, materialise
from kd_jax.steps import make_train_step
from kd_jax.trees import flatten

CONFIG = Settings(mesh=MeshConfig(fsdp=2, tensor=2, data=2), checkpoint_every=1)
LENGTH = 3  # steps of a round
STEP = tiny_run.train_step(guard=False)  # noise from the key, a schedule, an average in carry


class Died(Exception):
    """Stands for a kill."""


def training(steps, *, start=None, dies_at=-1, step=STEP):
    def batches(number, rows):
        if number == dies_at:
            raise Died
        return tiny_run.batches(number, rows)

    def measure(params, carry, frozen):
        return {"size": float(sum(np.abs(x).sum() for x in jax.tree.leaves(params)))}

    return Training(
        step=step,
        weights=tiny_run.weights(),
        start=start,
        batches=batches,
        batch=tiny_run.BATCH,
        batch_size=tiny_run.ROWS,
        steps=steps,
        rules=tiny_run.RULES,
        evaluations=(Evaluation("measured", LENGTH, measure),),
        result=rounds.whole,
    )


def execute(folder, stages):
    """{stage: (the arrays of its state by path, its artefact)}."""
    found = {}

    def report(config, artefacts, folder):
        mesh = make_mesh(MeshConfig())
        for name, made in artefacts.items():
            tree = flatten(jax.device_get(materialise(made.weights(), mesh)))
            found[name] = ({path: np.asarray(x) for path, x in tree.items()}, made)
        return Results()

    module = types.SimpleNamespace(
        __name__="t", __doc__="Rounds.", stages=lambda _: stages, report=report, CLAIMS=()
    )
    run.execute(module, "t", "smoke", CONFIG, folder)
    return found


def in_rounds(count, *, dies_at=-1, step=STEP):
    first = Stage("round_0", lambda _: training(LENGTH, dies_at=dies_at), (), {})

    def further(request):
        def build(found):
            start = found[request.start].weights()
            steps = (request.number + 2) * LENGTH
            return training(steps, start=start, dies_at=dies_at, step=step)

        return (Stage(request.result, build, (request.start,), {}),)

    names = [f"round_{i}" for i in range(1, count)]
    return (first, *requests.stream("round_0", names, further))


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    return execute(folder, [Stage("long", lambda _: training(3 * LENGTH), (), {})])["long"]


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for path, x in expected.items():
        np.testing.assert_array_equal(found[path], x, err_msg=path)


@pytest.mark.slow
def test_rounds_that_decide_nothing_are_one_long_training(long, tmp_path):
    expected, artefact = long
    found = execute(tmp_path, in_rounds(3))
    state, last = found["round_2"]
    assert_equal(state, expected)
    assert {"step", "key", "params/model/bias", "carry/ema/bias"} <= state.keys()
    assert any(path.startswith("opt_state/") for path in state)
    assert [int(found[f"round_{i}"][0]["step"]) for i in range(3)] == [3, 6, 9]
    # Each has measured at its end, and the first at its start too.
    points = [point for i in range(3) for point in found[f"round_{i}"][1].history]
    assert points == artefact.history
    assert [point["step"] for point in last.history] == [9]


@pytest.mark.slow
@pytest.mark.parametrize("dies_at", [LENGTH, LENGTH + 2])
def test_a_killed_round_goes_on_where_it_was(long, tmp_path, dies_at):
    with pytest.raises(Died):
        execute(tmp_path, in_rounds(3, dies_at=dies_at))
    assert_equal(execute(tmp_path, in_rounds(3))["round_2"][0], long[0])


@pytest.mark.slow
def test_a_state_of_another_training_is_refused(tmp_path):
    other = make_train_step(tiny_run.OBJECTIVE, optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"start and the training's state differ: .*carry/ema"):
        execute(tmp_path, in_rounds(2, step=other))
    # What was finished stays, and a right one goes on from it.
    assert int(execute(tmp_path, in_rounds(2))["round_1"][0]["step"]) == 6
