"""`rayrl sft` without Ray: one rank in this process, `python sft_process.py RANK WORLD PORT CONFIG.yaml ...`.

Runs the configurations one after the other; a test may kill it. Rank 0 prepares the data.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from rayrl.config.load import load
from rayrl.config.sft import SFTConfig
from rayrl.models.builtin import resolve_model
from rayrl.models.deepspeed_engine import init_distributed
from rayrl.stages.sft_data import read_counts, sft_tokenizer, write_data
from rayrl.stages.sft_worker import Trainer


def main() -> None:
    """See the module's docstring."""
    rank, world, port = (int(text) for text in sys.argv[1:4])
    torch.set_num_threads(1)
    init_distributed(rank, world, "127.0.0.1", port, timeout_s=60)
    for path in sys.argv[4:]:
        config = load(SFTConfig, path)
        folder = Path(config.output_dir)
        model = resolve_model(config.model.model)
        if rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            if read_counts(folder) is None:
                write_data(config, sft_tokenizer(config, model), folder)
        torch.distributed.barrier()
        Trainer(config, folder, model, rank, world).run()


if __name__ == "__main__":
    main()
