"""Generation behind one small interface: tokens in, tokens and their log-probabilities out.

`load_engine` gives vLLM or, where that isn't installed or wanted, Hugging Face `generate`. PPO, evaluation and the
corpus stages all ask for answers through it. An engine lives in a Ray actor (a plain process that is killed leaves
vLLM's workers behind); nothing here knows that.

Same seed, same prompts in the same order, same weights: same tokens. vLLM's core therefore runs in this process, where
all requests are queued before the first step; with a core of its own, the first batch depends on timing.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from rayrl.config.parts import RolloutConfig
from rayrl.config.trust import vllm_options
from rayrl.errors import UserError
from rayrl.heartbeat import beat
from rayrl.models.loading import device, dtype_name, load_causal_lm
from rayrl.models.weights import Bucket

UNFINISHED = "-1"
"""Version of an engine whose weight update was broken off: nothing takes its answers."""


@dataclass(frozen=True)
class Completion:
    """One sampled answer. `ended`: its last token is an end token."""

    token_ids_T: np.ndarray
    logprobs_T: np.ndarray
    ended: bool
    weight_version: int


class Engine(Protocol):
    """What rollout, evaluation and corpus stages need."""

    def generate(self, prompts: Sequence[np.ndarray], num_samples: int, seed: int) -> list[list[Completion]]:
        """`num_samples` answers to each prompt (token ids [P]), in order."""
        ...

    def begin_update(self) -> None:
        """Opens a weight update; generation waits until it is finished. One that was never finished is dropped."""
        ...

    def load_bucket(self, bucket: Bucket) -> None:
        """Loads some of the weights."""
        ...

    def finish_update(self, version: int) -> None:
        """Closes the update: everything sampled from now on carries `version`."""
        ...

    def sleep(self) -> None:
        """Frees device memory until `wake`."""
        ...

    def wake(self) -> None:
        """Undoes `sleep`."""
        ...

    def describe(self) -> Mapping[str, str]:
        """Engine class and dtype, for logs and tests."""
        ...


def check_backend(config: RolloutConfig) -> None:
    """Raises UserError where the engine isn't installed. Found, not imported: that takes seconds."""
    if config.backend == "vllm" and find_spec("vllm") is None:
        raise UserError(
            "rollout.backend is vllm, but vLLM isn't installed: install rayrl[cpu] or rayrl[gpu], "
            "or set rollout.backend=hf"
        )


def load_engine(
    model: str,
    config: RolloutConfig,
    end_token_ids: Sequence[int],
    pad_token_id: int,
    transfer_backend: str = "shared_memory",
) -> Engine:
    """The engine that the config names; a missing vLLM is a clear error, not another engine in silence."""
    if config.backend == "hf":
        return HFEngine(model, config, end_token_ids, pad_token_id)
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"rollout.backend is vllm, but vLLM can't be imported ({error}): install rayrl[cpu] or rayrl[gpu], or set "
            "rollout.backend=hf"
        ) from error
    return VLLMEngine(model, config, end_token_ids, transfer_backend)


def prepare_vllm(compiles: bool) -> None:
    """Before vLLM is imported: it stays in this process, says little, and unless it `compiles`, compiles nothing."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_LOGGING_LEVEL"] = os.environ.setdefault("RAYRL_VLLM_LOG", "ERROR")
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    if not compiles:
        # A few of vLLM's samplers are compiled whatever enforce_eager says, which takes a C++ compiler and time.
        os.environ["TORCH_COMPILE_DISABLE"] = "1"  # for workers in processes of their own
        torch._dynamo.config.disable = True


class VLLMEngine:
    """vLLM's `LLM` with weight transfer."""

    def __init__(self, model: str, config: RolloutConfig, end_token_ids: Sequence[int], transfer_backend: str) -> None:
        self._on_gpu = device().type == "cuda"
        prepare_vllm(compiles=self._on_gpu or not config.enforce_eager)
        if config.threads is not None:
            os.environ["OMP_NUM_THREADS"] = str(config.threads)
        from vllm import LLM

        self._config = config
        self._updating = False
        self._end_token_ids = list(end_token_ids)
        options: dict[str, Any] = (
            {"gpu_memory_utilization": config.gpu_memory_utilization, "enable_sleep_mode": config.sleep_between_phases}
            if self._on_gpu
            else {"kv_cache_memory_bytes": int(config.kv_cache_gb * 2**30)}
        )
        self.llm = LLM(
            model=model,
            skip_tokenizer_init=True,
            dtype=dtype_name(config.dtype),
            tensor_parallel_size=config.tensor_parallel,
            # Named, since in a placement group vLLM would take its Ray executor and look for bundles of its own.
            distributed_executor_backend="mp" if config.tensor_parallel > 1 else "uni",
            max_model_len=config.max_prompt_tokens + config.max_new_tokens,
            max_num_seqs=config.max_num_seqs,
            enforce_eager=config.enforce_eager,
            logprobs_mode="processed_logprobs",
            generation_config="vllm",
            disable_log_stats=True,
            weight_transfer_config={"backend": transfer_backend},
            worker_extension_cls="rayrl.models.weight_transfer.WorkerExtension",
            **vllm_options(),
            **options,
        )
        if transfer_backend == "shared_memory":
            self.llm.init_weight_transfer_engine({"init_info": {}})
        self.llm.update_weight_version("0")
        self._count_steps()

    def _count_steps(self) -> None:
        """A generation is one long call; its steps say whether it gets on."""
        step = self.llm.llm_engine.step

        def counted() -> Any:
            beat()
            return step()

        self.llm.llm_engine.step = counted

    def generate(self, prompts: Sequence[np.ndarray], num_samples: int, seed: int) -> list[list[Completion]]:
        """See Engine."""
        from vllm import SamplingParams

        params = SamplingParams(
            n=num_samples,
            temperature=self._config.temperature,
            top_p=self._config.top_p,
            repetition_penalty=self._config.repetition_penalty,
            max_tokens=self._config.max_new_tokens,
            min_tokens=self._config.min_new_tokens,
            stop_token_ids=self._end_token_ids,
            logprobs=0,
            detokenize=False,
        )
        self.llm.collective_rpc("seed_sampler", args=(seed,))
        self.llm.reset_prefix_cache()
        requests = [{"prompt_token_ids": prompt.tolist()} for prompt in prompts]
        outputs = self.llm.generate(requests, params, use_tqdm=False)
        return [[self._completion(one) for one in sorted(out.outputs, key=lambda o: o.index)] for out in outputs]

    def _completion(self, output: Any) -> Completion:
        ids = np.asarray(output.token_ids, dtype=np.int64)
        logprobs = np.asarray(
            [step[token].logprob for step, token in zip(output.logprobs, output.token_ids, strict=True)],
            dtype=np.float32,
        )
        versions = {span.version for span in output.weight_versions or []}
        if len(versions) != 1:
            raise RuntimeError(f"an answer was sampled under weight versions {sorted(versions)}, not under one")
        return Completion(ids, logprobs, bool(len(ids)) and int(ids[-1]) in self._end_token_ids, int(versions.pop()))

    def begin_update(self) -> None:
        """See Engine."""
        if self._updating:  # whoever sent the last one died on the way; this one sends everything again
            self.llm.finish_weight_update(weight_version=UNFINISHED)
        self.llm.start_weight_update()
        self._updating = True

    def load_bucket(self, bucket: Bucket) -> None:
        """See Engine. The bucket passes to the workers through a file on shared memory."""
        folder = "/dev/shm" if Path("/dev/shm").is_dir() else None
        with tempfile.NamedTemporaryFile(prefix="rayrl-weights-", dir=folder) as file:
            file.write(bucket.data.data)
            file.flush()
            info = {"path": file.name, "num_bytes": bucket.data.nbytes, "entries": [astuple(e) for e in bucket.entries]}
            self.llm.update_weights({"update_info": info})

    def finish_update(self, version: int) -> None:
        """See Engine."""
        self.llm.finish_weight_update(weight_version=str(version))
        self._updating = False
        self.llm.reset_prefix_cache()

    def sleep(self) -> None:
        """See Engine. On a CPU vLLM can't, so the weights and cache stay."""
        if self._on_gpu and self._config.sleep_between_phases:
            self.llm.sleep(level=1)

    def wake(self) -> None:
        """See Engine."""
        if self._on_gpu and self._config.sleep_between_phases:
            self.llm.wake_up()

    def describe(self) -> Mapping[str, str]:
        """See Engine."""
        return {
            "engine": f"{type(self.llm).__module__}.{type(self.llm).__name__}",
            "dtype": dtype_name(self._config.dtype),
        }


class _Beats(StoppingCriteria):
    """Counts tokens; stops nothing."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        beat()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class HFEngine:
    """Hugging Face `generate`, for places without vLLM. Slower; the same numbers."""

    def __init__(
        self, model: str | PreTrainedModel, config: RolloutConfig, end_token_ids: Sequence[int], pad_token_id: int
    ) -> None:
        """`model`: a checkpoint, or a model that is loaded (which then loses its generation settings)."""
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        from transformers import GenerationConfig

        self.model = load_causal_lm(model, config.dtype).to(device()) if isinstance(model, str) else model
        # A checkpoint's own settings (top_k, repetition penalty ...) would change what log-probabilities mean.
        self.model.generation_config = GenerationConfig()
        self._config = config
        self._end_token_ids = list(end_token_ids)
        self._pad_token_id = pad_token_id
        self._version = 0
        self._params: dict[str, torch.Tensor] = {}

    @torch.inference_mode()
    def generate(self, prompts: Sequence[np.ndarray], num_samples: int, seed: int) -> list[list[Completion]]:
        """See Engine."""
        torch.manual_seed(seed)
        expanded = [prompt for prompt in prompts for _ in range(num_samples)]
        done: list[Completion] = []
        for start in range(0, len(expanded), self._config.max_num_seqs):
            done += self._generate_batch(expanded[start : start + self._config.max_num_seqs])
        return [done[i : i + num_samples] for i in range(0, len(done), num_samples)]

    def _generate_batch(self, prompts: Sequence[np.ndarray]) -> list[Completion]:
        width = max(len(prompt) for prompt in prompts)
        ids_BP = torch.full((len(prompts), width), self._pad_token_id, dtype=torch.long)
        mask_BP = torch.zeros_like(ids_BP)
        for row, prompt in enumerate(prompts):  # generation appends on the right, so padding goes to the left
            ids_BP[row, width - len(prompt) :] = torch.from_numpy(np.asarray(prompt))
            mask_BP[row, width - len(prompt) :] = 1
        config = self._config
        sampling: dict[str, Any] = (
            {"do_sample": True, "temperature": config.temperature, "top_p": config.top_p, "top_k": 0}
            if config.temperature
            else {"do_sample": False}
        )
        out = self.model.generate(
            input_ids=ids_BP.to(self.model.device),
            attention_mask=mask_BP.to(self.model.device),
            **sampling,
            repetition_penalty=config.repetition_penalty,
            max_new_tokens=self._config.max_new_tokens,
            min_new_tokens=self._config.min_new_tokens,
            eos_token_id=self._end_token_ids,
            pad_token_id=self._pad_token_id,
            output_scores=True,
            return_dict_in_generate=True,
            stopping_criteria=StoppingCriteriaList([_Beats()]),
        )
        response_BT = out.sequences[:, width:].cpu()
        logprobs_BT = torch.stack(
            [
                torch.log_softmax(scores.float(), -1).cpu().gather(1, response_BT[:, t, None])[:, 0]
                for t, scores in enumerate(out.scores)
            ],
            dim=1,
        )
        return [self._completion(ids, logprobs) for ids, logprobs in zip(response_BT, logprobs_BT, strict=True)]

    def _completion(self, ids_T: torch.Tensor, logprobs_T: torch.Tensor) -> Completion:
        ends = torch.isin(ids_T, torch.tensor(self._end_token_ids)).nonzero()
        ended = len(ends) > 0
        length = int(ends[0]) + 1 if ended else len(ids_T)
        return Completion(ids_T[:length].numpy().copy(), logprobs_T[:length].numpy().copy(), ended, self._version)

    def begin_update(self) -> None:
        """See Engine."""
        self._params = dict(self.model.named_parameters(remove_duplicate=False))

    @torch.no_grad()
    def load_bucket(self, bucket: Bucket) -> None:
        """See Engine."""
        if not self._params:
            raise RuntimeError("load_bucket comes after begin_update")
        for name, tensor in bucket.tensors():
            self._params[name].copy_(tensor)

    def finish_update(self, version: int) -> None:
        """See Engine."""
        self._params = {}
        self._version = version

    def sleep(self) -> None:
        """See Engine. Weights move to host memory."""
        if self._config.sleep_between_phases:
            self.model.to("cpu")

    def wake(self) -> None:
        """See Engine."""
        self.model.to(device())

    def describe(self) -> Mapping[str, str]:
        """See Engine."""
        return {"engine": f"{type(self.model).__module__}.generate", "dtype": dtype_name(self._config.dtype)}
