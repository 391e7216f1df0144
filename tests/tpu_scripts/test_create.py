"""create.sh, wait.sh and delete.sh: what they run, the states they walk through, their codes."""

import os
import pty
import shlex

import pytest

MIG = {"KD_BACKEND": "mig", "KD_ACCELERATOR": "tpu7x-256", "KD_TOPOLOGY": "4x4x8"}
XPK = {"KD_BACKEND": "xpk", "KD_ACCELERATOR": "tpu7x-4x4x8", "KD_CLUSTER": "team"}
BACKENDS = {"qr": {}, "mig": MIG, "xpk": XPK}
CAPACITIES = ("on-demand", "spot", "reserved", "flex-start")

CREATIONS = {
    f"create-{backend}-{capacity}": {
        **settings,
        "KD_CAPACITY": capacity,
        # The Cloud TPU API finds the reservation itself.
        **({"KD_RESERVATION": "ours"} if (capacity, backend != "qr") == ("reserved", True) else {}),
    }
    for backend, settings in BACKENDS.items()
    for capacity in CAPACITIES
}
CREATIONS |= {
    "create-qr-slices": {"KD_SLICES": 2, "KD_ACCELERATOR": "v5litepod-256"},
    "create-qr-named-reservation": {"KD_CAPACITY": "reserved", "KD_RESERVATION": "ours"},
    "create-mig-one-machine": {**MIG, "KD_ACCELERATOR": "v6e-4", "KD_TOPOLOGY": "2x2"},
    "create-xpk-slices": {**XPK, "KD_SLICES": 4},
}
HARD_NAME = 'it\'s "my" pod; $HOME'


def commands(transcript: str) -> list[list[str]]:
    """A dry run's lines as a shell reads them, less the "+" and the program."""
    lines = [shlex.split(line) for line in transcript.splitlines()]
    assert all(line[0] == "+" and line[1] in ("gcloud", "xpk") for line in lines)
    return [line[2:] for line in lines]


def verbs(calls: list[list[str]]) -> list[str]:
    known = ("describe", "list-instances", "list", "create", "delete")
    return [next(word for word in call if word in known) for call in calls]


def code_and_error(result) -> tuple[int, str]:
    return result.code, result.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", CREATIONS)
def test_create_runs_what_its_dry_run_printed(scripts, golden, name):
    planned = scripts("create.sh", "--dry-run", **CREATIONS[name])
    assert (planned.code, planned.calls) == (0, []), planned.stderr
    golden(name, planned.stdout)
    done = scripts("create.sh", **CREATIONS[name], FAKE_STATES="absent")
    assert done.code == 0, done.stderr
    assert done.calls == commands(planned.stdout)


@pytest.mark.parametrize("backend", BACKENDS)
def test_delete_runs_what_its_dry_run_printed(scripts, golden, backend):
    planned = scripts("delete.sh", "--dry-run", **BACKENDS[backend])
    assert (planned.code, planned.calls) == (0, []), planned.stderr
    golden(f"delete-{backend}", planned.stdout)
    done = scripts("delete.sh", "--yes", **BACKENDS[backend])
    assert (done.code, done.calls) == (0, commands(planned.stdout)), done.stderr


@pytest.mark.parametrize("backend", BACKENDS)
def test_wait_runs_what_its_dry_run_printed(scripts, golden, backend):
    settings = BACKENDS[backend] | {"FAKE_WORKERS": 32}
    planned = scripts("wait.sh", "--dry-run", **settings)
    assert (planned.code, planned.calls) == (0, []), planned.stderr
    golden(f"wait-{backend}", planned.stdout)
    done = scripts("wait.sh", **settings)
    assert (done.code, done.calls) == (0, commands(planned.stdout)), done.stderr


@pytest.mark.parametrize("backend", BACKENDS)
def test_names_with_spaces_and_quotes_stay_one_argument(scripts, backend):
    settings = BACKENDS[backend] | {"KD_NAME": HARD_NAME, "KD_CLUSTER": HARD_NAME}
    planned = scripts("create.sh", "--dry-run", **settings)
    done = scripts("create.sh", **settings, FAKE_STATES="absent")
    assert done.code == 0, done.stderr
    assert done.calls == commands(planned.stdout)
    deleted = scripts("delete.sh", "--yes", **settings)
    for call in done.calls + deleted.calls:
        pieces = [word for word in call if "it's" in word or "pod" in word]
        assert pieces
        assert all(HARD_NAME in word for word in pieces)


@pytest.mark.parametrize("script", ["create.sh", "wait.sh", "delete.sh"])
def test_all_missing_variables_are_named_at_once(scripts, script):
    unset = dict.fromkeys(("KD_PROJECT", "KD_ZONE", "KD_NAME", "KD_ACCELERATOR"))
    result = scripts(script, **unset, KD_BACKEND="xpk", KD_SLICES="two")
    code, error = code_and_error(result)
    assert (code, result.calls) == (2, [])
    for name in (*list(unset)[: 4 if script == "create.sh" else 3], "KD_CLUSTER", "KD_SLICES=two"):
        assert name in error
    assert "KD_ENV" in error


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"KD_BACKEND": "tpu"}, ["KD_BACKEND=tpu", "qr mig xpk"]),
        ({"KD_CAPACITY": "cheap"}, ["KD_CAPACITY=cheap", "flex-start"]),
        ({"KD_ACCELERATOR": "tpu7x-256"}, ["KD_ACCELERATOR=tpu7x-256", "mig or xpk"]),
        ({"KD_ACCELERATOR": "v9-8"}, ["KD_RUNTIME"]),
        ({"KD_BACKEND": "mig", "KD_ACCELERATOR": "v4-32"}, ["KD_TOPOLOGY", "KD_MACHINE"]),
        ({**MIG, "KD_TOPOLOGY": "4by4"}, ["KD_TOPOLOGY=4by4"]),
        ({**MIG, "KD_SLICES": "2"}, ["KD_SLICES=2"]),
        ({**MIG, "KD_CAPACITY": "reserved"}, ["KD_RESERVATION"]),
        ({"KD_ENV": "/no/such/file"}, ["/no/such/file"]),
    ],
)
def test_wrong_settings_are_said_before_anything_is_asked_for(scripts, settings, words):
    result = scripts("create.sh", **settings)
    code, error = code_and_error(result)
    assert code != 0
    assert result.calls == []
    for word in words:
        assert word in error


def test_arguments(scripts):
    for script in ("create.sh", "wait.sh", "delete.sh"):
        shown = scripts(script, "--help", KD_NAME=None)
        assert shown.code == 0
        assert f"{script} [--" in shown.stdout
        code, error = code_and_error(scripts(script, "--drop"))
        assert (code, "'--drop'" in error) == (2, True)
    assert scripts("wait.sh", "--timeout").code == 2
    assert scripts("wait.sh", "--timeout", "1h").code == 2


def test_variables_may_come_from_a_file(scripts, tmp_path):
    (tmp_path / "my pod.env").write_text("KD_NAME='from file'\nKD_ACCELERATOR=v4-32\n")
    result = scripts("create.sh", "--dry-run", KD_ENV=tmp_path / "my pod.env", KD_NAME=None)
    assert result.code == 0, result.stderr
    creation = commands(result.stdout)[-1]
    assert {"from file", "--runtime-version=tpu-ubuntu2204-base"} <= set(creation)


@pytest.mark.parametrize(
    ("settings", "states"),
    [
        ({}, "ACTIVE"),
        ({}, "WAITING_FOR_RESOURCES"),
        ({}, "ACCEPTED"),
        ({}, "PROVISIONING"),
        (MIG, "STAGING"),
        (XPK, "RECONCILING"),
    ],
)
def test_create_leaves_what_is_there(scripts, settings, states):
    result = scripts("create.sh", **settings, FAKE_STATES=states)
    assert result.code == 0
    assert "left as it is" in result.stderr
    assert "create" not in verbs(result.calls)
    assert "delete" not in verbs(result.calls)


@pytest.mark.parametrize(
    ("settings", "states", "expected"),
    [
        ({}, "FAILED", "describe delete create"),
        ({}, "SUSPENDED", "describe delete create"),
        ({}, "SUSPENDING,SUSPENDING,SUSPENDED", "describe describe describe delete create"),
        ({}, "DELETING,absent", "describe describe create"),
        (
            MIG | {"FAKE_WORKERS": 2},
            "RUNNING+TERMINATED",
            "list-instances delete delete delete create create create",
        ),
    ],
)
def test_create_replaces_what_failed_or_was_preempted(scripts, settings, states, expected):
    result = scripts("create.sh", **settings, FAKE_STATES=states)
    assert result.code == 0, result.stderr
    assert " ".join(verbs(result.calls)) == expected
    if not settings and "delete" in expected:
        assert "--force" in result.calls[-2]


def test_create_does_not_wait_forever_for_a_deletion(scripts):
    result = scripts("create.sh", FAKE_STATES="DELETING")
    assert (result.code, set(verbs(result.calls))) == (1, {"describe"})
    assert "still DELETING" in result.stderr


def test_create_never_deletes_a_cluster(scripts):
    result = scripts("create.sh", **XPK, FAKE_STATES="ERROR")
    assert (result.code, verbs(result.calls)) == (1, ["list"])


@pytest.mark.parametrize(
    ("failures", "code", "expected"),
    [
        ("create:2", 0, "describe create create create"),
        ("create:3", 1, "describe create create create"),
        ("create:9:PERMISSION_DENIED", 1, "describe create"),
        ("create:1:ALREADY_EXISTS", 0, "describe create"),
        ("describe:2", 0, "describe describe describe create"),
        # A state that cannot be read is not "absent".
        ("describe:3", 1, "describe describe describe"),
        ("describe:9:PERMISSION_DENIED", 1, "describe"),
    ],
)
def test_create_asks_again(scripts, failures, code, expected):
    result = scripts("create.sh", FAKE_STATES="absent", FAKE_FAIL=failures)
    assert (result.code, " ".join(verbs(result.calls))) == (code, expected)
    if code:
        assert failures.partition(":")[0] in result.stderr


@pytest.mark.parametrize(
    ("settings", "states", "code", "looks", "word"),
    [
        ({}, "ACCEPTED,CREATING,WAITING_FOR_RESOURCES,PROVISIONING,ACTIVE", 0, 5, "ACTIVE"),
        ({}, "WAITING_FOR_RESOURCES,FAILED", 1, 2, "FAILED"),
        ({}, "ACTIVE", 0, 1, "ACTIVE"),
        ({}, "PROVISIONING,SUSPENDING", 1, 2, "preempted"),
        ({}, "SUSPENDED", 1, 1, "preempted"),
        ({}, "DELETING", 1, 1, "deleted"),
        ({}, "absent", 1, 1, "does not exist"),
        ({}, "NEW_WORD,ACTIVE", 0, 2, "unknown state 'NEW_WORD'"),
        # 32 machines make 4x4x8.
        (MIG | {"FAKE_WORKERS": 32}, "PROVISIONING,STAGING+RUNNING,RUNNING", 0, 3, "ACTIVE"),
        (MIG | {"FAKE_WORKERS": 32}, "RUNNING+STOPPING", 1, 1, "preempted"),
        (MIG, "absent", 1, 1, "does not exist"),
        (XPK, "PROVISIONING,RECONCILING,RUNNING", 0, 3, "ACTIVE"),
        (XPK, "DEGRADED", 1, 1, "FAILED"),
        (XPK, "absent", 1, 1, "does not exist"),
    ],
)
def test_wait_walks_the_states(scripts, settings, states, code, looks, word):
    result = scripts("wait.sh", **settings, FAKE_STATES=states)
    assert (result.code, len(result.calls)) == (code, looks), result.stderr
    assert word in result.stderr
    assert ("unknown" in result.stderr) == ("NEW_WORD" in states)


@pytest.mark.parametrize(
    ("settings", "states"),
    [
        ({}, "WAITING_FOR_RESOURCES"),
        # Instances run, but not all that the topology takes.
        (MIG | {"FAKE_WORKERS": 31}, "RUNNING"),
        (MIG | {"FAKE_WORKERS": 0}, "RUNNING"),
    ],
)
def test_wait_has_a_deadline(scripts, settings, states):
    result = scripts("wait.sh", "--timeout", "0", **settings, FAKE_STATES=states)
    code, error = code_and_error(result)
    assert (code, "after 0 s" in error) == (124, True)


def test_delete_needs_a_yes(scripts):
    result = scripts("delete.sh")
    assert (result.code, verbs(result.calls)) == (2, ["describe"])
    assert "--yes" in result.stderr


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("Y", 0), ("n", 1), ("", 1), ("yy", 1)])
def test_delete_asks_at_a_terminal(scripts, answer, code):
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    result = scripts("delete.sh", stdin=theirs)
    os.close(ours)
    os.close(theirs)
    assert result.code == code
    assert ("delete" in verbs(result.calls)) == (code == 0)
    assert "Delete pod in us-east5-b of the-project (ACTIVE)?" in result.stderr


def test_delete_of_nothing(scripts):
    result = scripts("delete.sh", FAKE_STATES="absent")
    assert (result.code, verbs(result.calls)) == (0, ["describe"])
    # What an interrupted deletion left of a group goes too.
    result = scripts("delete.sh", **MIG, FAKE_STATES="absent", FAKE_FAIL="delete:2:NOT_FOUND")
    assert (result.code, verbs(result.calls)) == (0, ["list-instances", "delete", "delete"])


def test_delete_asks_again_and_can_be_too_late(scripts):
    result = scripts("delete.sh", "--yes", FAKE_FAIL="delete:2")
    assert (result.code, verbs(result.calls)) == (0, ["describe", *3 * ["delete"]])
    result = scripts("delete.sh", "--yes", **MIG, FAKE_FAIL="delete:9:NOT_FOUND")
    assert result.code == 0
