"""What policy and critic actors share: where their group meets, and their optimizer state on and off the device."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import ray

from actors.worker import Worker, busy
from rayrl.learners.critic import CriticLearner
from rayrl.learners.policy import PolicyLearner
from rayrl.models.rendezvous import reserve
from rayrl.tracking.checksums import checksums


class TrainerActor(Worker):
    """One rank of a trained role; `setup` of a subclass makes the learner."""

    learner: PolicyLearner | CriticLearner

    @busy
    def address(self) -> tuple[str, int]:
        """Where the group's rank 0, which this is, will be reached: this node and a port."""
        node = ray.util.get_node_ip_address()
        return node, reserve(node)

    @busy
    def probe(self, folder: Path, done: int) -> None:
        """Whether this rank can write there, before all write together. Raises OSError.

        Raises RunError where it hasn't taken `done` steps: such weights must not become a checkpoint.
        """
        self.learner.train.require_rounds(done)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0" * 4096)
            file.flush()
            os.fsync(file.fileno())

    @busy
    def checksums(self, folder: Path, part: int, parts: int) -> dict[str, str]:
        """This rank's share of the sums of a checkpoint that all have written."""
        return checksums(folder, part, parts)

    @busy
    def offload(self) -> None:
        """Moves optimizer state off the device."""
        self.learner.train.offload()

    @busy
    def reload(self) -> None:
        """Brings it back."""
        self.learner.train.reload()
