"""The impure edge: runtime, mesh and sharding, stages, the fit loop, checkpoints, writers, plans.

Everything that touches devices, disks, signals or the clock is here; the rest of the package is
pure functions that know nothing of it.
"""
