"""Hypothesis draws the same examples in every run, and slow machines don't fail it."""

from hypothesis import settings

settings.register_profile("same-everywhere", derandomize=True, deadline=None)
settings.load_profile("same-everywhere")
