"""No step of a language model holds [B, T, V], and on TPU none holds [B, H, T, T]."""

import dataclasses
import functools
import math

import jax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from support.hlo import arrays_in

from experiments.scaling import language_models
from kd_jax.launch.loop import jit_step
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.planning import compiled, topologies
from kd_jax.launch.sharding import shardings_of
from kd_jax.launch.stages import Program, placed
from kd_jax.models.decoder import DecoderConfig
from kd_jax.models.parts import fetched

# Numbers that nothing else is a multiple of. With so many logits heads are streamed in pieces, of
# 512 positions of two rows of a device or 768 of one.
ROWS, LENGTH, VOCAB, HEADS = 8, 1536, 28160, 2
MODEL = DecoderConfig(
    vocab=VOCAB, width=128, depth=2, heads=HEADS, kv_heads=2, head_dim=128, mlp=192
)
MESH = MeshConfig(data=2, fsdp=2)


@functools.cache
def arrays(method, platform, model=MODEL):
    """Of the compiled step, on one of four devices, which has a fourth of the rows."""
    config = language_models.Config(
        mesh=MESH, model=model, teacher=model, rows=ROWS, length=LENGTH, methods=(method,)
    )
    (stage,) = language_models.stages(config)
    training = stage.build({})
    mesh = make_mesh(MESH, topologies.devices_of("cpu:4" if platform == "cpu" else "v5e:2x2"))
    found = placed(method, training, mesh)
    traced = jit_step(found.step, shardings_of(found.state), mesh).trace(
        found.state, found.frozen, found.batch
    )
    _, text = compiled._compile(traced.lower(lowering_platforms=(platform,)), platform)
    return arrays_in(text)


def of_size(shapes, *dimensions):
    """Those that are [..., *dimensions] in some order, flattened perhaps."""
    return [s for s in shapes if math.prod(s) and math.prod(s) % math.prod(dimensions) == 0]


def logits(shapes):
    return of_size(shapes, LENGTH, VOCAB)


def scores(shapes):
    return [s for s in of_size(shapes, LENGTH, LENGTH) if s.count(LENGTH) == 2]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["npo", "dpo", "kd"])
def test_no_logits_of_a_whole_sequence(method):
    found = arrays(method, "cpu")
    assert not logits(found)
    assert any(VOCAB in shape and {512, 768} & set(shape) for shape in found)  # in pieces


@pytest.mark.slow
def test_logits_of_a_dense_head_are_seen():
    assert logits(arrays("npo", "cpu", dataclasses.replace(MODEL, logits_head=True)))


@pytest.mark.libtpu
@pytest.mark.parametrize("method", ["npo", "dpo", "kd"])
def test_on_tpu_no_attention_scores_either(method):
    found = arrays(method, "tpu")
    assert not logits(found)
    assert not scores(found)


def test_attention_scores_are_seen_where_they_are():
    """On the CPU, whose attention is dense."""
    assert scores(arrays("npo", "cpu"))


@pytest.mark.libtpu
def test_the_peak_of_a_chip_leaves_out_what_lies_in_the_hosts_memory():
    mesh = make_mesh(MESH, topologies.devices_of("v5e:2x2"))
    held = NamedSharding(mesh, PartitionSpec(), memory_kind="pinned_host")
    layers = jax.ShapeDtypeStruct((8, 1024, 1024), "float32", sharding=held)  # 32 MiB
    rows = jax.ShapeDtypeStruct((8, 1024), "float32", sharding=NamedSharding(mesh, PartitionSpec()))

    def f(layers, x):
        return jax.lax.scan(lambda x, w: (x @ fetched(w), None), x, layers)[0]

    account = compiled.Compiler("tpu").account(Program(jax.jit(f), (layers, rows)))
    assert account.peak < 32 * 2**20


def test_arrays_of_traces_and_of_programs():
    def f(x):
        y = jax.lax.scan(lambda c, _: (c @ c, None), x, length=3)[0]
        return jax.numpy.sum(y[None] + 1.0)

    traced = jax.jit(f).trace(jax.ShapeDtypeStruct((6, 6), "float32"))
    assert arrays_in(traced.jaxpr) >= {(6, 6), ()}
    text = """HloModule jit_f
%inside (p: f32[6]) -> f32[6,7] {
  %a = f32[6,9]{1,0} broadcast(%p)
  ROOT %b = f32[6,7]{1,0} slice(%a)
}

ENTRY %main (p: f32[6]) -> (bf16[1,6,7], s32[]) {
  %c = bf16[1,6,7]{2,1,0:T(8,128)} fusion(%p), kind=kLoop, calls=%inside
  ROOT %d = (bf16[1,6,7]{2,1,0}, s32[]) tuple(%c, %k)
}
"""
    assert arrays_in(text) == {(6, 7), ()}
