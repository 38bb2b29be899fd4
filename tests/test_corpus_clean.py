"""What `clean` drops and masks: each rule with a text that breaks it and a near one that doesn't."""

from __future__ import annotations

import re
import time

import pytest

from rayrl.config.corpus import CleanConfig, RulesConfig
from rayrl.corpus import personal, rules
from rayrl.corpus.classifier import Classifier
from rayrl.corpus.clean import BAD, Clean
from rayrl.corpus.personal import mask, valid_id
from rayrl.corpus.quality import features
from rayrl.corpus.records import texts
from rayrl.corpus.rules import ADVERT, NO_SENTENCE, REPEATS, SYMBOLS, TOO_SHORT, why_not

RULES = RulesConfig()
ID = "11010519491231002X"  # the standard's own example: its weighted sum leaves 2, which X stands for
HEADACHE = "偏头痛多为一侧搏动性疼痛，可伴恶心、呕吐、畏光，发作时应在安静的暗室休息，必要时服用止痛药。"
KNEE = "The knee is swollen after a fall. Rest it, cool it, and see a doctor if it does not bear your weight."


@pytest.mark.parametrize(
    ("bad", "good"),
    [
        ("头痛三天，吃什么药？", "头痛三天了，请问应该吃什么药？"),
        ("Rest the knee.", "Rest the knee well."),
    ],
)
def test_too_short(bad: str, good: str) -> None:
    assert [why_not(bad, "zh", RULES), why_not(good, "zh", RULES)] == [TOO_SHORT, None]


def test_symbols() -> None:
    table = "| 3.5 | 4.1 | 7.2 | WBC | 12 | RBC | -- | ++ |。"
    assert why_not(table, "en", RULES) == SYMBOLS
    assert why_not("白细胞计数 3.5，红细胞计数 4.1，血小板计数 210。", "zh", RULES) is None
    assert why_not("Leucocytes 3.5, platelets 210, CRP 12.", "en", RULES) is None


def test_no_sentence() -> None:
    links = "首页 关于我们 联系方式 科室导航 专家介绍 预约挂号 医院新闻 健康讲座 " * 6
    assert why_not(links, "zh", RulesConfig(max_repeated_share=1, sentence_by_chars=200)) == NO_SENTENCE
    assert why_not(links[:190], "zh", RulesConfig(max_repeated_share=1)) is None
    assert why_not(links + "。", "zh", RulesConfig(max_repeated_share=1)) is None
    versions = " ".join(f"Version {n}.{n} notes on www.example{n}.org" for n in range(20))
    assert why_not(versions, "en", RULES) == NO_SENTENCE
    assert why_not(versions + " End.", "en", RULES) is None


def test_repeated_lines() -> None:
    same = ["点击这里查看更多内容。"] * 4 + ["头痛时应当注意休息。"]
    assert why_not("\n".join(same), "zh", RULES) == REPEATS
    assert why_not("\n".join(dict.fromkeys(same)) + "多喝水，少熬夜。", "zh", RULES) is None


@pytest.mark.parametrize(("text", "language"), [(HEADACHE, "zh"), (KNEE, "en")])
def test_repeated_sequences(text: str, language: str) -> None:
    assert why_not(text, language, RULES) is None
    assert why_not(" ".join([text] * 2), language, RULES) == REPEATS
    assert why_not(" ".join([text] * 2), language, RulesConfig(max_repeated_share=1)) is None


@pytest.mark.parametrize(
    "advert",
    [
        "祛斑特效药，厂家直销，特价仅售198元，快来订购，电话：13812345678，微信：qb88888，无效退款。",
        "代开各类发票，联系人：王先生，手机 13812345678，点数优惠，欢迎来电咨询。",
        "Buy now! Best price for slimming pills: $19, free shipping. Call 212-555-0147 or see www.pills.example.",
        "Special offer: whitening cream $25, order now by e-mail to shop@cream.example, discount for two.",
    ],
)
def test_adverts(advert: str) -> None:
    assert why_not(advert, "zh" if advert[0] > "z" else "en", RULES) == ADVERT


@pytest.mark.parametrize(
    "text",
    [
        "二甲双胍片每盒约25元，进口的每盒约60元，医保可以报销一部分，门诊检查费大约200元左右。",
        "如果出现胸痛请及时到我院就诊，急诊电话：010-12345678，夜间电话：010-87654321，值班医生会随时接诊。",
        "出院后由护士通过电话随访患者，记录疼痛评分；第3个月电话随访时，人均费用为3200元，对照组为4100元。",
        "采用10折交叉验证评价模型，训练集与测试集按5折划分，结果见www.example.org/data，代码公开。",
        "The generic costs $4 a month and the brand costs $120; ask your pharmacist which one your plan covers.",
        "If you have chest pain call 911 at once. Poison control: call 1-800-222-1222, at any time of day.",
        "阿莫西林胶囊0.5g口服，每日3次，疗程7～14天；儿童按体重每日20～40mg/kg，分3次服用。",
    ],
)
def test_prices_of_drugs_or_a_telephone_alone_are_no_advert(text: str) -> None:
    assert why_not(text, "zh" if text[0] > "z" else "en", RULES) is None


def test_signs_of_adverts_are_counted() -> None:
    text = "咨询电话：010-12345678，体检套餐800元，含肝功能和肾功能检查，请空腹前来。"
    assert why_not(text, "zh", RULES) is None
    assert why_not(text, "zh", RulesConfig(advert_signs=2)) == ADVERT


def test_masks_of_numbers_and_addresses() -> None:
    assert valid_id(ID) and valid_id(ID.lower()) and not valid_id(ID[:-1] + "1")
    cases = {
        f"身份证号{ID}。": "身份证号[ID]。",
        f"身份证{ID[:-1]}1。": f"身份证{ID[:-1]}1。",
        "电话13812345678，": "电话[PHONE]，",
        "手机：+86 138-1234-5678": "手机：[PHONE]",
        "致电010-12345678转2": "致电[PHONE]转2",
        "致电(0571)8765432 或02033770208": "致电[PHONE] 或[PHONE]",
        "热线400-123-4567或8008201234": "热线[PHONE]或[PHONE]",
        "Call (212) 555-0147 or 1-800-222-1222.": "Call [PHONE] or [PHONE].",
        "写信到wang.xm+1@hospital.org.cn即可": "写信到[EMAIL]即可",
        "加QQ：12345678联系": "加QQ：[QQ]联系",
        "qq群 87654321": "qq群 [QQ]",
        "微信号doctor_wang咨询": "微信号[QQ]咨询",
        "加微信abc12345，": "加微信[QQ]，",
        "患者住在北京市海淀区中关村大街27号3层。": "患者住在[ADDRESS]。",
        "家住人民路12号，": "[ADDRESS]，",
        "上海市静安区南京西路1266弄3号502室": "[ADDRESS]",
        "She lives at 251 Post Street, San Francisco.": "She lives at [ADDRESS], San Francisco.",
    }
    for text, expected in cases.items():
        found, counts = mask(text, names=False)
        assert found == expected
        assert counts.total() == len(re.findall(r"\[[A-Z]+\]", expected))


def test_masks_of_names() -> None:
    cases = {
        "王医生您好": "[NAME]医生您好",
        "李主任您好，谢谢张建国教授！": "[NAME]主任您好，谢谢[NAME]教授！",
        "我找欧阳医生，不是诸葛明大夫": "我找[NAME]医生，不是诸葛明大夫",
        "谢谢王医生": "谢谢[NAME]医生",
        "姓名：王小明 性别：男": "姓名：[NAME] 性别：男",
        "患者姓名:张伟性别:男": "患者姓名:[NAME]性别:男",
        "患者王某，男，35岁；李××，女": "患者[NAME]，男，35岁；[NAME]，女",
        "Dr. Smith referred her.": "Dr. [NAME] referred her.",
        "Prof Anna O'Brien, Mrs McDonald, Dr. J. Müller-Stahl": "Prof [NAME], Mrs [NAME], Dr. [NAME]",
    }
    for text, expected in cases.items():
        assert mask(text, names=True)[0] == expected
        assert mask(text, names=False)[0] == text


ORDINARY = """
家庭医生建议我先做血常规，全科医生说不用。
高年资医生会诊后，任何医生都可以开这个药。
谢谢医生，谢谢大夫的解答！
打石膏后白天可以活动，白班护士会来换药。
由于某些药物的副作用，属于某种过敏反应。
3万名护士和10余名医生参加了培训，于是医生决定手术。
现任主任医师，曾任教授；武汉医生和韩国教授合作。
许多医生认为周一医生较少，马上医生就来。
方案教授给出了，方便医生查看，万一医生不在呢？
由于医生对本病缺乏认识，常被误诊。
血压120/80mmHg，心率75次/分，体温36.5℃。
阿司匹林100mg每日一次，阿托伐他汀20mg每晚一次。
2020年1月15日入院，2020-02-03出院，住院号未记录。
诊断编码为I10.x00，另见ICD-10 E11.900和K35.8。
差异有统计学意义（P=0.0012345678，OR 1.38，95%CI 1.12～1.69）。
国药准字H20053454，批号20200315。
doi:10.3760/cma.j.issn.0254-6450.2020.02.003
静脉通路2条，旁路1号电极位于左侧。
血小板150×10^9/L，白细胞1380/μl，红细胞4500000/μl。
QQ图显示数据近似正态分布，微信平台可以预约挂号。
每日分3次服用250 500 1000 mg，共14天。
Blood pressure was 120/80 mm Hg and the pulse 72.
Give 250 500 1000 mg on days 1, 2 and 3.
The trial NCT01234567 ran from 2019-03-01 to 2020-10-31 (ISRCTN12345678).
See doi:10.1016/S0140-6736(19)30505-2 and doi:10.1097/00005792-201806150-00012.
The QQ plots and the WeChat platform were used in 2020.
Ms is short for multiple sclerosis, and MR Imaging shows plaques.
The dr said that Mr and Mrs are titles; prof is one too.
P < 0.001, odds ratio 1.35 (1.12-1.69), n = 1380 of 4500.
Serum creatinine 88.4 umol/L; eGFR 92 mL/min/1.73 m2; sample no 12345.
""".strip().split("\n")


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_medical_sentences_are_left_as_they_are(text: str) -> None:
    assert mask(text, names=True) == (text, {})


LONG = 8_000
RUNS = [
    "a",
    "1",
    "0",
    "头",
    "市",
    "省市区路",
    "市区路街1",
    "王",
    "你王",
    "Dr ",
    "@",
    "a@a.",
    "www.",
    "138-",
    "(0",
    "电话",
]
RUNS += ["QQ", "微信\n", "QQ  ", "\n", " ", ".", "-", "，", "姓名:", "大道1弄", "12 A", "Dr. A", "1元", "0-"]


@pytest.mark.parametrize("run", RUNS)
def test_no_pattern_takes_the_square_of_a_text_s_length(run: str) -> None:
    texts_read = [
        before + (run * LONG)[:LONG] + after for before in ("", "微信", "姓名:", "Dr. ") for after in ("1", "@")
    ]
    patterns = [
        found for module in (rules, personal) for found in vars(module).values() if isinstance(found, re.Pattern)
    ]
    assert len(patterns) > 10
    began = time.process_time()
    for pattern in patterns:
        for text in texts_read:
            for _ in pattern.finditer(text):
                pass
    assert time.process_time() - began < 6, "the processor's time, whoever else is at work"


def test_clean_drops_by_rules_then_by_the_classifier_and_masks_what_it_keeps() -> None:
    weights = -10 * features(["特价包邮，优惠促销"]).toarray()[0]
    quality = Classifier(features, weights, bias=0.5, threshold=0.6)  # 1 / (1 + exp(-0.5)) = 0.62 without such words
    good = "患者头痛、发热，检查血压，症状为咳嗽，诊断明确后药物治疗。"
    rows = [
        {"id": "short", "text": "头痛。", "language": "zh", "genre": "web"},
        {"id": "kept", "text": f"王医生说：{good}", "before": "电话13812345678", "language": "zh", "genre": "web"},
        {"id": "bad", "text": "特价包邮，优惠促销，热销现货抢购，批发加盟代理。", "language": "zh", "genre": "web"},
        {"id": "book", "text": f"王医生说：{good}电话13812345678。", "language": "zh", "genre": "book"},
    ]
    result = Clean(CleanConfig(), quality)(texts(rows))
    assert result.dropped == [(0, TOO_SHORT), (2, BAD)]
    assert result.table["text"].to_pylist() == [f"[NAME]医生说：{good}", f"王医生说：{good}电话[PHONE]。"]
    assert result.table["before"].to_pylist() == ["电话[PHONE]", None]
    assert result.notes == {"masked NAME": 1, "masked PHONE": 1}
    assert min(result.table["quality"].to_pylist()) > quality.threshold
    plain = Clean(CleanConfig(rules=None, mask=False), None)(texts(rows))
    assert plain.table["text"].to_pylist() == [row["text"] for row in rows] and plain.table["quality"].null_count == 4
    assert Clean(CleanConfig(), quality)(texts(rows[:1])).table.num_rows == 0
    assert Clean(CleanConfig(), quality)(texts([])).dropped == ()
