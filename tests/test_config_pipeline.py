"""rayrl pipeline's configuration: presets merged, references resolved, mistakes named; what is skipped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from rayrl.config.load import ConfigError, dump, load, placeholders, presets, require_no_placeholders
from rayrl.config.pipeline import PipelineConfig, Stage
from rayrl.corpus.pieces import list_pieces
from rayrl.data.stage_folder import fingerprint
from rayrl.errors import UserError
from rayrl.stages.pipeline_record import Record, check_own

TWO = """\
output_dir: runs/two
seed: 5
stages:
  warmup:
    command: ppo
    preset: tiny
    steps: 2
    policy: {optimizer: {lr: 0.5}}
  ppo:
    preset: tiny
    seed: 9
    policy: {model: "${warmup}/policy"}
"""


@pytest.fixture
def two(tmp_path: Path) -> str:
    path = tmp_path / "two.yaml"
    path.write_text(TWO)
    return str(path)


def test_presets_merge_and_references_resolve(two: str) -> None:
    first, second = load(PipelineConfig, two).plan()
    assert (first.name, first.command, first.needs) == ("warmup", "ppo", ())
    assert (second.name, second.command, second.needs) == ("ppo", "ppo", ("warmup",))
    values = first.config.model_dump()
    assert values["output_dir"] == "runs/two/warmup" and values["seed"] == 5 and values["steps"] == 2
    assert values["policy"]["optimizer"]["lr"] == 0.5 and values["policy"]["model"] == "tiny-random", "merged in"
    values = second.config.model_dump()
    assert values["policy"]["model"] == "runs/two/warmup/policy" and values["seed"] == 9


def test_the_resolved_configuration_reads_back_the_same(two: str, tmp_path: Path) -> None:
    config = load(PipelineConfig, two)
    again = tmp_path / "again.yaml"
    again.write_text(dump(config))
    assert load(PipelineConfig, str(again)) == config
    assert "${" not in dump(config) and "preset" not in dump(config)


def test_overrides_reach_into_stages(two: str) -> None:
    config = load(PipelineConfig, two, ["stages.ppo.steps=7", "output_dir=elsewhere"])
    stage = config.plan()[1].config.model_dump()
    assert stage["steps"] == 7 and stage["policy"]["model"] == "elsewhere/warmup/policy"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("stages.ppo.polcy=1", "unknown key 'stages.ppo.polcy'; did you mean 'policy'?"),
        ("stages.ppo.policy.model=${later}/x", r"stages.ppo: \$\{later\} names no stage before it \(warmup\)"),
        ("stages.warmup.policy.model=${warmup}/x", r"\$\{warmup\} names no stage before it \(there is none\)"),
        ("stages.ppo.preset=tinny", "`rayrl ppo` has no preset 'tinny'; it has huatuogpt"),
        ("stages.ppo.command=pipeline", "no command 'pipeline'; set `command` to one of "),
        ("stages.ppo.output_dir=x", "stages.ppo.output_dir is runs/two/ppo in a pipeline"),
        ("stages.ppo.steps=0", "stages.ppo: steps must be greater than 0, got 0"),
        ("stages.BAD={}", "'BAD' can't name a stage"),
        ("stages={}", "name at least one stage"),
        ("stages.ppo=3", "stages.ppo must hold `key: value` pairs"),
    ],
)
def test_mistakes_are_named(two: str, change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(PipelineConfig, two, [change])


def test_what_comes_after_until_neither_runs_nor_must_be_filled_in(two: str) -> None:
    changes = ["stages.ppo.data.prompts=path/to/prompts.jsonl"]
    with pytest.raises(ConfigError, match=r"stages\.ppo\.data\.prompts: only placeholders so far"):
        require_no_placeholders(load(PipelineConfig, two, changes))
    config = load(PipelineConfig, two, [*changes, "until=warmup"])
    require_no_placeholders(config)
    assert [stage.name for stage in config.plan()] == ["warmup"]
    with pytest.raises(ConfigError, match=r"until: there is no stage 'sft' \(warmup, ppo\)"):
        load(PipelineConfig, two, ["until=sft"])


def run_whole(folder: Path, stages: list[Stage]) -> None:
    """What the pipeline does around its stages."""
    record = Record(folder, stages)
    record.refuse_stale()
    for stage in stages:
        if record.seconds(stage) is None:
            record.begin(stage)
            (folder / stage.name).mkdir(exist_ok=True)
            (folder / stage.name / "summary.json").write_text("{}")
            record.end(stage, 3.0)


def test_a_stage_is_done_until_its_configuration_or_what_it_reads_changes(two: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    stages = load(PipelineConfig, two).plan()
    assert [Record(folder, stages).seconds(stage) for stage in stages] == [None, None]
    run_whole(folder, stages)
    assert [Record(folder, stages).seconds(stage) for stage in stages] == [3.0, 3.0], "read back from pipeline.json"

    def again(*changes: str) -> list[float | None]:
        changed = load(PipelineConfig, two, changes).plan()
        return [Record(folder, changed).seconds(stage) for stage in changed]

    assert again("stages.ppo.steps=7") == [3.0, None]
    assert again("stages.warmup.steps=7") == [None, None], "the second reads the first"
    (folder / "ppo" / "summary.json").unlink()
    assert again() == [3.0, None], "its result is gone"


def test_what_was_made_from_an_earlier_run_is_named_before_anything_starts(two: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    stages = load(PipelineConfig, two).plan()
    run_whole(folder, stages)
    shutil.rmtree(folder / "warmup")
    assert [Record(folder, stages).seconds(stage) for stage in stages] == [None, None]
    with pytest.raises(UserError, match=f"ppo: made from an earlier run .* remove {folder / 'ppo'}"):
        Record(folder, stages).refuse_stale()
    shutil.rmtree(folder / "ppo")
    run_whole(folder, stages)
    assert [Record(folder, stages).seconds(stage) for stage in stages] == [3.0, 3.0]


def test_a_cut_stage_goes_on_and_what_reads_it_still_fits(two: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    stages = load(PipelineConfig, two).plan()
    run_whole(folder, stages[:1])
    record = Record(folder, stages)
    record.begin(stages[1])
    (folder / "ppo").mkdir()
    again = Record(folder, stages)
    again.refuse_stale()
    assert [again.seconds(stage) for stage in stages] == [3.0, None]
    run_whole(folder, stages)
    assert [Record(folder, stages).seconds(stage) for stage in stages] == [3.0, 3.0]


def test_a_data_file_that_changed_is_named(two: str, tmp_path: Path) -> None:
    folder, data = tmp_path / "run", tmp_path / "data.jsonl"
    folder.mkdir()
    data.write_text("1")
    stages = load(PipelineConfig, two).plan()
    run_whole(folder, stages)
    manifest = {"inputs": {str(data): fingerprint(data), str(folder / "warmup" / "policy"): "not looked at"}}
    (folder / "warmup" / "manifest.json").write_text(json.dumps(manifest))
    Record(folder, stages).refuse_stale()
    data.write_text("2")
    with pytest.raises(UserError, match=f"{data} has changed since warmup read it"):
        Record(folder, stages).refuse_stale()
    (folder / "warmup" / "manifest.json").rename(folder / "warmup" / "run.json")  # PPO's
    with pytest.raises(UserError, match=f"{data} has changed since warmup read it"):
        Record(folder, stages).refuse_stale()


def test_a_corpus_whose_sources_changed_is_named(tmp_path: Path) -> None:
    folder, data = tmp_path / "run", tmp_path / "texts"
    data.mkdir()
    (data / "a.txt").write_text("1")
    path = tmp_path / "pipeline.yaml"
    stages = {"corpus": {"sources": [{"name": "texts", "path": str(data)}]}}
    path.write_text(yaml.safe_dump({"output_dir": str(folder), "stages": stages}))
    plan = load(PipelineConfig, str(path)).plan()
    folder.mkdir()
    run_whole(folder, plan)
    (folder / "corpus" / "read").mkdir()
    manifest = {"inputs": {"sources": list_pieces(plan[0].config.sources).fingerprint()}}
    (folder / "corpus" / "read" / "manifest.json").write_text(json.dumps(manifest))
    Record(folder, plan).refuse_stale()
    (data / "b.txt").write_text("2")
    with pytest.raises(UserError, match=f"{data} has changed since corpus read it"):
        Record(folder, plan).refuse_stale()


def test_a_stage_that_trained_on_makes_what_read_it_stale(two: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    run_whole(folder, load(PipelineConfig, two).plan())
    longer = load(PipelineConfig, two, ["stages.warmup.steps=7"]).plan()
    with pytest.raises(UserError, match=f"ppo: made from an earlier run .* remove {folder / 'ppo'}"):
        run_whole(folder, longer)
    shutil.rmtree(folder / "ppo")
    before = json.loads((folder / "pipeline.json").read_text())["warmup"]["run"]
    run_whole(folder, longer)
    record = json.loads((folder / "pipeline.json").read_text())
    assert record["warmup"]["run"] != before and record["ppo"]["inputs"] == {"warmup": record["warmup"]["run"]}


def test_the_folder_to_remove_is_one_that_is_there(two: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    stages = load(PipelineConfig, two).plan()
    run_whole(folder, stages[:1])
    Record(folder, stages).begin(stages[1])
    (folder / "ppo.partial").mkdir()
    shutil.rmtree(folder / "warmup")
    with pytest.raises(UserError, match=f"remove {folder / 'ppo.partial'}$"):
        Record(folder, stages).refuse_stale()


def test_a_record_of_another_version_is_stale_and_no_error(two: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    stages = load(PipelineConfig, two).plan()
    (folder / "pipeline.json").write_text('{"warmup": {"seconds": 3.0}}')
    assert Record(folder, stages).seconds(stages[0]) is None
    run_whole(folder, stages)
    assert [Record(folder, stages).seconds(stage) for stage in stages] == [3.0, 3.0]


@pytest.mark.parametrize("folder", ["", "null"])
def test_the_folder_has_a_name(two: str, folder: str) -> None:
    with pytest.raises(ConfigError, match="output_dir"):
        load(PipelineConfig, two, [f"output_dir={folder}"])


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    check_own(tmp_path / "new")
    (tmp_path / ".lock").touch()
    check_own(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match="holds files but no pipeline"):
        check_own(tmp_path)


def test_entries_of_a_presets_list_are_set_by_name_and_number() -> None:
    changes = ["stages.sft.data.sources.doctor_qa.path=mine.jsonl", "stages.feedback.raters.0.judge.model=judge"]
    config = load(PipelineConfig, "huatuogpt", changes)
    sources = {source["name"]: source["path"] for source in config.stages["sft"]["data"]["sources"]}
    assert sources["doctor_qa"] == "mine.jsonl" and len(sources) == 5
    assert config.stages["feedback"]["raters"][0]["judge"]["model"] == "judge"
    assert config.stages["feedback"]["raters"][0]["judge"]["criteria"][0]["name"] == "accuracy"
    with pytest.raises(ConfigError, match="the preset's list has no entry 'doctor' "):
        load(PipelineConfig, "huatuogpt", ["stages.sft.data.sources.doctor.path=x"])


@pytest.mark.parametrize("preset", presets("pipeline"))
def test_every_placeholder_can_be_set_as_the_message_says(preset: str) -> None:
    config = load(PipelineConfig, preset)
    keys = placeholders(config)
    assert keys == [] or preset in ("doctorglm", "huatuogpt", "zhongjing")
    assert placeholders(load(PipelineConfig, preset, [f"{key}=there" for key in keys])) == []
