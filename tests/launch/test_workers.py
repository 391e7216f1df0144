"""What the ends of several workers come to: one exit code and one line."""

import pytest

from kd_jax.launch import workers


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ((), 0),
        ((0, 0), 0),
        ((0, 3), 3),
        ((134, 75, 2, 1), 2),
        ((75, 255), 255),
        ((134, 75, 0), 75),
        ((134, 139), 139),
        ((0, 134, 134), 134),
        # What a worker meets after another was killed is no failure of its own.
        ((137, 1, 134), 137),
        ((0, 139, 134), 139),
        # Ended by the launcher, where the others had stopped: lost.
        ((134, -1), 134),
        ((75, -1), 75),
        ((1, -1), 1),
        ((-1, -1), 134),
    ],
)
def test_one_exit_code_for_all(codes, expected):
    """In the order of their ends; -1 stands for one that the launcher had to kill."""
    assert workers.exit_code([_ended(i, code) for i, code in enumerate(codes)]) == expected


def _ended(index, code):
    worker = workers.Worker(index, None, None)
    worker.code, worker.forced = (137, True) if code == -1 else (code, False)
    return worker


def test_the_summary_names_who_ended_how():
    ends = ((2, 137), (0, 134), (1, 134), (3, 0))
    assert workers.summary([_ended(*end) for end in ends]) == (
        "worker 2 was killed (SIGKILL); "
        "workers 0, 1 stopped because a peer was lost, or crashed (SIGABRT, 134); "
        "start the same command again to resume from the last checkpoint"
    )
    assert workers.summary([_ended(0, 1)]) == "worker 0 failed with exit code 1"
    assert workers.summary([_ended(0, 0)]) == ""
