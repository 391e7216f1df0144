"""Pretrained models of unlike knowledge, their ordered pairs, and ways to transfer it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.distillation.common.pictures import part
from kd_jax.launch.sharding import shardings_of, with_shardings
from kd_jax.launch.weights import Weights
from kd_jax.objectives.distil import labels, soft_labels
from kd_jax.objectives.parts import Part
from kd_jax.objectives.transfer.partition import partitioned, surer

PyTree = Any
Size = Literal["narrow", "wide"]
SIZES: tuple[Size, ...] = ("narrow", "wide")


class Member(NamedTuple):
    """learned: of the images that not all members know, the classes below 5, from 5 on, or all."""

    label: str
    size: Size
    learned: Literal["all", "low", "high", "none"]


Name = Literal["narrow_all", "narrow_low", "narrow_few", "wide_all", "wide_high", "wide_few"]
MEMBERS: dict[Name, Member] = {
    "narrow_all": Member("narrow, all images", "narrow", "all"),
    "narrow_low": Member("narrow, more of 0-4", "narrow", "low"),
    "narrow_few": Member("narrow, few images", "narrow", "none"),
    "wide_all": Member("wide, all images", "wide", "all"),
    "wide_high": Member("wide, more of 5-9", "wide", "high"),
    "wide_few": Member("wide, few images", "wide", "none"),
}


class Pair(NamedTuple):
    student: Name
    teacher: Name


class Arm(NamedTuple):
    """slow: what is measured are weights that follow the trained ones (momentum interpolation)."""

    label: str
    parts: Mapping[str, Part]
    slow: bool = False


ArmName = Literal["kl", "xe", "mcl", "dp", "dp_free"]
_WITH_LABELS = {"ce": labels(0.5), "kl": soft_labels(0.5)}
ARMS: dict[ArmName, Arm] = {
    "kl": Arm("KL", {"kl": soft_labels()}),
    "xe": Arm("KL and labels", _WITH_LABELS),
    "mcl": Arm("KL and labels, slow weights", _WITH_LABELS, slow=True),
    "dp": Arm("partition, by labels", {"kl": partitioned()}),
    "dp_free": Arm("partition, without labels", {"kl": partitioned(chosen=surer)}),
}


def pairs(members: Sequence[Name], size: Size) -> list[Pair]:
    """All ordered pairs whose student is of this size."""
    return [
        Pair(student, teacher)
        for student in members
        if MEMBERS[student].size == size
        for teacher in members
        if teacher != student
    ]


def known(examples: Mapping[str, np.ndarray], shared: int, learned: str) -> dict[str, np.ndarray]:
    """The images that a member learns: the first `shared` ones, and those of its classes."""
    low = examples["targets"] < 5
    wanted = {"all": low | ~low, "low": low, "high": ~low, "none": low & ~low}[learned]
    return part(dict(examples), np.flatnonzero(wanted | (np.arange(len(low)) < shared)))


def steps(learned: str, whole: int, shared: int, images: int) -> int:
    """Training steps of a member, where `whole` are those for all images: as many epochs."""
    share = {"all": 1.0, "low": 0.5, "high": 0.5, "none": 0.0}[learned]
    return max(1, round(whole * (shared + share * (images - shared)) / images))


def chosen(members: Sequence[Weights], which: Sequence[tuple[int, int]]) -> Weights:
    """Weights [S, ...]: of each (member, pool) in `which`, from weights [pools, ...] of members."""
    member, pool = np.array(which).T

    def choose(*trees: PyTree) -> PyTree:
        return jax.tree.map(lambda *x: jnp.stack(x)[member, pool], *trees)

    abstract = [each.abstract["model"] for each in members]

    def make(placed: PyTree) -> PyTree:
        shardings = shardings_of(placed)
        anywhere = jax.tree.leaves(shardings)[0]

        def whole(abstract: PyTree) -> PyTree:
            return with_shardings(abstract, jax.tree.map(lambda _: anywhere, abstract))

        trees = [each.make(whole(each.abstract)) for each in members]
        return jax.jit(choose, out_shardings=shardings)(*(tree["model"] for tree in trees))

    return Weights(jax.eval_shape(choose, *abstract), make)
