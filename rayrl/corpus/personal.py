"""Personal data to masks: `[PHONE]`, `[EMAIL]`, `[ID]`, `[QQ]`, `[ADDRESS]`, `[NAME]`.

Patterns find what has a form: numbers, addresses, names beside a title. Names that stand alone aren't found, and a
doctor who is quoted by name in a textbook is masked too: masks are asked for by genre (`clean.mask_names`).
"""

from __future__ import annotations

import re
from collections import Counter

_ID = re.compile(r"(?<!\d)[1-9]\d{5}(?:18|19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?![\dXx])")
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_CHECK = "10X98765432"
_EMAIL = re.compile(r"[A-Za-z0-9_.+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+")
_PHONE = re.compile(
    r"(?<![\d.])(?:\+?86[- ]?)?1[3-9]\d[- ]?\d{4}[- ]?\d{4}(?!\d)"
    r"|(?<![\d.-])\(?0\d{2,3}\)?[- ]?\d{7,8}(?:-\d{1,5})?(?!\d)"
    r"|(?<![\d.-])(?:400|800)-?\d{3}-?\d{4}(?!\d)"
    r"|(?<![\d.-])(?:\+?1[- .])?\(?[2-9]\d{2}\)?[- .]\d{3}[- .]\d{4}(?!\d)"
)
_QQ = re.compile(
    r"((?:QQ|qq|Qq|扣扣|微信|WeChat|wechat|VX|vx)\s*(?:群|号码|号)?\s*(?:[:：是为]|\s)?\s*)([A-Za-z0-9_-]{5,20})(?![\w-])"
)
_ADDRESS = re.compile(
    r"(?:[\u4e00-\u9fff]{2,8}(?:省|自治区))?[\u4e00-\u9fff]{2,8}(?:市|自治州)(?:[\u4e00-\u9fff]{1,8}(?:区|县|市))?"
    r"[\u4e00-\u9fffA-Za-z0-9]{1,12}?(?:路|街|大道|巷|胡同|弄)[\u4e00-\u9fff]{0,2}\d{1,5}号(?:[\dA-Za-z\u4e00-\u9fff]{0,8}(?:楼|室|层|栋|单元))?"
    r"|[\u4e00-\u9fff]{1,8}(?:路|街|大道|巷|胡同|弄)\d{1,5}号(?:[\dA-Za-z]{0,6}(?:楼|室|层|栋|单元))?"
)
_SURNAMES = (
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何林罗郑梁谢宋唐许韩冯邓曹彭曾肖田董潘袁蔡蒋余于杜叶程魏苏吕丁任卢姚沈钟姜崔谭陆范"
    "汪廖石金韦贾夏付方邹熊白孟秦邱侯江尹薛闫段雷龙黎史陶贺毛郝顾龚邵万覃武钱戴严莫孔汤欧"
)
_TITLE = "医生|大夫|医师|主任|副主任|教授|护士长|护士|先生|女士|小姐|阿姨|师傅"
_NOT_NAMES = re.compile(
    "^(?:任何|方便|万一|高年|石膏|白天|金牌|江湖|马上|黄金|余下|任一|严重|严格|许多|何时|何种|龙头|夏天|周围|周末|方才)"
)
_CHINESE_NAME = re.compile(
    rf"(?<![\u4e00-\u9fff])([{_SURNAMES}][\u4e00-\u9fff]{{0,2}}?)(?=(?:{_TITLE}))|(?<=[，。！？、\s您你好找请问谢])([{_SURNAMES}][\u4e00-\u9fff]{{0,2}}?)(?=(?:{_TITLE}))"
)
_PATIENT = re.compile(rf"((?:姓名|患者姓名|病人姓名|联系人)\s*[:：]\s*)([{_SURNAMES}][\u4e00-\u9fff]{{1,3}})")
_SOMEONE = re.compile(rf"([{_SURNAMES}])(?:某某|某|××|XX|\*\*)")
_ENGLISH_NAME = re.compile(r"\b((?:Dr|Mr|Mrs|Ms|Prof)\.?\s+)([A-Z][a-z]+(?:\s+[A-Z][a-z]+)?)")


def mask(text: str, *, names: bool) -> tuple[str, Counter[str]]:
    """The text with masks, and how many of each. Example: ("电话13812345678", names=False) -> ("电话[PHONE]", ...)"""
    found: Counter[str] = Counter()

    def put(pattern: re.Pattern[str], name: str, text: str, before: int = 0) -> str:
        def one(match: re.Match[str]) -> str:
            found[name] += 1
            return (match.group(before) if before else "") + f"[{name}]"

        return pattern.sub(one, text)

    def identity(match: re.Match[str]) -> str:
        if not valid_id(match.group()):
            return match.group()
        found["ID"] += 1
        return "[ID]"

    if any(character.isdigit() for character in text):
        text = _ID.sub(identity, text)
        text = put(_PHONE, "PHONE", text)
        text = put(_QQ, "QQ", text, before=1)
        text = put(_ADDRESS, "ADDRESS", text)
    if "@" in text:
        text = put(_EMAIL, "EMAIL", text)
    if names:
        text = _CHINESE_NAME.sub(lambda match: _name(match, found), text)
        text = put(_PATIENT, "NAME", text, before=1)
        text = put(_SOMEONE, "NAME", text)
        text = put(_ENGLISH_NAME, "NAME", text, before=1)
    return text, found


def valid_id(number: str) -> bool:
    """Whether a Chinese identity number's last character is the check digit of the others (GB 11643-1999)."""
    total = sum(int(digit) * weight for digit, weight in zip(number[:17], _WEIGHTS, strict=True))
    return _CHECK[total % 11] == number[17].upper()


def _name(match: re.Match[str], found: Counter[str]) -> str:
    if _NOT_NAMES.match(match.group()):
        return match.group()
    found["NAME"] += 1
    return "[NAME]"
