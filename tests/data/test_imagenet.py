"""ImageNet from its tar files and as TFDS prepares it, of two made classes."""

import io
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from kd_jax.data import crops, image_sets, imagenet, prepare


def jpeg(value):
    file = io.BytesIO()
    Image.fromarray(np.full((9, 12, 3), value, np.uint8)).save(file, "JPEG")
    return file.getvalue()


def packed(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes both archives, with classes n1 (label 0) and n2."""
    monkeypatch.setattr(imagenet, "wnids", lambda: ["n1", "n2"])
    monkeypatch.setattr(imagenet, "validation_wnids", lambda: ["n2", "n1", "n2"])
    folder = tmp_path / "imagenet2012"
    folder.mkdir()

    def archives(classes=("n2", "n1"), validation=(2, 0, 1)):
        outer = {}
        for k, wnid in enumerate(classes):
            inner = tmp_path / "inner"
            packed(inner, {f"{wnid}_{i}.JPEG": bytes([k, i]) * (9 + i) for i in range(3 - k)})
            outer[f"{wnid}.tar"] = inner.read_bytes()
        packed(folder / imagenet.TRAIN, outer)
        packed(
            folder / imagenet.VALIDATION,
            {f"ILSVRC2012_val_0000000{i}.JPEG": bytes([9, i]) for i in validation},
        )
        return folder

    return archives


def rows(records):
    return [(row["image"], row["label"]) for row in records]


def test_images_are_read_where_they_lie(tmp_path, write):
    manual = write().parent
    found = image_sets.records("imagenet2012", data_dir=tmp_path / "d", manual_dir=manual)
    # n1 was second in the file and is label 0.
    expected = [
        (b"\1\0" * 9, 0),
        (b"\1\1" * 10, 0),
        (b"\0\0" * 9, 1),
        (b"\0\1" * 10, 1),
        (b"\0\2" * 11, 1),
    ]
    assert rows(found["train"]) == expected and len(found["train"]) == 5
    assert rows(found["test"]) == [(b"\x09\0", 1), (b"\x09\1", 0), (b"\x09\2", 1)]  # by name
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(found["train"].__getitem__, np.arange(400) % 5))
    assert rows(read) == expected * 80


def test_places_are_found_once_for_a_file(tmp_path, write, monkeypatch):
    manual = write()
    first = rows(imagenet.load(data_dir=tmp_path / "d", manual_dir=manual)["train"])
    monkeypatch.setattr(imagenet, "train_places", None)
    again = imagenet.load(data_dir=tmp_path / "d", manual_dir=manual)
    assert rows(again["train"]) == first
    time.sleep(0.01)
    write(classes=("n1", "n2"))  # of the same size, other places
    with pytest.raises(TypeError):
        imagenet.load(data_dir=tmp_path / "d", manual_dir=manual)


def test_archives_that_are_not_whole(tmp_path, write):
    def load():
        imagenet.load(data_dir=tmp_path / "d", manual_dir=tmp_path)

    write(classes=("n1", "n3"))
    with pytest.raises(ValueError, match="holds 1 of the 2 classes and 1 other files"):
        load()
    write(validation=(0, 1))
    with pytest.raises(ValueError, match="holds 2 images, takes 3"):
        load()
    path = write() / imagenet.TRAIN
    whole = path.read_bytes()
    for end in range(0, len(whole) - 10240, 512):  # 10240: zeros that tar files end with
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="ILSVRC2012_img_train.tar: "):
            load()
    path.write_bytes(b"no tar file" * 99)
    with pytest.raises(ValueError, match="broken archive"):
        load()
    path.unlink()
    with pytest.raises(FileNotFoundError, match="lacks ILSVRC2012_img_train.tar"):
        load()


def test_missing_files_say_where_they_are_had(tmp_path, monkeypatch):
    monkeypatch.delenv("KD_JAX_DATA", raising=False)
    with pytest.raises(FileNotFoundError) as caught:
        image_sets.records("imagenet2012", data_dir=tmp_path)
    said = str(caught.value)
    assert "\n" not in said and imagenet.VALIDATION in said and "image-net.org" in said


class Imagenet2012(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """With the features of TFDS's builder of that name."""

    VERSION = tfds.core.Version("5.1.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=1000),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(4), "validation": self._generate_examples(2)}

    def _generate_examples(self, count):
        for i in range(count):
            name = f"n{i}.JPEG"
            yield name, {"image": jpeg(40 * i), "label": 10 * i, "file_name": name}


def test_what_tfds_prepared_is_taken_first(tmp_path):
    prepare.load(Imagenet2012, data_dir=tmp_path)
    found = image_sets.records("imagenet2012", data_dir=tmp_path)
    assert sorted(row["label"] for row in found["train"]) == [0, 10, 20, 30]
    assert {row["image"] for row in found["test"]} == {jpeg(0), jpeg(40)}
    batch = crops.crop_batches(found["train"], side=8, seed=0, name="train", batch_size=4)(
        0, slice(0, 4)
    )
    assert sorted(batch["targets"]) == [0, 10, 20, 30]
    np.testing.assert_allclose(batch["inputs"].mean((1, 2, 3)), 4 * batch["targets"], atol=2)
    path = tmp_path / "imagenet2012/5.1.0/dataset_info.json"
    path.write_text(path.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="has tfrecord files, takes array_record"):
        image_sets.records("imagenet2012", data_dir=tmp_path)


def test_the_lists_that_tfds_ships():
    assert len(imagenet.wnids()) == len(set(imagenet.wnids())) == 1000
    assert imagenet.wnids() == sorted(imagenet.wnids())
    assert imagenet.wnids()[0] == "n01440764"  # tench
    assert np.unique(imagenet.validation_wnids(), return_counts=True)[1].tolist() == [50] * 1000
