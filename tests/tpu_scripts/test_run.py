"""run.sh: a command on every worker, whatever happens to the connection."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.pod import FAKE, ROOT, Pod

HARD = (
    *(
        "two words",
        "it's",
        'say "x"',
        "$HOME `id` $(id)",
        "two\nlines",
        "*",
        "",
        "~",
        "\\n",
        "a;b&c|d",
    ),
    *("a;b&c|d", "--name", "ü", "\ttab", "!x", "{a,b}", "# no comment"),
)
# Every worker ends with the code in its file, written by the test.
END = ("bash", "-c", "exit $(cat ~/code)")


@pytest.fixture
def ready(scripts, tmp_path, fake_dir):
    """ready(workers=2): a pod with the tree and the packages on it."""
    made = []

    def make(workers: int = 2) -> Pod:
        made.append(Pod(scripts, tmp_path, fake_dir, workers))
        made[-1].make_ready()
        return made[-1]

    yield make
    for pod in made:
        pod.close()


def wait_for(path: Path) -> str:
    for _ in range(300):
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.1)
    raise TimeoutError(path)


def with_gcloud(tmp_path: Path, *lines: str) -> str:
    """PATH with a gcloud that runs these lines before each call of the fake one."""
    tools = tmp_path / "tools"
    tools.mkdir()
    script = "\n".join(["#!/bin/bash", *lines, f'exec {FAKE}/gcloud "$@"', ""])
    (tools / "gcloud").write_text(script)
    (tools / "gcloud").chmod(0o755)
    return f"{tools}:{FAKE}:{os.environ['PATH']}"


def test_runs_on_every_worker_in_its_tree_with_its_packages(ready):
    pod = ready(4)
    program = (
        "import json, os; from pathlib import Path; "
        "names = ('PATH', 'PYTHONPATH', 'KD_WORKDIR', 'JAX_COMPILATION_CACHE_DIR'); "
        "found = {name: os.environ.get(name, '') for name in names}; "
        "found |= {'skip': 'TPU_SKIP_MDS_QUERY' in os.environ, 'cwd': os.getcwd()}; "
        "Path('runs/found-' + os.environ['WORKER_ID']).write_text(json.dumps(found)); print('ran')"
    )
    workdir = pod.workers[0].parent / "shared runs"
    done = pod(
        *("run.sh", "--", "python", "-c", program), KD_WORKDIR=workdir, TPU_SKIP_MDS_QUERY="1"
    )
    assert done.code == 0, done.stdout + done.stderr
    assert sorted(line for line in done.stdout.splitlines() if line.endswith("] ran")) == [
        f"[{number}] ran" for number in range(4)
    ]
    assert "@kd" not in done.stdout
    for number, home in enumerate(pod.workers):
        found = json.loads((workdir / f"runs/found-{number}").read_text())
        tree = str((home / "kd_jax").resolve())
        assert found["cwd"] == tree and tree in found["PYTHONPATH"].split(":")
        assert found["PATH"].startswith(f"{home}/kd_jax.venv/bin:")
        assert found["KD_WORKDIR"] == str(workdir)
        assert found["JAX_COMPILATION_CACHE_DIR"] == f"{workdir}/compiled"
        assert not found["skip"]
        log = (home / "kd_runs/run.log").read_text()
        assert "revision the-revision" in log and "exit code 0" in log
        assert (home / "kd_runs/run.exit").read_text() == "0\n"


def test_arguments_arrive_as_they_were(ready):
    pod = ready()
    program = "import json, pathlib, sys; pathlib.Path.home().joinpath('argv')"
    program += ".write_text(json.dumps(sys.argv[1:]))"
    done = pod("run.sh", "--name", "hard", "--", "python", "-c", program, *HARD)
    assert done.code == 0, done.stdout + done.stderr
    for home in pod.workers:
        assert tuple(json.loads((home / "argv").read_text())) == HARD


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ((0, 0, 3, 0), 3),
        ((134, 1, 134), 1),
        ((75, 0, 75), 75),
        ((75, 3), 3),
        ((134, 0, 75), 134),
    ],
)
def test_the_code_is_the_one_that_says_most(ready, codes, expected):
    pod = ready(len(codes))
    for home, code in zip(pod.workers, codes, strict=True):
        (home / "code").write_text(str(code))
    done = pod("run.sh", "--", *END)
    assert done.code == expected, done.stderr
    for number, code in enumerate(codes):
        assert (f"worker {number} ended with {code}\n" in done.stderr) == (code != 0)


def test_of_two_failures_the_first_is_the_code(ready):
    pod = ready()
    for home, code in zip(pod.workers, (3, 4), strict=True):
        (home / "code").write_text(str(code))
        (home / "pause").write_text("0" if code == 4 else "2")
    done = pod("run.sh", "--", "bash", "-c", "sleep $(cat ~/pause); exit $(cat ~/code)")
    assert done.code == 4


def test_a_lost_connection_is_made_again_and_nothing_runs_twice(ready, tmp_path):
    """Lost while it asks what runs, while it starts, and twice while it follows."""
    pod = ready()
    path = with_gcloud(
        tmp_path,
        f'[[ $* != *" ssh "* ]] || echo >>"{tmp_path}/calls"',
        f'case $(wc -l <"{tmp_path}/calls") in 1 | 3 | 5 | 6) export FAKE_SSH_LOST=99 ;; esac',
    )
    for home, code in zip(pod.workers, (0, 5), strict=True):
        (home / "code").write_text(str(code))
    command = "echo once >>~/ran; sleep 2; echo ends; exit $(cat ~/code)"
    done = pod("run.sh", "--", "bash", "-c", command, PATH=path)
    assert done.code == 5, done.stderr
    assert done.stderr.count("lost the connection (code 255)") == 4
    assert all(done.stdout.count(f"[{number}] ends\n") == 1 for number in range(2))
    assert [(home / "ran").read_text() for home in pod.workers] == ["once\n"] * 2


def test_gives_up_where_the_tpus_were_taken_away(ready):
    pod = ready()
    done = pod("run.sh", "--", "true", FAKE_SSH_LOST=9, FAKE_STATES="ACTIVE,SUSPENDED")
    assert done.code == 255
    assert "pod is SUSPENDED" in done.stderr


def test_gives_up_where_nobody_answers_for_long(ready):
    pod = ready()
    done = pod("run.sh", "--", "true", FAKE_FAIL="ssh:99")
    assert done.code == 255
    assert len([call for call in done.calls if "ssh" in call]) == 10


def test_what_runs_is_followed_not_started_again(ready, tmp_path):
    pod = ready()
    ended, runs = pod.workers
    command = (
        "bash",
        "-c",
        "echo once >>~/ran; until [[ -e ~/go ]]; do sleep 0.1; done; echo ends",
    )
    first = pod("run.sh", "--name", "x", "--detach", "--", *command)
    assert first.code == 0, first.stderr
    assert "ends" not in first.stdout
    (ended / "go").touch()
    wait_for(ended / "kd_runs/x.exit")
    path = with_gcloud(tmp_path, f'[[ $* != *follow.sh* ]] || touch "{runs}/go"')
    done = pod("run.sh", "--name", "x", "--", *command, PATH=path)
    assert done.code == 0 and "under way" in done.stderr
    assert "[0] ends" in done.stdout and "[1] ends" in done.stdout
    assert [(home / "ran").read_text() for home in pod.workers] == ["once\n"] * 2


def test_a_new_run_asks_the_one_before_to_save_and_ends_what_is_left(ready):
    pod = ready()
    # It saves when asked; a process that it has left behind does not hear of it.
    command = "trap 'echo saved >~/saved; exit 75' TERM; setsid sleep 300 & echo $! >~/left; wait"
    assert pod("run.sh", "--name", "old", "--detach", "--", "bash", "-c", command).code == 0
    left = [int(wait_for(home / "left")) for home in pod.workers]
    done = pod("run.sh", "--name", "new", "--", "true")
    assert done.code == 0, done.stderr
    for home, process in zip(pod.workers, left, strict=True):
        assert (home / "saved").exists()
        assert (home / "kd_runs/old.exit").read_text() == "75\n"
        status = Path(f"/proc/{process}/status")
        assert not status.exists() or "State:\tZ" in status.read_text()


def test_stop_asks_what_runs_to_save(ready):
    pod = ready()
    command = "trap 'exit 75' TERM; echo up >~/up; while :; do sleep 0.1; done"
    assert pod("run.sh", "--detach", "--", "bash", "-c", command).code == 0
    for home in pod.workers:
        wait_for(home / "up")
    assert pod("run.sh", "--stop").code == 0
    assert [(home / "kd_runs/run.exit").read_text() for home in pod.workers] == ["75\n"] * 2


def on_worker(home: Path, script: str, *arguments: str) -> subprocess.Popen:
    """A script of remote/ as ssh would start it."""
    return subprocess.Popen(
        ["bash", str(home / "kd_jax/tpu_scripts/remote" / script), *arguments],
        env={"PATH": os.environ["PATH"], "HOME": str(home), "WORKER_ID": "0"},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_calls_that_overlap_start_a_run_once(ready):
    """gcloud calls again by itself where a connection was lost; the first call may still work."""
    (home,) = ready(1).workers
    command = ("run", "the-token", "bash", "-c", "echo once >>~/ran")
    calls = [on_worker(home, "start.sh", *command) for _ in range(4)]
    said = [call.communicate(timeout=60)[0] for call in calls]
    assert sorted(said) == ["", "", "", "[0] started run\n"]
    wait_for(home / "kd_runs/run.exit")
    assert (home / "ran").read_text() == "once\n"


def test_a_killed_run_is_a_failure_and_a_replaced_machine_a_lost_peer(ready):
    pod = ready(1)
    (home,) = pod.workers
    assert pod("run.sh", "--detach", "--", "sleep", "300").code == 0
    os.kill(int((home / "kd_runs/run.pid").read_text()), signal.SIGKILL)
    token = (home / "kd_runs/run.token").read_text().strip()
    for asked, code in ((token, 137), ("another", 134)):
        output, _ = on_worker(home, "follow.sh", "run", asked).communicate(timeout=60)
        assert output.splitlines()[-1] == f"@kd exit 0 {code}"


def test_needs_the_tree_and_the_packages(ready):
    pod = ready()
    shutil.rmtree(pod.workers[1] / "kd_jax.venv")
    done = pod("run.sh", "--", "true")
    assert done.code == 2 and "setup.sh" in done.stderr
    # The workers that could start are not left waiting for it.
    assert (pod.workers[0] / "kd_runs/run.exit").exists()
    for home in pod.workers:
        (home / "kd_jax").unlink()
    done = pod("run.sh", "--", "true")
    assert done.code == 2 and "push.sh" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "behind --"),
        (("--",), "behind --"),
        (("--name", "a b", "--", "true"), "'a b'"),
        (("--name", "../x", "--", "true"), "'../x'"),
        (("--stop", "--", "true"), "--stop"),
        (("--nmae", "x", "--", "true"), "--nmae"),
    ],
)
def test_mistakes(scripts, arguments, message):
    done = scripts("run.sh", *arguments)
    assert (done.code, done.calls) == (2, [])
    assert message in done.stderr


def test_the_launcher_supervises_the_command(ready):
    pod = ready()
    for home in pod.workers[:2]:
        python = home / "kd_jax.venv/bin/python"
        python.write_text(f'#!/bin/bash\nexec {sys.executable} "$@"\n')
        (home / "kd_jax/kd_jax").symlink_to(ROOT / "kd_jax")
    program = "import os, sys; print('beat' if 'KD_JAX_BEAT' in os.environ else 'no'); sys.exit(7)"
    done = pod("run.sh", "--", "python", "-c", program)
    assert done.code == 7, done.stdout + done.stderr
    assert "[0] beat" in done.stdout and "[1] beat" in done.stdout
