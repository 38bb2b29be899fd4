"""Configuration of `rayrl corpus`: from raw text to instructions, stage by stage."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from rayrl.config.encoding import Encoding
from rayrl.config.judge import EndpointConfig
from rayrl.config.parts import RayConfig, RolloutConfig
from rayrl.config.strict import CommandConfig, Strict

REFUSED = (
    "参考",
    "根据文本",
    "根据上述",
    "根据以上",
    "上述文本",
    "文中",
    "本文",
    "the text",
    "the passage",
    "the article",
    "this study",
    "as an ai",
    "作为一个人工智能",
)
STAGES = ("read", "extract", "segment", "clean", "dedup", "decontaminate", "unify", "check")


class CorpusSourceConfig(Strict):
    """One source of raw text (docs/corpus-read.md)."""

    name: str = Field(min_length=1, pattern=r"^[^\s/]+$", description="What reports and texts call it.")
    path: str = Field(
        min_length=1,
        description="A file or folder: local, `s3://`, `gs://` or `hdfs://`; or the built-in `corpus-sample`.",
    )
    genre: str = Field("web", description="Kind of text, such as `web`, `book`, `encyclopedia`, `literature`.")
    language: str = Field("auto", description="`auto` identifies each text's; otherwise what all of it is in.")
    encoding: Encoding = Field(
        "auto", description="`auto` tells UTF-8, GBK, GB18030, Big5 and UTF-16 apart; a named one saves the time."
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="For JSONL and Parquet: what rayrl calls it -> what the rows call it, of `text`, `id`, `title`, "
        "`source`, `genre`, `language` (`{text: body, genre: kind}`). By default `text` or `content`, and `id`.",
    )
    plain: Literal["auto", "whole", "paragraphs", "lines"] = Field(
        "auto",
        description="What a document is in plain text: a file, a paragraph between empty lines, or a line. `auto`: "
        "each of a folder's files whole, a single file by paragraphs.",
    )

    @field_validator("columns")
    @classmethod
    def _known_columns(cls, columns: dict[str, str]) -> dict[str, str]:
        known = ("text", "id", "title", "source", "genre", "language")
        unknown = [key for key in columns if key not in known]
        if unknown:
            raise ValueError(f"unknown column {unknown[0]!r}; rayrl's names are {', '.join(known)}")
        return columns


class UnifyEndpointConfig(EndpointConfig):
    """A model behind an OpenAI-compatible endpoint that words questions and answers."""

    max_tokens: PositiveInt = Field(1024, description="Limit of a reply's tokens; one that is cut there isn't used.")


class UnifyEngineConfig(Strict):
    """A model that the run loads itself."""

    model: str = Field(description="Checkpoint folder, hub name or built-in model.")
    chat_template: str | None = Field(None, description="Jinja chat template, for tokenizers without one of their own.")
    rollout: RolloutConfig = Field(
        default_factory=lambda: RolloutConfig(max_prompt_tokens=1536, max_new_tokens=512, temperature=0.5),
        description="Engines and sampling.",
    )


class ReadConfig(Strict):
    """Files to documents."""

    split_mb: PositiveFloat = Field(
        64, description="Work of one task: so much of a large JSONL or text file, or small files together."
    )
    shard_mb: PositiveFloat = Field(32, description="Text of one shard that is written.")
    max_row_mb: PositiveInt = Field(16, description="A longer line, page or file is set aside unread.")
    min_chars: PositiveInt = Field(10, description="A shorter document is dropped.")
    duplicates: Literal["drop", "keep"] = Field(
        "drop", description="Documents that are the same but for spacing and case: the first is kept, or all."
    )


class LexiconConfig(Strict):
    """One list of domain terms."""

    path: str = Field(
        min_length=1,
        description="UTF-8, a term a line, if wanted with a tab and its weight; `#` begins a comment. `*itis` stands "
        "for all words with that end, `cardio*` for all with that beginning. Or a built-in list (`medical-en`, "
        "`medical-zh`).",
    )
    weight: PositiveFloat = Field(1.0, description="Of its terms that have none of their own.")


class ExtractConfig(Strict):
    """Which documents are of the domain."""

    lexicons: list[LexiconConfig] = Field(min_length=1, description="Lists of domain terms; a term counts once.")
    stop_words: list[str] = Field([], description="Lists of general words that aren't domain terms after all.")
    threshold: float = Field(0.02, ge=0, description="Least share of a document that domain terms must cover.")
    thresholds: dict[str, float] = Field(
        default_factory=dict,
        description="Other shares by language, genre or both: `{en: 0.05, book: 0.01, en/book: 0.03}`; the most "
        "particular one holds.",
    )
    top_hits: PositiveInt = Field(10, description="Terms kept with each document, the most frequent ones.")


class SegmentConfig(Strict):
    """Documents to segments: sentences in windows."""

    max_chars: PositiveInt = Field(600, description="Longest segment, without its neighbours.")
    neighbours: int = Field(1, ge=0, description="Sentences of context on each side.")
    neighbour_chars: PositiveInt = Field(100, description="Longest context on each side.")


class RulesConfig(Strict):
    """What a text's form may not be."""

    min_chars: PositiveInt = Field(15, description="A shorter segment is dropped.")
    min_letters_share: float = Field(0.4, ge=0, le=1, description="Least share of letters among what isn't space.")
    sentence_by_chars: PositiveInt = Field(300, description="A longer segment must end a sentence somewhere.")
    max_repeated_share: float = Field(
        0.3,
        gt=0,
        le=1,
        description="Largest share of repeated lines, or of repeated sequences of 8 characters or 4 words.",
    )
    advert_signs: PositiveInt = Field(
        3, ge=2, description="Contacts and prices or calls to buy, together, from which on a text is an advert."
    )


class LabelledConfig(Strict):
    """A classifier that its stage fits on labels, from a file or a model."""

    labels: str | None = Field(None, description="JSONL of labels (the stage's page says of what); or:")
    judge: EndpointConfig | None = Field(None, description="a model that labels a sample of what the stage takes.")
    num_labels: PositiveInt = Field(1000, description="Of the sample that the model labels.")
    held_out_fraction: float = Field(
        0.3,
        gt=0,
        le=0.5,
        description="The labels are divided into parts of about this share, by groups where there are several of each "
        "kind; each part is measured by a fit on the others.",
    )
    least_recall: float = Field(
        0.95,
        ge=0,
        le=1,
        description="The threshold with the highest precision is taken among those that keep so many of the held-out "
        "good ones.",
    )

    @model_validator(mode="after")
    def _one(self) -> LabelledConfig:
        if (self.labels is None) == (self.judge is None):
            raise ValueError("set one of labels and judge")
        return self


class QualityConfig(LabelledConfig):
    """A classifier of good and bad texts: `text`, `label` (good or bad) and `group`, such as the source."""


class CleanConfig(Strict):
    """Bad texts dropped, personal data masked."""

    rules: RulesConfig | None = Field(default_factory=RulesConfig, description="What a text's form may not be.")
    quality: QualityConfig | None = Field(None, description="A classifier of good and bad texts.")
    mask: bool = Field(
        True, description="Mask identity numbers, telephones, e-mail and QQ addresses, street addresses."
    )
    mask_names: list[str] = Field(
        ["web", "consultation"], description="Genres in which names beside a title are masked too."
    )


class EncoderConfig(Strict):
    """What turns a text into a vector."""

    kind: Literal["ngrams", "sentence_transformers", "vllm"] = Field(
        "ngrams",
        description="`ngrams`: hashed character sequences, built in, knows no meaning; `sentence_transformers` (its "
        "package must be installed) and `vllm` (pooling) take a `model`.",
    )
    model: str | None = Field(None, description="Folder or hub name of the encoder.")
    dimensions: PositiveInt = Field(512, description="`ngrams`: length of a vector.")

    @model_validator(mode="after")
    def _named(self) -> EncoderConfig:
        if self.kind != "ngrams" and self.model is None:
            raise ValueError(f"encoder: {self.kind} needs a model")
        return self


class SemanticConfig(Strict):
    """Texts that mean the same, by the cosine of their vectors."""

    encoder: EncoderConfig = Field(default_factory=EncoderConfig, description="What turns a text into a vector.")
    threshold: float = Field(0.9, gt=0, le=1, description="Cosine from which two texts count as the same.")
    cell_size: PositiveInt = Field(
        20_000, description="Vectors compared with each other at one time; more of them are first put into cells."
    )


class DedupConfig(Strict):
    """Near-duplicates: the best of a group stays (highest quality, then the longest, then the first)."""

    near: float | None = Field(
        0.5,
        gt=0,
        le=1,
        description="Jaccard similarity of character sequences from which two texts are the same, by MinHash; at 0.5 "
        "a text is found with one in thirteen of its characters changed here and there, at 0.4 with one in ten. null "
        "leaves it out.",
    )
    semantic: SemanticConfig | None = Field(None, description="Also by meaning.")


class EvaluationSetConfig(Strict):
    """Questions that no training text may hold."""

    name: str = Field(min_length=1, description="What reports call it.")
    path: str = Field(min_length=1, description="JSONL, JSON or Parquet, here or in an object store.")
    fields: list[str] = Field(
        ["question", "query", "instruction", "text"],
        min_length=1,
        description="Fields of a row that may hold the question; the first that is there counts.",
    )


class DecontaminateConfig(Strict):
    """Texts that hold evaluation questions."""

    sets: list[EvaluationSetConfig] = Field(min_length=1, description="Evaluation sets.")
    ngram: PositiveInt = Field(
        10,
        description="Units (Chinese characters, words) of a sequence that is looked for; questions of 14 to 28 units "
        "are cut into shorter ones, so that a changed word doesn't hide them.",
    )
    least_units: PositiveInt = Field(
        8, description="A shorter question isn't looked for: it may be no more than a drug's name."
    )
    share: float = Field(
        0.5, gt=0, le=1, description="Share of a question's sequences that a text must hold to be dropped."
    )


class UnifyConfig(Strict):
    """Segments to questions and answers, as a model words them."""

    endpoint: UnifyEndpointConfig | None = Field(None, description="A model behind an OpenAI-compatible endpoint; or:")
    engine: UnifyEngineConfig | None = Field(None, description="a model of the run's own engines.")
    target_language: Literal["same", "zh", "en"] = Field(
        "same", description="Of questions and answers; `same` is each text's, and of other languages than these `en`."
    )
    question_from_chars: PositiveInt = Field(
        400,
        description="Text that a question is made from: the segment's beginning, its neighbours where there is room.",
    )
    answer_from_chars: PositiveInt = Field(600, description="Text that an answer is made from, likewise.")
    max_question_chars: PositiveInt = Field(180, description="A longer question is asked for again.")
    tries: PositiveInt = Field(2, description="Requests for a usable question, and for a usable answer.")
    refused: list[str] = Field(
        list(REFUSED),
        description="What no question or answer may hold, since it speaks of a text that the reader won't see; "
        "case doesn't count.",
    )
    instructions: str | None = Field(
        None, min_length=1, description="Further instructions to the model, put behind the built-in ones."
    )

    @model_validator(mode="after")
    def _one(self) -> UnifyConfig:
        if (self.endpoint is None) == (self.engine is None):
            raise ValueError("set one of endpoint and engine")
        return self


class DetectorConfig(LabelledConfig):
    """A classifier of answers: `text`, `answer`, `label` (keeps or departs) and `group`, such as the source."""

    mismatched: bool = Field(
        True, description="Texts beside other texts' answers are further examples of answers that depart."
    )
    encoder: EncoderConfig | None = Field(
        None, description="A model that gives texts of several languages vectors, whose cosine is a further sign."
    )

    @field_validator("encoder")
    @classmethod
    def _of_languages(cls, encoder: EncoderConfig | None) -> EncoderConfig | None:
        if encoder is not None and encoder.kind == "ngrams":
            raise ValueError("ngrams have nothing in common across languages: name a model of several")
        return encoder


class CheckConfig(Strict):
    """Whether answers keep to their texts."""

    least_overlap: dict[str, float] = Field(
        {"zh-zh": 0.3, "en-en": 0.3},
        description="Least 1-gram Jaccard similarity of text and answer by languages, `TEXT-ANSWER`; other pairs "
        "aren't measured by it.",
    )
    detector: DetectorConfig | None = Field(
        None, description="For those other pairs: a classifier that the stage fits, as for answers in another language."
    )
    regenerate: int = Field(2, ge=0, description="How often a failed answer is asked for again before it is set aside.")

    @field_validator("least_overlap")
    @classmethod
    def _pairs(cls, limits: dict[str, float]) -> dict[str, float]:
        for pair in limits:
            if not re.fullmatch("[a-z]{2}-(zh|en)", pair):
                raise ValueError(
                    f"{pair!r} isn't a pair of languages such as zh-zh or zh-en (TEXT-ANSWER, answers zh or en)"
                )
        return limits


class CorpusConfig(CommandConfig):
    """Raw text to instructions. A stage set to null is left out."""

    command: ClassVar[str] = "corpus"

    output_dir: str = Field("runs/corpus", description="A folder a stage, report.html; local or in an object store.")
    seed: int = Field(0, ge=0, description="Of everything drawn.")
    sources: list[CorpusSourceConfig] = Field(min_length=1, description="Named sources of text.")
    max_rejected_fraction: float = Field(
        0.05, ge=0, le=1, description="More of the input than this without a document stops the reading."
    )
    read: ReadConfig = Field(default_factory=ReadConfig, description="Files to documents.")
    extract: ExtractConfig | None = Field(None, description="Which documents are of the domain.")
    segment: SegmentConfig | None = Field(default_factory=SegmentConfig, description="Documents to segments.")
    only: Literal[STAGES] | None = Field(None, description="Do this stage alone (on the command line `--only`).")  # type: ignore[valid-type]
    from_stage: Literal[STAGES] | None = Field(  # type: ignore[valid-type]
        None, description="Make this stage and the later ones anew (on the command line `--from`)."
    )
    clean: CleanConfig | None = Field(None, description="Bad texts dropped, personal data masked.")
    dedup: DedupConfig | None = Field(None, description="Near-duplicates.")
    decontaminate: DecontaminateConfig | None = Field(None, description="Texts that hold evaluation questions.")
    unify: UnifyConfig | None = Field(None, description="Segments to questions and answers.")
    check: CheckConfig | None = Field(None, description="Whether answers keep to their texts; needs `unify`.")
    workers: PositiveInt | None = Field(None, description="Ray actors at work; by default one a CPU.")
    cpus_per_worker: PositiveFloat = Field(1.0, description="CPUs that Ray reserves for each.")
    ray: RayConfig = Field(default_factory=RayConfig, description="Ray: where, and how long to wait.")

    @field_validator("sources")
    @classmethod
    def _names(cls, sources: list[CorpusSourceConfig]) -> list[CorpusSourceConfig]:
        names = [source.name for source in sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two sources are called {twice[0]!r}")
        return sources

    @model_validator(mode="after")
    def _order(self) -> CorpusConfig:
        if self.check is not None and self.unify is None:
            raise ValueError("check: there is nothing to check without unify")
        return self

    def stages(self) -> list[str]:
        """Stages that this run has, in their order."""
        return [name for name in STAGES if getattr(self, name, None) is not None]
