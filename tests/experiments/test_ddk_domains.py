"""DDK on domains: stages, what a round draws from, the domains, claims on numbers made by hand."""

import dataclasses

import jax
import numpy as np
import pytest
from support.experiment_checks import Made, changed, outline, refusal, verdicts

from experiments.distillation import ddk_domains
from experiments.distillation.common.text import CHARACTERS
from experiments.distillation.ddk_domains import NAMES, PRESETS
from experiments.distillation.parts import ddk_report, domains
from kd_jax.data.domains import updated_weights
from kd_jax.launch import rounds
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.loop import jit_step
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.sharding import shardings_of
from kd_jax.launch.stages import placed
from kd_jax.models import decoder

SMOKE = PRESETS["smoke"]


@pytest.mark.parametrize("preset", PRESETS)
def test_stages_of_the_presets(preset):
    config, expected = PRESETS[preset], {"teacher": ()}
    for seed in config.repetitions:
        expected[f"start_{seed}"] = ("teacher",)
        for arm in ("uniform", "ddk"):
            before = f"start_{seed}"
            for i in range(config.rounds):
                name = f"{arm}_{i + 1}_{seed}"
                expected[name], before = ("teacher", before), name
    assert outline(ddk_domains, config) == expected


def test_what_a_stage_depends_on():
    every = set(outline(ddk_domains, SMOKE))
    trained = {name for name in every if name.startswith(("uniform", "ddk"))}
    for change, expected in (
        ({"alpha": 0.3}, {name for name in trained if name.startswith("ddk")}),
        ({"gamma": 0.5}, trained),
        ({"temperature": 2.0}, trained),
        ({"divergence": "reverse"}, trained),
        ({"learn": dataclasses.replace(SMOKE.learn, rate=1e-3)}, trained),
        ({"known": ("sums",)}, every - {"teacher"}),
        ({"weak": 0.2}, every - {"teacher"}),
        ({"student": SMOKE.teacher}, every - {"teacher"}),
        ({"rows": 100}, every),
        ({"text": dataclasses.replace(SMOKE.text, folder="elsewhere")}, set()),
        ({"learn_teacher": SMOKE.learn}, every),
    ):
        found = changed(ddk_domains, SMOKE, dataclasses.replace(SMOKE, **change))
        assert found == expected, change


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--rounds", "3"), "rounds: got 3, takes divisors of learn.steps, 20"),
        (("--alpha", "0"), "alpha: got 0.0, takes (0, 1]"),
        (("--known", "sums", "sums"), "known: got sums sums, takes domains once each"),
        (("--known", *NAMES), "takes domains once each, not none and not all"),
        (("--weak", "1"), "weak: got 1.0, takes [0, 1)"),
    ],
)
def test_bad_values_are_refused_by_name(argv, said):
    assert said in refusal(ddk_domains, "smoke", *argv)


def measured(weights=(), **nll):
    """Values of a training: the same loss on validation and test rows."""
    found = {f"domains/{n}_{s}": x for n, x in nll.items() for s in ("validation", "test")}
    return found | {f"domains/{n}_weight": w for n, w in zip(NAMES, weights, strict=False)}


class Planned(Artefact):
    """The shapes of a result, and values that are known already."""

    values = {}


def built(name, weights=(0.7, 0.1, 0.1, 0.1)):
    shapes = jax.eval_shape(decoder.decoder(SMOKE.student).init, jax.random.key(0))
    found = {n: Planned(n, "", None, shapes) for n in outline(ddk_domains, SMOKE)}
    found["teacher"].values = measured(text=1.0, chain=1.0, sums=1.0, brackets=1.0)
    before = outline(ddk_domains, SMOKE)[name][-1]
    found[before].values = measured(weights)
    stages = {stage.name: stage for stage in ddk_domains.stages(SMOKE)}
    return stages[name].build(found)


def shares(training, first, last):
    drawn = [training.batches(step, slice(0, 32))["source"] for step in range(first, last)]
    return np.bincount(np.concatenate(drawn), minlength=4) / (32 * (last - first))


def test_a_round_draws_by_what_the_one_before_decided():
    first, second = built("ddk_1_0"), built("ddk_2_0")
    np.testing.assert_allclose(shares(first, 0, 40), 0.25, atol=0.05)
    np.testing.assert_allclose(shares(second, 10, 50), [0.7, 0.1, 0.1, 0.1], atol=0.05)
    assert (first.steps, second.steps) == (10, 20)
    assert first.start is None and second.start is not None
    assert first.result == second.result == rounds.whole
    # Before it, a student has seen little of what it does not know.
    start = [0.025, 0.475, 0.025, 0.475]
    np.testing.assert_allclose(shares(built("start_0"), 0, 40), start, atol=0.05)
    batch = second.batches(10, slice(0, 32))
    assert {name: x.shape for name, x in batch.items()} == {
        name: x.shape for name, x in second.batch.items()
    }


def test_all_rounds_run_the_same_program():
    def lowered(name):
        mesh = make_mesh()
        found = placed(name, built(name), mesh)
        step = jit_step(found.step, shardings_of(found.state), mesh)
        return step.lower(found.state, found.frozen, found.batch).as_text()

    assert lowered("uniform_1_0") == lowered("ddk_2_0")


@pytest.mark.parametrize(("name", "alpha"), [("ddk_2_0", 0.5), ("uniform_2_0", 0.0)])
def test_a_measurement_decides_the_next_weights(monkeypatch, name, alpha):
    found = {"text": 1.0, "chain": 3.0, "sums": 1.5, "brackets": 1.0}
    losses = {f"{n}_{split}": x for n, x in found.items() for split in ("validation", "test")}
    # Test rows decide nothing.
    losses["text_test"] = 9.0
    monkeypatch.setattr(domains, "nll", lambda *_: losses)
    (evaluation,) = built(name).evaluations
    assert evaluation.every == SMOKE.learn.steps // SMOKE.rounds
    params = {"model": {"x": jax.numpy.zeros(2)}}
    monkeypatch.setattr(domains, "mesh_of", lambda tree: None)
    values = evaluation.run(params, {}, {})
    expected = updated_weights(
        [0.7, 0.1, 0.1, 0.1], np.exp(list(found.values())), np.full(4, np.e), alpha=alpha
    )
    np.testing.assert_allclose([values[f"{n}_weight"] for n in NAMES], expected)
    assert values["text_test"] == 9.0


@pytest.mark.slow
def test_losses_are_those_of_each_domain_and_split():
    measured = domains.Measured(SMOKE.text, 40, NAMES, 24)  # which divides no part
    model = decoder.decoder(SMOKE.student)
    params = jax.tree.map(lambda x: 3 * x, model.init(jax.random.key(0)))
    found = domains.nll(measured, SMOKE.student, params, make_mesh())
    assert found.keys() == {f"{n}_{split}" for n in NAMES for split in ("validation", "test")}
    for name, split in (("chain", "validation"), ("brackets", "test")):
        tokens = getattr(domains.load(name, SMOKE.text, 40), split)
        logits = model.apply(params, {"inputs": tokens[:, :-1]}).head.logits()
        log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
        expected = -np.take_along_axis(log_p, tokens[:, 1:, None], -1).mean()
        assert found[f"{name}_{split}"] == pytest.approx(expected, rel=1e-5)


def text_of(rows):
    return ["".join(CHARACTERS[i] for i in row) for row in rows]


def test_domains_are_what_they_are_called():
    made = {name: domains.load(name, SMOKE.text, 50) for name in NAMES}
    for name, domain in made.items():
        assert domain.validation.shape == domain.test.shape == (16, 33)
        assert len(domain.train) >= 50 and domain.train.dtype == np.int32
        rows = {row.tobytes() for row in domain.train}
        assert not rows & {row.tobytes() for row in domain.test}, name
    for part in "".join(text_of(made["sums"].train)).split(";")[:-1]:
        left, right = part.split("=")
        assert sum(map(int, left.split("+"))) == int(right)
    depth = []
    pairs = dict(zip("([{<", ")]}>", strict=True))
    for c in "".join(text_of(made["brackets"].train)):
        if c in pairs:
            depth.append(pairs[c])
        else:
            assert depth.pop() == c
        assert len(depth) <= 8
    assert set("".join(text_of(made["chain"].train))) == set("abcdefghij")


def test_a_letter_of_the_chain_depends_on_two_before_it():
    rows = domains.chain(4000, 33)
    a, b, c = (rows[:, i : 31 + i].ravel() for i in range(3))
    counts = np.zeros((10, 10, 10))
    np.add.at(counts, (a - a.min(), b - a.min(), c - a.min()), 1)

    def entropy(table):
        p = table / np.maximum(table.sum(-1, keepdims=True), 1)
        h = -(p * np.log(np.where(p > 0, p, 1))).sum(-1)
        return float((h * table.sum(-1)).sum() / table.sum())

    assert entropy(counts) < 0.8 * entropy(counts.sum(0)) < 0.8 * entropy(counts.sum((0, 1)))


def artefacts(ddk, uniform):
    """Two repetitions of two rounds: losses of all domains at the start 2, then as given."""
    found = {"teacher": Made(measured(**dict.fromkeys(NAMES, 1.0)))}
    uniform_weights = (0.25,) * 4
    for seed in (0, 1):
        noise = 0.001 * seed
        found[f"start_{seed}"] = Made(measured(uniform_weights, **dict.fromkeys(NAMES, 2.0)))
        for arm, rows in (("ddk", ddk), ("uniform", uniform)):
            for i, losses in enumerate(rows):
                nll = {n: x + noise for n, x in zip(NAMES, losses, strict=True)}
                if arm == "ddk":
                    nll["text"] += noise  # seeds do not agree to the digit
                found[f"{arm}_{i + 1}_{seed}"] = Made(measured(uniform_weights, **nll))
    return found


# Worst domain smaller at the end; in the mean over rounds; mean loss no worse.
CASES = [
    (
        [(1.2, 1.2, 1.2, 1.2), (1.1, 1.1, 1.1, 1.1)],
        [(1.0, 1.0, 1.5, 1.5), (1.0, 1.0, 1.3, 1.1)],
        ["holds"] * 3,
    ),
    (
        [(1.2, 1.2, 1.2, 1.9), (1.2, 1.2, 1.2, 1.2)],
        [(1.0, 1.0, 1.5, 1.5), (1.0, 1.0, 1.3, 1.1)],
        ["holds", "fails", "fails"],
    ),
    (
        [(1.2, 1.2, 1.2, 1.6), (1.0, 1.0, 1.4, 1.0)],
        [(1.0, 1.0, 1.5, 1.5), (1.0, 1.0, 1.3, 1.1)],
        ["fails", "fails", "holds"],
    ),
]


@pytest.mark.parametrize(("ddk", "uniform", "expected"), CASES)
def test_claims_on_numbers_made_by_hand(tmp_path, ddk, uniform, expected):
    found = artefacts(ddk, uniform)
    results = ddk_report.results(NAMES, 2, range(2), found, tmp_path)
    assert verdicts(ddk_domains, results) == expected
    assert verdicts(ddk_domains, results, "smoke") == ["not tested"] * 3
    largest = results.values["largest"]["uniform"][0]
    np.testing.assert_allclose(largest, np.exp([1.0, 0.5, 0.3]))
    assert all(path.exists() for path in results.plots.values())
    alone = ddk_report.results(NAMES, 2, range(1), found, tmp_path)
    assert verdicts(ddk_domains, alone) == ["not tested"] * 3
