"""rayrl pipeline's configuration: presets merged, references resolved, mistakes named; what is skipped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayrl.config.load import ConfigError, dump, load, require_no_placeholders
from rayrl.config.pipeline import PipelineConfig
from rayrl.stages.pipeline import Record

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


def test_a_stage_is_done_until_its_configuration_or_what_it_reads_changes(two: str, tmp_path: Path) -> None:
    stages = load(PipelineConfig, two).plan()
    record = Record(tmp_path, stages)
    assert [record.seconds(stage) for stage in stages] == [None, None]
    for stage in stages:
        (tmp_path / stage.name).mkdir()
        (tmp_path / stage.name / "summary.json").write_text("{}")
        record.write(stage, 3.0)
    assert [Record(tmp_path, stages).seconds(stage) for stage in stages] == [3.0, 3.0], "read back from pipeline.json"

    def again(*changes: str) -> list[float | None]:
        changed = load(PipelineConfig, two, changes).plan()
        return [Record(tmp_path, changed).seconds(stage) for stage in changed]

    assert again("stages.ppo.steps=7") == [3.0, None]
    assert again("stages.warmup.steps=7") == [None, None], "the second reads the first"
    (tmp_path / "warmup" / "summary.json").unlink()
    assert again() == [None, 3.0], "its result is gone"
    assert set(json.loads((tmp_path / "pipeline.json").read_text())) == {"warmup", "ppo"}
