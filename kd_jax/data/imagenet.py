"""ImageNet's challenge of 2012 (arXiv 1409.0575), read where it lies: no second copy is made.

Either as TFDS prepared it (`tfds build imagenet2012 --file_format=array_record`, which takes
TensorFlow, on any machine), or from the two tar files as they are had after a login, whose images
are found by their offsets. Both are read at random and without TensorFlow; records are {"image":
the bytes of a file, "label": 0 to 999}, see `kd_jax.data.crops`.
"""

import operator
import os
import pathlib
import tarfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from kd_jax.data import prepare
from kd_jax.data.builders import files

NAME = "imagenet2012"
TRAIN, VALIDATION = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"

Place = tuple[int, int, int]  # offset, bytes, label


def load(
    *,
    data_dir: str | os.PathLike[str] | None = None,
    manual_dir: str | os.PathLike[str] | None = None,
) -> dict[str, Sequence[Any]]:
    """{"train": 1281167 records, "validation": 50000}.

    data_dir: as in `prepare.load`; TFDS's imagenet2012 in it is taken before tar files (its records
        are in TFDS's order). The places of images in tar files are kept there, too.
    manual_dir: the folder with both tar files, or one that holds it as imagenet2012; by default
        $KD_JAX_DATA. Finding the places reads every header once, which takes minutes.
    Labels number the WordNet ids in alphabetical order, as published weights have them; those of
    the validation's tar file are the list that TFDS ships.
    Errors: FileNotFoundError says which files belong where, ValueError what is wrong with one.
    """
    folder = pathlib.Path(data_dir or prepare.default_data_dir()).expanduser()
    prepared = sorted((folder / NAME).glob("*/dataset_info.json"))
    if prepared:
        return _of_tfds(prepared[-1].parent)
    manual = prepare.manual_folder(manual_dir)
    found = None if manual is None else files.locate(NAME, [TRAIN, VALIDATION], manual)
    if found is None:
        place = manual / NAME if manual else f"<manual folder>/{NAME}"
        raise FileNotFoundError(
            f"{NAME}: no files: put {TRAIN} and {VALIDATION} (https://image-net.org, after a login)"
            f" into {place} and name the manual folder in the environment variable KD_JAX_DATA "
            f"(manual_dir=), or put TFDS's array_record files into {folder / NAME}"
        )
    kept = folder / f"{NAME}_places"
    return {
        "train": TarRecords(found[TRAIN], _kept(found[TRAIN], kept, train_places)),
        "validation": TarRecords(found[VALIDATION], _kept(found[VALIDATION], kept, val_places)),
    }


class TarRecords(Sequence[Any]):
    """The records of a tar file at places i64[N, 3] of offsets, bytes and labels.

    Read through a memory map, by any number of threads at once.
    """

    def __init__(self, path: pathlib.Path, places: np.ndarray) -> None:
        self._places = places
        self._data = np.memmap(path, np.uint8, "r")

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, i: Any) -> Any:
        offset, size, label = self._places[operator.index(i)].tolist()
        return {"image": self._data[offset : offset + size].tobytes(), "label": label}


def wnids() -> list[str]:
    """The WordNet id of each label."""
    return _shipped("labels.txt")


def validation_wnids() -> list[str]:
    """The WordNet id of each validation image, in the order of their names."""
    return _shipped("validation_labels.txt")


def train_places(path: pathlib.Path) -> Iterator[Place]:
    """Of a tar file of tar files, one a class, named by its WordNet id; by label."""
    labels = {f"{wnid}.tar": label for label, wnid in enumerate(wnids())}
    with tarfile.open(path, "r:") as outer:
        classes = {member.name: member for member in outer}
        known = classes.keys() & labels.keys()
        if len(known) < len(labels) or len(classes) > len(known):
            raise ValueError(
                f"{path}: holds {len(known)} of the {len(labels)} classes and "
                f"{len(classes) - len(known)} other files"
            )
        for name, label in labels.items():
            start = classes[name].offset_data
            with tarfile.open(fileobj=outer.extractfile(classes[name]), mode="r:") as inner:
                for member in inner:
                    yield start + member.offset_data, member.size, label


def val_places(path: pathlib.Path) -> Iterator[Place]:
    """Of a tar file of images, by name."""
    numbers = {wnid: label for label, wnid in enumerate(wnids())}
    labels = validation_wnids()
    with tarfile.open(path, "r:") as archive:
        members = sorted((m for m in archive if m.isfile()), key=lambda m: m.name)
    if len(members) != len(labels):
        raise ValueError(f"{path}: holds {len(members)} images, takes {len(labels)}")
    for member, wnid in zip(members, labels, strict=True):
        yield member.offset_data, member.size, numbers[wnid]


def _kept(
    path: pathlib.Path, folder: pathlib.Path, find: Callable[[pathlib.Path], Iterator[Place]]
) -> np.ndarray:
    """The places i64[N, 3], found once for a file of this size and time."""
    status = path.stat()
    stamp = np.array([status.st_size, status.st_mtime_ns])
    kept = folder / f"{path.stem}.npz"
    if kept.is_file():
        with np.load(kept) as read:
            if np.array_equal(read["stamp"], stamp):
                return read["places"]
    try:
        places = np.array(list(find(path)), np.int64).reshape(-1, 3)
    except tarfile.TarError as error:
        raise ValueError(f"{path}: broken archive ({error})") from None
    folder.mkdir(parents=True, exist_ok=True)
    part = kept.with_name(f".{kept.stem}.part-{os.getpid()}.npz")
    try:
        np.savez(part, places=places, stamp=stamp)
        part.replace(kept)
    finally:
        part.unlink(missing_ok=True)
    return places


def _of_tfds(folder: pathlib.Path) -> dict[str, Sequence[Any]]:
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(folder)
    kind = getattr(builder.info.file_format, "value", "unknown")
    if kind != "array_record":
        raise ValueError(
            f"{folder}: has {kind} files, takes array_record (tfds build "
            "--file_format=array_record)"
        )
    decoders = {"image": tfds.decode.SkipDecoding()}
    return {s: builder.as_data_source(s, decoders=decoders) for s in ("train", "validation")}


def _shipped(name: str) -> list[str]:
    import tensorflow_datasets as tfds

    return tfds.core.tfds_path(f"datasets/imagenet2012/{name}").read_text().split()
