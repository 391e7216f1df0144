"""Secrets in a text, what of it is private, and how much of them a model gives away."""

import functools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from experiments.distillation.common import text as text_lib
from kd_jax.data import shapes
from kd_jax.data.builders.authors_words import FIRST_NAMES
from kd_jax.evaluation.exposure import exposure
from kd_jax.launch import evaluation
from kd_jax.models import decoder
from kd_jax.models.config import DecoderConfig
from kd_jax.objectives.score import sequence_scores
from kd_jax.steps import make_eval_step

PRIVATE = re.compile(r"(?<=the pin of )[a-z]+ is (\d+)")


class Secrets(NamedTuple):
    """count secrets of `digits` digits, each `copies` times in the text."""

    count: int
    digits: int
    copies: int
    seed: int


def sentences(secrets: Secrets) -> list[tuple[str, str]]:
    """(what comes before, the secret)."""
    rng = np.random.default_rng([secrets.seed, 1])
    names = rng.choice([name.lower() for name in FIRST_NAMES], secrets.count, replace=False)
    pins = rng.choice(10**secrets.digits, secrets.count, replace=False)
    return [
        (f"the pin of {name} is ", f"{pin:0{secrets.digits}d}")
        for name, pin in zip(names, pins, strict=True)
    ]


def hidden_in(text: str, secrets: Secrets) -> str:
    """The text with the sentences as lines of their own, at places drawn by the seed."""
    lines = text.split("\n")
    rng = np.random.default_rng([secrets.seed, 2])
    told = [f"{before}{pin}" for before, pin in sentences(secrets)] * secrets.copies
    places = np.sort(rng.integers(0, len(lines) + 1, len(told)))
    rng.shuffle(told)
    for place, line in zip(places[::-1], told, strict=True):
        lines.insert(int(place), line)
    return "\n".join(lines)


def rows(text: str, length: int) -> dict[str, Any]:
    """Text rows with "private" [N, length]: 1 where the target is a digit of a secret."""
    flags = np.zeros(len(text), np.int32)
    for found in PRIVATE.finditer(text):
        flags[slice(*found.span(1))] = 1
    tokens = text_lib.cut(text_lib.characters(text), length + 1)
    private = text_lib.cut(flags.tolist(), length + 1)[:, 1:]
    return text_lib.rows(tokens) | {"private": private.astype(np.float32)}


@functools.cache  # one step for all students, so that they share compilations
def _step(model: DecoderConfig) -> Any:
    return make_eval_step(sequence_scores(decoder.decoder(model)))


def exposures(
    model: DecoderConfig, params: Any, secrets: Secrets, mesh: Mesh, *, batch_size: int
) -> list[float]:
    """Of each secret, in bits, among all numbers of as many digits."""
    numbers = [f"{i:0{secrets.digits}d}" for i in range(10**secrets.digits)]
    length, found = _length(secrets), []
    for before, pin in sentences(secrets):
        told = [f"\n{before}{number}".ljust(length + 1) for number in numbers]
        tokens = np.array([text_lib.characters(line) for line in told], np.int32)
        examples = text_lib.rows(tokens, given=len(before) + 1)
        examples["weights"][:, len(before) + secrets.digits :] = 0.0
        _, scores = evaluation.evaluate(
            _step(model),
            {"model": params, "aux": {}},
            {},
            {},
            examples,
            batch_size=batch_size,
            mesh=mesh,
        )
        nll = -scores["log_prob"].astype(np.float64)
        place = int(pin)
        found.append(exposure(nll[place], np.delete(nll, place)))
    return found


def _length(secrets: Secrets) -> int:
    """Of a row that holds any of the sentences."""
    return max(len(before) for before, _ in sentences(secrets)) + secrets.digits


def program(
    model: DecoderConfig, params: Any, secrets: Secrets, mesh: Mesh, *, batch_size: int
) -> Mapping[str, Any]:
    """What `exposures` runs, for a plan."""
    batch = shapes.text(batch_size, _length(secrets))
    params = {"model": params, "aux": {}}
    made = evaluation.program(_step(model), params, {}, {}, batch, mesh=mesh)
    return {"exposure": made}
