"""Start-up, and what several processes do together; with real ones in test_processes.py."""

import os

import jax
import pytest

from kd_jax.launch import beat, environment, runtime
from kd_jax.launch.errors import UserError

LIMITS = {
    "heartbeat_timeout_seconds": 7,
    "initialization_timeout": 300,
    "shutdown_timeout_seconds": 7,
}


@pytest.fixture
def joined(monkeypatch):
    """What jax.distributed.initialize is called with, in a bare environment."""
    calls = []
    for name in os.environ:
        if name.startswith(("JAX_", "KD_JAX_", "SLURM_", "TPU_", "OMPI_", "MEGASCALE_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda *args, **more: calls.append((args, more))
    )
    return calls


def test_one_process_joins_nothing(joined):
    runtime._join()
    assert joined == []


def test_explicit_variables_are_obeyed(joined, monkeypatch):
    monkeypatch.setenv("KD_JAX_HEARTBEAT", "7")
    for name, value in zip(runtime._EXPLICIT, ("host:1", "4", "3"), strict=True):
        monkeypatch.setenv(name, value)
    runtime._join()
    assert joined == [(("host:1", 4, 3), LIMITS)]


@pytest.mark.parametrize(
    ("variable", "several", "one"),
    [
        ("TPU_WORKER_HOSTNAMES", "a,b", "a"),
        ("SLURM_NTASKS", "2", "1"),
        ("OMPI_COMM_WORLD_SIZE", "2", "1"),
        ("KD_JAX_DISTRIBUTED", "1", "0"),
    ],
)
def test_clusters_are_seen(joined, monkeypatch, variable, several, one):
    monkeypatch.setenv("KD_JAX_HEARTBEAT", "7")
    monkeypatch.setenv(variable, one)
    runtime._join()
    assert joined == []
    monkeypatch.setenv(variable, several)
    runtime._join()
    assert joined == [((), LIMITS)]


def test_a_tpu_host_asks_its_metadata_server_and_may_be_alone(joined, monkeypatch):
    monkeypatch.setattr(runtime, "_on_tpu_host", lambda: True)
    runtime._join()
    assert len(joined) == 1

    def nobody(**_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", nobody)
    runtime._join()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"JAX_PROCESS_ID": "1"}, "JAX_PROCESS_ID is set without JAX_COORDINATOR_ADDRESS"),
        ({"KD_JAX_HEARTBEAT": "soon"}, "KD_JAX_HEARTBEAT: got 'soon', takes a whole number"),
        (
            dict(zip(runtime._EXPLICIT, ("host:1", "2", "2"), strict=True)),
            "JAX_PROCESS_ID: got 2, takes 0 to 1",
        ),
    ],
)
def test_variables_that_make_no_sense(joined, monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        runtime._join()
    assert joined == []


def test_simulated_devices_of_several_processes_have_threads_to_wait_in(joined, monkeypatch):
    """Without them four processes on two cores stood still, now and then, in their collectives."""
    monkeypatch.setenv("NPROC", "")
    monkeypatch.delenv("NPROC")
    monkeypatch.setattr(type(jax.config), "update", lambda *_: None)
    runtime.init(2, cache="")
    assert "NPROC" not in os.environ
    for name, value in zip(runtime._EXPLICIT, ("host:1", "4", "3"), strict=True):
        monkeypatch.setenv(name, value)
    runtime.init(2, cache="")
    assert os.environ["NPROC"] == "16"
    runtime.init(4, cache="")
    assert os.environ["NPROC"] == "16"  # what is set stays


def test_collectives_of_simulated_devices_keep_one_order(joined, monkeypatch):
    """Else programs from the compilation cache hang; other flags stay, and it is there once."""
    monkeypatch.setattr(type(jax.config), "update", lambda *_: None)
    for before in ("", "--xla_dump_to=x", runtime._ORDERED):
        monkeypatch.setenv("XLA_FLAGS", before)
        runtime.init(cache="")
        assert os.environ["XLA_FLAGS"] == before  # on an accelerator nothing changes
        for _ in range(2):
            runtime.init(2, cache="")
        found = os.environ["XLA_FLAGS"].split()
        assert found.count(runtime._ORDERED) == 1 and set(before.split()) <= set(found)


def test_work_of_the_first_process(monkeypatch):
    assert runtime.on_main(lambda: 3) == 3
    with pytest.raises(KeyError):
        runtime.on_main(lambda: {}["absent"])
    # Another process: it does nothing itself, and hears how the first one fared.
    monkeypatch.setattr(runtime, "is_main", lambda: False)
    assert runtime.on_main(lambda: 1 / 0) is None
    monkeypatch.setattr(runtime, "everywhere", lambda flag: False)
    with pytest.raises(UserError, match="process 0 cannot go on"):
        runtime.on_main(lambda: 1 / 0)


def test_a_beat_touches_its_file_and_not_too_often(tmp_path, monkeypatch):
    file = tmp_path / "beat"
    monkeypatch.setattr(beat, "_last", -1.0)
    beat.beat()
    assert not file.exists()
    monkeypatch.setenv(beat.VARIABLE, str(file))
    beat.beat()
    assert not file.exists()
    monkeypatch.setattr(beat, "_last", -1.0)
    beat.beat()
    assert file.exists()


def test_the_commit_of_pushed_code_is_in_its_file(tmp_path):
    file = tmp_path / "REVISION"
    assert environment._revision(file) is None
    file.write_text("0123abcd\n")
    assert environment._revision(file) == {"commit": "0123abcd", "dirty": False}
    file.write_text("0123abcd-dirty\n")
    assert environment._revision(file) == {"commit": "0123abcd", "dirty": True}
