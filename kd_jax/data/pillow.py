"""Encoded images through Pillow, the extra `images`."""

import io
from typing import Any

import numpy as np


def decode(image: bytes | np.ndarray) -> Any:
    """The RGB Pillow image of an encoded one (JPEG, PNG; grey and CMYK ones too) or of
    u8[H, W, 3].

    FileNotFoundError, one line with what to install, where Pillow is missing; ValueError for
    bytes that are no image.
    """
    lib = _pillow()
    if isinstance(image, np.ndarray):
        return lib.fromarray(image).convert("RGB")
    try:
        return lib.open(io.BytesIO(image)).convert("RGB")
    except (OSError, SyntaxError, ValueError, lib.DecompressionBombError) as error:
        raise ValueError(f"image: {len(image)} bytes that are no image ({error})") from None


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise FileNotFoundError(
            "Pillow is not installed, which decodes images: pip install 'kd_jax[images]'"
        ) from None
    return Image
