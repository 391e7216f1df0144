"""What ends a merge of files early."""


class MergeError(Exception):
    """What the person at the command line can put right; the message is one line."""

    exit_code = 2


class WriteFailed(Exception):
    """The output could not be written; the message is one line. What is finished is kept."""

    exit_code = 1
