"""Shared by all test files. Hypothesis draws the same examples in every run, and slow machines don't fail it."""

from __future__ import annotations

import pytest
from hypothesis import settings

settings.register_profile("same-everywhere", derandomize=True, deadline=None)
settings.load_profile("same-everywhere")


@pytest.fixture(scope="session")
def one_rank() -> None:
    """This process as a group of one rank, as a trained role's actor makes it."""
    from learner_cases import free_port

    from rayrl.models.deepspeed_engine import init_distributed

    init_distributed(0, 1, "127.0.0.1", free_port(), timeout_s=60)
