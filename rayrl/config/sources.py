"""A named source of training data: where it lies, what it holds and how much it counts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from rayrl.config.encoding import Encoding
from rayrl.config.strict import Strict

Format = Literal[
    "auto",
    "huatuogpt",
    "messages",
    "sharegpt",
    "alpaca",
    "qa",
    "doctorglm",
    "preferences",
    "ranked_outputs",
    "label_tool",
    "ranked_columns",
    "comparisons",
    "text_rows",
    "paragraphs",
    "text",
]


class SourceConfig(Strict):
    """One source of conversations, documents, prompts, comparisons or rankings (docs/formats.md)."""

    name: str = Field(min_length=1, pattern=r"^[^\s/]+$", description="What reports and records call it.")
    path: str = Field(
        min_length=1,
        description="A file, a folder, a saved Hugging Face dataset, `hf:NAME` or `hf:NAME:SUBSET` of the hub, "
        "or a built-in set.",
    )
    format: Format = Field("auto", description="Shape of its rows; `auto` sees it from the rows' keys.")
    kind: Literal["distilled", "real", "unknown"] = Field(
        "unknown", description="Whether a model wrote the answers (`distilled`) or people did (`real`)."
    )
    weight: PositiveFloat = Field(1.0, description="Its weight beside the other sources.")
    epochs: PositiveFloat | None = Field(
        None, description="`rayrl sft` with `mode: one_stage`: how often its rows are drawn; by default once."
    )
    encoding: Encoding = Field(
        "auto",
        description="Of text files; `auto` tells UTF-8 (and UTF-16 with its mark) from GBK and GB18030.",
    )
    split: str = Field("train", min_length=1, description="Which split of a Hugging Face dataset.")
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="For rows with other keys: what the format calls it -> what this source calls it "
        "(`{question: ask}`).",
    )
    items: str | None = Field(
        None, description="`label_tool`: the tool's input file; by default the one that lies beside the rankings."
    )
    annotator: str | None = Field(None, min_length=1, description="Who ranked; by default the source's name.")
    mend_turns: bool = Field(
        False,
        description="Join neighbouring turns of one speaker, drop a doctor's words before the first question and a "
        "patient's after the last answer. Otherwise such dialogues are rejected.",
    )
    max_chars: PositiveInt = Field(
        100_000, description="A longer turn, answer or field is rejected (documents may be longer)."
    )
