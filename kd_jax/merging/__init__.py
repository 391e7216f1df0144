"""Merging: pytrees of weights in, a pytree out.

One method a module. Arithmetic is in float32 and each result leaf has the dtype of the base (of the
first model where there is no base). Everything is jittable, shardable and differentiable in its
coefficients, so that learned merging is `merge(frozen["taus"], params["lam"])`. A method is flat
(over all leaves together), per leaf, per row (the last axis of a leaf) or elementwise, and says so.

Only floating leaves can be merged; counters and position ids are taken out first with
`kd_jax.trees.partition` and put back with `kd_jax.trees.combine`.

Checkpoints on disk are merged by `kd_jax.merging.disk`, without JAX; what both compute alike is in
`kd_jax.merging.formulas`.
"""
