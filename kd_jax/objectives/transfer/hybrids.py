"""Module-to-module distillation: two modules in the same slot of one frozen meta model.

    teacher, student = hybrid(meta, big, slot), hybrid(meta, small, slot)
    objective = module_to_module(student, teacher)

with frozen["meta"], the meta model's weights, and frozen["teacher"], the teacher module's; what is
trained is the student's module alone. Every slot is a training of its own; the students' modules
together (`models.modular.modular`) are trained on labels last.
"""

from kd_jax.losses.classification import cross_entropy
from kd_jax.losses.divergences import forward_kl
from kd_jax.objectives.distil import distil, labels
from kd_jax.objectives.parts import Part
from kd_jax.objectives.transfer.logits import soft
from kd_jax.types import Frozen, Model, Objective, Params, Policy, PyTree


def trained_in_meta(params: Params, frozen: Frozen) -> PyTree:
    """The policy of the student's hybrid: what is trained, in frozen["meta"]."""
    return {"meta": frozen["meta"], "module": params["model"]}


def teacher_in_meta(params: Params, frozen: Frozen) -> PyTree:
    """The policy of the teacher's hybrid: frozen["teacher"], in frozen["meta"]."""
    return {"meta": frozen["meta"], "module": frozen["teacher"]}


def soft_per_class(scale: float = 1.0, *, temperature: float = 1.0) -> Part:
    """scale * T^2 KL(teacher || student) / C, a mean over examples.

    C times less than `distil.soft_labels`: the summed divergence over the number of logits, B C.
    """

    def loss(student, teacher, targets):
        kl = forward_kl(student, teacher, temperature=temperature)
        return kl / student.shape[-1]

    return soft(loss, scale * temperature**2)


def teachers_choice(scale: float = 1.0) -> Part:
    """scale * cross-entropy with the teacher's most likely class, a mean over examples."""
    return soft(lambda s, t, y: cross_entropy(s, t.argmax(-1)), scale)


def module_to_module(
    student: Model,
    teacher: Model,
    alpha: float = 0.5,
    *,
    matching: Part | None = None,
    policy: Policy = trained_in_meta,
    teacher_policy: Policy = teacher_in_meta,
) -> Objective:
    """(1 - alpha) CE + alpha * matching of two hybrids (`models.modular.hybrid`): m2mKD.

    matching: `soft_per_class()` by default (alpha times its scale), or `teachers_choice()`, the
    hard form. Gradients run through the meta model's upper stages and reach the student's module,
    its linear stitches with it. Terms "ce" and "kd".
    Lo et al. 2024, arXiv 2402.16918, by released code: alpha 0.5, temperature 1, soft.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: got {alpha}, takes numbers in [0, 1]")
    inner = soft_per_class() if matching is None else matching

    def scaled(aux, student, teacher, batch):
        term = inner.loss(aux, student, teacher, batch)
        return term._replace(scale=alpha * term.scale)

    parts = {"ce": labels(1 - alpha), "kd": inner._replace(loss=scaled)}
    return distil(student, teacher, parts, policy=policy, teacher_policy=teacher_policy)
