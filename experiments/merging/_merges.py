"""The merges that ties_digits compares, as one program."""

import functools
from typing import Any

import jax

from kd_jax.merging.arithmetic import task_arithmetic, task_vector
from kd_jax.merging.average import average
from kd_jax.merging.ties import ties


@functools.cache  # one compilation for all seeds
def merges(density: float, scale: float) -> Any:
    """A jitted (theta0, thetas) -> [average, task arithmetic with `scale`, TIES with scale 1, and
    the task vectors of task arithmetic and of TIES, whose scale is then validated].
    """

    @jax.jit
    def all_of_them(theta0: Any, thetas: Any) -> list[Any]:
        tied = ties(theta0, thetas, density=density, scale=1.0)
        total = task_arithmetic(theta0, thetas, scale=1.0)
        return [
            average(thetas),
            task_arithmetic(theta0, thetas, scale=scale),
            tied,
            task_vector(theta0, total),
            task_vector(theta0, tied),
        ]

    return all_of_them
