"""Handwritten digits, 8x8, from scikit-learn: the data that is always there."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

TEST_SIZE = 360


class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """train (1437) and test (360): image u8[8, 8, 1], 0 to 255, and label 0 to 9.

    scikit-learn's counts 0 to 16 are spread over 0 to 255 (round(255 x / 16)), as every image here
    is. The split is fixed: the test set is the first 360 of a fixed shuffle, the training set the
    rest, both then in the order of scikit-learn.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> Any:
        return tfds.core.DatasetInfo(
            builder=self,
            description="1797 handwritten digits of 8x8 pixels.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            homepage="https://archive.ics.uci.edu/dataset/80",
            license="CC BY 4.0",
            citation="@misc{alpaydin1998digits, author={Alpaydin, E. and Kaynak, C.}, "
            "title={Optical Recognition of Handwritten Digits}, publisher={UCI Machine "
            "Learning Repository}, year={1998}, doi={10.24432/C50P49}}",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        from sklearn import datasets

        images, labels = datasets.load_digits(return_X_y=True)
        images = np.rint(images * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
        shuffled = np.argsort(np.random.Philox(key=0).random_raw(len(labels)), kind="stable")
        test, train = np.sort(shuffled[:TEST_SIZE]), np.sort(shuffled[TEST_SIZE:])
        return {
            "train": self._generate_examples(images[train], labels[train]),
            "test": self._generate_examples(images[test], labels[test]),
        }

    def _generate_examples(self, images: Any, labels: Any) -> Iterator[Any]:
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": image, "label": int(label)}
