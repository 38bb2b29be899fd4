"""Lexicons and the share of a text that their terms cover, with shares counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayrl.config.corpus import ExtractConfig, LexiconConfig
from rayrl.corpus.lexicon import NOT_ENOUGH, Extract, Lexicon, Matcher, threshold_of
from rayrl.corpus.records import texts
from rayrl.errors import UserError


def lexicon(tmp_path: Path, content: str | bytes, weight: float = 1.0, stop: str | None = None) -> Lexicon:
    path = tmp_path / "terms.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    stop_words = []
    if stop is not None:
        (tmp_path / "stop.txt").write_text(stop, encoding="utf-8")
        stop_words = [str(tmp_path / "stop.txt")]
    return Lexicon.load(ExtractConfig(lexicons=[LexiconConfig(path=str(path), weight=weight)], stop_words=stop_words))


def matcher(**weights: float) -> Matcher:
    return Matcher(Lexicon({term.replace("_", " "): weight for term, weight in weights.items()}))


def of(*terms: str) -> Matcher:
    return Matcher(Lexicon(dict.fromkeys(terms, 1.0)))


def test_terms_weights_comments_and_duplicates(tmp_path: Path) -> None:
    found = lexicon(tmp_path, "# a list\n\n高血压\t2\nAspirin \n aspirin\t0.5\r\n#头痛\n头痛\n", weight=1.5)
    assert found.terms == {"高血压": 2.0, "aspirin": 1.5, "头痛": 1.5}
    assert found.repeated == 1


def test_a_byte_order_mark_is_no_part_of_the_first_term(tmp_path: Path) -> None:
    assert lexicon(tmp_path, b"\xef\xbb\xbf" + "胃炎\n".encode()).terms == {"胃炎": 1.0}


def test_stop_words_are_no_terms_whatever_their_case_or_weight(tmp_path: Path) -> None:
    found = lexicon(tmp_path, "System\nheart\n数据\n", stop="system\t3\n# heart\n数据\n")
    assert found.terms == {"heart": 1.0}


def test_lists_are_put_together_and_the_larger_weight_holds(tmp_path: Path) -> None:
    for name, content in (("a", "胃炎\n头痛\t3\n"), ("b", "头痛\n肺炎\n")):
        (tmp_path / name).write_text(content, encoding="utf-8")
    lists = [
        LexiconConfig(path=str(tmp_path / "a"), weight=1.0),
        LexiconConfig(path=str(tmp_path / "b"), weight=2.0),
    ]
    found = Lexicon.load(ExtractConfig(lexicons=lists))
    assert found.terms == {"胃炎": 1.0, "头痛": 3.0, "肺炎": 2.0}
    assert found.repeated == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("头痛\theavy\n", "the weight of '头痛' is 'heavy', no number"),
        ("头痛\t\n", "the weight of '头痛' is '', no number"),
        ("头痛\t-1\n", "the weight of '头痛' is -1"),
        ("头痛\tnan\n", "the weight of '头痛' is nan"),
        ("精神\t63478\n", "if the second column is a count, leave it out"),
        ("\t2\n", "has no term"),
        ("*\n", "has no term"),
        ("# nothing\n\n", "it holds no term"),
        (b"", "it holds no term"),
        ("高血压".encode("gbk"), r"isn't UTF-8 \(byte 0\)"),
    ],
)
def test_lists_that_say_nothing_or_the_wrong_thing_are_named(tmp_path: Path, content: str | bytes, said: str) -> None:
    with pytest.raises(UserError, match=f"lexicon {tmp_path}/terms.txt.*{said}"):
        lexicon(tmp_path, content)


def test_an_empty_list_behind_one_with_repetitions_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("头痛\n头痛\n", encoding="utf-8")
    (tmp_path / "b").write_text("# later\n", encoding="utf-8")
    lists = [LexiconConfig(path=str(tmp_path / name)) for name in "ab"]
    with pytest.raises(UserError, match="b: it holds no term"):
        Lexicon.load(ExtractConfig(lexicons=lists))


def test_a_missing_list_is_named_with_those_that_are_built_in(tmp_path: Path) -> None:
    for config in (
        ExtractConfig(lexicons=[LexiconConfig(path=str(tmp_path / "none.txt"))]),
        ExtractConfig(lexicons=[LexiconConfig(path="medical-en")], stop_words=[str(tmp_path / "none.txt")]),
    ):
        with pytest.raises(UserError, match=r"none\.txt can't be read.*built in: .*medical-en"):
            Lexicon.load(config)


def test_the_built_in_list_knows_medical_english_and_not_its_neighbours() -> None:
    found = Lexicon.load(ExtractConfig(lexicons=[LexiconConfig(path="medical-en")]))
    assert len(found.terms) > 500
    matcher = Matcher(found)
    assert matcher.density("Patients with hepatitis B received antiviral therapy for cirrhosis.", "en").share > 0.4
    assert matcher.density("The train to the coast leaves at nine from the old station.", "en").share == 0
    assert matcher.density("pathogenic melanomatous uveitis", "en").share == 1


def test_chinese_is_measured_by_characters() -> None:
    found = of("高血压", "头痛").density("我有高血压，头痛 头痛。\n", "zh")
    assert found.hits == {"高血压": 1, "头痛": 2}
    assert found.share == pytest.approx((3 + 2 + 2) / 11)  # 我有高血压，头痛头痛。


def test_english_is_measured_by_words() -> None:
    found = of("blood pressure", "heart").density("My blood pressure rose, my heart\nraced.", "en")
    assert found.share == pytest.approx((2 + 1) / 7)
    assert of("blood pressure").density("low blood\npressure", "en").share == pytest.approx(2 / 3)


def test_weights_multiply() -> None:
    assert matcher(heart=2.0, blood_pressure=0.5).density("heart and blood pressure", "en").share == pytest.approx(
        3 / 4
    )
    assert Matcher(Lexicon({"头痛": 0.5})).density("头痛了吗", "zh").share == pytest.approx(1 / 4)


def test_latin_terms_are_whole_words() -> None:
    for text in ("cardiac art", "arty", "Heart", "réart", "artä"):
        assert of("art").density(text, "en").share == (0.5 if text == "cardiac art" else 0), text
    assert of("flu").density("the flu; flu-like, influenza", "en").hits == {"flu": 2}
    assert of("b超").density("做b超和ab超", "zh").hits == {"b超": 1}
    assert of("ct").density("做CT检查，ctr", "zh").hits == {"ct": 1}


def test_a_plural_counts_and_no_other_ending() -> None:
    assert of("lung").density("lung lungs lungsy lunged", "en").hits == {"lung": 2}


def test_wildcards() -> None:
    found = of("*itis", "cardio*").density("Hepatitis, cardiology; itis, cardio. Itistic mycardiology.", "en")
    assert found.hits == {"*itis": 2, "cardio*": 2}


def test_the_longest_term_at_a_place_counts() -> None:
    found = of("血压", "高血压", "高血压病", "高血").density("高血压病", "zh")
    assert (found.share, found.hits) == (1, {"高血压病": 1})
    assert of("stem", "stem cell").density("stem cell stem", "en").hits == {"stem cell": 1, "stem": 1}


def test_a_longer_term_that_is_no_whole_word_hides_no_shorter_one() -> None:
    assert of("pathogen", "patho*").density("pathogenic", "en").hits == {"patho*": 1}
    assert of("enteritis", "*itis").density("gastroenteritis", "en").hits == {"*itis": 1}
    assert of("gastric", "*gastric").density("epigastric gastric", "en").share == 1


def test_a_word_counts_once() -> None:
    found = of("cardio*", "*megaly", "heart").density("Cardiomegaly heart", "en")
    assert found.hits == {"cardio*": 1, "*megaly": 1, "heart": 1}
    assert found.share == 1
    assert of("heart", "lung", "lung cancer").density("heart/lung cancer", "en").share == 1


def test_case_does_not_count() -> None:
    assert of("hiv").density("HIV and Hiv", "en").share == pytest.approx(2 / 3)
    assert of("ümlaut").density("ÜMLAUT", "de").share == 1


def test_an_empty_text_has_no_share() -> None:
    for language in ("zh", "en"):
        assert of("heart").density("", language).share == 0
        assert of("heart").density(" \n", language).share == 0


def test_the_most_particular_threshold_holds() -> None:
    config = ExtractConfig(
        lexicons=[LexiconConfig(path="medical-en")],
        threshold=0.02,
        thresholds={"en": 0.05, "book": 0.01, "en/book": 0.03},
    )
    assert threshold_of("zh", "web", config) == 0.02
    assert threshold_of("en", "web", config) == 0.05
    assert threshold_of("zh", "book", config) == 0.01
    assert threshold_of("en", "book", config) == 0.03


def test_extract_keeps_texts_of_the_domain_with_their_terms() -> None:
    config = ExtractConfig(
        lexicons=[LexiconConfig(path="medical-en")], threshold=0.25, thresholds={"en": 0.5, "book": 0.1}, top_hits=2
    )
    rows = [
        {"id": "a", "text": "头痛头痛，胃炎吗？", "language": "zh", "genre": "web"},
        {"id": "b", "text": "今天天气很好，我头痛了", "language": "zh", "genre": "web"},
        {"id": "c", "text": "my heart hurts", "language": "en", "genre": "web"},
        {"id": "d", "text": "今天天气很好，我头痛了", "language": "zh", "genre": "book"},
        {"id": "e", "text": "heart heart hepatitis lung my", "language": "en", "genre": "web"},
    ]
    result = Extract(config, of("头痛", "胃炎", "heart", "lung", "*itis"))(texts(rows))
    assert result.table["id"].to_pylist() == ["a", "d", "e"]
    assert result.dropped == [(1, NOT_ENOUGH), (2, NOT_ENOUGH)]
    assert result.table["density"].to_pylist() == pytest.approx([6 / 9, 2 / 11, 4 / 5])
    assert result.table["hits"].to_pylist() == [
        [{"term": "头痛", "count": 2}, {"term": "胃炎", "count": 1}],
        [{"term": "头痛", "count": 1}],
        [{"term": "heart", "count": 2}, {"term": "*itis", "count": 1}],
    ]


def test_a_threshold_is_reached_exactly() -> None:
    config = ExtractConfig(lexicons=[LexiconConfig(path="medical-en")], threshold=0.5)
    table = texts([{"id": "a", "text": "头痛了吗", "language": "zh", "genre": "web"}])
    assert Extract(config, of("头痛"))(table).table.num_rows == 1
    assert Extract(config, of("头痛"))(texts([])).table.num_rows == 0
