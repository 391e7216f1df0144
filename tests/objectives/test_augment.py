"""Augmentation of images: by hand, against Pillow and SciPy, and what a row's draws depend on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image, ImageEnhance, ImageOps

from kd_jax.objectives.augment import images as single
from kd_jax.objectives.augment import mix, operations, rand

KEY = jax.random.key(3)
KEYS = jax.random.split(KEY, 256)
RNG = np.random.default_rng(0)
IMAGES = RNG.random((8, 6, 6, 3)).astype(np.float32)
# Different pixels everywhere, so that a place can be told from its value.
NUMBERED = np.arange(1, 26, dtype=np.float32).reshape(5, 5, 1)
SMOOTH = np.add.outer(np.arange(40) * 3, np.arange(36) * 2)[..., None] + np.array([10, 35, 60])
PHOTO = np.clip(SMOOTH + RNG.integers(-12, 12, SMOOTH.shape), 5, 240).astype(np.uint8)
ALL = single.chain(
    single.flip,
    functools.partial(single.crop, pad=1),
    functools.partial(single.cutout, side=2),
    rand.rand_augment,
)


@functools.partial(jax.jit, static_argnums=0)
def draws(augment, keys, image):
    return jax.vmap(augment, (0, None))(keys, image)


@jax.jit
def augment_all(images, rows, key=KEY):
    return single.each(ALL)(key, images, rows)


@pytest.mark.slow
def test_a_row_is_changed_by_key_and_number_only():
    whole = augment_all(IMAGES, jnp.arange(8))
    order = np.array([5, 1, 7, 0, 2, 6, 3, 4])
    np.testing.assert_allclose(augment_all(IMAGES[order], order), whole[order], atol=1e-6)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    split = augment_all(jax.device_put(IMAGES, rows), jax.device_put(jnp.arange(8), rows))
    np.testing.assert_allclose(split, whole, atol=1e-6)
    part = jax.jit(single.each(ALL))(KEY, IMAGES[:3])
    np.testing.assert_allclose(part, whole[:3], atol=1e-6)
    # Numbers and key matter: one image under eight numbers, and another key.
    same = augment_all(np.tile(IMAGES[:1], (8, 1, 1, 1)), jnp.arange(8))
    assert len(np.unique(np.asarray(same).reshape(8, -1), axis=0)) == 8
    other = augment_all(IMAGES, jnp.arange(8), jax.random.key(4))
    assert np.abs(other - whole).max() > 0.1


def test_flip():
    found = np.asarray(draws(single.flip, KEYS, NUMBERED))
    mirrored = np.array([np.array_equal(x, NUMBERED[:, ::-1]) for x in found])
    kept = np.array([np.array_equal(x, NUMBERED) for x in found])
    assert (mirrored ^ kept).all()
    assert 90 < mirrored.sum() < 166  # 256 draws; 5 standard deviations around a half
    always = single.flip(KEY, jnp.asarray(NUMBERED), p=1.0)
    np.testing.assert_array_equal(always, NUMBERED[:, ::-1])
    np.testing.assert_array_equal(single.flip(KEY, jnp.asarray(NUMBERED), p=0.0), NUMBERED)


def test_crop_takes_every_window_of_the_padded_image():
    found = draws(functools.partial(single.crop, pad=1, fill=-1.0), KEYS, NUMBERED)
    wide = np.pad(NUMBERED, ((1, 1), (1, 1), (0, 0)), constant_values=-1)
    windows = {wide[y : y + 5, x : x + 5].tobytes() for y in range(3) for x in range(3)}
    assert {np.asarray(x).tobytes() for x in found} == windows


@pytest.mark.parametrize("side", [2, 3])
def test_cutout_fills_a_square_around_any_pixel(side):
    found = draws(functools.partial(single.cutout, side=side, fill=-1.0), KEYS, NUMBERED)
    expected = set()
    for y in range(5):
        for x in range(5):
            cut = NUMBERED.copy()
            top, left = y - side // 2, x - side // 2
            cut[max(top, 0) : top + side, max(left, 0) : left + side] = -1
            expected.add(cut.tobytes())
    assert {np.asarray(x).tobytes() for x in found} == expected


def test_a_chain_is_its_links_in_order_with_keys_of_their_own():
    def brighter(key, image):
        return image + jax.random.uniform(key)

    def doubled(key, image):
        return 2 * image

    x = jnp.zeros((1, 1, 1))
    twice = single.chain(brighter, doubled, brighter)(KEY, x)
    first, last = (jax.random.uniform(jax.random.fold_in(KEY, i)) for i in (0, 2))
    np.testing.assert_allclose(twice[0, 0, 0], 2 * first + last, rtol=1e-6)
    assert single.chain()(KEY, x) is x


MANY = RNG.random((256, 4, 4, 1)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("mixed", [mix.mixup, mix.cutmix])
def test_mixing_is_by_lam_with_a_permutation(mixed):
    got = jax.jit(mixed)(KEY, MANY)
    partners, lam = np.asarray(got.partners), np.asarray(got.lam)
    np.testing.assert_array_equal(np.sort(partners), np.arange(256))
    assert (partners == np.arange(256)).sum() < 10  # 1 expected
    other = MANY[partners]
    if mixed is mix.mixup:
        own = lam[:, None, None, None]
        np.testing.assert_allclose(got.images, own * MANY + (1 - own) * other, atol=1e-6)
    else:
        away = np.asarray(got.images) != MANY
        taken = np.where(away, other, MANY)
        np.testing.assert_array_equal(got.images, taken)
        whole = partners != np.arange(256)
        np.testing.assert_allclose(lam[whole], 1 - away[whole].mean((1, 2, 3)), atol=1e-6)
        for mask in away[whole][..., 0]:  # a box: the rows it touches times its columns
            np.testing.assert_array_equal(mask, mask.any(1)[:, None] & mask.any(0)[None])
        # Boxes of all sizes and at every place.
        assert away.any(0).all()
        assert len(np.unique(lam)) > 5
    if mixed is mix.mixup:  # Beta(1, 1) has mean 1/2 and variance 1/12
        np.testing.assert_allclose(lam.mean(), 0.5, atol=0.09)
        np.testing.assert_allclose(lam.var(), 1 / 12, atol=0.02)


@pytest.mark.slow
def test_cutmix_keeps_the_share_it_draws_up_to_the_border():
    """On a large image with the box inside: lam is that of the Beta, here close to 1/2."""
    images = jnp.zeros((64, 40, 40, 1))
    lam = jax.jit(functools.partial(mix.cutmix, alpha=1e4))(KEY, images).lam
    # A box of 28 x 28 pixels around a uniform one; at the border half of each side is cut off.
    assert lam.min() > 1 - (28 / 40) ** 2 - 0.02
    assert lam.max() < 1 - (14 / 40) ** 2 + 0.02
    assert lam.min() < 0.56


@pytest.mark.slow
@pytest.mark.parametrize("mixed", [mix.mixup, mix.cutmix])
def test_padding_is_not_mixed_in(mixed):
    weights = np.ones(11, np.float32)
    weights[[2, 8, 9]] = 0
    real = weights != 0
    rows = np.where(real, np.cumsum(real) - 1, -1).astype(np.int32)
    images = np.full((11, 6, 6, 3), 9.0, np.float32)
    images[real] = IMAGES
    padded = jax.jit(mixed)(KEY, images, rows, weights)
    plain = jax.jit(mixed)(KEY, IMAGES)
    np.testing.assert_allclose(padded.images[real], plain.images, atol=1e-6)
    np.testing.assert_allclose(padded.lam[real], plain.lam, atol=1e-6)
    np.testing.assert_array_equal(rows[padded.partners[real]], plain.partners)
    np.testing.assert_array_equal(padded.images[~real], images[~real])
    assert (padded.lam[~real] == 1).all()


@pytest.mark.slow
def test_a_share_is_mixed():
    lam = np.asarray(jax.jit(functools.partial(mix.mixup, share=0.25))(KEY, MANY).lam)
    assert 29 < (lam < 1).sum() < 99  # 64 expected; 5 standard deviations
    assert (jax.jit(functools.partial(mix.mixup, share=0.0))(KEY, MANY).lam == 1).all()


PILLOW = {
    "brightness": lambda x, f: ImageEnhance.Brightness(x).enhance(f),
    "colour": lambda x, f: ImageEnhance.Color(x).enhance(f),
    "contrast": lambda x, f: ImageEnhance.Contrast(x).enhance(f),
    "sharpness": lambda x, f: ImageEnhance.Sharpness(x).enhance(f),
}


@pytest.mark.parametrize("name", PILLOW)
@pytest.mark.parametrize("factor", [0.3, 1.7])
def test_enhancements_equal_pillow(name, factor):
    expected = np.asarray(PILLOW[name](Image.fromarray(PHOTO), factor))
    got = getattr(operations, name)(jnp.asarray(PHOTO / np.float32(255)), factor)
    # Pillow rounds what it blends with, and then the image.
    np.testing.assert_allclose(255 * got, expected, atol=2.1)
    assert np.abs(255 * got - PHOTO).max() > 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ours", "pillow", "atol"),
    [
        (lambda x: operations.posterise(x, 3), lambda x: ImageOps.posterize(x, 3), 1e-3),
        (lambda x: operations.solarise(x, 128 / 255), lambda x: ImageOps.solarize(x, 128), 1e-3),
        (operations.equalise, ImageOps.equalize, 1e-3),
        (operations.auto_contrast, ImageOps.autocontrast, 1.01),
    ],
    ids=["posterise", "solarise", "equalise", "auto_contrast"],
)
def test_changes_of_levels_equal_pillow(ours, pillow, atol):
    expected = np.asarray(pillow(Image.fromarray(PHOTO)))
    got = ours(jnp.asarray(PHOTO / np.float32(255)))
    np.testing.assert_allclose(255 * got, expected, atol=atol)
    assert np.abs(255 * got - PHOTO).max() > 5


def test_flat_and_tiny_images_are_left():
    flat = np.full((4, 4, 2), 0.25, np.float32)
    for change in (operations.auto_contrast, operations.equalise):
        np.testing.assert_array_equal(jax.jit(change)(flat), flat)
    tiny = jnp.asarray(IMAGES[0, :2, :2])
    np.testing.assert_array_equal(operations.sharpness(tiny, 0.0), tiny)
    np.testing.assert_allclose(operations.colour(tiny[..., :1], 0.2), tiny[..., :1], atol=1e-6)


def test_affine_equals_scipy():
    matrix, shift = np.array([[0.9, 0.3], [-0.2, 1.1]]), np.array([0.7, -1.4])
    image = RNG.random((7, 9, 2)).astype(np.float32)
    middle = np.array([3.0, 4.0])
    offset = middle + shift - matrix @ middle
    got = operations.affine(jnp.asarray(image), jnp.asarray(matrix), jnp.asarray(shift), fill=0.5)
    for c in range(2):
        expected = scipy.ndimage.affine_transform(
            image[..., c], matrix, offset, order=1, mode="grid-constant", cval=0.5
        )
        np.testing.assert_allclose(got[..., c], expected, atol=1e-5)


def applied(name, magnitude, image):
    return jax.jit(rand.operation)(rand.OPERATIONS.index(name), image, magnitude)


def test_every_operation_of_the_list_is_the_one_it_names():
    image = jnp.asarray(PHOTO / np.float32(255))
    expected = {
        "brightness": operations.brightness(image, 1.45),
        "colour": operations.colour(image, 1.45),
        "contrast": operations.contrast(image, 1.45),
        "sharpness": operations.sharpness(image, 1.45),
        "posterise": operations.posterise(image, 6),
        "solarise": operations.solarise(image, 0.5),
        "auto_contrast": operations.auto_contrast(image),
        "equalise": operations.equalise(image),
        "identity": image,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(applied(name, 0.5, image), value, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(
        applied("brightness", -0.5, image), operations.brightness(image, 0.55), atol=1e-6
    )
    np.testing.assert_allclose(
        applied("solarise", -0.5, image), operations.solarise(image, 0.5), atol=1e-6
    )


def test_moves_by_hand():
    image = np.zeros((33, 33, 1), np.float32)
    image[6, 10] = 1  # 10 rows above the centre, 6 columns left of it
    two = 2 / (150 / 331 * 33)  # the magnitude of two pixels

    def brightest(name, magnitude):
        moved = np.asarray(applied(name, magnitude, image))[..., 0]
        return np.unravel_index(moved.argmax(), moved.shape)

    # The output looks two pixels to the right: what is shown goes two to the left.
    assert brightest("translate_x", two) == (6, 8)
    assert brightest("translate_y", two) == (4, 10)
    # Row -10 looks 0.3 * -10 = -3 columns further: what is shown goes 3 to the right.
    assert brightest("shear_x", 1.0) == (6, 13)
    # Column -6 looks 0.3 * -6 = -1.8 rows further.
    assert brightest("shear_y", 1.0) == (8, 10)
    # Out (y, x) looks at (cos y - sin x, sin y + cos x) with 30 degrees: (-10, -6) is seen by its
    # inverse, (cos (-10) + sin (-6), -sin (-10) + cos (-6)) = (-11.66, -0.196).
    assert brightest("rotate", 1.0) == (16 - 12, 16)


def test_nothing_happens_at_magnitude_0():
    image = jnp.asarray(PHOTO / np.float32(255))
    for name in set(rand.OPERATIONS) - {"auto_contrast", "equalise", "solarise"}:
        np.testing.assert_allclose(applied(name, 0.0, image), image, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_rand_augment_draws_every_operation_and_stays_in_range():
    image = jnp.asarray(PHOTO[:20, :18] / np.float32(255))
    one = draws(functools.partial(rand.rand_augment, layers=1, magnitude=1.0), KEYS, image)
    number, sign = jnp.meshgrid(jnp.arange(len(rand.OPERATIONS)), jnp.array([-1.0, 1.0]))
    every = jax.jit(jax.vmap(rand.operation, (0, None, 0)))(number.ravel(), image, sign.ravel())
    gaps = jnp.abs(one[:, None] - every[None]).max((2, 3, 4))
    assert gaps.min(1).max() < 1e-5  # nothing else
    assert gaps.min(0).max() < 1e-5  # and each of them
    # Of two changes each has draws of its own: most are not the same change twice.
    two = draws(functools.partial(rand.rand_augment, magnitude=1.0), KEYS[:16], image)
    again = jax.jit(jax.vmap(rand.operation))(number.ravel(), every, sign.ravel())
    assert (jnp.abs(two[:, None] - again[None]).max((2, 3, 4)).min(1) > 0.01).sum() > 8
    for found in (one, two):
        assert (found >= 0).all()
        assert (found <= 1).all()
    assert rand.rand_augment(KEY, image, layers=0) is image


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: single.flip(KEY, IMAGES[0], p=1.5), "p: got 1.5"),
        (lambda: single.crop(KEY, IMAGES[0], pad=-1), "pad: got -1"),
        (lambda: single.cutout(KEY, IMAGES[0], side=0), "side: got 0"),
        (lambda: mix.mixup(KEY, IMAGES, alpha=0.0), "alpha: got 0.0"),
        (lambda: mix.cutmix(KEY, IMAGES, share=2.0), "share: got 2.0"),
        (lambda: mix.mixup(KEY, IMAGES, None, jnp.ones(3)), r"weights: got shape \(3,\)"),
        (lambda: rand.rand_augment(KEY, IMAGES[0], layers=-1), "layers: got -1"),
        (lambda: single.each(single.flip)(KEY, IMAGES[0]), r"images: got float32 of shape \(6"),
        (lambda: single.each(single.flip)(KEY, IMAGES.astype(np.uint8)), "images: got uint8"),
        (lambda: single.each(single.flip)(KEY, IMAGES, jnp.arange(3)), "rows: got shape"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
