"""The losses of the symbolic view, derived from their formulas."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.preference_goldens import BATCH, GOLDEN

from kd_jax.losses._logs import log1mexp
from kd_jax.losses.preference import free, links, logic, margin, regularised
from kd_jax.losses.preference.logic import FALSE, TRUE, And, Implies, L, Not, Or, Var, W, loss_of
from kd_jax.losses.preference.pairs import Pairs, per_token

# (structure, exp(rho) of the two probabilities in closed form, the loss at 0.3 and 0.6)
TABLE = {
    "CE": (logic.CE, lambda p, q: p / (1 - p), 1.203973),
    "CEUnl": (logic.UNLIKELIHOOD, lambda p, q: p * (1 - q) / (1 - p * (1 - q)), 2.120264),
    "CPO": (logic.CPO, lambda p, q: p / q, 1.098612),
    "ORPO": (logic.ORPO, lambda p, q: p * (1 - q) / (q * (1 - p)), 1.504077),
    "cCPO": (logic.CONSTRAINED_CPO, lambda p, q: p / (q * (1 - p)), 0.875469),
    "unCPO": (logic.UNCONSTRAINED_CPO, lambda p, q: (1 - q * (1 - p)) / (q * (1 - p)), 0.544727),
}
MEANS = per_token(BATCH)
GRID = np.linspace(0.01, 0.99, 50)
w_grid, l_grid = (x.ravel() for x in np.meshgrid(GRID, GRID))
LOG_P = {"chosen": jnp.log(w_grid), "rejected": jnp.log(l_grid)}
WORLDS = list(logic.worlds_of(And(W, L)))


def formula_of(table):
    """The formula over W and L that is true where `table`, one bool a world, says."""
    found = FALSE
    for true, world in zip(table, WORLDS, strict=True):
        if true:
            here = TRUE
            for name, value in world.items():
                here = And(here, Var(name) if value else Not(Var(name)))
            found = Or(found, here)
    return found


@pytest.mark.parametrize("name", TABLE)
def test_the_table(name):
    structure, closed, at = TABLE[name]
    rho = logic.log_ratio(structure, LOG_P)
    np.testing.assert_allclose(rho, np.log(closed(w_grid, l_grid)), rtol=1e-4, atol=1e-5)
    one = Pairs(jnp.log(jnp.array([0.3])), jnp.log(jnp.array([0.6])))
    np.testing.assert_allclose(loss_of(structure)(one), at, rtol=1e-5)
    case = GOLDEN["losses"][f"logic_{name}"]
    value = loss_of(structure)(MEANS)
    np.testing.assert_allclose(value, case["per_pair"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(value.mean(), case["mean"], rtol=1e-5, atol=1e-5)

    def total(chosen, rejected):
        moved = BATCH._replace(policy_chosen=chosen, policy_rejected=rejected)
        return loss_of(structure)(per_token(moved)).sum()

    grads = jax.grad(total, argnums=(0, 1))(*BATCH[:2])
    np.testing.assert_allclose(-grads[0], case["d_chosen"], rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(grads[1], case["d_rejected"], rtol=1e-5, atol=2e-6)


def test_losses_of_the_zoo_come_from_formulas():
    def same(structure, expected, pairs=MEANS, **how):
        np.testing.assert_allclose(loss_of(structure, **how)(pairs), expected, rtol=1e-5, atol=1e-6)

    same(logic.CE, regularised.sft(MEANS))
    same(logic.CPO, free.cpo(MEANS, beta=1.0))
    same(logic.CPO, free.cpo(BATCH, beta=0.1), BATCH, beta=0.1)
    same(logic.ORPO, free.orpo(BATCH, beta=1.0))
    same(logic.CPO, free.slic(MEANS, regulariser=0.0), link=links.hinge)
    manual = lambda z: links.logistic(z - 1.0)  # noqa: E731, a reference of a constant ratio
    same(logic.CPO, free.simpo(BATCH, beta=2.0, gamma=1.0), beta=2.0, link=manual)
    # Four propositions: the reference's two join in.
    same(logic.DPO, margin.dpo(BATCH, beta=0.1), BATCH, beta=0.1)
    same(logic.DPO, margin.dpo(MEANS, beta=1.0))
    # Unlikelihood: -log w - log(1 - l).
    l_term = -log1mexp(MEANS.policy_rejected)
    same(logic.UNLIKELIHOOD, regularised.sft(MEANS) + l_term)


def test_identities_between_the_losses():
    rho = {name: logic.log_ratio(row[0], LOG_P) for name, row in TABLE.items()}
    logit = {name: np.log(x) - np.log1p(-x) for name, x in (("w", w_grid), ("l", l_grid))}
    np.testing.assert_allclose(rho["ORPO"], logit["w"] - logit["l"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(rho["cCPO"], rho["ORPO"] - np.log1p(-l_grid), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(rho["cCPO"], rho["CPO"] - np.log1p(-w_grid), rtol=1e-4, atol=1e-5)
    for strict, lax in (("CPO", "cCPO"), ("ORPO", "cCPO"), ("cCPO", "unCPO")):
        assert logic.stricter(TABLE[strict][0], TABLE[lax][0])
        assert (rho[strict] <= rho[lax] + 1e-6).all()


def test_the_structures_of_two_propositions_and_their_order():
    formulas = [formula_of(table) for table in itertools.product((False, True), repeat=4)]
    tables = {tuple(logic.evaluate(f, world) for world in WORLDS) for f in formulas}
    assert len(tables) == 16
    # Worlds' probabilities are summed once for each formula.
    counts = [np.asarray(logic.log_count(f, LOG_P), np.float64) for f in formulas]
    below = np.array([[logic.entails(a, b) for b in formulas] for a in formulas])
    np.testing.assert_allclose(np.exp(counts[-1]), 1.0, rtol=1e-5)
    pairs = list(itertools.product(range(16), repeat=2))
    assert len(pairs) == 256
    structures = [logic.structure_of(formulas[i], formulas[j]) for i, j in pairs]
    kinds = set()
    for structure in structures:
        outcomes = logic.wins(structure), logic.loses(structure)
        kinds.add(tuple(tuple(logic.evaluate(f, x) for x in WORLDS) for f in outcomes))
    assert len(kinds) == 256  # no two have the same outcomes
    for structure, *_ in TABLE.values():
        outcomes = logic.wins(structure), logic.loses(structure)
        assert tuple(tuple(logic.evaluate(f, x) for x in WORLDS) for f in outcomes) in kinds
    # The empty preference has no ratio; all others are ordered pointwise where they entail.
    rho = {(i, j): counts[i] - counts[j] for i, j in pairs[1:]}
    ordered = 0
    for (i, j), (k, m) in itertools.permutations(rho, 2):
        if below[i, k] and below[m, j]:
            ordered += 1
            assert (rho[i, j] <= rho[k, m] + 1e-5).all()
    # One formula entails another in 3**4 cases: less structures with themselves, or the empty one.
    assert ordered == 81**2 - 256 - 2 * 15


def test_order_is_that_of_entailment_of_outcomes():
    assert logic.stricter(logic.CE, logic.CE)
    assert not logic.stricter(logic.CONSTRAINED_CPO, logic.CPO)
    assert not logic.stricter(logic.CPO, logic.ORPO) and not logic.stricter(logic.ORPO, logic.CPO)
    assert logic.entails(And(W, L), W) and not logic.entails(W, And(W, L))
    assert logic.entails(FALSE, L) and logic.entails(L, Implies(W, L))


def test_counts_of_formulas():
    log_p = {"chosen": jnp.log(jnp.array([0.3])), "rejected": jnp.log(jnp.array([0.6]))}
    for formula, count in [
        (TRUE, 1.0),
        (W, 0.3),
        (Not(W), 0.7),
        (And(W, L), 0.18),
        (Or(W, L), 0.72),
        (Implies(L, W), 0.58),
    ]:
        np.testing.assert_allclose(jnp.exp(logic.log_count(formula, log_p)), count, rtol=1e-5)
    assert logic.log_count(And(W, Not(W)), log_p) == -jnp.inf


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("ends", [(0.0, 0.0), (0.0, -1e4), (-1e4, 0.0), (-1e4, -1e4)])
def test_certain_and_impossible_completions_have_finite_gradients(name, ends):
    pairs = Pairs(*(jnp.array([x]) for x in ends))
    loss = loss_of(TABLE[name][0])
    value, grads = jax.value_and_grad(lambda c, r: loss(Pairs(c, r)).sum(), argnums=(0, 1))(
        *pairs[:2]
    )
    assert np.isfinite(value) and np.isfinite(grads).all()


def test_bad_structures_are_named():
    with pytest.raises(ValueError, match=r"structure: got propositions \['other'\]"):
        loss_of(logic.Structure(Var("other")))
    with pytest.raises(ValueError, match="structure: got one that no world"):
        loss_of(logic.Structure(W, FALSE))
    with pytest.raises(ValueError, match="pairs: got no reference_chosen"):
        loss_of(logic.DPO)(Pairs(*BATCH[:2]))
