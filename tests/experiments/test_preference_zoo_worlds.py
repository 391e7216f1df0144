"""The zoo's worlds, what losses are given and how they are trained with, against loops in NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.preference.common import enumerated
from experiments.preference.parts import zoo_training, zoo_world
from experiments.preference.parts.zoo_methods import METHODS

SIZES = zoo_world.Sizes(
    prompts=2, symbols=2, longest=3, width=5, demonstrations=30, pairs=12, sft_steps=30,
    sft_rate=0.03,
)  # fmt: skip
ALL = enumerated.completions(2, 3)


@pytest.fixture(scope="module")
def world():
    return jax.jit(lambda key: zoo_world.draw(key, SIZES, ALL))(jax.random.key(3))


@jax.jit
def seen_of(weights, world):
    """What losses are given, and the tables of policy and reference."""
    tables = [zoo_training._table(weights, ALL), zoo_training._table(world.reference, ALL)]
    return zoo_training._seen(*tables, world, ALL), tables


def policy_of(weights):
    """[X, Y, T] in NumPy, float64, one token after the other."""
    w = {name: np.asarray(x, np.float64) for name, x in weights.items()}
    found = np.zeros((SIZES.prompts, *ALL.tokens.shape))
    for x, (y, tokens) in itertools.product(range(SIZES.prompts), enumerate(ALL.tokens)):
        said = []
        for t in range(int(ALL.lengths[y])):
            context = [2] * (3 - len(said)) + said
            read = sum(w["symbols"][place, symbol] for place, symbol in enumerate(context))
            hidden = np.tanh(np.tanh(w["prompts"][x] + read) @ w["hidden"] + w["bias"])
            logits = hidden @ w["out"]
            found[x, y, t] = logits[tokens[t]] - np.log(np.exp(logits).sum())
            said.append(int(tokens[t]))
    return found


def test_all_completions_and_no_other():
    texts = [
        tuple(tokens[: int(length)]) for tokens, length in zip(ALL.tokens, ALL.lengths, strict=True)
    ]
    whole = set(itertools.product((0, 1), repeat=3))
    ended = {(*text, 2) for n in range(3) for text in itertools.product((0, 1), repeat=n)}
    assert set(texts) == whole | ended and len(texts) == 15
    assert len(ALL.prefixes) == 7


def test_probabilities_are_those_of_one_token_after_the_other(world):
    tokens = zoo_training._table(world.reference, ALL).tokens
    np.testing.assert_allclose(tokens, policy_of(world.reference), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jnp.exp(tokens.sum(-1)).sum(-1), 1.0, rtol=1e-5)


def test_win_rates_against_loops_and_the_best_of_them(world):
    log_p = zoo_training._table(world.reference, ALL).tokens.sum(-1)
    wins = enumerated.wins_against(log_p, world.reward)
    reward, p = np.asarray(world.reward, np.float64), np.exp(np.asarray(log_p, np.float64))
    by_hand = sum(p[1, z] / (1 + np.exp(reward[1, z] - reward[1, 4])) for z in range(15))
    np.testing.assert_allclose(wins[1, 4], by_hand, rtol=1e-5)
    np.testing.assert_allclose(enumerated.mean_under(log_p, wins), 0.5, rtol=1e-5)
    # No policy wins more at its KL: others, among them sharpened ones, lie below the curve.
    curve = enumerated.best_possible(log_p, wins, jnp.geomspace(0.01, 30.0, 60))
    assert (jnp.diff(curve[0]) > 0).all() and (jnp.diff(curve[1]) > 0).all()
    rng = np.random.default_rng(0)
    for scale in (0.1, 1.0, 3.0):
        push = scale * (np.asarray(wins) * 4 + rng.standard_normal(wins.shape))
        other = jax.nn.log_softmax(log_p + push)
        kl, rate = enumerated.kl(other, log_p), enumerated.mean_under(other, wins)
        assert rate < np.interp(kl, *curve) + 1e-4
    np.testing.assert_allclose(enumerated.kl(log_p, log_p), 0.0, atol=1e-7)


@pytest.mark.slow
def test_what_is_drawn(world):
    base = jnp.exp(zoo_world._base(ALL, 2))
    np.testing.assert_allclose(base.sum(), 1.0, rtol=1e-5)
    np.testing.assert_allclose((base[None] * world.reward).sum(-1), 0.0, atol=1e-5)
    square = (base[None] * jnp.square(world.reward)).sum(-1)
    np.testing.assert_allclose(square, zoo_world.SPREAD**2, rtol=1e-4)
    assert (world.chosen != world.rejected).all()
    # Of many pairs the better wins as often as Bradley and Terry say, and prompts differ.
    many = SIZES._replace(pairs=1000, sft_steps=1)
    drawn = jax.jit(lambda key: zoo_world.draw(key, many, ALL))(jax.random.key(0))
    gap = drawn.reward[drawn.prompts, drawn.chosen] - drawn.reward[drawn.prompts, drawn.rejected]
    expected = jax.nn.sigmoid(jnp.abs(gap)).mean()
    np.testing.assert_allclose((gap > 0).mean(), expected, atol=0.05)
    np.testing.assert_allclose(drawn.prompts.mean(), 0.5, atol=0.05)


def test_what_losses_are_given(world):
    """Sums over tokens, of one pair, in loops."""
    moved = jax.tree.map(lambda x: 1.3 * x + 0.1, world.reference)
    seen, tables = seen_of(moved, world)
    policy, reference = (policy_of(weights) for weights in (moved, world.reference))
    following = [np.asarray(table.following, np.float64) for table in tables]
    for i in range(SIZES.pairs):
        x, c, r = (int(a[i]) for a in (world.prompts, world.chosen, world.rejected))
        expected = {
            "policy_chosen": policy[x, c].sum(),
            "policy_rejected": policy[x, r].sum(),
            "reference_chosen": reference[x, c].sum(),
            "reference_rejected": reference[x, r].sum(),
            "chosen_lengths": ALL.lengths[c],
            "rejected_lengths": ALL.lengths[r],
        }
        for name, value in expected.items():
            np.testing.assert_allclose(getattr(seen.pairs, name)[i], value, rtol=1e-4)
        both = int(min(ALL.lengths[c], ALL.lengths[r]))
        np.testing.assert_allclose(
            seen.shared.policy_rejected[i], policy[x, r, :both].sum(), rtol=1e-4
        )
        drift, typical = 0.0, []
        for t in range(int(ALL.lengths[c])):
            log_p, log_q = (table[x, ALL.contexts[c, t]] for table in following)
            drift += (np.exp(log_q) * (log_q - log_p)).sum()
        np.testing.assert_allclose(seen.chosen_kl[i], drift, rtol=1e-3, atol=1e-5)
        own = 1.0
        for y in (c, r):
            typical = [
                policy[x, y, t] - np.log(np.exp(2 * following[0][x, ALL.contexts[y, t]]).sum())
                for t in range(int(ALL.lengths[y]))
            ]
            own *= np.exp(np.mean(typical))
        np.testing.assert_allclose(seen.own[i], own, rtol=1e-4)
        before = int(world.chosen[i - 1])
        mismatched = policy[x, before].sum() - reference[x, before].sum()
        np.testing.assert_allclose(seen.mismatched[i], mismatched, rtol=1e-3, atol=1e-4)


def test_every_loss_is_one_number_a_pair(world):
    seen, _ = seen_of(world.reference, world)
    losses = jax.jit(lambda seen, beta: {n: m.loss(seen, beta) for n, m in METHODS.items()})
    for name, loss in losses(seen, 0.3).items():
        assert loss.shape == (SIZES.pairs,) and np.isfinite(loss).all(), name
        assert len(METHODS[name].betas) == len(set(METHODS[name].betas)) or name == "sft"
    assert len({method.label for method in METHODS.values()}) == len(METHODS)


@pytest.mark.slow
def test_the_index_chooses_the_loss_and_training_is_adam_on_it(world):
    worlds = jax.tree.map(lambda x: x[None], world)
    beta = jnp.array([0.3])
    program = zoo_training.trained(("kto", "dpo"), ALL, 0.01, 2, 1)
    dpo, kto = program(1, worlds, beta), program(0, worlds, beta)
    assert dpo.kl.shape == (1, 3)
    np.testing.assert_allclose(dpo.win_rate[0, 0], 0.5, rtol=1e-5)
    np.testing.assert_allclose([dpo.kl[0, 0], dpo.chosen[0, 0]], 0.0, atol=1e-6)
    assert jnp.abs(dpo.kl[0, -1] - kto.kl[0, -1]) > 1e-6

    def loss(weights):
        return METHODS["dpo"].loss(seen_of(weights, world)[0], beta[0]).mean()

    # The first step of Adam is the sign of the gradient.
    grads = jax.grad(loss)(world.reference)
    stepped = jax.tree.map(lambda w, g: w - 0.01 * g / (jnp.abs(g) + 1e-8), world.reference, grads)
    pairs = seen_of(stepped, world)[0].pairs
    change = (pairs.policy_chosen - pairs.reference_chosen).mean()
    np.testing.assert_allclose(dpo.chosen[0, 1], change, rtol=1e-3)
