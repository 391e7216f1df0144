"""Prompts of uneven length for a tiny decoder. As a script, a process that continues them:
python generating.py FOLDER CACHE; joins others by the environment.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.launch import generation, runtime
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.stages import materialise
from kd_jax.launch.weights import from_init
from kd_jax.models.decoder import DecoderConfig, decoder, rules

CONFIG = DecoderConfig(vocab=32, width=16, depth=2, heads=4, kv_heads=2, head_dim=8, mlp=24)
NEW = 5
_rng = np.random.default_rng(0)
PROMPTS = [_rng.integers(1, 32, n).tolist() for n in (6, 1, 4, 2, 5, 3, 6, 1, 2, 4, 3)]


def init(phase):
    """No random numbers, so that every machine makes the same."""
    shapes = jax.eval_shape(decoder(CONFIG).init, jax.random.key(0))
    leaves, outline = jax.tree.flatten(shapes)
    made = [
        jnp.sin(phase + i + jnp.arange(x.size, dtype=jnp.float32) ** 2).reshape(x.shape)
        for i, x in enumerate(leaves)
    ]
    return outline.unflatten(made)


def weights_on(mesh):
    return materialise(from_init(init, 1.0), mesh, rules(CONFIG))


def main(folder: str, cache: str) -> None:
    runtime.init(4, cache=cache)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    found = generation.generate(
        CONFIG, weights_on(mesh), PROMPTS, batch_size=8, mesh=mesh, max_new=NEW
    )
    file = Path(folder) / f"texts-{jax.process_index()}.json"
    file.write_text(json.dumps([tokens.tolist() for tokens in found]))


if __name__ == "__main__":
    main(*sys.argv[1:])
