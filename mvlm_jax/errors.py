"""The one exception that means: the user's input is wrong."""


class UserError(Exception):
    """A wrong flag, config field, path or file.

    The message is one line that says what was received and what would be right; the doors print it and
    exit with status 2.
    """
