"""Image classifiers of published tables, by name: their sizes, with 100 or 1000 classes.

For others: `dataclasses.replace(RESNET_20, classes=10)`.
"""

from kd_jax.models.mixer import MixerConfig
from kd_jax.models.mobilenet import MobileNetConfig, Stage
from kd_jax.models.resnet import ResNetConfig
from kd_jax.models.shufflenet import ShuffleNetConfig
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

# ImageNet, 224 x 224.
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
MIXER_S16 = MixerConfig(
    image=224, patch=16, width=512, depth=8, patch_mlp=256, channel_mlp=2048, classes=1000
)
MIXER_B16 = MixerConfig(
    image=224, patch=16, width=768, depth=12, patch_mlp=384, channel_mlp=3072, classes=1000
)
