"""Runs to render for KubeRay, the operator's schemas, and a rendered cluster as Ray's own autoscaler reads it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import GangResourceRequest

from cluster.fit import groups
from cluster.specs import NodeResources, RoleSpec
from rayrl.commands.kuberay import rendered
from rayrl.config.load import load
from rayrl.config.ppo import PPOConfig

SCHEMAS = Path(__file__).parents[2] / "shared/kuberay"
CLAIM = "cluster.kubernetes.volume.claim=runs-of-everyone"
RULE = {"name": "length", "kind": "rule", "rule": "length_window", "cpus_per_worker": 0.5}
"""A reward without a model."""


def run(name: str, kubernetes: dict[str, Any] | None = None, **sections: Any) -> PPOConfig:
    """A PPO run called `name` on the shared volume."""
    base: dict[str, Any] = {"output_dir": f"/shared/runs/{name}", "data": {"prompts": "consultations-en"}}
    base |= {"rewards": sections.pop("rewards", [RULE])}
    cluster = {"kubernetes": {"volume": {"claim": "runs-of-everyone"}, **(kubernetes or {})}}
    return PPOConfig.model_validate({**base, **sections, "cluster": {**cluster, **sections.get("cluster", {})}})


def trainer(gpus: float, ranks: int = 1, **more: Any) -> dict[str, Any]:
    """A trained role with its last blocks, so that the reference needs no actor."""
    return {"train": {"mode": "last_n"}, "ranks": ranks, "gpus_per_rank": gpus, "cpus_per_rank": 2, **more}


def cpu_tiny() -> PPOConfig:
    """The preset."""
    return load(PPOConfig, "tiny", ["output_dir=/shared/runs/tiny", CLAIM])


def one_gpu() -> PPOConfig:
    """Everything on one device."""
    return run(
        "one-gpu",
        {"queue": "team", "priority_class": "research"},
        policy=trainer(0.4, model="org/model"),
        critic=trainer(0.2),
        rollout={"engines": 1, "gpus_per_engine": 0.4, "cpus_per_engine": 2, "sleep_between_phases": True},
        cluster={"colocate": [["policy", "critic", "rollout"]]},
    )


def eight_gpus() -> PPOConfig:
    """Trainers that share four devices, engines on two, a reward model on two, a judge behind an endpoint, W&B."""
    judge = {
        "endpoint": "https://judge.example/v1",
        "model": "m",
        "api_key_env": "JUDGE_KEY",
        "send_patient_text": True,
    }
    rewards = [
        {"name": "doctor", "kind": "model", "model": "/shared/models/reward", "workers": 2, "gpus_per_worker": 1},
        {"name": "judge", "kind": "judge", "judge": judge},
        RULE,
    ]
    secrets = [
        {"name": "JUDGE_KEY", "secret": "judge", "key": "key"},
        {"name": "HF_TOKEN", "secret": "hub", "key": "token"},
        {"name": "WANDB_API_KEY", "secret": "wandb", "key": "key"},
    ]
    return run(
        "eight-gpus",
        {"secrets": secrets, "env": {"PYTHONPATH": "/shared/code"}, "namespace": "medicine", "service_account": "runs"},
        policy=trainer(0.5, 4, model="org/model"),
        critic=trainer(0.5, 4),
        rollout={"engines": 2, "gpus_per_engine": 1, "cpus_per_engine": 4},
        rewards=rewards,
        logging={"loggers": ["tensorboard", "wandb"]},
        cluster={"colocate": [["policy", "critic"]]},
    )


def four_nodes() -> PPOConfig:
    """Four machines of eight devices, with Redis."""
    workers = [
        {"name": "rollout", "gpus": 8, "memory_gb": 900, "shm_gb": 200},
        {"name": "policy", "memory_gb": 900, "node_selector": {"nvidia.com/gpu.product": "H100"}},
    ]
    redis = {"address": "redis:6379", "password": {"secret": "redis", "key": "password"}}
    return run(
        "four-nodes",
        {"workers": workers, "redis": redis, "head": {"cpus": 4, "memory_gb": 16}, "deadline_s": 86400},
        policy=trainer(1, 8, model="/shared/models/start", zero_stage=3),
        critic=trainer(1, 8, zero_stage=3),
        rollout={"engines": 8, "tensor_parallel": 2, "gpus_per_engine": 1, "cpus_per_engine": 8},
    )


def spot() -> PPOConfig:
    """Two to six engines on spot nodes; the rest stays."""
    taint = {"key": "team", "operator": "Equal", "value": "nlp"}
    return run(
        "spot",
        {"workers": [{"name": "rollout", "min_pods": 2, "spot": "gke", "tolerations": [taint]}]},
        policy=trainer(1, 2, model="org/model"),
        critic=trainer(1, 2),
        rollout={"engines": 6, "gpus_per_engine": 1, "cpus_per_engine": 4},
        recovery={"min_engines": 2},
        cluster={"pin": {"rollout": "spot"}},
    )


CASES = {case.__name__: case for case in (cpu_tiny, one_gpu, eight_gpus, four_nodes, spot)}


def documents(config: PPOConfig, cluster_only: bool = False) -> list[dict[str, Any]]:
    """What is rendered, read back."""
    return list(yaml.safe_load_all(rendered(config, cluster_only)))


def ray_cluster(config: PPOConfig) -> dict[str, Any]:
    """The RayCluster's spec in a rendered RayJob."""
    spec: dict[str, Any] = documents(config)[1]["spec"]["rayClusterSpec"]
    return spec


def group(config: PPOConfig, name: str) -> dict[str, Any]:
    """A worker group's spec."""
    return next(found for found in ray_cluster(config)["workerGroupSpecs"] if found["groupName"] == name)


def pod(spec: dict[str, Any]) -> dict[str, Any]:
    """The pod of a group's spec."""
    found: dict[str, Any] = spec["template"]["spec"]
    return found


def node_types(config: PPOConfig) -> dict[str, dict[str, Any]]:
    """The groups of a rendered cluster as Ray's autoscaler reads the manifest."""
    cr = {"metadata": {"name": "n", "namespace": "d"}, "spec": ray_cluster(config)}
    found: dict[str, dict[str, Any]] = _derive_autoscaling_config_from_ray_cr(cr)["available_node_types"]
    return found


def nodes(config: PPOConfig, most: bool = False) -> list[NodeResources]:
    """The Ray nodes of a rendered cluster at its smallest, or at its largest."""
    found = []
    for name, kind in node_types(config).items():
        resources = kind["resources"]
        custom = {key: n for key, n in resources.items() if key not in ("CPU", "GPU", "memory")}
        for index in range(kind["max_workers" if most else "min_workers"]):
            found.append(NodeResources(f"{name}-{index}", resources["CPU"], resources.get("GPU", 0), custom))
    return found


def launched(config: PPOConfig, specs: list[RoleSpec]) -> dict[str, int]:
    """How many pods of each group Ray's autoscaler launches when the roles' bundles are asked of an empty cluster."""
    types = {
        name: NodeTypeConfig(name, kind["min_workers"], kind["max_workers"], resources=kind["resources"])
        for name, kind in node_types(config).items()
    }
    gangs = [
        GangResourceRequest(requests=[ResourceRequestUtil.make(bundle.resources()) for bundle in together])
        for found in groups(specs)
        for together in ([[bundle] for bundle in found.bundles] if found.comes_and_goes else [found.bundles])
    ]
    request = SchedulingRequest(True, types, max_num_nodes=99, gang_resource_requests=gangs)
    reply = ResourceDemandScheduler(None).schedule(request)
    assert reply.infeasible_gang_resource_requests == []
    return {launch.instance_type: launch.count for launch in reply.to_launch}


@functools.cache
def validator(kind: str) -> jsonschema.Draft202012Validator:
    """Of the operator's own schema, with unknown fields refused; where it is absent the test is skipped."""
    path = SCHEMAS / f"{kind.lower()}s.yaml"
    if not path.is_file():
        pytest.skip(f"the operator's schemas aren't there ({path}): manifests are not checked against them")
    versions = yaml.load(path.read_text("utf-8"), Loader=yaml.CSafeLoader)["spec"]["versions"]
    schema = next(version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1")
    # Kubernetes' own, which the operator's schema leaves open: these three are written.
    schema["properties"]["metadata"]["properties"] = {"name": {}, "namespace": {}, "labels": {}}
    schema["required"] = ["spec"]
    return jsonschema.Draft202012Validator(strict(schema))


def strict(schema: Any) -> Any:
    """The schema with `additionalProperties: false` wherever an object lists its properties."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    if found.get("x-kubernetes-int-or-string"):
        found.pop("type", None)
    lists = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if lists and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found["additionalProperties"] = False
    return found


def problems(document: dict[str, Any]) -> list[str]:
    """What the operator's schema has against a manifest."""
    found = validator(document["kind"]).iter_errors(document)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in found]
