"""Merging checkpoints on disk: out of core, in NumPy, several tensors at once, without JAX.

`run.merge` is the whole of it, `python -m kd_jax.merging RECIPE.yaml OUT/` its command line;
docs/merging.md tells what a recipe says. From the outside in: `recipe` and `parameters` read it,
`inputs` opens models, `plan` (`layout`, `names`, `methods`) says what is done to each tensor,
`engine` does it by blocks (`blocks`, `task_vectors`, `sparsify`, `selection`, `random_bits`,
`flat`), and `shards`, `folder` and `card` make the output.
"""
