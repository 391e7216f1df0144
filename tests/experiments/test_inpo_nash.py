"""Games of self-play: what a round of sampled pairs comes to, stages, claims on rows by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.experiment_checks import Made, changed, outline, refusal, verdicts

from experiments.preference import inpo_nash
from experiments.preference.parts import nash_games, nash_rounds
from experiments.preference.parts.nash_games import METHODS, Game, Play
from kd_jax.evaluation import games
from kd_jax.models import decoder

SMOKE = inpo_nash.PRESETS["smoke"]
GAME = Game(
    jnp.array([[0.5, 0.9, 0.2], [0.1, 0.5, 0.8], [0.8, 0.2, 0.5]]),
    jnp.array([0.5, 0.3, 0.2]),
    jax.random.key(0),
)
POLICY = jnp.array([0.3, 0.3, 0.4])


def test_stages_and_what_they_depend_on():
    config = dataclasses.replace(SMOKE, written=dataclasses.replace(SMOKE.written, rounds=2))
    played = {
        f"{method}_{i}_0{part}": needs
        for method in ("inpo", "dpo")
        for i, before in ((1, "start_0"), (2, f"{method}_1_0"))
        for part, needs in (
            ("_pairs", (before,) if i == 1 else (before, "start_0")),
            ("", (before, f"{method}_{i}_0_pairs")),
        )
    }
    assert outline(inpo_nash, config) == {"games_3": (), "start_0": ()} | played
    learnt = {name for name in played if name.endswith("_0")}
    later = {name for name in played if "_2_" in name}
    for change, expected in (
        ({"games": 3}, {"games_3"}),
        ({"pairs": 9}, {"games_3"}),
        ({"rounds": 9}, {"games_3"}),
        ({"tau": 0.2}, {"games_3"} | learnt | later),
        ({"written": dataclasses.replace(config.written, copies=9)}, set(played)),
        ({"written": dataclasses.replace(config.written, rounds=2)}, set()),
        ({"log_every": 3}, set()),
    ):
        assert changed(inpo_nash, config, dataclasses.replace(config, **change)) == expected, change


@pytest.mark.parametrize(
    ("flag", "value"), [("games", "0"), ("actions", "2"), ("tau", "0.4"), ("rounds", "3")]
)
def test_bad_values_are_refused(flag, value):
    assert flag in refusal(inpo_nash, "smoke", f"--{flag}", value)


@pytest.mark.parametrize("actions", [3, 4, 5])
def test_games_are_circles_with_a_bias(actions):
    found = jax.vmap(lambda seed: nash_games.drawn(seed, actions))(jnp.arange(30))
    p = np.asarray(found.preference)
    np.testing.assert_allclose(p + p.swapaxes(1, 2), 1, atol=1e-6)
    np.testing.assert_allclose(found.reference.sum(1), 1, rtol=1e-5)
    assert p.min() > 0 and p.max() < 1
    for i in range(actions):
        beats = p[:, i, (i + 1) % actions]
        assert (beats > 0.6).all() and np.ptp(beats) > 0.2
    assert len(np.unique(p[:, 0, 1])) == 30


@pytest.mark.parametrize(
    ("sampled", "exact"),
    [("inpo", "omd"), ("inpo_growing", "omd_growing")],
)
def test_a_round_of_many_pairs_is_a_step_of_mirror_descent(sampled, exact):
    play = Play(rounds=4, pairs=400_000, steps=400)
    one, other = (
        jax.jit(METHODS[name][1], static_argnums=0)(play, GAME, jnp.int32(3), POLICY)
        for name in (sampled, exact)
    )
    np.testing.assert_allclose(one, other, atol=5e-3)
    assert np.abs(np.asarray(one) - POLICY).max() > 0.02  # a step that stood still would do as well


def test_dpo_fits_the_odds_of_two_actions():
    """Of two actions its minimiser is known: the reference times exp(logit(P) / beta)."""
    game = Game(jnp.array([[0.5, 0.6], [0.4, 0.5]]), jnp.array([0.4, 0.6]), jax.random.key(1))
    play, policy = Play(rounds=4, pairs=400_000, steps=400), jnp.array([0.7, 0.3])
    for name, start in (("dpo", game.reference), ("dpo_restarted", policy)):
        found = jax.jit(METHODS[name][1], static_argnums=0)(play, game, jnp.int32(0), policy)
        odds = np.log(found[0] / found[1]) - np.log(start[0] / start[1])
        assert odds == pytest.approx(np.log(0.6 / 0.4) / play.beta, abs=0.05)


def test_nash_policies_are_their_own_best_responses():
    play, seeds = Play(rounds=4, pairs=1, steps=1), jnp.arange(3)
    nash = nash_games.nash(play, 4)(seeds)
    for seed, policy in zip(seeds, nash, strict=True):
        game = nash_games.drawn(seed, 4)
        again = nash_games.best_response(play, game, jnp.int32(0), policy)
        np.testing.assert_allclose(again, policy, atol=1e-4)


PLAY = nash_rounds.Play(seed=2, eta=0.3, tau=0.1)


def test_a_draw_of_the_prompts_game_prefers_a_completion():
    prompts = [[x] for x in range(3) for _ in range(4000)]
    texts = [[np.array([0, 1]), np.array([2, 0])] for _ in prompts]  # actions 1 and 6
    found = nash_rounds._preferred(PLAY, 5, prompts, texts)
    assert len(found.prompts) == len(prompts)  # two texts that differ are always a pair
    for x, game in enumerate(PLAY.games):
        share = (found.chosen[4000 * x : 4000 * (x + 1)] == 0).mean()
        assert share == pytest.approx(float(game.preference[1, 6]), abs=0.03)
    again = nash_rounds._preferred(PLAY, 5, prompts, texts)
    np.testing.assert_array_equal(found.chosen, again.chosen)


@pytest.mark.slow
def test_policies_of_a_language_model_are_tables():
    config = SMOKE.written.model
    params = decoder.decoder(config).init(jax.random.key(0))
    table = np.asarray(nash_rounds._table(config, params))
    assert table.shape == (3, 9)
    np.testing.assert_allclose(table.sum(1), 1, rtol=1e-5)
    tokens = jnp.array([[2, 1]])  # the prompt 2, the completion (1, 0)
    logits = decoder.decoder(config).apply(params, {"inputs": tokens}).head.logits()
    p = np.asarray(jax.nn.softmax(logits))[0]
    assert table[2, 3] == pytest.approx(p[0, 1] * p[1, 0], rel=1e-5)


def policies(config, likeliest):
    """Artefacts of a start that is uniform and of iterates with so likely a first completion."""
    table = np.full((3, 9), 1 / 9)
    other = np.full((3, 9), (1 - likeliest) / 8)
    other[:, 0] = likeliest
    found = {}
    for play in config.plays:
        found[f"start_{play.seed}"] = Made(rows={"0/policy/table": other, "5/policy/table": table})
        for method in nash_rounds.METHODS:
            last = table if method == "inpo" else other
            for name in nash_rounds.iterates(config.written, method, play.seed):
                found[name] = Made(rows={"0/policy/table": other, "10/policy/table": last})
    return found


def test_gaps_are_of_each_prompts_game():
    found = policies(SMOKE, 0.9)
    (play,) = SMOKE.plays
    uniform = jnp.full(9, 1 / 9)
    expected = np.mean(
        [games.duality_gap(game.preference, uniform, uniform, tau=0.1) for game in play.games]
    )
    same = nash_rounds.gaps(SMOKE.written, play, found, "inpo")
    np.testing.assert_allclose(same, [expected, expected], rtol=1e-4)
    other = nash_rounds.gaps(SMOKE.written, play, found, "dpo")
    assert other[0] == same[0] and other[1] > same[1] + 0.3


def rows(inpo, others, growing=0.001, games=4, rounds=8):
    """Gaps that begin at 0.1 and are then what they are told to be."""
    ends = {"omd": 1e-5, "omd_growing": 1e-4, "inpo": inpo, "inpo_growing": growing}
    found = {}
    for name in METHODS:
        gap = (
            np.full((games, rounds + 1), ends.get(name, others)) + 1e-6 * np.arange(games)[:, None]
        )
        gap[:, 0] = 0.1
        found[f"{name}/gap"] = gap
        found[f"{name}/kl"] = gap / np.arange(1, rounds + 2) ** 2
        found[f"{name}/likeliest"] = np.full((games, rounds + 1), min(1.0, others * 2))
        found[f"{name}/policy"] = np.full((rounds + 1, 3), 1 / 3)
    return found


@pytest.mark.parametrize(
    ("inpo", "others", "expected"),
    [
        (0.003, 0.5, ["holds"] * 7),
        (0.05, 0.1, ["holds", *["fails"] * 4, "holds", "holds"]),
    ],
)
def test_claims_on_rows_made_by_hand(tmp_path, inpo, others, expected):
    config = dataclasses.replace(SMOKE, actions=(3, 5))
    found = {f"games_{n}": Made(rows=rows(inpo, others)) for n in config.actions}
    results = inpo_nash.report(config, found | policies(config, 0.9), tmp_path)
    # Of language models INPO stays where it was, and DPO goes to one completion.
    assert verdicts(inpo_nash, results) == [*expected, "fails", "holds"]
    assert results.values["inpo_ratio"][0] == pytest.approx(inpo / 0.1, rel=1e-3)
    assert all(path.exists() for path in results.plots.values())
    assert len(results.tables[0].rows) == 2 * len(METHODS)
