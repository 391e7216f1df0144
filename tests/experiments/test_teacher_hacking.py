"""Teacher hacking: the oracle against enumeration, fresh responses, stages, claims."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.experiment_checks import Made, changed, outline, refusal, verdicts

from experiments.distillation import teacher_hacking
from experiments.distillation.common.text import rows
from experiments.distillation.parts import (
    hacking_measures,
    hacking_report,
    oracle,
)
from experiments.distillation.parts.hacking_report import ARMS, MARGIN, onset, rise
from experiments.distillation.teacher_hacking import PRESETS
from kd_jax.launch import weights
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.mesh import make_mesh
from kd_jax.launch.stages import materialise
from kd_jax.models import decoder
from kd_jax.steps import make_eval_step

SMOKE = PRESETS["smoke"]
PROMPT = oracle.PROMPT
STEP = jax.jit(make_eval_step(oracle.sequence_kl(oracle.model(), oracle.model())))


def kl_rows(student, other, tokens):
    """[N]: the sums of KL(other || student) over the responses, both tables."""
    params, frozen = {"model": jnp.asarray(student), "aux": {}}, {"other": jnp.asarray(other)}
    return np.asarray(STEP(params, {}, frozen, rows(tokens, given=PROMPT)).rows["kl"])


def log_prob(table, row):
    """Of a response, a symbol at a time."""
    return sum(table[row[0], row[1], row[t - 2], row[t - 1], row[t]] for t in range(3, len(row)))


TABLES = [oracle.table(3, 1.0, seed) for seed in (0, 1)]
GIVEN = [2, 0, 1]
EVERY = np.array([GIVEN + list(end) for end in itertools.product(range(3), repeat=2)], np.int32)


def test_a_table_of_conditional_distributions():
    table = oracle.table(4, 0.7, 0)
    assert table.shape == (4,) * 5
    np.testing.assert_allclose(np.exp(table).sum(-1), 1, rtol=1e-6)
    # All four symbols matter.
    for axis in range(4):
        assert np.ptp(table, axis=axis).max() > 0.1
    np.testing.assert_allclose(oracle.table(4, 0.0, 0), -np.log(4), rtol=1e-6)


def test_responses_are_drawn_from_the_table():
    table = TABLES[0]
    found = oracle.responses(table, np.tile(np.array([GIVEN], np.int32), (30000, 1)), 5, 0)
    assert found.dtype == np.int32 and (found[:, :3] == GIVEN).all()
    share = np.bincount(found[:, 3] * 3 + found[:, 4], minlength=9) / len(found)
    expected = np.exp([log_prob(table, row) for row in EVERY])
    assert expected.sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(share, expected, atol=4 * np.sqrt(0.25 / 30000))


def test_prompts_are_all_different():
    found = oracle.prompts(4, 64, 0)
    assert len({tuple(row) for row in found}) == 64
    assert (found != oracle.prompts(4, 64, 1)).any()
    with pytest.raises(ValueError, match="prompts: got 65, 4 symbols make 64"):
        oracle.prompts(4, 65, 0)


def test_the_expected_sum_over_tokens_is_the_divergence_of_responses():
    """Exact: every response of two symbols out of three, weighed by its probability."""
    student, other = TABLES
    p, q = (np.array([log_prob(t.astype(np.float64), r) for r in EVERY]) for t in (other, student))
    exact = (np.exp(p) * (p - q)).sum()
    found = (np.exp(p) * kl_rows(student, other, EVERY)).sum()
    assert exact > 0.1
    assert found == pytest.approx(exact, rel=1e-5)
    # And what is sampled comes near it.
    drawn = oracle.responses(other, np.tile(np.array([GIVEN], np.int32), (4000, 1)), 5, 0)
    each = kl_rows(student, other, drawn)
    assert abs(each.mean() - exact) < 4 * each.std() / np.sqrt(len(each)) + 1e-6
    assert each.std() > 0.01


def test_a_teacher_that_is_the_oracle_cannot_be_hacked():
    student, other = TABLES
    drawn = oracle.responses(other, oracle.prompts(3, 20, 0), 8, 0)
    teacher = other.copy()
    np.testing.assert_array_equal(kl_rows(student, other, drawn), kl_rows(student, teacher, drawn))
    np.testing.assert_allclose(kl_rows(other, other, drawn), 0, atol=1e-5)


def test_the_prompt_is_not_measured():
    student, other = TABLES
    drawn = oracle.responses(other, oracle.prompts(3, 20, 0), 8, 0)
    short = kl_rows(student, other, drawn[:, :4])  # one symbol of response
    by_hand = []
    for a, b, c, _ in drawn[:, :4]:
        p, q = (t[a, b, b, c].astype(np.float64) for t in (other, student))
        by_hand.append((np.exp(p) * (p - q)).sum())
    np.testing.assert_allclose(short, by_hand, rtol=1e-4, atol=1e-6)


CONFIG = dataclasses.replace(SMOKE.student, width=8, head_dim=8, heads=1, kv_heads=1, mlp=8)
# Larger than at the start of a training, where all symbols are as likely.
OURS, THEIRS = (
    jax.tree.map(lambda x: 5 * x, decoder.decoder(CONFIG).init(jax.random.key(i))) for i in (0, 1)
)


@pytest.mark.slow
def test_golden_is_measured_on_what_the_oracle_says_and_proxy_on_what_the_teacher_says():
    table = oracle.table(CONFIG.vocab, 0.7, 0)
    given = oracle.prompts(CONFIG.vocab, 10, 0)
    held = hacking_measures.Held(
        oracle.responses(table, given, 9, 0), oracle.responses(table, given, 9, 1)
    )
    measured = hacking_measures.Measured(CONFIG, CONFIG, lambda: held, 8, 8)
    mesh = make_mesh()
    ours, theirs, placed = (
        materialise(weights.from_arrays(x), mesh) for x in (OURS, THEIRS, table)
    )
    frozen = {"teacher": theirs, "oracle": placed}
    found = hacking_measures.along(measured, 5).run({"model": ours, "aux": {}}, {}, frozen)

    def log_probs(params, tokens):
        logits = decoder.decoder(CONFIG).apply(params, {"inputs": tokens[:, :-1]}).head.logits()
        return np.asarray(jax.nn.log_softmax(logits), np.float64)[:, PROMPT - 1 :]

    def divergence(log_p, tokens):
        return (np.exp(log_p) * (log_p - log_probs(OURS, tokens))).sum((1, 2)).mean()

    s = held.oracle
    truth = np.stack([table[s[:, 0], s[:, 1], s[:, t - 2], s[:, t - 1]] for t in range(3, 9)], 1)
    golden = divergence(truth.astype(np.float64), s)
    proxy = divergence(log_probs(THEIRS, held.teacher), held.teacher)
    assert found == pytest.approx({"proxy": proxy, "golden": golden}, rel=1e-4)


@pytest.mark.parametrize("preset", PRESETS)
def test_stages_of_the_presets(preset):
    config, expected = PRESETS[preset], {}
    for s in config.repetitions:
        expected |= {f"teacher_{s}": (), f"start_{s}": (), f"responses_{s}": (f"teacher_{s}",)}
        needs = (f"teacher_{s}", f"start_{s}", f"responses_{s}")
        expected |= {f"{name}_{s}": needs for name in config.methods}
    assert outline(teacher_hacking, config) == expected


def test_what_a_stage_depends_on():
    every = set(outline(teacher_hacking, SMOKE))
    students = {f"{name}_{s}" for name in SMOKE.methods for s in (0, 1)}
    said = {f"responses_{s}" for s in (0, 1)}
    started = {f"start_{s}" for s in (0, 1)}
    for change, expected in (
        ({"learn": SMOKE.learn_start}, students),
        ({"evaluations": 4}, students),
        ({"learn_start": SMOKE.learn_teacher}, students | started),
        ({"student_rows": 60}, students | started),
        ({"prompts": 60}, students | said),
        ({"learn_teacher": SMOKE.learn}, every - started),
        ({"teacher_rows": 60}, every - started),
        ({"sharpness": 0.5}, every),
        ({"length": 9}, every),
    ):
        found = changed(teacher_hacking, SMOKE, dataclasses.replace(SMOKE, **change))
        assert found == expected, change


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--prompts", "55"), "prompts: got 55, takes multiples of 10 up to 4032"),
        (("--length", "2"), "length: got 2, takes at least 3"),
        (("--methods", "offline", "offline"), "methods: got offline offline, takes each once"),
    ],
)
def test_bad_values_are_refused_by_name(argv, said):
    assert said in refusal(teacher_hacking, "smoke", *argv)


class Planned(Artefact):
    """The shapes of a result, and rows that are known already."""

    rows = {}


def built(name):
    config = dataclasses.replace(SMOKE, methods=tuple(ARMS))
    shapes = jax.eval_shape(decoder.decoder(SMOKE.student).init, jax.random.key(0))
    found = {n: Planned(n, "", None, shapes) for n in outline(teacher_hacking, config)}
    given = oracle.prompts(16, 50, 7)
    rest = np.arange(5 * 50 * (SMOKE.length + 1 - PROMPT)).reshape(5, 50, -1)  # told apart
    asked = np.broadcast_to(given, (5, 50, PROMPT))
    found["responses_0"].rows = {"train": np.concatenate([asked, rest], -1).astype(np.int32)}
    stages = {stage.name: stage for stage in teacher_hacking.stages(config)}
    return stages[name].build(found)


# How many responses there are, to how many prompts.
COUNTS = {
    "offline": (50, 50),
    "online_teacher": (50, 50),
    "online_student": (50, 50),
    "offline_2": (50, 25),
    "offline_5": (50, 10),
    "more_5": (250, 50),
}


@pytest.mark.parametrize("name", ARMS)
def test_what_a_way_is_trained_on(name):
    training = built(f"{name}_0")
    responses, prompts = COUNTS[name]
    batches = [training.batches(step, slice(0, 10)) for step in range(responses // 10)]
    inputs = np.concatenate([batch["inputs"] for batch in batches])
    assert len({row.tobytes() for row in inputs}) == responses
    assert len({row[:PROMPT].tobytes() for row in inputs}) == prompts
    counted = batches[0]["weights"]
    assert (counted.sum(-1) == SMOKE.length + 1 - PROMPT).all() and not counted[:, :2].any()
    assert (training.prepare is not None) == name.startswith("online")


@pytest.mark.slow
def test_held_out_prompts_are_none_that_anybody_learns_from():
    config = dataclasses.replace(SMOKE, teacher_rows=2000)
    found = {stage.name: stage for stage in teacher_hacking.stages(config)}
    seen = [
        found[name].build({}).batches(step, slice(0, 32))["inputs"][:, :PROMPT]
        for name in ("teacher_0", "start_0")
        for step in range(40)
    ]
    seen = {row.tobytes() for row in np.concatenate(seen)}
    held_out = oracle.prompts(16, 16**3, 0)[: config.held_out]
    assert len(seen) > 500 and not seen & {row.tobytes() for row in held_out}


def test_where_hacking_begins():
    proxy, golden = np.array([4.0, 2, 1, 0.5]), np.array([4.0, 2, 2.1, 2.2])
    assert rise(golden) == pytest.approx(0.1)
    assert onset(proxy, golden) == 1
    assert onset(proxy, proxy) is None  # it falls to the end
    assert onset(proxy[::-1], golden) is None  # overfitting: the proxy rises too
    assert onset(proxy, np.array([4.0, 2, 2, 2 * (1 + MARGIN / 2)])) is None


def artefacts(curves):
    """Two repetitions; curves: {way: (proxy, golden)}."""
    found = {f"responses_{seed}": Made({"golden": 1.5}) for seed in (0, 1)}
    for name, (proxy, golden) in curves.items():
        for seed in (0, 1):
            points = zip(proxy, golden, strict=True)
            found[f"{name}_{seed}"] = Made(
                history=[
                    {
                        "step": 10 * i,
                        "held_out/proxy": p * (1 + 0.001 * seed),
                        "held_out/golden": g + 0.001 * seed * i,
                    }
                    for i, (p, g) in enumerate(points)
                ]
            )
    return found


UP, DOWN = ((4.0, 1.0, 0.5), (4.0, 2.0, 2.3)), ((4.0, 1.0, 0.5), (4.0, 2.0, 1.8))
WORSE, OVER = ((4.0, 1.0, 0.5), (4.0, 2.0, 2.6)), ((4.0, 1.0, 1.5), (4.0, 2.0, 2.3))
CASES = [
    ((UP, DOWN, DOWN, WORSE, WORSE, DOWN), ["holds"] * 6),
    ((DOWN, UP, UP, DOWN, DOWN, UP), ["fails"] * 6),
    ((OVER, DOWN, DOWN, OVER, OVER, DOWN), ["holds", "fails", "holds", "holds", "fails", "holds"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("curves", "expected"), CASES)
def test_claims_on_curves_made_by_hand(tmp_path, curves, expected):
    found = artefacts(dict(zip(ARMS, curves, strict=True)))
    results = hacking_report.results(tuple(ARMS), range(2), found, tmp_path)
    assert verdicts(teacher_hacking, results) == expected
    assert verdicts(teacher_hacking, results, "smoke") == ["not tested"] * 6
    table = {row["responses"]: row for row in results.tables[0].rows}
    hacked = {UP: "2 of 2", DOWN: "0 of 2", WORSE: "2 of 2", OVER: "0 of 2"}
    for name, curve in zip(ARMS, curves, strict=True):
        assert table[ARMS[name].label]["hacked"] == hacked[curve]
    assert all(path.exists() for path in results.plots.values())


def test_a_claim_about_a_way_that_was_not_run_is_not_tested(tmp_path):
    results = hacking_report.results(("offline",), range(2), artefacts({"offline": UP}), tmp_path)
    assert verdicts(teacher_hacking, results) == ["holds"] * 2 + ["not tested"] * 4
