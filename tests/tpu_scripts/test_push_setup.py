"""push.sh and setup.sh: the committed tree and the same packages on every worker."""

import os
import re
import subprocess
import tarfile
from pathlib import Path

import pytest
from support.pod import Pod

BACKENDS = {
    "qr": {},
    "qr-slices": {"KD_SLICES": 2, "FAKE_SLICES": 2},
    "mig": {"KD_BACKEND": "mig", "KD_ACCELERATOR": "tpu7x-8", "KD_TOPOLOGY": "2x2x2"},
}


@pytest.fixture
def pod(scripts, tmp_path, fake_dir) -> Pod:
    return Pod(scripts, tmp_path, fake_dir, workers=3)


def normal(text: str, pod: Pod) -> str:
    """Without what differs from call to call."""
    text = re.sub(r"[^\s=]*/kd_jax.tar.gz", "TEMPORARY_FOLDER/kd_jax.tar.gz", text)
    revision = pod.git("rev-parse", "HEAD")
    text = text.replace(revision, "REVISION").replace(revision[:12], "SHORT_REVISION")
    return text.replace(str(pod.code), "CODE")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("script", ["push", "setup"])
def test_a_dry_run_prints_what_is_run(pod, golden, script, backend):
    mount = () if script == "push" else ("--mount",)
    settings = {"KD_BUCKET": "gs://bucket/a folder", "KD_WORKDIR": "/mnt/runs"}
    settings |= BACKENDS[backend]
    planned = pod(f"{script}.sh", *mount, "--dry-run", **settings)
    assert (planned.code, planned.calls) == (0, []), planned.stderr
    golden(f"{script}-{backend}", normal(planned.stdout, pod))


def test_push_runs_what_its_dry_run_printed(pod):
    planned = pod("push.sh", "--dry-run")
    done = pod("push.sh")
    assert done.code == 0, done.stderr
    ran = "".join(f"{line}\n" for line in done.stderr.splitlines() if line.startswith("+ "))
    assert normal(ran, pod) == normal(planned.stdout, pod)
    assert len(done.calls) == 2


def test_push_brings_the_commit_and_its_id_to_every_worker(pod):
    (pod.code / "runs").mkdir()
    (pod.code / "runs" / "ignored").touch()
    assert pod("push.sh").code == 0
    tracked = set(pod.git("ls-files").splitlines())
    for home in pod.workers:
        tree = home / "kd_jax"
        there = {str(p.relative_to(tree)) for p in tree.rglob("*") if p.is_file()}
        assert there == tracked | {"REVISION"}
        assert (tree / "REVISION").read_text().strip() == pod.git("rev-parse", "HEAD")
        assert os.access(tree / "tpu_scripts/run.sh", os.X_OK)


@pytest.mark.parametrize("change", ["pyproject.toml", "new file"])
def test_push_refuses_a_tree_that_differs_and_names_what(pod, change):
    with open(pod.code / change, "a") as file:
        file.write("# more\n")
    done = pod("push.sh")
    assert (done.code, done.calls) == (2, [])
    assert change in done.stderr and "--dirty" in done.stderr


def test_dirty_brings_the_tracked_files_as_they_are(pod):
    (pod.code / "pyproject.toml").write_text("changed")
    (pod.code / "constraints.txt").unlink()
    (pod.code / "untracked").touch()
    done = pod("push.sh", "--dirty")
    assert done.code == 0, done.stderr
    for home in pod.workers:
        tree = home / "kd_jax"
        assert (tree / "pyproject.toml").read_text() == "changed"
        assert not (tree / "constraints.txt").exists() and not (tree / "untracked").exists()
        assert (tree / "REVISION").read_text() == f"{pod.git('rev-parse', 'HEAD')}-dirty\n"


def test_dirty_with_nothing_changed_is_the_commit(pod):
    assert pod("push.sh", "--dirty").code == 0
    assert "dirty" not in (pod.workers[0] / "kd_jax/REVISION").read_text()


def test_commit_brings_that_commit_whatever_lies_in_the_tree(pod):
    first = pod.git("rev-parse", "HEAD")
    (pod.code / "later").touch()
    pod.commit()
    (pod.code / "untracked").touch()
    assert pod("push.sh", "--commit", first).code == 0
    assert not (pod.workers[2] / "kd_jax/later").exists()
    assert (pod.workers[2] / "kd_jax/REVISION").read_text().strip() == first
    done = pod("push.sh", "--commit", "no-such")
    assert (done.code, done.calls) == (2, []) and "no-such" in done.stderr


def test_push_again_replaces_the_tree_unless_something_runs_in_it(pod):
    home = pod.workers[0]
    assert pod("push.sh").code == 0
    first = (home / "kd_jax").resolve()
    with subprocess.Popen(["sleep", "60"], cwd=first) as process:
        (pod.code / "more").touch()
        pod.commit()
        assert pod("push.sh").code == 0
        second = (home / "kd_jax").resolve()
        assert (second / "more").exists() and first.is_dir() and first != second
        assert len(list((pod.workers[1] / "kd_jax.trees").iterdir())) == 1
        process.kill()
    assert pod("push.sh").code == 0
    assert not first.exists() and not second.exists()


def test_push_leaves_a_folder_that_is_not_its_own(pod):
    (pod.workers[0] / "kd_jax").mkdir(parents=True)
    done = pod("push.sh")
    assert done.code == 2 and "KD_REMOTE" in done.stderr
    assert (pod.workers[0] / "kd_jax").is_dir() and not (pod.workers[0] / "kd_jax").is_symlink()


def test_an_archive_that_arrives_damaged_changes_nothing(pod):
    assert pod("push.sh").code == 0
    before = (pod.workers[0] / "kd_jax").resolve()
    done = pod("push.sh", FAKE_FAIL="scp:1")
    assert done.code == 1
    assert (pod.workers[0] / "kd_jax").resolve() == before
    assert tarfile.is_tarfile(pod.workers[0] / "kd_jax.tar.gz")


def pip_calls(home: Path) -> int:
    log = home / "pip.log"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_setup_installs_the_constraints_once(pod):
    assert pod("push.sh").code == 0
    done = pod("setup.sh")
    assert done.code == 0, done.stderr
    pinned = dict(
        line.split("==")
        for line in (pod.code / "constraints.txt").read_text().split()
        if "==" in line
    )
    for package in ("jax", "jaxlib", "libtpu"):
        assert f"{package} {pinned[package]}" in done.stderr
    for home in pod.workers:
        call = (home / "pip.log").read_text()
        assert re.search(r"--constraint \S+/constraints.txt --requirement \S+", call)
        wanted = (home / "kd_jax.venv/requirements.txt").read_text().splitlines()
        assert "jax[tpu]" in wanted and any(line.startswith("flax") for line in wanted)
    assert pod("setup.sh").code == 0
    assert [pip_calls(home) for home in pod.workers] == [1, 1, 1]
    with open(pod.code / "constraints.txt", "a") as file:
        file.write("# changed\n")
    assert pod("push.sh", "--dirty").code == pod("setup.sh").code == 0
    assert [pip_calls(home) for home in pod.workers] == [2, 2, 2]


@pytest.mark.parametrize("odd", ["0.9.9", "none"])
def test_setup_says_which_workers_have_other_versions(pod, odd):
    assert pod("push.sh").code == 0
    (pod.workers[2] / "odd").write_text(f"libtpu=={odd}\n")
    done = pod("setup.sh")
    assert done.code == 1
    assert f"libtpu {'missing' if odd == 'none' else odd}: 2\n" in done.stderr
    assert re.search(r"libtpu \S+:( [01]){2}\n", done.stderr)


def test_setup_fails_where_one_worker_fails_and_goes_on_from_there(pod):
    assert pod("push.sh").code == 0
    (pod.workers[1] / "pip-fails").touch()
    done = pod("setup.sh")
    assert done.code == 1 and "worker 1: pip install failed" in done.stderr
    (pod.workers[1] / "pip-fails").unlink()
    assert pod("setup.sh").code == 0
    assert [pip_calls(home) for home in pod.workers] == [1, 2, 1]


def test_setup_before_push_says_so(pod):
    done = pod("setup.sh")
    assert done.code == 2 and "push.sh" in done.stderr


def test_mount_reports_all_that_is_missing_at_once(pod):
    done = pod("setup.sh", "--mount", KD_ZONE="", KD_BUCKET="bucket")
    assert (done.code, done.calls) == (2, [])
    for part in ("KD_ZONE", "KD_WORKDIR", "KD_BUCKET=bucket is not of the form"):
        assert part in done.stderr


def test_mount_mounts_once_and_refuses_another_bucket(pod, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, body in {
        "gcsfuse": 'printf "%s\\n" "$@" >>~/gcsfuse.log; echo bucket >~/mounted',
        "mountpoint": "test -e ~/mounted",
        "findmnt": "cat ~/mounted",
    }.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(0o755)
    fake = Path(__file__).parent / "fake"
    settings = {
        "PATH": f"{tools}:{fake}:{os.environ['PATH']}",
        "KD_BUCKET": "gs://bucket/a folder/",
        "KD_WORKDIR": "mnt/the runs",
    }
    assert pod("push.sh").code == 0
    for _ in range(2):
        done = pod("setup.sh", "--mount", **settings)
        assert done.code == 0, done.stderr
    for home in pod.workers:
        place = home / "mnt/the runs"
        assert place.is_dir()
        assert (home / "gcsfuse.log").read_text().splitlines() == [
            "--implicit-dirs",
            "--metadata-cache-ttl-secs=0",
            "--metadata-cache-negative-ttl-secs=0",
            *("--only-dir", "a folder", "bucket", str(place)),
        ]
    done = pod("setup.sh", "--mount", **settings | {"KD_BUCKET": "gs://other"})
    assert done.code == 2 and "bucket is mounted at" in done.stderr
