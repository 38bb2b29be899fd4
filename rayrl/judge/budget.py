"""What was spent, and whether another request may be sent: worst case reserved before, real usage settled after.

A request that was cut off may have been billed, so its reservation stays counted: after a time-out, a lost connection,
and after the process was killed. Totals are those of the whole cache file, over all runs. Left out: asking the provider
what it billed.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from rayrl.config.judge import JudgeBudgetConfig
from rayrl.types import Message

TABLE = """
CREATE TABLE IF NOT EXISTS calls (
    id INTEGER PRIMARY KEY,
    state TEXT NOT NULL CHECK (state IN ('reserved', 'settled', 'lost', 'refused')),
    tokens INTEGER NOT NULL,
    money REAL NOT NULL
)
"""
_TOKENS_PER_MESSAGE = 32
"""More than any chat template puts around a message."""
_TOKENS_PER_REQUEST = 64


class BudgetExceeded(Exception):
    """Another request could pass the budget; none was sent. The text says which limit."""


@dataclass(frozen=True)
class Spent:
    """Totals, reservations included. Example: Spent(calls=12, tokens=9_310, money=0.02)"""

    calls: int = 0
    tokens: int = 0
    money: float = 0.0


@dataclass(frozen=True)
class Cost:
    """Of one request. Example: Cost(tokens=800, money=0.0004)"""

    tokens: int
    money: float


def cost(prompt_tokens: int, answer_tokens: int, budget: JudgeBudgetConfig) -> Cost:
    """Tokens and their price."""
    money = (prompt_tokens * budget.price_prompt + answer_tokens * budget.price_answer) / 1e6
    return Cost(prompt_tokens + answer_tokens, money)


def max_prompt_tokens(messages: Sequence[Message]) -> int:
    """An upper limit of a prompt's tokens under any byte-level tokenizer: no token is shorter than a byte."""
    text = sum(len(message["content"].encode("utf-8", "surrogatepass")) for message in messages)
    return text + _TOKENS_PER_MESSAGE * len(messages) + _TOKENS_PER_REQUEST


class Ledger:
    """The table of requests. Every change is committed before the method returns."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        database.execute(TABLE)
        database.execute("UPDATE calls SET state = 'lost' WHERE state = 'reserved'")  # a killed process's
        database.commit()
        row = database.execute("SELECT COUNT(*), COALESCE(SUM(tokens), 0), COALESCE(SUM(money), 0) FROM calls")
        self._spent = Spent(*row.fetchone())
        self._reserved: dict[int, Cost] = {}
        self._changed = asyncio.Event()

    @property
    def spent(self) -> Spent:
        """Totals over all runs, with what is in flight at its worst case."""
        return self._spent

    async def reserve(self, worst: Cost, budget: JudgeBudgetConfig) -> int:
        """Books a request at its worst case and returns its number; waits while requests in flight may free room.

        Raises BudgetExceeded where the request doesn't fit and nothing is in flight.
        """
        while (problem := self._problem(worst, budget)) is not None:
            if not self._reserved:
                raise BudgetExceeded(problem)
            self._changed.clear()
            await self._changed.wait()
        with self._database:
            row = self._database.execute(
                "INSERT INTO calls (state, tokens, money) VALUES ('reserved', ?, ?)", (worst.tokens, worst.money)
            )
        number = row.lastrowid
        assert number is not None
        self._reserved[number] = worst
        self._add(1, worst.tokens, worst.money)
        return number

    def settle(self, number: int, real: Cost, insert: str, values: tuple[str | int, ...]) -> None:
        """The request was answered and cost this; commits it together with `insert`, which stores the answer."""
        with self._database:
            self._database.execute(insert, values)
            self._database.execute(
                "UPDATE calls SET state = 'settled', tokens = ?, money = ? WHERE id = ?",
                (real.tokens, real.money, number),
            )
        self._release(number, real)

    def refuse(self, number: int) -> None:
        """The endpoint turned the request down: it counts as a call that cost nothing."""
        with self._database:
            self._database.execute("UPDATE calls SET state = 'refused', tokens = 0, money = 0 WHERE id = ?", (number,))
        self._release(number, Cost(0, 0.0))

    def lose(self, number: int) -> None:
        """The request was sent and its answer didn't come whole: its worst case counts."""
        with self._database:
            self._database.execute("UPDATE calls SET state = 'lost' WHERE id = ?", (number,))
        self._release(number, self._reserved[number])

    def forget(self, number: int) -> None:
        """The request never left this machine."""
        with self._database:
            self._database.execute("DELETE FROM calls WHERE id = ?", (number,))
        self._release(number, Cost(0, 0.0))
        self._add(-1, 0, 0.0)

    def _release(self, number: int, real: Cost) -> None:
        worst = self._reserved.pop(number)
        self._add(0, real.tokens - worst.tokens, real.money - worst.money)
        self._changed.set()

    def _add(self, calls: int, tokens: int, money: float) -> None:
        before = self._spent
        self._spent = Spent(before.calls + calls, before.tokens + tokens, before.money + money)

    def _problem(self, worst: Cost, budget: JudgeBudgetConfig) -> str | None:
        spent = self._spent
        if budget.calls is not None and spent.calls + 1 > budget.calls:
            return f"all {budget.calls} calls of judge.budget.calls are spent"
        if budget.tokens is not None and spent.tokens + worst.tokens > budget.tokens:
            return (
                f"{spent.tokens} tokens are spent and the next request may take {worst.tokens}, "
                f"over judge.budget.tokens={budget.tokens}"
            )
        if budget.money is not None and spent.money + worst.money > budget.money:
            return (
                f"{spent.money:.4f} is spent and the next request may cost {worst.money:.4f}, "
                f"over judge.budget.money={budget.money}"
            )
        return None
