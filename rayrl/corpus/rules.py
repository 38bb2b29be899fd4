"""The rules of the stage `clean`: what a text's form alone says against it.

Repetition and symbols after Gopher's filters (Rae et al. 2021, arXiv 2112.11446, table A1); adverts by what they can't
do without: a way to reach the seller, and a price or a call to buy.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from rayrl.config.corpus import RulesConfig
from rayrl.corpus.lexicon import BY_CHARACTER

TOO_SHORT = "rule: too short"
REPEATS = "rule: repeats itself"
SYMBOLS = "rule: symbols, not words"
ADVERT = "rule: an advert's contact and price"
NO_SENTENCE = "rule: no sentence"

_LOOKED_AT = 100_000
"""Characters or words in which repetition is looked for."""
_LETTERS = re.compile(r"[^\W\d_]+")
_SENTENCE_END = re.compile(r"[。！？!?;；…]|\.(?![A-Za-z0-9])")
# No pattern may begin with a run of any length, or a long text takes the square of its length.
_CONTACT = re.compile(
    r"(?<!\d)1[3-9]\d[- ]?\d{4}[- ]?\d{4}(?!\d)|(?<![\d-])0\d{2,3}[- )]\d{7,8}(?!\d)|\w@[\w-]+\.\w|(?:https?://|www\.)[!-~]+"
    r"|(?:QQ|微信|加V|VX|电话|热线|传真|手机|致电)(?:号码?)?\s{0,3}[:：]?\s{0,3}[a-z0-9(+][a-z0-9()+-]{3}|联系人\s{0,3}[:：]"
    r"|\b(?:call|phone|tel|fax|e-?mail|sms)\b\W{0,3}[\d(+]|(?<!\d)\(?\d{3}\)?[- ]\d{3}[- ]\d{4}(?!\d)",
    re.I,
)
_OFFER = re.compile(
    r"[￥¥$€£]\s?\d|\d\s?(?:元|万元|块钱|RMB|USD|dollars\b|折(?!交叉|叠|线))"
    r"|优惠|特价|包邮|订购|抢购|热销|促销|代开|发票|免费咨询|欢迎来电|欢迎咨询|诚招|加盟|代理|批发|现货|厂家直销|报价|培训费"
    r"|\b(?:buy now|order now|special offer|discount|free shipping|for sale|best price|limited time|click here)\b",
    re.I,
)


def why_not(text: str, language: str, config: RulesConfig) -> str | None:
    """The first rule that the text breaks, or None."""
    if len(text) < config.min_chars:
        return TOO_SHORT
    letters = sum(map(len, _LETTERS.findall(text)))
    solid = len(text) - text.count(" ") - text.count("\n")
    if letters < config.min_letters_share * solid:
        return SYMBOLS
    if not _SENTENCE_END.search(text) and len(text) > config.sentence_by_chars:
        return NO_SENTENCE
    if _repeats(text, language, config):
        return REPEATS
    contacts, offers = len(_CONTACT.findall(text)), len(_OFFER.findall(text))
    if contacts and offers and contacts + offers >= config.advert_signs:
        return ADVERT
    return None


def _repeats(text: str, language: str, config: RulesConfig) -> bool:
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if len(lines) > 3:
        again = sum(len(line) * (count - 1) for line, count in Counter(lines).items() if count > 1)
        if again > config.max_repeated_share * len(text):
            return True
    if language in BY_CHARACTER:
        solid = text.replace(" ", "").replace("\n", "")[:_LOOKED_AT]
        sequences: list[Any] = [solid[i : i + 8] for i in range(len(solid) - 7)]
    else:
        words = text.lower().split()[:_LOOKED_AT]
        sequences = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    if len(sequences) < 20:
        return False
    return len(sequences) - len(set(sequences)) > config.max_repeated_share * len(sequences)
