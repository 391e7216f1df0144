"""SIGTERM during a stage that is no training: it is finished and kept, the next is not begun."""

import os
import signal
import types

import pytest

from kd_jax.launch import run
from kd_jax.launch.claims import Results
from kd_jax.launch.config import Settings
from kd_jax.launch.errors import Preempted
from kd_jax.launch.stages import Compute, Stage


def test_a_request_between_stages_is_obeyed_and_the_run_goes_on_later(tmp_path):
    done = []

    def work(name, ask):
        def compute():
            if ask and name not in done:
                os.kill(os.getpid(), signal.SIGTERM)
            done.append(name)
            return None, {"name": name}

        return Compute(compute)

    def stages(config):
        return (
            Stage("first", lambda found: work("first", True)),
            Stage("second", lambda found: work("second", False), ("first",)),
        )

    def report(config, found, folder):
        return Results({name: artefact.values["name"] for name, artefact in found.items()})

    module = types.ModuleType("experiments.test.stopped", "Stops once.")
    module.__dict__.update(stages=stages, report=report, CLAIMS=())
    arguments = (module, module.__name__, "smoke", Settings(), tmp_path / "run")
    with pytest.raises(Preempted):
        run.execute(*arguments)
    assert done == ["first"]
    results = run.execute(*arguments)
    assert done == ["first", "second"]
    assert results["values"] == {"first": "first", "second": "second"}
