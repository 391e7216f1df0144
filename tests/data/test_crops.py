"""Random resized and centre crops: boxes by hand, values against Pillow, batches by position."""

import io
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kd_jax.data import arrays, crops, order, pillow

RNG = np.random.default_rng(1)


def row(*draws, rest=0.5):
    """Draws of the first try; the others never matter where it fits."""
    return np.array([draws, *[[rest] * 4] * (crops.TRIES - 1)])


def test_boxes_by_hand():
    # Share 1 and ratio 1 of a square: the whole.
    assert crops.random_box(20, 20, row(1.0, 0.5, 0.0, 0.0)) == (0, 0, 20, 20)
    # Share 0.08 + 0.5 * 0.92 = 0.54 of 400 pixels at 1 : 1, side sqrt(216) = 14.7.
    assert crops.random_box(20, 20, row(0.5, 0.5, 0.0, 0.99)) == (0, 5, 15, 15)
    # Ratio 4 / 3: 10 x 10 pixels of share 0.12 are 4 wide and 3 high.
    share = (0.12 - 0.08) / 0.92
    assert crops.random_box(10, 10, row(share, 1.0, 0.99, 0.99)) == (6, 7, 4, 3)
    # The first try does not fit, the second does.
    draws = row(1.0, 1.0, 0.0, 0.0)
    draws[1] = [share, 0.0, 0.5, 0.0]
    assert crops.random_box(10, 10, draws) == (4, 0, 3, 4)


@pytest.mark.parametrize(
    ("width", "height", "box"), [(90, 10, (38, 0, 13, 10)), (10, 90, (0, 38, 10, 13))]
)
def test_a_box_where_none_fits_is_central(width, height, box):
    never = np.ones((crops.TRIES, 4)) * 0.999
    assert crops.random_box(width, height, never) == box


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**32))
def test_boxes_lie_in_the_image(width, height, seed):
    draws = np.random.default_rng(seed).random((crops.TRIES, 4))
    box = crops.random_box(width, height, draws)
    assert min(box.width, box.height) >= 1 and min(box.left, box.top) >= 0
    assert box.left + box.width <= width and box.top + box.height <= height


def jpeg(size, mode="RGB"):
    shape = (size[1], size[0], *{"RGB": (3,), "L": (), "CMYK": (4,)}[mode])
    file = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, shape).astype(np.uint8), mode).save(file, "JPEG")
    return file.getvalue()


@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_every_kind_of_jpeg_becomes_rgb(mode):
    data = jpeg((9, 7), mode)
    opened = pillow.decode(data)
    assert opened.mode == "RGB" and opened.size == (9, 7)
    assert crops.centre_crop(data, side=4, shorter=5).shape == (4, 4, 3)


def test_the_centre_is_the_centre():
    # Twice as large, bilinear: a ramp stays one, and its middle is the middle.
    ramp = np.zeros((40, 80, 3), np.uint8)
    ramp[:] = (np.arange(80) * 2)[None, :, None]
    got = crops.centre_crop(ramp, side=40, shorter=80)
    assert got.shape == (40, 40, 3)
    np.testing.assert_allclose(got[:, :, 0].mean(1), 79, atol=0.6)
    got = crops.centre_crop(ramp, side=40, shorter=40)  # no resizing: rows and columns by hand
    np.testing.assert_array_equal(got, ramp[:, 20:60])
    wide = np.arange(5 * 8 * 3, dtype=np.uint8).reshape(5, 8, 3)
    np.testing.assert_array_equal(crops.centre_crop(wide, side=4, shorter=5), wide[:4, 2:6])
    with pytest.raises(ValueError, match="side: got 6, takes 1 to shorter, 5"):
        crops.centre_crop(wide, side=6, shorter=5)


def test_a_crop_is_its_box_resized():
    image = RNG.integers(0, 256, (10, 10, 3)).astype(np.uint8)
    draws = row((0.12 - 0.08) / 0.92, 1.0, 0.99, 0.99)
    part = Image.fromarray(np.ascontiguousarray(image[7:10, 6:10]))
    for bicubic, kind in ((False, Image.Resampling.BILINEAR), (True, Image.Resampling.BICUBIC)):
        got = crops.random_resized_crop(image, draws, side=6, bicubic=bicubic)
        np.testing.assert_array_equal(got, np.asarray(part.resize((6, 6), kind)))


class Records(Sequence):
    """Images of many sizes as file bytes or arrays."""

    def __init__(self, count):
        self.asked = []
        sizes = RNG.integers(6, 30, (count, 2))
        make = [jpeg, lambda size: RNG.integers(0, 256, (*size, 3)).astype(np.uint8)]
        self._rows = [{"image": make[i % 2](s), "label": i % 3} for i, s in enumerate(sizes)]

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, i):
        self.asked.append(i)
        return self._rows[i]


def test_batches_are_functions_of_step_and_rows():
    records = Records(11)

    def source(seed=0, threads=3):
        return crops.crop_batches(
            records, side=8, seed=seed, name="train", batch_size=6, threads=threads
        )

    batches = source()
    whole = batches(1, slice(0, 6))
    assert whole["inputs"].shape == (6, 8, 8, 3) and whole["inputs"].dtype == np.uint8
    expected = order.order(0, "train", 11, np.arange(6, 12))
    assert whole["index"].tolist() == expected.tolist()
    assert whole["targets"].tolist() == (expected % 3).tolist()
    # Two processes, each of which reads its own records only.
    records.asked.clear()
    halves = [source(threads=1)(1, rows) for rows in (slice(0, 3), slice(3, 6))]
    assert records.asked == expected.tolist()
    joined = arrays.concatenate(halves)
    for name, value in whole.items():
        np.testing.assert_array_equal(joined[name], value)
    # Another step crops the same record otherwise; another seed too.
    seen = {}
    for step in range(4):
        batch = batches(step, slice(0, 6))
        for number, image in zip(batch["index"].tolist(), batch["inputs"], strict=True):
            seen.setdefault(number, []).append(image)
    repeated = [found for found in seen.values() if len(found) > 1]
    assert repeated and all((found[0] != found[1]).any() for found in repeated)
    assert (source(seed=1)(1, slice(0, 6))["inputs"] != whole["inputs"]).any()


def test_centre_arrays_are_every_record_in_order():
    records = Records(5)
    found = crops.centre_arrays(records, side=8, shorter=9, threads=2)
    for i in range(5):
        crop = crops.centre_crop(records[i]["image"], side=8, shorter=9)
        np.testing.assert_array_equal(found["inputs"][i], crop)
    assert found["targets"].tolist() == [0, 1, 2, 0, 1]
    assert found["index"].tolist() == [0, 1, 2, 3, 4] and found["weights"].tolist() == [1.0] * 5
