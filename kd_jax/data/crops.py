"""Photographs of any size -> square images: random resized crops and centre crops, on the host.

Resized by Pillow, whose bilinear and bicubic filters widen where an image is made smaller, as in
the evaluation of published weights. Records have `image` (the bytes of a file, or u8[H, W, 3]) and
`label`, see `kd_jax.data.imagenet`.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from kd_jax.data import order, pillow
from kd_jax.data.sources import Batch, Source, record_batches

TRIES = 10


class Box(NamedTuple):
    """A part of an image, in pixels from its upper left corner."""

    left: int
    top: int
    width: int
    height: int


def random_box(
    width: int,
    height: int,
    draws: np.ndarray,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """The box of a random resized crop (arXiv 1409.4842, section 6; details as torchvision's).

    draws: f64[TRIES, 4] from [0, 1). A try draws the box's share of the image's area uniformly
    from `scale` and the logarithm of width / height from that of `ratio`, then its place; the
    first box that fits is taken. Where none does, it is the largest centred one whose width /
    height is within `ratio`.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for share, shape, across, down in draws:
        area = width * height * (scale[0] + share * (scale[1] - scale[0]))
        aspect = math.exp(low + shape * (high - low))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(across * (width - w + 1)), int(down * (height - h + 1)), w, h)
    w = min(width, round(height * ratio[1]))
    h = min(height, round(width / ratio[0]))
    return Box((width - w) // 2, (height - h) // 2, w, h)


def random_resized_crop(
    image: Any, draws: np.ndarray, *, side: int, bicubic: bool = False, **options: Any
) -> np.ndarray:
    """u8[side, side, 3]: the box that `random_box` draws (options: scale, ratio), resized."""
    opened = pillow.decode(image)
    width, height = opened.size
    box = random_box(width, height, draws, **options)
    part = opened.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    return np.asarray(part.resize((side, side), _filter(bicubic)))


def centre_crop(image: Any, *, side: int, shorter: int, bicubic: bool = False) -> np.ndarray:
    """u8[side, side, 3]: the middle of the image resized so that its shorter side is `shorter`."""
    if not 1 <= side <= shorter:
        raise ValueError(f"side: got {side}, takes 1 to shorter, {shorter}")
    opened = pillow.decode(image)
    least = min(opened.size)
    width, height = (shorter * size // least for size in opened.size)
    resized = opened.resize((width, height), _filter(bicubic))
    # Half a pixel goes to the even side: round, as torchvision has it.
    left, top = round((width - side) / 2), round((height - side) / 2)
    return np.asarray(resized.crop((left, top, left + side, top + side)))


def crop_batches(
    records: Sequence[Any],
    *,
    side: int,
    seed: int,
    name: str,
    batch_size: int,
    draw: order.Draw = order.order,
    threads: int = 8,
    **options: Any,
) -> Source:
    """Batches of random resized crops, decoded as they are needed: a stream of ImageNet.

    records: `len` and `[i]`, read on several threads. side: height and width of the crops. seed,
    name, batch_size and draw as in `sources.array_batches`; the crop of row r of step t is a
    function of (seed, name, t, r), whichever process makes it. threads: of each process, for
    reading and decoding. options: scale, ratio, bicubic. A batch is an image batch: inputs
    u8[B, side, side, 3], targets, weights, index. Images are mirrored on the device
    (`objectives.augment.images.flip`).
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="crops")

    def one(number: int, own: np.ndarray) -> tuple[np.ndarray, int]:
        record = records[number]
        return random_resized_crop(record["image"], own, side=side, **options), record["label"]

    def collate(numbers: Sequence[int], draws: np.ndarray) -> Batch:
        made, labels = zip(*pool.map(one, numbers, draws), strict=True)
        return _image_batch(np.stack(made), np.array(labels, np.int32))

    def batches(step: int, rows: slice) -> Batch:
        drawn = order.fractions(seed, f"{name}/crops", step, batch_size * TRIES * 4)
        own = drawn.reshape(batch_size, TRIES, 4)[rows]
        source = record_batches(
            range(len(records)),  # each is read by the thread that decodes it
            lambda number: number,
            lambda numbers: collate(numbers, own),
            seed=seed,
            name=name,
            batch_size=batch_size,
            draw=draw,
        )
        return source(step, rows)

    return batches


def centre_arrays(
    records: Sequence[Any],
    *,
    side: int,
    shorter: int,
    bicubic: bool = False,
    threads: int = 8,
) -> dict[str, np.ndarray]:
    """`images.image_arrays` of the centre crops of every record, for evaluation.

    Memory: 3 side^2 bytes an image, 7.5 GB for ImageNet's 50,000 of 224 x 224. torchvision's
    ResNets are measured at side 224 of shorter 256, DeiT at 224 of 248, bicubic.
    """
    inputs = np.empty((len(records), side, side, 3), np.uint8)
    targets = np.empty(len(records), np.int32)

    def one(i: int) -> None:
        record = records[i]
        inputs[i] = centre_crop(record["image"], side=side, shorter=shorter, bicubic=bicubic)
        targets[i] = record["label"]

    with ThreadPoolExecutor(threads, thread_name_prefix="crops") as pool:
        list(pool.map(one, range(len(records))))
    return _image_batch(inputs, targets)


def _image_batch(inputs: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "inputs": inputs,
        "targets": targets,
        "weights": np.ones(len(targets), np.float32),
        "index": np.arange(len(targets), dtype=np.int32),
    }


def _filter(bicubic: bool) -> Any:
    from PIL import Image

    return Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
