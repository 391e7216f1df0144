"""Builders prepared into a temporary folder, and what they say of missing and broken files."""

import gzip
import http.server
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest

from kd_jax.data import images, prepare
from kd_jax.data.builders import (
    digits,
    fashion_mnist,
    files,
    tiny_shakespeare,
    tofu,
)


def idx(values: np.ndarray) -> bytes:
    sizes = b"".join(int(n).to_bytes(4, "big") for n in values.shape)
    return bytes([0, 0, 8, values.ndim]) + sizes + values.astype(np.uint8).tobytes()


@pytest.fixture
def no_network(monkeypatch):
    """No manual folder of this machine, and every download fails at once."""
    monkeypatch.delenv("KD_JAX_DATA", raising=False)

    def refuse(*args, **options):
        raise ConnectionError("no network here")

    monkeypatch.setattr("requests.head", refuse)


@pytest.fixture
def fashion(tmp_path):
    """A manual folder with 7 training and 3 test images, one file unpacked."""
    folder = tmp_path / "manual" / "fashion_mnist"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for prefix, n in (("train", 7), ("t10k", 3)):
        x, y = rng.integers(0, 256, (n, 28, 28)), np.arange(n)[::-1]
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(x), mtime=0))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(y), mtime=0))
    packed = folder / "t10k-labels-idx1-ubyte.gz"
    packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    return folder


def test_digits_are_scikit_learns(tmp_path):
    from sklearn import datasets

    splits = prepare.load(digits.Digits, data_dir=tmp_path)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 1437, "test": 360}
    train, test = (images.image_arrays(splits[name]) for name in ("train", "test"))
    assert train["inputs"].dtype == np.uint8 and train["inputs"].shape == (1437, 8, 8, 1)
    assert train["targets"].dtype == train["index"].dtype == np.int32
    pixels, labels = datasets.load_digits(return_X_y=True)
    known = [
        (tuple(np.rint(x * 255 / 16).astype(int)), y) for x, y in zip(pixels, labels, strict=True)
    ]
    found = [
        (tuple(x.reshape(-1).tolist()), y)
        for part in (train, test)
        for x, y in zip(part["inputs"], part["targets"], strict=True)
    ]
    assert len(set(known)) == len(found) == 1797
    places = [known.index(row) for row in found]
    for part in (places[:1437], places[1437:]):
        assert part == sorted(part)  # scikit-learn's order, each digit once
    assert sorted(places) == list(range(1797))
    assert np.bincount(test["targets"]).min() > 20  # every class is there
    written = sorted(p.name for p in (tmp_path / "digits/1.0.0").glob("*array_record*"))
    assert written[1].startswith("digits-train.array_record")


def test_prepared_data_is_read_without_preparing(tmp_path, monkeypatch):
    prepare.load(digits.Digits, data_dir=tmp_path)
    monkeypatch.setattr(digits.Digits, "_split_generators", None)
    assert len(prepare.load(digits.Digits, data_dir=tmp_path)["test"]) == 360


@pytest.mark.parametrize("inside", [True, False])
def test_fashion_mnist_reads_either_manual_folder(tmp_path, fashion, inside):
    manual = fashion if inside else fashion.parent
    splits = prepare.load(fashion_mnist.FashionMnist, data_dir=tmp_path / "d", manual_dir=manual)
    train = images.image_arrays(splits["train"])
    raw = gzip.decompress((fashion / "train-images-idx3-ubyte.gz").read_bytes())[16:]
    assert train["inputs"].tobytes() == raw  # in file order
    assert train["targets"].tolist() == [6, 5, 4, 3, 2, 1, 0]
    assert images.image_arrays(splits["test"])["targets"].tolist() == [2, 1, 0]


def test_manual_folder_from_the_environment(tmp_path, fashion, monkeypatch):
    monkeypatch.setenv("KD_JAX_DATA", str(fashion.parent))
    monkeypatch.setenv("KD_JAX_DATA_DIR", str(tmp_path / "kept"))
    assert len(prepare.load(fashion_mnist.FashionMnist)["train"]) == 7
    assert (tmp_path / "kept/fashion_mnist/1.0.0/dataset_info.json").exists()


GOOD = idx(np.arange(12).reshape(3, 2, 2))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (GOOD[:-1], r"holds 11 values, its header says \(3, 2, 2\)"),
        (GOOD + b"\0", "holds 13 values"),
        (GOOD[:9], "ends inside its header of 16 bytes"),
        (b"", "begins with , takes 00000803"),
        (b"\0\0\x0d\x03" + GOOD[4:], "begins with 00000d03"),
        (idx(np.arange(3)), "begins with 00000801"),
        (GOOD[:4] + b"\xff" * 12, "its header says"),
        (gzip.compress(GOOD, mtime=0)[:-6], "broken gzip"),
        (gzip.compress(GOOD, mtime=0)[:12] + b"\xff" * 20, "broken gzip"),
        (gzip.compress(GOOD, mtime=0)[:3], "broken gzip"),
    ],
)
def test_broken_idx_files(tmp_path, data, said):
    path = tmp_path / "x.gz"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=said) as caught:
        fashion_mnist.read_idx(path, dims=3)
    assert str(path) in str(caught.value)


def test_every_flipped_byte_of_an_idx_file_is_read_or_refused(tmp_path):
    packed = gzip.compress(GOOD, mtime=0)
    path = tmp_path / "x.gz"
    for i in range(len(packed)):
        for value in (0, 255, packed[i] ^ 1):
            path.write_bytes(packed[:i] + bytes([value]) + packed[i + 1 :])
            try:
                assert fashion_mnist.read_idx(path, dims=3).size == 12
            except ValueError as error:
                assert str(path) in str(error)


def test_a_broken_file_is_named_and_leaves_nothing(tmp_path, fashion):
    path = fashion / "train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(idx(np.array([1, 2]))))
    with pytest.raises(ValueError, match=r"train-labels.* and 2 labels"):
        prepare.load(fashion_mnist.FashionMnist, data_dir=tmp_path / "d", manual_dir=fashion)
    assert not (tmp_path / "d/fashion_mnist").exists()


def test_missing_files_say_where_they_belong(tmp_path, fashion, no_network):
    (fashion / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="lacks train-labels-idx1-ubyte.gz"):
        prepare.load(fashion_mnist.FashionMnist, data_dir=tmp_path / "d", manual_dir=fashion)
    with pytest.raises(FileNotFoundError) as caught:
        prepare.load(tofu.Tofu, data_dir=tmp_path / "d", manual_dir=fashion.parent)
    said = str(caught.value)
    assert "forget10_perturbed.json" in said and str(fashion.parent / "tofu") in said
    assert "--manual-dir" in said and "\n" not in said
    with pytest.raises(FileNotFoundError, match="is no folder"):
        prepare.load(tofu.Tofu, data_dir=tmp_path / "d", manual_dir=tmp_path / "none")
    assert not (tmp_path / "d/tofu").exists()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # sockets of TFDS's own downloader
def test_files_are_downloaded_where_there_is_no_manual_folder(tmp_path, fashion, monkeypatch):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(fashion))

        def log_message(self, format, *args):
            pass

    packed = fashion / "t10k-labels-idx1-ubyte.gz"
    packed.write_bytes(gzip.compress(packed.with_suffix("").read_bytes()))
    monkeypatch.delenv("KD_JAX_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(fashion_mnist, "_ORIGIN", f"http://127.0.0.1:{server.server_port}/")
        try:
            splits = prepare.load(fashion_mnist.FashionMnist, data_dir=tmp_path / "d")
        finally:
            server.shutdown()
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 7, "test": 3}


def test_tiny_shakespeare_is_cut_into_three(tmp_path):
    text = "".join(f"line {i}, é\n" for i in range(50))
    (tmp_path / "input.txt").write_text(text, encoding="utf-8")
    splits = prepare.load(
        tiny_shakespeare.TinyShakespeare, data_dir=tmp_path / "d", manual_dir=tmp_path
    )
    parts = [prepare.texts(splits[name]) for name in ("train", "validation", "test")]
    assert "".join(part[0]["text"] for part in parts) == text
    assert len(parts[0][0]["text"]) == len(text) * 90 // 100


@pytest.fixture(scope="module")
def real_data():
    folder = os.environ.get("KD_JAX_DATA")
    if not folder:
        pytest.skip("missing data: set KD_JAX_DATA to the folder that holds tofu/")
    return pathlib.Path(folder)


@pytest.mark.data
def test_real_fashion_mnist_file(real_data):
    folder = real_data / "fashion_mnist"
    x = fashion_mnist.read_idx(folder / "t10k-images-idx3-ubyte.gz", dims=3)
    y = fashion_mnist.read_idx(folder / "t10k-labels-idx1-ubyte.gz", dims=1)
    assert x.shape == (10000, 28, 28)
    np.testing.assert_array_equal(np.bincount(y), [1000] * 10)
    # The first test image is an ankle boot; 0.2868 is the data set's well-known mean / 255.
    assert y[0] == 9 and abs(x.mean() / 255 - 0.2868) < 2e-3


def test_command(tmp_path, fashion, no_network, capsys):
    arguments = ["fashion_mnist", "--manual-dir", str(fashion), "--data-dir", str(tmp_path / "d")]
    assert prepare.main(arguments) == 0
    assert capsys.readouterr().out == "fashion_mnist: train 7, test 3\n"
    assert prepare.main(["tofu", "--data-dir", str(tmp_path / "d")]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith("tofu: no files")
    with pytest.raises(SystemExit) as caught:
        prepare.main(["mnist"])
    assert caught.value.code == 2


def test_nothing_slow_is_imported_before_it_is_used():
    code = (
        "import sys\n"
        "from kd_jax.data import arrays, collate, images, jsonl, order, packing, pairs, prepare\n"
        "from kd_jax.data import sources, templates, vocabulary\n"
        "slow = {'tensorflow_datasets', 'tensorflow', 'grain', 'sklearn'} & set(sys.modules)\n"
        "assert not slow, slow\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_instructions_name_the_flag():
    assert "--manual-dir" in files.HOW.format(name="tofu")
