"""Losses: arrays in, unreduced float32 arrays out. They know no model, no mask and no mesh.

Reduction is the objective's, through `kd_jax.types.weighted_sum`.
"""
