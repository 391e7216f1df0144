"""Into how many pieces a sequence is cut: as many as a device's part of the batch asks for."""

import jax
import jax.numpy as jnp
import pytest

from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.sharding import on_mesh
from kd_jax.losses._pieces import pieces_of
from kd_jax.types import Factored


def head(batch, length, vocabulary):
    of = jax.ShapeDtypeStruct
    return Factored(of((batch, length, 8), jnp.float32), of((vocabulary, 8), jnp.float32))


@pytest.mark.parametrize(
    ("batch", "length", "vocabulary", "expected"),
    [
        (8, 64, 96, 1),  # all of it is small
        (8, 1024, 2**15, 8),  # 1024 tokens of 2^15 logits
        (8, 4096, 151_936, 128),  # 256 tokens, the least
        (8, 1536, 2**15, 12),
        (8, 1531, 2**15, 12),  # a prime: padded
        (8, 1100, 2**15, 10),  # 9 would do, 10 is even
        (4096, 4, 2**15, 4),  # never more than there are positions
    ],
)
def test_pieces_of_a_batch_on_one_device(batch, length, vocabulary, expected):
    assert pieces_of(head(batch, length, vocabulary), None) == expected


@pytest.mark.parametrize(
    "layout",
    [
        MeshConfig(),
        MeshConfig(fsdp=2),
        MeshConfig(data=2, tensor=4),
        MeshConfig(data=2, context=4),
        MeshConfig(data=1, tensor=2, context=4),
        MeshConfig(data=1, tensor=8),
    ],
    ids=str,
)
def test_eight_devices_have_an_eighth_of_the_logits_however_they_are_cut(layout):
    found = []

    def f(hidden, unembedding):
        found.append(pieces_of(Factored(hidden, unembedding), None))
        return hidden

    on = on_mesh(f, make_mesh(layout))
    for length in (1024, 4096):
        jax.eval_shape(on, *head(8, length, 2**15)[:2])
    assert found == [1, 4]


def test_a_size_of_ones_own():
    assert pieces_of(head(2, 10, 96), 4) == 3
    with pytest.raises(ValueError, match="chunk: got 0, takes at least 1"):
        pieces_of(head(2, 10, 96), 0)
