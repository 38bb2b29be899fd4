"""A program behind an OpenAI-compatible HTTP endpoint on this machine: what stands in for a model without a key.

The program is a function from messages to a text; ValueError from it is the request's fault. Left out: streaming, keys,
every other path of the API.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rayrl.data.units import units
from rayrl.types import Message

Reply = Callable[[Sequence[Message]], str]


@contextmanager
def local_endpoint(reply: Reply, name: str) -> Iterator[str]:
    """The base URL (http://127.0.0.1:PORT/v1) at which `reply` answers for the block. `name`: for ids and threads."""
    handler = type("Handler", (_Handler,), {"program": staticmethod(reply), "name": name})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, name=name, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    """Requests that come at one time; of more than this a second passes before the system tries again."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    program: Reply
    name: str

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/v1/chat/completions":
            return self._reply(404, {"error": {"message": "only /v1/chat/completions is here"}})
        try:
            request = json.loads(body)
            prompt_tokens = sum(len(units(message["content"])) for message in request["messages"])
            text = self.program(request["messages"])
        except (ValueError, KeyError, TypeError) as error:
            return self._reply(400, {"error": {"message": f"not a request for {self.name}: {error}"}})
        used = {"prompt_tokens": prompt_tokens, "completion_tokens": len(units(text))}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        self._reply(
            200,
            {
                "id": self.name,
                "object": "chat.completion",
                "created": 0,
                "model": str(request.get("model", self.name)),
                "choices": [choice],
                "usage": {**used, "total_tokens": sum(used.values())},
            },
        )

    def _reply(self, status: int, value: Mapping[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: requests are the client's business."""
