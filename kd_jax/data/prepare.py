"""Preparing data sets once, and loading them: `load(Tofu)`, or on the command line

python -m kd_jax.data.prepare tofu --manual-dir FOLDER
"""

import argparse
import contextlib
import functools
import io
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

DATA_DIR = "KD_JAX_DATA_DIR"
MANUAL_DIR = "KD_JAX_DATA"


def load(
    builder_class: Any,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    manual_dir: str | os.PathLike[str] | None = None,
    **config: Any,
) -> dict[str, Any]:
    """{split: records in file order}, prepared first where that has not been done.

    builder_class: of `kd_jax.data.builders`, or any TFDS builder that works without TensorFlow.
    data_dir: where prepared data is kept; by default $KD_JAX_DATA_DIR or ~/.cache/kd_jax/tfds.
    manual_dir: the folder with a data set's files, or one that holds it under the data set's name;
        by default $KD_JAX_DATA. It is read only where something is to be prepared.
    config: for builders with `make_config` (FictitiousAuthors: authors, seed, ...).
    A split has `len`, `[i]` and `__getitems__`; text is bytes (`texts` decodes it). A data set
    appears in data_dir complete or not at all, also when several processes prepare it at once.
    Errors: FileNotFoundError says which file belongs where, ValueError what is wrong with one.
    """
    import tensorflow_datasets as tfds

    if config and not hasattr(builder_class, "make_config"):
        raise ValueError(f"{builder_class.__name__} takes no config, got {sorted(config)}")
    configured = hasattr(builder_class, "make_config")
    options = {"config": builder_class.make_config(**config)} if configured else {}
    folder = pathlib.Path(data_dir or default_data_dir()).expanduser()
    make = functools.partial(builder_class, data_dir=folder, file_format="array_record", **options)
    with _quiet():
        builder = make()
        if not builder.is_prepared():
            settings = tfds.download.DownloadConfig(manual_dir=manual_folder(manual_dir))
            try:
                builder.download_and_prepare(download_config=settings)
            except (OSError, ValueError):
                # Another process may have finished first: TFDS's last step renames a folder.
                builder = make()
                if not builder.is_prepared():
                    with contextlib.suppress(OSError):
                        (folder / builder.name).rmdir()  # empty where nothing else is in it
                    raise
        return {split: builder.as_data_source(split) for split in builder.info.splits}


def texts(records: Sequence[Any]) -> list[dict[str, Any]]:
    """Every record as plain Python: text as str, sequences as lists, numbers as int or float."""
    from kd_jax.data import images

    return [{k: _plain(v) for k, v in record.items()} for record in images.read_all(records)]


def default_data_dir() -> str:
    """$KD_JAX_DATA_DIR, or ~/.cache/kd_jax/tfds."""
    return os.environ.get(DATA_DIR) or str(pathlib.Path.home() / ".cache" / "kd_jax" / "tfds")


def manual_folder(manual_dir: str | os.PathLike[str] | None) -> pathlib.Path | None:
    """manual_dir or $KD_JAX_DATA as a path; None for neither, FileNotFoundError if it is none."""
    manual_dir = manual_dir or os.environ.get(MANUAL_DIR)
    if not manual_dir:
        return None
    folder = pathlib.Path(manual_dir).expanduser().absolute()
    if not folder.is_dir():
        raise FileNotFoundError(f"manual folder {folder} is no folder (--manual-dir, {MANUAL_DIR})")
    return folder


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without TFDS's lines on stdout and its warnings about folders that are about to be made."""
    import tensorflow_datasets as tfds
    from absl import logging

    tfds.display_progress_bar(sys.stderr.isatty())
    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(level)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [_plain(v) for v in value] if isinstance(value, list) else value


def builders() -> dict[str, Any]:
    """The builders of `kd_jax.data.builders` by their data sets' names."""
    from kd_jax.data.builders import (
        cifar,
        digits,
        fashion_mnist,
        fictitious_authors,
        tiny_imagenet,
        tiny_shakespeare,
        tofu,
    )

    return {
        "cifar10": cifar.Cifar10,
        "cifar100": cifar.Cifar100,
        "digits": digits.Digits,
        "fashion_mnist": fashion_mnist.FashionMnist,
        "fictitious_authors": fictitious_authors.FictitiousAuthors,
        "tiny_imagenet": tiny_imagenet.TinyImagenet,
        "tiny_shakespeare": tiny_shakespeare.TinyShakespeare,
        "tofu": tofu.Tofu,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0, or 2 with one line on stderr."""
    known = builders()
    parser = argparse.ArgumentParser(
        prog="python -m kd_jax.data.prepare", description="Prepare data sets (array_record files)."
    )
    parser.add_argument(
        "names", nargs="+", choices=list(known), metavar="NAME", help="|".join(known)
    )
    parser.add_argument("--manual-dir", help=f"folder with the data's files (or ${MANUAL_DIR})")
    parser.add_argument("--data-dir", help=f"where it is kept (or ${DATA_DIR}, ~/.cache/kd_jax)")
    given = parser.parse_args(arguments)
    for name in given.names:
        try:
            splits = load(known[name], data_dir=given.data_dir, manual_dir=given.manual_dir)
        except (OSError, ValueError) as error:
            print(f"{name}: {str(error).removeprefix(f'{name}: ')}", file=sys.stderr)
            return 2
        print(f"{name}: {', '.join(f'{split} {len(rows)}' for split, rows in splits.items())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
