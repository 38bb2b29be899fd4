"""Shared by the judge's tests: configurations with tiny waits, pairs, and judging without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rayrl.config.judge import JudgeConfig
from rayrl.judge.compare import Judgement
from rayrl.judge.service import JudgeOwner
from rayrl.types import PromptRow

CRITERIA = [{"name": "accuracy"}, {"name": "conciseness"}]


def judge_config(endpoint: str, folder: Path, **changes: Any) -> JudgeConfig:
    """Waits of milliseconds, two criteria, a cache in the folder."""
    values: dict[str, Any] = {
        "endpoint": endpoint,
        "model": "test-judge",
        "criteria": CRITERIA,
        "cache": str(folder / "judge.sqlite"),
        "timeout_s": 2.0,
        "backoff_s": 0.005,
        "max_wait_s": 0.5,
        "max_retries": 12,
        **changes,
    }
    return JudgeConfig.model_validate(values)


def case(number: int) -> tuple[PromptRow, str, str]:
    """A prompt and two answers whose lengths differ now one way, now the other, and are equal where number is 10."""
    row = PromptRow(f"p{number}", [{"role": "user", "content": f"My knee {number} hurts."}], "How long?")
    return row, f"Rest {number:02}{'.' * (number % 5)}", f"Ask {number:02}{'!' * (1 + number % 3)}"


def judge_all(config: JudgeConfig, numbers: Sequence[int]) -> list[Judgement]:
    """What the actor does, in this process."""

    async def run() -> list[Judgement]:
        owner = JudgeOwner(config.cache)
        try:
            return list(await asyncio.gather(*(owner.compare(config, *case(number)) for number in numbers)))
        finally:
            await owner.close()

    return asyncio.run(run())
