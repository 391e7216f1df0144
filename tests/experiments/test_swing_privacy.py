"""Secrets in a text: where they stand, what is private, what is exposed; claims by hand."""

import dataclasses

import jax
import numpy as np
import pytest
from support.experiment_checks import Made, changed, outline, refusal, verdicts

from experiments.distillation import swing_privacy
from experiments.distillation.common import text as text_lib
from experiments.distillation.parts import canaries, swing_report
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.stages import materialise
from kd_jax.launch.weights import from_init
from kd_jax.models import decoder

SMOKE = swing_privacy.PRESETS["smoke"]
SECRETS = canaries.Secrets(3, 2, 4, 0)


def test_stages_and_what_they_depend_on():
    students = {f"{name}_0": ("teacher",) for name in ("plain", "swing", "flat")}
    assert outline(swing_privacy, SMOKE) == {"teacher": ()} | students
    for change, expected in (
        ({"sigma": 0.2}, set(students)),
        ({"copies": 3}, {"teacher", *students}),
        ({"text": dataclasses.replace(SMOKE.text, folder="elsewhere")}, set()),
    ):
        found = changed(swing_privacy, SMOKE, dataclasses.replace(SMOKE, **change))
        assert found == expected, change
    assert "digits" in refusal(swing_privacy, "smoke", "--digits", "0")


def test_secrets_stand_in_the_text_as_lines_of_their_own():
    text = "\n".join(f"line {i}" for i in range(20))
    told = canaries.hidden_in(text, SECRETS)
    lines = told.split("\n")
    for before, pin in canaries.sentences(SECRETS):
        assert lines.count(before + pin) == 4 and len(pin) == 2
    assert [line for line in lines if line.startswith("line")] == text.split("\n")
    assert len(lines) == 20 + 12
    assert told == canaries.hidden_in(text, SECRETS)
    assert told != canaries.hidden_in(text, SECRETS._replace(seed=1))


def test_the_digits_of_secrets_are_private_and_nothing_else():
    text = "1234 of the pin of ann is 5678, the year 1600"
    rows = canaries.rows(text, len(text) - 1)
    private = "".join(
        text_lib.CHARACTERS[token]
        for token, flag in zip(rows["targets"][0], rows["private"][0], strict=True)
        if flag
    )
    assert private == "5678"


@pytest.mark.slow
def test_exposure_is_the_rank_of_the_digits():
    config = SMOKE.teacher
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    weights = from_init(decoder.decoder(config).init, jax.random.key(0))
    params = materialise(weights, mesh, decoder.rules(config))
    bits = canaries.exposures(config, params, SECRETS, mesh, batch_size=50)
    assert len(bits) == 3 and all(0 <= x <= np.log2(100) for x in bits)

    # By hand: the likelihood of each number is that of its digits after the sentence.
    before, pin = canaries.sentences(SECRETS)[0]
    model = decoder.decoder(config)

    @jax.jit
    def logits_of(inputs):
        return model.apply(params, {"inputs": inputs}).head.logits()

    def nll(number):
        tokens = np.array([text_lib.characters(f"\n{before}{number}")], np.int32)
        logits = logits_of(tokens[:, :-1])
        log_probs = jax.nn.log_softmax(logits)[0]
        places = range(len(before), len(before) + 2)
        return -sum(float(log_probs[i, tokens[0, i + 1]]) for i in places)

    own = nll(pin)
    better = sum(nll(f"{i:02d}") < own - 1e-5 for i in range(100) if f"{i:02d}" != pin)
    assert bits[0] == pytest.approx(np.log2(100) - np.log2(better + 1), abs=0.1)


@pytest.mark.parametrize(
    ("swing", "nll", "expected"),
    [(1.5, 2.01, ["holds", "holds"]), (6.0, 2.2, ["fails", "fails"])],
)
def test_claims_on_endings_made_by_hand(tmp_path, swing, nll, expected):
    def made(bits, loss, seed):
        history = [
            {"step": 0, "exposure/mean": 1.0, "held_out/nll": 4.0},
            {"step": 9, "exposure/mean": bits + 0.01 * seed, "held_out/nll": loss},
        ]
        return Made(history=history)

    found = {"teacher": made(13.0, 2.0, 0)}
    for seed in (0, 1):
        found |= {f"plain_{seed}": made(12.0, 2.0, seed), f"swing_{seed}": made(swing, nll, seed)}
    labels = {"plain": "plain", "swing": "swing"}
    results = swing_report.results(labels, (0, 1), 13.3, found, tmp_path)
    assert verdicts(swing_privacy, results) == expected
    assert results.values["teacher_exposure"] == 13.0
    assert all(path.exists() for path in results.plots.values())
