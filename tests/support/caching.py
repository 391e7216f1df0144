"""Uneven rows of text and a tiny teacher whose likeliest tokens are stored. As a script, a process
that stores them: python caching.py FOLDER CACHE; joins others by the environment.
"""

import sys
from pathlib import Path

import numpy as np
from support import generating

from kd_jax.data.top_k_records import Layout
from kd_jax.launch import evaluation, runtime, top_k_cache
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.precompute import data_hash
from kd_jax.models.decoder import decoder
from kd_jax.objectives.score import top_k_scores
from kd_jax.steps import make_eval_step

LAYOUT = Layout(4, generating.CONFIG.vocab, 16)
LENGTH = 6
STEP = make_eval_step(top_k_scores(decoder(generating.CONFIG), LAYOUT.k, chunk=4))


def text(rows=11):
    """Row i has 1 + i % 6 weighed positions, behind its beginning and before its padding."""
    tokens = np.random.default_rng(5).integers(1, LAYOUT.vocabulary, (rows, LENGTH + 1))
    tokens = tokens.astype(np.int32)
    place, ends = np.arange(LENGTH)[None], 1 + np.arange(rows)[:, None] % LENGTH
    return {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": (place < ends).astype(np.float32),
        "index": np.arange(rows, dtype=np.int32),
    }


def about(rows, **changes):
    made = top_k_cache.About("teacher", data_hash(rows), "tokenizer", LAYOUT)
    return made._replace(**changes)


def scored(rows, mesh, batch_size=8):
    params = {"model": generating.weights_on(mesh), "aux": {}}
    return evaluation.stream(STEP, params, {}, {}, rows, batch_size=batch_size, mesh=mesh)


def store(folder, rows, mesh, batch_size=8):
    found = scored(rows, mesh, batch_size)
    return top_k_cache.write(folder, about(rows), found, rows["weights"])


def main(folder: str, cache: str) -> None:
    runtime.init(4, cache=cache)
    store(Path(folder), text(), make_mesh(MeshConfig(data=4, fsdp=2)))


if __name__ == "__main__":
    main(*sys.argv[1:])
