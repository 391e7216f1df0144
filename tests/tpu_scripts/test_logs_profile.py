"""logs.sh and profile.sh: what a run said, and its trace. And the dry runs, run.sh's too."""

import pytest
from support.pod import Pod

BACKENDS = {
    "qr": {"KD_WORKDIR": "/mnt/runs"},
    "qr-slices": {"KD_SLICES": 2},
    "mig": {"KD_BACKEND": "mig", "KD_ACCELERATOR": "tpu7x-8", "KD_TOPOLOGY": "2x2x2"},
}


@pytest.fixture
def ready(scripts, tmp_path, fake_dir):
    """ready(): a pod with the tree and the packages on it."""
    made = []

    def make() -> Pod:
        made.append(Pod(scripts, tmp_path, fake_dir, workers=2))
        made[-1].make_ready()
        return made[-1]

    yield make
    for pod in made:
        pod.close()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "script",
    [
        "run.sh --name npo -- echo it's $HOME",
        "run.sh --stop",
        "logs.sh --worker all --follow",
        "profile.sh",
    ],
)
def test_dry_runs(scripts, golden, backend, script):
    name, *arguments = script.split()
    planned = scripts(name, "--dry-run", *arguments, **BACKENDS[backend])
    assert (planned.code, planned.calls) == (0, []), planned.stderr
    kind = "stop" if "--stop" in arguments else name.removesuffix(".sh")
    golden(f"{kind}-{backend}", planned.stdout)


def test_logs_hold_all_starts_of_a_run(ready):
    pod = ready()
    for text in ("first", "second"):
        assert pod("run.sh", "--name", "x", "--", "echo", text).code == 0
    done = pod("logs.sh", "--name", "x")
    said = [line for line in done.stdout.splitlines() if "==" not in line]
    assert said == ["[0] first", "[0] second"]
    done = pod("logs.sh", "--name", "x", "--worker", "all")
    assert all(f"[{number}] second\n" in done.stdout for number in range(2))
    done = pod("logs.sh", "--name", "y")
    assert done.code == 2 and "it has: x" in done.stderr
    assert pod("logs.sh", "--worker", "last").code == 2


def test_profile_fetches_the_newest_one_of_worker_0(ready):
    pod = ready()
    write = (
        'for n in 1 2; do d=runs/a/profile/plugins/profile/$n; mkdir -p "$d"; '
        'echo "$WORKER_ID $n" >"$d/$(hostname).xplane.pb"; sleep 0.1; done; '
        "mkdir $d/../3; echo other >$d/../3/other-host.xplane.pb"
    )
    assert pod("run.sh", "--name", "x", "--", "true").code == 0
    done = pod("profile.sh", "--name", "x")
    assert done.code == 2 and "--profile 10:15" in done.stderr
    assert pod("run.sh", "--name", "x", "--", "bash", "-c", write).code == 0
    done = pod("profile.sh", "--name", "x")
    assert done.code == 0, done.stderr
    found = list((pod.code / "runs/profiles/x").rglob("*.xplane.pb"))
    assert [path.read_text() for path in found] == ["0 2\n"]
    assert "runs/a/profile/plugins/profile/2" in str(found[0])
