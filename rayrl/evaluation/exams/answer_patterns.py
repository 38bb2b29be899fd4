"""Word tables behind extract.py: what makes a letter a choice, what denies it, and what makes it a part of a word.

They are matched against a text in which every option's text is one sign (TEXT), spaces are single and no line is
blank. None may take more than linear time: what repeats is possessive, or has an end. Left out: how they work together.
"""

from __future__ import annotations

import re

HAN = "\u3400-\u9fff"
TEXT = "[\ue000-\ue01f]"
"""Signs that stand for the options' texts, see answer_signs.py."""


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text, re.IGNORECASE)


# What was said, as plain text.
THOUGHT = _pattern(r"<(/?)think(?:ing)?>")
ANOTHER = _pattern(
    r"\n ?(?:下一题|(?:问题|题目|用户|患者|问|next question|question|user|human|patient|q) ?\d{0,3} ?[:.)])"
)
"""Where a model goes on with a question or a dialogue of its own."""
BOXED = _pattern(r"\\boxed\b|</?answer\b>?")
LATEX = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mathsf)\b|\\[()\[\],;!]")
QUOTE = re.compile(r"(?<![A-Za-z])'|'(?![A-Za-z])")
CHARACTERS: dict[int, str | None] = {
    **{code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},
    **dict.fromkeys(map(ord, "\u3000\u00a0\u2002\u2003_"), " "),
    **dict(zip(map(ord, "【[「『〔{】]」』〕}"), "(((((())))))", strict=True)),
    **dict.fromkeys(map(ord, '*`$"＂“”‘#>\u200b\ufeff')),
    **dict.fromkeys(range(0xE000, 0xE020), " "),
    ord("’"): "'",
}
"""Full-width characters to plain ones, brackets to round ones, markdown and quotes to nothing."""

# Letters that are no choice.
WORD_BEHIND = _pattern(
    r"'|-[A-Za-z]|[+\-]?\d"
    r"| ?(?:[型超族组级肽波链群区段期环酶胺]|细胞|淋巴|反应蛋白|病毒|抗原|受体|蛋白|因子)"
    r"| (?:cells?|lymphocytes?|virus|waves?|antigens?|type|group|positive|negative|strep\w{0,12}|coli|peptide)\b"
)
ARTICLE_BEHIND = re.compile(r" (?!(?:because|since|and|or|is|are|as|rather|instead|not|but|for|due|it)\b)[a-z'\d]")
"""Behind A or I: they are words."""
_WORDS_BEFORE = ("itamin", "epatitis", "ype", "roup", "rade", "lass", "tage", "actor", "rotein", "luenza", "erson")
START = re.compile(
    r"(?<![A-Za-z0-9素酸型°\-'])(?<!蛋白)(?<!肝炎)(?<!\d )"
    + "".join(rf"(?<!{word} )" for word in _WORDS_BEFORE)
    + r"[A-Z]++(?![A-Za-z0-9])"
)
"""Letters in the middle of a text that may be options."""
NO_CHOICE_BEFORE = _pattern(r"(?:group|type|grade|class|stage|hepatitis|vitamin) $")

# Letters and texts that stand together.
LETTERS = re.compile(
    r"[ (\-•·]*+(?:\d{1,2}[.)、] ?(?=[A-Z(]))?+\(?(?:选项|(?:[Oo]ption|[Cc]hoice) ?)?\(?"
    r"(?P<run>[A-Z]++|[a-z])(?![A-Za-z0-9])"
)
LONE_TEXT = re.compile(
    rf"[ (\-•·]*+(?:\d{{1,2}}[.)、] ?)?+(?:(?:[Tt]he|[Aa]n|a) )?(?P<text>{TEXT})\)?(?: ?\( ?(?P<letter>[A-Z]) ?\))?"
)
BESIDE = re.compile(rf" ?\)?(?:选?项)?(?P<between>[ .:、,(\-–—=]*+)(?P<text>{TEXT})\)?")
CLOSE = re.compile(r"(?: ?\))?(?: ?选?项)?")
SEPARATOR = _pattern(
    r" ?(?:(?P<either>,? ?\bor\b|或者?|还是)"
    r"|(?P<firm>,? ?\band(?: also)?\b|,? ?\bas well as\b|[、/&+|]|以及|还有|[和与及])"
    r"|(?P<loose>[,;]|(?=\())|(?P<line>\n))|(?P<space> )"
)
GOES_ON = _pattern(
    rf"[ )]*+(?:$|[\n.。;,、/&+)!?]|(?:(?:以?及|[和与或]|and |or )[ (]*+)?\(?(?:[A-Z](?![A-Za-z])|{TEXT})"
    r"|\d{1,2}[.)、]|[均都])"
)
"""Behind a letter that a comma or a space joins to the one before."""
STOP = _pattern(rf"[ )]*+(?:$|[\n.。;,!?:]|because\b|since\b|rather\b|instead\b|是?因为|而不是|而非|吧|{TEXT})")
TOGETHER = re.compile(r" ?[均都皆]")
EITHER_BEHIND = _pattern(r" ?(?:或|还是|or\b)")
LINE_END = re.compile(r"[ .。;,)]*+(?:\n|$)")

# Claims.
_DENIED = r"不|非|\bnot\b|n't\b|\bnever\b"
_FILL = (
    r" :()=\-—–,]|是|为|选项?|选择|应该|应当|应|就|只能|可能|最终?|一定|本题|的|了|即|有|包括|{denied}"
    r"|\b(?:is|are|was|would|should|must|will|be|to|this|that|the|question|here|therefore|thus|hence|most|likely|probably"
    r"|clearly|definitely|options?|choices?|letters?|of|in|case|indeed|still|then|simply|either|both|an|correct|best)\b)*+"
).replace("{denied}", _DENIED)
FILL = {"strong": _pattern(r"(?:[\n" + _FILL), "weak": _pattern("(?:[" + _FILL)}
"""What may stand between a claim's word and its letters."""
CLAIM = _pattern(
    r"(?P<strong>(?<!备选)答案|正确(?=:)|(?<![可供备首])选(?:择|出|取|用)?(?![项修题手课择])|正确选项"
    r"|\bans\b\.?|\b(?:answers?|choose|choosing|chose|select|selected|pick|picked|go with|going with|went with"
    r"|start with|opt for|(?:correct|best|right|final|my) (?:option|choice)s?)\b|\bcorrect(?=:))"
    r"|(?P<weak>首选|倾向于?|应该?(?=[是为])|应当(?=[是为])|而是|其实是|就是|只有|剩下?|考虑|诊断|认为|觉得|可能是|包括|(?:方案|措施|结论)(?=:)"
    rf"|选项(?=[是为:])|的[{HAN}]{{0,8}}?(?<![型级期组类])[是为有]|因此|所以|故|综上(?:所述)?|可见|更正|(?<![{HAN}])答(?=:)"
    r"|(?<![A-Za-z])(?:it's|(?<!so )(?:is|are)|be|leaves|leaving|say|maybe|perhaps|probably|so(?! (?:is|are) )"
    r"|therefore|thus|hence|actually|correction|finally|no|wait)\b)"
    r"|(?P<contrast>\bbut\b)|(?P<copula>[是为])"
)
"""strong: any letter or text behind it is chosen; weak: letters that end a clause, and texts for want of better;
contrast: behind something denied only; copula: texts only."""
DENIED = _pattern(_DENIED)
DENIED_BEFORE = _pattern(
    rf"(?:{_DENIED}|[别勿误未]|不能|不应该?|不可以?|不该|不要|错误的?|干扰|其次|cannot|incorrect|wrong|other) ?"
    r"(?:to |the )?$"
)
ASKED_BEHIND = re.compile(r"[ )]*+(?:吗|么|呢)? ?\?")
CONDITION_BEFORE = _pattern(r"(?:如果|若|假如|倘若|\bif\b)[^。.;\n!?]*$")
CONDITION_BEHIND = _pattern(r",? ?(?:if|unless|when)\b")
ADDED_BEFORE = _pattern(r"(?:也|还|\balso)(?:可能|可以|应|要|会)? ?$")
ADDED_BEHIND = _pattern(
    r" ?(?:也(?:可以|可能|行|对|正确)|(?:is|are|could|might) also (?:be )?(?:correct|right|true|possible)\b)"
)
IS_ANSWER_BEHIND = _pattern(
    r" ?(?:选?项)?(?:才是|就是|是|为)(?:本题|该题)?的?(?:最佳|正确|标准|最终)?的?答案| it is\b"
    r"| (?:is|would be|must be|remains) (?:the|my) (?:single )?"
    r"(?:(?:correct|best|right|most appropriate|most likely|final) )?(?:answer|option|choice|one)\b"
)
CUE = _pattern(
    r"(?:^|[\s。.,!?;—])(?:(?P<back>不对(?!的)|错了|不,|等等|等一下|更正|纠正一?下?:|重新(?:想|看|考虑|思考|分析|判断|审题)"
    r"|wait\b(?! and)|no[,.:—]|hmm\b|correction\b|on second thought|let me re)|actually\b|其实)"
)
"""Where a model corrects itself; `back`: it takes back what it said."""
LAST_SENTENCE = re.compile(r"(?<!Dr)(?<!vs)[.。!] ?([A-Z]{1,10})[ .。]*$")
LAST_BRACKET = re.compile(r"\(([A-Z])\)[ .。]*$")
BRACKETED = re.compile(r"\(([A-Z])\)")

# An answer's first letters.
HEAD = re.compile(
    r"(?:^|(?<=[\n。;]))[ (\-•]{0,4}(?:\d{1,2}[.)、] ?)?(?:选项|[Oo]ption )?([A-Z])"
    rf"(?:[.:、)] ?(?![A-Z][^A-Za-z])| ?{TEXT}| [{HAN}])"
)
"""A letter that begins a line or a sentence about its option."""
SECTION = _pattern(r"解析|分析|理由|说明|explanation|because|reason|analysis")

# Verdicts.
_BAD = (
    r"不正确|错误|不对|不符合?|有误|不合适|不恰当|不选(?! ?[A-Z])|(?<!不能)(?<!无法)排除|不是(?:正确)?答案|[×✗✘❌]"
    r"|\b(?:incorrect|wrong|false|inappropriate)\b|\bnot (?:the )?(?:correct|right|answer|true|best)\b"
    r"|(?<!not be )(?<!n't be )\bruled out\b|(?<=[\-–—:]) ?no\b(?! \w)"
)
_GOOD = (
    r"正确|符合|合适|恰当|[√✓✔✅]|对(?=[,。.;\n !?]|的|$)|\b(?:correct|true|best)\b|\bright\b(?! \w)"
    r"|\b(?:most|more) (?:likely|appropriate)\b|(?<=[\-–—:]) ?yes\b"
)
VERDICT = _pattern(rf"(?P<bad>{_BAD})|(?P<good>{_GOOD})")
VERDICT_BEHIND = _pattern(
    r" ?(?:选?项)?(?:[ :\-–—]|是|均|都|皆|也|才|最|更|完全|可以?|能|说法|描述|叙述|\bcan be\b"
    r"|\b(?:is|are|was|seems?|would be|both|all|the)\b)*+"
    rf"(?:(?P<bad>{_BAD}|错)|(?P<good>{_GOOD}))"
)
SO_IS = _pattern(r"\bso (?:is|are) ")
RULED_OUT = _pattern(
    r"(?<!不能)(?<!无法)排除(?:选项|了|[ :]){0,3}|\b(?:rule|ruled|ruling) out |\b(?:eliminat|exclud)(?:e|ed|ing) "
)
ALL = _pattern(r"(?:以上|所有)(?:选项|各项|答案)?(?:全部?|[均都皆])(?:[是对选]|正确)|全选|\ball of the above\b")
ALL_BUT = _pattern(rf"(?<!排)除了?(?=\(?[A-Z]|{TEXT})|\b(?:all|everything) (?:except|but) (?:for )?")
ALL_BUT_BEHIND = _pattern(r" ?(?:以外|之外|外)?,?(?:其[余他它])?(?:选项|各项|的)?[均都全]|[ .。]*+$")

# An option's text that stands alone.
TEXT_DENIED_BEFORE = _pattern(
    rf"(?:(?:[不无未非]|没有)[{HAN}]{{0,4}}|其次是?|排除|除|\b(?:not|no|without|unlike|than|over|versus|vs\.?)) ?"
    rf"(?:an? |the )?(?:{TEXT}(?:[或和、]|,? or |,? and |, )(?:an? |the )?){{0,4}}$"
)
TEXT_DENIED_BEHIND = _pattern(r" ?(?:除外|不|(?:is|are|was|would be|does|do)(?:n't| not)\b)")
LETTER_BEFORE = re.compile(r"(?<![A-Za-z])([A-Z])[ .:、)(]{1,3}$")
PART_BEFORE = _pattern(rf"(?:[性型类非抗、\-]|[{HAN}][和与及]|\b(?:and|or)) ?$")
PART_BEHIND = _pattern(r" ?(?:[、/]|[和与及或]|(?:and|or)\b)")
"""The text is a part of a longer word, or one of several."""
