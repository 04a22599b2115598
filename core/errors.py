"""The exception for mistakes of the user."""


class UserError(ValueError):
    """A mistake of the user: one sentence that says what is wrong, where, and what to do.

    The command lines print it without a traceback and exit with 1.
    """
