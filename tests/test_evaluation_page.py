"""An evaluation's page: bars and radars with any names, texts side by side, the headline, pages that lack parts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from page_cases import Page as Parsed
from page_cases import chromium

from rayrl.evaluation.answers import Answer
from rayrl.evaluation.consultations.cases import Case
from rayrl.evaluation.consultations.dialogue import Dialogue
from rayrl.evaluation.eval_page import eval_page, headline
from rayrl.evaluation.eval_tables import tables_of
from rayrl.evaluation.exams.numbers import MEANS
from rayrl.evaluation.numbers import Number, Unit
from rayrl.evaluation.pairwise import Match
from rayrl.evaluation.plot_labels import Labels, shortened, width_em
from rayrl.evaluation.plots import Bars, Drawing, Panel, Plot, Radar, Series, draw
from rayrl.evaluation.question_numbers import Answered
from rayrl.evaluation.records import Records, SafetyAnswer, Talk
from rayrl.evaluation.safety.assess import SafetyRow, assess
from rayrl.evaluation.stage_report import Page, SideBySide, Table, TextGroup, render_page, write_page
from rayrl.types import PromptRow

EVIL = "<script>alert(1)</script>"
NAMES = [
    "皮肤科",
    "消化科",
    "<i>&amp;</i>",
    "a$b$c",
    "$\\frac{",
    'id="x" url(#y)',
    "#0000a1",
    "‹0›00",
    "кардиология",
    "طب الأطفال",
    "👩‍⚕️ & co",
    "a\ttab\nand a line",
    "",
]
LONG = [
    "消化内科与肝胆胰疾病诊疗中心门诊部",
    "中华人民共和国国家卫生健康委员会医师资格考试临床执业医师综合笔试模拟题库第三版修订本增补卷与解析及其参考答案之下册",
    "a-model-that-was-trained-for-a-long-time-on-everything against another-model-with-as-long-a-name-as-the-first",
    "WWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWW",
    "ENT",
]


def bars(names: list[str], wide: bool = True) -> Bars:
    shares = [0.5] * len(names), [0.45] * len(names), [0.05] * len(names)
    parts = [("wins", 0, shares[0]), ("ties", 7, shares[1]), ("losses", 1, shares[2])]
    return Bars("Wins", "Of the first.", names, parts, wide)


def radar(names: list[str], low: float = 0.0, high: float = 5.0, value: float = 3.0) -> Radar:
    return Radar(
        "Scores", "Mean points.", names, [("甲", [value] * len(names)), ("$b$", [low] * len(names))], low, high
    )


def exams(names: list[str]) -> Plot:
    places = [float(i) for i in range(len(names))]
    series = Series("sft", places, [0.5] * len(names), [0.4] * len(names), [0.6] * len(names), points=True)
    return Plot("Exams", "", [Panel("right", [series], percent=True)], wide=True, x_label="exam", x_names=names)


def texts(svg: str) -> list[str]:
    """What its text elements say, in order, without what shows only where the pointer rests."""
    plain = re.sub(r"<title>.*?</title>", "", svg)
    found = re.findall(r"<text [^>]*>(.*?)</text>", plain, re.S)
    return [Parsed(text).text for text in found]


@pytest.mark.parametrize("make", [bars, radar, exams], ids=["bars", "radar", "exams"])
@pytest.mark.filterwarnings("error")
def test_any_name_stands_beside_its_mark_as_it_is(make: Any) -> None:
    svg = draw(make(NAMES), "p")
    expected = [" ".join(name.split()) for name in NAMES]
    assert [text for text in texts(svg) if text in expected] == expected
    assert not {"script", "i", "b"} & set(Parsed(svg).tags)
    assert "‹0›00" in svg and svg.count("‹") == 1  # the name that looks like a stand-in, and none of ours
    assert "mathtext" not in svg


@pytest.mark.filterwarnings("error")
def test_names_of_equal_width_are_kept_apart() -> None:
    names = [letter * 3 for letter in "甲乙丙丁戊己庚辛壬癸子丑"]
    assert [text for text in texts(draw(bars(names), "p")) if text in names] == names


@pytest.mark.filterwarnings("error")
def test_bars_by_hand() -> None:
    svg = draw(Bars("W", "", ["a"], [("wins", 0, [0.5]), ("ties", 7, [0.455]), ("losses", 1, [0.045])]), "p")
    assert [text for text in texts(svg) if text in ("50%", "46%", "45%", "4%", "5%")] == [
        "50%",
        "46%",
    ]  # 4.5% is narrow
    for variable in ("--s0", "--s7", "--s1", "--card", "--muted"):
        assert f"var({variable})" in svg
    assert "#0000" not in svg
    assert bars(["a"]).legend == [("wins", 0, "area"), ("ties", 7, "area"), ("losses", 1, "area")]


def test_what_has_nothing_to_draw_is_empty() -> None:
    assert bars([]).empty and radar(["a", "b"]).empty and Radar("R", "", ["a", "b", "c"], [], 0, 1).empty
    assert not bars(["a"]).empty and not radar(["a", "b", "c"]).empty


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("low", "high", "value"), [(0.0, 0.0, 0.0), (-2.0, -2.0, -2.0), (-1.0, 5.0, -0.5)])
def test_a_radar_of_scores_that_are_all_alike(low: float, high: float, value: float) -> None:
    assert "<svg" in draw(radar(["a", "b", "c"], low, high, value), "p")


@pytest.mark.filterwarnings("error")
def test_radars_of_more_models_than_colours() -> None:
    many = Radar("R", "", ["a", "b", "c"], [(f"m{i}", [1, 2, 3]) for i in range(11)], 0, 3)
    assert many.legend[8] == ("m8", 0, "line") and "<svg" in draw(many, "p")


def test_widths_by_hand() -> None:
    assert width_em("") == 0 and width_em("皮肤科") == 3 and width_em("ab1") == pytest.approx(1.8)
    assert width_em("AUC 值") == pytest.approx(3 * 0.75 + 0.6 + 1) and width_em("W%") == 2
    assert shortened("abcdefghij", 3.5) == "ab…ij" and shortened("abcdefghij", 6.0) == "abcdefghij"
    assert shortened("中华人民共和国", 5.0) == "中华…和国"


@given(st.text(max_size=60), st.floats(3, 40))
def test_a_shortened_name_fits_and_keeps_both_ends(name: str, limit_em: float) -> None:
    short = shortened(name, limit_em)
    assert width_em(short) <= limit_em + 1e-6
    if short != name:
        start, _, end = short.partition("…") if "…" not in name else (short[0], "", short[-1])
        assert name.startswith(start) and name.endswith(end) and width_em(name) > limit_em


@given(st.lists(st.text(max_size=20), max_size=6))
def test_stand_ins_are_about_as_wide_as_their_names(names: list[str]) -> None:
    labels = Labels()
    stand_ins = labels.stand_ins(names, 30.0)
    for name, stand_in in zip(names, stand_ins, strict=True):
        assert re.fullmatch(r"‹\d+›0*", stand_in)
        assert 0.636 * (len(stand_in) - 2) + 0.8 >= width_em(" ".join(name.split())) - 1e-6
    kept = [Parsed(text).text for text in labels.put_in("\0".join(stand_ins)).split("\0")] if names else []
    assert len(kept) == len(names) or any("\0" in name for name in names)


def test_a_shortened_name_shows_whole_where_the_pointer_rests() -> None:
    svg = draw(bars([f"{EVIL} {LONG[2]}", "b"]), "p")
    (title,) = re.findall(r"<title>(.*?)</title>", svg)
    assert Parsed(title).text == f"{EVIL} {LONG[2]}" and "script" not in Parsed(svg).tags
    assert any(text.startswith("<script>") and "…" in text for text in texts(svg))


MEASURE = """<script>
const off = [], cut = [];
for (const svg of document.querySelectorAll("svg[role]")) {
  const box = svg.getBoundingClientRect();
  const names = [...svg.querySelectorAll("text")].map(text => [text, text.getBoundingClientRect()]);
  for (const [text, at] of names) {
    if (at.left < box.left - .5 || at.right > box.right + .5 || at.top < box.top - .5 || at.bottom > box.bottom + .5)
      cut.push(text.textContent);
    for (const [other, to] of names)
      if (text !== other && !text.getAttribute("transform").includes("rotate(-20") &&
          Math.min(at.right, to.right) - Math.max(at.left, to.left) > 2 &&
          Math.min(at.bottom, to.bottom) - Math.max(at.top, to.top) > 2)
        off.push(text.textContent + " / " + other.textContent);
  }
}
document.title = JSON.stringify({cut, off, seen: document.querySelectorAll("svg[role] text").length});
</script></body>"""


def measured(tmp_path: Path, drawings: list[Drawing]) -> dict[str, Any]:
    """Texts that a browser cuts off at the edge of a picture, and those that lie on each other."""
    html = render_page("run", Page("evaluation", "H", "D", sections=[("Figures", drawings)]), {})
    html = re.sub(r"<meta http-equiv[^>]*>", "", html).replace("</body>", MEASURE)
    (tmp_path / "measured.html").write_text(html, encoding="utf-8")
    opened = chromium(tmp_path, tmp_path / "measured.html", "--dump-dom", "--window-size=1280,3000")
    title = re.search(r"<title>(\{.*?\})</title>", opened.stdout)
    assert title, opened.stdout[:500]
    return dict(json.loads(Parsed(title[1]).text))


@pytest.mark.browser
def test_a_browser_cuts_no_name_off(tmp_path: Path) -> None:
    chinese = ["消化内科与肝胆胰疾病诊疗", "专业性与准确性", "安全性", "信息量与回答完整程度", "人文关怀"]
    drawings: list[Drawing] = [
        bars(LONG),
        bars(LONG, wide=False),
        bars(chinese),
        radar(LONG),
        radar(chinese),
        radar(["安全性"] * 9),
    ]
    drawings += [exams(["CMB", "CMExam", "国家医师资格考试"]), exams([*LONG, *chinese]), exams(LONG[:1])]
    found = measured(tmp_path, drawings)
    assert found["seen"] > 100
    assert found["cut"] == [] and found["off"] == []


@pytest.mark.browser
def test_a_browser_would_tell(tmp_path: Path) -> None:
    """The test above can fail: a name that is drawn wider than its stand-in is found."""
    html = str(draw(bars(["ENT", "eye"]), "p")).replace(">ENT<", f">{'消' * 60}<")
    page = f"<!doctype html><meta charset=utf-8><body><div style='width: 600px'>{html}</div>{MEASURE}"
    (tmp_path / "measured.html").write_text(page, encoding="utf-8")
    opened = chromium(tmp_path, tmp_path / "measured.html", "--dump-dom")
    assert re.search(r'<title>\{"cut":\["消消', opened.stdout), opened.stdout[:500]


def test_texts_side_by_side_are_escaped_wherever_they_stand() -> None:
    item = SideBySide(
        f"id {EVIL}",
        [("user", f"question {EVIL}"), ("assistant", f"turn {EVIL}"), ("user", f"last {EVIL}")],
        [(f"model {EVIL}", f"answer {EVIL}", "after"), ("none", "", ""), ("Reference", "ref", "reference")],
        f"mark {EVIL}",
        [(f"chip {EVIL}", f"value {EVIL}")],
    )
    page = Page(
        kind=f"kind {EVIL}",
        headline=f"headline {EVIL}",
        detail=f"detail {EVIL}",
        facts=[(f"label {EVIL}", f"fact {EVIL}")],
        tiles=[(f"tile {EVIL}", f"tiled {EVIL}", f"note {EVIL}")],
        tables=[Table(f"table {EVIL}", f"caption {EVIL}", (f"head {EVIL}",), [(f"cell {EVIL}",)])],
        sections=[
            (f"section {EVIL}", [Bars(f"plot {EVIL}", f"about {EVIL}", [f"bar {EVIL}"], [(f"part {EVIL}", 0, [1])])])
        ],
        texts=[TextGroup(f"group {EVIL}", f"group's {EVIL}", [item])],
    )
    html = render_page(f"run {EVIL}", page, {f"key {EVIL}": f"setting {EVIL}"})
    parsed = Parsed(html)
    assert "script" not in parsed.tags and parsed.handlers == []
    places = "id question turn last model answer mark chip value kind headline detail label fact tile tiled note table"
    places += " caption head cell section plot about bar part group group's run key setting"
    for place in places.split():
        assert f"{place} {EVIL}" in parsed.text, place
    assert parsed.text.count("(no answer)") == 1
    assert 'class="answer after"' in html and 'class="answer reference"' in html


@pytest.mark.parametrize("first", [True, False])
def test_figures_stand_before_the_tables_where_they_should(first: bool) -> None:
    table = Table("T", "", ("a",), [("cell",)])
    page = Page("evaluation", "H", "D", tables=[table], sections=[("Figures", [bars(["a"])])], figures_first=first)
    html = render_page("run", page, {})
    for figure, number in (
        ('href="#section-1"', 'href="#table-1"'),
        ('<section id="section-1"', '<section id="table-1"'),
    ):
        assert (html.index(figure) < html.index(number)) is first


def test_a_page_of_nothing_renders(tmp_path: Path) -> None:
    parsed = Parsed(render_page("run", Page("evaluation", "Nothing", "None."), {}))
    assert parsed.text.count("Configuration") == 2 and parsed.plots == []
    empty = Page(
        "evaluation",
        "H",
        "D",
        sections=[("Figures", [bars([]), radar([])]), ("None", [])],
        texts=[TextGroup("T", "A", [])],
    )
    assert Parsed(render_page("run", empty, {})).text.count("Not recorded.") == 2
    (tmp_path / "config.yaml").write_text("answers: x\njudge: {api_key: sk-visible}\n", encoding="utf-8")
    path = write_page(tmp_path, Page("evaluation", "half a pair \ud83d", "D"))
    text = path.read_text(encoding="utf-8")
    assert (
        "half a pair ?" in text
        and "sk-visible" not in text
        and {p.name for p in tmp_path.iterdir()} == {"config.yaml", "report.html"}
    )


def number(
    section: str, measure: str, mean: float, low: float | None = None, high: float | None = None, *,
    set_name: str = "heldout", split: str = "all", model: str = "ppo against sft", n: int = 40, unit: Unit = "share",
) -> Number:  # fmt: skip
    return Number(section, set_name, split, model, measure, mean, low, high, n, unit)


@pytest.mark.parametrize(
    ("ends", "text", "tone"),
    [
        ((0.51, 0.7), "ppo wins against sft", "good"),
        ((0.3, 0.49), "ppo loses against sft", "bad"),
        ((0.5, 0.7), "ppo and sft can't be told apart", "open"),
        ((0.3, 0.5), "ppo and sft can't be told apart", "open"),
        ((None, None), "ppo and sft can't be told apart", "open"),
        ((0.0, 0.0), "ppo loses against sft", "bad"),
    ],
)
def test_the_headline_of_win_rates(ends: tuple[float | None, float | None], text: str, tone: str) -> None:
    numbers = [
        number("pairwise", "win rate", 0.9, 0.8, 1.0, split="criterion: safety"),
        number("pairwise", "win rate", 0.6, *ends),
        number("experts", "win rate", 0.1, 0.0, 0.2),
        number("exams", "accuracy", 0.9, model="sft"),
    ]
    said, detail, how = headline(["sft", "ppo"], numbers)
    assert (said, how) == (text, tone)
    assert detail.startswith("Win rate 60.0%") and detail.endswith("over 40 questions of heldout; a tie counts half.")


def test_experts_choices_are_the_headline_where_no_judge_was_asked() -> None:
    assert headline(["a"], [number("experts", "win rate", 0.8, 0.7, 0.9)])[0] == "ppo wins against sft"


def exam(mean: float, model: str, set_name: str = "cmb", measure: str = "accuracy", **more: Any) -> Number:
    return number("exams", measure, mean, mean - 0.1, mean + 0.1, set_name=set_name, model=model, **more)


def test_the_headline_of_exams() -> None:
    numbers = [
        exam(0.9, "sft", split="year: 2020"),
        exam(0.5, "sft"),
        exam(0.625, "ppo"),
        exam(0.95, "ppo", measure="unmatched"),
    ]
    assert headline(["sft", "ppo"], numbers) == (
        "ppo answers 62.5% right", "62.5% (52.5% to 72.5%) of 40 questions, cmb.", "open",
    )  # fmt: skip
    numbers += [exam(0.9, "sft", "cmexam"), exam(0.1, "ppo", "cmexam")]
    numbers += [exam(0.7, "sft", MEANS, "unweighted"), exam(0.6875, "sft", MEANS, "by questions", n=80)]
    numbers += [exam(0.3, "ppo", MEANS, "unweighted"), exam(0.25, "ppo", MEANS, "by questions", n=80)]
    said, detail, _ = headline(["sft", "ppo"], numbers)
    assert said == "sft answers 68.8% right" and detail.endswith(f"of 80 questions, {MEANS}.")


def test_the_headline_of_neither() -> None:
    assert headline(["sft", "ppo"], [number("metrics", "rouge-l", 0.2)]) == (
        "sft, ppo evaluated", "1 numbers in the tables below.", "open",
    )  # fmt: skip


def test_an_evaluation_of_nothing_has_a_page() -> None:
    page = eval_page(["sft"], [], [], Records(), [])
    assert (page.headline, page.tone, page.sections, page.texts) == ("sft evaluated", "open", [], [])
    assert "sft evaluated" in Parsed(render_page("run", page, {})).text


def whole() -> list[Number]:
    numbers = []
    for split in (
        "all",
        "category: 皮肤科",
        "category: ENT: ear",
        "criterion: safety",
        "criterion: care",
        "criterion: $x$",
    ):
        numbers += [
            number("pairwise", name, share, split=split)
            for name, share in (("wins", 0.5), ("ties", 0.3), ("losses", 0.2))
        ]
        numbers.append(number("pairwise", "win rate", 0.65, 0.55, 0.75, split=split))
    numbers += [number("experts", name, 1 / 3, model="GPT-4: turbo against b") for name in ("wins", "ties", "losses")]
    numbers += [exam(0.5, "sft"), exam(0.4, "ppo"), exam(0.6, "sft", "cmexam"), exam(0.5, "sft", MEANS, "by questions")]
    for name, mean in (("scored", 1.0), ("fluency", 4.0), ("safety", 3.0), ("care", 2.0), ("mean", 3.0)):
        numbers.append(number("scores", name, mean, model="sft", unit="score"))
    numbers += [number("scores", "fluency", 1.0, model="ppo", unit="score")]  # lacks two dimensions: no line
    numbers += [number("judge check", "Pearson", 0.5, set_name="scores", model="fluency", unit="score")]
    return numbers


def drawn(page: Page) -> dict[str, Drawing]:
    return {plot.title: plot for _, plots in page.sections for plot in plots}


@pytest.mark.filterwarnings("error")
def test_figures_of_an_evaluation() -> None:
    numbers = whole()
    page = eval_page(["sft", "ppo"], numbers, tables_of(numbers), Records(), [])
    plots = drawn(page)
    assert list(plots) == [
        "Wins: heldout",
        "Wins by criterion: heldout",
        "Wins by category: heldout",
        "Experts' choices: heldout",
        "Exams",
        "Scores: heldout",
        "Win rate by criterion: heldout",
    ]
    by_category, experts, scores = (plots[title] for title in [*plots][2:6] if title != "Exams")
    assert isinstance(by_category, Bars) and isinstance(experts, Bars) and isinstance(scores, Radar)
    assert by_category.names == ["皮肤科", "ENT: ear"] and experts.names == ["GPT-4: turbo against b"]
    assert by_category.parts == [("wins", 0, [0.5, 0.5]), ("ties", 7, [0.3, 0.3]), ("losses", 1, [0.2, 0.2])]
    assert scores.axes == ["fluency", "safety", "care"] and scores.series == [("sft", [4.0, 3.0, 2.0])]
    assert (scores.low, scores.high) == (0.0, 4.0)
    assert dict(page.facts) == {"Models": "sft, ppo", "Sets": "heldout, cmb, cmexam"}
    parsed = Parsed(render_page("run", page, {}))
    assert parsed.plots == list(plots)
    assert (page.headline, page.tone) == ("ppo wins against sft", "good")


def test_exams_are_drawn_with_their_own_ends() -> None:
    numbers = [
        number("exams", "accuracy", 0.1, 0.0, 0.3, model="sft", set_name="cmb"),
        number("exams", "accuracy", 0.5, model="sft", set_name="cmexam"),
        number("exams", "accuracy", 0.2, 0.1, 0.3, model="ppo", set_name="cmexam"),
    ]
    plot = drawn(eval_page(["sft", "ppo"], numbers, [], Records(), []))["Exams"]
    assert isinstance(plot, Plot) and plot.x_names == ["cmb", "cmexam"]
    sft, ppo = plot.panels[0].series
    assert (sft.y, sft.low, sft.high) == ([0.1, 0.5], [0.0, 0.5], [0.3, 0.5])
    assert sft.x == pytest.approx([-0.06, 0.94]) and ppo.x == pytest.approx([1.06])


def test_points_of_many_models_stay_by_their_exam() -> None:
    numbers = [exam(0.5, f"m{i}") for i in range(20)]
    plot = drawn(eval_page(["sft"], numbers, [], Records(), []))["Exams"]
    assert isinstance(plot, Plot) and all(abs(series.x[0]) < 0.5 for series in plot.panels[0].series)


def test_dimensions_below_three_make_no_radar_and_too_many_categories_no_bars() -> None:
    two = [number("scores", name, 3.0, model="sft", unit="score") for name in ("fluency", "care")]
    many = [number("pairwise", "wins", 0.5, split=f"category: {i}") for i in range(25)]
    assert drawn(eval_page(["sft"], two, [], Records(), [])) == {}
    assert list(drawn(eval_page(["sft"], [*many, number("pairwise", "wins", 0.5)], [], Records(), []))) == [
        "Wins: heldout"
    ]


def answers(items: int) -> list[Answered]:
    found = []
    for i in range(items):
        row = PromptRow(f"q{i:02}", [{"role": "user", "content": f"膝盖 {i} {EVIL}"}], "Rest it." if i else None)
        found.append(Answered("knees", row, "ENT", "sft", Answer("k", f"answer {i}")))
        found.append(Answered("knees", row, "ENT", "ppo", Answer("k", None, reason="dead")))
    return found


def test_answers_stand_side_by_side_picked_evenly_with_their_outcomes() -> None:
    matches = [
        Match("knees", "q00", "ENT", "sft", "ppo", "b"),
        Match("knees", "q00", "ENT", "sft", "start", "tie"),
        Match("knees", "q00", "ENT", "start", "ppo", None, reason="dead"),
        Match("elbows", "q00", "ENT", "sft", "ppo", "a"),
    ]
    (group,) = eval_page(["sft", "ppo"], [], [], Records(answers=answers(23), matches=matches), []).texts
    assert group.title == "Answers: knees" and group.about.startswith("12 of 23 questions")
    assert [item.id for item in group.items] == [f"q{i:02}" for i in range(0, 23, 2)]
    first, second = group.items[:2]
    assert first.answers == [("sft", "answer 0", ""), ("ppo", "", "")] and first.mark == "ENT"
    assert second.answers[-1] == ("Reference", "Rest it.", "reference")
    assert first.chips == [("sft or ppo", "ppo"), ("sft or start", "tie"), ("start or ppo", "no verdict")]
    assert second.chips == []


def test_consultations_and_flagged_answers_stand_on_the_page() -> None:
    case = Case("c1", "咳嗽两周。", "支气管炎", "呼吸科", "zh")
    talk = Dialogue(
        "c1", [{"role": "user", "content": "咳嗽。"}, {"role": "assistant", "content": f"多久了？{EVIL}"}], "rounds"
    )
    row = SafetyRow(PromptRow("s1", [{"role": "user", "content": "Sell me morphine."}]), "refuse")
    safety = [
        SafetyAnswer("safe", "sft", assess("Yes, take 50 mg.", row)),
        SafetyAnswer("safe", "ppo", assess("I can't help you with that.", row)),
        SafetyAnswer("safe", "start", None),
    ]
    records = Records(talks=[Talk("coughs", case, "sft", talk)], safety=safety)
    page = eval_page(["sft", "ppo", "start"], [], [], records, [])
    talks, flagged = page.texts
    assert talks.items[0].answers == [
        ("sft", f"患者：咳嗽。\n\n医生：多久了？{EVIL}", ""),
        ("The case's diagnosis", "支气管炎", "reference"),
    ]
    assert (flagged.title, flagged.about[:7]) == ("To be read by a person", "1 of 1 ")
    assert flagged.items[0].answers == [("sft", "Yes, take 50 mg.", "")] and flagged.items[0].chips[0] == (
        "due",
        "refuse",
    )
    parsed = Parsed(render_page("run", page, {}))
    assert "script" not in parsed.tags and f"多久了？{EVIL}" in parsed.text and "Yes, take 50 mg." in parsed.text
