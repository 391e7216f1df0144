"""What a loss over a large vocabulary takes besides arguments and results, by compilation alone."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from benchmarks.vocabulary import dense, shapes, streamed
from kd_jax.launch.planning.topologies import devices_of

WIDTH = 2048


def temporaries(form, batch, length, vocabulary, sharding=None):
    """Bytes, of value and gradient with respect to hidden states and unembedding in bfloat16."""
    given = [
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        for x in shapes(batch, length, vocabulary, WIDTH, jnp.bfloat16)
    ]
    program = jax.jit(jax.value_and_grad(form, (0, 1))).lower(*given).compile()
    return program.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(("batch", "length", "vocabulary"), [(8, 4096, 32_000), (8, 1024, 128_256)])
def test_an_eighth_of_what_logits_written_out_take(batch, length, vocabulary):
    ours = temporaries(streamed, batch, length, vocabulary)
    assert 8 * ours < temporaries(dense, batch, length, vocabulary)


@pytest.mark.libtpu
def test_a_chip_holds_32k_tokens_of_a_vocabulary_of_152k_where_logits_would_not_fit():
    chip = SingleDeviceSharding(devices_of("v5e:2x2")[0])
    ours = temporaries(streamed, 8, 4096, 151_936, chip)
    assert ours < 2e9
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        temporaries(dense, 8, 4096, 151_936, chip)
    assert 8 * temporaries(streamed, 8, 4096, 32_000, chip) < temporaries(
        dense, 8, 4096, 32_000, chip
    )
