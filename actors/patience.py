"""How long each role is waited for in each phase: the limit of a wait, and a watch for those that are stuck in it."""

from __future__ import annotations

from actors.group import Group
from cluster.health import Watch
from rayrl.config.ppo import ClusterConfig, Phase, RecoveryConfig

LOOKS = 4
"""Looks at an actor within its limit, so that a hang is found soon after it."""
MAX_EVERY_S = 5.0


class Patience:
    """The limits of a run."""

    def __init__(self, cluster: ClusterConfig, recovery: RecoveryConfig) -> None:
        self._recovery = recovery
        self.start_s, self.step_s = cluster.start_timeout_s, cluster.step_timeout_s
        """For actors to load, and for any answer within a step."""

    def limit_s(self, role: str, phase: Phase) -> float:
        """For how long an actor of `role` ("reward:x" too) may work in `phase` without getting further."""
        kind = role.partition(":")[0]
        for name, by_phase in self._recovery.no_progress_s_of.items():
            if name == kind and phase in by_phase:
                return by_phase[phase]
        return self._recovery.no_progress_s

    def watch(self, phase: Phase, *groups: Group) -> Watch:
        """Over all ranks of the groups, as they are now."""
        handles = {name: handle for group in groups for name, handle in group.by_name.items()}
        limits = {name: self.limit_s(group.role, phase) for group in groups for name in group.names}
        return Watch(handles, limits, min([MAX_EVERY_S, *(limit / LOOKS for limit in limits.values())]))
