"""The judges of a run's rewards: made ready by the driver, which keeps them alive, before reward actors ask them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rayrl.config.ppo import RewardEntry
from rayrl.feedback.rubric_server import served
from rayrl.judge.service import JudgeService


@contextmanager
def judges(entries: Sequence[RewardEntry]) -> Iterator[list[RewardEntry]]:
    """The entries with judges that can be asked: endpoints that answer, caches by absolute path.

    Raises UserError where a cache or a key can't be used.
    """
    ready: list[RewardEntry] = []
    services: list[JudgeService] = []  # a judge's actor lives as long as the handle of who started it
    with ExitStack() as stack:
        for entry in entries:
            if entry.judge is not None:
                cache = str(Path(entry.judge.cache).expanduser().absolute())
                judge = stack.enter_context(served(entry.judge.model_copy(update={"cache": cache})))
                services.append(JudgeService(judge))
                entry = entry.model_copy(update={"judge": judge})
            ready.append(entry)
        yield ready
