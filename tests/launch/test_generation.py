"""Generation over a set of prompts: what single prompts give, on any mesh, hosts and batch size."""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import generating
from support.processes import TESTS, finish, start_joined

from kd_jax.launch import generation
from kd_jax.launch.errors import UserError
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.stages import shapes_on
from kd_jax.launch.weights import from_init
from kd_jax.models import contrast, sampler
from kd_jax.models.decoder import decoder, rules

PROMPTS, NEW, CONFIG = generating.PROMPTS, generating.NEW, generating.CONFIG
DRAWN = {"temperature": 2.0, "top_k": 9}


@functools.cache
def weights():
    return generating.weights_on(make_mesh())


@functools.cache
def one_by_one(number, drawn=False):
    """The tokens of a prompt by itself, all of them."""
    prompt = PROMPTS[number]
    tokens, _ = sampler.generate(
        CONFIG,
        jax.device_get(weights()),
        np.array([prompt + [0] * (6 - len(prompt))], np.int32),
        np.array([len(prompt)], np.int32),
        jax.random.key(3),
        max_new=NEW,
        numbers=np.array([number], np.int32),
        **(DRAWN if drawn else {}),
    )
    return np.asarray(tokens)[0]


def generate(prompts=PROMPTS, mesh=None, placed=None, **settings):
    settings = {"batch_size": 8, "max_new": NEW, "seed": 3} | settings
    mesh = mesh or make_mesh()
    return generation.generate(CONFIG, placed or weights(), prompts, mesh=mesh, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 8, 11])
def test_each_prompt_is_continued_as_by_itself(count):
    """Whether or not the batch divides them; lengths are uneven."""
    found = generate(PROMPTS[:count], length=max(map(len, PROMPTS)))
    assert len(found) == count
    for number, tokens in enumerate(found):
        np.testing.assert_array_equal(tokens, one_by_one(number))
    assert len({tuple(tokens) for tokens in found}) > count // 2  # a constant would prove little


def second_of_two(first, second):
    return second


@pytest.mark.slow
def test_another_sampler_over_several_models():
    """Of a model and one that it is not, on a mesh, the second is drawn from."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    placed = generating.weights_on(mesh)
    found = generation.generate(
        (CONFIG, CONFIG), (jax.tree.map(jnp.negative, placed), placed), PROMPTS, mesh=mesh,
        batch_size=4, max_new=NEW, seed=3, sample=contrast.generate_difference,
        combine=second_of_two, **DRAWN,
    )  # fmt: skip
    for number, tokens in enumerate(found):
        np.testing.assert_array_equal(tokens, one_by_one(number, drawn=True))


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [8, 16])
def test_draws_are_of_the_prompt_and_its_number(batch_size):
    found = generate(batch_size=batch_size, **DRAWN)
    for number, tokens in enumerate(found):
        np.testing.assert_array_equal(tokens, one_by_one(number, drawn=True))
    greedy, other = generate(), generate(seed=4, **DRAWN)
    assert any((a != b).any() for a, b in zip(found, greedy, strict=True))
    assert any((a != b).any() for a, b in zip(found, other, strict=True))


def test_a_mesh_changes_nothing():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    found = generate(mesh=mesh, placed=generating.weights_on(mesh), batch_size=4)
    for number, tokens in enumerate(found):
        np.testing.assert_array_equal(tokens, one_by_one(number))


def test_a_text_ends_before_its_first_stop():
    stop = (int(one_by_one(0)[2]), int(one_by_one(4)[0]))
    found = generate(stop=stop)
    for number, tokens in enumerate(found):
        whole = one_by_one(number)
        hits = np.flatnonzero(np.isin(whole, stop))
        np.testing.assert_array_equal(tokens, whole[: hits[0] if len(hits) else NEW])
    assert len(found[4]) == 0 and len(found[0]) <= 2


def test_a_plan_names_what_is_run():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shapes = shapes_on(from_init(decoder(CONFIG).init, jax.random.key(0)), mesh, rules(CONFIG))
    settings = {"batch_size": 8, "length": 6, "max_new": NEW, "mesh": mesh}
    program = generation.program(CONFIG, shapes, **settings)
    tokens, counts = program.jitted.lower(*program.arguments).out_info
    assert (tokens.shape, counts.shape) == ((8, NEW), (8,))
    again = generation.program(CONFIG, shapes, **settings)
    assert again.jitted is program.jitted


def test_what_cannot_be_continued_is_said():
    with pytest.raises(ValueError, match="prompts: got 0"):
        generate([])
    with pytest.raises(ValueError, match="of at least one token each"):
        generate([[1], []])
    with pytest.raises(ValueError, match="length: got 2, takes at least the prompts' 6"):
        generate(length=2)
    with pytest.raises(UserError, match="batch_size: got 3"):
        generate(batch_size=3)


@pytest.mark.multiprocess
def test_two_processes_give_the_texts_of_one(tmp_path):
    cache = jax.config.jax_compilation_cache_dir or ""
    script = [sys.executable, str(TESTS / "support" / "generating.py"), str(tmp_path), cache]
    codes, said = finish(*start_joined(2, script))
    assert codes == [0, 0], said[-6000:]
    for process in range(2):
        found = json.loads((tmp_path / f"texts-{process}.json").read_text())
        assert len(found) == len(PROMPTS)
        for number, tokens in enumerate(found):
            np.testing.assert_array_equal(tokens, one_by_one(number))
