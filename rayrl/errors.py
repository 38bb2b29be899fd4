"""The exceptions whose text is meant for the user: one clear sentence, printed without a traceback."""


class UserError(Exception):
    """The input can't be used: what was wrong, where, and what to do. Exit code 2."""


class RunError(Exception):
    """A run can't go on: in which step, what happened, what to do. Exit code 1."""
