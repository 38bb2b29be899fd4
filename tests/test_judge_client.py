"""The judge's client against a server that misbehaves: nothing is asked twice, nothing passes the budget."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from judge_cases import case, judge_all, judge_config
from judge_server import ANSWERED, FAULTS, SECRET, HostileServer, by_length, first_is_better

from rayrl.config.judge import JudgeBudgetConfig, JudgeConfig
from rayrl.config.load import dump
from rayrl.errors import UserError
from rayrl.judge.budget import BudgetExceeded, Cost, Spent
from rayrl.judge.cache import Store
from rayrl.judge.client import CallFailed, EndpointRefused, JudgeClient, Pace
from rayrl.judge.parse import CUT
from rayrl.judge.prompts import pair_messages
from rayrl.judge.service import JudgeOwner


def ask(config: JudgeConfig, *numbers: int) -> list[str | BaseException]:
    """The raw answers to the cases of these numbers, asked at one time, or what was raised."""

    async def run() -> list[str | BaseException]:
        store = Store(config.cache)
        client = JudgeClient(config, store)
        try:
            messages = [pair_messages(*case(number), config) for number in numbers]
            return list(await asyncio.gather(*map(client.ask, messages), return_exceptions=True))
        finally:
            await client.close()
            store.close()

    return asyncio.run(run())


def test_every_pair_ends_labelled_or_set_aside_and_no_answer_is_asked_for_twice(tmp_path: Path) -> None:
    with HostileServer(fault_share=0.3, retry_after="0.05") as server:
        config = judge_config(server.url, tmp_path, concurrency=16, parse_retries=3)
        found = judge_all(config, range(45))
        kinds = Counter(judgement.verdict for judgement in found)
        assert set(server.settled().outcomes()) == {"ok", *FAULTS}, "the server has to have done everything it can"
        assert server.repeated() == 0
        assert kinds["a"] + kinds["b"] + kinds["tie"] >= 42 and len(found) == 45
        assert kinds["inconsistent"] == 0
        assert all(judgement.reason for judgement in found if judgement.verdict == "set_aside")
        requests = len(server.requests)
        assert judge_all(config, range(45)) == found
        assert len(server.requests) == requests, "a second run asked again"


def test_a_kill_in_the_middle_repeats_at_most_what_was_in_flight(tmp_path: Path) -> None:
    changes = {"concurrency": 4, "budget": {"tokens": 60_000, "calls": 150}, "max_tokens": 64}
    with HostileServer(fault_share=0.3, delay_s=0.02) as server:
        command = [sys.executable, str(Path(__file__).with_name("judge_process.py"))]
        arguments = [*command, server.url, str(tmp_path), "30", json.dumps(changes)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            deadline = time.monotonic() + 60
            while sum(entry.outcome in ANSWERED for entry in server.ended) < 20 and time.monotonic() < deadline:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL, "it was done before it could be killed"
        before = len(server.log)
        found = judge_all(judge_config(server.url, tmp_path, **changes), range(30))
        assert len(server.log) > before
        assert server.repeated() <= 4
        assert len(server.requests) <= 150 and server.billed() <= 60_000
        assert all(judgement.verdict != "set_aside" or judgement.reason for judgement in found)
        assert sum(judgement.verdict in ("a", "b", "tie") for judgement in found) >= 25


@pytest.mark.parametrize(
    "budget",
    [{"calls": 25}, {"tokens": 12_000}, {"money": 0.012, "price_prompt": 1.0, "price_answer": 4.0}],
    ids=lambda budget: next(iter(budget)),
)
def test_the_budget_is_never_passed_and_a_higher_one_goes_on(tmp_path: Path, budget: dict[str, Any]) -> None:
    faults = ("429", "500", "cut", "broken", "malformed", "surrogate", "timeout")
    with HostileServer(fault_share=0.3, faults=faults, hang_s=2.5) as server:
        config = judge_config(server.url, tmp_path, budget=budget, max_tokens=64, timeout_s=2.0)
        found = judge_all(config, range(30))
        assert len(server.settled().requests) <= budget.get("calls", 1000)
        assert server.billed() <= budget.get("tokens", 1e9)
        assert server.billed(1e-6, 4e-6) <= budget.get("money", 1e9)
        aside = [judgement for judgement in found if judgement.verdict == "set_aside"]
        assert 5 < len(aside) < 30
        assert all(str(j.reason).startswith("judge budget: ") and "judge.budget." in str(j.reason) for j in aside)
        whole = judge_all(judge_config(server.url, tmp_path, max_tokens=64, timeout_s=2.0), range(30))
        assert all(judgement.verdict != "set_aside" for judgement in whole)
        assert [b for b, a in zip(whole, found, strict=True) if a not in aside] == [a for a in found if a not in aside]
        assert server.repeated() == 0


def test_position_bias_ends_as_inconsistent_with_scores(tmp_path: Path) -> None:
    with HostileServer(score=first_is_better) as server:
        found = judge_all(judge_config(server.url, tmp_path), range(10))
    assert {judgement.verdict for judgement in found} == {"inconsistent"}
    assert found[0].scores["ab"] == [7.5, 6.5] and found[0].scores["ba"] == [6.5, 7.5]
    assert found[0].margin is None


def test_what_cannot_be_read_is_asked_for_again_and_kept(tmp_path: Path) -> None:
    with HostileServer(score=lambda texts: "Both are fine.") as server:
        (found,) = judge_all(judge_config(server.url, tmp_path, parse_retries=2), [1])
        assert found.verdict == "set_aside" and "can't be read (3 tries)" in str(found.reason)
        assert found.scores["unread"] == {"ab": "Both are fine.", "ba": "Both are fine."}
        assert "fine" not in str(found.reason)
        assert len(server.log) == 6 and server.repeated() == 0
        assert len({request["messages"][-1]["content"] for request in server.requests}) == 6
        judge_all(judge_config(server.url, tmp_path, parse_retries=2), [1])
        assert len(server.log) == 6, "unreadable answers are cached too"


def test_equal_requests_in_flight_are_sent_once(tmp_path: Path) -> None:
    with HostileServer(delay_s=0.2) as server:
        answers = ask(judge_config(server.url, tmp_path), 1, 1, 2, 1)
        assert len(server.log) == 2 and answers[0] == answers[1] == answers[3] != answers[2]


def test_concurrency_and_rate_are_bounded(tmp_path: Path) -> None:
    with HostileServer(delay_s=0.3) as server:
        ask(judge_config(server.url, tmp_path, concurrency=3), *range(12))
        assert server.most_in_flight == 3
    with HostileServer() as server:
        began = time.monotonic()
        ask(judge_config(server.url, tmp_path / "rate", requests_per_minute=600), *range(16))
        assert max(entry.at for entry in server.log) - began >= 1.5, (
            "the sixteenth request at ten a second goes after 1.5 s"
        )


def test_retry_after_is_honoured_and_a_long_one_gives_up(tmp_path: Path) -> None:
    with HostileServer(fault_share=1.0, faults=("429",), retry_after="0.3") as server:
        (error,) = ask(judge_config(server.url, tmp_path, max_retries=1), 1)
        assert isinstance(error, CallFailed) and "HTTP 429" in str(error)
        assert server.log[1].at - server.log[0].at >= 0.3
    with HostileServer(fault_share=1.0, faults=("429",), retry_after="3600") as server:
        (error,) = ask(judge_config(server.url, tmp_path), 1)
        assert "3600 s" in str(error) and len(server.log) == 1


def test_lost_requests_count_at_their_worst_and_refused_ones_cost_nothing(tmp_path: Path) -> None:
    for fault, worst in (("cut", True), ("timeout", True), ("429", False), ("500", False)):
        with HostileServer(fault_share=1.0, faults=(fault,), hang_s=0.6) as server:
            config = judge_config(
                server.url, tmp_path / fault, max_retries=0, timeout_s=0.3 if fault == "timeout" else 10
            )
            ask(config, 1)
        store = Store(config.cache)
        prompt_bytes = sum(len(message["content"].encode()) for message in pair_messages(*case(1), config))
        assert store.ledger.spent.calls == 1
        assert store.ledger.spent.tokens == (prompt_bytes + 2 * 32 + 64 + 256 if worst else 0)
        store.close()


def test_an_endpoint_that_is_not_there_spends_nothing(tmp_path: Path) -> None:
    with HostileServer() as server:
        url = server.url
    config = judge_config(url, tmp_path, max_retries=1)
    (error,) = ask(config, 1)
    assert isinstance(error, CallFailed)
    store = Store(config.cache)
    assert store.ledger.spent.calls == 0
    store.close()


@pytest.mark.parametrize(("status", "kind"), [(401, EndpointRefused), (404, EndpointRefused), (400, CallFailed)])
def test_what_no_retry_mends_is_asked_once(tmp_path: Path, status: int, kind: type[Exception]) -> None:
    with HostileServer(status=status) as server:
        (error,) = ask(judge_config(server.url, tmp_path), 1)
        assert isinstance(error, kind) and f"HTTP {status}" in str(error)
        assert len(server.log) == 1


def test_keys_appear_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("TEST_JUDGE_KEY", SECRET)
    monkeypatch.setenv("OPENAI_LOG", "debug")
    caplog.set_level(logging.DEBUG)
    with HostileServer() as server:
        config = judge_config(server.url, tmp_path, api_key_env="TEST_JUDGE_KEY")
        assert isinstance(ask(config, 1)[0], str)
        assert server.headers[0]["authorization"] == f"Bearer {SECRET}"
        server.status = 401  # its body repeats the key
        (error,) = ask(config, 2)
    assert isinstance(error, EndpointRefused)
    chain = repr(error) + str(error) + repr(error.__cause__)
    for text in (
        dump(config),
        repr(config),
        chain,
        caplog.text,
        (tmp_path / "judge.sqlite").read_bytes().decode("latin1"),
    ):
        assert SECRET not in text
    assert "My knee 1" not in caplog.text
    monkeypatch.delenv("TEST_JUDGE_KEY")
    with pytest.raises(UserError, match="TEST_JUDGE_KEY isn't set"):
        ask(config, 3)


def test_a_key_for_others_is_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # an address of this machine goes through no proxy
    with HostileServer() as server:
        for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
            monkeypatch.setenv(name, "planted-account")
        monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"Authorization: Bearer {SECRET}\nX-Gateway: planted-gateway")
        assert isinstance(ask(judge_config(server.url, tmp_path), 1)[0], str)
        assert SECRET not in str(server.headers) and "planted" not in str(server.headers)
        assert server.headers[0]["authorization"] == "Bearer none"


def test_one_process_owns_the_cache(tmp_path: Path) -> None:
    path = tmp_path / "judge.sqlite"
    first = Store(path)
    with pytest.raises(UserError, match="another run holds"):
        Store(path, wait_s=0.1)
    first.close()
    Store(path).close()
    assert oct(os.stat(path).st_mode & 0o777) == "0o600"
    (tmp_path / "notes.txt").write_text("no database at all, only some text" * 100, encoding="utf-8")
    with pytest.raises(UserError, match="can't be used"):
        Store(tmp_path / "notes.txt")


def test_by_length_has_views(tmp_path: Path) -> None:
    """The hostile server's judge tells answers apart, or the tests above would show nothing."""
    with HostileServer(score=by_length) as server:
        found = judge_all(judge_config(server.url, tmp_path), range(30))
    assert {judgement.verdict for judgement in found} == {"a", "b", "tie"}


def test_room_that_requests_in_flight_may_free_is_waited_for(tmp_path: Path) -> None:
    """A request books some 1,900 tokens and takes about 500, so that 4,000 hold two at a time and four in all."""
    with HostileServer(delay_s=0.2) as server:
        config = judge_config(server.url, tmp_path, concurrency=4, budget={"tokens": 4_000})
        answers = ask(config, *range(4))
        assert all(isinstance(answer, str) for answer in answers)
        assert 2_000 > 4_000 - server.billed() > 0 and server.most_in_flight == 2
        assert all(isinstance(answer, BudgetExceeded) for answer in ask(config, 5, 6))


def test_what_was_booked_when_the_process_died_counts(tmp_path: Path) -> None:
    store = Store(tmp_path / "judge.sqlite")
    asyncio.run(store.ledger.reserve(Cost(700, 0.25), JudgeBudgetConfig()))
    store.close()
    store = Store(tmp_path / "judge.sqlite")
    assert store.ledger.spent == Spent(1, 700, 0.25)
    with pytest.raises(BudgetExceeded, match="700 tokens are spent and the next request may take 301"):
        asyncio.run(store.ledger.reserve(Cost(301, 0.0), JudgeBudgetConfig(tokens=1000)))
    store.close()


def test_a_retry_after_holds_all_requests(tmp_path: Path) -> None:
    with HostileServer(fault_share=1.0, faults=("429",), retry_after="0.4") as server:
        ask(judge_config(server.url, tmp_path, max_retries=0, concurrency=1), 1, 2)
        assert server.log[1].at - server.log[0].at >= 0.4


def test_redirects_are_not_followed(tmp_path: Path) -> None:
    with HostileServer() as elsewhere, HostileServer(status=307, location=elsewhere.url) as server:
        (error,) = ask(judge_config(server.url, tmp_path), 1)
        assert isinstance(error, EndpointRefused) and "HTTP 307; check judge.endpoint" in str(error)
        assert elsewhere.requests == []


@pytest.mark.parametrize("finish_reason", ["stop", "length"])
def test_an_empty_answer_is_an_answer_and_asked_for_in_other_words(tmp_path: Path, finish_reason: str) -> None:
    """Withheld, a tool call, cut before its first visible word: the same request would be so again."""
    with HostileServer(fault_share=1.0, faults=("empty",), finish_reason=finish_reason) as server:
        (answer,) = ask(judge_config(server.url, tmp_path), 1)
        assert answer == ("" if finish_reason == "stop" else CUT) and len(server.requests) == 1
        (found,) = judge_all(judge_config(server.url, tmp_path, parse_retries=1), [1])
        assert found.verdict == "set_aside" and "can't be read (2 tries)" in str(found.reason)
        assert len(server.requests) == 4 and server.repeated() == 0


def test_an_answer_that_no_encoding_takes_is_kept_and_paid_once(tmp_path: Path) -> None:
    with HostileServer(fault_share=1.0, faults=("surrogate",)) as server:
        config = judge_config(server.url, tmp_path, budget={"calls": 2})
        answers = [ask(config, 1) for _ in range(3)]
        assert len(server.requests) == 1 and answers[0] == answers[2] and str(answers[0][0]).endswith("\ufffd")
        (spent,) = [store.ledger.spent for store in [Store(config.cache)]]
        assert spent.calls == 1


def test_a_prompt_that_no_encoding_takes_is_never_sent(tmp_path: Path) -> None:
    async def run(config: JudgeConfig) -> str:
        store = Store(config.cache)
        client = JudgeClient(config, store)
        try:
            with pytest.raises(CallFailed, match="no encoding takes"):
                await client.ask([{"role": "user", "content": "half of \ud83d"}])
            return str(store.ledger.spent.calls)
        finally:
            await client.close()
            store.close()

    with HostileServer() as server:
        assert asyncio.run(run(judge_config(server.url, tmp_path))) == "0" and server.requests == []


def test_clients_of_one_endpoint_share_pace_and_requests(tmp_path: Path) -> None:
    """Judges that differ in criteria or budget alone, as two rewards of one run may."""

    async def run(configs: list[JudgeConfig]) -> None:
        owner = JudgeOwner(configs[0].cache)
        try:
            await asyncio.gather(*(owner.compare(c, *case(number)) for c in configs for number in range(6)))
        finally:
            await owner.close()

    with HostileServer(delay_s=0.3) as server:
        configs = [judge_config(server.url, tmp_path, concurrency=3, budget={"calls": n}) for n in (100, 200)]
        asyncio.run(run(configs))
        assert server.most_in_flight == 3 and server.repeated() == 0 and len(server.requests) == 12


def test_a_retry_after_holds_requests_that_already_wait_for_their_turn(tmp_path: Path) -> None:
    with HostileServer(fault_share=1.0, faults=("429",), retry_after="0.8") as server:
        ask(judge_config(server.url, tmp_path, max_retries=0, max_wait_s=2, requests_per_minute=240), *range(3))
        first, *others = (entry.at for entry in server.log)
        assert min(others) - first >= 0.75, "the second's turn was after 0.25 s"


def test_usage_that_cannot_be_is_booked_at_its_worst(tmp_path: Path) -> None:
    with HostileServer(usage=10**400) as server:
        config = judge_config(server.url, tmp_path)
        assert isinstance(ask(config, 1)[0], str)
        store = Store(config.cache)
        assert 256 < store.ledger.spent.tokens < 10_000
        store.close()


@pytest.mark.parametrize("body", [{"finish_reason": "error"}, {"finish_reason": "abort"}, {"message": None}])
def test_an_answer_that_broke_off_is_asked_for_again_and_never_kept(tmp_path: Path, body: dict[str, Any]) -> None:
    with HostileServer(choice=body) as server:
        config = judge_config(server.url, tmp_path, max_retries=2)
        (failed,) = ask(config, 1)
        assert isinstance(failed, CallFailed) and "broken body (the last of 3 requests)" in str(failed)
        server.choice = {}
        (answer,) = ask(config, 1)
        assert json.loads(str(answer)) and len(server.requests) == 4


def test_after_a_retry_after_requests_go_at_the_rate_again(tmp_path: Path) -> None:
    async def run() -> list[float]:
        pace = Pace(judge_config("http://127.0.0.1:1", tmp_path, requests_per_minute=1200))
        pace.hold(0.3)
        started = time.monotonic()

        async def one() -> float:
            await pace.turn()
            return time.monotonic() - started

        return sorted(await asyncio.gather(*(one() for _ in range(4))))

    turns = asyncio.run(run())
    assert turns[0] >= 0.29
    assert all(after - before >= 0.045 for before, after in itertools.pairwise(turns)), turns


def test_one_clients_failure_is_not_anothers(tmp_path: Path) -> None:
    """Of two that ask the same at one time, the one whose key is refused leaves the other its own request."""

    async def run(refused: JudgeConfig, served: JudgeConfig) -> list[str | BaseException]:
        store = Store(refused.cache)
        clients = [JudgeClient(config, store) for config in (refused, served)]
        try:
            messages = pair_messages(*case(1), refused)
            return await asyncio.gather(*(client.ask(messages) for client in clients), return_exceptions=True)
        finally:
            for client in clients:
                await client.close()
            store.close()

    with HostileServer(status=401) as strict, HostileServer() as server:
        first, second = asyncio.run(run(judge_config(strict.url, tmp_path), judge_config(server.url, tmp_path)))
        assert isinstance(first, EndpointRefused) and isinstance(second, str)
        assert len(strict.requests) == len(server.requests) == 1
