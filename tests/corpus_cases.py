"""A small corpus of the project's own in every form, a model's endpoint for it, and a run that is killed on its way.

Shared by tests/test_stage_corpus.py and scripts/soak_corpus.py.
"""

import gzip
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import yaml

ASSETS = Path(__file__).parents[1] / "rayrl" / "assets"
COMMAND = str(Path(sys.executable).with_name("rayrl"))
STAGES = ("read", "extract", "segment", "clean", "dedup", "decontaminate", "unify", "check")
EXAM = "下列哪一种药物是治疗过敏性休克时应当首先使用的抢救药物？"

PRIVATE = "请与王先生联系，手机13812345678，本店常年收购旧书旧报，上门服务，价格面议，欢迎新老朋友前来洽谈。"
"""A text that goes before masks are made."""


def sample(number: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows of the package's little corpus, in an order by the seed: `text`, `genre`, `source`."""
    lines = (ASSETS / "corpus_sample.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    random.Random(seed).shuffle(rows)
    return rows[:number]


def write_corpus(folder: Path, number: int = 400, seed: int = 0) -> None:
    """JSONL (two files, one in gz), text, HTML in GBK, and a WET archive; a bad line and a cut archive among them."""
    folder.mkdir(parents=True, exist_ok=True)
    taken = sample(number, seed)
    found = [row["text"] for row in taken]
    part = number // 4
    rows = [json.dumps({"text": row["text"], "genre": row["genre"]}, ensure_ascii=False) for row in taken[: 2 * part]]
    rows.insert(0, json.dumps({"text": PRIVATE}, ensure_ascii=False))
    rows.insert(7, '{"text": "cut off')
    (folder / "a.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    packed = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in found[2 * part : 3 * part])
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(packed.encode(), mtime=0)[:-40])
    pages = folder / "pages"
    pages.mkdir(exist_ok=True)
    for i, text in enumerate(found[3 * part : 3 * part + 20]):
        body = "".join(f"<p>{line}</p>" for line in text.replace("<", "&lt;").split("\n"))
        page = f'<html><head><meta charset="gbk"><title>页</title></head><body><article>{body}</article></body></html>'
        (pages / f"{i:03d}.html").write_bytes(page.encode("gbk", "xmlcharrefreplace"))
    records = []
    for i, text in enumerate(found[3 * part + 20 :]):
        raw = text.encode()
        head = (
            f"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: http://example.org/{i}\r\n"
            f"WARC-Record-ID: <urn:uuid:{i:08d}-0000-0000-0000-000000000000>\r\nWARC-Date: 2024-01-01T00:00:00Z\r\n"
            f"Content-Type: text/plain\r\nContent-Length: {len(raw)}\r\n\r\n"
        )
        records.append(gzip.compress(head.encode() + raw + b"\r\n\r\n", mtime=0))
    (folder / "c.warc.wet.gz").write_bytes(b"".join(records))


def write_config(path: Path, corpus: Path, output: Path, endpoint: str, cache: Path, ray: str = "local") -> None:
    """A configuration with every stage; shards so small that each has several tasks. `ray`: its address."""
    labels = path.with_name("labels.jsonl")
    rows = [
        {"text": row["text"], "label": "good" if row["source"].startswith("medical") else "bad"}
        for row in sample(300, 1)
    ]
    labels.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    exams = path.with_name("exams.jsonl")
    exams.write_text(json.dumps({"question": EXAM}, ensure_ascii=False) + "\n", encoding="utf-8")
    judge = {"endpoint": endpoint, "model": "standin", "cache": str(cache), "backoff_s": 0.05}
    config = {
        "output_dir": str(output),
        "sources": [{"name": "mixed", "path": str(corpus), "columns": {"genre": "genre"}}],
        "max_rejected_fraction": 0.1,
        "read": {"split_mb": 0.04, "shard_mb": 0.04},
        "extract": {
            "lexicons": [{"path": "medical-zh"}, {"path": "medical-en"}],
            "thresholds": {"en": 0.03},
        },
        "segment": {"max_chars": 300},
        "clean": {"quality": {"labels": str(labels), "least_recall": 0.9}},
        "dedup": {"semantic": {"cell_size": 200}},
        "decontaminate": {"sets": [{"name": "exam", "path": str(exams)}]},
        "unify": {"endpoint": judge},
        "check": {
            "regenerate": 1,
            "least_overlap": {"zh-zh": 0.3},
            "detector": {"judge": judge, "least_recall": 0.9},
        },
        "ray": {"address": ray, "object_store_mb": 100},
    }
    path.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")


def published(output: Path) -> dict[str, str]:
    """Hashes of all that stages have published; of manifests, of their counts."""
    files = [path for path in sorted(output.rglob("*")) if path.is_file() and path.suffix in (".parquet", ".jsonl")]
    found = {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    counts = {path.parent.name: json.loads(path.read_text())["counts"] for path in output.glob("*/manifest.json")}
    return found | {name: json.dumps(count, sort_keys=True) for name, count in counts.items()}


class _Model(BaseHTTPRequestHandler):
    """Asks about a text's beginning; answers with its beginning, or for some texts with something else; tells which."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = body["messages"][-1]["content"]
        text = re.search(r"<<<TEXT \w+>>>\n(.*?)\n<<<END", asked, re.S)[1]  # type: ignore[index]
        asked = asked.replace(text, "")
        chinese = "请" in asked
        turn = int(hashlib.sha256(text.encode()).hexdigest()[:4], 16) % 10
        if "departs: " in asked:
            reply = "departs" if "Altogether different." in asked else "keeps"
        elif "Question: " in asked or "问题：" in asked:
            again = "(Request" in asked or "（第" in asked
            reply = text[:500]
            if turn < 2:
                reply = "参考上文。" if turn == 0 and not again else "完全不同。 Altogether different."
        else:
            reply = f"请问{text[:15]}该怎么办？" if chinese else f"What is known about {' '.join(text.split()[:5])}?"
        answer = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [{"index": 0, "message": {"role": "assistant", "content": reply}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }
        raw = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def model_endpoint() -> Iterator[str]:
    """The address of a model's endpoint on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Model)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


def start(config: Path, environ: dict[str, str], *more: str) -> subprocess.Popen[str]:
    """Starts the command."""
    return subprocess.Popen(
        [COMMAND, "corpus", str(config), *more],
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_stage(process: subprocess.Popen[str], folder: Path, timeout_s: float = 120) -> bool:
    """Waits until the stage works, or has; whether it does before the run ends."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if (folder / ".work" / "started.json").exists() or (folder / "manifest.json").exists():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.01)
    raise AssertionError(f"{folder.name} didn't start")


def kill_driver(process: subprocess.Popen[str]) -> None:
    """SIGKILL, and what it leaves of its pipes."""
    process.kill()  # nothing where it has ended
    process.communicate()


def kill_a_worker(pid: int, rng: random.Random) -> str | None:
    """SIGKILL to one of the processes that do tasks, below the one that started Ray; its name, or None without any."""
    working = []
    for child in psutil.Process(pid).children(recursive=True):
        try:
            name = " ".join(child.cmdline()).strip()[:80]
        except psutil.Error:
            continue
        if name.startswith("ray::") and any(word in name for word in ("Map", "Worker", "_map")):
            working.append((child, name))
    if not working:
        return None
    victim, name = rng.choice(working)
    try:
        victim.kill()
    except psutil.NoSuchProcess:
        return None
    return name
