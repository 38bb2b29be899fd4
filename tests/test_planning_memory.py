"""The planner's bytes: hand-worked formulas, and sums over the tensors of real learners."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_cases import MAX_NEW_TOKENS, critic_learner, make_rollouts, make_scores, policy_learner
from transformers import AutoConfig, AutoModelForCausalLM

from rayrl.errors import UserError
from rayrl.models.builtin import BUILTIN_MODELS, resolve_model
from rayrl.planning import memory, serving
from rayrl.planning.memory import Counts, Gradients, Training
from rayrl.planning.shapes import KNOWN, ModelShape, find_shape, from_config, from_folder, known_shape

# Width 4, one block, MLP of 8, two heads of 2 with one key-value head, ten tokens.
SMALL = ModelShape("small", hidden=4, layers=1, intermediate=8, heads=2, kv_heads=1, head_dim=2, vocab=10, tied=True)
PLAIN = Training("policy", "bf16", gpu=True, micro_batch=2, prompt_tokens=3, answer_tokens=2, sequences=4)
TINY = KNOWN["tiny-random"]


def test_parameters_by_hand() -> None:
    # q 4x4, k and v 4x2, o 4x4: 48; gate, up, down 4x8: 96; two norms: 8.
    assert SMALL.block == 48 + 96 + 8 == 152
    # Embedding 40, one block, the final norm 4.
    assert SMALL.params == SMALL.backbone == 40 + 152 + 4 == 196
    assert replace(SMALL, tied=False).params == 196 + 40
    assert replace(SMALL, gated=False).block == 152 - 32


@pytest.mark.parametrize("name", BUILTIN_MODELS)
def test_built_in_models_have_the_shapes_in_their_folders(name: str) -> None:
    known = known_shape(name)
    assert known is not None
    assert replace(from_folder(Path(resolve_model(name))), name=known.name) == known


@pytest.mark.parametrize(
    ("name", "billions"),
    [("llama-13b", 13.02), ("ziya-llama-13b", 13.09), ("llama-3.1-70b", 70.55), ("llama-2-7b", 6.74),
     ("qwen2.5-7b", 7.62), ("baichuan-7b", 7.0), ("tinyllama-1.1b", 1.10), ("mistral-7b", 7.24)],
)  # fmt: skip
def test_known_shapes_come_to_the_published_sizes(name: str, billions: float) -> None:
    assert KNOWN[name].params / 1e9 == pytest.approx(billions, rel=0.003)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {"num_key_value_heads": 2, "tie_word_embeddings": False}),
        ("qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
        ("qwen3", {"num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": True}),
        ("gpt_neox", {}),
        ("mistral", {"num_key_value_heads": 4, "sliding_window": None}),
    ],
)
def test_a_config_gives_the_parameters_of_its_model(kind: str, settings: dict[str, Any]) -> None:
    config = AutoConfig.for_model(
        kind, hidden_size=128, num_hidden_layers=3, num_attention_heads=8, intermediate_size=320, vocab_size=1000,
        **settings,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert from_config(config.to_dict(), kind).params == pytest.approx(model.num_parameters(), rel=0.01)


def test_names_lead_to_shapes_whoever_owns_them() -> None:
    assert find_shape("meta-llama/Llama-3.1-70B-Instruct").name == "llama-3.1-70b"
    assert find_shape("meta-llama/Meta-Llama-3-8B").name == "llama-3-8b"
    assert find_shape("path/to/sft-checkpoint", "13B").name == "llama-2-13b"
    assert find_shape("path/to/ziya-llama-13b-sft").name == "ziya-llama-13b"
    assert known_shape("llama-13bx") is None


@pytest.mark.parametrize(
    ("model", "stated", "said"),
    [
        ("path/to/sft-checkpoint", None, "neither a folder here nor a known name: state its shape, as in --shape 13b"),
        ("somebody/their-model", None, "somebody/their-model is neither a folder here nor a known name"),
        ("x", "llama-3.1-70", "did you mean 'llama-3.1-70b'?"),
        ("/nowhere/llama-13b", None, "no checkpoint at /nowhere/llama-13b: the folder doesn't exist; to plan"),
    ],
)
def test_unknown_shapes_are_one_sentence(model: str, stated: str | None, said: str) -> None:
    with pytest.raises(UserError) as caught:
        find_shape(model, stated)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, "has no config.json"),
        ("{", "isn't valid JSON"),
        ("[]", "must hold an object"),
        ('{"hidden_size": 8}', "has no num_hidden_layers"),
        (
            '{"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 9, "num_experts": 8}',
            "is a mixture of experts",
        ),
    ],
)
def test_a_folder_without_a_usable_config(config: str | None, said: str, tmp_path: Path) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config, encoding="utf-8")
    with pytest.raises(UserError, match=said):
        find_shape(str(tmp_path))


def test_a_downloaded_hub_model_is_found_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--somebody--theirs/snapshots/abc"
    folder.mkdir(parents=True)
    AutoConfig.for_model("llama", hidden_size=64, vocab_size=99).save_pretrained(folder)
    assert find_shape("somebody/theirs").vocab == 99


def test_trained_frozen_and_whole_parameters() -> None:
    assert memory.counts(SMALL, PLAIN) == Counts(196, 0, 0)
    critic = replace(PLAIN, role="critic")
    assert memory.counts(SMALL, critic) == Counts(200, 0, 0), "a head with one output: 4"
    # LoRA of rank 1 on q (4 + 4) and v (4 + 2).
    lora = replace(PLAIN, mode="lora", lora_rank=1, lora_targets=("q_proj", "v_proj"))
    assert memory.counts(SMALL, lora) == Counts(14, 196, 0)
    assert memory.counts(SMALL, replace(lora, zero_stage=3)) == Counts(14, 196, 40), "the head keeps the embedding"
    assert memory.counts(replace(SMALL, tied=False), lora) == Counts(14, 196, 40), "an untied projection is a constant"
    # Two blocks, the last trained: 152 + norm 4; below it the embedding and a block; the reference copies the top.
    deep = replace(SMALL, layers=2)
    last = replace(PLAIN, mode="last_n", num_layers=1)
    assert memory.counts(deep, last) == Counts(156, 0, 40 + 152 + 156)
    assert memory.counts(deep, replace(last, role="critic")) == Counts(160, 0, 40 + 152)
    assert memory.counts(replace(deep, tied=False), last) == Counts(196, 0, 40 + 152 + 196)


def test_weights_and_optimizer_state_by_stage() -> None:
    # bf16, one rank: 2 bytes a weight; a float32 copy and two moments, 12 bytes.
    assert memory.weight_bytes(SMALL, PLAIN) == 392
    assert memory.optimizer_bytes(196, PLAIN) == 12 * 196
    assert memory.optimizer_bytes(196, replace(PLAIN, optimizer="lion")) == 8 * 196
    # float32: no copy at stage 0, one from stage 1 on.
    single = replace(PLAIN, dtype="fp32")
    assert memory.optimizer_bytes(196, single) == 8 * 196
    assert memory.optimizer_bytes(196, replace(single, zero_stage=1)) == 12 * 196
    # Four ranks share state from stage 1 on, weights at stage 3: 49 each.
    spread = replace(PLAIN, ranks=4, zero_stage=2)
    assert (memory.weight_bytes(SMALL, spread), memory.optimizer_bytes(196, spread)) == (392, 12 * 49)
    assert memory.weight_bytes(SMALL, replace(spread, zero_stage=3)) == 98
    assert memory.gathered_bytes(SMALL, replace(spread, zero_stage=3)) == 392, "all of so small a model at a time"


def test_gradients_by_stage() -> None:
    # Stage 0 in bf16: 2 bytes beside activations where micro-batches add up, 2 + 4 in the step.
    assert memory.gradient_bytes(100, PLAIN) == Gradients(0, 0, 600)
    assert memory.gradient_bytes(100, replace(PLAIN, accumulates=True)) == Gradients(0, 200, 600)
    assert memory.gradient_bytes(100, replace(PLAIN, dtype="fp32", accumulates=True)) == Gradients(0, 400, 400)
    # Between ranks of stage 0 float32 gradients are flattened for their all-reduce.
    assert memory.gradient_bytes(100, replace(PLAIN, dtype="fp32", ranks=4)) == Gradients(0, 0, 800)
    four = replace(PLAIN, ranks=4, accumulates=True)
    assert memory.gradient_bytes(100, replace(four, zero_stage=1)) == Gradients(600, 600, 600)
    assert memory.gradient_bytes(100, replace(four, zero_stage=2)) == Gradients(0, 100, 100)
    assert memory.gradient_bytes(100, replace(four, zero_stage=3)) == Gradients(100, 100, 200)
    # Offloaded, stage 3 sums in host memory.
    assert memory.gradient_bytes(100, replace(four, zero_stage=3, offload_optimizer=True)) == Gradients(0, 0, 0)


def test_activations_of_a_block() -> None:
    # bf16 on a GPU, a token: two norms of 4*4 + 4 + 2*4 = 28; inputs of q/k/v and gate/up 2*2*4 = 16, of down 2*8 = 16;
    # gate, its activation, up 3*2*8 = 48; q, k, v and the output 2*(4 + 4 + 2 + 2) = 24 and 4 for each of 2 heads.
    assert memory.block_bytes(SMALL, PLAIN, trains=True) == 56 + 16 + 16 + 48 + 24 + 8
    # With frozen weights: norms 4*4 + 4 = 20 each, no inputs.
    assert memory.block_bytes(SMALL, PLAIN, trains=False) == 40 + 48 + 32
    # LoRA of rank 1 on q and v: their input 8, two narrow products of 2; with dropout on a GPU an input (8) and a mask
    # (4) each.
    lora = replace(PLAIN, mode="lora", lora_rank=1, lora_targets=("q_proj", "v_proj"))
    assert memory.block_bytes(SMALL, lora, trains=False) == 120 + 8 + 4
    assert memory.block_bytes(SMALL, replace(lora, lora_dropout=0.1), trains=False) == 120 + 8 + 4 + 24
    # Short rows in bf16 on a CPU keep scores, 6 bytes for each of 2 heads and 5 tokens, in place of the 8.
    assert memory.block_bytes(SMALL, replace(PLAIN, gpu=False), trains=True) == 160 + 60


def test_activations_of_a_micro_batch() -> None:
    # Ten tokens, four of them answers: a block 168, the final norm 28; the head's input and gradient 2 * 2*4 an answer.
    assert memory.activation_bytes(SMALL, PLAIN) == 10 * (168 + 28) + 4 * 16
    # Checkpointing: every block's input (8 a token) and one block whole.
    deep = replace(SMALL, layers=3)
    saved = memory.activation_bytes(deep, replace(PLAIN, gradient_checkpointing=True))
    assert saved == 10 * (3 * 8 + 168 + 28) + 4 * 16
    assert memory.activation_bytes(deep, PLAIN) == 10 * (3 * 168 + 28) + 4 * 16
    # The trunk's output is kept for all four sequences of five tokens.
    assert memory.trunk_bytes(deep, replace(PLAIN, mode="last_n", num_layers=1)) == 4 * 5 * 4 * 2


def test_logits_are_made_in_slices() -> None:
    # Four answers, ten tokens: bf16 and float32 logits 6 bytes, the projection's gradient 4 + 2 bytes of 40.
    assert memory.logit_bytes(SMALL, PLAIN) == 4 * 10 * 6 + 40 * 6
    # Frozen: a slice of at most 256 rows in bf16, float32 and bf16 again.
    many = replace(PLAIN, micro_batch=1000, mode="lora")
    assert memory.logit_bytes(SMALL, many) == 256 * 10 * 8


def test_a_peak_is_less_than_the_sum_where_one_micro_batch_fills_a_minibatch() -> None:
    one = memory.trainer_memory(SMALL, PLAIN, framework=1000)
    held = 392 + 12 * 196 + 1000
    backward = memory.activation_bytes(SMALL, PLAIN) + memory.working_bytes(SMALL, PLAIN)
    assert one.peak == held + max(backward, 6 * 196)
    several = memory.trainer_memory(SMALL, replace(PLAIN, accumulates=True), framework=1000)
    assert several.peak == held + max(backward + 2 * 196, 6 * 196)
    assert (one.idle, one.moments, one.host) == (held, 8 * 196, 0)


def test_offloaded_state_lies_in_host_memory() -> None:
    setup = replace(PLAIN, zero_stage=2, ranks=4, offload_optimizer=True)
    found = memory.trainer_memory(SMALL, setup, framework=0)
    # 49 parameters a rank: copy and moments 12, their gradient 4, the copy back 2.
    assert (found.optimizer, found.host) == (0, 49 * 18)
    on_cpu = memory.trainer_memory(SMALL, replace(setup, gpu=False), framework=0)
    assert (on_cpu.optimizer, on_cpu.host) == (49 * 12, 0), "there is nothing to offload from"
    stage_0 = memory.trainer_memory(SMALL, replace(setup, zero_stage=0), framework=0)
    assert (stage_0.optimizer, stage_0.host) == (12 * 196, 0), "stage 0 doesn't offload"


def test_keys_and_values() -> None:
    # Two tensors, a block, one head of 2, 2 bytes.
    assert serving.kv_bytes_per_token(SMALL, "bf16") == 8
    # Llama-13B: 2 * 40 * 5120 * 2 bytes; over two devices half; a 70B's 8 heads over 16 devices one each.
    assert serving.kv_bytes_per_token(KNOWN["llama-13b"], "bf16") == 819_200
    assert serving.kv_bytes_per_token(KNOWN["llama-13b"], "bf16", 2) == 409_600
    assert serving.kv_bytes_per_token(KNOWN["llama-3.1-70b"], "bf16", 16) == 2 * 80 * 128 * 2


def test_an_engine_takes_its_share_of_a_gpu_and_caches_with_the_rest() -> None:
    setup = serving.Serving("vllm", "bf16", True, 1, 3, 2, 4, 0.5, 1.0, True, False)
    found = serving.engine_memory(SMALL, setup, device_bytes=100_000, framework=1000)
    weights, working = 392, found.memory.activations
    assert found.memory.peak == found.memory.idle == 50_000
    assert found.memory.cache == 50_000 - weights - working - 1000
    assert found.sequences == pytest.approx(found.memory.cache / (8 * 5))
    asleep = serving.engine_memory(SMALL, replace(setup, sleeps=True), 100_000, 1000).memory
    assert (asleep.idle, asleep.host) == (1000, weights)
    on_cpu = serving.engine_memory(SMALL, replace(setup, gpu=False), 0, 1000).memory
    assert on_cpu.cache == 2**30 and on_cpu.peak == weights + 2**30 + on_cpu.activations + 1000


def live() -> list[torch.Tensor]:
    """All tensors that there are."""
    gc.collect()
    found = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)]
    return found + [tensor.grad for tensor in found if tensor.is_leaf and tensor.grad is not None]


def setup_of(dtype: Any, stage: int, mode: Any = "full", role: Any = "policy") -> Training:
    return Training(
        role, dtype, gpu=False, mode=mode, num_layers=1, zero_stage=stage, micro_batch=4, sequences=4,
        prompt_tokens=9, answer_tokens=MAX_NEW_TOKENS,
    )  # fmt: skip


def summed(tensors: Any) -> int:
    """Bytes of these tensors' storages, each once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t is not None}
    return sum(storages.values())


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("mode", ["full", "last_n", "lora"])
def test_a_learners_tensors_at_stage_0(dtype: str, mode: str) -> None:
    """Weights, gradients and optimizer state of the tiny model, each summed by itself."""
    learner = policy_learner(
        4, dtype=dtype, micro_batch_size=4, train={"mode": mode, "num_layers": 1}, algorithm={"epochs": 1}
    )
    rollouts = make_rollouts(4)
    view = learner.prepare(rollouts)
    references = [] if learner._reference is None else list(learner._reference.state_dict().values())
    weights = summed([*learner.parts.model.state_dict().values(), *references])
    engine = learner.train.engine
    gradients: list[int] = []
    step = engine.step

    def noted() -> None:
        gradients.append(summed(param.grad for param in engine.module.parameters()))
        step()

    engine.step = noted
    learner.update(0, make_scores(4), 0.1, view.ref_logprobs or view.logprobs, view.logprobs)
    learner.release()
    inner = engine.basic_optimizer
    own = {id(param) for param in engine.module.parameters()}
    copies = [param for group in inner.param_groups for param in group["params"] if id(param) not in own]
    moments = [value for state in inner.state.values() for value in state.values() if torch.is_tensor(value)]
    setup = setup_of(dtype, 0, mode)
    trained = memory.counts(TINY, setup).trained
    assert memory.weight_bytes(TINY, setup) == pytest.approx(weights, rel=0.15)
    assert memory.optimizer_bytes(trained, setup) == pytest.approx(summed(copies + moments), rel=0.15)
    assert setup.size * trained == pytest.approx(gradients[0], rel=0.15)


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("role", ["policy", "critic"])
def test_what_a_learner_keeps_between_steps(dtype: str, stage: int, role: str) -> None:
    """All tensors that live after an update, against what the plan says is idle."""
    before = live()  # held, so that none of them is freed meanwhile
    make = policy_learner if role == "policy" else critic_learner
    learner: Any = make(4, dtype=dtype, micro_batch_size=4, zero_stage=stage)
    rollouts, scores = make_rollouts(4), make_scores(4)
    zeros = [torch.zeros(len(r.response_ids_T)).numpy() for r in rollouts]
    prepared = learner.prepare(rollouts)
    if role == "policy":
        learner.update(0, scores, 0.1, prepared.logprobs, zeros)
    else:
        learner.update(0, scores, 0.1, zeros, zeros)
    learner.release()
    del prepared
    setup = setup_of(dtype, stage, role=role)
    planned = memory.trainer_memory(TINY, setup, framework=0).idle - memory.malloc_bytes(TINY, setup)
    assert planned == pytest.approx(summed(live()) - summed(before), rel=0.15)


def test_the_135m_models_peak_in_a_process_of_its_own() -> None:
    """Highest resident memory of two PPO steps less what the imports took: within 15% of the plan."""
    script = Path(__file__).parent.parent / "scripts" / "check_memory.py"
    done = subprocess.run([sys.executable, script, "--quick", "--json"], capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr[-2000:]
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["estimated"] == pytest.approx(row["measured"], rel=0.15)


def test_the_arithmetic_needs_no_pydantic_torch_or_ray() -> None:
    code = (
        "import sys\n"
        "import rayrl.planning.memory, rayrl.planning.time, rayrl.planning.devices, rayrl.planning.serving\n"
        "print(sorted({'torch', 'ray', 'pydantic', 'yaml', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
