"""Parts on class logits: decoupled, standardised, correlated (DIST), on several levels (MLKD)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kd_jax.losses.divergences import decoupled_kl, forward_kl
from kd_jax.losses.logits import (
    batch_correlation,
    class_correlation,
    direction_distance,
    inter_class,
    intra_class,
    standardised,
)
from kd_jax.objectives.parts import Part
from kd_jax.objectives.transfer.weighing import present, whole
from kd_jax.types import Batch, ModelOutput, Term, weighted_sum


def soft(loss: Callable[[jax.Array, jax.Array, jax.Array], jax.Array], scale: float = 1.0) -> Part:
    """scale * loss(student's logits, teacher's logits, targets) [B], a mean over examples."""

    def part(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        values = loss(student.head.logits(), teacher.head.logits(), batch["targets"])
        return weighted_sum(values, batch["weights"], scale)

    return Part(part)


def decoupled(
    scale: float = 1.0, *, target: float = 1.0, others: float = 8.0, temperature: float = 4.0
) -> Part:
    """scale * T^2 * `losses.divergences.decoupled_kl`, a mean over examples: DKD.

    others: 8, or 2 for some pairs of CIFAR's networks. The paper warms it up over 20 epochs:
    `scheduled_part(decoupled(), warm_up(steps))`. Zhao et al. 2022, arXiv 2203.08679.
    """
    return soft(
        lambda s, t, y: decoupled_kl(
            s, t, y, target=target, others=others, temperature=temperature
        ),
        scale * temperature**2,
    )


def standardised_labels(scale: float = 9.0, *, temperature: float = 2.0) -> Part:
    """scale * T^2 * KL(teacher || student) at T, both sides' logits `standardised` first.

    Sun et al. 2024, arXiv 2403.01427: 9 beside 0.1 of the label loss, which is on raw logits.
    """
    return soft(
        lambda s, t, y: forward_kl(standardised(s), standardised(t), temperature=temperature),
        scale * temperature**2,
    )


def correlated(
    scale: float = 1.0, *, inter: float = 1.0, intra: float = 1.0, temperature: float = 1.0
) -> Part:
    """scale * T^2 * (inter * mean_b `inter_class` + intra * mean_c `intra_class`): DIST.

    Within a class all examples that have a weight count alike; fewer than three say nothing there.
    Huang et al. 2022, arXiv 2205.10536: T 1 on ImageNet, with a scale of 2 in torchdistill; T 4
    and 2, 2 for CIFAR (UNVERIFIED).
    """

    def part(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        s, t, here = student.head.logits(), teacher.head.logits(), present(batch)
        rows = weighted_sum(inter_class(s, t, temperature=temperature), batch["weights"]).value
        classes = intra_class(s, t, here, temperature=temperature).mean()
        return whole(inter * rows + intra * classes, batch, scale * temperature**2)

    return Part(part, whole_batch=True)


def directions(scale: float = 1.0, *, ridge: float = 0.1) -> Part:
    """scale * the mean over examples of `losses.logits.direction_distance`: SKD.

    Beside it SKD has KL at temperature 4 without the factor T^2:
    `soft_labels(1 / 16, temperature=4.0)`.
    """

    def part(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        s, t, here = student.head.logits(), teacher.head.logits(), present(batch)
        values = direction_distance(s, t, here, ridge=ridge)
        return weighted_sum(values, batch["weights"], scale)

    return Part(part, whole_batch=True)


def levels(
    scale: float = 0.9,
    *,
    temperatures: tuple[float, ...] = (4.0, 3.0, 5.0, 2.0, 6.0),
    masked: bool = True,
) -> Part:
    """scale * sum_T (T^2 KL + batch correlation + class correlation): MLKD, on one view.

    The two correlations have no T^2. masked: KL and batch correlation are multiplied by
    the share of examples whose teacher's largest probability is at most the batch's median, and
    class correlation by the share of classes whose summed probability is at most theirs, about a
    half each. So does the released code, where a mask meets losses that are already means; a mask
    of examples seems meant, but is not what was measured. masked=False: without these factors.
    The method adds the label loss of both views, and KL (`soft_labels` at each T) on a strong view:
    a second `distil` on the batch of strong views. Released code has the weak view's logits there
    at T 2 and 6. Jin et al. 2023, CVPR.
    """

    def part(aux, student: ModelOutput, teacher: ModelOutput, batch: Batch) -> Term:
        s, t, here = student.head.logits(), teacher.head.logits(), present(batch)
        p = jax.nn.softmax(t)
        of_rows = _share_to_median(jnp.where(here, p.max(-1), jnp.nan))
        of_classes = _share_to_median(jnp.where(here[:, None], p, 0.0).sum(0))
        if not masked:
            of_rows = of_classes = jnp.ones(())
        value = jnp.zeros(())
        for tau in temperatures:
            kl = forward_kl(s, t, temperature=tau) * tau**2
            kl += batch_correlation(s, t, here, temperature=tau)
            rows = weighted_sum(kl, batch["weights"]).value
            classes = class_correlation(s, t, here, temperature=tau).mean()
            value += of_rows * rows + of_classes * classes
        return whole(value, batch, scale)

    return Part(part, whole_batch=True)


def _share_to_median(x: jax.Array) -> jax.Array:
    """The share of the entries that are at most the median; NaN entries are left out."""
    known = ~jnp.isnan(x)
    return (x <= jnp.nanmedian(x)).sum() / jnp.maximum(known.sum(), 1)
