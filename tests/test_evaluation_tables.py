"""Numbers in their units, tables from numbers, and tables as CSV and LaTeX, whatever their texts hold."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayrl.evaluation.eval_tables import tables_of
from rayrl.evaluation.exams.numbers import MEANS
from rayrl.evaluation.numbers import Number, Unit, columns_of, pivot, read_numbers, write_numbers
from rayrl.evaluation.stage_report import Table
from rayrl.evaluation.statistics import Estimate
from rayrl.evaluation.tables import file_name, to_csv, to_latex, write_tables


def number(
    measure: str = "rouge-l",
    mean: float = 0.21,
    ends: tuple[float, float] | None = None,
    *,
    section: str = "metrics",
    set_name: str = "heldout",
    split: str = "all",
    model: str = "sft",
    n: int = 100,
    unit: Unit = "score",
) -> Number:
    low, high = ends or (None, None)
    return Number(section, set_name, split, model, measure, mean, low, high, n, unit)


@pytest.mark.parametrize(
    ("unit", "mean", "ends", "text"),
    [
        ("score", 0.21, (0.19, 0.23), "0.210 (0.190 to 0.230)"),
        ("score", -0.5, (-1.0, 0.25), "−0.500 (−1.000 to 0.250)"),
        ("score", 3.0, None, "3.000"),
        ("share", 0.5, (0.404, 1.0), "50.0% (40.4% to 100.0%)"),
        ("share", 0.0, (0.0, 0.0), "0.0% (0.0% to 0.0%)"),
        ("points", 0.032, (-0.01, 0.074), "+3.2 pp (−1.0 pp to +7.4 pp)"),
        ("points", -0.032, None, "−3.2 pp"),
        ("number", 1234, None, "1,234"),
        ("number", 1234.56, (1000.0, 1500.25), "1,234.6 (1,000 to 1,500.2)"),
        ("number", -12.5, (-20.0, -5.0), "−12.5 (−20 to −5)"),
        ("probability", 0.0214, None, "0.021"),
        ("probability", 0.0004, None, "<0.001"),
        ("probability", 0.001, None, "0.001"),
    ],
)
def test_numbers_stand_in_their_units(unit: Unit, mean: float, ends: tuple[float, float] | None, text: str) -> None:
    shown = number(mean=mean, ends=ends, unit=unit)
    assert shown.text == text
    assert shown.shown == text.partition(" (")[0]
    assert shown.interval == (text.partition(" (")[2].removesuffix(")") if ends else "")


def test_half_an_interval_is_none() -> None:
    assert Number("metrics", "s", "all", "m", "x", 1.0, 0.5, None, 3).text == "1.000"


def test_a_number_from_an_estimate() -> None:
    made = Number.of("metrics", "heldout", "all", "sft", "rouge-l", Estimate(0.21, 0.19, 0.23, 100), "share")
    assert made == number(ends=(0.19, 0.23), unit="share")


def test_numbers_are_read_as_they_were_written(tmp_path: Path) -> None:
    numbers = [
        number(ends=(0.19, 0.23)),
        number("wins", 0.5, model="甲 against \ud83d", split="category: 皮肤科\n", unit="share", n=0),
        number("without outcome", 3, unit="number"),
    ]
    path = tmp_path / "new" / "numbers.jsonl"
    write_numbers(path, numbers)
    assert read_numbers(path) == numbers
    write_numbers(path, iter([]))
    assert read_numbers(path) == [] and read_numbers(tmp_path / "nowhere.jsonl") == []


def test_what_isn_t_finite_isn_t_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_numbers(tmp_path / "numbers.jsonl", [number(mean=float("nan"))])
    assert not (tmp_path / "numbers.jsonl").exists()


def test_a_pivot_keeps_the_order_and_the_gaps() -> None:
    numbers = [number("b", model="two"), number("a", model="one"), number("b", model="one"), number("c", model="three")]
    table = pivot(numbers, "measure", "model")
    assert {row: list(cells) for row, cells in table.items()} == {"b": ["two", "one"], "a": ["one"], "c": ["three"]}
    assert list(table) == ["b", "a", "c"] and columns_of(table) == ["two", "one", "three"]
    assert table["b"]["one"] is numbers[2] and columns_of({}) == []


NAMES = st.sampled_from(["a", "b", "c"])


@given(st.lists(st.tuples(NAMES, NAMES), max_size=12))
def test_a_pivot_holds_every_cell_once(keys: list[tuple[str, str]]) -> None:
    table = pivot([number(measure, model=model) for measure, model in keys], "measure", "model")
    assert {(row, column) for row, cells in table.items() for column in cells} == set(keys)
    assert set(columns_of(table)) == {model for _, model in keys}


def rows_of(table: Table) -> list[tuple[str, ...]]:
    return [tuple(table.header), *(tuple(row) for row in table.rows)]


def test_measures_stand_below_each_other_and_models_beside() -> None:
    numbers = [
        number("rouge-l", 0.2, (0.1, 0.3)),
        number("asks", 0.5, unit="share", n=90),
        number("rouge-l", 0.4, model="ppo", n=80),
        number("rouge-l", 0.3, split="category: 皮肤科"),
        number("rouge-l", 0.1, split="category: ENT"),
        number("asks", 0.1, split="category: ENT", unit="share"),
        number("rouge-l", 0.9, set_name="other"),
    ]
    tables = tables_of(numbers)
    assert [table.title for table in tables] == [
        "Answers: heldout",
        "Answers: heldout, rouge-l by category",
        "Answers: heldout, asks by category",
        "Answers: other",
    ]
    assert rows_of(tables[0]) == [
        ("measure", "sft", "ppo", "n"),
        ("rouge-l", "0.200 (0.100 to 0.300)", "0.400", "80–100"),
        ("asks", "50.0%", "", "90"),
    ]
    assert rows_of(tables[1]) == [("category", "sft", "n"), ("皮肤科", "0.300", "100"), ("ENT", "0.100", "100")]


def won(
    measure: str, mean: float, split: str = "all", section: str = "pairwise", model: str = "ppo against sft"
) -> Number:
    ends = (mean - 0.125, mean + 0.125)
    return number(measure, mean, ends, section=section, split=split, model=model, n=1234, unit="share")


def test_wins_stand_without_intervals_and_the_rate_with() -> None:
    numbers = [won(name, mean) for name, mean in (("wins", 0.5), ("ties", 0.25), ("losses", 0.25), ("win rate", 0.625))]
    numbers += [won("win rate", 0.5, "criterion: safety"), won("win rate", 0.75, "category: ENT")]
    numbers += [won("win rate", 0.5, section="experts")]
    tables = tables_of(numbers)
    assert [table.title for table in tables] == [
        "Wins: heldout",
        "Wins by criterion: heldout",
        "Wins by category: heldout",
        "Experts: heldout",
    ]
    assert rows_of(tables[0]) == [
        ("", "wins", "ties", "losses", "win rate", "n"),
        ("ppo against sft", "50.0%", "25.0%", "25.0%", "62.5% (50.0% to 75.0%)", "1,234"),
    ]
    assert rows_of(tables[1]) == [("criterion", "win rate", "n"), ("safety", "50.0% (37.5% to 62.5%)", "1,234")]
    assert tables[1].caption.startswith("ppo against sft.")


def test_every_pair_has_its_own_parts() -> None:
    pairs = ("b against a", "c against a")
    tables = tables_of([won("win rate", 0.5, "category: ENT", model=pair) for pair in pairs])
    assert [table.title for table in tables[1:]] == [f"Wins by category: heldout, {pair}" for pair in pairs]


def exam(
    measure: str, mean: float, set_name: str = "cmb", split: str = "all", model: str = "sft", n: int = 4
) -> Number:
    return number(measure, mean, section="exams", set_name=set_name, split=split, model=model, n=n, unit="share")


def test_exams_stand_in_one_table_with_their_means() -> None:
    numbers = [
        exam("accuracy", 0.75),
        exam("unmatched", 0.25),
        exam("accuracy", 0.5, split="year: 2020", n=2),
        exam("accuracy", 0.25, model="ppo"),
        exam("accuracy", 0.5, "cmexam", n=20),
        exam("unweighted", 0.625, MEANS, n=2),
        exam("by questions", 13 / 24, MEANS, n=24),
    ]
    whole, unmatched, parts = tables_of(numbers)
    assert rows_of(whole) == [
        ("exam", "sft", "ppo", "n"),
        ("cmb", "75.0%", "25.0%", "4"),
        ("cmexam", "50.0%", "", "20"),
        (f"{MEANS}, unweighted", "62.5%", "", "2"),
        (f"{MEANS}, by questions", "54.2%", "", "24"),
    ]
    assert rows_of(unmatched) == [("exam", "sft", "n"), ("cmb: unmatched", "25.0%", "4")]
    assert (parts.title, rows_of(parts)[1]) == ("Exams: cmb by part", ("year: 2020", "50.0%", "2"))


def test_safety_has_a_row_for_every_kind_that_is_due_and_no_total() -> None:
    numbers = [
        number("as expected", 0.5, section="safety", split="due: refuse", unit="share", n=4),
        number("to be read", 2, section="safety", split="due: refuse", unit="number", n=4),
        number("as expected", 1.0, section="safety", split="due: urgent", unit="share", n=3),
    ]
    (table,) = tables_of(numbers)
    assert rows_of(table)[1:] == [
        ("due: refuse, as expected", "50.0%", "4"),
        ("due: refuse, to be read", "2", "4"),
        ("due: urgent, as expected", "100.0%", "3"),
    ]


@pytest.mark.parametrize("section", ["metrics", "differences", "scores", "consultations", "ranking", "judge check"])
def test_every_other_section_has_a_title_and_a_caption(section: str) -> None:
    (table,) = tables_of([number(section=section)])
    assert table.title and table.caption and ("heldout" in table.title) == (section != "judge check")


def test_no_numbers_no_tables() -> None:
    assert tables_of([]) == []


def table(*cells: str, header: tuple[str, ...] = ("name", "value"), **more: bool) -> Table:
    return Table("Title", "About it.", header, [cells], **more)


def read_back(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


def test_csv_is_read_back_as_it_was() -> None:
    cells = ['a, "b"', "two\nlines", "皮肤科", "", "−0.5", "1,234"]
    text = to_csv(Table("T", "", tuple("abcdef"), [cells]))
    assert read_back(text) == [list("abcdef"), cells]
    assert read_back(to_csv(table("x\ry", "a\r\nb")))[1] == ["x\ny", "a\nb"]


@pytest.mark.parametrize(
    "cell",
    ["=1+1", '=HYPERLINK("http://x","y")', "+cmd|' /C calc'!A0", "-1+1", "@SUM(A1)", "\t=1", "\n=1", "＝1+1", "-", "+a",
     "+1.0 (=1 to 2)", "-1 to 2", "-1 (-2 to -1)+A1"],
)  # fmt: skip
def test_what_a_spreadsheet_would_run_is_a_text(cell: str) -> None:
    header, row = read_back(to_csv(Table("T", "", ("name", cell), [(cell, "0.5")])))
    assert row == [f"'{cell}", "0.5"] and header == ["name", f"'{cell}"]


@pytest.mark.parametrize(
    "cell",
    [
        "-0.5",
        "+3.2 pp",
        "+3.2 pp (−1.0 pp to +7.4 pp)",
        "-12.5 (-20 to -5)",
        "−3.2 pp",
        "+5%",
        "-1,234",
        "a=b",
        "",
        "1",
    ],
)
def test_numbers_stay_numbers(cell: str) -> None:
    assert read_back(to_csv(table("x", cell)))[1] == ["x", cell]


@given(st.floats(-1e6, 1e6), st.floats(0, 1e5), st.sampled_from(["share", "points", "score", "number", "probability"]))
def test_no_number_of_ours_gets_an_apostrophe(mean: float, half: float, unit: Unit) -> None:
    text = number(mean=mean, ends=(mean - half, mean + half), unit=unit).text
    assert read_back(to_csv(table("x", text)))[1][1] == text


SPECIAL = "\\ { } & % $ # _ ~ ^ < > [ ] * − – ±"


def test_latex_of_every_special_character_by_hand() -> None:
    lines = to_latex(table(SPECIAL, "1")).splitlines()
    assert lines[7] == (
        r"\textbackslash{} \{ \} \& \% \$ \# \_ \textasciitilde{} \textasciicircum{} \textless{} \textgreater{} "
        r"{[} ] {*} $-$ -- $\pm$ & 1 \\"
    )


def test_a_latex_table_by_hand() -> None:
    found = to_latex(Table("Wins & losses", "100%.", ("name", "a_b", "why"), [("x", "1", "so")], ends_in_words=True))
    assert found.splitlines() == [
        r"\begin{table}",
        r"\centering",
        r"\caption{Wins \& losses. 100\%.}",
        r"\begin{tabular}{lrl}",
        r"\toprule",
        r"name & a\_b & why \\",
        r"\midrule",
        r"x & 1 & so \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


COMMANDS = re.compile(
    r"\\(?:text(?:backslash|asciitilde|asciicircum|less|greater)\{\}|[{}&%$#_])|\$(?:-|\\pm)\$|\{[\[*]\}"
)


def assert_compiles(latex: str, cells: int) -> None:
    """Nothing is left that TeX would take for a command, a group, mathematics, a comment or another cell."""
    rows = [line for line in latex.splitlines() if line.endswith(r" \\")]
    assert len(rows) == 2
    for row in rows:
        plain = COMMANDS.sub("", row.removesuffix(r" \\"))
        assert plain.count(" & ") == cells - 1
        assert not set("\\{}$#%_~^") & set(plain) and plain.count("&") == cells - 1
        assert not row.startswith(("[", "*"))  # else an argument of the \\ or \midrule above
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", row)


@given(st.text(st.characters() | st.sampled_from(SPECIAL + "\n\r\t\x00\x7f\u2028\u2029\ud800")))
def test_latex_of_any_text_compiles(text: str) -> None:
    latex = to_latex(Table(text, text, (text, "value"), [(text, text)]))
    assert len(latex.splitlines()) == 11
    assert_compiles(latex, 2)


def test_file_names_are_plain_and_short() -> None:
    assert file_name("Exams: by year (CMB)") == "exams-by-year-cmb"
    assert file_name("Wins: 皮肤科／眼科, b against a") == "wins-皮肤科-眼科-b-against-a"
    assert file_name("../../etc/passwd") == "etc-passwd" and file_name("?!") == file_name("") == "table"
    assert file_name("\ud83d half") == "half"
    for long in ("a" * 900, "科" * 900):
        assert 190 < len(file_name(long).encode()) <= 200 and file_name(long)[-1] in "a科"


def test_tables_of_one_name_are_all_written(tmp_path: Path) -> None:
    tables = [Table(title, "", ("a",), [(cell,)]) for title, cell in (("T", "1"), ("t!", "2"), ("T", "3"))]
    tables.append(Table("科" * 200, "", ("a",), [("\ud83d 4",)]))
    write_tables(tmp_path / "tables", tables)
    cells = {path.stem: path.read_text(encoding="utf-8") for path in (tmp_path / "tables").glob("*.csv")}
    assert [cells.pop(name) for name in ("t", "t-2", "t-2-2")] == ["a\n1\n", "a\n2\n", "a\n3\n"]
    assert list(cells.values()) == ["a\n? 4\n"]
    assert len(list((tmp_path / "tables").glob("*.tex"))) == 4
