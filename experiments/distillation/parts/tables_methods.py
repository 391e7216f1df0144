"""What a student of image_tables loses by each method, with the weights that papers give."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax

from experiments.distillation.common.classifiers import Classifier, depths
from kd_jax.launch.config import check_positive, identity
from kd_jax.losses.logits import amplified_target, soft_cross_entropy
from kd_jax.models.mixer import MixerConfig
from kd_jax.models.resnet import ResNetConfig
from kd_jax.models.vit import ViTConfig
from kd_jax.objectives.distil import distil, soft_labels
from kd_jax.objectives.parts import Part, Remembering, scheduled_part, warm_up
from kd_jax.objectives.supervise import supervise
from kd_jax.objectives.transfer.heads import exits
from kd_jax.objectives.transfer.logits import correlated, decoupled, soft
from kd_jax.types import Batch, Model, ModelOutput, Objective, Term, weighted_sum

Method = Literal["ce", "kd", "dkd", "dist", "ofa"]
LABELS: Mapping[Method, str] = {
    "ce": "labels",
    "kd": "KD",
    "dkd": "DKD",
    "dist": "DIST",
    "ofa": "OFA",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Soft:
    """KD: hard * labels + soft * T^2 * KL(teacher || student) at temperature T."""

    hard: float = 0.1
    """Weight of the labels."""
    soft: float = 0.9
    """Weight of the teacher."""
    temperature: float = 4.0
    """Softens both."""

    def __post_init__(self):
        check_positive(self, "soft", "temperature")
        if self.hard < 0:
            raise ValueError(f"hard: got {self.hard}, takes numbers from 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoupled:
    """DKD: labels + T^2 * (KL of the target against the rest + others * KL among the rest)."""

    others: float = 8.0
    """Weight of the KL among the classes that are not the target."""
    temperature: float = 4.0
    """Softens both sides."""
    warm_up: int = 20
    """Epochs in which the teacher's weight rises from 0 to 1."""

    def __post_init__(self):
        check_positive(self, "others", "temperature", "warm_up")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Correlated:
    """DIST: labels + T^2 * (inter * (1 - corr. over classes) + intra * (1 - corr. in a class))."""

    inter: float = 2.0
    """Weight of the correlation over classes."""
    intra: float = 2.0
    """Weight of the correlation over the examples of a batch."""
    temperature: float = 4.0
    """Softens both sides."""

    def __post_init__(self):
        check_positive(self, "inter", "intra", "temperature")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Losses:
    """Weights of each method; the defaults are those of CIFAR-100."""

    smoothing: float = 0.0
    """Share of every label that is spread over all classes."""
    kd: Soft = Soft()
    dkd: Decoupled = Decoupled()
    dist: Correlated = Correlated()
    ofa: float = 1.5
    """OFA's power, 1 or more: how much it adds to the teacher's probability of the target."""

    def __post_init__(self):
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing: got {self.smoothing}, takes numbers from 0, below 1")
        if self.ofa < 1:
            raise ValueError(f"ofa: got {self.ofa}, takes numbers from 1")


def objective(
    method: Method,
    losses: Losses,
    student: tuple[Classifier, Model],
    teacher: tuple[Classifier, Model],
    epoch: float,
) -> Objective:
    """Of one student. student, teacher: a config and its model. epoch: its steps."""
    if method == "ce":
        return supervise(student[1], {"ce": functools.partial(labelled, losses.smoothing)})
    parts = _parts(method, losses, student[0], teacher[0], epoch)
    return distil(student[1], teacher[1], parts)


def depends(method: Method, losses: Losses) -> dict[str, Any]:
    """What of `losses` a method's student depends on."""
    found = identity(losses)
    own = {} if method == "ce" else {method: found[method]}
    return {"method": method, "smoothing": found["smoothing"], **own}


def labelled(smoothing: float, output: ModelOutput, batch: Batch, scale: float = 1.0) -> Term:
    """scale * the cross-entropy with (1 - smoothing) one-hot + smoothing / C, over examples."""
    z = output.head.logits()
    wanted = jax.nn.one_hot(batch["targets"], z.shape[-1]) * (1 - smoothing)
    values = soft_cross_entropy(z, wanted + smoothing / z.shape[-1])
    return weighted_sum(values, batch["weights"], scale)


def _parts(
    method: Method, losses: Losses, student: Classifier, teacher: Classifier, epoch: float
) -> dict[str, Part | Remembering]:
    def labels(scale: float = 1.0) -> Part:
        return Part(lambda aux, s, t, batch: labelled(losses.smoothing, s, batch, scale))

    if method == "kd":
        kd = losses.kd
        return {
            "ce": labels(kd.hard),
            "kd": soft_labels(kd.soft, temperature=kd.temperature),
        }
    if method == "dkd":
        dkd = losses.dkd
        part = decoupled(others=dkd.others, temperature=dkd.temperature)
        rise = warm_up(max(1, round(dkd.warm_up * epoch)))
        return {"ce": labels(), "dkd": scheduled_part(part, rise)}
    if method == "dist":
        dist = losses.dist
        part = correlated(inter=dist.inter, intra=dist.intra, temperature=dist.temperature)
        return {"ce": labels(), "dist": part}
    taps = depths(student)
    wide = max(width(student), width(teacher))
    later = tuple(reversed(range(len(taps))))
    return {
        "ce": labels(),
        "last": soft(functools.partial(amplified_target, power=losses.ofa)),
        "exits": exits(taps, later, width=wide, power=losses.ofa),
    }


def width(network: Classifier) -> int:
    """Of the features that the classifying layer of a ResNet, ViT or Mixer reads."""
    match network:
        case ResNetConfig():
            return network.widths[-1]
        case ViTConfig() | MixerConfig():
            return network.width
        case _:
            raise ValueError(f"teacher: got {_kind(network)}, ofa takes ResNets, ViTs and Mixers")


def check_ofa(student: Classifier, teacher: Classifier) -> None:
    """ValueError for networks that OFA is not written for: its exits are on a ResNet's stages."""
    if not isinstance(student, ResNetConfig):
        raise ValueError(f"student: got {_kind(student)}, ofa takes ResNets")
    width(teacher)


def _kind(network: Classifier) -> str:
    return type(network).__name__
