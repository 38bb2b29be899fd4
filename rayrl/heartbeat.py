"""How far this process's work has come: a count that grows with every pass, engine step and part of a large file.

Whoever watches an actor from outside tells a slow one, whose count grows, from a stuck one. A module of its own at the
bottom, so that learners and engines, which know neither Ray nor actors, can count.
"""

from __future__ import annotations

_count = 0


def beat() -> None:
    """Something was done."""
    global _count
    _count += 1


def beats() -> int:
    """How often so far."""
    return _count
