"""Mixer, MobileNet, ShuffleNet and wide ResNets: published sizes, places, rules, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.image_students import (
    FLOATS,
    IMAGES,
    MODELS,
    TAPS,
    WIDE,
    has_a_rule_for_every_parameter,
    setup,
    takes_images,
)

from kd_jax.models import (
    convolution,
    image_sizes,
    mixer,
    mobilenet,
    norms,
    resnet,
    shufflenet,
    wide_resnet,
)
from kd_jax.trees import flatten

pytestmark = pytest.mark.slow  # all together

every_model = pytest.mark.parametrize("name", MODELS)


@pytest.mark.parametrize(
    ("make", "config", "count"),
    [
        # The tables of feature distillation on CIFAR-100 (CRD's code and those after it).
        (resnet.resnet, image_sizes.RESNET_20, 278_324),
        (resnet.resnet, image_sizes.RESNET_32, 472_756),
        (resnet.resnet, image_sizes.RESNET_56, 861_620),
        (resnet.resnet, image_sizes.RESNET_110, 1_736_564),
        (resnet.resnet, image_sizes.RESNET_8X4, 1_233_540),
        (resnet.resnet, image_sizes.RESNET_32X4, 7_433_860),
        (wide_resnet.wide_resnet, image_sizes.WRN_16_2, 703_284),
        (wide_resnet.wide_resnet, image_sizes.WRN_40_1, 569_780),
        (wide_resnet.wide_resnet, image_sizes.WRN_40_2, 2_255_156),
        (shufflenet.shufflenet_v2, image_sizes.SHUFFLENET_V2_CIFAR, 1_355_528),
        # 812 836 there, where a block of expansion 1 has an expanding convolution of 288 numbers.
        (mobilenet.mobilenet_v2, image_sizes.MOBILENET_V2_HALF, 812_836 - 288),
        # The paper's 36.5 M.
        (wide_resnet.wide_resnet, image_sizes.WRN_28_10, 36_536_884),
        # torchvision's and timm's.
        (mobilenet.mobilenet_v2, image_sizes.MOBILENET_V2, 3_504_872),
        (shufflenet.shufflenet_v2, image_sizes.SHUFFLENET_V2, 2_278_604),
        (mixer.mixer, image_sizes.MIXER_S16, 18_528_264),
        (mixer.mixer, image_sizes.MIXER_B16, 59_880_472),
    ],
)
def test_published_sizes(make, config, count):
    params = jax.eval_shape(make(config).init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(params)) == count


@pytest.mark.parametrize(
    ("config", "make", "places"),
    [
        (image_sizes.WRN_40_2, wide_resnet.wide_resnet, [(32, 32), (16, 64), (8, 128)]),
        (
            image_sizes.SHUFFLENET_V2_CIFAR,
            shufflenet.shufflenet_v2,
            [(16, 116), (8, 232), (4, 464)],
        ),
        (
            image_sizes.MOBILENET_V2_HALF,
            mobilenet.mobilenet_v2,
            [(16, 8), (16, 12), (8, 16), (4, 32), (4, 48), (2, 80), (2, 160)],
        ),
    ],
)
def test_taps_by_stage(config, make, places):
    """Side and channels at the end of each stage, for images of 32 x 32."""
    model = make(config)
    params, state = jax.eval_shape(model.init, jax.random.key(0)), jax.eval_shape(model.state)
    batch = {"inputs": jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.uint8)}
    run = functools.partial(model.apply, taps=config.ends)
    taps = jax.eval_shape(lambda p, s, b: run(p, b, state=s).taps, params, state, batch)
    assert [taps[name].shape for name in config.ends] == [(2, s, s, c) for s, c in places]


def test_the_stem_of_a_resnet_may_be_narrower():
    model = resnet.resnet(image_sizes.RESNET_8X4)
    shapes = {k: v.shape for k, v in flatten(jax.eval_shape(model.init, jax.random.key(0))).items()}
    assert shapes["stem/kernel"] == (3, 3, 3, 32)
    assert shapes["block_0/shortcut/kernel"] == (1, 1, 32, 64)
    with pytest.raises(ValueError, match="sizes"):
        resnet.ResNetConfig(stem=0)


@every_model
def test_shapes_taps_and_u8(name):
    _, _, run = setup(name)
    takes_images(lambda images: run(images, {}), TAPS[name])


@every_model
def test_add_perturbs_its_place_and_has_a_gradient(name):
    params, _, run = setup(name)
    zeros = {k: jnp.zeros(shape) for k, shape in TAPS[name].items()}
    plain = run(FLOATS, zeros)
    halves = run(FLOATS, {**zeros, list(zeros)[0]: jnp.full(zeros[list(zeros)[0]].shape, 0.5)})
    first = list(TAPS[name])[0]
    np.testing.assert_allclose(halves.taps[first], plain.taps[first] + 0.5, atol=1e-5)
    grads = jax.grad(lambda add: run(FLOATS, add).head.logits()[:, 0].sum())(zeros)
    expected = np.tile(params["head"]["kernel"][:, 0], (8, 1))
    np.testing.assert_allclose(grads["pooled"], expected, rtol=1e-5)
    assert all(np.abs(grads[place]).max() > 0 for place in TAPS[name])
    with pytest.raises(ValueError, match="got nowhere"):
        MODELS[name][0].apply(params, {"inputs": IMAGES}, state=setup(name)[1], taps=("nowhere",))


@every_model
def test_every_parameter_has_a_rule(name):
    has_a_rule_for_every_parameter(*MODELS[name])


def test_group_norm_has_no_state():
    model = wide_resnet.wide_resnet(WIDE, norm=norms.group_norm(4))
    assert model.state() == {}
    params = setup("wide")[0]
    run = jax.jit(lambda x: model.apply(params, {"inputs": x}, train=True))
    out, other = run(FLOATS), run(np.concatenate([FLOATS[:4], 1 - FLOATS[4:]]))
    assert out.state == {}
    # No row moves another.
    np.testing.assert_allclose(out.head.logits()[:4], other.head.logits()[:4], atol=1e-5)
    with pytest.raises(ValueError, match=r"only in model.state\(\)"):
        MODELS["wide"][0].apply(params, {"inputs": IMAGES})


def test_initialisation():
    params = jax.jit(MODELS["mobilenet"][0].init)(jax.random.key(0))
    # Fan-in of a convolution of each channel by itself: 9.
    wide = np.concatenate([params[f"block_{i}"]["depthwise"]["kernel"].ravel() for i in (1, 2)])
    np.testing.assert_allclose(wide.var(), 2 / 9, rtol=0.25)
    np.testing.assert_allclose(params["last"]["kernel"].var(), 2 / 16, rtol=0.25)
    assert (params["last_norm"]["scale"] == 1).all()
    assert not params["head"]["bias"].any()


def test_shuffle_and_stage_ends():
    x = jnp.arange(6).reshape(1, 6)
    np.testing.assert_array_equal(shufflenet.shuffle(x), [[0, 3, 1, 4, 2, 5]])
    assert convolution.stage_ends((3, 1, 2)) == ("block_2", "block_3", "block_5")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mixer.MixerConfig(image=30), "patch: got 4"),
        (lambda: mixer.MixerConfig(depth=0), "sizes"),
        (
            lambda: MODELS["mixer"][0].apply(setup("mixer")[0], {"inputs": np.zeros((1, 4, 8, 2))}),
            r"inputs: got images \(4, 8, 2\)",
        ),
        (lambda: mobilenet.MobileNetConfig(stages=()), "sizes"),
        (lambda: mobilenet.MobileNetConfig(last=0), "sizes"),
        (lambda: shufflenet.ShuffleNetConfig(blocks=(1,)), "blocks, widths"),
        (lambda: shufflenet.ShuffleNetConfig(widths=(4, 6, 7)), "widths: got"),
        (lambda: shufflenet.ShuffleNetConfig(last=0), "sizes"),
        (lambda: wide_resnet.WideResNetConfig(depth=18), "depth: got 18"),
        (lambda: wide_resnet.WideResNetConfig(widen=0), "sizes"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
