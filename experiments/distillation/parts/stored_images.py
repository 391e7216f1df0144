"""Training images with what the teacher says of them, all at once."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.distillation.common import pictures as pictures_lib
from experiments.distillation.common import pupils
from kd_jax.launch import output_cache, precompute


def load(
    config: pupils.Schooling, found: Mapping[str, Any], taps: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    """An image batch with "teacher_logits" and "teacher_<tap>", of the stages of `pupils`.

    taps: all that are stored.
    """
    train = pictures_lib.load(config.pictures).train
    about = output_cache.About(
        precompute.model_hash(found["teacher"]), precompute.data_hash(train), taps
    )
    cache = output_cache.opened(found["teacher_outputs"].files, about)
    return {**train, **cache.columns(train["index"], np.zeros_like(train["index"]))}
