"""`rayrl feedback` end to end: candidates, rankings and a judge behind HTTP in; one store out."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster.session import connect
from rayrl.config.feedback import FeedbackConfig
from rayrl.config.load import ConfigError, dump, load, presets
from rayrl.data.candidates import write_candidates
from rayrl.data.preferences import read_preferences, write_preferences
from rayrl.data.stage_folder import MANIFEST
from rayrl.errors import RunError, UserError
from rayrl.feedback.rubric_server import judge_prompt
from rayrl.stages.feedback import main
from rayrl.types import Candidates, Comparison, Origin, PromptRow

ASK = "How long have you had the pain, and did you fall on the knee?"
REST = "Rest your knee and put ice on it for a few days."
BAD = "knee knee knee knee knee knee knee knee"
KNEE = PromptRow(
    "knee", [{"role": "user", "content": "My knee hurts."}], ASK, {"missing_info": ["duration"], "department": "bones"}
)
COUGH = PromptRow(
    "cough",
    [{"role": "user", "content": "I have had a dry cough for three weeks, no fever, I don't smoke. What is it?"}],
    "It may come from the airways after a cold. Have your chest listened to this week.",
    {"missing_info": [], "department": "lungs"},
)
RUBRIC = {"kind": "rubric", "rubric": {"rules": [{"rule": "clarifying_question"}, {"rule": "repetition"}]}}


def candidates(folder: Path) -> str:
    folder.mkdir()
    rows = [
        Candidates(KNEE, [REST, ASK, BAD, ASK], "m"),
        Candidates(COUGH, ["It may come from the airways. See a doctor this week.", BAD], "m"),
    ]
    write_candidates(folder / "candidates-00000.jsonl", rows)
    return str(folder)


def rankings(path: Path, knee: list[int], cough: list[int], **keys: Any) -> dict[str, Any]:
    with path.open("w", encoding="utf-8") as out:
        for row, answers, ranks in ((KNEE, [REST, ASK, BAD], knee), (COUGH, ["Wait.", "Smoke less."], cough)):
            value = {"id": row.id, "messages": row.messages, "fields": row.fields, "answers": answers, "ranks": ranks}
            out.write(json.dumps({**value, **(keys if row is COUGH else {})}) + "\n")
    return {"name": path.stem, "path": str(path)}


def stored(path: Path) -> dict[str, Any]:
    row = Comparison("old", KNEE, REST, BAD, "a", None, "file", {}, None, Origin("x", "real", "instruction", "x", 1))
    write_preferences(path, [row])
    return {"name": "stored", "path": str(path)}


def configured(tmp_path: Path, raters: list[Any], name: str = "out", **keys: Any) -> str:
    config = FeedbackConfig.model_validate({"raters": raters, "output_dir": str(tmp_path / name), **keys})
    path = tmp_path / f"{name}.yaml"
    path.write_text(dump(config), "utf-8")
    return str(path)


def summary(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "summary.json").read_text("utf-8"))
    return value


def test_rubric_annotators_and_files_join_one_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    human = {
        "rankings": [
            rankings(tmp_path / "anna.jsonl", [2, 1, 3], [1, 1], all_wrong=True),
            rankings(tmp_path / "ben.jsonl", [3, 2, 1], [1, 1], all_wrong=True),
        ]
    }
    files = {"comparisons": [stored(tmp_path / "stored.parquet")]}
    raters = [RUBRIC, {"kind": "human", "human": human}, {"kind": "file", "file": files}]
    path = configured(tmp_path, raters, candidates=candidates(tmp_path / "sampled"))
    main(path)
    out = tmp_path / "out"
    assert sorted(file.name for file in out.iterdir()) == [
        "config.yaml", "manifest.json", "preferences.parquet", "rejected.jsonl", "set_aside.jsonl", "summary.json",
        "third.jsonl",
    ]  # fmt: skip
    rows = {row.id: row for row in read_preferences(out)}
    # Knee: five pairs of differing texts; asking is best and repeating worst. Cough: one pair.
    rubric = {name: row.verdict for name, row in rows.items() if row.rater == "rubric"}
    assert rubric == {
        "knee/0-1/rubric": "b", "knee/0-2/rubric": "a", "knee/0-3/rubric": "b", "knee/1-2/rubric": "a",
        "knee/2-3/rubric": "b", "cough/0-1/rubric": "a",
    }  # fmt: skip
    people = {name: row for name, row in rows.items() if row.rater == "human:anna+ben"}
    # Two of three pairs apart on the knee: for the third. The cough's two answers tie, and both lose to an admission.
    assert [row.verdict for row in people.values()] == ["set_aside"] * 3 + ["tie", "a", "a"]
    assert rows["old"].rater == "file" and rows["old"].answer_b == BAD
    third = [json.loads(line) for line in (out / "third.jsonl").read_text("utf-8").splitlines()]
    assert [row["id"] for row in third] == ["knee"] and third[0]["answers"] == [REST, ASK, BAD]
    aside = [json.loads(line) for line in (out / "set_aside.jsonl").read_text("utf-8").splitlines()]
    assert len(aside) == 3 and "annotators disagree by 0.67" in aside[0]["reason"]
    told = summary(out)
    assert told["pairs"] == 6 and told["pairs_of_one_text"] == 1 and told["human"]["for_third"] == 1
    assert list(told["human"]["agreement"]) == ["all", "bones", "lungs"]
    assert told["raters"]["rubric"]["rows"] == 6 and told["headline"].startswith("13 comparisons by 3 raters, 10 with")
    assert [two["raters"] for two in told["rater_agreement"]] == [["file", "rubric"]]
    counts = json.loads((out / MANIFEST).read_text(encoding="utf-8"))["counts"]
    assert counts == {"in": 7, "out": 13, "dropped": {"pairs of answers with one text": 1}}
    printed = capsys.readouterr().out
    assert "1 items need a third annotator" in printed and REST not in printed and "My knee" not in printed

    before = (out / "preferences.parquet").stat().st_mtime_ns
    main(path)
    assert "nothing to rate" in capsys.readouterr().out
    assert (out / "preferences.parquet").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="another configuration"):
        main(configured(tmp_path, raters, candidates=str(tmp_path / "sampled"), seed=1))

    # The third ranks a copy; his order decides.
    ranked = tmp_path / "third.jsonl"
    ranked.write_text(json.dumps({**third[0], "ranks": [2, 1, 3]}) + "\n", "utf-8")
    human["rankings"].append({"name": "expert", "path": str(ranked)})
    main(configured(tmp_path, [{"kind": "human", "human": human}], "again"))
    decided = [row for row in read_preferences(tmp_path / "again") if row.rater == "human:third"]
    assert [row.verdict for row in decided] == ["b", "a", "a"] and decided[0].scores["ranks"]["ben"] == [3, 2]
    assert (tmp_path / "again" / "third.jsonl").read_text("utf-8") == ""


def test_bad_input_is_said_and_nothing_is_written(tmp_path: Path) -> None:
    sampled = tmp_path / "sampled"
    candidates(sampled)
    with (sampled / "candidates-00000.jsonl").open("a") as out:
        out.write("{\n")
    with pytest.raises(UserError, match=r"1 of 3 rows were rejected, more than the 5\.0% of max_rejected_fraction"):
        main(configured(tmp_path, [RUBRIC], candidates=str(sampled)))
    assert not list(tmp_path.glob("out*/"))
    main(configured(tmp_path, [RUBRIC], candidates=str(sampled), max_rejected_fraction=0.5))
    (bad,) = (tmp_path / "out" / "rejected.jsonl").read_text("utf-8").splitlines()
    assert json.loads(bad)["line"] == 3 and "not JSON" in json.loads(bad)["reason"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"raters": [{"kind": "rubric"}]}, "candidates: the judge and the rubric need sampled answers"),
        ({"raters": [{"kind": "human"}]}, "needs the section 'human'"),
        ({"raters": [{**RUBRIC, "judge": {}}], "candidates": "c"}, "doesn't take the section 'judge'"),
        ({"raters": [RUBRIC, RUBRIC], "candidates": "c"}, "two of kind 'rubric'"),
        ({"raters": [{"kind": "judge", "judge": {}}] * 2, "candidates": "c"}, "two judges of one model"),
        ({"raters": [{"kind": "file", "file": {"comparisons": []}}]}, "at least 1 item"),
    ],
)
def test_a_configuration_that_cant_work_is_refused(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps(values), "utf-8")
    with pytest.raises(ConfigError, match=said):
        load(FeedbackConfig, str(path))


def test_every_preset_is_valid() -> None:
    assert set(presets("feedback")) == {"tiny", "huatuogpt", "zhongjing"}
    for name in presets("feedback"):
        load(FeedbackConfig, name)


def test_the_documentations_examples_work(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "feedback.md").read_text("utf-8")
    path = tmp_path / "doc.yaml"
    path.write_text(text.split("```yaml\n")[1].split("```")[0], "utf-8")
    config = load(FeedbackConfig, str(path), ["raters.0.judge.budget.calls=7"])
    assert config.raters[0].judge is not None and config.raters[0].judge.budget.calls == 7
    row = tmp_path / "annotator-1.jsonl"
    row.write_text(" ".join(text.split("```json\n")[1].split("```")[0].splitlines()), "utf-8")
    human = {"rankings": [{"name": "annotator-1", "path": str(row)}], "min_annotators": 1}
    main(configured(tmp_path, [{"kind": "human", "human": human}]))
    (found,) = read_preferences(tmp_path / "out")
    assert found.id == "en-7/0-1/human:annotator-1" and found.verdict == "b" and found.margin == 1


class Judge(ThreadingHTTPServer):
    """The local rubric behind a log; refuses every request after `refuse_after`, or favours what is shown first."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answered: list[str] = []
        self.refuse_after: int | None = None
        self.favours_first = False
        self.status = 200
        self.lock = threading.Lock()

    @property
    def rater(self) -> dict[str, Any]:
        """A rater's configuration; one request at a time, so that the cut comes where it is planned."""
        return {"endpoint": f"http://127.0.0.1:{self.server_port}/v1", "concurrency": 1, "backoff_s": 0.05}


class _Handler(BaseHTTPRequestHandler):
    server: Judge

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        with self.server.lock:
            refused = self.server.refuse_after is not None and len(self.server.answered) >= self.server.refuse_after
            if not refused:
                self.server.answered.append(body)
        messages = json.loads(body)["messages"]
        text = json.dumps({"A": 9, "B": 2}) if self.server.favours_first else judge_prompt(messages)
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        used = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        reply = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": used}
        answer = json.dumps({"error": {"message": "no"}} if refused else reply).encode()
        self.send_response(401 if refused else self.server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    with connect("local", num_cpus=2, object_store_mb=100):
        yield


@pytest.fixture
def judge() -> Iterator[Judge]:
    server = Judge()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_local_judge_rates_beside_rubric_and_annotators(session: None, tmp_path: Path) -> None:
    human = {"rankings": [rankings(tmp_path / "anna.jsonl", [2, 1, 3], [1, 2])], "min_annotators": 1}
    judged = {"kind": "judge", "judge": {"cache": str(tmp_path / "judge.sqlite")}}
    raters = [judged, RUBRIC, {"kind": "human", "human": human}]
    main(configured(tmp_path, raters, candidates=candidates(tmp_path / "sampled")))
    rows = read_preferences(tmp_path / "out")
    said = {row.id: row for row in rows if row.rater == "judge:rubric"}
    assert [name.removesuffix("/judge:rubric") for name in said] == [
        "knee/0-1", "knee/0-2", "knee/0-3", "knee/1-2", "knee/2-3", "cough/0-1",
    ]  # fmt: skip
    assert [rows.index(row) for row in said.values()] == list(range(6))
    first = said["knee/0-1/judge:rubric"]
    assert first.verdict == "b" and first.margin is not None and first.margin > 1
    assert first.scores["ab"][0] < first.scores["ab"][1] and first.scores["ba"][0] < first.scores["ba"][1]
    told = summary(tmp_path / "out")
    assert told["raters"]["judge:rubric"]["first_shown_wins"] == 0
    assert told["raters"]["judge:rubric"]["inconsistent_share"] == 0
    alike = {tuple(two["raters"]): two for two in told["rater_agreement"]}
    assert alike[("human:anna", "judge:rubric")]["pairs"] == 3
    assert alike[("human:anna", "judge:rubric")]["same_verdicts"] == 1


def test_a_cut_run_goes_on_without_asking_again(session: None, judge: Judge, tmp_path: Path) -> None:
    rater = {**judge.rater, "cache": str(tmp_path / "judge.sqlite")}
    path = configured(tmp_path, [{"kind": "judge", "judge": rater}], candidates=candidates(tmp_path / "sampled"))
    judge.refuse_after = 5
    with pytest.raises(RunError, match="401"):
        main(path)
    assert not (tmp_path / "out").exists() and len(judge.answered) == 5
    judge.refuse_after = None
    main(path)
    # Six pairs in two orders, but the knee's five pairs hold three different ones: an answer came twice.
    assert len(judge.answered) == len(set(judge.answered)) == 8
    rows = read_preferences(tmp_path / "out")
    assert [row.verdict for row in rows] == ["b", "a", "b", "a", "b", "a"]


def test_a_judge_that_never_answers_is_no_result(session: None, judge: Judge, tmp_path: Path) -> None:
    rater = {**judge.rater, "cache": str(tmp_path / "judge.sqlite"), "max_retries": 0}
    judge.status = 500
    path = configured(tmp_path, [{"kind": "judge", "judge": rater}], candidates=candidates(tmp_path / "sampled"))
    with pytest.raises(RunError, match=r"judge:rubric: none of 6 pairs has a verdict \(.*HTTP 500"):
        main(path)
    assert not (tmp_path / "out").exists()
    assert len((tmp_path / "out.partial" / "set_aside.jsonl").read_text("utf-8").splitlines()) == 6
    judge.status = 200
    main(path)
    assert {row.verdict for row in read_preferences(tmp_path / "out")} == {"a", "b"}


def test_a_spent_budget_sets_pairs_aside_and_a_larger_one_pays_for_the_rest_only(
    session: None, judge: Judge, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rater = {**judge.rater, "cache": str(tmp_path / "judge.sqlite"), "budget": {"calls": 6}}
    sampled = candidates(tmp_path / "sampled")
    main(configured(tmp_path, [{"kind": "judge", "judge": rater}], candidates=sampled))
    rows = read_preferences(tmp_path / "out")
    left = [row for row in rows if row.verdict == "set_aside"]
    assert len(rows) == 6 and 1 <= len(left) <= 4 and len(judge.answered) == 6
    assert all(row.reason is not None and "judge.budget.calls" in row.reason for row in left)
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{len(left)} pairs have no verdict of judge:rubric: its budget is spent" in printed
    assert "raise raters.0.judge.budget and set another output_dir" in printed
    more = {**rater, "budget": {"calls": 8}}
    main(configured(tmp_path, [{"kind": "judge", "judge": more}], "more", candidates=sampled))
    assert {row.verdict for row in read_preferences(tmp_path / "more")} == {"a", "b"}
    assert len(judge.answered) == len(set(judge.answered)) == 8


def test_a_judge_that_favours_the_first_is_found_out(session: None, judge: Judge, tmp_path: Path) -> None:
    judge.favours_first = True
    rater = {**judge.rater, "cache": str(tmp_path / "judge.sqlite")}
    main(configured(tmp_path, [{"kind": "judge", "judge": rater}], candidates=candidates(tmp_path / "sampled")))
    assert {row.verdict for row in read_preferences(tmp_path / "out")} == {"inconsistent"}
    found = summary(tmp_path / "out")["raters"]["judge:rubric"]
    assert found["inconsistent_share"] == found["first_shown_wins"] == 1 and found["second_shown_wins"] == 0
