"""Writes rayrl/assets/corpus_sample.jsonl: a little raw corpus to try `rayrl corpus` on, every word the project's own.

    .venv/bin/python scripts/build_corpus_sample.py

Medical texts are put together from the package's own conversations; everyday texts and adverts from the lists below.
One in twenty texts is an earlier one with a few characters changed, and some hold an exam question.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

ASSETS = Path(__file__).resolve().parents[1] / "rayrl" / "assets"
NUM_TEXTS = 400
SEED = 0
EVERYDAY = (
    "The train to the coast leaves at nine, and tickets are sold at the counter beside the old clock tower.",
    "She painted the fence white, planted roses along the path and read in the garden until the evening.",
    "Our football team lost again on Saturday, but the second half was the best they have played this year.",
    "To make the soup, fry the onions slowly, add carrots and stock, and let it simmer while you set the table.",
    "The new library has wide windows, quiet corners for reading and a café that stays open until eight.",
    "He bought a used bicycle, cleaned the chain, changed both tyres and rode to the lake before breakfast.",
    "昨天我们去看了一场足球比赛，天气很好，球场里坐满了人，大家都玩得很开心。",
    "这家餐厅的面条很好吃，服务员也很热情，价格不贵，下次还会再来。",
    "周末我和朋友去爬山，山顶的风景特别美，我们拍了很多照片才下来。",
    "图书馆新到了一批小说，我借了三本，打算放假的时候慢慢看。",
    "他把旧自行车修好了，换了链条和轮胎，每天骑着去上班，既省钱又环保。",
    "火车晚点了两个小时，车站里人很多，孩子们在候车室里跑来跑去。",
)
ADVERTS = (
    "特价优惠！降压神茶，包邮到家，订购电话：13800000000，微信 chaye0000，仅售198元，欢迎来电咨询。",
    "本公司代开各类发票，税率优惠，联系人李经理，电话 13900000000，另有加盟代理，欢迎咨询。",
    "Miracle joint cream, special offer: $19.99, free shipping. Call 555-010-0199 or order now at www.example.com.",
    "Buy now and save: vitamin powder, best price of the year, 2 for $30. E-mail: sales@example.com, limited time.",
)
EXAM = {
    "zh": "下列哪一种药物是治疗过敏性休克时应当首先使用的抢救药物？",
    "en": "Which drug should be given first in the emergency treatment of anaphylactic shock in adults?",
}


def main() -> None:
    rows = build()
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path = ASSETS / "corpus_sample.jsonl"
    path.write_text(lines, encoding="utf-8")
    print(f"{len(rows)} texts, {len(lines.encode()) / 1e6:.2f} MB in {path}")


def build() -> list[dict[str, str]]:
    """Rows of text, genre and source."""
    rng = random.Random(SEED)
    rows: list[dict[str, str]] = []
    medical = {language: _medical(language) for language in ("en", "zh")}
    for number in range(NUM_TEXTS):
        kind = rng.random()
        language = rng.choice(("en", "zh"))
        genre = rng.choice(("consultation", "book", "encyclopedia"))
        if kind < 0.2:
            text = " ".join(rng.sample(EVERYDAY, 2)) + f" ({number})"
            rows.append({"text": text, "genre": "web", "source": "everyday"})
        elif kind < 0.26:
            rows.append({"text": f"{rng.choice(ADVERTS)} ({number})", "genre": "web", "source": "adverts"})
        elif kind < 0.31 and rows:
            row = rng.choice(rows)
            rows.append({**row, "text": _changed(row["text"], rng)})
        else:
            text = "\n".join(rng.sample(medical[language], rng.randint(1, 4)))
            if kind < 0.33:
                text = f"{EXAM[language]}\n{text}"
            rows.append({"text": text, "genre": genre, "source": f"medical-{language}"})
    return rows


def _medical(language: str) -> list[str]:
    texts = []
    for name in ("sft_doctor", "sft_distilled"):
        for line in (ASSETS / f"{name}_{language}.jsonl").read_text(encoding="utf-8").split("\n"):
            if line:
                texts.append("\n".join(turn["content"] for turn in json.loads(line)["messages"]))
    return texts


def _changed(text: str, rng: random.Random) -> str:
    letters = list(text)
    for at in rng.sample(range(len(letters)), max(1, len(letters) // 25)):
        letters[at] = rng.choice(letters)
    return "".join(letters)


if __name__ == "__main__":
    main()
