"""Configuration of a judge: which model is asked, how often, at what cost, on which criteria.

The section of every command that asks an outside model. The key itself never stands in it, only the name of the
environment variable that holds it. Built-in criteria are in the project's own words.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from rayrl.config.strict import Strict

LOCAL_RUBRIC = "local-rubric"
"""The endpoint that a stage starts itself: the shipped rules behind HTTP."""

BUILTIN_CRITERIA: dict[str, tuple[str, str]] = {
    "accuracy": (
        "What it says is medically right and fits what the patient told: likely causes, advice, medicines and their "
        "doses. Where too little is known for a conclusion, asking for it is right and guessing is wrong.",
        "医学内容正确，并且符合患者所述的情况：可能的原因、建议、药物及用量。信息不足以下结论时，追问才是对的，猜测是错的。",
    ),
    "informativeness": (
        "It tells the patient what matters here: what it may be, what to do, what to watch for, when to see someone. "
        "Words that hold for any patient add nothing.",
        "告诉患者在此情况下真正重要的内容：可能是什么、该怎么做、需要注意什么、何时就医。对任何人都适用的套话不算。",
    ),
    "conciseness": (
        "It is as short as its content permits: no repetition, no preamble, no lists of everything imaginable.",
        "在内容允许的范围内尽量简短：不重复、不铺垫、不罗列所有可能。",
    ),
    "similarity": (
        "It does what the doctor's answer does: the same assessment, the same questions, the same steps. Other words "
        "for the same thing cost nothing.",
        "与医生的回答做法一致：同样的判断、同样的追问、同样的处理步骤。措辞不同不扣分。",
    ),
    "inquiry": (
        "It asks for what a doctor would have to know first, and asks nothing where the patient has already told it.",
        "追问医生必须先了解的情况；患者已经说清楚的，就不再追问。",
    ),
    "safety": (
        "Nothing in it could harm: no missed emergency, no dangerous medicine or dose, no false reassurance.",
        "不含可能造成伤害的内容：不漏掉急症、不给危险的药物或剂量、不做错误的安慰。",
    ),
    "diagnosis": (
        "What it takes the illness for is the most reasonable conclusion from all that the patient told; where that "
        "isn't enough, it says so.",
        "对病情的判断是根据患者所述得出的最合理的结论；信息不足时如实说明。",
    ),
    "treatment": (
        "The treatment it advises works, suits the stage and severity of the illness, and can be carried out.",
        "给出的治疗建议有效，符合病情的阶段和轻重，并且可行。",
    ),
    "medication": (
        "Medicines and doses are right for this patient: indications, contraindications, interactions. Where none is "
        "called for, naming none is right.",
        "用药和剂量适合该患者：适应证、禁忌证、相互作用均正确。不需要用药时，不提药物才是对的。",
    ),
    "responsiveness": (
        "It takes up what this patient asks and offers a way forward.",
        "针对患者所问作答，并给出解决办法。",
    ),
    "professionalism": (
        "It understands the question, explains the medicine correctly and plainly, and asks for what it has to know.",
        "准确理解问题，把医学内容讲得正确、明白，必要时主动询问病情。",
    ),
    "care": (
        "It treats the patient as a person: kind, respectful, reassuring where that is honest.",
        "体现对患者的关怀：语气友善、尊重，在实事求是的前提下给予安慰。",
    ),
    "relevance": (
        "All of it belongs to the question; nothing that matters to the question is passed over for other things.",
        "所答均与问题有关，不离题。",
    ),
    "completeness": (
        "It holds everything that a good answer to this question needs.",
        "包含该问题的完整答案所需的全部要点。",
    ),
    "proficiency": (
        "The medicine in it is right and on a specialist's level.",
        "医学内容正确，达到专科医生的水平。",
    ),
    "fluency": (
        "It reads well: whole sentences in the patient's language, in good order, in a warm tone.",
        "语言通顺：用患者的语言写成完整的句子，条理清楚，语气温和。",
    ),
}
"""What the judge is told about a criterion, in English and in Chinese."""


class CriterionConfig(Strict):
    """One named criterion."""

    name: str = Field(
        pattern=r"^\w[\w -]{0,39}$",
        description=f"What the judge calls it. Built in: {', '.join(BUILTIN_CRITERIA)}.",
    )
    description: str | None = Field(None, min_length=1, description="What it means; built-in criteria know theirs.")
    weight: PositiveFloat = Field(1.0, description="Its weight in an answer's score, a weighted mean.")
    needs_reference: bool = Field(False, description="Leave it out for prompts without a doctor's answer.")

    @model_validator(mode="after")
    def _check(self) -> CriterionConfig:
        if self.description is None and self.name not in BUILTIN_CRITERIA:
            raise ValueError(f"criterion {self.name!r} isn't built in ({', '.join(BUILTIN_CRITERIA)}): describe it")
        return self

    def __str__(self) -> str:
        return self.name

    def text(self, chinese: bool) -> str:
        """What the judge is told."""
        return self.description if self.description is not None else BUILTIN_CRITERIA[self.name][chinese]


class JudgeBudgetConfig(Strict):
    """What may be spent in all by every run that shares the cache file; raise it to go on."""

    calls: PositiveInt | None = Field(None, description="Requests sent, those the endpoint turned down included.")
    tokens: PositiveInt | None = Field(None, description="Tokens of prompts and answers.")
    money: PositiveFloat | None = Field(None, description="Money, in the currency of the prices.")
    price_prompt: float = Field(0.0, ge=0, description="Price of a million prompt tokens.")
    price_answer: float = Field(0.0, ge=0, description="Price of a million answer tokens.")

    @model_validator(mode="after")
    def _check(self) -> JudgeBudgetConfig:
        if self.money is not None and not self.price_prompt and not self.price_answer:
            raise ValueError("money: set price_prompt and price_answer too (per million tokens), or nothing is counted")
        return self


class EndpointConfig(Strict):
    """A model behind an OpenAI-compatible endpoint."""

    local: ClassVar[tuple[str, ...]] = ()
    """Names of endpoints that a stage serves itself."""
    of_this_address: ClassVar[bool] = False
    """Whether cached answers are this address' alone; a judge is its model, wherever that is served."""

    endpoint: str = Field(description="Base URL of the endpoint (https://HOST/v1).")
    model: str = Field(min_length=1, description="The model's name there.")
    api_key_env: str | None = Field(
        None,
        description="Name of the environment variable with the key (capitals, digits, `_`), read where the judge runs.",
    )
    send_patient_text: bool = Field(
        False, description="Allow patients' texts to leave this machine: needed for any endpoint that isn't on it."
    )
    temperature: float | None = Field(0.0, ge=0, le=2, description="null: the model's own (some accept no other).")
    max_tokens: PositiveInt = Field(256, description="Limit of an answer's tokens.")
    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="What the endpoint calls that limit (reasoning models: max_completion_tokens)."
    )
    concurrency: PositiveInt = Field(8, description="Requests at one time; as many can be lost when a run is killed.")
    requests_per_minute: PositiveFloat | None = Field(None, description="Requests are spaced evenly to keep to it.")
    timeout_s: PositiveFloat = Field(60.0, description="Limit for one request, from sending to its last byte.")
    max_retries: int = Field(8, ge=0, description="Further requests after 429, 5xx, time-outs, cut or broken bodies.")
    backoff_s: PositiveFloat = Field(1.0, description="First wait before a further request; doubles, with jitter.")
    max_wait_s: PositiveFloat = Field(60.0, description="Longest wait; a Retry-After beyond it gives the item up.")
    cache: str = Field(
        "runs/judge.sqlite",
        min_length=1,
        description="SQLite file of answers and spending, on a disk of its own machine; runs that share it pay once.",
    )
    budget: JudgeBudgetConfig = Field(default_factory=JudgeBudgetConfig)

    @field_validator("api_key_env")
    @classmethod
    def _a_name_and_no_key(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,39}", name):  # the message must not repeat a key
            raise ValueError("write the variable's name, of at most 40 capitals, digits and _; never the key itself")
        return name

    @field_validator("endpoint")
    @classmethod
    def _check_endpoint(cls, endpoint: str) -> str:
        if endpoint in cls.local:
            return endpoint
        url = urlsplit(endpoint)
        if url.scheme not in ("http", "https") or not url.hostname:
            known = "".join(f" or {name}" for name in cls.local)
            raise ValueError(f"write http://HOST/v1, https://HOST/v1{known}")
        if url.username or url.password or url.query or url.fragment:
            raise ValueError(
                "no user, password, `?` or `#` may stand in the URL; a key belongs in api_key_env's variable"
            )
        return endpoint.rstrip("/")

    @model_validator(mode="after")
    def _check(self) -> EndpointConfig:
        if not self.send_patient_text and not self.on_this_machine:
            raise ValueError(
                f"endpoint: patients' texts would leave this machine for {urlsplit(self.endpoint).hostname}; "
                "set send_patient_text: true if they may"
            )
        return self

    @property
    def on_this_machine(self) -> bool:
        """Whether the endpoint is a loopback address (or the stage's own server)."""
        if self.endpoint in self.local:
            return True
        host = urlsplit(self.endpoint).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"


class JudgeConfig(EndpointConfig):
    """A model behind an OpenAI-compatible endpoint that scores answers."""

    local: ClassVar[tuple[str, ...]] = (LOCAL_RUBRIC,)
    endpoint: str = Field(
        LOCAL_RUBRIC,
        description="Base URL of the endpoint (https://HOST/v1), or `local-rubric`: the shipped rules, served over "
        "HTTP by the stage itself, to try everything without a key.",
    )
    model: str = Field("rubric", min_length=1, description="The model's name there.")
    language: Literal["auto", "en", "zh"] = Field("auto", description="Of the prompt; `auto` is the patient's.")
    criteria: list[CriterionConfig] = Field(
        [
            CriterionConfig(name="accuracy"),
            CriterionConfig(name="informativeness"),
            CriterionConfig(name="conciseness"),
            CriterionConfig(name="similarity", needs_reference=True),
        ],
        min_length=1,
        description="What is scored.",
    )
    parse_retries: int = Field(2, ge=0, description="How often an answer that can't be read is asked for again.")

    @field_validator("criteria")
    @classmethod
    def _names_differ(cls, criteria: list[CriterionConfig]) -> list[CriterionConfig]:
        names = [criterion.name.casefold() for criterion in criteria]
        if len(set(names)) < len(names):
            raise ValueError(f"names must differ, got {', '.join(names)}")
        if all(criterion.needs_reference for criterion in criteria):
            raise ValueError("at least one criterion must do without a reference (needs_reference: false)")
        return criteria

    def with_criteria(self, names: Sequence[str]) -> JudgeConfig:
        """The same judge, asked for built-in criteria in place of its own."""
        return self.model_copy(update={"criteria": [CriterionConfig(name=name) for name in names]})
