"""Rounds of self-play: pairs of the iterate's own texts, no recompiling, the same after a kill."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import generating

from kd_jax.data import preferences, sources
from kd_jax.launch import generation, requests, run, self_play
from kd_jax.launch.claims import Results
from kd_jax.launch.config import Settings
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.stages import Compute, Stage, Training, materialise, shapes_on
from kd_jax.launch.weights import from_init
from kd_jax.losses.preference.margin import dpo
from kd_jax.models import decoder
from kd_jax.objectives.prefer import prefer
from kd_jax.objectives.references import model_sequence_log_probs, precomputed
from kd_jax.steps import make_train_step
from kd_jax.trees import flatten

pytestmark = pytest.mark.slow  # all together

CONFIG, PROMPTS, NEW = generating.CONFIG, generating.PROMPTS, generating.NEW
EOS, LENGTH, SAMPLES, STEPS, PAIRS = 3, 12, 4, 2, 8
MESH = MeshConfig(data=2, fsdp=2, tensor=2)
ROUNDS = ("iterate_1", "iterate_2")


def even(prompt, texts):
    """A reward: whether the first token is even, coarse enough for ties."""
    return [float(len(text) > 0 and text[0] % 2 == 0) for text in texts]


def written(name="pairs", start="start", seed=0, **changes):
    def weights(name):
        return lambda found: found[name].weights() if name in found else initial()

    settings = {
        "config": CONFIG,
        "iterate": weights(start),
        "references": {"reference": weights("start")},
        "prompts": lambda: PROMPTS,
        "label": self_play.rewarded(even),
        "samples": SAMPLES,
        "prompt_length": 6,
        "length": LENGTH,
        "eos_id": EOS,
        "batch_size": 8,
        "mesh": MESH,
        "seed": seed,
        "max_new": NEW,
        "temperature": 3.0,
        "needs": tuple({start: None, "start": None}),
        "depends": {},
    }
    return self_play.stage(name, **(settings | changes))


def initial():
    return from_init(generating.init, 1.0)


@functools.cache
def made(eos_id=EOS):
    """(all completions, what the stage keeps) of the first iterate."""
    tree, kept = written(eos_id=eos_id).build({}).run()
    assert tree is None
    weights = generating.weights_on(make_mesh(MESH))
    texts = self_play.completions(
        CONFIG, weights, PROMPTS, samples=SAMPLES, batch_size=8, mesh=make_mesh(MESH), seed=0,
        max_new=NEW, stop=() if eos_id is None else (eos_id,), temperature=3.0,
    )  # fmt: skip
    return texts, kept


def of_stage(kept):
    rows = {name: x for name, x in kept.items() if isinstance(x, np.ndarray)}
    return self_play.pairs_of(types.SimpleNamespace(name="pairs", rows=rows))  # pyright: ignore


def test_completions_are_those_of_the_prompt_given_several_times():
    texts, kept = made()
    assert [len(own) for own in texts] == [SAMPLES] * len(PROMPTS)
    assert any(len({tuple(text) for text in own}) > 1 for own in texts)
    mesh, repeated = make_mesh(MESH), [x for x in PROMPTS for _ in range(SAMPLES)]
    flat = generation.generate(
        CONFIG, generating.weights_on(mesh), repeated, batch_size=8, mesh=mesh, seed=0,
        max_new=NEW, stop=(EOS,), temperature=3.0,
    )  # fmt: skip
    for own, stored, lengths, i in zip(
        texts, kept["tokens"], kept["lengths"], range(0, len(flat), SAMPLES), strict=True
    ):
        for k in range(SAMPLES):
            np.testing.assert_array_equal(own[k], flat[i + k])
            np.testing.assert_array_equal(own[k], stored[k, : lengths[k]])


@pytest.mark.parametrize("eos_id", [EOS, None])
def test_pairs_are_the_best_and_the_worst_with_their_ends(eos_id):
    texts, kept = made(eos_id)
    rows, expected = of_stage(kept), []
    for prompt, own in zip(PROMPTS, texts, strict=True):
        rewards = even(prompt, own)
        sides = own[int(np.argmax(rewards))], own[int(np.argmin(rewards))]
        if max(rewards) > min(rewards):
            end = [] if eos_id is None else [eos_id]
            expected.append([[*x.tolist(), *(end if len(x) < NEW else [])] for x in sides])
    found = [
        [rows[side]["targets"][i][rows[side]["weights"][i] != 0].tolist() for side in rows]
        for i in range(kept["pairs"])
    ]
    assert found == expected and kept["prompts"] == len(PROMPTS)
    assert list(rows) == ["chosen", "rejected"]


def test_log_probabilities_are_the_models_own():
    _, kept = made()
    mesh = make_mesh(MESH)
    other = from_init(generating.init, 2.0)
    _, second = written(references={"reference": lambda found: other}).build({}).run()
    for name, phase, found in (
        ("iterate", 1.0, kept), ("reference", 1.0, kept), ("reference", 2.0, second)
    ):  # fmt: skip
        weights = materialise(from_init(generating.init, phase), mesh, decoder.rules(CONFIG))
        for rows in of_stage(found).values():
            text = {x: jnp.asarray(rows[x]) for x in ("inputs", "targets", "weights")}
            expected = model_sequence_log_probs(decoder.decoder(CONFIG), weights, text)
            np.testing.assert_allclose(rows[f"{name}_log_probs"], expected, rtol=1e-4, atol=1e-4)


def test_equal_texts_are_no_pair_whatever_is_preferred():
    texts = [[np.array([1]), np.array([1]), np.array([2])]]
    chosen = preferences.Choices(*(np.array(x) for x in ([0, 0], [0, 0], [1, 2])))
    pairs = self_play.chosen_pairs([[5]], texts, chosen, eos_id=None, max_new=1)
    assert pairs == [([5], [1], [2])]
    with pytest.raises(ValueError, match="stage pairs: none of 11 prompts has a pair"):
        written(label=self_play.rewarded(lambda x, own: [0.0] * len(own))).build({}).run()


class Died(Exception):
    """Stands for a kill."""


def rounds(dies_in=None, wrote=None):
    objective = prefer(
        decoder.decoder(CONFIG),
        {"dpo": functools.partial(dpo, beta=0.1)},
        precomputed("iterate_log_probs"),
    )

    def stages(request):
        pairs = f"{request.result}_pairs"

        def label(prompts, texts):
            if wrote is not None:
                wrote.append(pairs)
            if dies_in == pairs:
                raise Died
            return self_play.rewarded(even)(prompts, texts)

        def train(found):
            @functools.cache
            def source():
                rows = self_play.pairs_of(found[pairs])
                return sources.array_batches(rows, seed=0, name="pairs", batch_size=PAIRS)

            def batches(step, rows):
                if dies_in == request.result and step == 1:
                    raise Died
                return source()(step, rows)

            return Training(
                step=make_train_step(objective, optax.sgd(0.1)),
                weights=found[request.start].weights(),
                batches=batches,
                batch=self_play.shapes_of(PAIRS, LENGTH, ("iterate", "reference")),
                batch_size=PAIRS,
                steps=STEPS,
                rules=decoder.rules(CONFIG),
            )

        return (
            written(pairs, request.start, seed=request.number, label=label),
            Stage(request.result, train, (request.start, pairs), {}),
        )

    def start(found):
        mesh = make_mesh(MESH)
        own = materialise(initial(), mesh, decoder.rules(CONFIG))
        return Compute(lambda: (own, {}), shapes_on(initial(), mesh, decoder.rules(CONFIG)))

    return (Stage("start", start, (), {}), *requests.stream("start", ROUNDS, stages))


def execute(folder, stages):
    """{stage: its arrays: weights by path, and rows}."""
    found = {}

    def report(config, artefacts, folder):
        for name, one in artefacts.items():
            rows = dict(one.rows)
            if name in ("start", *ROUNDS):
                tree = materialise(one.weights(), make_mesh(MESH), decoder.rules(CONFIG))
                rows |= {x: np.asarray(leaf) for x, leaf in flatten(jax.device_get(tree)).items()}
            found[name] = rows
        return Results()

    module = types.SimpleNamespace(
        __name__="t", __doc__="Rounds.", stages=lambda _: stages, report=report, CLAIMS=()
    )
    config = Settings(mesh=MESH, checkpoint_every=1)
    run.execute(module, "t", "smoke", config, folder)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(the arrays of all stages, compilations while each round's pairs were labelled)."""
    compiled, counts = [], []
    jax.monitoring.register_event_listener(
        lambda name, **_: compiled.append(name) if name.endswith("cache_misses") else None
    )
    try:

        class Counted(list):
            def append(self, name):
                counts.append(len(compiled))

        found = execute(tmp_path_factory.mktemp("whole"), rounds(wrote=Counted()))
    finally:
        jax.monitoring.clear_event_listeners()
    return found, [*counts, len(compiled)]


def test_sampler_and_trainer_alternate_without_recompiling(whole):
    """Although no two rounds have the same number of pairs."""
    found, counts = whole
    pairs = [len(found[f"{name}_pairs"]["chosen/index"]) for name in ROUNDS]
    assert len(set(pairs)) > 1
    # From label to label: score, train, keep, sample. The first time round compiles.
    assert counts[1] > counts[0]
    assert counts[2] == counts[1]


def test_each_round_starts_from_the_one_before(whole):
    found, _ = whole
    for before, after in zip(("start", *ROUNDS), ROUNDS, strict=False):
        assert any((found[before][x] != found[after][x]).any() for x in found[after])
    first, last = (found[f"{name}_pairs"] for name in (ROUNDS[0], ROUNDS[-1]))
    for side in self_play.SIDES:
        np.testing.assert_array_equal(
            first[f"{side}/iterate_log_probs"], first[f"{side}/reference_log_probs"]
        )
        moved = last[f"{side}/iterate_log_probs"] != last[f"{side}/reference_log_probs"]
        assert moved.all()


def test_a_killed_run_goes_on_in_the_round_where_it_was(whole, tmp_path):
    """Killed in a training, and then among completions."""
    for dies_in in ("iterate_1", "iterate_2_pairs"):
        with pytest.raises(Died):
            execute(tmp_path, rounds(dies_in))
    wrote = []
    found = execute(tmp_path, rounds(wrote=wrote))
    assert wrote == ["iterate_2_pairs"]
    for name, rows in whole[0].items():
        assert rows.keys() == found[name].keys()
        for path, x in rows.items():
            np.testing.assert_array_equal(found[name][path], x, err_msg=f"{name} {path}")


def test_a_plan_names_what_is_run():
    mesh = make_mesh(MESH)
    work = written().build({})
    programs = work.plan(mesh)
    tokens, _ = programs["completions"].jitted.lower(*programs["completions"].arguments).out_info
    assert tokens.shape == (8, NEW)
    output = programs["log_probs"].jitted.lower(*programs["log_probs"].arguments).out_info
    assert output.rows["log_prob"].shape == (8,)
    again = work.plan(mesh)  # one function, so that it is traced once
    assert all(again[name].jitted is programs[name].jitted for name in programs)


def test_what_kept_no_pairs_is_refused():
    with pytest.raises(ValueError, match="stage pairs kept no pairs"):
        of_stage({"tokens": np.zeros((1, 2, 3))})
