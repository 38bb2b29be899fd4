"""The shipped rules behind an OpenAI-compatible HTTP endpoint: a judge for those without a key.

It reads the case and the answers from the prompt's text, as any judge would, and knows nothing else: what the doctor's
answer asks for is what is missing. It measures form and questions, not medicine; it is there to try the whole loop and
costs nothing. Left out: streaming, keys, every other path of the API.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rayrl.config.judge import LOCAL_RUBRIC, JudgeConfig
from rayrl.judge.prompts import ANSWER, ANSWER_A, ANSWER_B, PATIENT_TURN, QUESTION, REFERENCE, fenced_texts
from rayrl.rewards.question_patterns import ITEMS
from rayrl.rewards.questions import clarifying_question, items_asked, questions_to_patient
from rayrl.rewards.rules import language_match, length_window, presentation, reference_overlap, repetition
from rayrl.rewards.text import units
from rayrl.types import Message, PromptRow

_CRITERION = re.compile(r"^- ([\w -]+): ", re.MULTILINE)
_OVERLAP_OF_A_GOOD_ANSWER = 0.5
"""ROUGE-L of two good answers to one case; more says little."""


@contextmanager
def served(config: JudgeConfig) -> Iterator[JudgeConfig]:
    """The configuration with a real endpoint: starts the local rubric's server for the block where it is named."""
    if config.endpoint != LOCAL_RUBRIC:
        yield config
        return
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="local-rubric", daemon=True)
    thread.start()
    try:
        yield config.model_copy(update={"endpoint": f"http://127.0.0.1:{server.server_port}/v1"})
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def judge_prompt(messages: Sequence[Message]) -> str:
    """The reply to a prompt of rayrl/judge/prompts.py, as JSON. Raises ValueError where it is none."""
    content = messages[-1]["content"] if messages else ""
    texts = fenced_texts(content)
    labels = [label for label, _ in texts]
    answers = [(label, text) for label, text in texts if label in (ANSWER, ANSWER_A, ANSWER_B)]
    criteria = _CRITERION.findall(content[content.rfind(">>>") :])
    if QUESTION not in labels or not answers or not criteria:
        raise ValueError("the prompt holds no question, no answer or no criteria between its markers")
    prompt = _prompt_row(texts)
    if [label for label, _ in answers] == [ANSWER]:
        return json.dumps(_scores(prompt, answers[0][1], criteria, 0))
    sides = {ANSWER_A: "A", ANSWER_B: "B"}
    return json.dumps({sides[label]: _scores(prompt, text, criteria, 1) for label, text in answers})


def _prompt_row(texts: Sequence[tuple[str, str]]) -> PromptRow:
    """The case; `missing_info` is what the doctor asked for."""
    turns = [Message(role="user", content=text) for label, text in texts if label in (PATIENT_TURN, QUESTION)]
    reference = next((text for label, text in texts if label == REFERENCE), None)
    questions = questions_to_patient(reference or "")
    missing = sorted(items_asked(questions, list(ITEMS))) or (["other"] if questions else [])
    return PromptRow("prompt", turns, reference, {"missing_info": missing})


def _scores(prompt: PromptRow, answer: str, criteria: Sequence[str], low: int) -> dict[str, float]:
    """Points from `low` to 10, with one decimal."""
    values = _rules(prompt, answer)
    overall = sum(values.values()) / len(values)
    return {name: round(low + (10 - low) * values.get(name, overall), 1) for name in criteria}


def _rules(prompt: PromptRow, answer: str) -> Mapping[str, float]:
    """What the rules say of the built-in criteria, in [0, 1]; nothing is good in the wrong language."""
    asks = clarifying_question(prompt, answer) if prompt.reference else presentation(prompt, answer)
    same = min(1.0, reference_overlap(prompt, answer) / _OVERLAP_OF_A_GOOD_ANSWER) if prompt.reference else asks
    fresh = repetition(prompt, answer)
    full = min(1.0, len(set(units(answer))) / 40)
    values = {
        "accuracy": 0.5 * asks + 0.5 * same,
        "informativeness": fresh * (0.5 * full + 0.5 * same),
        "conciseness": fresh * length_window(prompt, answer, min_units=5, max_units=120, slack=60),
        "similarity": same,
        "inquiry": asks,
        "fluency": presentation(prompt, answer) * fresh,
    }
    language = language_match(prompt, answer)
    return {name: language * value for name, value in values.items()}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/v1/chat/completions":
            return self._reply(404, {"error": {"message": "only /v1/chat/completions is here"}})
        try:
            request = json.loads(body)
            prompt_tokens = sum(len(units(message["content"])) for message in request["messages"])
            text = judge_prompt(request["messages"])
        except (ValueError, KeyError, TypeError) as error:
            return self._reply(400, {"error": {"message": f"not a judge's prompt: {error}"}})
        used = {"prompt_tokens": prompt_tokens, "completion_tokens": len(units(text))}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        self._reply(
            200,
            {
                "id": "local-rubric",
                "object": "chat.completion",
                "created": 0,
                "model": str(request.get("model", "rubric")),
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
        """Nothing: a judge's requests are the client's business."""
