"""Word tables behind questions.py: what makes a question one to the patient, and what each item is asked with.

English patterns are matched against lower-case text with single spaces; Chinese ones against the sentence as it is.
"""

from __future__ import annotations

import re

_BE = r"is|are|was|were|isn't|aren't|wasn't"
_AUX = rf"(?:{_BE}|do|does|did|don't|have|has|had|haven't|can|could|would|will|may)"
_THINGS = r"it|the|this|that|these|those|there|he|she|they|his|her|their|anyone|anything"
_THING = rf"(?:{_THINGS})"
_HOW_MUCH = (
    r"how (?:long|often|bad|severe|many|much|high|big|large|old|painful|intense|frequent|badly|far|well|heavy|strong)"
)

EN_SECOND_PERSON = re.compile(r"\b(?:you|your|yours|yourself|you've|you're)\b")
EN_INTERROGATIVE = re.compile(
    rf"\b(?:what|what's|when|where|which|who|how|how's|why)\b|\b{_AUX} (?:you|your|{_THINGS}|any|either)\b|^any\b"
)
EN_ABOUT_SYMPTOM = re.compile(
    rf"\b{_HOW_MUCH}\b.*\b{_AUX} {_THING}\b|\b(?:when|where|how)(?: exactly)? (?:did"
    rf"|do|does|is|are|was|has) {_THING}\b"
    rf"|^(?:does|did|do) \w+(?: \w+)? (?:make|ease|relieve|worsen|bring) {_THING}\b"
    rf"|(?:^|[,;:] ?|\b(?:and|or|so|also|then) )(?:{_BE}|does|did|has|have|do|had) {_THING}\b|^any\b"
    rf"|\bwhat (?:set|brought|triggered|caused|started) {_THING}\b|\bwhat (?:is|are|was|does) {_THING}\b.* like\b"
    rf"|\b(?:what|which)\b.{{0,20}}\b(?:makes|brings|triggers|eases|relieves|worsens|helps) {_THING}\b"
)
EN_FIRST_PERSON = re.compile(r"\b(?:i|i'm|i've|i'd|i'll|me|my|mine|myself)\b")
EN_DOCTOR_SPEAKS = re.compile(
    r"\b(?:may|can|could|might) i ask\b|\bi (?:should|need to|ought to|must) know\b"
    r"|\bi(?:'d like| want| would like| need) to (?:know|ask)\b"
    r"|\b(?:tell|show|give|send) me (?=more|how|when|where|what|which|about|if"
    r"|whether|your|the|a (?:bit|little))|\blet me know\b|\bwith me\b|\bto me\b"
)
EN_NOT_ABOUT_THE_CASE = re.compile(
    "|".join(
        [
            r"\bhelp me\b|\bhelp you (?:today|with)\b|\bassist\b|\bquestions?\b",
            r"\bwould you (?:like|mind|prefer|be (?:interested|willing|open))\b|\bdid you know\b",
            r"\bdo you (?:want|understand|agree|know that)\b|\bdo you need (?:help|more|any|a|an|some|to)\b",
            r"\b(?:what|when|where|why|which|who)\b(?: \w+){0,3} (?:can|should|could|must) (?:you"
            r"|i|we|one)\b(?! tell| describe| say)",
            r"\bhow (?:can|should|could|must) (?:you|i|we|one)\b",
            r"\bhow (?:do|would) (?:you|i|we|one) (?:know|get|treat|prevent|avoid|stop|deal|make|tell|find|manage"
            r"|reduce|relieve|cure|use)\b",
            r"\byou should\b|\bshould you\b|\bwhat happens if\b|\bwhat causes\b",
            r"\bwhy (?:not\b|don't you(?! tell| describe))",
            r"\bwhat(?: is| are|'s) (?:the |some |a |an )?(?:best|most|common|possible"
            r"|symptoms?|signs?|causes?|treatments?|ways?|steps?"
            r"|risks?|side effects?|benefits?|difference|meaning)\b",
            r"\bhave you (?:ever )?(?:considered|thought (?:about|of))\b",
            r"\b(?:do|does|did) (?:this|that|it|these) (?:make sense|help you|sound|answer"
            r"|work for)\b|\bmake sense\b",
            r", (?:\w+n't (?:you|it|that|they|he|she|we)(?: know| think| agree)?|is it not)\?",
            r"\bwhat do you (?:say|think)\?",
            r"\bis it (?:possible|normal|safe|ok|okay|true|serious|dangerous|contagious|an?|the)\b",
        ]
    )
)

ZH_INTERROGATIVE = re.compile(
    r"吗|呢|什么|多久|多长|多大|多少|多高|多重|几|哪|怎么|怎样|如何|是否|有没有"
    r"|有无|何时|谁|能否|可否|(.)[不没]\1|是不是|会不会|能不能"
)
ZH_ABOUT_PATIENT = re.compile(
    r"您|你|孩子|宝宝|老人|多久|多长时间|几[天周月年次岁个]|什么时候|何时|哪里|哪[个一]|部位|有没有|是否|有无|多大|多少度"
    r"|体温|疼|痛|症状|过敏|吃过|用过|服用|伴有|平时|最近|现在|目前|之前|以前|当时|上次|每次|每天|具体|什么情况|发作"
    r"|严重|情绪|睡眠|胃口|体重|身高|月经|小便|大便|喝水|喝进|能喝|受伤|是什么引起|分泌物|末次"
)
ZH_DOCTOR_SPEAKS = re.compile(
    r"[告诉跟和对同向]{1,2}我(?:说|讲|描述)?|我(?:想|需要|还想|还需要)(?:再)?(?:了解|知道|问|确认)|让我|我问"
)
ZH_NOT_ABOUT_THE_CASE = re.compile(
    r"帮(?:助|到)?(?:您|你|我)|帮忙|还有(?:什么|其他|其它|别的)?(?:想问|问题|疑问"
    r"|需要)|需要(?:我|帮助|更多)|[您你]知道吗|[您你]知道什么是|明白吗|清楚吗"
    r"|理解吗"
    r"|怎么办|怎么做|应该(?:怎么|如何|怎样)|该(?:怎么|如何|怎样)|如何(?:治疗|预防"
    r"|缓解|处理|应对|避免|改善)|怎么(?:治疗|预防|缓解|改善)|什么是|是什么(?:病"
    r"|原因|意思)"
    r"|为什么会|有没有考虑|考虑过|[，,](?:好|行|对|可以)(?:吗|吧|不好)"
)


def _item(english: str, chinese: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{english})|{chinese}", re.IGNORECASE)


ITEMS: dict[str, re.Pattern[str]] = {
    "duration": _item(
        r"how long|since when|when did|when was|how many (?:hours|days|weeks|months"
        r"|years)|start|begin|began|(?:first|last) notice",
        r"多久|多长时间|几天|几周|几个月|几年|什么时候|何时|多少天|开始",
    ),
    "severity": _item(
        r"how (?:bad|severe|strong|painful|intense|much|badly|heavy|high)|scale|severity"
        r"|1 to 10|one to ten|out of (?:10|ten)|mild|worst|wake|daily life|stop you",
        r"多严重|严重|几分|打分|厉害|程度|剧烈|影响",
    ),
    "location": _item(
        r"where|which (?:part|side|area|knee|tooth|ear|eye)|what part|location|spread|exactly",
        r"哪里|哪个部位|部位|位置|哪一侧|哪侧|哪边|放射",
    ),
    "age": _item(r"how old|age\b|your age|date of birth", r"多大|几岁|年龄|岁数|年纪|几个月大"),
    "medication": _item(
        r"medicines?|medications?|tablets?|drugs?|pills?|taking|prescri|inhaler|supplement"
        r"|painkiller|blood thinner|aspirin|spray",
        r"药|服用|用药",
    ),
    "allergies": _item(r"allerg|reacted|reaction", r"过敏"),
    "history": _item(
        r"histor|diagnosed|condition|illness|disease|medical problem|health problem"
        r"|in the past|before|previous|ever had|operation|surgery",
        r"病史|以前|之前|慢性病|基础病|基础疾病|得过|患过|手术|既往",
    ),
    "family_history": _item(r"famil|relative|parent|mother|father|runs in", r"家族|家里人|家人|父母|直系亲属"),
    "associated_symptoms": _item(
        r"other symptom|anything else|symptom|as well|along with|also|notice|nausea"
        r"|vomit|fever|dizz|numb|weak|swell|breath|cough|bleed|rash|itch|blood",
        r"其他症状|别的症状|别的不舒服|其他不适|伴有|伴随|同时|发烧|发热|恶心|呕吐|头晕|麻木|出血|有没有",
    ),
    "fever": _item(r"fever|temperature|feverish|chills|thermometer", r"发烧|发热|体温|多少度|烧到"),
    "triggers": _item(
        r"trigger|makes? (?:it|them|this|the \w+) (?:worse|better)|bring|worse|better"
        r"|set (?:it|them) off|when you|after (?:eating|exercise)",
        r"诱因|加重|缓解|什么情况|什么时候|引起|减轻|之后",
    ),
    "injury": _item(
        r"injur|fall|fell|accident|hit|twist|hurt (?:it|your)|trauma|knock|how did|bear weight|put weight|walk",
        r"受伤|外伤|摔|扭|撞|怎么伤|走路|承重",
    ),
    "pregnancy": _item(r"pregnan|weeks (?:along|pregnant)|how many weeks|expecting", r"怀孕|孕|周了"),
    "menstruation": _item(r"period|menstrua|cycle", r"月经|经期|例假|末次"),
    "bleeding": _item(r"bleed|blood|black stool", r"出血|流血|便血|血|黑便"),
    "urination": _item(r"urin|pee|passing water|burn|toilet", r"小便|排尿|尿"),
    "bowel": _item(r"bowel|stool|poo|diarrh|constipat|toilet", r"大便|排便|腹泻|便秘"),
    "fluids": _item(r"drink|fluid|wet nappies|nappies|diapers|water|dehydrat", r"喝水|多少水|饮水|进水|尿布|尿量|补水"),
    "diet": _item(r"eat|diet|food|meal|drink|appetite|coffee|feed", r"饮食|吃|食物|胃口|饭|喝"),
    "weight": _item(r"weigh|lost weight|weight loss", r"体重|瘦"),
    "sleep": _item(r"sleep|bed|wake|hours|night|snor", r"睡|入睡|醒|打鼾"),
    "mood": _item(
        r"mood|feeling|hopeless|harm|interest|enjoy|worr|stress|suicid|safe",
        r"情绪|心情|压力|兴趣|焦虑|自杀|伤害自己|轻生|紧张",
    ),
    "smoking_alcohol": _item(r"smok|alcohol|drink|cigarette|tobacco", r"抽烟|吸烟|喝酒|饮酒|烟|酒"),
    "travel": _item(r"travel|abroad|trip|holiday|been away", r"旅行|出差|外地|国外|出国"),
    "exposure": _item(
        r"contact|exposed|anyone (?:else|around)|around you|at home|pets?|new (?:soap"
        r"|cream|product|cosmetic|food|detergent)|touch|use|using",
        r"接触|周围|家里有人|宠物|新的|换过|使用",
    ),
    "vaccination": _item(r"vaccin|immunis|immuniz|jab|shots?|tetanus", r"疫苗|接种|破伤风"),
    "readings": _item(
        r"reading|measure|blood pressure|blood sugar|glucose|number|result|level|test|value",
        r"血压|血糖|测|数值|多少|结果|化验",
    ),
    "vision": _item(r"vision|sight|see\b|blur|double|light|contact lens", r"视力|看东西|模糊|重影|畏光|隐形眼镜"),
    "self_care": _item(
        r"tried|try|done so far|used|helped|taken anything|treat", r"试过|用过|处理|治疗过|缓解|做过|采取"
    ),
    "discharge": _item(r"discharge|pus|fluid|ooze|mucus|phlegm|colour|color", r"分泌物|流脓|脓|痰|颜色|白带|流水"),
}
