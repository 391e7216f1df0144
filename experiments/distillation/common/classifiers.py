"""Image classifiers of the family, by their sizes."""

import functools

from kd_jax.convolution import Convolve, direct
from kd_jax.models.convolution import stage_ends
from kd_jax.models.mixer import MixerConfig, mixer
from kd_jax.models.mlp import MLPConfig, mlp
from kd_jax.models.mobilenet import MobileNetConfig, mobilenet_v2
from kd_jax.models.resnet import ResNetConfig, resnet
from kd_jax.models.shufflenet import ShuffleNetConfig, shufflenet_v2
from kd_jax.models.vit import ViTConfig, vit
from kd_jax.models.wide_resnet import WideResNetConfig, wide_resnet
from kd_jax.types import Model

Classifier = (
    MLPConfig
    | ResNetConfig
    | WideResNetConfig
    | MobileNetConfig
    | ShuffleNetConfig
    | ViTConfig
    | MixerConfig
)


@functools.cache  # one model, so that what is compiled for it is shared
def classifier(config: Classifier, fold: int, convolve: Convolve = direct) -> Model:
    """The model of a config, behind a fold.

    It is given images [B, H, W, C] and sees [B, H / fold, W / fold, fold^2 C], every square of
    pixels as channels: nothing is lost, and a convolution costs a part. fold: 1 for none. convolve:
    as in `resnet`, for those that take it.
    """
    match config:
        case MLPConfig():
            model = mlp(config)
        case ResNetConfig():
            model = resnet(config, convolve=convolve)
        case WideResNetConfig():
            model = wide_resnet(config)
        case MobileNetConfig():
            model = mobilenet_v2(config, convolve=convolve)
        case ShuffleNetConfig():
            model = shufflenet_v2(config)
        case ViTConfig():
            model = vit(config)
        case MixerConfig():
            model = mixer(config)
    return model if fold == 1 else folded(model, fold)


def folded(model: Model, fold: int) -> Model:
    """The model on images whose squares of fold x fold pixels are channels.

    ValueError, when traced, for sides that fold does not divide.
    """

    def apply(params, inputs, **how):
        x = inputs["inputs"]
        b, h, w, c = x.shape
        if h % fold or w % fold:
            raise ValueError(f"inputs: got images of {h} by {w}, takes multiples of {fold}")
        x = x.reshape(b, h // fold, fold, w // fold, fold, c).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(b, h // fold, w // fold, fold * fold * c)
        return model.apply(params, {**inputs, "inputs": x}, **how)

    return model._replace(apply=apply)


def depths(config: Classifier) -> tuple[str, ...]:
    """Names of taps from the input on, one a stage; behind them comes `last`."""
    match config:
        case MLPConfig():
            return tuple(f"hidden_{i}" for i in range(len(config.widths)))
        case ResNetConfig():
            return stage_ends(config.blocks)
        case ViTConfig() | MixerConfig():
            return tuple(f"block_{i}" for i in range(config.depth))
        case _:
            return config.ends


def last(config: Classifier) -> str:
    """The tap that the classifying layer reads, [B, D]."""
    return f"hidden_{len(config.widths) - 1}" if isinstance(config, MLPConfig) else "pooled"
