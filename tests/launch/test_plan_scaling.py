"""At a fixed global batch, bytes and FLOPs of a chip fall as chips are added."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json
import jax
from experiments.scaling import language_models
from kd_jax.launch import plan
from kd_jax.launch.planning import compiled
from kd_jax.launch.mesh import MeshConfig
from kd_jax.models.decoder import DecoderConfig

real = jax.stages.Lowered.compile
by_compiler = []
def compile(lowered):
    made = real(lowered)
    by_compiler.append(made.cost_analysis()["flops"])
    return made
jax.stages.Lowered.compile = compile

model = DecoderConfig(vocab=512, width=128, depth=1, heads=4, kv_heads=4, head_dim=32, mlp=256)
config = language_models.Config(
    mesh=MeshConfig(data=1, fsdp=-1), model=model, teacher=model, methods=("kd",),
    rows=128, length=64,
)
rows = []
for chips in (64, 32, 16, 8):  # the first decides how many devices this process has
    rows += plan.of(language_models, "lm", "tiny", config, f"cpu:{chips}")
print(json.dumps([rows, by_compiler]))
"""


@pytest.mark.slow
def test_from_8_to_64():
    made = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT], capture_output=True, text=True, timeout=300
    )
    assert made.returncode == 0, made.stderr
    rows, by_compiler = json.loads(made.stdout)
    assert [row["devices"] for row in rows] == [64, 32, 16, 8]
    assert {row["flops"] for row in rows} == {rows[0]["flops"]}
    for i in range(3):
        more, less = rows[i : i + 2]
        assert by_compiler[i] < 0.6 * by_compiler[i + 1]
        for name in ("parameters", "optimizer", "frozen", "batch"):
            # All but norms and counters is split.
            assert more["bytes"][name] < 0.6 * less["bytes"][name], (name, more["devices"])
        # The weights of a layer are gathered on any number of chips.
        assert more["bytes"]["temporaries"] < less["bytes"]["temporaries"]
        assert more["bytes"]["peak"] < 0.8 * less["bytes"]["peak"]
