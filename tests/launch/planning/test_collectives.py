"""Traffic read from compiled programs: hand-written texts, and real ones of known traffic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from kd_jax.launch.planning import topologies
from kd_jax.launch.planning.collectives import traffic

HEAD = "HloModule jit_f, is_scheduled=true, num_partitions=8\n\n"


def program(*lines: str, before: str = "") -> str:
    body = "\n".join(f"  {line}" for line in lines)
    return f"{HEAD}{before}\nENTRY %main (p: f32[16]) -> f32[16] {{\n{body}\n}}\n"


def computation(name: str, *lines: str) -> str:
    body = "\n".join(f"  {line}" for line in lines)
    return f"%{name} (p: (s32[], f32[16])) -> (s32[], f32[16]) {{\n{body}\n}}\n\n"


FOUR = "replica_groups={{0,1,2,3},{4,5,6,7}}"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"%a = bf16[8,16]{{1,0}} all-gather(%p), {FOUR}", {"all-gather": 3 / 4 * 256}),
        (f"%a = f32[8]{{0}} all-reduce(%p), {FOUR}, to_apply=%add", {"all-reduce": 2 * 3 / 4 * 32}),
        (f"%a = f32[8]{{0}} reduce-scatter(%p), {FOUR}", {"reduce-scatter": 3 * 32}),
        (f"%a = (s8[8]{{0}}, s8[8]{{0}}) all-to-all(%p, %p), {FOUR}", {"all-to-all": 3 / 4 * 16}),
        ("%a = pred[8]{0} collective-permute(%p)", {"collective-permute": 8}),
        # Operands and results, of which the results count.
        (
            f"%a = (f32[2]{{0}}, f32[8]{{0:T(8,128)S(1)}}) all-gather-start(%p), {FOUR}",
            {"all-gather": 3 / 4 * 32},
        ),
        (
            f"%a = ((f32[2]{{0}}, f32[1]{{0}}), (f32[8]{{0}}, f32[4]{{0}})) all-gather-start(%p),"
            f" {FOUR}",
            {"all-gather": 3 / 4 * 48},
        ),
        (
            "%a = (f32[8]{0}, f32[8]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%p)",
            {"collective-permute": 32},
        ),
        ("%a = f32[8]{0} collective-permute-done(%p)", {}),
        # Groups by tiling, by axes, by a part of an axis, and all devices.
        ("%a = f32[8]{0} all-gather(%p), replica_groups=[4,2]<=[8]", {"all-gather": 1 / 2 * 32}),
        (
            "%a = f32[8]{0} all-gather(%p), replica_groups=[2,4]<=[4,2]T(1,0)",
            {"all-gather": 3 / 4 * 32},
        ),
        (
            "%a = f32[8]{0} all-gather(%p), replica_groups=mesh['x'=4,'y'=2] {'x'}, dimensions={0}",
            {"all-gather": 3 / 4 * 32},
        ),
        (
            "%a = f32[8]{0} all-gather(%p), replica_groups=mesh['x'=4,'y'=2] {'x':(2)2,'y'}",
            {"all-gather": 3 / 4 * 32},
        ),
        ("%a = f32[8]{0} all-gather(%p), replica_groups={}", {"all-gather": 7 / 8 * 32}),
        # One device: nothing is sent.
        ("%a = f32[8]{0} all-reduce(%p), replica_groups={{0},{1}}", {}),
        (
            "%a = (bf16[4,8]{1,0}, u32[], token[]) send(%p, %t), is_host_transfer=true, "
            'frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}',
            {"dcn": 64},
        ),
        ("%a = (bf16[4,8]{1,0}, u32[], token[]) send(%p, %t), channel_id=1", {}),
        # Names of operands are no instructions.
        ("%f = f32[8]{0} fusion(%all-gather, %all-reduce.1), kind=kLoop, calls=%nothing", {}),
    ],
)
def test_one_instruction(line, expected):
    assert traffic(program(line)) == pytest.approx(expected)


GATHER = f"%a = f32[8]{{0}} all-gather(%p), {FOUR}"


def loop(start: int, bound: int, step: int, direction: str = "LT") -> str:
    before = computation(
        "body",
        f"%one = s32[] constant({step})",
        "%i = s32[] get-tuple-element(%p), index=0",
        "%next = s32[] add(%i, %one)",
        GATHER,
        "ROOT %t = (s32[], f32[16]) tuple(%next, %a)",
    ) + computation(
        "condition",
        "%other = s32[] constant(99)",
        f"%bound = s32[]{{:T(128)}} constant({bound})",
        "%i = s32[] get-tuple-element(%p), index=0",
        f"ROOT %lt = pred[] compare(%i, %bound), direction={direction}",
    )
    return program(
        f"%zero = s32[] constant({start})",
        "%copied = s32[] copy(%zero)",
        "%init = (s32[], f32[16]) tuple(%copied, %p)",
        "ROOT %w = (s32[], f32[16]) while(%init), condition=%condition, body=%body",
        before=before,
    )


@pytest.mark.parametrize(
    ("given", "trips"),
    [((0, 5, 1), 5), ((0, 4, 2), 2), ((2, 7, 1), 5), ((0, 5, 1, "LE"), 6), ((0, 7, 2), 4)],
)
def test_trip_counts_read_from_the_condition(given, trips):
    assert traffic(loop(*given)) == {"all-gather": trips * 24}


def test_a_trip_count_that_is_written_down_goes_first():
    known = loop(0, 5, 1).replace(
        "body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}'
    )
    assert traffic(known) == {"all-gather": 3 * 24}
    unknown = (
        loop(0, 5, 1).replace("constant(5)", "parameter(0)").replace("constant(99)", "copy(%p)")
    )
    assert traffic(unknown) == {"all-gather": 24}


def test_calls_branches_and_fusions():
    double = GATHER.replace("f32[8]", "f32[16]")
    before = (
        computation("small", GATHER)
        + computation("large", double)
        + computation("all-reduce-scatter.1", f"%r = f32[8]{{0}} all-reduce(%p), {FOUR}")
        + computation("wrapped", f"ROOT %r = f32[2]{{0}} reduce-scatter(%p), {FOUR}")
    )
    found = traffic(
        program(
            "%c = f32[16] conditional(%k, %p, %p), branch_computations={%small, %large}",
            "%d = f32[16] conditional(%k, %p, %p), true_computation=%large, "
            "false_computation=%small",
            "%e = f32[16] call(%p), to_apply=%small",
            "%f = f32[2] fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1",
            "%s = ((f32[8]), f32[2], u32[]) async-start(%p), calls=%wrapped",
            "%u = ((f32[8]), f32[2], u32[]) async-update(%s), calls=%wrapped",
            "%w = f32[2] async-done(%u), calls=%wrapped",
            before=before,
        )
    )
    assert found == {"all-gather": 48 + 48 + 24, "reduce-scatter": 3 / 4 * 32 + 3 * 8}


def test_pieces_of_one_transfer_count_once():
    """TPU: an all-gather that overlaps with several products stands in the fusion of each."""

    def piece(chain: str) -> str:
        return (
            f"%a = f32[8]{{0}} all-gather(%p), channel_id=7, {FOUR}, "
            f'frontend_attributes={{chain_id="{chain}"}}'
        )

    before = computation("one", piece("0")) + computation("two", piece("0"))
    before += computation("other", piece("1"))
    calls = [f"%{n} = f32[8] fusion(%p), calls=%{n}" for n in ("one", "two", "other")]
    assert traffic(program(*calls, before=before)) == {"all-gather": 2 * 24}


def devices(platform):
    if platform == "cpu":
        return jax.devices("cpu")
    return topologies.devices_of("v5e:2x4")


@pytest.mark.parametrize("platform", ["cpu", pytest.param("tpu", marks=pytest.mark.libtpu)])
def test_a_scan_of_collectives(platform):
    mesh = Mesh(np.array(devices(platform)), ("x",))

    def f(a):
        def body(c, x):
            gathered = jax.lax.all_gather(x, "x")
            back = jax.lax.psum_scatter(jnp.sin(gathered), "x")
            ring = jax.lax.ppermute(x, "x", [(i, (i + 1) % 8) for i in range(8)])
            return jax.lax.psum(c * x, "x") + back, ring

        return jax.lax.scan(body, a[0], a)

    specs = P(None, "x")
    sharded = jax.shard_map(
        f, mesh=mesh, in_specs=specs, out_specs=(P("x"), specs), check_vma=False
    )
    shape = jax.ShapeDtypeStruct((5, 8 * 64, 128), np.float32, sharding=NamedSharding(mesh, specs))
    lowered = jax.jit(sharded).trace(shape).lower(lowering_platforms=(platform,))
    size = 64 * 128 * 4
    assert traffic(lowered.compile().as_text()) == {
        "all-gather": 5 * 7 * size,
        "all-reduce": 5 * 2 * 7 / 8 * size,
        "collective-permute": 5 * size,
        "reduce-scatter": 5 * 7 * size,
    }
