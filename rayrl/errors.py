"""The one exception that means: the user can put this right."""


class UserError(Exception):
    """One clear sentence: what was wrong, where, and what to do. The command prints it and exits non-zero."""
