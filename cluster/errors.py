"""What can go wrong with a cluster, each as one sentence: what, where, and what to change.

The command line prints `ClusterError` without a traceback, as it does with errors of the library; this package imports
nothing of the library and so has its own base.
"""

from __future__ import annotations


class ClusterError(Exception):
    """Base of the errors that this package raises on purpose."""


class CannotConnect(ClusterError):
    """No Ray could be started here, or none answers at the address."""


class JobRefused(ClusterError):
    """Nothing was sent or changed: no job has that name, or a running one has it, or the upload is too large."""


class DoesNotFit(ClusterError):
    """The roles ask for more than the nodes have: found before anything starts."""


class PlacementTimeout(ClusterError, TimeoutError):
    """The nodes are large enough, but weren't free in time."""


class AnswerTimeout(ClusterError, TimeoutError):
    """Actors that didn't answer in time; `who` names them."""

    def __init__(self, message: str, who: tuple[str, ...]) -> None:
        super().__init__(message, who)
        self.who = who

    def __str__(self) -> str:
        return str(self.args[0])


class AnswerGone(ClusterError):
    """What an actor had made lay on a node that is gone, so that whoever needs it can't have it."""


class ActorLost(ClusterError):
    """An actor died or never started; `who` names its role and rank, `what` the step and phase."""

    def __init__(self, message: str, who: str, what: str) -> None:
        super().__init__(message, who, what)
        self.who = who
        self.what = what

    def __str__(self) -> str:
        return str(self.args[0])
