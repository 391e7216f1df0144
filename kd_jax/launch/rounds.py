"""A training in rounds: stages in a row, each of which goes on exactly where the last one ended.

Between two rounds the host decides something from what was measured: the weights of domains, the
data of the next iteration. A round is a `Training` with result=rounds.whole and, after the first,
start=found[before].weights(); `requests.stream` makes the row of stages.

Carried from round to round is the whole TrainState: parameters, auxiliary parameters, the
optimiser's state, the objective's carry, the key and the number of finished steps. Steps therefore
count on (round i of K steps has steps=(i + 1) * K, and its batches are asked for steps i * K to
(i + 1) * K - 1), schedules run over all rounds, and rounds between which nothing is decided are one
long training, to the bit. Not carried are checkpoints, metrics and evaluations, which each round
has of its own; a measurement is an Evaluation at the end of a round, whose numbers the next one
finds in the artefact's values.

The step's program is the same in all rounds: what changes is data, so the compilation cache has it.
"""

from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.launch.encoding import abstract_arrays, decode, encode
from kd_jax.launch.stages import inner
from kd_jax.launch.weights import Weights
from kd_jax.trees import check_same, flatten, map_with_path, nest
from kd_jax.types import Frozen, TrainState

PyTree = Any


def whole(state: TrainState, frozen: Frozen) -> PyTree:
    """The state as nested dicts of arrays: what a round keeps (`Training.result`).

    The model's weights are its "params/model".
    """
    return nest(flatten(encode(state)))


def resumed(start: Weights, abstract: TrainState) -> TrainState:
    """The guarded state that goes on from what `whole` kept, every array made in its sharding.

    abstract: of a training as `stages.placed` gives it. ValueError where the state that was kept
    is not of its shapes: of another model, optimiser or objective.
    """
    wanted = abstract_arrays(inner(abstract))
    kept = nest(flatten(wanted))
    check_same("start", start.abstract, "the training's state", kept)
    found = flatten(start.make(kept))
    state = decode(map_with_path(lambda path, _: found[path], wanted), inner(abstract))
    placed = abstract.carry["first_bad_step"].sharding
    none = jax.jit(lambda: jnp.int32(-1), out_shardings=placed)()
    return state._replace(carry={"inner": state.carry, "first_bad_step": none})
