"""The losses of the benchmark, each with the weight that it was published with."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from kd_jax.gradients import surgery, yield_to_first
from kd_jax.losses.contrastive import other_classes
from kd_jax.losses.features import hint
from kd_jax.losses.logits import amplified_target
from kd_jax.objectives.distil import labels, soft_labels
from kd_jax.objectives.parts import Part, Remembering, scheduled_part, warm_up
from kd_jax.objectives.transfer import heads, hints, maps, probabilistic, relations
from kd_jax.objectives.transfer import logits as on_logits
from kd_jax.objectives.transfer.attached import factor_transfer
from kd_jax.objectives.transfer.contrastive import contrastive
from kd_jax.objectives.transfer.self_supervised import augmented_labels, on_plain, view_relations
from kd_jax.objectives.transfer.tokens import cooling, token_graph
from kd_jax.types import GradientRule

Parts = Mapping[str, Part | Remembering]


class Here(NamedTuple):
    """What a loss is built from.

    student, teacher: taps on maps, from the input on, as many of one as of the other. width: of
    the teacher's deepest map, as wide as the student's. steps: of the training. labels, means: of
    training images, their classes [N] and the teacher's mean features [C, D], read when called.
    """

    student: tuple[str, ...]
    teacher: tuple[str, ...]
    width: int
    steps: int
    labels: Callable[[], np.ndarray]
    means: Callable[[], jax.Array]


class Method(NamedTuple):
    """A loss. parts: "ce" is the loss on labels, the others are what is distilled. same, cross:
    accuracy in published tables, resnet56 -> resnet20 and vgg13 -> MobileNetV2 on CIFAR-100. of:
    the stage whose stored outputs are read."""

    label: str
    parts: Callable[[Here], Parts]
    same: float | None = None
    cross: float | None = None
    gradient: GradientRule | None = None
    of: str = "teacher"


def _beside(*parts: Callable[[Here], Part | Remembering], ce: float = 1.0):
    """Label loss and the parts."""
    return lambda here: {
        "ce": labels(ce),
        **{f"part_{i}": part(here) for i, part in enumerate(parts)},
    }


def _warm(part: Part | Remembering) -> Callable[[Here], Remembering]:
    """Over a twelfth of the steps: 20 of 240 epochs."""
    return lambda here: scheduled_part(part, warm_up(max(1, here.steps // 12)))


POOLED = ("pooled", "pooled")
SOFT = soft_labels(0.9, temperature=4.0)
# Published figures: the tables of CRD's and of DKD's released code, and of KD++'s for ND.
METHODS = {
    "ce": Method("labels alone", _beside(), 69.06, 64.60),
    "kd": Method("KD", _beside(lambda _: SOFT, ce=0.1), 70.66, 67.37),
    "twin": Method(
        "KD from a twin (Tf-KD)",
        _beside(lambda _: soft_labels(0.9, temperature=1.0), ce=0.1),
        of="twin",
    ),
    "fitnet": Method(
        "FitNet", _beside(lambda h: hints.map_hint(h.student[-1], h.teacher[-1])), 69.21, 64.14
    ),
    "at": Method("AT", _beside(lambda h: maps.attention(h.student, h.teacher)), 70.55, 59.40),
    "sp": Method(
        "SP", _beside(lambda h: relations.similarities(h.student[-1], h.teacher[-1])), 69.67, 66.30
    ),
    "cc": Method("CC", _beside(lambda _: relations.correlation_congruence(*POOLED)), 69.63, 64.86),
    "vid": Method(
        "VID",
        lambda h: {
            "ce": labels(),
            **{
                f"part_{i}": probabilistic.variational(*pair)
                for i, pair in enumerate(zip(h.student, h.teacher, strict=True))
            },
        },
        70.38,
        65.56,
    ),
    "rkd": Method(
        "RKD",
        _beside(lambda _: relations.distances(*POOLED), lambda _: relations.angles(*POOLED)),
        69.61,
        64.52,
    ),
    "pkt": Method("PKT", _beside(lambda _: relations.probabilities(*POOLED)), 70.34, 67.13),
    "ab": Method(
        "AB", _beside(lambda h: hints.activation_boundary(h.student, h.teacher)), 69.47, 66.06
    ),
    "ft": Method(
        "FT",
        _beside(lambda h: factor_transfer(h.student[-1], "factor")),
        69.84,
        61.78,
        of="factor",
    ),
    "fsp": Method(
        "FSP",
        _beside(
            lambda h: maps.flow(
                tuple(zip(h.student, h.student[1:], strict=False)),
                tuple(zip(h.teacher, h.teacher[1:], strict=False)),
            )
        ),
        69.95,
    ),
    "crd": Method(
        "CRD",
        _beside(
            lambda h: contrastive(
                *POOLED,
                examples=len(h.labels()),
                negatives=other_classes(h.labels(), min(1024, len(h.labels()) // 4)),
            )
        ),
        71.16,
        69.73,
    ),
    "l2": Method("CSE-L2", _beside(lambda _: maps.matched(hint, POOLED[:1], POOLED[1:], 15.0))),
    "pad": Method("PAD", _beside(lambda _: probabilistic.precision_weighted(*POOLED))),
    "srd": Method("SRD", _beside(lambda _: soft_labels(), lambda _: hints.log_power(*POOLED))),
    "review": Method(
        "ReviewKD", _beside(lambda h: maps.review(h.student, h.teacher, width=h.width))
    ),
    "sskd": Method(
        "SSKD",
        lambda _: {
            "ce": on_plain(labels()),
            "plain": on_plain(soft_labels(0.9, temperature=4.0)),
            "relations": view_relations("pooled", "views", 10.0),
            "turned": augmented_labels(2.7),
        },
        of="views",
    ),
    "affinity": Method("affinity", _beside(lambda h: maps.affinity(h.student[-1], h.teacher[-1]))),
    "ickd": Method(
        "ICKD and KD",
        _beside(
            lambda h: maps.channel_similarity(h.student[-1], h.teacher[-1]), lambda _: SOFT, ce=0.1
        ),
    ),
    "dkd": Method("DKD", _beside(_warm(on_logits.decoupled())), 71.97, 69.71),
    "dist": Method("DIST", _beside(lambda _: on_logits.correlated(2.0))),
    "standard": Method(
        "KD of standardised logits", _beside(lambda _: on_logits.standardised_labels(), ce=0.1)
    ),
    "levels": Method("MLKD, one view", _beside(lambda _: on_logits.levels(), ce=0.1)),
    "skd": Method(
        "SKD",
        _beside(lambda _: soft_labels(1 / 16, temperature=4.0), lambda _: on_logits.directions()),
    ),
    "nd": Method(
        "ND and KD",
        _beside(
            _warm(soft_labels(1.0, temperature=4.0)),
            lambda h: heads.norm_direction(*POOLED, h.means()),
        ),
        72.53,
    ),
    "dual_head": Method(
        "dual head",
        _beside(lambda _: heads.auxiliary_head("pooled", hidden=200)),
        gradient=surgery(("ce", "part_0"), yield_to_first),
    ),
    "ofa": Method(
        "OFA",
        _beside(
            lambda _: on_logits.soft(amplified_target),
            lambda h: heads.exits(h.student, (2, 1, 0), width=h.width),
        ),
    ),
    "trg": Method(
        "TRG and KD (UNVERIFIED form)",
        _beside(
            lambda _: SOFT,
            lambda h: token_graph(
                h.student[-1], h.teacher[-1], temperature=cooling(1.0, 0.1, h.steps), tokens=128
            ),
            ce=0.1,
        ),
    ),
}
