"""Image classifiers of published tables, by name: their sizes, with 100 or 1000 classes.

For others: `dataclasses.replace(RESNET_20, classes=10)`.
"""

import dataclasses

from kd_jax.models.mixer import ExactMixerConfig
from kd_jax.models.mobilenet import MobileNetConfig, Stage
from kd_jax.models.resnet import ImageNetResNetConfig, ResNetConfig
from kd_jax.models.shufflenet import ShuffleNetConfig
from kd_jax.models.vit import ClassTokenViTConfig
from kd_jax.models.wide_resnet import WideResNetConfig

# CIFAR-100. The shortcuts of ResNets are projections (option B), as in the tables of feature
# distillation; "x4" is four times as wide, but for the stem.
RESNET_20 = ResNetConfig(blocks=(3, 3, 3), classes=100)
RESNET_32 = ResNetConfig(blocks=(5, 5, 5), classes=100)
RESNET_56 = ResNetConfig(blocks=(9, 9, 9), classes=100)
RESNET_110 = ResNetConfig(blocks=(18, 18, 18), classes=100)
RESNET_8X4 = ResNetConfig(blocks=(1, 1, 1), widths=(64, 128, 256), stem=32, classes=100)
RESNET_32X4 = ResNetConfig(blocks=(5, 5, 5), widths=(64, 128, 256), stem=32, classes=100)
WRN_16_2 = WideResNetConfig(depth=16, widen=2, classes=100)
WRN_28_10 = WideResNetConfig(depth=28, widen=10, classes=100)
WRN_40_1 = WideResNetConfig(depth=40, widen=1, classes=100)
WRN_40_2 = WideResNetConfig(depth=40, widen=2, classes=100)
MOBILENET_V2_HALF = MobileNetConfig(classes=100)
SHUFFLENET_V2_CIFAR = ShuffleNetConfig(classes=100)

# ImageNet, 224 x 224; sizes of published weights, see `pretrained_images`.
RESNET_18 = ImageNetResNetConfig()
RESNET_34 = ImageNetResNetConfig(blocks=(3, 4, 6, 3))
RESNET_50 = ImageNetResNetConfig(
    blocks=(3, 4, 6, 3), widths=(256, 512, 1024, 2048), bottleneck=True, stem=64
)
MOBILENET_V2 = MobileNetConfig(
    stem=32,
    stages=(
        Stage(1, 16, 1, 1),
        Stage(6, 24, 2, 2),
        Stage(6, 32, 3, 2),
        Stage(6, 64, 4, 2),
        Stage(6, 96, 3, 1),
        Stage(6, 160, 3, 2),
        Stage(6, 320, 1, 1),
    ),
    classes=1000,
)
SHUFFLENET_V2 = ShuffleNetConfig(stem_side=3, stem_stride=2, pool=True, classes=1000)
MIXER_S16 = ExactMixerConfig(
    image=224,
    patch=16,
    width=512,
    depth=8,
    patch_mlp=256,
    channel_mlp=2048,
    classes=1000,
)
MIXER_B16 = dataclasses.replace(MIXER_S16, width=768, depth=12, patch_mlp=384, channel_mlp=3072)
DEIT_TINY = ClassTokenViTConfig(
    image=224,
    patch=16,
    width=192,
    depth=12,
    heads=3,
    mlp=768,
    classes=1000,
)
VIT_B16 = dataclasses.replace(DEIT_TINY, width=768, heads=12, mlp=3072)
