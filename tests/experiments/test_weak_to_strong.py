"""EFT and dynamic fusion: texts, stages, what they depend on, claims on figures made by hand."""

import dataclasses
import re

import numpy as np
import pytest
from support.config_reads import unread_fields
from support.experiment_checks import Made, changed, outline, refusal, verdicts

from experiments.distillation import weak_to_strong
from experiments.distillation.common import text as text_lib
from experiments.distillation.parts import fused, styles
from experiments.distillation.parts.styles import STYLES
from kd_jax.launch.artefacts import Artefact
from kd_jax.launch.mesh import make_mesh
from kd_jax.models import decoder

SMOKE = weak_to_strong.PRESETS["smoke"]


@pytest.mark.parametrize("preset", weak_to_strong.PRESETS)
def test_stages_of_the_presets(preset):
    config, expected = weak_to_strong.PRESETS[preset], {}
    for s in config.repetitions:
        big, small = f"big_{s}", f"small_{s}"
        expected |= {big: (), small: ()}
        for style in ("bare", "sums"):
            expected |= {f"{size}_{style}_{s}": (f"{size}_{s}",) for size in ("big", "small")}
        for own, other in (("bare", "sums"), ("sums", "bare")):
            needs = (big, small, f"small_{own}_{s}", f"small_{other}_{s}", f"big_{own}_{s}")
            expected[f"{own}_score_{s}"] = needs
    assert outline(weak_to_strong, config) == expected


def test_what_a_stage_depends_on():
    every = set(outline(weak_to_strong, SMOKE))
    scores = {name for name in every if "_score_" in name}
    general = {"big_0", "small_0"}
    of_big = {name for name in every if name.startswith("big_")}
    for change, expected in (
        ({"text": dataclasses.replace(SMOKE.text, folder="elsewhere")}, set()),
        ({"amplified": 2.0}, scores),
        ({"step": 0.2}, scores),
        ({"sampled": ()}, scores),
        ({"coefficients": (0.0, 0.5, 1.0)}, scores),
        ({"tune": dataclasses.replace(SMOKE.tune, rate=1e-4)}, every - general),
        ({"big": dataclasses.replace(SMOKE.big, mlp=48)}, of_big | scores),
        ({"sums": 0.3}, every),
    ):
        found = changed(weak_to_strong, SMOKE, dataclasses.replace(SMOKE, **change))
        assert found == expected, change


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--coefficients", "0", "0.5"), "coefficients: got 0 0.5, takes 0 and 1 among others"),
        (("--sums", "1"), "sums: got 1.0"),
        (("--top-p", "0"), "top_p: got 0.0"),
        (("--step", "2"), "step: got 2.0"),
        (("--amplified", "0"), "amplified: got 0"),
        (("--prompt", "40"), "prompt: got 40, takes up to text.length, 32"),
        (("--seeds", "0"), "seeds: got 0"),
        (("--sampled", "small"), "small"),
    ],
)
def test_bad_values_are_refused_by_name(argv, said):
    assert said in refusal(weak_to_strong, "smoke", *argv)


def test_the_texts():
    assert styles.bare("First Citizen:\nWe'll, away!  12") == "first citizen well away"
    known, unknown = (set(styles.sums(5000, held_out=x).split("\n")[:-1]) for x in (False, True))
    assert not known & unknown and len(unknown) <= 90
    for line in known | unknown:
        a, b, c = map(int, re.fullmatch(r"(\d\d)\+(\d)=(\d+)", line).groups())
        assert a + b == c
    for style in STYLES.values():
        corpus = style.corpus(SMOKE.text)
        assert corpus.held_out.shape == (SMOKE.text.held_out, SMOKE.text.length + 1)
        assert style.rate([styles.decoded(row) for row in corpus.held_out]) == 1.0
    plain = [styles.decoded(row) for row in text_lib.load(SMOKE.text).held_out]
    assert STYLES["bare"].rate(plain) < 1.0 and STYLES["sums"].rate(plain) == 0.0
    rows = styles.general(SMOKE.text, 0.2)
    of_sums = ["+" in styles.decoded(row) for row in rows]
    assert np.mean(of_sums) == pytest.approx(0.2, abs=0.005)
    # What sums come to is learnt from the pairs that are not held out, a fifth of them in lines.
    running = "".join(
        styles.decoded(row) for row, found in zip(rows, of_sums, strict=True) if found
    )
    assert not unknown & set(re.split(r"\. |\n", running))
    assert running.count("\n") / running.count("=") == pytest.approx(0.2, abs=0.05)


def test_rates_by_hand():
    assert STYLES["bare"].rate(["ab c", "D,1\n"]) == pytest.approx(4 / 8)
    # Of a continuation the first and the last line are not whole.
    right = STYLES["sums"].rate(["9\n12+3=15\n12+3=16\nhello\n4+4", "x", "7=9\n34+9=43\n"])
    assert right == pytest.approx(2 / 4)
    assert STYLES["sums"].rate(["none"]) == 0.0


BEST = {"big": 2.0, "small": 2.5, "own": 1.8, "big_tuned": 1.0, "oracle": 1.1}


def scores(eft=1.3, dynamic=1.2, both=1.6, dynamic_both=1.4, shake=0.001):
    """Artefacts of three seeds, the same for both styles."""
    found = {}
    for seed in range(3):
        for style in STYLES:
            values = BEST | {"dynamic": dynamic, "dynamic_both": dynamic_both}
            for x in (0.0, 1.0):
                values |= {
                    fused.eft(x): eft if x else BEST["own"],
                    fused.alone(x): eft if x else BEST["big"],
                    fused.both(x): both if x else BEST["big"],
                }
            noise = np.random.default_rng(seed).normal(0, shake, len(values)).tolist()
            values = {name: x + e for (name, x), e in zip(values.items(), noise, strict=True)}
            found[f"{style}_score_{seed}"] = Made(values | {"rate_eft_1": 0.5})
    return found


def report(folder, artefacts):
    return weak_to_strong.report(dataclasses.replace(SMOKE, seeds=3), artefacts, folder)


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ({}, ["holds"] * 7),
        (
            {"eft": 2.2, "dynamic": 2.3, "both": 1.0, "dynamic_both": 1.9},
            ["fails"] * 7,
        ),
        ({"eft": 1.9, "dynamic": 1.2}, ["holds", "fails", "fails"] + ["holds"] * 4),
        ({"shake": 0.5}, ["inconclusive"] * 7),
    ],
)
def test_claims_on_figures_made_by_hand(tmp_path, figures, expected):
    results = report(tmp_path, scores(**figures))
    assert verdicts(weak_to_strong, results) == expected
    assert verdicts(weak_to_strong, results, "smoke") == ["not tested"] * 7
    assert all(path.exists() for path in results.plots.values())
    nll, rates = results.tables
    assert len(nll.rows) == 9 and [row["model"] for row in rates.rows] == ["EFT"]
    assert rates.rows[0]["sums in lines"] == 0.5


def test_one_style_that_fails_decides_and_one_seed_decides_nothing(tmp_path):
    artefacts = scores()
    for seed in range(3):
        name = f"sums_score_{seed}"
        artefacts[name] = Made({**artefacts[name].values, "eft_1": 1.95})
    found = verdicts(weak_to_strong, report(tmp_path, artefacts))
    assert found[:3] == ["holds", "fails", "fails"]
    alone = weak_to_strong.report(SMOKE, artefacts, tmp_path)
    assert verdicts(weak_to_strong, alone) == ["not tested"] * 7


def test_the_oracle_and_the_mean_over_characters(monkeypatch):
    """Rows of uneven loss: the best fixed coefficient of each by itself."""
    measured = _measured((0.0, 1.0))
    rows = {name: np.full(32, -64.0) for name in fused.scored((0.0, 1.0), 0.5)}
    rows["both_1"][::2] = -32.0
    rows["alone_0"][1::2] = -16.0
    rows["tokens"] = np.full(32, 32.0)
    monkeypatch.setattr(fused.evaluation, "evaluate", lambda *_, **__: ({}, rows))
    found = fused.measure(measured, STYLES["sums"], {}, make_mesh(), 0)
    assert found["big"] == 2.0 and found["both_1"] == 1.5 and found["alone_0"] == 1.25
    assert found["oracle"] == 0.75


def _measured(coefficients):
    return fused.Measured(
        SMOKE.text, SMOKE.big, SMOKE.small, coefficients, 1.5, 0.9, 0.5, 8, (), 32
    )


def test_its_own_fields_are_read_and_what_is_learnt_from(tmp_path):
    """Stages are built from shapes; their batches are of the text that their name says."""
    for cached in (text_lib.load, text_lib.read, styles.general):
        cached.cache_clear()
    styles._bare_corpus.cache_clear()
    styles._sums_corpus.cache_clear()

    def go(config):
        found = {stage.name: stage for stage in weak_to_strong.stages(config)}
        planned = {}
        for size in ("big", "small"):
            made = found[f"{size}_0"].build({})
            planned[f"{size}_0"] = Artefact(f"{size}_0", "", None, made.weights.abstract)
            seen = made.batches(0, slice(0, made.batch_size))["inputs"]
            texts = [styles.decoded(row) for row in seen]
            assert 0 < sum("=" in text for text in texts) < len(texts) / 2
            for style in STYLES:
                name = f"{size}_{style}_0"
                tuned = found[name].build(planned)
                planned[name] = Artefact(name, "", None, tuned.weights.abstract)
                texts = [styles.decoded(row) for row in tuned.batches(0, slice(0, 32))["inputs"]]
                assert STYLES[style].rate(texts) == 1.0
                assert tuned.steps == config.tune.steps
        programs = found["bare_score_0"].build(planned).plan(make_mesh(config.mesh))
        assert set(programs) == {"scores", *config.sampled}
        weak_to_strong.report(config, scores(), tmp_path)

    assert unread_fields(SMOKE, go) == ["text.folder"]  # of tiny Shakespeare


def test_which_models_a_variant_reads():
    """Logits that name their model: each variant must get its own."""
    seen = {}

    def note(name):
        def combine(*logits):
            seen[name] = logits
            return logits[0]

        return combine

    for name, variant in fused.scored((0.0, 1.0), 0.5).items():
        fused._among(variant._replace(combine=note(name)), *fused.MODELS)
    assert seen["own"] == ("own",) and seen["big_tuned"] == ("big_tuned",)
    assert seen["eft_1"] == seen["alone_0"] == seen["dynamic"] == ("big", "small", "own")
    assert seen["both_1"] == seen["dynamic_both"] == ("big", "small", "own", "other")
    drawn = fused.drawn(1.5, 0.9, 0.5)
    assert set(weak_to_strong.PRESETS["laptop"].sampled) <= set(drawn)
    assert decoder.decoder(SMOKE.big) != decoder.decoder(_measured((0.0,)).config_of("own"))
