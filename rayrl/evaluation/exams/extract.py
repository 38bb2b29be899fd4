"""Which letters a model's free-text answer to a multiple-choice question chooses, or None where that can't be told.

There is no default: an answer that chooses nothing, or may mean two things, is None. The rules, in order:

 1. What was said counts: what follows the last </think>, and nothing of a thought that never ends; of a model that
    goes on with a question or a dialogue of its own, what comes before, if that holds a choice.
 2. Full-width characters are read as plain ones; markdown, quotes and LaTeX are dropped, brackets made round.
 3. An option's text is one sign wherever it stands, the longest one first, so that a letter in it ("vitamin A") is
    no letter. A letter in any other word (B超, A型血, C-reactive, "a patient") is none either.
 4. An answer that is nothing but letters or options' texts.
 5. Claims: letters or texts behind words that choose ("答案", "选", "answer", "choose", \\boxed, a key of JSON),
    letters that end a clause behind "therefore", "的是", "it's", letters before "is the answer", letters alone in the
    last line or sentence. The last claim counts. Not counted: what is denied (不选A, "not A"), asked (选A？) or
    conditional (如果…选A). None: taken back with nothing behind it (不对), three different ones, letters joined by
    "or", a letter beside another option's text, a letter that is no option.
 6. Letters or a text that the answer begins with ("C. Glipizide ..."), unless the options are gone through in order.
 7. Verdicts on options ("A错误；B错误；C正确"): the one right among wrong ones, or the one wrong among right ones. Of a
    multiple question those called right, where at most one is called wrong or several are called right together.
 8. All options but one ruled out; "all but E"; "all of the above" of a multiple question.
 9. The one option whose text stands behind weaker words (是, 首选, "is"), then the one that a short answer names.

Of a single question, several letters are None. Left out: whether the choice is right, the question's own words, and
guesses from how probable a letter is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from rayrl.evaluation.exams import answer_patterns as words
from rayrl.evaluation.exams.answer_signs import is_lowered, letter_of, plain, spoken, with_signs

_WINDOW = 40
"""Characters before a claim that may deny it or make it conditional."""
_SHORT = 300
"""So long may an answer be that says nothing but an option's text."""


@dataclass(frozen=True)
class _Group:
    """Letters and texts that stand together."""

    letters: str
    start: int
    end: int
    clear: bool = True
    """False: joined by "or", a letter beside another option's text, or a letter that is no option."""
    num_texts: int = 0
    """How many of them have their text beside them, or are texts."""
    bare: bool = False
    """Texts only, no letter."""


@dataclass(frozen=True)
class _Item:
    """One run of letters, or one text, of a group."""

    letters: str
    end: int
    clear: bool
    text: bool
    bare: bool


@dataclass(frozen=True)
class _Claim:
    """What is chosen at one place; no letters: something that can't be told."""

    letters: str
    at: int
    added: bool = False
    """Chosen besides what was chosen before ("也选C")."""


@dataclass
class _Claims:
    chosen: list[_Claim] = field(default_factory=list)
    texts: list[_Claim] = field(default_factory=list)
    """Texts behind weak words."""


def extract(answer: str, options: Mapping[str, str], multiple: bool) -> str | None:
    """The chosen letters, ascending ("C", "ACD"), or None where the answer doesn't say them clearly.

    Example: extract("A is too slow, so the answer is (B).", {"A": "Rest", "B": "Ice"}, multiple=False) -> "B"
    """
    text = with_signs(plain(spoken(answer)), options)
    for found in islice(words.ANOTHER.finditer(text), 3):
        before = _Answer(text[: found.start()], options, multiple).choice(sure_only=True)
        if before is not None:
            return before or None
    return _Answer(text, options, multiple).choice() or None


class _Answer:
    """One answer, its options' texts as signs."""

    def __init__(self, text: str, options: Mapping[str, str], multiple: bool) -> None:
        self.text, self.options, self.multiple = text.strip(), options, multiple
        self.keys = "".join(sorted(options))

    def choice(self, sure_only: bool = False) -> str | None:
        """The letters; "" where a rule says that they can't be told; None where no rule says anything.

        `sure_only`: rules up to that of the first letters.
        """
        claims = self._claims()
        found = self._whole()
        if found is None:
            found = self._resolved(claims.chosen)
        if found is None:
            found = self._lead()
        if sure_only:
            return found
        if found is None:
            found = self._verdicts()
        if found is None:
            found = self._ruled_out()
        if found is None and claims.texts:  # "夜盲是缺维生素A，坏血病是缺维生素C" chooses neither
            found = claims.texts[-1].letters if len({claim.letters for claim in claims.texts}) == 1 else ""
        return self._only_text() if found is None else found

    def told(self, letters: str) -> str:
        """The letters where they can be an answer, else ""."""
        chosen = "".join(sorted(set(letters)))
        if not chosen or any(letter not in self.keys for letter in chosen) or (len(chosen) > 1 and not self.multiple):
            return ""
        named = {letter for letter, text in self.options.items() if text.strip().upper() == chosen}
        return "" if named - {chosen} else chosen

    # Groups

    def _item(self, start: int, lower: bool, first: bool) -> _Item | None:
        """The letters or the text that stand at a place. `first`: of a group."""
        found = words.LONE_TEXT.match(self.text, start)
        if found:
            letter = letter_of(found["text"], self.keys)
            return _Item(letter, found.end(), found["letter"] in (None, letter), True, found["letter"] is None)
        found = words.LETTERS.match(self.text, start)
        if not found or words.WORD_BEHIND.match(self.text, found.end()):
            return None
        run, end = found["run"], found.end()
        beside = words.BESIDE.match(self.text, end) if len(run) == 1 else None
        if beside:
            letter = letter_of(beside["text"], self.keys)
            if letter == run.upper():
                return _Item(letter, beside.end(), True, True, False)
            if run == "A" and not beside["between"].strip() and is_lowered(beside["text"]):  # an article
                return _Item(letter, beside.end(), True, True, True)
            ends = words.STOP.match(self.text, beside.end())
            before = re.findall(words.TEXT, self.text[max(0, start - 5 * _WINDOW) : start])
            own_before = run in (letter_of(sign, self.keys) for sign in before)
            if first and (ends or not (own_before or "," in beside["between"])):
                return _Item("", beside.end(), False, True, False)
        if run in ("A", "I", "a", "i") and words.ARTICLE_BEHIND.match(self.text, end):
            return None
        if run.islower() and not (lower and words.STOP.match(self.text, end)) and self.text[end : end + 1] != ")":
            return None
        closed = words.CLOSE.match(self.text, end)
        known = all(letter in self.keys for letter in run.upper())
        return _Item(run.upper() if known else "", closed.end() if closed else end, known, False, False)

    def _group(self, start: int, lower: bool = False, chosen: bool = True) -> _Group | None:
        """The letters and texts that stand together from a place on.

        `chosen`: they are what is chosen, so that a verdict behind the last ones isn't on the first ("选B，A、C错误").
        """
        items: list[_Item] = []
        kinds: list[str] = []  # how each item is joined to the one before
        position, kind = start, ""
        while (item := self._item(position, lower, not items)) is not None:
            loose = kind in ("loose", "space", "line")
            if (loose and not words.GOES_ON.match(self.text, item.end)) or (
                kind == "line" and not words.LINE_END.match(self.text, item.end)
            ):
                break
            items.append(item)
            kinds.append(kind)
            separator = words.SEPARATOR.match(self.text, item.end)
            if separator is None:
                break
            position, kind = separator.end(), str(separator.lastgroup)
        last_loose = max((number for number, kind in enumerate(kinds) if kind in ("loose", "space", "line")), default=0)
        if chosen and last_loose and self._said_of_the_last(items, kinds, last_loose):
            items, kinds = items[:last_loose], kinds[:last_loose]
        if not items:
            return None
        letters = "".join(sorted(set("".join(item.letters for item in items))))
        clear = all(item.clear for item in items) and "either" not in kinds
        clear = clear and not words.EITHER_BEHIND.match(self.text, items[-1].end)
        num_texts = sum(item.text for item in items)
        if num_texts == len(items) and "line" in kinds and words.HEAD.match(self.text, items[-1].end + 1):
            clear = False  # a list of options that breaks off
        if num_texts == len(items) > 1 and letters == self.keys:
            clear = False  # all options, listed
        return _Group(letters, start, items[-1].end, clear, num_texts, all(item.bare for item in items))

    def _said_of_the_last(self, items: list[_Item], kinds: list[str], last_loose: int) -> bool:
        end = items[-1].end
        verdict = words.VERDICT_BEHIND.match(self.text, end)
        mixed = last_loose < len(items) - 1
        return bool((verdict and verdict["bad"]) or (mixed and words.TOGETHER.match(self.text, end)))

    # Rules

    def _whole(self) -> str | None:
        group = self._group(0, lower=True)
        if group is None or not re.fullmatch(r"[ .。!)(,;]*", self.text[group.end :]):
            return None
        return self.told(group.letters) if group.clear else ""

    def _claims(self) -> _Claims:
        claims = _Claims()
        position, denied_end = 0, -10
        while found := words.CLAIM.search(self.text, position):
            kind = str(found.lastgroup)
            fill = words.FILL["strong" if kind == "strong" else "weak"].match(self.text, found.end())
            filled = fill.group() if fill else ""
            position = found.end() + len(filled)
            group = self._group(position, lower=kind == "strong")
            if group is None or (kind == "contrast" and found.start() - denied_end > 3):
                continue
            position = max(position, group.end)
            before = self.text[max(0, found.start() - _WINDOW) : found.start()]
            denied = words.DENIED_BEFORE.search(before) and found.group()[0] != "的"  # "错误的是C" chooses
            if denied or words.DENIED.search(filled):
                denied_end = group.end
            elif not self._counts(group, kind, before, filled):
                continue
            elif kind == "strong" or (not group.bare and kind != "copula"):
                added = bool(words.ADDED_BEFORE.search(before))
                claims.chosen.append(_Claim(self.told(group.letters) if group.clear else "", found.start(), added))
            elif group.bare:
                claims.texts.append(_Claim(self.told(group.letters) if group.clear else "", found.start()))
        for found in re.finditer(words.TEXT, self.text):
            verdict = words.VERDICT_BEHIND.match(self.text, found.end())
            if verdict and verdict["good"]:
                claims.texts.append(_Claim(letter_of(found.group(), self.keys), found.start()))
        claims.chosen = sorted([*claims.chosen, *self._claims_behind()], key=lambda claim: claim.at)
        return claims

    def _counts(self, group: _Group, kind: str, before: str, fill: str) -> bool:
        """Whether a group behind a claim's word is claimed at all."""
        if words.ASKED_BEHIND.match(self.text, group.end) or words.CONDITION_BEHIND.match(self.text, group.end):
            return False
        verdict = words.VERDICT_BEHIND.match(self.text, group.end)
        if (verdict and verdict["bad"]) or words.CONDITION_BEFORE.search(before):
            return False
        if "\n" in fill and self._goes_through(group):
            return False
        if kind == "strong":
            return not (group.num_texts > 1 and not group.clear)  # a list of all options isn't a choice of all
        return bool(words.STOP.match(self.text, group.end)) and not words.NO_CHOICE_BEFORE.search(before)

    def _claims_behind(self) -> Iterator[_Claim]:
        """Letters before "is the answer", in the last line, and in brackets at the end."""
        for group in self._groups():
            if words.IS_ANSWER_BEHIND.match(self.text, group.end):
                yield _Claim(self.told(group.letters) if group.clear else "", group.start)
            elif words.ADDED_BEHIND.match(self.text, group.end) and group.clear:
                yield _Claim(self.told(group.letters), group.start, added=True)
        begin = self.text.rfind("\n") + 1
        last = self._group(begin, lower=True) if begin else None
        if last and last.clear and not last.num_texts and words.LINE_END.match(self.text, last.end):
            yield _Claim(self.told(last.letters), begin)
        sentence = words.LAST_SENTENCE.search(self.text, max(0, len(self.text) - _WINDOW))
        if sentence:
            yield _Claim(self.told(sentence[1]), sentence.start())
        bracket = words.LAST_BRACKET.search(self.text, max(0, len(self.text) - _WINDOW))
        if bracket and len(set(words.BRACKETED.findall(self.text))) == 1:
            yield _Claim(self.told(bracket[1]), bracket.start())

    def _groups(self) -> Iterator[_Group]:
        """Groups of letters anywhere."""
        position = 0
        while found := words.START.search(self.text, position):
            group = self._group(found.start(), chosen=False)
            position = max(found.end(), group.end if group else 0)
            if group:
                yield group

    def _resolved(self, claims: list[_Claim]) -> str | None:
        """What counts of all claims, by what is taken back and added."""
        if not claims:
            return None
        cues = list(words.CUE.finditer(self.text))
        taken_back = max((cue.start() for cue in cues if cue["back"]), default=-1)
        if taken_back > claims[-1].at:
            return ""
        last_cue = max((cue.start() for cue in cues if cue.start() <= claims[-1].at), default=-1)
        valid = [claim for claim in claims if claim.at >= last_cue]
        chosen: list[str] = []
        for claim in valid:
            if claim.added and chosen:
                chosen[-1] = self.told(chosen[-1] + claim.letters) if chosen[-1] and claim.letters else ""
            else:
                chosen.append(claim.letters)
        several = set(chosen)
        if len(several) > 2 or (self.multiple and len(several) == 2 and all(len(one) == 1 for one in several)):
            return ""
        return chosen[-1]

    def _lead(self) -> str | None:
        group = self._group(0)
        if group is None or not (group.num_texts or words.STOP.match(self.text, group.end)):
            return None
        if words.ASKED_BEHIND.match(self.text, group.end) or (
            group.bare and not words.LINE_END.match(self.text, group.end)
        ):
            return None
        verdict = words.VERDICT_BEHIND.match(self.text, group.end)
        separator = words.SEPARATOR.match(self.text, group.end)
        breaks_off = separator and len(group.letters) > 1 and words.START.match(self.text, separator.end())
        if verdict or breaks_off or self._goes_through(group):
            return None
        return self.told(group.letters) if group.clear else ""

    def _goes_through(self, group: _Group) -> bool:
        """Whether the letters begin a discussion of one option after the other."""
        head = words.HEAD.search(self.text, group.end)
        if head is None or head[1] <= max(group.letters, default=""):
            return False
        return not words.SECTION.search(self.text[group.end : head.start()])

    def _verdicts(self) -> str | None:
        good, bad, together = set[str](), set[str](), False
        for group in self._groups():
            verdict = words.VERDICT_BEHIND.match(self.text, group.end)
            if verdict and group.clear and not words.ASKED_BEHIND.match(self.text, verdict.end()):
                (bad if verdict["bad"] else good).update(group.letters)
                together |= verdict["bad"] is None and len(group.letters) > 1
        for found in words.SO_IS.finditer(self.text):
            also = self._group(found.end())
            good.update(also.letters if also else "")
        heads = list(words.HEAD.finditer(self.text))
        ends = [*(head.start() for head in heads[1:]), len(self.text)]
        for head, end in zip(heads, ends, strict=False):  # no head, one end
            said = self.text[head.start() : end].split("\n", 1)[0]
            kinds = {found.lastgroup for found in words.VERDICT.finditer(said)}
            if len(kinds) == 1:
                (bad if "bad" in kinds else good).add(head[1])
        if not good or good & bad:
            return None
        if self.multiple:
            return self.told("".join(good)) if together or (len(good) > 1 and len(bad) < 2) else None
        if len(good) == 1:
            return self.told("".join(good))
        return self.told("".join(bad)) if len(bad) == 1 and good | bad == set(self.keys) else ""

    def _ruled_out(self) -> str | None:
        """What all others are ruled out of; all options, or all but some, of a multiple question."""
        but = words.ALL_BUT.search(self.text)
        group = self._group(but.end()) if but else None
        if group and group.clear and words.ALL_BUT_BEHIND.match(self.text, group.end):
            return self.told("".join(set(self.keys) - set(group.letters)) if self.multiple else group.letters)
        if self.multiple:
            return self.keys if words.ALL.search(self.text) and not re.search("不|not", self.text) else None
        out = set[str]()
        for found in words.RULED_OUT.finditer(self.text):
            group = self._group(found.end())
            out.update(group.letters if group and group.clear else "")
        for group in self._groups():
            verdict = words.VERDICT_BEHIND.match(self.text, group.end)
            if verdict and group.clear and verdict["bad"] in ("排除", "ruled out"):
                out.update(group.letters)
        left = set(self.keys) - out
        return self.told("".join(left)) if out and len(left) == 1 else None

    def _only_text(self) -> str | None:
        """The only option whose text is named in a short answer, and not beside others or denied."""
        if len(self.text) > _SHORT:
            return None
        named, alone = set[str](), set[str]()
        for found in re.finditer(words.TEXT, self.text):
            letter = letter_of(found.group(), self.keys)
            before = self.text[max(0, found.start() - _WINDOW) : found.start()]
            if words.TEXT_DENIED_BEFORE.search(before) or words.TEXT_DENIED_BEHIND.match(self.text, found.end()):
                continue
            named.add(letter)
            beside = words.LETTER_BEFORE.search(before)
            if beside and beside[1] in self.keys and beside[1] != letter:
                return ""
            is_number = re.fullmatch(r"[\d.,]+", self.options[letter].strip())
            part = words.PART_BEFORE.search(before) or words.PART_BEHIND.match(self.text, found.end())
            alone.update("" if is_number or part else letter)
        return self.told("".join(alone)) if len(named) == 1 and alone else None
