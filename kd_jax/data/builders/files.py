"""Where a builder's files come from: the manual folder, or else their public address."""

import pathlib
from collections.abc import Mapping
from typing import Any

HOW = (
    "Put the files into <manual folder>/{name}/ (or name that folder itself) and pass the manual "
    "folder as --manual-dir, manual_dir= or in the environment variable KD_JAX_DATA; without "
    "them they are downloaded."
)


def find(name: str, urls: Mapping[str, str], manager: Any) -> dict[str, pathlib.Path]:
    """{file name: path} of a data set's files, all from one folder or all downloaded.

    urls: {file name: public address}. A gzip file may also lie there unpacked, without ".gz".
    FileNotFoundError in one line: which files, in which folder, which flag.
    """
    manual = _manual_folder(manager)
    if manual is not None:
        found = locate(name, list(urls), manual)
        if found is not None:
            return found
    return _download(name, urls, manager, manual)


def locate(name: str, wanted: list[str], manual: pathlib.Path) -> dict[str, pathlib.Path] | None:
    """The files in manual/name or manual; None where neither has any of them."""
    for folder in (manual / name, manual):
        found = {f: p for f in wanted if (p := _present(folder / f)) is not None}
        missing = [f for f in wanted if f not in found]
        if found and missing:
            raise FileNotFoundError(f"{name}: {folder} lacks {', '.join(missing)}")
        if found:
            return found
    return None


def _present(path: pathlib.Path) -> pathlib.Path | None:
    unpacked = path.with_suffix("") if path.suffix == ".gz" else path
    return next((p for p in (path, unpacked) if p.is_file()), None)


def _manual_folder(manager: Any) -> pathlib.Path | None:
    try:
        return pathlib.Path(manager.manual_dir)
    except AssertionError:  # TFDS's way of saying that it is unset, absent or empty
        return None


def _download(
    name: str, urls: Mapping[str, str], manager: Any, manual: pathlib.Path | None
) -> dict[str, pathlib.Path]:
    import requests

    first = next(iter(urls.values()))
    try:
        # One quick question first: TFDS tries a host that cannot be reached for minutes.
        requests.head(first, timeout=10, allow_redirects=True)
        paths = manager.download(dict(urls))
    except Exception as error:  # every layer of a download has its own exceptions
        files = ", ".join(urls)
        place = manual / name if manual else f"<manual folder>/{name}"
        raise FileNotFoundError(
            f"{name}: no files, and {first} cannot be downloaded ({type(error).__name__}): put "
            f"{files} into {place} and pass --manual-dir (manual_dir=, or the environment "
            "variable KD_JAX_DATA)"
        ) from None
    return {file: pathlib.Path(path) for file, path in paths.items()}
