"""Shared by all test files. Hypothesis draws the same examples in every run, and slow machines don't fail it."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("same-everywhere", derandomize=True, deadline=None)
settings.load_profile("same-everywhere")


_LONG = (
    "test_soak", "test_ablation_end_to_end", "test_eval_stage", "test_pipeline_end_to_end", "test_stage_corpus",
    "test_reward_end_to_end", "test_ppo_end_to_end",
    "test_stage_sample", "test_sft_end_to_end", "test_learners_ranks", "test_models_vllm", "test_corpus_real_data",
    "test_submission", "test_security",
)  # fmt: skip
"""Files that take longest: first, so that no process is left with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first."""
    items.sort(key=lambda item: _LONG.index(item.path.stem) if item.path.stem in _LONG else len(_LONG))


@pytest.fixture(scope="session")
def one_rank() -> None:
    """This process as a group of one rank, as a trained role's actor makes it."""
    from rayrl.models.deepspeed_engine import init_distributed
    from rayrl.models.rendezvous import reserve

    init_distributed(0, 1, "127.0.0.1", reserve("127.0.0.1"), timeout_s=60)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Options of an object store on this machine that has an empty bucket: `s3://bucket/name?{store}`."""
    from pyarrow import fs

    moto = pytest.importorskip("moto.server", reason="moto isn't installed: pip install 'moto[server]'")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    # What an earlier test of this process left in its store is still there.
    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
    options = f"endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    made, _ = fs.FileSystem.from_uri(f"s3://bucket?{options}&allow_bucket_creation=true")
    made.create_dir("bucket")
    yield options
    server.stop()
