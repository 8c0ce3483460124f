"""The exceptions that a command reports in one line, and the exit status of each."""


class UserError(ValueError):
    """A wrong flag, config field, path, file or argument.

    The message is one line that says what was received and what would be right; the commands print it and
    exit with its status.
    """

    status = 2


class RunError(Exception):
    """What cannot go on though it was asked for rightly: no room on the disk, a host lost, a loss of nan, data with
    faults that the policy stops at.

    The message is one line that says what happened, and from where a run can be continued.
    """

    status = 1
