"""A repository whose tpu_scripts/ are run against the fake gcloud of tests/tpu_scripts."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FAKE = ROOT / "tests/tpu_scripts/fake"


class Pod:
    """pod("run.sh", "--name", "x", ...) runs a script of `code`; keywords are of `scripts`.

    code: a repository of one commit. workers: their home folders, by number.
    """

    def __init__(self, scripts: Callable[..., Any], folder: Path, fake_dir: Path, workers: int = 4):
        self._scripts, self._fake_dir, self._workers = scripts, fake_dir, workers
        self.code = folder / "code"
        shutil.copytree(ROOT / "tpu_scripts", self.code / "tpu_scripts")
        for name in ("constraints.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, self.code / name)
        (self.code / ".gitignore").write_text("runs/\n")
        self.git("init", "--quiet")
        self.commit()

    @property
    def workers(self) -> list[Path]:
        return [self._fake_dir / f"worker-{number}" for number in range(self._workers)]

    def git(self, *arguments: str) -> str:
        nobody = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.com")
        command = ["git", *nobody, "-C", str(self.code), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self) -> str:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "a commit")
        return self.git("rev-parse", "HEAD")

    def __call__(self, script: str, *arguments: str, **settings: Any) -> Any:
        defaults = {"FAKE_WORKERS": self._workers, "TEST_PYTHON": sys.executable}
        path = self.code / "tpu_scripts" / script
        return self._scripts(str(path), *arguments, **{**defaults, **settings})

    def make_ready(self) -> None:
        """As after push.sh and setup.sh, in less time: scripts that workers run, and packages."""
        for home in self.workers:
            tree = home / "kd_jax.trees/one"
            shutil.copytree(ROOT / "tpu_scripts/remote", tree / "tpu_scripts/remote")
            (tree / "REVISION").write_text("the-revision\n")
            (home / "kd_jax").symlink_to(tree)
            (home / "kd_jax.venv/bin").mkdir(parents=True)
            shutil.copy(FAKE / "python3.13", home / "kd_jax.venv/bin/python")

    def close(self) -> None:
        """Ends what runs on the workers still."""
        mark = b"KD_RUN=" + os.fsencode(self._fake_dir)
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (process / "environ").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)
            except OSError:  # gone, or another account's
                continue
