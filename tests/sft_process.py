"""`rayrl sft` without Ray: data and one rank in this process. `python sft_process.py CONFIG.yaml`; a test kills it."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from learner_cases import free_port

from rayrl.config.load import load
from rayrl.config.sft import SFTConfig
from rayrl.models.builtin import resolve_model
from rayrl.models.deepspeed_engine import init_distributed
from rayrl.stages.sft_data import prepare, sft_tokenizer
from rayrl.stages.sft_worker import Trainer


def main() -> None:
    """See the module's docstring."""
    torch.set_num_threads(1)
    config = load(SFTConfig, sys.argv[1])
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    model = resolve_model(config.model.model)
    prepare(config, sft_tokenizer(config, model), folder)
    init_distributed(0, 1, "127.0.0.1", free_port(), timeout_s=60)
    Trainer(config, folder, model, 0, 1).run()


if __name__ == "__main__":
    main()
