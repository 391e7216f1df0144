"""A stream of requests: each starts from the one before, is made once, and is taken up again."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from kd_jax.launch import requests, run
from kd_jax.launch.claims import Results
from kd_jax.launch.config import Settings
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.stages import Compute, Stage, materialise

NAME = "tests.stream"
SHAPES = {"x": jax.ShapeDtypeStruct((), np.float32)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    amounts: tuple[int, ...]
    """What each request adds."""


class Stream:
    """x -> 2 x + amount for each request, from x = 1; `made` says which were worked out."""

    def __init__(self):
        self.made = []
        self.refuses = None
        self.goes_on = False

    def work(self, name, value):
        if name == self.refuses:
            raise RuntimeError("killed")
        self.made.append(name)
        return {"x": jax.numpy.float32(value())}, {}

    def request(self, amounts, request):
        amount = amounts[request.number]

        def build(found):
            def value():
                start = materialise(found[request.start].weights(), make_mesh())
                return 2 * start["x"] + amount

            return Compute(lambda: self.work(request.result, value), SHAPES)

        return (Stage(request.result, build, (request.start,), {"amount": amount}),)

    def stages(self, config):
        first = Stage(
            "start", lambda _: Compute(lambda: self.work("start", lambda: 1), SHAPES), (), {}
        )
        names = [f"request_{i}" for i in range(len(config.amounts))]
        return (
            first,
            *requests.stream("start", names, lambda r: self.request(config.amounts, r)),
        )

    def run(self, folder, *amounts):
        """(x after the last request, the stages that were worked out for it), in a folder of its
        own beside those of earlier runs, or in the last of them if it goes on."""
        self.made = []
        last = {}

        def report(config, artefacts, folder):
            name = f"request_{len(amounts) - 1}"
            last.update(materialise(artefacts[name].weights(), make_mesh()))
            return Results()

        module = types.SimpleNamespace(
            __name__=NAME, __doc__="A stream.", stages=self.stages, report=report, CLAIMS=()
        )
        earlier = sorted(folder.glob("*"))
        config, own = Config(amounts=amounts), folder / str(len(earlier))
        if self.goes_on:
            earlier, own = earlier[:-1], earlier[-1]
        run.execute(module, NAME, "smoke", config, own, others=earlier)
        return float(last["x"]), self.made


@pytest.fixture
def stream():
    return Stream()


def test_each_starts_from_the_one_before(stream, tmp_path):
    assert stream.run(tmp_path, 1, 10, 100) == (
        2 * (2 * (2 * 1 + 1) + 10) + 100,
        ["start", "request_0", "request_1", "request_2"],
    )


def test_a_stream_that_has_grown_keeps_what_it_had(stream, tmp_path):
    stream.run(tmp_path, 1, 10)
    assert stream.run(tmp_path, 1, 10, 100) == (132, ["request_2"])
    assert stream.run(tmp_path, 1, 10) == (16, [])


def test_an_edited_request_is_made_anew_with_all_after_it(stream, tmp_path):
    stream.run(tmp_path, 1, 10, 100)
    assert stream.run(tmp_path, 1, 20, 100) == (152, ["request_1", "request_2"])


def test_a_killed_stream_goes_on_in_the_request_where_it_was(stream, tmp_path):
    stream.refuses = "request_1"
    with pytest.raises(RuntimeError, match="killed"):
        stream.run(tmp_path, 1, 10, 100)
    assert stream.made == ["start", "request_0"]
    stream.refuses, stream.goes_on = None, True
    assert stream.run(tmp_path, 1, 10, 100) == (132, ["request_1", "request_2"])


def nothing(found):
    return Compute(lambda: (None, {}))


def test_a_request_may_have_several_stages():
    def stages(request):
        score = Stage(f"{request.start}_score", nothing, (request.start,))
        return score, Stage(request.result, nothing, (request.start, score.name))

    found = {stage.name: stage.needs for stage in requests.stream("a", ["b", "c"], stages)}
    assert found == {
        "a_score": ("a",),
        "b": ("a", "a_score"),
        "b_score": ("b",),
        "c": ("b", "b_score"),
    }


def test_what_is_no_stream_is_refused():
    def of(name, *needs):
        return lambda request: [Stage(name, nothing, needs)]

    with pytest.raises(ValueError, match="results: got none"):
        requests.stream("a", [], of("b", "a"))
    with pytest.raises(ValueError, match="request 0: got stages x, takes one called b that needs"):
        requests.stream("a", ["b"], of("x", "a"))
    with pytest.raises(ValueError, match="request 1: got stages b, takes one called c"):
        requests.stream("a", ["b", "c"], of("b", "a"))
    # Not from the one before, but from the start: a request of its own.
    with pytest.raises(ValueError, match="request 1: .* called c that needs b"):
        requests.stream("a", ["b", "c"], lambda r: of(r.result, "a")(r))
    with pytest.raises(ValueError, match="request 0: got stages none"):
        requests.stream("a", ["b"], lambda request: [])
