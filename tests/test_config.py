from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rayrl.config import yaml_text
from rayrl.config.load import ConfigError, config_hash, dump, load, placeholders, presets, require_no_placeholders
from rayrl.config.ppo import PPOConfig

SMALL = """\
policy: {model: tiny-random, optimizer: {lr: 1e-5}}
data: {prompts: consultations-en}
rewards:
  - {name: questions, kind: rule, rule: clarifying_question, options: {scale: 1e-3}}
  - {name: length, kind: rule, rule: length_window}
"""


@pytest.fixture
def small(tmp_path: Path) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(SMALL, encoding="utf-8")
    return str(path)


def complaint(source: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(PPOConfig, source, overrides)
    message = str(caught.value)
    assert "pydantic" not in message and "Traceback" not in message
    return message


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_overrides_reach_every_kind_of_place(small: str) -> None:
    config = load(
        PPOConfig,
        small,
        [
            "policy.optimizer.lr=2e-6",
            "rewards.questions.weight=2",
            "rewards.1.weight=-0.5",
            "rewards.length.options.longest=40",
            "algorithm.ptx.data=more.jsonl",
            "cluster.colocate=[[policy, critic]]",
            "logging.loggers=[]",
            "steps=3",
            "steps=4",
        ],
    )
    assert config.policy.optimizer.lr == 2e-6
    assert [entry.weight for entry in config.rewards] == [2.0, -0.5]
    assert config.rewards[0].options == {"scale": 0.001}
    assert config.rewards[1].options == {"longest": 40}
    assert config.algorithm.ptx is not None and config.algorithm.ptx.data == "more.jsonl"
    assert config.cluster.colocate == [["policy", "critic"]]
    assert config.logging.loggers == []
    assert config.steps == 4, "the later override wins"


def test_text_keys_take_text_as_written(small: str) -> None:
    overrides = ["logging.project=2026", "data.system_prompt=You are: a doctor, [kind", "policy.chat_template=null"]
    config = load(PPOConfig, small, overrides)
    assert config.logging.project == "2026"
    assert config.data.system_prompt == "You are: a doctor, [kind"
    assert config.policy.chat_template is None


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("polcy: {}", "polcy", "'policy'"),
        ("policy: {model: a, lr: 1}", "policy.lr", "'policy.optimizer.lr'"),
        (
            "policy: {model: a, optimizer: {learning: 1, betta: 2}}",
            "policy.optimizer.betta",
            "'policy.optimizer.betas'",
        ),
        ("temperature: 1", "temperature", "'rollout.temperature'"),
        ("rewards: [{name: a}, {wieght: 2}]", "rewards.1.wieght", "'rewards.1.weight'"),
        ("algorithm: {kl: {zzz: 2}}", "algorithm.kl.zzz", "valid keys there: place, estimator"),
        ("algorithm: {ptx: {cof: 2}}", "algorithm.ptx.cof", "'algorithm.ptx.coef'"),
    ],
)
def test_unknown_key_in_file_names_path_file_and_nearest(tmp_path: Path, text: str, key: str, nearest: str) -> None:
    path = write(tmp_path, text)
    lines = [line for line in complaint(path).splitlines() if f"unknown key {key!r} in {path};" in line]
    assert len(lines) == 1
    assert nearest in lines[0]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("polcy.model=a", "unknown key 'polcy' on the command line; did you mean 'policy'?"),
        ("algorithm={estimatr: gae}", "unknown key 'algorithm.estimatr' on the command line; did you mean"),
        (
            "rewards.question.weight=1",
            "rewards.question on the command line: no entry of that name; did you mean 'questions'",
        ),
        ("rewards.7.weight=1", "rewards.7 on the command line: the file's list has 2 items, counted from 0"),
        ("policy.model.name=a", "policy.model is a single value and has no keys inside"),
        ("steps", "'steps' on the command line isn't of the form key.path=value"),
        ("steps=[", "steps on the command line: '[' isn't valid YAML (line 1:"),
        ("steps=-1", "steps must be greater than 0, got -1 (on the command line)"),
        ("rollout.backend=vlm", "rollout.backend must be 'vllm' or 'hf', got 'vlm' (on the command line)"),
        ("rollout.temperature=0", "rollout: PPO learns from its own samples' log-probabilities"),
        ("rollout.repetition_penalty=1.1", "rollout: PPO learns from its own samples' log-probabilities"),
        ("policy.ranks=3", "critic.ranks: must equal policy.ranks (3), got 1 (in "),
        ("rewards.0.kind=model", "rewards.0: reward 'questions' of kind 'model' needs 'model'"),
    ],
)
def test_bad_override_is_one_sentence(small: str, override: str, message: str) -> None:
    said = complaint(small, override)
    assert message in said
    assert "\n" not in said


def test_every_bad_value_gets_its_own_sentence(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL + "steps: 0\nseed: many\n")
    first, second = complaint(path).splitlines()
    assert first == f"seed must be a valid integer, unable to parse string as an integer, got 'many' (in {path})"
    assert second == f"steps must be greater than 0, got 0 (in {path})"


def test_missing_keys_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, "policy: {}\ndata: {prompts: a}\nrewards: [{name: a, kind: rule, rule: length_window}]\n")
    assert complaint(path) == f"policy.model is required, and {path} doesn't set it"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("policy: {model: a\ndata: b\n", "isn't valid YAML, line 2:"),
        ("steps: 1\nseed: 2\nsteps: 3\n", "isn't valid YAML, line 3: the key 'steps' stands there twice"),
        ("", "holds nothing"),
        ("- a\n- b\n", "holds ['a', 'b']"),
    ],
)
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    said = complaint(path)
    assert said.startswith(path) and message in said


def test_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"policy: \xff\xfe")
    assert complaint(str(path)) == f"{path} isn't UTF-8 text (byte 8)"


def test_missing_source_names_the_nearest_preset(tmp_path: Path) -> None:
    assert "no file and no preset is called 'huatuogp'; did you mean the preset 'huatuogpt'?" in complaint("huatuogp")
    assert "presets: " in complaint(str(tmp_path / "zzzz.yaml"))
    assert "is a folder" in complaint(str(tmp_path))


def test_numbers_and_words_follow_yaml_1_2() -> None:
    text = "{a: 1e-6, b: no, c: 2026-01-01, d: 010, e: -.5, f: 0x10, g: ~, h: 12:30, i: true, j: -.inf}"
    assert yaml_text.parse(text) == {
        "a": 1e-6, "b": "no", "c": "2026-01-01", "d": "010", "e": -0.5, "f": 16, "g": None, "h": "12:30", "i": True,
        "j": float("-inf"),
    }  # fmt: skip


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inside: st.lists(inside) | st.dictionaries(st.text(), inside),
    max_leaves=8,
)


@given(plain)
@example("a\x85b")
@example({"\u2028": " \r\n x\n", "1e-6": "yes"})
def test_rendered_yaml_reads_back(value: object) -> None:
    assert yaml_text.parse(yaml_text.render(value)) == value


@given(options=st.dictionaries(st.text(), plain, max_size=3), name=st.text(min_size=1))
def test_dump_loads_back_to_the_same(
    options: dict[str, object], name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("dump")
    raw = yaml_text.parse(SMALL)
    raw["rewards"][0] |= {"options": options, "name": f"x{name}"}
    first = load(PPOConfig, write(folder, yaml_text.render(raw)))
    again = load(PPOConfig, write(folder, dump(first)))
    assert again == first
    assert config_hash(again) == config_hash(first)


def test_hash_tells_configurations_apart(small: str) -> None:
    assert config_hash(load(PPOConfig, small)) == config_hash(load(PPOConfig, small, ["steps=100"])), (
        "100 is the default"
    )
    assert config_hash(load(PPOConfig, small)) != config_hash(load(PPOConfig, small, ["steps=101"]))
    assert len(config_hash(load(PPOConfig, small))) == 64


def test_presets_validate_and_say_what_they_are() -> None:
    known = presets()
    assert {"huatuogpt", "zhongjing"} <= set(known)
    for name, summary in known.items():
        assert load(PPOConfig, name).steps > 0
        assert len(summary) > 10


def test_full_size_presets_hold_the_papers_numbers() -> None:
    huatuo = load(PPOConfig, "huatuogpt")
    assert (huatuo.steps, huatuo.prompts_per_step, huatuo.algorithm.epochs) == (16000, 64, 4)
    assert (huatuo.policy.train.mode, huatuo.policy.train.num_layers) == ("last_n", 2)
    assert (huatuo.policy.optimizer.lr, huatuo.algorithm.kl.coef) == (1e-6, 0.1)
    assert huatuo.policy.ranks + huatuo.rollout.engines + huatuo.rewards[0].workers == 8, "GPUs"
    zhongjing = load(PPOConfig, "zhongjing")
    assert (zhongjing.policy.train.mode, zhongjing.policy.train.lora_rank) == ("lora", 16)
    assert zhongjing.policy.optimizer.lr == 5e-5
    assert zhongjing.prompts_per_step == 8 * 4 * 4
    assert zhongjing.policy.ranks + zhongjing.rollout.engines + zhongjing.rewards[0].workers == 4, "GPUs"


def test_placeholders_must_be_set_before_a_run(tmp_path: Path) -> None:
    config = load(PPOConfig, "huatuogpt")
    assert placeholders(config) == ["policy.model", "data.prompts", "rewards.reward_model.model"]
    with pytest.raises(ConfigError, match=r"policy\.model, data\.prompts, .*policy\.model=PATH data\.prompts=PATH"):
        require_no_placeholders(config)
    paths = ["policy.model=/m", "data.prompts=/p", "rewards.reward_model.model=/r"]
    require_no_placeholders(load(PPOConfig, "huatuogpt", paths))
