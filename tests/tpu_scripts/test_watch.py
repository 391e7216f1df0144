"""watch.sh: a command comes to its end over preemptions, and a broken one is given up."""

import re
from pathlib import Path
from typing import Any

import pytest
from support.pod import Pod


@pytest.fixture
def watch(scripts, tmp_path, fake_dir):
    """watch(COMMAND of bash, *arguments, workers=1, **settings): (result, starts of the command).

    COMMAND knows which start it is: $start is 1, 2, ... on worker 0, from a file in the shared
    KD_WORKDIR, which outlives the workers.
    """
    pods = []

    def run(command: str, *arguments: str, workers: int = 1, **settings: Any) -> tuple[Any, int]:
        pod = Pod(scripts, tmp_path, fake_dir, workers)
        pods.append(pod)
        shared = tmp_path / "shared"
        count = "echo >>runs/starts-$WORKER_ID; start=$(wc -l <runs/starts-$WORKER_ID)"
        program = ("bash", "-c", f"{count}; {command}")
        done = pod("watch.sh", *arguments, "--", *program, KD_WORKDIR=shared, **settings)
        starts = shared / "runs/starts-0"
        return done, len(starts.read_text().splitlines()) if starts.exists() else 0

    yield run
    for pod in pods:
        pod.close()


def verbs(calls: list[list[str]]) -> list[str]:
    """What was asked of queued resources."""
    return [call[3] for call in calls if "queued-resources" in call]


def test_a_dry_run_prints_a_turn(scripts, tmp_path, fake_dir, golden):
    pod = Pod(scripts, tmp_path, fake_dir)
    settings = {"KD_BUCKET": "gs://bucket", "KD_WORKDIR": "/mnt/runs"}
    planned = pod("watch.sh", "--dry-run", "--name", "x", "--", "echo", "it's", **settings)
    assert (planned.code, planned.calls) == (0, []), planned.stderr
    revision = pod.git("rev-parse", "HEAD")
    text = planned.stdout.replace(revision, "REVISION").replace(revision[:12], "SHORT_REVISION")
    golden("watch-qr", text.replace(str(pod.code), "CODE"))


def test_goes_on_after_a_preemption_under_the_same_name_and_in_the_same_folder(watch):
    states = (
        *("absent", "WAITING_FOR_RESOURCES", "ACTIVE"),  # create.sh, wait.sh
        "SUSPENDED",  # what took the workers
        *("SUSPENDED", "PROVISIONING", "ACTIVE"),
        "absent",
        *("absent", "ACTIVE"),
    )
    # Two are lost; that is more than --retries allows of failures.
    command = "echo start $start; ((start == 3)) || exit 134"
    done, starts = watch(
        command, "--name", "x", "--retries", "1", workers=2, FAKE_STATES=",".join(states)
    )
    assert (done.code, starts) == (0, 3), done.stderr
    assert verbs(done.calls) == [
        *("describe", "create", "describe", "describe"),
        "describe",
        *("describe", "delete", "create", "describe", "describe"),
        "describe",
        *("describe", "create", "describe"),
    ]
    started = [call for call in done.calls if any("remote/start.sh x " in word for word in call)]
    assert len(started) == 3
    assert "[1] start 3" in done.stdout
    assert done.stderr.count("the TPUs were taken away") == 2


def test_workers_that_go_while_they_are_set_up_are_asked_for_again(watch):
    done, starts = watch(
        "true",
        *("--retries", "1"),
        FAKE_STATES="ACTIVE,ACTIVE,SUSPENDING,SUSPENDED,ACTIVE",
        FAKE_SSH_LOST=1,
    )
    assert (done.code, starts) == (0, 1), done.stderr
    assert "the TPUs were taken away" in done.stderr


def test_asked_to_stop_and_saved_is_no_failure(watch):
    done, starts = watch("((start == 3)) || exit 75", "--retries", "1")
    assert (done.code, starts) == (0, 3), done.stderr


@pytest.mark.parametrize("code", [3, 134])
def test_a_program_that_fails_again_and_again_is_given_up_with_its_code(watch, code):
    done, starts = watch(f"exit {code}", "--retries", "2")
    assert (done.code, starts) == (code, 2), done.stderr
    assert "2 times in a row" in done.stderr


def test_progress_between_failures_makes_the_count_begin_again(watch):
    command = (
        "((start == 1)) || echo stage 1/1 student: resumed at step $start of 9; "
        "((start == 3)) || exit 1"
    )
    done, starts = watch(command, "--retries", "2")
    assert (done.code, starts) == (0, 3), done.stderr
    assert done.stderr.count("there was progress") == 1


def test_resuming_at_the_same_step_is_no_progress(watch):
    command = "echo stage 1/1 student: resumed at step 40 of 90; exit 1"
    done, starts = watch(command, "--retries", "2")
    assert (done.code, starts) == (1, 2), done.stderr


def test_experiments_say_what_counts_as_progress():
    launch = Path(__file__).parents[2] / "kd_jax/launch"
    assert re.search(r'say\(f"resumed at step \{', (launch / "execute.py").read_text())
    run = (launch / "run.py").read_text()
    assert '"finished before"' in run and '_Say(f"stage ' in run


def test_requests_that_fail_are_made_again_and_counted(watch):
    done, starts = watch("true", FAKE_FAIL="create:4", FAKE_STATES="absent,ACTIVE,absent,ACTIVE")
    assert (done.code, starts) == (0, 1), done.stderr
    assert "failure 1 of 10" in done.stderr
    assert verbs(done.calls).count("create") == 5


def test_brings_the_same_commit_each_time(watch, tmp_path):
    code = tmp_path / "code"
    commit = "-c user.name=n -c user.email=n@example.com commit --quiet --allow-empty -m later"
    command = f"cat REVISION >>runs/revisions; git -C {code} {commit}; ((start == 2)) || exit 75"
    done, starts = watch(command)
    assert (done.code, starts) == (0, 2), done.stderr
    first, second = (tmp_path / "shared/runs/revisions").read_text().splitlines()
    assert first == second and len(first) == 40


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((), {}, "behind --"),
        (("--retries", "0", "--", "true"), {}, "--retries"),
        (("--", "true"), {"KD_ZONE": ""}, "KD_ZONE"),
        (("--", "true"), {"KD_BUCKET": "gs://b"}, "KD_WORKDIR"),
        (("--", "true"), {"KD_BACKEND": "xpk", "KD_CLUSTER": "c"}, "xpk"),
    ],
)
def test_mistakes_are_said_before_anything_is_made(scripts, arguments, settings, message):
    done = scripts("watch.sh", *arguments, **settings)
    assert (done.code, done.calls) == (2, [])
    assert message in done.stderr


def test_a_tree_that_differs_from_its_commit_is_refused_before_anything_is_made(
    scripts, tmp_path, fake_dir
):
    pod = Pod(scripts, tmp_path, fake_dir)
    (pod.code / "more").touch()
    done = pod("watch.sh", "--", "true")
    assert (done.code, done.calls) == (2, []) and "more" in done.stderr


def test_a_mistake_on_the_way_stops_it(watch, tmp_path, fake_dir):
    (fake_dir / "worker-0/kd_jax").mkdir(parents=True)
    done, starts = watch("true")
    assert (done.code, starts) == (2, 0)
    assert done.stderr.count("KD_REMOTE") == 1
