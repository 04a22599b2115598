"""The one exception whose message a person is meant to read."""


class UserError(Exception):
    """A mistake of the user's: one sentence that says what is wrong, where, and what to do.

    The command lines print it without a traceback and exit with 1.
    """
