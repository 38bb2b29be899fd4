"""The report of a small made-up run, as HTML and in a real browser."""

import dataclasses
import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from page_cases import Page, chromium

from rayrl.evaluation.figures import score_plots
from rayrl.evaluation.plots import MAX_POINTS, Panel, Plot, Series, draw, moving_mean
from rayrl.evaluation.report import evenly, render_report, write_report
from rayrl.evaluation.summary import build_summary, write_summary
from rayrl.tracking.recoveries import Recovery, RecoveryLog
from rayrl.tracking.rows import read_rows, read_samples, replace_rows, sample_row, write_samples
from rayrl.tracking.storage_wait import Storage
from rayrl.types import Sample

ATTACK = "<script>alert(1)</script><img src=x onerror=\"document.title='owned'\">"
CASES = [
    ("I've had a dull headache for a while.", "How long has it lasted, and is there fever or stiffness of the neck?"),
    ("我最近总是胃疼，吃完饭更厉害。", "疼了多久了？有没有黑便、反酸或者体重下降？"),
    ("My knee has hurt for two weeks since a fall; no swelling, no fever.", "Rest it, ice it, and see me in a week."),
    ("孩子发烧两天，体温38.5度，精神还好，没有皮疹。", "多喝水，体温超过38.5度可以用退烧药，三天不退来医院。"),
]
BLAND = ["You should rest and drink water.", "请多休息，注意饮食。"]
ASKING = ["How long have you had this? Is there any fever?", "请问持续多久了？有没有发烧？"]
COMPLETE = {f"{'en' if i % 2 == 0 else 'zh'}-{i:03d}": i % 4 >= 2 for i in range(40)}


def asks(text: str) -> bool:
    return "?" in text or "？" in text


def evaluation(step: int, asking: float, rng: random.Random) -> list[Sample]:
    samples = []
    for i, prompt_id in enumerate(COMPLETE):
        question, reference = CASES[i % 4]
        messages: list[Any] = [{"role": "user", "content": question}]
        if i % 8 == 1:
            messages = [
                {"role": "system", "content": "You are a careful doctor."},
                {"role": "user", "content": "医生您好。"},
                {"role": "assistant", "content": "您好，请问有什么不舒服？"},
                *messages,
            ]
        for _ in range(2):
            asked = rng.random() < (0.1 if COMPLETE[prompt_id] else asking)
            text = (ASKING if asked else BLAND)[i % 2] + (f" {ATTACK}" if i == 0 else "")
            raw = {
                "questions": float(asked != COMPLETE[prompt_id]),
                "overlap": rng.uniform(0.1, 0.3),
                "presentation": 0.6,
            }
            scores: dict[str, float | None] = {**raw, "presentation": None if rng.random() < 0.05 else 0.6}
            mixed = 0.6 * raw["questions"] + 0.4 * raw["overlap"]
            samples.append(Sample(step, "heldout", prompt_id, messages, text, reference, scores, raw, mixed, 20 + i))
    return samples


def metric_rows(steps: int, rng: random.Random) -> list[dict[str, Any]]:
    rows = []
    for step in range(steps):
        gain = 1 - math.exp(-3 * step / steps)
        phases = {"generate": 7 + rng.random(), "score": 1.2, "prepare": 0.6, "update": 4 + rng.random(), "sync": 0.5}
        phases |= {"checkpoint": 1.5 if step % 10 == 9 else 0.0, "coordinator": 0.1}
        rows.append(
            {
                "step": step,
                "score/mixed": 0.3 + 0.3 * gain + rng.gauss(0, 0.03),
                "score/questions": 0.4 + 0.4 * gain + rng.gauss(0, 0.05),
                "score/overlap": 0.2 + 0.02 * gain + rng.gauss(0, 0.01),
                "score/presentation": 0.6 + rng.gauss(0, 0.01),
                "omitted/presentation": 1,
                "kl/mean_per_sequence": 1.4 * gain + abs(rng.gauss(0, 0.05)) * (step > 0),
                "kl/coef": 0.05 * (1 + 0.1 * gain),
                "length/mean": 40 + 12 * gain + rng.gauss(0, 2),
                "length/max": 64,
                "length/ended_share": 0.7 + 0.2 * gain,
                "loss/policy": -0.02 + rng.gauss(0, 0.01),
                "loss/value": 0.3 * math.exp(-step / 8) + 0.05,
                "policy/clip_fraction": 0.08 + rng.gauss(0, 0.01),
                "policy/approx_kl": 0.01 + abs(rng.gauss(0, 0.004)),
                "policy/entropy": 2.4 - 0.5 * gain,
                "value/explained_variance": 0.6 * gain,
                "engine/logprob_gap": 0.012 + abs(rng.gauss(0, 0.002)),
                **{f"time/{name}": seconds for name, seconds in phases.items()},
                "time/step": sum(phases.values()),
                "time/tokens_per_second": 210.0,
                "busy/policy": 0.35,
                "busy/critic": 0.3,
                "busy/rollout": 0.55 + rng.gauss(0, 0.02),
                "busy/reward": 0.08,
            }
        )
    del rows[3]["loss/value"], rows[5]["engine/logprob_gap"]  # rows may miss keys
    rows[steps // 2] |= {"eval/mixed": 0.5, "eval/mixed_low": 0.46, "eval/mixed_high": 0.54, "eval/questions": 0.7}
    return rows


def make_run(folder: Path, steps: int = 48) -> Path:
    """A run's folder as the coordinator leaves it."""
    folder.mkdir(exist_ok=True)
    rng = random.Random(7)
    replace_rows(folder / "metrics.jsonl", metric_rows(steps, rng))
    before, after = evaluation(0, 0.2, rng), evaluation(steps, 0.8, rng)
    write_samples(folder / "evaluation" / "step-000000.jsonl", before)
    write_samples(folder / "evaluation" / f"step-{steps:06d}.jsonl", after)
    kl = {"kl/mean_per_sequence": 1.31, "kl/coef": 0.05}
    write_summary(folder / "summary.json", build_summary(before, after, asks_question=asks, complete=COMPLETE, kl=kl))
    train = [
        Sample(step, "train", s.prompt_id, s.messages, s.response, s.reference, s.raw, s.normalised, s.mixed, 9)
        for step in range(0, steps, 4)
        for s in after[2:8:2]
    ]
    replace_rows(folder / "samples.jsonl", [sample_row(sample) for sample in train])
    config = {
        "output_dir": str(folder),
        "seed": 0,
        "steps": steps,
        "prompts_per_step": 64,
        "policy": {"model": "smollm2-135m-instruct", "optimizer": {"lr": 5e-5, "betas": [0.9, 0.95]}},
        "algorithm": {"estimator": "gae", "kl": {"controller": "adaptive", "coef": 0.05}},
        "rewards": [{"name": "questions", "kind": "rule", "options": {"api_key": "sk-visible", "words": "请问"}}],
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("runs") / "consultations")
    write_report(folder)
    return folder


PLOTS = [
    "Mixed score",
    "questions",
    "overlap",
    "presentation",
    "KL from the reference",
    "Answer length",
    "Losses",
    "Engine against trainer",
    "Policy updates",
    "Entropy and critic",
    "Time by phase",
    "Busy share by role",
]


def test_the_page_holds_the_result_the_plots_the_samples_and_the_config(run: Path) -> None:
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert page.plots == PLOTS
    assert re.search(r"The mixed score rose from 0\.\d{3} to 0\.\d{3}", page.text)
    assert "paired over 40 held-out prompts" in page.text
    for part in (
        "我最近总是胃疼",
        "疼了多久了？",
        "Asks a question where needed",
        "12 of 40 held-out prompts",
        "left out",
    ):
        assert part in page.text, part
    assert "48 of 48" in page.text and "smollm2-135m-instruct" in page.text


def test_the_page_loads_nothing_and_runs_nothing(run: Path) -> None:
    html = (run / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert "default-src 'none'" in html
    assert not {"script", "img", "iframe", "object"} & set(page.tags)
    assert all(link.startswith(("#", "data:,")) for link in page.links), page.links
    assert set(re.findall(r"url\(([^)]{1,3})", html)) <= {"#sc", "#tr", "#ma"}
    assert page.handlers == []
    assert ATTACK in page.text


def test_names_from_outside_are_escaped_wherever_they_stand(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a<b>&")
    rows = [{"score/<i>$x$": 0.5, "busy/<u>": 0.5, **row} for row in read_rows(run / "metrics.jsonl")]
    replace_rows(run / "metrics.jsonl", rows)
    samples = [
        dataclasses.replace(s, prompt_id=f"<s>{s.prompt_id}", raw={"<i>$x$": 1.0}, reference="<b>&amp;")
        for s in read_samples(run / "samples.jsonl")
    ]
    replace_rows(run / "samples.jsonl", [sample_row(sample) for sample in samples])
    page = Page(render_report(run))
    assert not {"s", "u", "script", "img"} & set(page.tags)
    assert "<i>$x$" in page.plots
    assert "<s>zh-001" in page.text and "a<b>&" in page.text


def test_secrets_of_the_config_are_masked(run: Path) -> None:
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "sk-visible" not in html
    assert "•••" in html and "words:</b> 请问" in html


def test_a_run_that_just_began_says_what_is_not_there_yet(tmp_path: Path) -> None:
    page = Page(render_report(tmp_path))
    assert page.plots == []
    for part in ("Nothing logged yet", "No evaluation yet", "Not recorded so far", "no config.yaml"):
        assert part in page.text, part


def test_a_run_that_goes_on_shows_what_it_has(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "summary.json").unlink()
    (run / "evaluation" / "step-000048.jsonl").unlink()
    rows = read_rows(run / "metrics.jsonl")[:1]
    replace_rows(run / "metrics.jsonl", [{key: value for key, value in rows[0].items() if not key.startswith("kl/")}])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "sco')
    page = Page(render_report(run))
    assert "1 of 48" in page.text and "1 steps logged, no result yet" not in page.text
    assert "1 step logged, no result yet" in page.text
    assert "Training hasn't been evaluated again yet" in page.text
    assert "KL from the reference" not in page.plots and "Losses" in page.plots


def test_recoveries_are_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=6)
    assert "Recoveries" not in render_report(run)
    log = RecoveryLog(run, Storage(1.0))
    log.add(
        Recovery("hung", 3, "score", ["reward:<x>[0]"], "started again: reward:<x>[0]", 4.0, stacks=["stacks/a.txt"])
    )
    log.add(Recovery("died", 5, "update", ["policy[1]"], "started again: policy[0], policy[1]", 12.5, back_to=4))
    page = render_report(run)
    assert 'href="#recoveries"' in page
    assert "hung: reward:&lt;x&gt;[0]" in page and "(stack: stacks/a.txt)" in page
    assert "started again: policy[0], policy[1]; steps from 4 on done again" in page and "12.5 s" in page


def test_the_same_folder_gives_the_same_page(run: Path) -> None:
    assert render_report(run) == render_report(run)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no run's folder at .*/nowhere"):
        write_report(tmp_path / "nowhere")


def test_evaluations_are_drawn_after_the_step_they_follow() -> None:
    rows = [{"step": 0, "score/mixed": 0.1, "eval/mixed": 0.3, "eval/mixed_low": 0.2, "eval/mixed_high": 0.4}]
    samples = [Sample(0, "heldout", name, [], "x", None, {}, {}, score, 1) for name, score in (("a", 0.1), ("b", 0.3))]
    train, heldout = score_plots(rows, {0: samples})[0].panels[0].series
    assert (train.x, train.y) == ([0.0], [0.1])
    assert heldout.x == [0.0, 1.0]  # before training; after step 0
    assert heldout.y == pytest.approx([0.2, 0.3])
    # n = 2: sd 0.1414, t(1) = 12.706, half = 12.706 * 0.1414 / 1.414 = 1.2706
    assert heldout.low == pytest.approx([0.2 - 1.2706, 0.2], abs=1e-4)


def test_long_runs_make_small_plots() -> None:
    x = [float(i) for i in range(20_000)]
    svg = draw(Plot("Long", "", [Panel("y", [Series("a", x, [math.sin(i / 900) for i in x])])]), "p")
    assert len(svg) < 40_000
    assert svg.count(" L ") + svg.count("\nL ") < 3 * MAX_POINTS


def test_plots_take_their_colours_from_the_page_and_share_no_ids() -> None:
    plot = Plot("T", "", [Panel("y", [Series("a", [0, 1], [1, 2])])])
    first, second = draw(plot, "p1"), draw(plot, "p2")
    assert "var(--s0)" in first and "var(--muted)" in first and "#0000" not in first
    ids = [set(re.findall(r'id="([^"]+)"', svg)) for svg in (first, second)]
    assert ids[0] and not ids[0] & ids[1]
    for svg, own in zip((first, second), ids, strict=True):
        assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg)) <= own


def test_moving_mean_by_hand() -> None:
    assert moving_mean(np.array([1.0, 2.0, 6.0]), 3) == pytest.approx([1.5, 3.0, 4.0])


def test_evenly_keeps_both_ends() -> None:
    assert evenly(range(10), 4) == [0, 3, 6, 9]
    assert evenly([1, 2], 4) == [1, 2]


@pytest.mark.browser
def test_chromium_shows_the_page_without_scripts_errors_or_requests(run: Path, tmp_path: Path) -> None:
    opened = chromium(tmp_path, run / "report.html", "--dump-dom")
    assert opened.returncode == 0, opened.stderr
    page = Page(opened.stdout)
    assert "<title>consultations · rayrl report</title>" in opened.stdout
    assert page.plots == PLOTS
    assert ATTACK in page.text
    assert not {"script", "img"} & set(page.tags)
    # a blocked script, a refused request and a malformed plot would all be console messages
    assert "CONSOLE" not in opened.stderr, opened.stderr


@pytest.mark.browser
def test_chromium_would_report_what_the_policy_blocks(run: Path, tmp_path: Path) -> None:
    """The test above can fail: a script in the same page is refused, and that shows on the console."""
    html = (run / "report.html").read_text(encoding="utf-8")
    changed = tmp_path / "changed.html"
    changed.write_text(html.replace("</body>", "<script>document.title='owned'</script></body>"), encoding="utf-8")
    opened = chromium(tmp_path, changed, "--dump-dom")
    assert "CONSOLE" in opened.stderr and "Content Security Policy" in opened.stderr
    assert "<title>consultations · rayrl report</title>" in opened.stdout


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 520])
def test_long_words_do_not_break_the_layout(tmp_path: Path, width: int) -> None:
    run = make_run(tmp_path / ("run-" + "x" * 120))
    long = "https://example.org/" + "y" * 900
    for path in (run / "evaluation").iterdir():
        write_samples(
            path,
            [
                dataclasses.replace(s, response=long, prompt_id=s.prompt_id + "z" * 200, raw={"w" * 90: 1.0})
                for s in read_samples(path)
            ],
        )
    html = render_report(run)
    measure = "<script>document.title = document.documentElement.scrollWidth + ' of ' + innerWidth</script></body>"
    html = re.sub(r"<meta http-equiv[^>]*>", "", html).replace("</body>", measure)
    (tmp_path / "measured.html").write_text(html, encoding="utf-8")
    opened = chromium(tmp_path, tmp_path / "measured.html", "--dump-dom", f"--window-size={width},900")
    measured = re.search(r"<title>(\d+) of (\d+)</title>", opened.stdout)
    assert measured, opened.stdout[:500]
    assert int(measured[1]) <= int(measured[2])


@pytest.mark.browser
def test_light_and_dark_pages_differ_where_they_should(run: Path, tmp_path: Path) -> None:
    from PIL import Image

    corners = []
    for theme in (1, 0):  # Chromium's names: 0 dark, 1 light
        shot = tmp_path / f"{theme}.png"
        options = (f"--screenshot={shot}", f"--blink-settings=preferredColorScheme={theme}", "--window-size=1000,900")
        chromium(tmp_path, run / "report.html", *options)
        corners.append(sum(Image.open(shot).convert("RGB").getpixel((5, 880))) / 3)  # type: ignore[arg-type]
    assert corners[0] > 220 and corners[1] < 40
