"""Personal data to masks: `[PHONE]`, `[EMAIL]`, `[ID]`, `[QQ]`, `[ADDRESS]`, `[NAME]`.

Patterns find what has a form: numbers, addresses, names beside a title. Names that stand alone aren't found, and a
doctor who is quoted by name in a textbook is masked too: masks are asked for by genre (`clean.mask_names`).

No pattern may take a run of any length before it can fail, or a long text takes the square of its length.
"""

from __future__ import annotations

import re
from collections import Counter

_ID = re.compile(r"(?<!\d)[1-9]\d{5}(?:18|19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?![\dXx])")
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_CHECK = "10X98765432"
_EMAIL = re.compile(r"[A-Za-z0-9_.+-]{1,64}+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+")
_PHONE = re.compile(
    r"(?<![\d.])(?:\+?86[- ]?)?1[3-9]\d[- ]?\d{4}[- ]?\d{4}(?!\d)"  # mobile
    r"|(?<![\d.-])\(?0\d{2,3}(?:\)\s?|[- ])\d{7,8}(?:-\d{1,5})?(?!\d)"
    r"|(?<![\d./A-Za-z-])0\d{2,3}\d{7,8}(?:-\d{1,5})?(?!\d)"  # not in a DOI
    r"|(?<![\d.-])(?:400|800)-?\d{3}-?\d{4}(?!\d)"
    r"|(?<![\d.-])(?:\+?1[- .])?(?:\([2-9]\d{2}\)\s?|[2-9]\d{2}[-.])\d{3}[-.]\d{4}(?!\d)"  # North America
)
_QQ = re.compile(
    r"((?<![A-Za-z])(?:QQ|扣扣|微信|WeChat|VX)\s{0,2}(?:群|号码|号)?\s{0,2}[:：是为]?\s{0,2})"
    r"([A-Za-z0-9][A-Za-z0-9_-]{4,19})(?![A-Za-z0-9_-])",
    re.I,
)
_PLACE = "(?:(?![在位于址是到往至])[\u4e00-\u9fff])"  # what stands before an address is no part of it
_ROAD = "(?:(?<![旁管电回])路|街|大道|巷|胡同|弄)"
_NUMBER = r"\d{1,5}(?:弄\d{1,5})?号(?:[\dA-Za-z\u4e00-\u9fff]{0,8}(?:楼|室|层|栋|单元|座))?(?:\d{1,5}室)?"
_ADDRESS = re.compile(
    rf"(?:{_PLACE}{{2,8}}(?:省|自治区))?{_PLACE}{{2,8}}(?:市|自治州)(?:[\u4e00-\u9fff]{{1,8}}(?:区|县|市))?"
    rf"[\u4e00-\u9fffA-Za-z0-9]{{1,12}}?{_ROAD}[\u4e00-\u9fff]{{0,2}}{_NUMBER}|{_PLACE}{{1,8}}{_ROAD}{_NUMBER}"
)
_STREET = re.compile(
    r"\b\d{1,5} (?:[NSEW]\.? )?[A-Z][a-z]+ (?:[A-Z][a-z]+ )?"
    r"(?:Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane)\b"
)
_SURNAMES = (
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何林罗郑梁谢宋唐许韩冯邓曹彭曾肖田董潘袁蔡蒋余于杜叶程魏苏吕丁任卢姚沈钟姜崔谭陆范"
    "汪廖石金韦贾夏付方邹熊白孟秦邱侯江尹薛闫段雷龙黎史陶贺毛郝顾龚邵万覃武钱戴严莫孔汤欧樊殷倪聂焦俞翟邢庞颜温柴葛祝祁耿"
    "詹苗凌靳裴鲍霍翁柏柯阮饶瞿戚臧褚娄穆晏栾喻窦艾虞卞佟匡岑蔺庄鲁洪"
)
_SURNAME = f"(?:[{_SURNAMES}]|诸葛|上官|司马|慕容|皇甫|尉迟|令狐)"
_TITLE = "(?:医生|大夫|医师|主任|副主任|院长|教授|老师|护士|先生|女士|小姐|阿姨|师傅)"
# Words that begin with a surname's character and may stand before a title.
_NO_NAME = (
    "任(?:[何一用职期]|主任医师|副主任|教授)|方(?:便|面|法|案|才|能|可)|万(?:一|名|多|余|位|能)|高(?:[年级水等校中层危薪明])|石(?:膏|家庄)"
    "|白(?:天|班|衣|领)|金(?:牌|元|代|额|属)|江(?:湖|苏|西|南|门|浙)|马(?:上|来|鞍)|黄(?:金|色|体|冈|石|山)|余(?:下|名|位|生|人)"
    "|严(?:重|格)|许(?:多|可|久)|何(?:时|种|人|处|必|况|谓|止|为)|龙(?:头|岩)|夏(?:天|季)|周(?:围|末|边|[一二三四五六日])|(?<=谢)谢|谢谢|(?<=由)于|祝[您你愿福贺]"
    "|于(?:是|一|该|本|各|其|我|他|某)|曾(?:有|经|任|在|请|为|是|问|找|去|让|被|与)|段时间|钟(?:点|头)|顾(?:客|问)|武(?:汉|警)"
    "|苏州|徐州|郑州|沈阳|唐(?:山|代|朝)|宋(?:代|朝)|韩国|秦皇|程(?:度|序)|陈(?:旧|述)|付(?:费|款)|史上|贺州|黎明|范围|莫非|温(?:州|和|馨)"
)
_CHINESE_NAME = re.compile(
    rf"(?:(?<![\u4e00-\u9fff])|(?<=[您你好找请问谢和给由让跟叫约被]))(?!{_NO_NAME})"
    rf"{_SURNAME}[\u4e00-\u9fff]{{0,2}}?(?={_TITLE})"
)
_PATIENT = re.compile(
    r"((?:姓名|联系人)\s{0,3}[:：]\s{0,3})((?:(?!性别|年龄|职业|电话|住址|民族|婚姻|地址|经理)[\u4e00-\u9fff]){1,3})"
)
_SOMEONE = re.compile(rf"{_SURNAME}(?:某某|××|XX)|(?![于任]){_SURNAME}某(?![些种个一类项次时地日年月段位])")
_ENGLISH_WORD = "[A-ZÀ-Þ][A-Za-zÀ-ɏ'’-]*[a-zà-ɏ]"
_ENGLISH_NAME = re.compile(
    r"\b((?:Dr|Mr|Mrs|Ms|Prof)\.?\s{1,3})"
    rf"((?:[A-Z]\.\s?){{0,2}}{_ENGLISH_WORD}(?:\s[A-Z]\.)?(?:\s{_ENGLISH_WORD})?)"
)


_DIGIT = re.compile(r"\d")


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

    def account(match: re.Match[str]) -> str:
        before, name = match.groups()
        named = before.rstrip()[-1] in "号码:：是为" and before[0] in "微扣"
        if not named and not any(character.isdigit() for character in name):
            return match.group()
        found["QQ"] += 1
        return f"{before}[QQ]"

    if _DIGIT.search(text):
        text = _ID.sub(identity, text)
        text = put(_PHONE, "PHONE", text)
        text = put(_STREET, "ADDRESS", text)
        if "号" in text:
            text = put(_ADDRESS, "ADDRESS", text)
    text = _QQ.sub(account, text)
    if "@" in text:
        text = put(_EMAIL, "EMAIL", text)
    if names:
        if not text.isascii():
            text = put(_CHINESE_NAME, "NAME", text)
            text = put(_PATIENT, "NAME", text, before=1)
            text = put(_SOMEONE, "NAME", text)
        text = put(_ENGLISH_NAME, "NAME", text, before=1)
    return text, found


def valid_id(number: str) -> bool:
    """Whether a Chinese identity number's last character is the check digit of the others (GB 11643-1999)."""
    total = sum(int(digit) * weight for digit, weight in zip(number[:17], _WEIGHTS, strict=True))
    return _CHECK[total % 11] == number[17].upper()
