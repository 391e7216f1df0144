"""The preflight check: what it finds in real processes on the CPU, and that it never hangs."""

import os
import shutil
import socket
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tpu_scripts"))  # scripts, not a package
preflight = import_module("preflight")
checks = import_module("preflight_checks")

PREFLIGHT = str(ROOT / "tpu_scripts" / "preflight.py")
FEW = ("--free-gib", "0.001")
# The machine may be busy, and everything, imports included, has to fit.
SLOW = ("--timeout", "120")


def cluster(count, devices=2):
    """The environments of `count` processes of one job."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "KD_"))}
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    keep |= {"KD_JAX_DEVICES": str(devices), "PYTHONPATH": str(ROOT)}
    if count == 1:
        return [keep]
    keep |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    return [keep | {"JAX_PROCESS_ID": str(i)} for i in range(count)]


def start(command, environment, file):
    with open(file, "w") as opened:
        return subprocess.Popen(
            [sys.executable, *command], env=environment, stdout=opened, stderr=subprocess.STDOUT
        )


def run(commands, tmp_path, timeout=180):
    """Exit codes and outputs of preflight.py with these arguments, one list a process."""
    outputs = [tmp_path / f"output-{i}" for i in range(len(commands))]
    started = [
        start([PREFLIGHT, *command] if command[0].startswith("-") else command, environment, file)
        for command, environment, file in zip(
            commands, cluster(len(commands)), outputs, strict=True
        )
    ]
    try:
        codes = [process.wait(timeout) for process in started]
    finally:
        for process in started:
            process.kill()
    return codes, [file.read_text() for file in outputs]


@pytest.mark.multiprocess
def test_two_processes_pass_every_check_and_leave_nothing_behind(tmp_path):
    work = tmp_path / "made" / "here"
    command = ["--workdir", str(work), "--processes", "2", "--devices", "4", *FEW, *SLOW]
    codes, (first, second) = run([command] * 2, tmp_path)
    assert codes == [0, 0], first + second
    passed = [line[5:].split(":")[0] for line in first.splitlines() if line.startswith("ok   ")]
    assert passed == [*preflight.CHECKS, "all 2 processes"]
    # Every worker says what it has, also where nothing after that works.
    assert "... " in second and "jax " in second
    assert "ok " not in second and "FAIL" not in first + second
    assert list(work.iterdir()) == []


@pytest.mark.multiprocess
def test_another_folder_and_another_revision_are_found(tmp_path):
    """Process 1 runs from a copy of the scripts with a revision of its own."""
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "tpu_scripts", tree / "tpu_scripts")
    (tree / "REVISION").write_text("another\n")
    here = ["--workdir", str(tmp_path / "a"), *FEW, *SLOW]
    there = [str(tree / "tpu_scripts/preflight.py"), "--workdir", str(tmp_path / "b"), *FEW, *SLOW]
    codes, (first, second) = run([here, there], tmp_path)
    assert codes == [1, 1], first + second
    (versions,) = [line for line in first.splitlines() if line.startswith("FAIL versions")]
    assert "another on 1" in versions and "jax" not in versions
    (folder,) = [line for line in second.splitlines() if line.startswith("FAIL")]
    assert "FAIL same folder (process 1)" in folder and "mount the same bucket" in folder
    assert first.splitlines()[-1] == "FAIL on processes 0, 1"


@pytest.mark.multiprocess
def test_a_folder_that_one_process_cannot_write_is_found(tmp_path):
    (tmp_path / "file").write_text("in its place")
    commands = [["--workdir", str(tmp_path / n), *FEW, *SLOW] for n in ("a", "file")]
    codes, (first, second) = run(commands, tmp_path)
    assert codes == [1, 1], first + second
    assert "ok   write" in first and "skip same folder, rename" in first
    assert "FAIL write (process 1)" in second
    assert first.splitlines()[-1] == "FAIL on processes 1"


def test_every_failed_check_of_one_process_is_said_at_once(tmp_path):
    command = ["--workdir", str(tmp_path / "a"), "--processes", "2", "--devices", "9", *SLOW]
    command += ["--free-gib", "1e9", "--bucket-region", "EU", "--zone", "us-central2-b"]
    codes, (said,) = run([command], tmp_path)
    failed = [line[5:].split(" ")[0] for line in said.splitlines() if line.startswith("FAIL")]
    assert codes == [1]
    assert failed == ["processes:", "devices:", "bucket", "disk", "on"], said
    assert "1 joined, expected 2" in said and "2 x cpu, expected 9" in said
    assert "it lies in eu and the workers in us-central2" in said


@pytest.mark.multiprocess
def test_it_ends_in_time_and_says_why(tmp_path):
    """Two jobs at once: one with a worker missing, one whose second worker does nothing."""
    seconds = 25
    command = [PREFLIGHT, "--workdir", str(tmp_path / "a"), *FEW, "--timeout", str(seconds)]
    idle = (
        "import time; from kd_jax.launch import runtime; import jax; runtime.init(cache=''); "
        "jax.devices(); time.sleep(300)"
    )
    alone, stuck = cluster(2), cluster(2)
    waits = {
        "missing": start(command, alone[0], tmp_path / "missing"),
        "stuck": start(command, stuck[0], tmp_path / "stuck"),
    }
    idles = start(["-c", idle], stuck[1], tmp_path / "idle")
    try:
        codes = {name: process.wait(4 * seconds) for name, process in waits.items()}
    finally:
        for process in (*waits.values(), idles):
            process.kill()
            process.wait()
    assert codes == {"missing": 1, "stuck": 1}
    missing, stuck = ((tmp_path / name).read_text().splitlines()[-1] for name in waits)
    assert missing == (
        f"FAIL joining the other workers took over {seconds} s: only 1 of 2 workers joined: "
        "is the command running on every worker?"
    )
    assert "FAIL comparing versions (the first collective)" in stuck
    assert "a collective did not finish: another worker failed or is stuck" in stuck


def test_dry_run_says_what_would_be_checked_and_joins_nobody(tmp_path):
    command = [PREFLIGHT, "--workdir", str(tmp_path / "a"), "--processes", "64", "--dry-run"]
    done = subprocess.run(
        [sys.executable, *command], env=cluster(2)[1], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    said = [line.split(":")[0] for line in done.stdout.splitlines()]
    assert said == [f"would check {name}" for name in preflight.CHECKS]
    assert "64 processes join, all within 60 s" in done.stdout
    assert not (tmp_path / "a").exists()


def test_a_bucket_that_is_not_mounted_is_no_folder(capsys):
    with pytest.raises(SystemExit) as ended:
        preflight.main(["--workdir", "gs://bucket/runs"])
    assert ended.value.code == 2
    assert "mount the bucket" in capsys.readouterr().err


def test_compare_names_what_differs_and_where():
    row = {"python": "3.12.1", "jax": "0.10.2", "libtpu": "none"}
    assert checks.compare([row] * 3) == []
    rows = [row, row | {"jax": "0.10.1"}, row, {"python": "3.12.1", "jax": "0.10.2"}]
    assert checks.compare(rows) == ["jax 0.10.2 on 0, 2, 3; 0.10.1 on 1"]
    assert checks.compare([row, row | {"libtpu": "0.0.51"}]) == ["libtpu none on 0; 0.0.51 on 1"]


MOUNTS = """\
/dev/sdb /mnt/runs/local ext4 rw 0 0
runs /mnt/runs fuse.gcsfuse rw 0 0
/dev/root / ext4 rw 0 0
"""


@pytest.mark.parametrize(
    ("folder", "bucket"),
    [
        ("/mnt/runs/a/b", "runs"),
        ("/mnt/runs", "runs"),
        ("/mnt/runs/local/a", None),
        ("/mnt/runs2", None),
        ("/home", None),
    ],
)
def test_the_bucket_under_a_folder_is_that_of_its_nearest_mount(folder, bucket):
    assert checks.bucket_of(Path(folder), MOUNTS) == bucket


@pytest.mark.parametrize(
    ("location", "namespace", "problems"),
    [
        ("US-CENTRAL2", {"enabled": True}, []),
        ("us-central1", {"enabled": True}, ["us-central1"]),
        ("US", {"enabled": True}, ["it lies in us and"]),
        ("US-CENTRAL2", None, ["hierarchical"]),
        ("EU", {"enabled": False}, ["it lies in eu and", "hierarchical"]),
    ],
)
def test_what_gcloud_says_of_the_bucket_is_judged(
    tmp_path, monkeypatch, location, namespace, problems
):
    described = {"name": "runs", "location": location}
    described |= {"hierarchicalNamespace": namespace} if namespace else {}
    monkeypatch.setattr(checks, "_describe", {"runs": described}.__getitem__)
    mounts = tmp_path / "mounts"
    mounts.write_text(f"runs {tmp_path} fuse.gcsfuse rw 0 0\n")
    problem, fine = checks.check_bucket(tmp_path / "a", None, "us-central2-b", mounts)
    assert [said in (problem or "") for said in problems] == [True] * len(problems)
    assert (problem is None) == (not problems)
    assert "us-central2" in fine if not problems else True


def test_gcloud_is_asked_about_the_mounted_bucket(tmp_path, monkeypatch):
    fake = tmp_path / "gcloud"
    fake.write_text(
        '#!/bin/bash\n[[ "$*" == "storage buckets describe gs://runs --raw '
        '--format=json(name,location,hierarchicalNamespace)" ]] || exit 1\n'
        'echo \'{"name": "runs", "location": "EU", "hierarchicalNamespace": {"enabled": true}}\'\n'
    )
    fake.chmod(0o755)
    mounts = tmp_path / "mounts"
    mounts.write_text(f"runs {tmp_path} fuse.gcsfuse rw 0 0\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    problem, _ = checks.check_bucket(tmp_path / "a", None, "us-central2-b", mounts)
    assert problem is not None and "it lies in eu" in problem
    fake.write_text("#!/bin/bash\nexit 1\n")
    assert checks.check_bucket(tmp_path / "a", None, "us-central2-b", mounts) == (None, "")


def test_a_disk_that_cannot_rename_a_folder_is_found(tmp_path, monkeypatch):
    assert checks.try_rename(tmp_path, "a") is None

    def refuse(self, target):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Path, "rename", refuse)
    problem = checks.try_rename(tmp_path, "a")
    assert problem is not None and "hierarchical namespace" in problem
    assert list(tmp_path.iterdir()) == []


def test_workers_joined_are_the_connections_to_the_coordinator():
    assert preflight.workers_joined() is None
    with socket.create_server(("127.0.0.1", 0)) as coordinator:
        assert preflight.workers_joined() == 0
        workers = [socket.create_connection(coordinator.getsockname()) for _ in range(3)]
        assert preflight.workers_joined() == 3
        for worker in workers:
            worker.close()


def test_the_likely_reason_depends_on_what_was_being_done():
    assert "only 3 of 4 workers joined" in preflight.reason(preflight.JOINING, 3, 4)
    assert "only 3 workers joined" in preflight.reason(preflight.JOINING, 3, None)
    assert "process 0 cannot be reached" in preflight.reason(preflight.JOINING, None, 4)
    assert "held by another process" in preflight.reason(preflight.STARTING, None, None)
    assert "mounted" in preflight.reason(preflight.WRITING, 3, 4)
    assert "collective" in preflight.reason("a psum over all devices", None, None)
