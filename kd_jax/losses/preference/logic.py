"""Preference losses as logic: propositional formulas, and the losses that model counting makes.

A proposition says "this completion is a valid response", and is true with the probability a model
gives the completion, independently of the others. A preference is a statement about such
propositions, its loss -log of the probability that it holds, given that it or its opposite does:
rho = log WMC(it) - log WMC(its opposite), and the loss is -log sigmoid(rho), where the weighted
model count WMC(F) is the sum over worlds in which F is true of their probabilities.

Edit a formula, and there is another loss. Reference: Richardson et al. 2024, arXiv 2412.17696; the
formulas of CE, unlikelihood, CPO and ORPO are checked by counting, those of the constrained and
unconstrained CPO and of DPO are UNVERIFIED as table cells of the paper.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from kd_jax.losses._logs import log1mexp
from kd_jax.losses.preference.links import logistic
from kd_jax.losses.preference.pairs import Pairs, log_ratios, without_reference


class Var(NamedTuple):
    """A proposition, by its name."""

    name: str


class Constant(NamedTuple):
    value: bool


class Not(NamedTuple):
    of: "Formula"


class And(NamedTuple):
    left: "Formula"
    right: "Formula"


class Or(NamedTuple):
    left: "Formula"
    right: "Formula"


class Implies(NamedTuple):
    left: "Formula"
    right: "Formula"


Formula = Var | Constant | Not | And | Or | Implies
TRUE, FALSE = Constant(True), Constant(False)


class Structure(NamedTuple):
    """A preference: `core` P is to hold.

    conditions P_C: worlds in which it is false are not counted at all.
    facts P_A: worlds in which it is true count for P and for its opposite.
    """

    core: Formula
    conditions: Formula = TRUE
    facts: Formula = FALSE


def evaluate(formula: Formula, world: Mapping[str, bool]) -> bool:
    """Whether the formula is true where its propositions are as `world` says."""
    match formula:
        case Var(name):
            return world[name]
        case Constant(value):
            return value
        case Not(of):
            return not evaluate(of, world)
        case And(left, right):
            return evaluate(left, world) and evaluate(right, world)
        case Or(left, right):
            return evaluate(left, world) or evaluate(right, world)
        case Implies(left, right):
            return not evaluate(left, world) or evaluate(right, world)


def names_of(formula: Formula) -> frozenset[str]:
    """The names of its propositions."""
    match formula:
        case Var(name):
            return frozenset({name})
        case Constant():
            return frozenset()
        case _:
            return frozenset().union(*map(names_of, formula))


def worlds_of(*formulas: Formula) -> Iterator[dict[str, bool]]:
    """All worlds of the formulas' propositions, 2**n of them."""
    names = sorted(frozenset().union(*map(names_of, formulas)))
    for values in itertools.product((False, True), repeat=len(names)):
        yield dict(zip(names, values, strict=True))


def entails(premise: Formula, conclusion: Formula) -> bool:
    """Whether the conclusion is true in every world in which the premise is."""
    worlds = worlds_of(premise, conclusion)
    return all(evaluate(conclusion, world) for world in worlds if evaluate(premise, world))


def log_count(formula: Formula, log_p: Mapping[str, jax.Array]) -> jax.Array:
    """log WMC(formula), f32, nats; of the shape of the log-probabilities.

    log_p: of each proposition that occurs, at most 0, all of one shape. -inf where the formula has
    no model. A sum of probabilities of worlds in log space, so that nothing underflows or cancels;
    a probability of 1 counts as 1 - 1e-6.
    """
    shape = jnp.broadcast_shapes(*(x.shape for x in log_p.values()))
    true = {name: log_p[name].astype(jnp.float32) for name in names_of(formula)}
    false = {name: log1mexp(x) for name, x in true.items()}
    models = [
        sum((true if value else false)[name] for name, value in world.items()) + jnp.zeros(shape)
        for world in worlds_of(formula)
        if evaluate(formula, world)
    ]
    return jax.nn.logsumexp(jnp.stack(models), 0) if models else jnp.full(shape, -jnp.inf)


def wins(structure: Structure) -> Formula:
    """(P or P_A) and P_C."""
    return And(Or(structure.core, structure.facts), structure.conditions)


def loses(structure: Structure) -> Formula:
    """(not P or P_A) and P_C."""
    return And(Or(Not(structure.core), structure.facts), structure.conditions)


def structure_of(wins: Formula, loses: Formula) -> Structure:
    """The structure of which these are `wins` and `loses`: every pair of formulas has one."""
    return Structure(wins, Or(wins, loses), And(wins, loses))


def stricter(one: Structure, other: Structure) -> bool:
    """Whether `one` wins only where `other` does, and loses wherever `other` does.

    Then its rho is nowhere larger, and its loss nowhere smaller, than the other's.
    """
    return entails(wins(one), wins(other)) and entails(loses(other), loses(one))


def log_ratio(structure: Structure, log_p: Mapping[str, jax.Array]) -> jax.Array:
    """rho = log WMC(wins) - log WMC(loses); infinite where one of them has no model."""
    return log_count(wins(structure), log_p) - log_count(loses(structure), log_p)


W, L = Var("chosen"), Var("rejected")
REFERENCE_W, REFERENCE_L = Var("reference_chosen"), Var("reference_rejected")


def loss_of(
    structure: Structure,
    *,
    beta: ArrayLike = 1.0,
    link: Callable[[jax.Array], jax.Array] = logistic,
) -> Callable[[Pairs], jax.Array]:
    """Pairs -> link(beta rho), f32 [P]: the loss of a structure over W, L and the reference's two.

    Propositions have the probabilities of the pairs' log-probabilities as they are: of sums over
    tokens 1 - p is 1 and constraints are not felt, so that `per_token` pairs are the field's use.
    beta 1. link: of `links`; the hinge of CPO is SLiC. ValueError if the structure names other
    propositions, or can neither win nor lose.
    """
    named = names_of(wins(structure))
    if unknown := named - {x.name for x in (W, L, REFERENCE_W, REFERENCE_L)}:
        raise ValueError(f"structure: got propositions {sorted(unknown)}, takes W, L and reference")
    if entails(Or(wins(structure), loses(structure)), FALSE):
        raise ValueError("structure: got one that no world satisfies or contradicts")

    def loss(pairs: Pairs) -> jax.Array:
        chosen, rejected = log_ratios(without_reference(pairs))
        log_p = {W.name: chosen, L.name: rejected}
        if named & {REFERENCE_W.name, REFERENCE_L.name}:
            c, r = log_ratios(pairs)
            log_p |= {REFERENCE_W.name: chosen - c, REFERENCE_L.name: rejected - r}
        return link(log_ratio(structure, log_p) * beta)

    return loss


_EITHER, _BOTH = Or(W, L), And(W, L)
_PREFERRED, _OPPOSED = And(REFERENCE_L, W), And(REFERENCE_W, L)

# exp(rho), w and l the probabilities of W and L:
CE = Structure(W)  # w / (1 - w)
UNLIKELIHOOD = Structure(And(W, Not(L)))  # w (1 - l) / (1 - w (1 - l)), of CE + unlikelihood
CPO = Structure(Implies(L, W), _EITHER, _BOTH)  # w / l
ORPO = Structure(Implies(L, W), And(_EITHER, Not(_BOTH)))  # w (1 - l) / (l (1 - w))
CONSTRAINED_CPO = Structure(Implies(L, W), _EITHER)  # w / (l (1 - w))
UNCONSTRAINED_CPO = Structure(Implies(L, W))  # (1 - l (1 - w)) / (l (1 - w))
# (w / w_ref) / (l / l_ref).
DPO = Structure(Implies(_OPPOSED, _PREFERRED), Or(_PREFERRED, _OPPOSED), And(_PREFERRED, _OPPOSED))
