"""Domains of characters: a text, an order-2 Markov chain, sums, brackets."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jax.sharding import Mesh

from experiments.distillation.common import text as text_lib
from kd_jax.data import shapes
from kd_jax.launch import evaluation
from kd_jax.launch.stages import Evaluation, Program, mesh_of
from kd_jax.models import decoder
from kd_jax.models.config import DecoderConfig
from kd_jax.objectives.score import sequence_scores
from kd_jax.steps import make_eval_step

Name = Literal["text", "chain", "sums", "brackets"]
Decide = Callable[[np.ndarray], np.ndarray]


class Domain(NamedTuple):
    """Rows of length + 1 characters. validation: what the weights are decided by; test: what is
    reported."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


@functools.cache
def load(name: Name, text: text_lib.Text, rows: int) -> Domain:
    """rows: to train on, of what is generated; a text has as many as it has. Of validation and
    test rows there are text.held_out each."""
    size = 2 * text.held_out
    if name == "text":
        corpus = text_lib.load(dataclasses.replace(text, held_out=size))
        train, held_out = corpus.train, corpus.held_out
    else:
        made = _GENERATED[name](rows + size, text.length + 1)
        train, held_out = made[:rows], made[rows:]
    return Domain(train, held_out[::2], held_out[1::2])


def chain(rows: int, length: int) -> np.ndarray:
    """Rows of one random chain over ten letters; a letter depends on the two before it."""
    rng = np.random.default_rng(1)
    ends = rng.dirichlet(np.full(10, 0.4), (10, 10)).cumsum(-1)
    found = rng.integers(0, 10, (rows, length))
    for t in range(2, length):
        row = ends[found[:, t - 2], found[:, t - 1]]
        drawn = rng.random((rows, 1)) * row[:, -1:]
        found[:, t] = (drawn > row[:, :-1]).sum(-1)
    return _tokens("".join("abcdefghij"[i] for i in found.flat), length)


def sums(rows: int, length: int) -> np.ndarray:
    """17+5=22;... with terms up to 99."""
    rng = np.random.default_rng(2)
    terms = rng.integers(0, 100, (rows * length // 5 + 1, 2))
    return _tokens("".join(f"{a}+{b}={a + b};" for a, b in terms), length)[:rows]


def brackets(rows: int, length: int) -> np.ndarray:
    """A walk that opens one of four kinds or closes the last that is open, up to eight deep."""
    rng = np.random.default_rng(3)
    coins, kinds = rng.random(rows * length), rng.integers(0, 4, rows * length)
    found, still = [], []
    for coin, kind in zip(coins, kinds, strict=True):
        if not still or (coin < 0.5 and len(still) < 8):
            still.append(")]}>"[kind])
            found.append("([{<"[kind])
        else:
            found.append(still.pop())
    return _tokens("".join(found), length)


_GENERATED = {"chain": chain, "sums": sums, "brackets": brackets}


def _tokens(text: str, length: int) -> np.ndarray:
    codes = np.array([text_lib.CHARACTERS.index(chr(i)) for i in range(32, 127)], np.int32)
    found = codes[np.frombuffer(text.encode("ascii"), np.uint8) - 32]
    return found[: len(found) // length * length].reshape(-1, length)


class Measured(NamedTuple):
    """What a model is measured on. text, rows: see `load`. batch: rows measured at once."""

    text: text_lib.Text
    rows: int
    names: tuple[Name, ...]
    batch: int


def along(
    measured: Measured, model: DecoderConfig, every: int, decide: Decide | None = None
) -> Evaluation:
    """{"DOMAIN_validation", "DOMAIN_test"}: mean NLL of a character, in nats, along a training;
    and "DOMAIN_weight", what decide(perplexities of validation [N]) gives."""

    def run(params, carry, frozen) -> Mapping[str, float]:
        found = nll(measured, model, params["model"], mesh_of(params))
        if decide is None:
            return found
        names = measured.names
        decided = decide(np.exp([found[f"{name}_validation"] for name in names]))
        return found | {f"{n}_weight": float(w) for n, w in zip(names, decided, strict=True)}

    def plan(params, carry, frozen) -> Mapping[str, Program]:
        ours = {"model": params["model"], "aux": {}}
        batch = shapes.text(measured.batch, measured.text.length)
        mesh = mesh_of(params)
        return {"nll": evaluation.program(_step(model), ours, {}, {}, batch, mesh=mesh)}

    return Evaluation("domains", every, run, plan)


def nll(measured: Measured, model: DecoderConfig, weights: Any, mesh: Mesh) -> dict[str, float]:
    """The losses of `along`."""
    parts = {
        f"{name}_{split}": getattr(load(name, measured.text, measured.rows), split)
        for name in measured.names
        for split in ("validation", "test")
    }
    _, rows = evaluation.evaluate(
        _step(model),
        {"model": weights, "aux": {}},
        {},
        {},
        text_lib.rows(np.concatenate(list(parts.values()))),
        batch_size=measured.batch,
        mesh=mesh,
    )
    ends = np.cumsum([len(part) for part in parts.values()])[:-1]
    losses = np.split(-rows["log_prob"].astype(np.float64), ends)
    counts = np.split(rows["tokens"].astype(np.float64), ends)
    return {
        name: float(loss.sum() / count.sum())
        for name, loss, count in zip(parts, losses, counts, strict=True)
    }


@functools.cache  # one step for all students, so that they share compilations
def _step(model: DecoderConfig) -> Any:
    return make_eval_step(sequence_scores(decoder.decoder(model)))


def perplexities(values: Mapping[str, Any], names: Sequence[str], split: str) -> np.ndarray:
    """[N], from the values of an artefact."""
    return np.exp([values[f"domains/{name}_{split}"] for name in names])
