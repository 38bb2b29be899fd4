"""One-stage training: the plan of a run, its sources' shares against the closed form, packing on real text."""

import json
from pathlib import Path

import numpy as np
import pytest
from data_cases import write_examples

from rayrl.config.load import ConfigError, load
from rayrl.config.sft import SFTConfig
from rayrl.data.chat_masks import Encoded
from rayrl.data.examples import Examples
from rayrl.evaluation.sft_report import sft_page
from rayrl.stages.sft_one_stage import shares_over_steps
from rayrl.stages.sft_worker import plan_of

SHARED = Path(__file__).parents[2] / "shared" / "data"
SOURCES = [
    {"name": "web", "path": "web.jsonl", "weight": 32},
    {"name": "books", "path": "books.jsonl", "weight": 4},
    {"name": "sft", "path": "sft.jsonl", "weight": 1, "epochs": 3},
]


def config(tmp_path: Path, **more: object) -> SFTConfig:
    values = {
        "mode": "one_stage",
        "batch_size": 4,
        "model": {"model": "tiny-random"},
        "data": {"sources": SOURCES, "max_tokens": 256},
        **more,
    }
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(values))
    return load(SFTConfig, str(file))


def examples(folder: Path, sizes: tuple[int, ...], seed: int = 0) -> Examples:
    """Of random lengths, longer ones in later sources; the second half of each is counted."""
    rng = np.random.default_rng(seed)
    made = []
    for source, size in enumerate(sizes):
        lengths = rng.integers(10 + 20 * source, 60 + 40 * source, size)
        made.append([Encoded(np.zeros(n, np.int32), np.arange(n) >= n // 2) for n in lengths])
    return write_examples(folder, made)


def test_every_example_is_trained_on_as_often_as_its_source_says(tmp_path: Path) -> None:
    data = examples(tmp_path, (40, 60, 20))
    plan = plan_of(config(tmp_path), data)
    drawn = np.bincount([i for row in plan.rows() for i in row], minlength=120)
    assert drawn.tolist() == [1] * 100 + [3] * 20
    assert max(sum(data.lengths[i] for i in row) for row in plan.rows()) <= 256


def test_a_run_that_goes_on_sees_the_same_rows(tmp_path: Path) -> None:
    data = examples(tmp_path, (40, 60, 20))
    first, again = plan_of(config(tmp_path), data), plan_of(config(tmp_path), data)
    assert [again.step(step) for step in range(3, again.steps)] == [first.step(step) for step in range(3, first.steps)]
    assert plan_of(config(tmp_path, seed=1), data).rows() != first.rows()
    assert plan_of(config(tmp_path, max_steps=2), data).rows() == first.rows(0, 8)


def test_shares_over_the_steps_match_the_closed_form(tmp_path: Path) -> None:
    data = examples(tmp_path, (4000, 6000, 1500))
    given = config(tmp_path, batch_size=32)
    plan = plan_of(given, data)
    expected = shares_over_steps(given, data, plan.steps)
    counted = data.counted
    seen = np.zeros((3, plan.steps))
    for step in range(plan.steps):
        for row in plan.step(step):
            for i in row:
                seen[data.sources[i], step] += counted[i]
    seen /= seen.sum(axis=0, keepdims=True)
    wanted = np.array([np.interp(np.arange(plan.steps) + 0.5, expected["step"], expected[s["name"]]) for s in SOURCES])
    blocks = list(np.array_split(np.arange(plan.steps), 12))
    gaps = [np.abs(seen[:, part].mean(axis=1) - wanted[:, part].mean(axis=1)).max() for part in blocks]
    assert max(gaps) < 0.06, gaps
    assert seen[0, : plan.steps // 20].mean() > 0.7 and seen[2, -plan.steps // 20 :].mean() > 0.5


def test_the_report_shows_both_shares(tmp_path: Path) -> None:
    shares = {"step": [0.5, 1.5], "web": [0.8, 0.1], "sft": [0.2, 0.9]}
    summary = {
        "objective": "chat", "steps": 2, "planned_steps": 2, "best_step": 2, "stopped": None,
        "validation_loss": {"before": None, "after": None}, "probe_accuracy": {"before": None, "after": None},
        "tokens_per_second": None, "examples": {"train": {"web": 3, "sft": 1}, "validation": {}}, "rows": 4,
        "dropped": {}, "conversations_cut": 0, "turns_cut": 0, "expected_shares": shares,
    }  # fmt: skip
    page = sft_page(summary, [{"step": 0, "share/web": 0.75, "share/sft": 0.25}])
    (plot,) = [plot for _, plots in page.sections for plot in plots if plot.title == "Sources"]
    assert [panel.label for panel in plot.panels] == ["share", "expected"]
    assert {series.name: series.y for series in plot.panels[1].series} == {"web": [0.8, 0.1], "sft": [0.2, 0.9]}


def test_settings_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set `epochs` of each source instead"):
        config(tmp_path, epochs=2)
    with pytest.raises(ConfigError, match=r"data\.sources\.sft\.epochs: only for mode one_stage"):
        config(tmp_path, mode="weighted")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real data of ../shared/data")
def test_packing_wastes_little_at_length_4096_on_real_text(tmp_path: Path) -> None:
    """Lengths of the real texts in a byte-level tokenizer's tokens, about three characters of a word each."""
    made: list[list[Encoded]] = [[], [], []]
    for source, name in enumerate(("corpus_raw.jsonl", "dialogues_multi.jsonl", "qa_single.jsonl")):
        for line in (SHARED / name).read_text(encoding="utf-8").split("\n"):
            if line:
                size = min(4096, max(2, len(json.dumps(json.loads(line), ensure_ascii=False).encode()) // 3))
                made[source].append(Encoded(np.zeros(size, np.int32), np.ones(size, bool)))
    data = write_examples(tmp_path, made)
    plan = plan_of(config(tmp_path, data={"sources": SOURCES, "max_tokens": 4096}), data)
    tokens = sum(int(data.lengths[i]) for row in plan.rows() for i in row)
    wasted = 1 - tokens / (4096 * plan.num_rows)
    print(f"{wasted:.2%} of {plan.num_rows} rows")
    assert wasted < 0.02
