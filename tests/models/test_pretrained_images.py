"""Weights of torchvision and timm: logits against NumPy, names and sizes of published files."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from support import torch_forward

from kd_jax.launch.config import identity
from kd_jax.launch.mesh import MeshConfig, make_mesh
from kd_jax.launch.sharding import shard_tree
from kd_jax.launch.weights import Weights
from kd_jax.models import image_sizes, mixer, mobilenet, resnet, shufflenet, torch_modules, vit
from kd_jax.models.normalised import normalised
from kd_jax.models.pretrained_images import open_classifier
from kd_jax.trees import flatten

SIDE, CLASSES = 18, 5
# Each image has a shade and noise: noise alone would come to much the same logits.
IMAGES = np.random.default_rng(5).integers(0, 100, (3, SIDE, SIDE, 3)).astype(np.uint8)
IMAGES += np.random.default_rng(6).integers(0, 156, (3, 1, 1, 3)).astype(np.uint8)
PATCHED: dict[str, Any] = {"image": SIDE, "patch": 6, "width": 12, "depth": 2}
STEM: dict[str, Any] = {"stem": 8, "classes": CLASSES}

# name: (our model, their names, their forward pass)
CASES = {
    "basic": (
        resnet.resnet,
        torch_modules.of_resnet,
        resnet.ImageNetResNetConfig(blocks=(1, 2), widths=(8, 12), **STEM),
        functools.partial(
            torch_forward.resnet, layers=(1, 2), planes=(8, 12), bottleneck=False, stem=8
        ),
    ),
    "bottleneck": (
        resnet.resnet,
        torch_modules.of_resnet,
        resnet.ImageNetResNetConfig(blocks=(2, 1), widths=(16, 24), bottleneck=True, **STEM),
        functools.partial(
            torch_forward.resnet, layers=(2, 1), planes=(4, 6), bottleneck=True, stem=8
        ),
    ),
    "mobilenet": (
        mobilenet.mobilenet_v2,
        torch_modules.of_mobilenet,
        mobilenet.MobileNetConfig(
            stem=4,
            stages=(mobilenet.Stage(1, 6, 1, 1), mobilenet.Stage(3, 8, 2, 2)),
            last=10,
            classes=CLASSES,
        ),
        functools.partial(
            torch_forward.mobilenet_v2, settings=((1, 6, 1, 1), (3, 8, 2, 2)), stem=4, last=10
        ),
    ),
    "shufflenet": (
        shufflenet.shufflenet_v2,
        torch_modules.of_shufflenet,
        shufflenet.ShuffleNetConfig(
            stem=4,
            stem_side=3,
            stem_stride=2,
            pool=True,
            blocks=(2, 1),
            widths=(8, 12),
            last=10,
            classes=CLASSES,
        ),
        functools.partial(torch_forward.shufflenet_v2, repeats=(2, 1), channels=(4, 8, 12, 10)),
    ),
    "vit": (
        vit.vit,
        torch_modules.of_vit,
        vit.ClassTokenViTConfig(**PATCHED, heads=3, mlp=20, classes=CLASSES),
        functools.partial(torch_forward.vit, patch=6, width=12, depth=2, heads=3, mlp=20),
    ),
    "mixer": (
        mixer.mixer,
        torch_modules.of_mixer,
        mixer.ExactMixerConfig(**PATCHED, patch_mlp=7, channel_mlp=20, classes=CLASSES),
        functools.partial(torch_forward.mixer, patch=6, width=12, depth=2, tokens=7, channels=20),
    ),
}
every_case = pytest.mark.parametrize("name", CASES)


@functools.cache
def reference(name):
    """(state dict, logits) of their model on IMAGES / 255, which draws the state dict."""
    weights = torch_forward.Weights()
    logits = CASES[name][3](weights, IMAGES.transpose(0, 3, 1, 2) / 255, classes=CLASSES)
    return dict(weights), logits


def written(path, tensors):
    safetensors.numpy.save_file(tensors, path)
    return path


def opened(name, path):
    make, modules, config, _ = CASES[name]
    return open_classifier(path, make(config), modules(config))


@every_case
def test_logits_are_those_of_their_model(tmp_path, name):
    tensors, logits = reference(name)
    assert np.abs(logits - logits[:1]).max() > 0.05  # they depend on the image
    found = opened(name, written(tmp_path / "w.safetensors", tensors))
    params, state = (read.make(read.abstract) for read in found)
    model = CASES[name][0](CASES[name][2])
    assert flatten(state).keys() == flatten(jax.eval_shape(model.state)).keys()
    got = jax.jit(lambda p, s: model.apply(p, {"inputs": IMAGES}, state=s).head.logits())
    np.testing.assert_allclose(got(params, state), logits, rtol=2e-5, atol=2e-5)


def test_a_folder_is_read_too_and_half_precision_is_widened(tmp_path):
    tensors, _ = reference("vit")
    half = {name: x.astype(np.float16) for name, x in tensors.items()}
    found = opened("vit", written(tmp_path / "model.safetensors", half).parent)
    params = found.params.make(found.params.abstract)
    head = params["head"]["kernel"]
    assert head.dtype == jnp.float32
    np.testing.assert_array_equal(head, half["head.weight"].T.astype(np.float32))
    assert found.state.make(found.state.abstract) == {}


def test_shards_are_read_where_they_belong(tmp_path):
    tensors, _ = reference("vit")
    found = opened("vit", written(tmp_path / "w.safetensors", tensors))
    whole = found.params.make(found.params.abstract)
    weights = Weights(*found.params)
    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    placed = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        weights.abstract,
        shard_tree(weights.abstract, vit.RULES, mesh),
    )
    made = weights.make(placed)
    assert made["block_0"]["attn"]["k"]["kernel"].addressable_shards[0].data.size < 12 * 12
    for path, leaf in flatten(made).items():
        assert leaf.sharding == flatten(placed)[path].sharding
        np.testing.assert_array_equal(leaf, flatten(whole)[path])


def changed(tensors, **more):
    """The state dict with tensors put in, by names with "_" for "."; None takes one out."""
    new = tensors | {name.replace("__", "."): x for name, x in more.items()}
    return {name: x for name, x in new.items() if x is not None}


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("basic", {"fc__bias": None}, r"w.safetensors: fc.bias is missing$"),
        ("basic", {"bn1__running_var": None}, "bn1.running_var is missing$"),
        ("basic", {"layer9__x": np.zeros(2)}, "layer9.x is left over$"),
        (
            "basic",
            {"conv1__weight": np.zeros((8, 3, 3, 3))},
            r"conv1.weight has shape \(8, 3, 3, 3\), \(8, 3, 7, 7\) was expected$",
        ),
        ("vit", {"blocks__1__attn__qkv__bias": None}, "blocks.1.attn.qkv.bias is missing$"),
        (
            "vit",
            {"blocks__0__attn__qkv__weight": np.zeros((12, 12))},
            r"qkv.weight has shape \(12, 12\), \(36, 12\) was expected$",
        ),
        (
            "vit",
            {"pos_embed": np.zeros((1, 9, 12))},
            r"pos_embed has shape \(1, 9, 12\), \(1, 10, 12\) was expected$",
        ),
        # A DeiT with a distillation token is another model.
        ("vit", {"dist_token": np.zeros((1, 1, 12))}, "dist_token is left over$"),
        (
            "mixer",
            {"stem__proj__weight": np.zeros((12, 3, 36))},
            r"stem.proj.weight has shape \(12, 3, 36\), \(12, 3, 6, 6\) was expected$",
        ),
    ],
)
def test_every_tensor_is_accounted_for(tmp_path, name, more, said):
    path = written(tmp_path / "w.safetensors", changed(reference(name)[0], **more))
    with pytest.raises(ValueError, match=said):
        opened(name, path)


def test_errors_of_the_call(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder of weights"):
        opened("basic", tmp_path / "none.safetensors")
    path = written(tmp_path / "w.safetensors", {"x": np.zeros(1)})
    make, modules, config, _ = CASES["bottleneck"]
    with pytest.raises(ValueError, match="modules: got none for block_0/conv_2"):
        open_classifier(path, make(config), modules(CASES["basic"][2]))
    with pytest.raises(ValueError, match=r"bn1.bias is missing.* and \d+ more$"):
        opened("basic", path)
    with pytest.raises(ValueError, match="widths: got"):
        resnet.ImageNetResNetConfig(widths=(16, 32, 66), bottleneck=True)


# Parameters by torchvision's metadata and timm's tables; tensors of the state dict without the
# counters of batches.
PUBLISHED = [
    (image_sizes.RESNET_18, resnet.resnet, torch_modules.of_resnet, 11_689_512, 102),
    (image_sizes.RESNET_34, resnet.resnet, torch_modules.of_resnet, 21_797_672, 182),
    (image_sizes.RESNET_50, resnet.resnet, torch_modules.of_resnet, 25_557_032, 267),
    (
        image_sizes.MOBILENET_V2,
        mobilenet.mobilenet_v2,
        torch_modules.of_mobilenet,
        3_504_872,
        262,
    ),
    (
        image_sizes.SHUFFLENET_V2,
        shufflenet.shufflenet_v2,
        torch_modules.of_shufflenet,
        2_278_604,
        282,
    ),
    (image_sizes.DEIT_TINY, vit.vit, torch_modules.of_vit, 5_717_416, 152),
    (image_sizes.VIT_B16, vit.vit, torch_modules.of_vit, 86_567_656, 152),
    (image_sizes.MIXER_B16, mixer.mixer, torch_modules.of_mixer, 59_880_472, 150),
]


@pytest.mark.slow
@pytest.mark.parametrize(("config", "make", "modules", "count", "tensors"), PUBLISHED)
def test_sizes_of_published_weights(config, make, modules, count, tensors):
    model = make(config)
    params = flatten(jax.eval_shape(model.init, jax.random.key(0)))
    assert sum(x.size for x in params.values()) == count
    leaves = [*params, *flatten(jax.eval_shape(model.state))]
    names = {
        modules(config)[path.rsplit("/", 1)[0]].name + path.rsplit("/", 1)[1] for path in leaves
    }
    assert len(names) == tensors


def test_sizes_of_small_models_are_what_names_their_runs():
    """What ImageNet's models need besides is no field of the others, but is one of their own."""
    sizes = {"image", "patch", "channels", "width", "depth", "heads", "mlp", "classes"}
    assert set(identity(vit.ViTConfig())) == sizes
    sizes = {"blocks", "widths", "stem", "channels", "classes"}
    assert set(identity(resnet.ResNetConfig())) == sizes
    assert identity(image_sizes.DEIT_TINY)["class_token"] is True
    assert identity(image_sizes.MIXER_B16)["exact_gelu"] is True
    assert identity(image_sizes.RESNET_34)["stem_side"] == 7


@pytest.mark.slow
def test_images_are_normalised():
    model = mixer.mixer(CASES["mixer"][2])
    params = jax.jit(model.init)(jax.random.key(0))
    mean, std = (0.5, 0.25, 0.0), (0.5, 2.0, 1.0)
    outside = (IMAGES / 255 - np.array(mean)) / np.array(std)
    expected = model.apply(params, {"inputs": outside.astype(np.float32)}, taps=("pooled",))
    got = normalised(model, mean, std).apply(params, {"inputs": IMAGES}, taps=("pooled",))
    np.testing.assert_allclose(got.head.logits(), expected.head.logits(), rtol=1e-5, atol=1e-5)
    assert set(got.taps) == {"pooled"}
    with pytest.raises(ValueError, match="std over 0"):
        normalised(model, mean, (1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match="inputs: got 3 channels, takes 1"):
        normalised(model, (0.0,), (1.0,)).apply(params, {"inputs": IMAGES})
