"""CIFAR and Tiny ImageNet from archives of a few made images, loaded by name."""

import io
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from kd_jax.data import image_sets, pillow, prepare
from kd_jax.data.builders import cifar, tiny_imagenet

RNG = np.random.default_rng(0)


def encoded(pixels, kind="PNG"):
    """An image file's bytes; PNG keeps every pixel."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def packed(path, members, zipped=False):
    with tarfile.open(path, "w:gz" if zipped else "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def cifar_bytes(labels, pixels):
    """Records as the format's page describes them: labels, then red, green and blue planes."""
    return b"".join(
        bytes(own) + b"".join(image[:, :, c].tobytes() for c in range(3))
        for own, image in zip(labels, pixels, strict=True)
    )


@pytest.fixture
def cifar100(tmp_path):
    folder = tmp_path / "manual" / "cifar100"
    folder.mkdir(parents=True)
    train = RNG.integers(0, 256, (5, 32, 32, 3)).astype(np.uint8)
    test = RNG.integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    members = {
        "cifar-100-binary/train.bin": cifar_bytes([(i, 99 - i) for i in range(5)], train),
        "cifar-100-binary/test.bin": cifar_bytes([(19, 0), (0, 7)], test),
    }
    packed(folder / "cifar-100-binary.tar.gz", members, zipped=True)
    return folder, train


def test_cifar100_in_memory_by_name(tmp_path, cifar100):
    folder, train = cifar100
    found = image_sets.arrays("cifar100", data_dir=tmp_path / "d", manual_dir=folder.parent)
    assert set(found) == {"train", "test"}
    np.testing.assert_array_equal(found["train"]["inputs"], train)
    assert found["train"]["inputs"].dtype == np.uint8
    assert found["train"]["targets"].tolist() == [99, 98, 97, 96, 95]  # the fine label
    assert found["test"]["targets"].tolist() == [0, 7]
    assert found["test"]["index"].tolist() == [0, 1] and found["test"]["weights"].tolist() == [1, 1]
    rows = prepare.load(cifar.Cifar100, data_dir=tmp_path / "d")["train"]
    assert [row["coarse_label"] for row in rows] == [0, 1, 2, 3, 4]


def test_cifar10_joins_its_five_files(tmp_path):
    folder = tmp_path / "cifar10"
    folder.mkdir()
    pixels = RNG.integers(0, 256, (6, 32, 32, 3)).astype(np.uint8)
    names = [f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)]
    names.append("cifar-10-batches-bin/test_batch.bin")
    members = {n: cifar_bytes([(i,)], pixels[i : i + 1]) for i, n in enumerate(names)}
    # An unpacked archive may lie there, too; its members in any order.
    packed(folder / "cifar-10-binary.tar", dict(reversed(members.items())))
    found = image_sets.arrays("cifar10", data_dir=tmp_path / "d", manual_dir=folder)
    np.testing.assert_array_equal(found["train"]["inputs"], pixels[:5])
    assert found["train"]["targets"].tolist() == [0, 1, 2, 3, 4]
    assert found["test"]["targets"].tolist() == [5]


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({}, "lacks cifar-100-binary/train.bin"),
        ({"cifar-100-binary/train.bin": bytes(3075)}, "holds 3075 bytes, takes a multiple of 3074"),
        ({"cifar-100-binary/train.bin": b""}, "holds 0 bytes"),
        ({"cifar-100-binary/train.bin": bytes([0, 100]) + bytes(3072)}, "labels over"),
    ],
)
def test_broken_cifar_archives(tmp_path, members, said):
    path = tmp_path / "cifar-100-binary.tar.gz"
    rest = {"cifar-100-binary/test.bin": bytes(3074)}
    packed(path, members | rest, zipped=True)
    with pytest.raises(ValueError, match=said) as caught:
        prepare.load(cifar.Cifar100, data_dir=tmp_path / "d", manual_dir=tmp_path)
    assert str(path) in str(caught.value)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="broken archive"):
        prepare.load(cifar.Cifar100, data_dir=tmp_path / "d", manual_dir=tmp_path)


WNIDS = ["n02", "n01"]  # as in the real file, in no order


def tiny_members(**changed):
    grey = RNG.integers(0, 256, (64, 64)).astype(np.uint8)
    colours = RNG.integers(0, 256, (5, 64, 64, 3)).astype(np.uint8)
    top = "tiny-imagenet-200/"
    members = {
        "wnids.txt": "\n".join(WNIDS).encode(),
        "words.txt": b"n01\tfish\n",
        "train/n02/n02_boxes.txt": b"",
        "train/n02/images/n02_10.JPEG": encoded(colours[0]),
        "train/n02/images/n02_9.JPEG": encoded(colours[1]),
        "train/n01/images/n01_0.JPEG": encoded(grey),
        "val/images/val_0.JPEG": encoded(colours[2]),
        "val/images/val_1.JPEG": encoded(colours[3]),
        "val/val_annotations.txt": b"val_1.JPEG\tn01\t0\t0\t9\t9\nval_0.JPEG\tn02\t0\t0\t9\t9\n",
        "test/images/test_0.JPEG": encoded(colours[4]),
    } | changed
    return {top + k: v for k, v in members.items() if v is not None}, grey, colours


def zipped(folder, members):
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / "tiny-imagenet-200.zip", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def test_tiny_imagenet(tmp_path):
    members, grey, colours = tiny_members()
    zipped(tmp_path / "tiny_imagenet", members)
    found = image_sets.arrays("tiny_imagenet", data_dir=tmp_path / "d", manual_dir=tmp_path)
    train, test = found["train"], found["test"]
    assert train["targets"].tolist() == [0, 1, 1]  # ids in alphabetical order, then by number
    expected = [np.repeat(grey[:, :, None], 3, -1), colours[1], colours[0]]
    np.testing.assert_array_equal(train["inputs"], expected)
    assert test["targets"].tolist() == [0, 1]
    np.testing.assert_array_equal(test["inputs"], colours[[3, 2]])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"wnids.txt": None}, "lacks tiny-imagenet-200/wnids.txt"),
        ({"wnids.txt": b"n01"}, "n02_.*is of no class"),
        ({"wnids.txt": b"n01\nn02\nn03"}, "no training images of n03"),
        ({"val/val_annotations.txt": b"val_7.JPEG\tn01\n"}, "'val_7.JPEG.*names no image"),
        ({"val/val_annotations.txt": b"val_0.JPEG\tn09\n"}, "names no image and class"),
        ({"val/val_annotations.txt": b"val_0.JPEG\n"}, "names no image and class"),
        ({"val/images/val_0.JPEG": b"no image"}, "val_0.JPEG: image: 8 bytes that are no image"),
        ({"val/images/val_0.JPEG": encoded(np.zeros((3, 4, 3), np.uint8))}, "takes 64 by 64"),
    ],
)
def test_broken_tiny_imagenet(tmp_path, changed, said):
    zipped(tmp_path, tiny_members(**changed)[0])
    with pytest.raises(ValueError, match=said) as caught:
        prepare.load(tiny_imagenet.TinyImagenet, data_dir=tmp_path / "d", manual_dir=tmp_path)
    assert "tiny-imagenet-200.zip" in str(caught.value)


def test_a_file_that_is_no_zip(tmp_path):
    (tmp_path / "tiny-imagenet-200.zip").write_bytes(b"PK no")
    with pytest.raises(ValueError, match=r"tiny-imagenet-200.zip: broken zip file"):
        prepare.load(tiny_imagenet.TinyImagenet, data_dir=tmp_path / "d", manual_dir=tmp_path)


def test_images_need_their_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(FileNotFoundError, match=r"pip install 'kd_jax\[images\]'"):
        pillow.decode(b"")


def test_names_of_image_sets():
    assert set(image_sets.IMAGE_SETS) - {"imagenet2012"} <= set(prepare.builders())
    with pytest.raises(ValueError, match="name: got 'mnist', takes digits"):
        image_sets.records("mnist")
    with pytest.raises(ValueError, match="differ in size"):
        image_sets.arrays("imagenet2012")
