"""Students of published tables under the papers' own protocols: KD, DKD, DIST, OFA.

Papers: CRD's benchmark of CIFAR-100 (arXiv 1910.10699), DKD (arXiv 2203.08679), DIST (arXiv
2205.10536), OFA-KD (arXiv 2310.19444). Images are changed anew for every batch, on the device; the
teacher runs beside the student on the same images; SGD's rate falls by steps. (`benchmark` compares
more losses, on images that do not change, whose teacher is run once.)

Claims: KD is above labels alone, DKD and DIST are above KD, and from teachers of tokens OFA is.

Measured at `laptop` (two CPU cores, 2026-11): students gain 1.4 points over labels alone by KD, 1.8
by DKD, 2.4 by DIST, of the 9.3 that the teacher is ahead. Four seeds, 10 to 13, were run first and
decided nothing; with eight KD is above labels, and whether DKD and DIST are above KD stays open.

    python -m experiments.distillation.image_tables smoke     # digits, two kinds: 15 s
    python -m experiments.distillation.image_tables laptop    # a part of Fashion-MNIST: 15 minutes
    python -m experiments.distillation.image_tables paper     # CIFAR-100, ResNet-32x4 to 8x4
    python -m experiments.distillation.image_tables paper_imagenet \
        --teacher-weights resnet34.safetensors --images.folder FOLDER
    python -m experiments.distillation.image_tables paper_tokens \
        --teacher-weights deit_tiny.safetensors --images.folder FOLDER

Files of the data sets are needed (environment KD_JAX_DATA, or --images.folder), and for ImageNet
the weights of torchvision's ResNet-34 or timm's DeiT-Tiny as safetensors. Other networks of
`models.image_sizes` take their place in Python: `dataclasses.replace(PRESETS["paper"], ...)`.

`paper`, `paper_imagenet` and `paper_tokens` are planned, never run.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.distillation.common.descent import Descent
from experiments.distillation.parts import tables_methods, tables_report, tables_stages
from experiments.distillation.parts.tables_images import Crop, Images
from experiments.distillation.parts.tables_methods import (
    Correlated,
    Decoupled,
    Losses,
    Method,
    Soft,
)
from kd_jax.launch import run
from kd_jax.launch.claims import Results
from kd_jax.launch.config import check_distinct
from kd_jax.launch.stages import Stage
from kd_jax.models import image_sizes
from kd_jax.models.resnet import ImageNetResNetConfig, ResNetConfig

CLAIMS = tables_report.CLAIMS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(tables_stages.Tables):
    methods: tuple[Method, ...] = ("ce", "kd", "dkd", "dist")
    """What is compared, with ce, over which the others gain; a claim about others is not tested."""

    def __post_init__(self):
        super().__post_init__()
        check_distinct(self, "methods")
        if "ce" not in self.methods:
            said = " ".join(self.methods)
            raise ValueError(f"methods: got {said}, takes ce among them: gains are over it")
        if "ofa" in self.methods:
            tables_methods.check_ofa(self.student, self.teacher)


def _strided(blocks: tuple[int, ...], widths: tuple[int, ...]) -> ResNetConfig:
    """For 28 x 28 images of one channel: the first convolution has a stride of 2."""
    return ImageNetResNetConfig(
        blocks=blocks, widths=widths, channels=1, classes=10, stem_side=3, pool=False
    )


# RepDistiller's train_teacher.py and train_student.py: plain momentum, every weight decays.
# mdistiller has the same in configs/cifar100.
_CIFAR = Descent(
    rate=0.05, epochs=240, batch_size=64, decays=(150, 180, 210), momentum=0.9, weight_decay=5e-4
)
# torchvision's reference and DIST's: batches of 256 at 0.1 (UNVERIFIED); mdistiller's
# configs/imagenet/r34_r18 has 512 at 0.2, else the same.
_IMAGENET = Descent(
    rate=0.1, epochs=100, batch_size=256, decays=(30, 60, 90), momentum=0.9, weight_decay=1e-4
)

PRESETS = {
    "smoke": Config(
        images=Images(name="digits", first=256, pad=1, flip=False),
        teacher=ResNetConfig(blocks=(1,), widths=(8,), channels=1),
        student=ResNetConfig(blocks=(1,), widths=(4,), channels=1),
        learn_teacher=Descent(rate=0.1, epochs=2, batch_size=32),
        learn=Descent(rate=0.1, epochs=2, batch_size=32, decays=(1,)),
        methods=("ce", "dkd"),
        losses=Losses(dkd=Decoupled(warm_up=1)),
        seeds=1,
        score_batch=360,
    ),
    "laptop": Config(
        images=Images(name="fashion_mnist", first=6000, pad=2),
        teacher=_strided((1, 1, 1), (16, 32, 64)),
        student=_strided((1, 1), (8, 16)),
        learn_teacher=Descent(rate=0.05, epochs=20, decays=(12, 15, 18)),
        learn=Descent(rate=0.05, epochs=8, decays=(5, 7)),
        losses=Losses(dkd=Decoupled(warm_up=1)),
        seeds=8,
        seed=10,  # sizes were chosen on seed 0, by what there is time for
        score_batch=1000,
    ),
    # CRD's benchmark. Weights: KD's are RepDistiller's command (-r 0.1 -a 0.9, T 4), DKD's
    # mdistiller's defaults, DIST's UNVERIFIED. Means of 5 runs: UNVERIFIED. Tables may print the
    # best epoch on test images, as RepDistiller's script does; here it is the last one.
    "paper": Config(
        images=Images(name="cifar100", pad=4),
        teacher=image_sizes.RESNET_32X4,
        student=image_sizes.RESNET_8X4,
        learn_teacher=_CIFAR,
        learn=_CIFAR,
        seeds=5,
        measurements=24,
    ),
    # Weights: KD's and DKD's are mdistiller's (configs/imagenet/r34_r18), DIST's 1, 1 and
    # temperature 1 are OFA's defaults for it; torchdistill doubles them. One run.
    "paper_imagenet": Config(
        images=Images(name="imagenet2012", crop=Crop(side=224, shorter=256), pad=0),
        teacher=image_sizes.RESNET_34,
        teacher_weights="resnet34.safetensors",
        student=image_sizes.RESNET_18,
        learn_teacher=_IMAGENET,
        learn=_IMAGENET,
        losses=Losses(
            kd=Soft(hard=0.5, soft=0.5, temperature=1.0),
            dkd=Decoupled(others=0.5, temperature=1.0, warm_up=1),
            dist=Correlated(inter=1.0, intra=1.0, temperature=1.0),
        ),
        seeds=1,
        measurements=20,
        score_batch=256,
    ),
    # OFA's configs/imagenet/cnn.yaml on 8 GPUs of 64 images, and train.py's defaults: timm's SGD is
    # Nesterov's and leaves biases and norms out. The rate of the warm-up is there 1e-4 in the first
    # epoch and rises by epochs; filters of resizing are drawn at random, here they are bilinear.
    "paper_tokens": Config(
        images=Images(name="imagenet2012", crop=Crop(side=224, shorter=256), pad=0),
        teacher=image_sizes.DEIT_TINY,
        teacher_weights="deit_tiny_patch16_224.safetensors",
        student=image_sizes.RESNET_18,
        learn_teacher=_IMAGENET,
        learn=Descent(
            rate=0.1,
            epochs=100,
            batch_size=512,
            decays=(30, 60, 90),
            warm_up=3,
            nesterov=True,
            weight_decay=1e-4,
            decay_vectors=False,
        ),
        methods=("ce", "kd", "dkd", "dist", "ofa"),
        losses=Losses(
            smoothing=0.1,
            kd=Soft(hard=1.0, soft=1.0, temperature=1.0),
            dkd=Decoupled(others=2.0, temperature=1.0, warm_up=1),
            dist=Correlated(inter=1.0, intra=1.0, temperature=1.0),
            ofa=1.5,
        ),
        seeds=1,
        measurements=20,
        score_batch=512,
    ),
}


def stages(config: Config) -> tuple[Stage, ...]:
    return (
        tables_stages.teacher(config),
        *(
            tables_stages.student(config, method, seed)
            for method in config.methods
            for seed in config.repetitions
        ),
    )


def report(config: Config, artefacts: Mapping[str, Any], folder: Path) -> Results:
    pair = config.images.name, config.teacher, config.student
    return tables_report.results(pair, config.methods, config.repetitions, artefacts, folder)


if __name__ == "__main__":
    raise SystemExit(run.main(__spec__.name))
