"""Tiny models of images with taps, and what every part on features has to hold.

Student and teacher differ in width and in the size of their maps. Taps: "map" [B, 4, 4, C],
"deep" [B, 2, 2, 2 C], "pooled" [B, 2 C]; the logits have 3 classes, "class_map" [B, 2, 2, 3] too.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from support.linear import assert_trees_close

from kd_jax.objectives.distil import distil
from kd_jax.steps import make_train_step
from kd_jax.types import Context, Logits, Model, ModelOutput

CLASSES, CHANNELS = 3, 2
KEY = jax.random.key(0)


def image_model(width: int) -> Model:
    def init(key):
        keys = jax.random.split(key, 3)
        shapes = {"one": (CHANNELS, width), "two": (width, 2 * width), "head": (2 * width, CLASSES)}
        return {n: jax.random.normal(k, s) for k, (n, s) in zip(keys, shapes.items(), strict=True)}

    def apply(params, inputs, *, state={}, key=None, train=False, taps=(), add={}):
        shallow = jnp.tanh(inputs["inputs"] @ params["one"])
        b, h, w, c = shallow.shape
        small = shallow.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))
        deep = jax.nn.leaky_relu(small @ params["two"])
        pooled = deep.mean((1, 2))
        logits = pooled @ params["head"]
        found = {"map": shallow, "deep": deep, "pooled": pooled, "logits": logits}
        # Both models' channels are as many there: a map with one for each class.
        found["class_map"] = deep @ params["head"]
        return ModelOutput(Logits(logits), {t: found[t] for t in taps}, state)

    return Model(init, apply)


STUDENT, TEACHER = image_model(3), image_model(4)
PARAMS, FROZEN = STUDENT.init(jax.random.key(1)), {"teacher": TEACHER.init(jax.random.key(2))}


def image_batch(rows: int = 6, seed: int = 0) -> dict:
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "inputs": jax.random.normal(keys[0], (rows, 4, 4, CHANNELS)),
        "targets": jnp.arange(rows, dtype=jnp.int32) % CLASSES,
        "weights": jax.random.uniform(keys[2], (rows,), minval=0.5),
        "index": jnp.arange(rows, dtype=jnp.int32),
    }


def with_padding(batch: dict, rows: int = 2) -> dict:
    """With rows of weight 0 behind, far from the others."""
    fill = {"inputs": 50.0, "attacked": 50.0, "index": -1, "targets": 0, "weights": 0}
    return {
        n: jnp.concatenate([x, jnp.full((rows, *x.shape[1:]), fill.get(n, 0), x.dtype)])
        for n, x in batch.items()
    }


class Laws(NamedTuple):
    """Of all parts of a family in one objective; each term is reported by its name."""

    parts: dict[str, Any]
    batch: dict
    student: Model = STUDENT
    teacher: Model = TEACHER
    frozen: dict = FROZEN
    padding: int = 2

    @property
    def objective(self):
        return distil(self.student, self.teacher, self.parts)

    def step(self, microbatches: int = 1, parts: dict[str, Any] | None = None):
        objective = distil(self.student, self.teacher, parts or self.parts)
        return make_train_step(objective, optax.sgd(0.01), microbatches=microbatches)

    def start(self, **settings):
        step = self.step(**settings)
        model = self.student.init(jax.random.key(1))
        return jax.jit(step.apply), step.init(KEY, model, self.frozen, self.batch)

    def check(self) -> None:
        """All the laws; padding and eight devices are checked at once."""
        apply, state = self.start()
        new, metrics = apply(state, self.frozen, self.batch)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((new.params, metrics)))

        moved = self.batch | {"inputs": self.batch["inputs"].at[:2].add(1.0)}
        other = apply(state, self.frozen, moved)[1]
        for name in self.parts:
            assert abs(float(other[name] - metrics[name])) > 1e-9, f"{name}: sees nothing"

        mesh = Mesh(np.array(jax.devices()[:8]), ("data",), axis_types=(AxisType.Auto,))
        padded = jax.device_put(
            with_padding(self.batch, self.padding), NamedSharding(mesh, P("data"))
        )
        assert_trees_close((new, metrics), apply(state, self.frozen, padded), 1e-4, 1e-5)
        self._gradients(state, new)
        self._microbatches(metrics)

    def _gradients(self, state, new) -> None:
        """All that a part trains moves; every part moves the student, none what is frozen."""
        for name, aux in state.params["aux"].items():
            pairs = zip(jax.tree.leaves(aux), jax.tree.leaves(new.params["aux"][name]), strict=True)
            assert all(np.any(x != y) for x, y in pairs), f"{name}: idle aux"

        objective = self.objective

        def terms(model, frozen):
            params = {"model": model, "aux": state.params["aux"]}
            ctx = Context(KEY, jnp.int32(0))
            output = objective.loss(params, state.carry, frozen, self.batch, ctx)
            return jnp.stack([output.terms[name].value for name in self.parts])

        @jax.jit
        def slopes(model, frozen):
            at = (model, frozen)
            (one, two), zero = (jax.tree.map(f, at) for f in (jnp.ones_like, jnp.zeros_like))
            along_model = jax.jvp(terms, at, (one, zero[1]))[1]
            return along_model, jax.jvp(terms, at, (zero[0], two))[1]

        of_model, of_frozen = slopes(state.params["model"], self.frozen)
        moves = {name for name, slope in zip(self.parts, of_model, strict=True) if slope != 0}
        assert moves == set(self.parts)
        np.testing.assert_array_equal(of_frozen, 0.0)

    def _microbatches(self, metrics) -> None:
        free = {n: p for n, p in self.parts.items() if not p.whole_batch}
        for name in set(self.parts) - set(free):
            with pytest.raises(ValueError, match="takes 1: this objective couples the examples"):
                self.step(2, {name: self.parts[name]})
        if free:
            # Aux weights are made by a part's place among the parts: these have to be the same.
            _, state = self.start()
            aux = {n: state.params["aux"][n] for n in free}
            apply, alone = self.start(microbatches=2, parts=free)
            params = {"model": state.params["model"], "aux": aux}
            _, cut = apply(alone._replace(params=params), self.frozen, self.batch)
            for name in free:
                np.testing.assert_allclose(cut[name], metrics[name], rtol=1e-4, err_msg=name)
