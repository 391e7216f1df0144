"""The templates for GKE and Slurm: filled in they are valid, and quoting and exit codes hold."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
JOBSET = ROOT / "tpu_scripts" / "gke" / "jobset.yaml"
SBATCH = ROOT / "tpu_scripts" / "slurm" / "gpus.sbatch"
COMMAND = ["python", "-m", "experiments.x", "--name", 'a b\'s "c" ${HOME} $(id) {}: # é \\ x']
VALUES = {
    "NAME": "run-1",
    "IMAGE": "registry.example/kd_jax:1",
    "SERVICE_ACCOUNT": "trainer",
    "BUCKET": "runs",
    "ACCELERATOR": "tpu-v6e-slice",
    "TOPOLOGY": "16x16",
    "SLICES": "2",
    "HOSTS": "64",
    "CHIPS": "4",
    "RESTARTS": "10",
    "COMMAND": json.dumps(COMMAND),
}


def filled(values=VALUES):
    done = subprocess.run(
        ["envsubst"],
        input=JOBSET.read_text(),
        env={"PATH": os.environ["PATH"], **values},
        capture_output=True,
        text=True,
        check=True,
    )
    return yaml.safe_load(done.stdout)


needs_envsubst = pytest.mark.skipif(not shutil.which("envsubst"), reason="needs envsubst (gettext)")


def test_jobset_documents_every_variable_that_it_uses():
    text = JOBSET.read_text()
    head = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    documented = set(re.findall(r"^#   ([A-Z_]+)  +\S", head, re.MULTILINE))
    body = text.removeprefix(head)
    assert set(re.findall(r"\$\{([A-Z_]+)\}", body)) == documented == set(VALUES)
    # Anything else that envsubst would take for a variable would be lost.
    assert not re.search(r"\$[A-Za-z_]", text)


@needs_envsubst
def test_filled_jobset_runs_the_command_as_it_was_given():
    spec = filled()["spec"]
    (slices,) = spec["replicatedJobs"]
    job = slices["template"]["spec"]
    assert (slices["replicas"], job["parallelism"], job["completions"]) == (2, 64, 64)
    (container,) = job["template"]["spec"]["containers"]
    assert container["args"] == COMMAND
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["command"][:2] == ["bash", "-ec"]


@needs_envsubst
def test_containers_script_checks_first_and_hands_the_command_on(tmp_path):
    spec = filled()["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    container = spec["containers"][0]
    fake = tmp_path / "python"
    fake.write_text(
        '#!/bin/bash\nprintf "%s\\0" "$@" >>"$LOG"; printf "\\n" >>"$LOG"; exit "$CODE"\n'
    )
    fake.chmod(0o755)
    log = tmp_path / "log"

    def run(code):
        log.write_text("")
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log), "CODE": code}
        command = [*container["command"], *container["args"]]
        done = subprocess.run(command, env=environment, check=False)
        calls = [line.split("\0")[:-1] for line in log.read_text().splitlines()]
        return done.returncode, calls

    code, calls = run("0")
    preflight = ["tpu_scripts/preflight.py", "--workdir", "/runs", "--processes", "128"]
    assert code == 0
    assert calls == [preflight, ["-m", "kd_jax.launch.local", "-n", "1", "--", *COMMAND]]
    assert run("1") == (1, [preflight])


@needs_envsubst
def test_preemption_and_75_restart_without_counting_and_nothing_else_does():
    spec = filled()["spec"]
    assert spec["failurePolicy"]["maxRestarts"] == 10
    (rule,) = spec["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    # The API refuses a podFailurePolicy with any other restartPolicy.
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert job["backoffLimit"] == 0
    rules = job["podFailurePolicy"]["rules"]
    assert {rule["action"] for rule in rules} == {"FailJob"}
    (codes,) = [rule["onExitCodes"] for rule in rules if "onExitCodes" in rule]
    assert codes == {"containerName": "main", "operator": "In", "values": [75]}
    (conditions,) = [rule["onPodConditions"] for rule in rules if "onPodConditions" in rule]
    assert conditions == [{"type": "DisruptionTarget", "status": "True"}]


@needs_envsubst
def test_jobset_leaves_the_search_for_the_other_workers_to_jax():
    spec = filled()["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    names = {variable["name"] for variable in spec["containers"][0]["env"]}
    assert names == {"JAX_COMPILATION_CACHE_DIR"}
    # The bucket's driver refuses pods on the host's network.
    assert "hostNetwork" not in spec


def test_sbatch_passes_bash_and_shellcheck():
    subprocess.run(["bash", "-n", str(SBATCH)], check=True)
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([str(shellcheck), str(SBATCH)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_sbatch_options():
    options = re.findall(r"^#SBATCH (\S+)$", SBATCH.read_text(), re.MULTILINE)
    assert {"--requeue", "--signal=TERM@120", "--open-mode=append"} <= set(options)
    tasks = [int(o.split("=")[1]) for o in options if "-per-node=" in o]
    assert tasks == [8, 8]


def test_page_names_what_there_is():
    page = (ROOT / "docs" / "pods.md").read_text()
    for path in set(re.findall(r"tpu_scripts/[\w./]*\w", page)):
        assert (ROOT / path).is_file(), path
    for script in set(re.findall(r"`([a-z]+\.sh)", page)):
        assert (ROOT / "tpu_scripts" / script).is_file(), script
    known = (ROOT / "tpu_scripts" / "env.sh").read_text()
    known += (ROOT / "kd_jax" / "launch" / "runtime.py").read_text()
    for name in set(re.findall(r"\bKD_[A-Z_]+", page)):
        assert name in known, name
    # The variables of the JobSet, all of them, in the command that fills it in.
    gke = page[page.index("## GKE") : page.index("## Slurm")]
    assert set(VALUES) == set(re.findall(r"\b([A-Z_]+)=", gke))


SRUN = r"""#!/bin/bash
# Codes of the calls, one after another, from CODES.
{ printf '%s\0' srun "$@"; printf '\n'; } >>"$LOG"
code=$(head -n 1 "$CODES"); sed -i 1d "$CODES"
if [[ -n ${SIGNAL-} ]]; then kill -TERM "$PPID"; sleep 0.2; fi
exit "$code"
"""
SCONTROL = r"""#!/bin/bash
{ printf '%s\0' scontrol "$@"; printf '\n'; } >>"$LOG"
"""


def submit(folder, codes, *arguments, **environment):
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "log").write_text("")
    (folder / "codes").write_text("".join(f"{code}\n" for code in codes))
    done = subprocess.run(
        ["bash", str(SBATCH), *(arguments or COMMAND)],
        env={
            "PATH": f"{folder}:{os.environ['PATH']}",
            "LOG": str(folder / "log"),
            "CODES": str(folder / "codes"),
            "SLURM_JOB_ID": "17",
            "KD_WORKDIR": "/shared/my runs",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=30,
    )
    calls = [line.split("\0")[:-1] for line in (folder / "log").read_text().splitlines()]
    return done, calls


def test_sbatch_checks_then_runs_the_command_on_all_workers(tmp_path):
    done, (first, second) = submit(tmp_path, [0, 0])
    assert done.returncode == 0, done.stderr
    flags = ["srun", "--gpu-bind=none", "--kill-on-bad-exit=0", "--wait=600", "python"]
    assert first == [*flags, "tpu_scripts/preflight.py", "--workdir", "/shared/my runs"]
    assert second == [*flags, "-m", "kd_jax.launch.local", "-n", "1", "--", *COMMAND]


@pytest.mark.parametrize(
    ("codes", "restarts", "code", "requeued"),
    [
        ([0, 75], 99, 0, True),
        ([0, 1], 2, 0, True),
        ([0, 134], 2, 0, True),
        ([1], 2, 0, True),
        ([0, 1], 3, 1, False),
        ([0, 134], 3, 134, False),
        ([1], 3, 1, False),
        ([0, 2], 0, 2, False),
        ([0, 130], 0, 130, False),
    ],
)
def test_sbatch_queues_again_what_may_go_on(tmp_path, codes, restarts, code, requeued):
    done, calls = submit(tmp_path, codes, SLURM_RESTART_COUNT=str(restarts), KD_RESTARTS="3")
    assert done.returncode == code, done.stderr
    assert len(calls) == len(codes) + requeued  # no run after a failed preflight
    assert (calls[-1] == ["scontrol", "requeue", "17"]) == requeued


def test_sbatch_waits_for_the_run_to_save_when_it_is_signalled_itself(tmp_path):
    done, calls = submit(tmp_path, [0, 75], SIGNAL="1")
    assert done.returncode == 0, done.stderr
    assert calls[-1] == ["scontrol", "requeue", "17"]


def test_sbatch_dry_run_prints_the_commands_and_runs_none(tmp_path):
    done, calls = submit(tmp_path, [], "--dry-run", *COMMAND)
    assert (done.returncode, calls) == (0, [])
    printed = done.stdout.splitlines()
    assert all(line.startswith("+ srun ") for line in printed) and len(printed) == 2
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {printed[1][2:]}"], capture_output=True, text=True
    )
    assert words.stdout.split("\0")[-1 - len(COMMAND) : -1] == COMMAND


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [(["--dry-run"], {}, "no command"), (["x"], {"KD_WORKDIR": ""}, "KD_WORKDIR")],
)
def test_sbatch_says_what_is_missing(tmp_path, arguments, environment, said):
    done, calls = submit(tmp_path, [], *arguments, **environment)
    assert (done.returncode, calls) == (2, [])
    assert said in done.stderr


TASKS = r"""
import os, subprocess, sys

tasks = []
for i in range(2):
    mine = {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}
    arguments = sys.argv[sys.argv.index("python") + 1 :]
    tasks.append(subprocess.Popen([sys.executable, *arguments], env={**os.environ, **mine}))
sys.exit(max(task.wait() % 256 for task in tasks))
"""


@pytest.mark.multiprocess
def test_two_tasks_of_a_slurm_job_find_one_another(tmp_path):
    """With the variables that Slurm sets, and an srun that starts two processes here."""
    with socket.socket() as s:
        # jax takes port 61440 + the job's number modulo 4096.
        for job in range(1, 4096):
            try:
                s.bind(("127.0.0.1", 61440 + job))
                break
            except OSError:
                continue
    for name, text in (("srun", f"#!{sys.executable}\n{TASKS}"), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    # Written in one piece: both share the output.
    program = (
        "from kd_jax.launch import runtime; runtime.init(cache=''); import jax, os; "
        "os.write(1, f'process {jax.process_index()} of {jax.process_count()}\\n'.encode())"
    )
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "KD_"))}
    done = subprocess.run(
        ["bash", str(SBATCH), "python", "-c", program],
        cwd=ROOT,
        env=keep
        | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "LOG": str(tmp_path / "log"),
            "PYTHONPATH": str(ROOT),
            "KD_WORKDIR": str(tmp_path / "runs"),
            "KD_JAX_DEVICES": "1",
            "KD_RESTARTS": "0",
            "SLURM_JOB_ID": str(job),
            "SLURM_NTASKS": "2",
            "SLURM_STEP_NODELIST": "127.0.0.1",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok   all 2 processes" in done.stdout
    assert {"process 0 of 2", "process 1 of 2"} <= set(done.stdout.splitlines())
