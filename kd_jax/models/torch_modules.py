"""How torchvision and timm name the layers of our image classifiers: {our layer: their module}.

ResNets, MobileNetV2 and ShuffleNetV2 as torchvision's (timm's ResNets have the same names), ViT,
DeiT (without a distillation token) and MLP-Mixer as timm's.
"""

from collections.abc import Mapping
from typing import NamedTuple

from kd_jax.models.mixer import MixerConfig
from kd_jax.models.mobilenet import MobileNetConfig
from kd_jax.models.resnet import ImageNetResNetConfig
from kd_jax.models.shufflenet import ShuffleNetConfig
from kd_jax.models.vit import ClassTokenViTConfig


class Module(NamedTuple):
    """A module of theirs. third: the one of its three equal parts, by rows, that is our layer.
    patch: the height and width of the patches that it embeds as a convolution."""

    name: str
    third: int | None = None
    patch: int | None = None


def of_resnet(config: ImageNetResNetConfig) -> dict[str, Module]:
    """torchvision.models.resnet."""
    names = {"stem": "conv1", "stem_norm": "bn1", "head": "fc"}
    blocks = [
        f"layer{stage}.{i}" for stage, count in enumerate(config.blocks, 1) for i in range(count)
    ]
    for number, block in enumerate(blocks):
        for k in range(3 if config.bottleneck else 2):
            names[f"block_{number}/conv_{k}"] = f"{block}.conv{k + 1}"
            names[f"block_{number}/norm_{k}"] = f"{block}.bn{k + 1}"
        names[f"block_{number}/shortcut"] = f"{block}.downsample.0"
        names[f"block_{number}/shortcut_norm"] = f"{block}.downsample.1"
    return _modules(names)


def of_mobilenet(config: MobileNetConfig) -> dict[str, Module]:
    """torchvision.models.mobilenetv2."""
    names = {"stem": "features.0.0", "stem_norm": "features.0.1", "head": "classifier.1"}
    expansions = [stage.expansion for stage in config.stages for _ in range(stage.blocks)]
    for number, expansion in enumerate(expansions):
        ours, theirs = f"block_{number}", f"features.{number + 1}.conv"
        wide = ["expand", "depthwise"] if expansion > 1 else ["depthwise"]
        for i, layer in enumerate(wide):
            names[f"{ours}/{layer}"] = f"{theirs}.{i}.0"
            names[f"{ours}/{layer}_norm"] = f"{theirs}.{i}.1"
        names[f"{ours}/project"] = f"{theirs}.{len(wide)}"
        names[f"{ours}/project_norm"] = f"{theirs}.{len(wide) + 1}"
    last = f"features.{len(expansions) + 1}"
    return _modules(names | {"last": f"{last}.0", "last_norm": f"{last}.1"})


def of_shufflenet(config: ShuffleNetConfig) -> dict[str, Module]:
    """torchvision.models.shufflenetv2; configs with the stem of ImageNet."""
    names = {"stem": "conv1.0", "stem_norm": "conv1.1", "head": "fc"}
    names |= {"last": "conv5.0", "last_norm": "conv5.1"}
    blocks = [
        f"stage{stage}.{i}" for stage, count in enumerate(config.blocks, 2) for i in range(count)
    ]
    places = {
        "pass_depthwise": ("branch1", 0),
        "pass_out": ("branch1", 2),
        "in": ("branch2", 0),
        "depthwise": ("branch2", 3),
        "out": ("branch2", 5),
    }
    for number, block in enumerate(blocks):
        for layer, (branch, i) in places.items():
            names[f"block_{number}/{layer}"] = f"{block}.{branch}.{i}"
            names[f"block_{number}/{layer}_norm"] = f"{block}.{branch}.{i + 1}"
    return _modules(names)


def of_vit(config: ClassTokenViTConfig) -> dict[str, Module]:
    """timm.models.vision_transformer."""
    names = {
        "position": "pos_embed",
        "class_token": "cls_token",
        "final_norm": "norm",
        "head": "head",
    }
    modules = {"embed": Module("patch_embed.proj", patch=config.patch)}
    for i in range(config.depth):
        ours, theirs = f"block_{i}", f"blocks.{i}"
        names |= {
            f"{ours}/attn_norm": f"{theirs}.norm1",
            f"{ours}/attn/o": f"{theirs}.attn.proj",
            f"{ours}/mlp_norm": f"{theirs}.norm2",
            f"{ours}/mlp/up": f"{theirs}.mlp.fc1",
            f"{ours}/mlp/down": f"{theirs}.mlp.fc2",
        }
        for third, part in enumerate("qkv"):
            modules[f"{ours}/attn/{part}"] = Module(f"{theirs}.attn.qkv", third=third)
    return modules | _modules(names)


def of_mixer(config: MixerConfig) -> dict[str, Module]:
    """timm.models.mlp_mixer."""
    names = {"final_norm": "norm", "head": "head"}
    for i in range(config.depth):
        for number, (ours, theirs) in enumerate(
            (("patches", "mlp_tokens"), ("channels", "mlp_channels")), 1
        ):
            names[f"block_{i}/{ours}_norm"] = f"blocks.{i}.norm{number}"
            names[f"block_{i}/{ours}/up"] = f"blocks.{i}.{theirs}.fc1"
            names[f"block_{i}/{ours}/down"] = f"blocks.{i}.{theirs}.fc2"
    return {"embed": Module("stem.proj", patch=config.patch)} | _modules(names)


def _modules(names: Mapping[str, str]) -> dict[str, Module]:
    return {layer: Module(name) for layer, name in names.items()}
