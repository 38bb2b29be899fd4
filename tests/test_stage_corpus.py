"""`rayrl corpus` as a command: every stage on real Ray Data, a model over HTTP, bad input, kills."""

import json
import os
import random
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest
import yaml
from corpus_cases import (
    STAGES,
    kill_a_worker,
    kill_driver,
    model_endpoint,
    published,
    start,
    wait_for_stage,
    write_config,
    write_corpus,
)
from run_cases import leaves_nothing

from cluster.session import connect
from rayrl.config.sources import SourceConfig
from rayrl.data.readers import read_conversations
from rayrl.data.storage import Place


class Whole(NamedTuple):
    """An unbroken run: its folder, and its configuration."""

    output: Path
    config: Path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    """All runs share a Ray, which outlives their drivers; scripts/soak_corpus.py kills runs that start their own."""
    root = tmp_path_factory.mktemp("corpus")
    write_corpus(root / "input", number=120)
    with model_endpoint() as endpoint, connect("local", num_cpus=2, object_store_mb=100) as session:
        ray = session.address
        write_config(root / "config.yaml", root / "input", root / "whole", endpoint, root / "whole.sqlite", ray)
        run(root / "config.yaml")
        yield Whole(root / "whole", root / "config.yaml")


def run(config: Path, *more: str, code: int = 0) -> str:
    """What the command said, nothing of it being left."""
    with leaves_nothing() as marks:
        process = start(config, marks, *more)
        _, said = process.communicate(timeout=300)
    assert process.returncode == code, said
    return said


def counts(output: Path, stage: str) -> dict:
    return json.loads((output / stage / "manifest.json").read_text())["counts"]


def test_every_stage_counts_what_it_took_and_gave(whole: Whole) -> None:
    before = None
    for stage in STAGES:
        count = counts(whole.output, stage)
        rows = sum(pq.read_metadata(path).num_rows for path in (whole.output / stage).glob("*.parquet"))
        assert count["out"] == rows > 0
        assert count["in"] - sum(count["dropped"].values()) == count["out"] or stage == "segment"
        assert before is None or count["in"] == before
        assert sum(row["rows"] for row in count["sizes"]["out"]) == rows
        assert not (whole.output / stage / ".work").exists()
        before = rows
    assert counts(whole.output, "clean")["dropped"]["rule: an advert's contact and price"] > 0
    assert counts(whole.output, "dedup")["dropped"]["like another text"] > 0
    assert counts(whole.output, "decontaminate")["notes"]["in exam"] > 0
    assert counts(whole.output, "check")["dropped"]["the answer departs from its text"] > 0


def test_a_model_labels_for_the_detector_of_what_overlap_doesnt_measure(whole: Whole) -> None:
    labels = [json.loads(line) for line in (whole.output / "check" / "labels.jsonl").read_text("utf-8").splitlines()]
    assert {row["label"] for row in labels} == {"keeps", "departs"}
    assert all(row["text"].isascii() or "\u2019" in row["text"] for row in labels), "Chinese answers aren't asked about"
    report = json.loads((whole.output / "check" / "detector.json").read_text())
    kinds = [row["label"] for row in labels]
    assert report["measured"] == {"good": kinds.count("keeps"), "bad": kinds.count("departs")}
    rows = [row for path in (whole.output / "check").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert all((row["keeps"] is None) == (row["target"] == "zh") for row in rows)
    assert min(row["keeps"] for row in rows if row["keeps"] is not None) >= report["threshold"]


def test_bad_input_is_set_aside_and_told(whole: Whole) -> None:
    rejected = [json.loads(line) for line in (whole.output / "read" / "rejected.jsonl").read_text().splitlines()]
    assert [(Path(row["file"]).name, row["reason"].split(" (")[0]) for row in rejected] == [
        ("a.jsonl", "not JSON"),
        ("b.jsonl.gz", "the file is cut off or damaged"),
    ]
    assert counts(whole.output, "read")["notes"]["rejected"] == 2


def test_fine_tuning_reads_what_comes_out(whole: Whole) -> None:
    read = read_conversations(SourceConfig(name="corpus", path=str(whole.output / "check")))
    assert len(read.rows) == counts(whole.output, "check")["out"]
    assert not read.rejected
    assert {row.origin.form for row in read.rows} == {"instruction"}
    assert all(row.messages[0]["content"].endswith(("？", "?")) for row in read.rows)


def test_the_report_shows_the_funnel(whole: Whole) -> None:
    page = (whole.output / "report.html").read_text(encoding="utf-8")
    for words in ("too few domain terms", "like another text", "By language", "consultation", "groups of 2"):
        assert words in page
    assert "<script" not in page
    summary = json.loads((whole.output / "summary.json").read_text())
    assert list(summary["stages"]) == list(STAGES)


def test_what_is_done_isnt_done_again_and_other_settings_are_refused(whole: Whole) -> None:
    before = published(whole.output)
    said = run(whole.config)
    assert "starting Ray" not in said and "check is done" in said
    refused = run(whole.config, "clean.mask=false", code=2)
    assert "clean was made with another configuration: `--from clean`" in refused
    assert "no stage" in run(whole.config, "--only", "check", "check=null", code=2)
    assert published(whole.output) == before


def test_a_stage_is_made_anew_alone_or_with_those_after_it(whole: Whole, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(whole.output, output)
    to = f"output_dir={output}"
    said = run(whole.config, to, "dedup.near=0.9", "--from", "dedup", "unify=null", "check=null")
    assert "clean is done" in said and "dedup:" in said and "decontaminate:" in said
    assert counts(output, "dedup")["out"] > counts(whole.output, "dedup")["out"]
    alone = run(whole.config, to, "dedup.near=0.8", "--only", "dedup", "unify=null", "check=null")
    assert "dedup:" in alone and "decontaminate" not in alone
    stale = run(whole.config, to, "dedup.near=0.8", "unify=null", "check=null", code=2)
    assert "decontaminate was made with another dedup" in stale


def test_a_refusal_leaves_everything_as_it_was(whole: Whole) -> None:
    before, config = published(whole.output), (whole.output / "config.yaml").read_bytes()
    for words, said in (
        (("clean.mask=false", "--from", "dedup"), "clean was made with another configuration"),
        (("--only", "dedup", "--from", "clean"), "give one of the two"),
        (("--from", "clean", f"clean.quality.labels={whole.config}"), "expected text and label"),
        (("--from", "unify", "unify.endpoint.api_key_env=NO_SUCH_KEY"), "unify.endpoint.api_key_env"),
        (("check.least_overlap.zh-enn=0.2",), "isn't a pair of languages"),
    ):
        assert said in run(whole.config, *words, code=2)
    assert "clean is done" in run(whole.config, "unify.endpoint.api_key_env=NO_SUCH_KEY"), "nobody is asked any more"
    assert "dedup is done" in run(whole.config, "unify.endpoint.api_key_env=NO_SUCH_KEY", "--only", "dedup")
    run(whole.config)
    assert published(whole.output) == before and (whole.output / "config.yaml").read_bytes() == config
    assert (whole.output / "report.html").is_file() and (whole.output / "summary.json").is_file()


def test_examples_of_what_was_dropped_hold_no_telephone(whole: Whole) -> None:
    shown = [
        example["text"]
        for stage in STAGES
        for reason in counts(whole.output, stage)["reasons"].values()
        for example in reason["examples"]
    ]
    assert any("[PHONE]" in text for text in shown)
    assert not any(re.search(r"1[3-9]\d{9}", text) for text in shown)


def test_an_engine_of_the_run_s_own_words_questions_and_answers(whole: Whole, tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="needs a vLLM engine (pip install 'rayrl[cpu]')")
    output = tmp_path / "out"
    shutil.copytree(whole.output, output)
    engine = "{model: tiny-random, rollout: {max_prompt_tokens: 1400, max_new_tokens: 600, dtype: fp32, engines: %d}}"
    settings = [f"output_dir={output}", "check=null", "unify.endpoint=null", "unify.tries=1"]
    settings += ["unify.question_from_chars=60", "unify.answer_from_chars=60", "unify.max_question_chars=5000"]
    run(whole.config, *settings, f"unify.engine={engine % 1}", "--only", "unify")
    count = counts(output, "unify")
    assert count["out"] > 0 and count["in"] - sum(count["dropped"].values()) == count["out"]
    rows = [row for path in (output / "unify").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert all(message["content"].strip() for row in rows for message in row["messages"])
    assert len({row["messages"][0]["content"] for row in rows}) > 1
    again = run(whole.config, *settings, f"unify.engine={engine % 2}", "--only", "unify")
    assert "unify is done" in again, "how many engines there are changes nothing"


def test_a_corpus_in_an_object_store_has_the_same_bytes(whole: Whole, store: str) -> None:
    root = Place.of(f"s3://bucket/corpus?{store}")
    to = (f"output_dir={root.uri}", "unify=null", "check=null", "ray.address=local")  # whose workers have the keys
    assert "decontaminate: " in run(whole.config, *to)
    stages = STAGES[:6]
    for stage in stages:
        found = {Place(entry.uri).name: Place(entry.uri).read_bytes() for entry in (root / stage).files()}
        wanted = {path.name: path.read_bytes() for path in (whole.output / stage).glob("*.parquet")}
        assert {name: raw for name, raw in found.items() if name.endswith(".parquet")} == wanted
        assert "manifest.json" in found
    assert (root / "report.html").is_file()
    said = run(whole.config, *to)
    assert all(f"{stage} is done" in said for stage in stages)


def test_killed_drivers_and_workers_change_no_byte(whole: Whole, tmp_path: Path) -> None:
    """In every stage a worker and the driver die at a random moment, by the seed; the same command goes on."""
    rng = random.Random(0)
    output, config = tmp_path / "killed", tmp_path / "config.yaml"
    values = yaml.safe_load(whole.config.read_text(encoding="utf-8"))
    values["output_dir"] = str(output)
    values["unify"]["endpoint"]["cache"] = str(tmp_path / "killed.sqlite")
    config.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    killed: dict[str, list[str]] = {stage: [] for stage in STAGES}
    for stage in STAGES:
        if (output / stage / "manifest.json").exists():
            continue  # the run before was quicker than its death
        process = start(config, {})
        assert wait_for_stage(process, output / stage)
        for _ in range(30):
            time.sleep(rng.uniform(0.0, 0.1))
            name = kill_a_worker(os.getpid(), rng)
            if name is not None:
                killed[stage].append(name)
                break
        time.sleep(rng.uniform(0.0, 0.1))
        unfinished = not (output / stage / "manifest.json").exists()
        kill_driver(process)
        killed[stage] += ["driver"] if unfinished else []
    _, said = start(config, {}).communicate(timeout=120)
    assert published(output) == published(whole.output), said
    assert sum("driver" in names for names in killed.values()) >= 3, killed
    assert sum(any(name != "driver" for name in names) for names in killed.values()) >= 3, killed


def test_what_cant_be_used_is_told_in_a_sentence(whole: Whole, tmp_path: Path) -> None:
    to = f"output_dir={tmp_path / 'out'}"
    assert "isn't there" in run(whole.config, to, f"sources.0.path={tmp_path / 'nothing'}", code=2)
    strict = run(whole.config, to, "max_rejected_fraction=0.0", code=2)
    assert "2 of " in strict and "max_rejected_fraction" in strict and "rejected.jsonl" in strict
    missing = run(whole.config, to, "extract.lexicons.0.path=/nowhere.txt", "--from", "read", code=2)
    assert "/nowhere.txt isn't there" in missing and "Traceback" not in missing
