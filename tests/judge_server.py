"""A judge's endpoint that misbehaves on purpose, with a log of its own.

A real HTTP server in a thread of the test. What it does with a request depends on the request's body, how often it came
and the seed, so that a run repeats; the log says what came and what was really answered, whatever the client believes.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rayrl.judge.prompts import fenced_texts

FAULTS = ("429", "500", "timeout", "cut", "broken", "deep", "empty", "malformed", "surrogate")
ANSWERED = ("ok", "empty", "malformed", "surrogate")
"""Whole answers: billed, and never to be asked for again."""
SECRET = "sk-planted-0123456789"

Scorer = Callable[[dict[str, str]], Any]
"""Texts of the prompt by label -> what the judge replies (text, or what becomes JSON)."""


def by_length(texts: dict[str, str]) -> Any:
    """Longer is better, and nothing else counts: a judge without position bias."""
    return {
        side: {"accuracy": float(min(10, 1 + len(texts[f"ANSWER {side}"]) % 10)), "conciseness": 5} for side in "AB"
    }


def first_is_better(texts: dict[str, str]) -> Any:
    """Prefers whatever stands first."""
    return {"A": {"accuracy": 8, "conciseness": 7}, "B": {"accuracy": 6, "conciseness": 7}}


@dataclass(frozen=True)
class Entry:
    """One request, as the server saw it."""

    body: str
    """Digest of what was sent."""
    outcome: str
    tokens: tuple[int, int]
    """Billed: of the prompt, of the answer."""
    at: float
    """When it came."""


@dataclass
class HostileServer:
    """Answers with `score`, but for a share of requests, which meet one of `faults`."""

    score: Scorer = by_length
    fault_share: float = 0.0
    faults: tuple[str, ...] = FAULTS
    seed: int = 0
    hang_s: float = 3.5
    delay_s: float = 0.0
    retry_after: str | None = None
    finish_reason: str = "stop"
    choice: dict[str, Any] = field(default_factory=dict)
    """Of the one choice in an answer: what is put in place of the true values."""
    usage: int | None = None
    """Of prompt and answer each, in place of the true one."""
    status: int | None = None
    """Answers every request with this status."""
    location: str | None = None
    """Where a redirect leads."""
    ended: list[Entry] = field(default_factory=list)
    """Requests that have ended so far; a client may be ahead of it (`log`)."""
    in_flight: int = 0
    open: int = 0
    """Requests whose entry isn't written yet; the answer may be sent."""
    most_in_flight: int = 0
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def __enter__(self) -> HostileServer:
        self._lock = threading.Lock()
        self._seen: Counter[str] = Counter()
        handler = type("Handler", (_Handler,), {"judge": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}/v1"

    def settled(self) -> HostileServer:
        """Once every request has ended, those whose client has gone too."""
        deadline = time.monotonic() + self.hang_s + 5
        while self.open and time.monotonic() < deadline:
            time.sleep(0.01)
        return self

    @property
    def log(self) -> list[Entry]:
        """All requests, in the order in which they ended."""
        return self.settled().ended

    def outcomes(self) -> Counter[str]:
        return Counter(entry.outcome for entry in self.log)

    def repeated(self) -> int:
        """How many whole answers went to a request that had been answered whole before."""
        answered = Counter(entry.body for entry in self.log if entry.outcome in ANSWERED)
        return sum(count - 1 for count in answered.values())

    def billed(self, price_prompt: float = 1.0, price_answer: float = 1.0) -> float:
        """Tokens, or what they cost."""
        return sum(entry.tokens[0] * price_prompt + entry.tokens[1] * price_answer for entry in self.log)

    def begin(self, body: bytes) -> tuple[str, str]:
        """Digest and outcome of a request that came in."""
        digest = hashlib.sha256(body).hexdigest()
        with self._lock:
            number = self._seen[digest]
            self._seen[digest] += 1
            self.open += 1
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        draw = hashlib.sha256(f"{self.seed}/{digest}/{number}".encode()).digest()
        if int.from_bytes(draw[:4], "big") / 2**32 >= self.fault_share:
            return digest, "ok"
        return digest, self.faults[draw[4] % len(self.faults)]

    def answered(self) -> None:
        """Before the last byte: the client may send its next request at once."""
        with self._lock:
            self.in_flight -= 1

    def end(self, digest: str, outcome: str, tokens: tuple[int, int], began: float) -> None:
        with self._lock:
            self.open -= 1
            self.ended.append(Entry(digest, outcome, tokens, began))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    judge: HostileServer
    answering = False

    def do_POST(self) -> None:
        server = self.judge
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        request = json.loads(raw)
        server.requests.append(request)
        server.headers.append({name.lower(): value for name, value in self.headers.items()})
        began, self.answering = time.monotonic(), True
        digest, outcome = server.begin(raw)
        tokens = (0, 0)
        try:
            if server.status is not None:
                outcome = str(server.status)
                self._send(server.status, json.dumps({"error": {"message": f"key {SECRET} is no good"}}).encode())
                return
            time.sleep(server.delay_s)
            tokens = self._misbehave(outcome, request)
        except OSError:  # the client had gone: nobody got this answer
            outcome, self.close_connection = "gone", True
        finally:
            self._leave()
            server.end(digest, outcome, tokens, began)

    def _leave(self) -> None:
        if self.answering:
            self.judge.answered()
        self.answering = False

    def _misbehave(self, outcome: str, request: dict[str, Any]) -> tuple[int, int]:
        """Does it, and returns what it bills."""
        if outcome == "429":
            self._send(429, b'{"error": {"message": "slow down"}}', retry_after=self.judge.retry_after)
            return 0, 0
        if outcome == "500":
            self._send(500, b"<html>oops</html>")
            return 0, 0
        if outcome == "timeout":
            time.sleep(self.judge.hang_s)
            self.close_connection = True
            return self._completion(request, self._scores(request))[1]  # the model had answered
        if outcome == "deep":
            self._send(200, b"[" * 100_000)
            return 0, 0
        if outcome == "surrogate":
            return self._answer(request, self._scores(request) + " \ud83d")
        if outcome == "malformed":
            return self._answer(request, "I would say that both have their merits.")
        if outcome == "empty":
            return self._answer(request, "")
        if outcome in ("cut", "broken"):
            body, tokens = self._completion(request, self._scores(request))
            half = body[: len(body) // 2]
            self._send(200, half, length=len(body) if outcome == "cut" else len(half))
            self.close_connection = True
            return tokens
        return self._answer(request, self._scores(request))

    def _scores(self, request: dict[str, Any]) -> str:
        found = self.judge.score(dict(fenced_texts(request["messages"][-1]["content"])))
        return found if isinstance(found, str) else json.dumps(found)

    def _answer(self, request: dict[str, Any], text: str) -> tuple[int, int]:
        body, tokens = self._completion(request, text)
        self._send(200, body)
        return tokens

    def _completion(self, request: dict[str, Any], text: str) -> tuple[bytes, tuple[int, int]]:
        prompt = sum(len(message["content"]) // 3 for message in request["messages"])
        answer = min(request["max_tokens"], 1 + len(text) // 3)
        body = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": request["model"],
            "choices": [
                {
                    "index": 0,
                    "finish_reason": self.judge.finish_reason,
                    "message": {"role": "assistant", "content": text},
                    **self.judge.choice,
                }
            ],
            "usage": {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer},
        }
        if self.judge.usage is not None:
            body["usage"] = dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), self.judge.usage)
        return json.dumps(body).encode(), (prompt, answer)

    def _send(self, status: int, body: bytes, length: int | None = None, retry_after: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body) if length is None else length))
        if self.judge.location is not None:
            self.send_header("Location", f"{self.judge.location}/chat/completions")
        if retry_after is not None:
            self.send_header("Retry-After", retry_after)
        self.end_headers()
        self._leave()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """The server has its own log."""
