"""Asks a model behind an OpenAI-compatible endpoint: paced, retried, cached, within the budget.

The `openai` package carries the requests; when to send, wait and give up is decided here, since its own retries know
neither the budget nor the other requests. Errors say what happened and never quote a response: an endpoint may repeat
the key or the patient. Left out: streaming, tools, batches.
"""

from __future__ import annotations

import asyncio
import email.utils
import logging
import os
import random
import re
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from rayrl.config.judge import EndpointConfig
from rayrl.errors import RunError, UserError
from rayrl.judge.budget import cost, max_prompt_tokens
from rayrl.judge.cache import Store, request_key
from rayrl.judge.parse import CUT
from rayrl.types import Message

_RETRIED = frozenset({408, 409, 425, 429})
_MAYBE_BILLED = frozenset({408, 499, 502, 504, 524})
"""A gateway gave up waiting: the model behind it may have answered."""
_BAD_REQUEST = frozenset({400, 413, 422})
"""About this one request: too long, refused content."""
_NO_CREDIT = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
_NEVER_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout")
_HALF_A_PAIR = re.compile("[\ud800-\udfff]")
"""Half of a UTF-16 pair, which JSON can escape into a text that no encoding takes."""
_WHOLE = (None, "stop", "length", "content_filter", "tool_calls", "function_call")
"""How an answer ends that the same request would get again; servers say "error" or "abort" where they broke off."""
_MOST_TOKENS = 1 << 32
"""An endpoint that says it used more is wrong."""


class CallFailed(Exception):
    """There is no answer to this request, after all retries; the text says why."""


class EndpointRefused(RunError):
    """The endpoint refuses every request: key, address, model or credit."""


class _Again(Exception):
    """Worth another try. `wait_s`: what the endpoint asked for."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class Pace:
    """When requests to one endpoint may go out; clients of the same endpoint and limits share one."""

    def __init__(self, config: EndpointConfig) -> None:
        self.slots = asyncio.Semaphore(config.concurrency)
        rate = config.requests_per_minute
        self._spacing_s = 0.0 if rate is None else 60.0 / rate
        self._not_before = 0.0
        self._next = asyncio.Lock()

    async def turn(self) -> None:
        """Waits for a request's turn: evenly spaced to keep to the rate, and not before a Retry-After is over."""
        async with self._next:
            while (wait_s := self._not_before - time.monotonic()) > 0:  # a longer one may come while this one sleeps
                await asyncio.sleep(wait_s)
            self.hold(self._spacing_s)

    def hold(self, seconds: float) -> None:
        """Lets no request go for so long."""
        self._not_before = max(self._not_before, time.monotonic() + seconds)


class JudgeClient:
    """One model at one endpoint. Lives in one event loop."""

    def __init__(self, config: EndpointConfig, store: Store, pace: Pace | None = None) -> None:
        """Raises UserError where the key's environment variable isn't set."""
        self._config, self._store = config, store
        self._host = urlsplit(config.endpoint).netloc
        self._openai = _openai_client(config)
        self._pace = pace or Pace(config)
        self._mine: set[asyncio.Task[str]] = set()
        self._jitter = random.Random()

    async def ask(self, messages: Sequence[Message]) -> str:
        """The model's answer, from the cache if it was ever received; equal requests in flight are sent once.

        Another client's failure isn't this one's: it may have its own endpoint and budget.

        Raises CallFailed, BudgetExceeded, EndpointRefused.
        """
        if any(_HALF_A_PAIR.search(message["content"]) for message in messages):
            raise CallFailed("the prompt holds characters that no encoding takes")
        address = {"endpoint": self._config.endpoint} if self._config.of_this_address else {}
        key = request_key(self._config.model, messages, {**self._settings(), **address})
        flying = self._store.flying
        while (known := self._store.answer(key)) is None:
            own = key not in flying or flying[key] in self._mine
            task = flying.get(key) or self._start(key, list(messages))
            # Not awaited itself: whoever asked first may be cancelled, and others wait for the same answer.
            await asyncio.wait([task])
            if own or not (task.cancelled() or task.exception()):
                return task.result()
        return known

    def _start(self, key: str, messages: list[Message]) -> asyncio.Task[str]:
        task = asyncio.create_task(self._fetch(key, messages))
        self._store.flying[key] = task
        self._mine.add(task)
        task.add_done_callback(lambda _: self._store.flying.pop(key))
        task.add_done_callback(self._mine.discard)
        return task

    async def close(self) -> None:
        """Gives up what is in flight, as lost, and closes the connections."""
        tasks = list(self._mine)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._openai.close()

    def _settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {self._config.max_tokens_key: self._config.max_tokens}
        if self._config.temperature is not None:
            settings["temperature"] = self._config.temperature
        return settings

    async def _fetch(self, key: str, messages: list[Message]) -> str:
        config = self._config
        for attempt in range(config.max_retries + 1):
            try:
                async with self._pace.slots:
                    await self._pace.turn()
                    return await self._send(key, messages)
            except _Again as error:
                problem, asked = str(error), error.wait_s
            if asked is not None and asked > config.max_wait_s:
                raise CallFailed(f"{problem}; it asked to wait {asked:.0f} s, over max_wait_s={config.max_wait_s:g}")
            backoff = min(config.max_wait_s, config.backoff_s * 2.0**attempt)
            if attempt < config.max_retries:
                await asyncio.sleep(backoff * self._jitter.uniform(0.5, 1.0))
        raise CallFailed(f"{problem} (the last of {config.max_retries + 1} requests)")

    async def _send(self, key: str, messages: list[Message]) -> str:
        """One request. Raises _Again where another may succeed."""
        import openai

        config, ledger = self._config, self._store.ledger
        prompt_limit = max_prompt_tokens(messages)
        number = await ledger.reserve(cost(prompt_limit, config.max_tokens, config.budget), config.budget)
        end = ledger.lose
        try:
            async with asyncio.timeout(config.timeout_s):
                reply: Any = await self._openai.chat.completions.create(
                    model=config.model, messages=messages, **self._settings()
                )
            text = _text_of(reply)
            if text is None:
                raise _Again(f"{self._host} sent a broken body")
            usage = getattr(reply, "usage", None)
            used = (_count(usage, "prompt_tokens", prompt_limit), _count(usage, "completion_tokens", config.max_tokens))
            self._store.receive(number, cost(*used, config.budget), key, config.model, text)
            end = _nothing
            return text
        except openai.APIStatusError as error:
            if error.status_code not in _MAYBE_BILLED:
                end = ledger.refuse
            problem: Exception = self._about_status(error)
        except (TimeoutError, openai.OpenAIError, ValueError, RecursionError) as error:  # a body may hold anything
            if type(error.__cause__).__name__ in _NEVER_SENT:
                end = ledger.forget
            problem = _Again(f"{self._host}: {_failure(error)}")
        finally:
            end(number)
        raise problem from None

    def _about_status(self, error: Any) -> Exception:
        """What an HTTP status means: try again, this request fails, or all would."""
        status: int = error.status_code
        said = f"{self._host} answered HTTP {status}"
        if status == 402 or str(error.code) in _NO_CREDIT:
            return EndpointRefused(f"judge: {said}: the account has no credit left; top it up and run again")
        if status in _RETRIED or status >= 500:
            wait_s = _retry_after(error.response.headers.get("retry-after"))
            if wait_s is not None and wait_s <= self._config.max_wait_s:
                self._pace.hold(wait_s)
            return _Again(said, wait_s)
        if status in _BAD_REQUEST:
            return CallFailed(f"{said}: it doesn't take this request")
        advice = {401: "the key", 403: "the key's rights", 404: "judge.endpoint and judge.model"}
        return EndpointRefused(f"judge: {said}; check {advice.get(status, 'judge.endpoint')} and run again")


def _openai_client(config: EndpointConfig) -> Any:
    key = "none"  # servers without keys take any; the package would otherwise send OPENAI_API_KEY
    if config.api_key_env is not None:
        key = os.environ.get(config.api_key_env, "")
        if not key.strip():
            raise UserError(
                f"judge.api_key_env: the environment variable {config.api_key_env} isn't set where the judge runs"
            )
    import openai

    # On DEBUG they write whole requests, patients' texts with them.
    for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    client = openai.AsyncOpenAI(
        base_url=config.endpoint,
        api_key=key.strip(),
        max_retries=0,
        timeout=config.timeout_s,
        # A redirect, or a proxy for an address of this machine, would take texts where nobody allowed them.
        http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False, trust_env=not config.on_this_machine),
    )
    # The package also takes an account's headers, and a key's, from OPENAI_... variables meant for other programs.
    client.organization = client.project = None
    client._custom_headers = {}
    _ = client.chat.completions  # its import takes a second that no request's time limit should pay
    return client


def _text_of(reply: Any) -> str | None:
    """The answer's text; None where the body is none of a chat completion.

    "" where a whole answer holds no text (withheld, a tool call): asked again in the same words it would be so again.
    """
    choices = getattr(reply, "choices", None)
    if not isinstance(choices, list) or not choices or getattr(choices[0], "message", None) is None:
        return None
    if getattr(choices[0], "finish_reason", None) not in _WHOLE:
        return None
    content = getattr(choices[0].message, "content", None)
    text = _HALF_A_PAIR.sub("\ufffd", content) if isinstance(content, str) else ""
    return text + CUT if getattr(choices[0], "finish_reason", None) == "length" else text


def _count(usage: Any, name: str, otherwise: int) -> int:
    value = getattr(usage, name, None)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST_TOKENS:
        return otherwise
    return value


def _failure(error: Exception) -> str:
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return "no answer in time"
    return "the connection failed or the body was cut"


def _retry_after(header: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if seconds == seconds else None


def _nothing(number: int) -> None:
    """The request is settled."""
