"""The ways in which a run ends early. `exit_code` is what the process ends with."""

from pathlib import Path


class UserError(Exception):
    """What the person at the command line can put right; shown as this one line."""

    exit_code = 2


class NonFinite(Exception):
    """A loss, a gradient or the parameters stopped being finite. step: counted from 0."""

    exit_code = 1

    def __init__(self, step: int, what: str):
        super().__init__(f"step {step}: {what} is not finite; the last good checkpoint is kept")
        self.step = step


class Preempted(Exception):
    """The run was asked to stop and has saved. step: how many steps are finished."""

    exit_code = 75

    def __init__(self, step: int, saved: bool = True):
        kept = "saved; the same command goes on from here" if saved else "nothing saved"
        super().__init__(f"preempted after {step} steps: {kept}")
        self.step = step


class StorageFailed(Exception):
    """A checkpoint could not be written, and not at its repetitions either.

    step: how many steps are finished in the last good one, None when there is none.
    """

    exit_code = 1

    def __init__(self, folder: Path, reason: str, step: int | None):
        good = (
            "no checkpoint is good" if step is None else f"the last good checkpoint is step {step}"
        )
        super().__init__(
            f"{folder}: cannot be written ({reason}); {good}; free space or give another "
            "--workdir, then start the same command again"
        )
        self.step = step
