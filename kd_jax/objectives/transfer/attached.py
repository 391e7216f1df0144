"""What is trained on a teacher's features first, and read there afterwards: a part of the teacher.

Factor transfer, in two trainings:

    teller = attached(teacher, "block_8", paraphraser(64, 32), "factor")
    parts = {"mse": matched(hint, ("factor/back",), ("block_8",))._replace(whole_batch=True)}
    distil(teller, teacher, parts, policy=beside("teacher"))
    distil(student, teller, {"ft": factor_transfer("block_8", "factor")})

where frozen["teacher"] is the teacher's weights in the first, and in the second
{"model": those, "state": its state, "attached": what the first trained}.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from kd_jax.losses.features import factor_distance
from kd_jax.objectives.parts import Part
from kd_jax.objectives.transfer.modules import (
    batch_norm,
    conv,
    linear,
    make_conv,
    make_linear,
    make_norm,
)
from kd_jax.objectives.transfer.weighing import present, same_places
from kd_jax.types import (
    Batch,
    Frozen,
    Model,
    ModelOutput,
    Params,
    Policy,
    PyTree,
    Term,
    weighted_sum,
)


class Module(NamedTuple):
    """make(key) -> weights; apply(weights, x [B, ...], present bool [B]) -> {name: [B, ...]}."""

    make: Callable[[jax.Array], PyTree]
    apply: Callable[[PyTree, jax.Array, jax.Array], dict[str, jax.Array]]


def attached(model: Model, tap: str, module: Module, name: str) -> Model:
    """The model, in evaluation mode, with a module on one of its taps: taps "name", "name/...".

    Weights: {"model": the model's, "state": its state, "attached": the module's}. A module's
    output called "" is the tap "name". No gradient goes through the module into the model.
    """

    def init(key):
        own, ours = jax.random.split(key)
        return {"model": model.init(own), "state": model.state(), "attached": module.make(ours)}

    def apply(params, inputs, *, state={}, key=None, train=False, taps=(), add={}):
        mine = tuple(t for t in taps if t == name or t.startswith(f"{name}/"))
        asked = tuple(t for t in taps if t not in mine)
        below = tuple(dict.fromkeys((*asked, tap))) if mine else asked
        own = jax.lax.stop_gradient(params["state"])
        output = model.apply(params["model"], inputs, state=own, taps=below, add=add)
        found = {t: output.taps[t] for t in asked}
        if mine:
            x = jax.lax.stop_gradient(output.taps[tap])
            made = module.apply(params["attached"], x, present(inputs))
            named = {f"{name}/{n}" if n else name: y for n, y in made.items()}
            found |= {t: named[t] for t in mine}
        return output._replace(taps=found, state=state)

    return Model(init, apply)


def beside(name: str) -> Policy:
    """The policy that trains what is attached: to frozen[name], in the state frozen["name_state"].

    The training's own weights are the module's alone.
    """

    def policy(params: Params, frozen: Frozen) -> PyTree:
        state = frozen.get(f"{name}_state", {})
        return {"model": frozen[name], "state": state, "attached": params["model"]}

    return policy


def paraphraser(inputs: int, channels: int, *, slope: float = 0.1) -> Module:
    """Three 3x3 convolutions of a map to `channels`, and three back: outputs "" and "back".

    The second changes the width, and the second back. Each is normalised by the batch, also where
    the factor is only read, and has a leaky ReLU: examples are coupled.
    Kim et al. 2018 (factor transfer), arXiv 1802.04977, by torchdistill (channels half the inputs).
    """
    widths = (inputs, inputs, channels, channels, channels, inputs, inputs)

    def apply(weights, x, here) -> dict[str, jax.Array]:
        factor = _convs(weights, x, here, range(3), slope)
        return {"": factor, "back": _convs(weights, factor, here, range(3, 6), slope)}

    return Module(lambda key: _make_convs(key, widths), apply)


def projection(inputs: int, outputs: int) -> Module:
    """Linear, ReLU, linear, on vectors: SSKD's self-supervision module. Its output is ""."""

    def make(key) -> PyTree:
        first, second = jax.random.split(key)
        layers = make_linear(first, inputs, outputs), make_linear(second, outputs, outputs)
        return {"layer_0": layers[0], "layer_1": layers[1]}

    def apply(weights, x, here) -> dict[str, jax.Array]:
        return {"": linear(weights["layer_1"], jax.nn.relu(linear(weights["layer_0"], x)))}

    return Module(make, apply)


def factor_transfer(
    student_tap: str, factor_tap: str, scale: float = 1000.0, *, power: int = 1, slope: float = 0.1
) -> Part:
    """scale * `losses.features.factor_distance` of a trained translator and the teacher's factor.

    The translator is three 3x3 convolutions, as the paraphraser's first three, of the student's
    map; a larger map is average-pooled. Kim et al. 2018, arXiv 1802.04977, by torchdistill.
    """

    def init(key, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> PyTree:
        s, t = student.taps[student_tap].shape[-1], teacher.taps[factor_tap].shape[-1]
        return _make_convs(key, (s, s, t, t))

    def part(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        x = _convs(aux, student.taps[student_tap], present(batch), range(3), slope)
        x, factor = same_places(x, teacher.taps[factor_tap])
        values = factor_distance(x, factor, power=power)
        return weighted_sum(values, batch["weights"], scale)

    return Part(part, init, (student_tap,), (factor_tap,), whole_batch=True)


def knowledge_adaptation(student_tap: str, factor_tap: str, scale: float = 50.0) -> Part:
    """scale * `losses.features.factor_distance` of an adapted map and the teacher's factor: KTA.

    The adapter is a trained 3x3 convolution of the student's map to the factor's channels,
    normalised by the batch, with a ReLU; a larger map is average-pooled. The teacher's knowledge
    translator is a `paraphraser`, whose first training adds 1e-7 times the factor's L1 norm
    (`hints.output_norm`). Beside it stands `maps.affinity` of the factor, with side 3 and scale 1
    and, as the factor couples examples, `._replace(whole_batch=True)`.
    He et al. 2019, CVPR (knowledge adaptation for segmentation), by torchdistill's settings.
    """

    def init(key, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> PyTree:
        s, t = student.taps[student_tap].shape[-1], teacher.taps[factor_tap].shape[-1]
        return {"conv": make_conv(key, 3, s, t), "norm": make_norm(t)}

    def part(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        x = conv(aux["conv"], student.taps[student_tap], padding=1)
        x = jax.nn.relu(batch_norm(aux["norm"], x, present(batch)))
        values = factor_distance(*same_places(x, teacher.taps[factor_tap]))
        return weighted_sum(values, batch["weights"], scale)

    return Part(part, init, (student_tap,), (factor_tap,), whole_batch=True)


def _make_convs(key: jax.Array, widths: tuple[int, ...]) -> PyTree:
    return {
        f"layer_{i}": {
            "conv": make_conv(jax.random.fold_in(key, i), 3, widths[i], widths[i + 1]),
            "norm": make_norm(widths[i + 1]),
        }
        for i in range(len(widths) - 1)
    }


def _convs(weights, x: jax.Array, here: jax.Array, layers: range, slope: float) -> jax.Array:
    for i in layers:
        layer = weights[f"layer_{i}"]
        x = batch_norm(layer["norm"], conv(layer["conv"], x, padding=1), here)
        x = jax.nn.leaky_relu(x, slope)
    return x
