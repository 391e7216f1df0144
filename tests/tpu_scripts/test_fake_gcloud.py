"""on_workers and copy_to_workers of lib.sh, over the fake gcloud that the other tests rely on."""

import shlex
import time
from pathlib import Path

import pytest

LIB = Path(__file__).parents[2] / "tpu_scripts" / "lib.sh"
MIG = {"KD_BACKEND": "mig", "KD_ACCELERATOR": "v6e-8", "KD_TOPOLOGY": "2x4"}


@pytest.fixture
def lib(scripts, tmp_path):
    """lib("on_workers ...", **settings) -> Result of a script that sources lib.sh and runs this."""

    def run(code: str, **settings):
        script = tmp_path / "use lib.sh"
        script.write_text(f"#!/usr/bin/env bash\nsource {shlex.quote(str(LIB))}\n{code}\n")
        script.chmod(0o755)
        return scripts(str(script), **settings)

    return run


@pytest.mark.parametrize("settings", [{}, MIG], ids=["qr", "mig"])
def test_every_worker_runs_the_command_in_its_own_home(lib, fake_dir, settings):
    result = lib("on_workers 'echo $WORKER_ID; pwd >place'", FAKE_WORKERS=3, **settings)
    assert (result.code, sorted(result.stdout.split())) == (0, ["0", "1", "2"])
    for number in range(3):
        home = fake_dir / f"worker-{number}"
        assert (home / "place").read_text().strip() == str(home)


@pytest.mark.parametrize("settings", [{}, MIG], ids=["qr", "mig"])
def test_workers_run_at_once(lib, settings):
    meet = (
        "touch ../$WORKER_ID; for i in {1..200}; do test -e ../0 -a -e ../1 && exit; sleep .1; done"
    )
    result = lib(f"on_workers {shlex.quote(meet + '; exit 9')}", FAKE_WORKERS=2, **settings)
    assert result.code == 0


@pytest.mark.parametrize("settings", [{}, MIG], ids=["qr", "mig"])
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("exit $((WORKER_ID == 1 ? 75 : 0))", 75),
        ("[ $WORKER_ID = 0 ] && sleep .3; exit $((WORKER_ID + 5))", 5),
    ],
)
def test_the_code_is_that_of_the_first_worker_that_failed(lib, settings, command, code):
    assert lib(f"on_workers {shlex.quote(command)}", FAKE_WORKERS=2, **settings).code == code


@pytest.mark.parametrize(
    ("worker", "number", "settings"),
    [
        ("all", "0 1 2", {"FAKE_WORKERS": 3}),
        ("2", "2", {"FAKE_WORKERS": 3}),
        ("all", "0 1 2 3 4 5", {"FAKE_WORKERS": 2, "FAKE_SLICES": 3, "KD_SLICES": 3}),
        ("1", "1", {"FAKE_WORKERS": 2, "FAKE_SLICES": 3, "KD_SLICES": 3}),
        ("2:1", "5", {"FAKE_WORKERS": 2, "FAKE_SLICES": 3, "KD_SLICES": 3}),
        ("1", "1", {"FAKE_WORKERS": 2, **MIG}),
    ],
)
def test_workers_by_number(lib, worker, number, settings):
    result = lib(f"on_workers 'echo $WORKER_ID' {worker}", **settings)
    assert (result.code, " ".join(sorted(result.stdout.split()))) == (0, number)


@pytest.mark.parametrize(
    ("worker", "settings"),
    [("7:0", {"KD_SLICES": 2, "FAKE_SLICES": 2}), ("7", MIG), ("0", {"KD_BACKEND": "xpk"})],
)
def test_workers_that_are_not_there(lib, worker, settings):
    result = lib(f"on_workers 'touch here' {worker}", **settings)
    assert result.code == 2
    assert not any("ssh" in call for call in result.calls)


@pytest.mark.parametrize("settings", [{}, MIG], ids=["qr", "mig"])
def test_commands_and_names_arrive_unchanged(lib, settings):
    words = ["two words", "it's", '"$HOME"', "a;b\nc", "*"]
    result = lib(
        'on_workers "$(printf "%q " printf "%s|" "${words[@]}")"'.replace(
            '"${words[@]}"', shlex.join(words)
        ),
        KD_NAME="a 'pod'",
        **settings,
    )
    assert (result.code, result.stdout) == (0, "".join(f"{word}|" for word in words))
    call = result.calls[-1]
    assert call[call.index("ssh") + 1] == "a 'pod'" + ("-w0" if settings else "")


def test_more_ssh_flags(lib):
    result = lib("on_workers true", KD_SSH_FLAGS="--internal-ip --plain")
    assert result.calls[-1][-2:] == ["--internal-ip", "--plain"]


def test_a_dry_run_only_prints(lib):
    code = "common_flag --dry-run; on_workers 'echo \"hi\"'; copy_to_workers 'a b' c"
    result = lib(code, KD_SLICES=2)
    assert (result.code, result.calls) == (0, [])
    lines = [shlex.split(line) for line in result.stdout.splitlines()]
    assert [line[6] for line in lines] == ["pod-0", "pod-1", "a b", "a b"]
    assert all('--command=echo "hi"' in line for line in lines[:2])
    assert lines[3][7] == "pod-1:c"
    result = lib(code, **MIG)
    assert (result.code, result.calls) == (0, [])
    assert [line.split()[2:4] for line in result.stdout.splitlines()] == [
        ["compute", "instance-groups"],
        ["compute", "ssh"],
        ["compute", "instance-groups"],
        ["compute", "scp"],
    ]


def test_a_lost_connection_leaves_the_command_running(lib, fake_dir):
    result = lib("on_workers 'sleep 1; echo done; touch ended'", FAKE_WORKERS=2, FAKE_SSH_LOST=1)
    assert result.code == 255
    deadline = time.monotonic() + 30
    ends = [fake_dir / f"worker-{number}" / "ended" for number in range(2)]
    assert not any(end.exists() for end in ends)
    while not all(end.exists() for end in ends):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (fake_dir / "worker-1" / "lost.log").read_text() == "done\n"
    assert lib("on_workers true", FAKE_SSH_LOST=1).code == 0


@pytest.mark.parametrize("settings", [{}, MIG], ids=["qr", "mig"])
def test_files_are_copied_to_every_worker(lib, fake_dir, tmp_path, settings):
    (tmp_path / "my file").write_text("text")
    result = lib("copy_to_workers 'my file' copy", FAKE_WORKERS=2, **settings)
    assert result.code == 0, result.stderr
    assert [(fake_dir / f"worker-{n}" / "copy").read_text() for n in range(2)] == ["text"] * 2
    assert lib("copy_to_workers nothing copy", **settings).code == 1


def test_the_fake_fails_as_told_and_knows_no_other_commands(lib):
    result = lib("on_workers true || on_workers true", FAKE_FAIL="ssh:1")
    assert (result.code, len(result.calls)) == (0, 2)
    result = lib("gcloud compute disks snapshot x")
    assert (result.code, "does not know" in result.stderr) == (2, True)
