"""Manifests for KubeRay: a RayJob or RayCluster whose worker groups hold the roles of a run.

Written for the operator 1.7 (`ray.io/v1`). The head does no work (`num-cpus: 0`). The resolved configuration lies in a
ConfigMap where the driver runs; secrets are named, never written. Probes are left to the operator, which asks every Ray
container over HTTP; so is the token, which it makes itself. Left out: applying manifests, the volume, the operator.

Fields: https://ray-project.github.io/kuberay/reference/api/; what the operator refuses:
https://github.com/ray-project/kuberay/blob/master/ray-operator/controllers/ray/utils/validation.go.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from cluster.worker_groups import WorkerGroup

MAX_NAME = 47
"""Characters of a RayJob's name; the operator appends 6 for the cluster and then what its services are called."""
CONFIG_FOLDER = "/etc/rayrl"
CONFIG_FILE = "config.yaml"
CONFIG_PATH = f"{CONFIG_FOLDER}/{CONFIG_FILE}"
"""Where the driver finds the configuration."""
USER = 1000
"""User and group in the images."""
DRIVER_GROUP = "driver"
HEAD_CPUS = 2
GB_A_CPU = 4.0
GB_A_GPU = 64.0
IDLE_S = 300
"""After so long without work an autoscaled pod goes; a rank's bundle counts as work."""

SPOT: Mapping[str, tuple[Mapping[str, str], Sequence[Mapping[str, str]]]] = {
    "gke": (
        {"cloud.google.com/gke-spot": "true"},
        [{"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}],
    ),
    "eks": ({"eks.amazonaws.com/capacityType": "SPOT"}, []),
    "aks": (
        {"kubernetes.azure.com/scalesetpriority": "spot"},
        [
            {
                "key": "kubernetes.azure.com/scalesetpriority",
                "operator": "Equal",
                "value": "spot",
                "effect": "NoSchedule",
            }
        ],
    ),
    "karpenter": ({"karpenter.sh/capacity-type": "spot"}, []),
}
"""Each provider's label and taint of spot nodes."""
STAYS: Mapping[str, str] = {
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    "karpenter.sh/do-not-disrupt": "true",
}
"""Keeps a pod from being moved so that nodes can be emptied: to lose it costs the run a restart."""


@dataclass(frozen=True)
class SecretKey:
    """A key of a Kubernetes Secret."""

    secret: str
    key: str

    def source(self) -> dict[str, Any]:
        """As `valueFrom` wants it."""
        return {"secretKeyRef": {"name": self.secret, "key": self.key}}


@dataclass(frozen=True)
class PodPlace:
    """Memory of a pod and where it may run; None: by its CPUs and GPUs."""

    memory_gb: float | None = None
    shm_gb: float | None = None
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, str]] = ()
    spot: str | None = None
    """A key of SPOT."""


@dataclass(frozen=True)
class Settings:
    """What the cluster is like, besides its worker groups."""

    name: str
    claim: str
    mount: str
    ray_version: str
    cpu_image: str
    gpu_image: str
    namespace: str | None = None
    pull_secrets: Sequence[str] = ()
    head_cpus: int = HEAD_CPUS
    head: PodPlace = PodPlace()
    places: Mapping[str, PodPlace] = field(default_factory=dict)
    """By worker group."""
    gpu_resource: str = "nvidia.com/gpu"
    secrets: Mapping[str, SecretKey] = field(default_factory=dict)
    """By environment variable."""
    env: Mapping[str, str] = field(default_factory=dict)
    redis_address: str | None = None
    redis_password: SecretKey | None = None
    service_account: str | None = None
    priority_class: str | None = None
    queue: str | None = None


@dataclass(frozen=True)
class Job:
    """The command of a RayJob and what becomes of it."""

    entrypoint: str
    retries: int = 3
    """New clusters after a failure."""
    ttl_s: int = 600
    deadline_s: int | None = None


def valid_name(text: str) -> str:
    """A RayJob's name made from any text: lower case, digits and -, a letter first, at most MAX_NAME characters.

    A name that is valid already stays as it is; one that is too long keeps its start and gets a hash of the rest.
    """
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if not name or not name[0].isalpha():
        name = f"run-{name}".rstrip("-")
    if len(name) > MAX_NAME:
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        name = f"{name[: MAX_NAME - 9].rstrip('-')}-{digest}"
    return name


def manifests(settings: Settings, groups: Sequence[WorkerGroup], config: str, job: Job | None) -> list[dict[str, Any]]:
    """The documents to apply: the ConfigMap with `config`, then the RayJob, or where there is no job the RayCluster."""
    files = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _metadata(settings), "data": {CONFIG_FILE: config}}
    cluster = _cluster(settings, groups)
    kind, spec = ("RayCluster", cluster) if job is None else ("RayJob", _job(settings, job, cluster))
    metadata = _metadata(settings)
    if settings.queue is not None:
        metadata["labels"]["kueue.x-k8s.io/queue-name"] = settings.queue
    return [files, {"apiVersion": "ray.io/v1", "kind": kind, "metadata": metadata, "spec": spec}]


def to_yaml(documents: Sequence[Mapping[str, Any]], comment: Sequence[str] = ()) -> str:
    """One file of several documents below lines of comment."""
    head = "".join(f"# {line}".rstrip() + "\n" for line in comment)
    return head + "---\n".join(
        yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=200) for document in documents
    )


def _metadata(settings: Settings) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": "rayrl", "app.kubernetes.io/instance": settings.name}
    namespace = {"namespace": settings.namespace} if settings.namespace is not None else {}
    return {"name": settings.name, **namespace, "labels": labels}


def _job(settings: Settings, job: Job, cluster: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "entrypoint": job.entrypoint,
        "submissionMode": "K8sJobMode",
        "backoffLimit": job.retries,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": job.ttl_s,
    }
    if job.deadline_s is not None:
        spec["activeDeadlineSeconds"] = job.deadline_s
    if settings.redis_address is not None:
        # Off the head, so that losing that doesn't end the run; submitting has to outlast it too.
        spec |= {"entrypointResources": json.dumps({DRIVER_GROUP: 1}), "submitterConfig": {"backoffLimit": 10}}
    # The operator's own submitter says nothing of its user, which restricted namespaces refuse.
    container = {
        "name": "ray-job-submitter",
        "image": settings.cpu_image,
        "resources": _resources({"cpu": "1", "memory": "1Gi"}),
        "securityContext": _container_security(),
    }
    template: dict[str, Any] = {"spec": {"restartPolicy": "Never", **_pod_wide(settings), "containers": [container]}}
    return {**spec, "submitterPodTemplate": template, "rayClusterSpec": cluster}


def _cluster(settings: Settings, groups: Sequence[WorkerGroup]) -> dict[str, Any]:
    autoscales = any(group.autoscales for group in groups)
    spec: dict[str, Any] = {
        "rayVersion": settings.ray_version,
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": autoscales,
    }
    if autoscales:
        spec["autoscalerOptions"] = {
            "version": "v2",
            "idleTimeoutSeconds": IDLE_S,
            "resources": _resources({"cpu": "1", "memory": "1Gi"}),
            "securityContext": _container_security(),
        }
    if settings.redis_address is not None:
        spec["gcsFaultToleranceOptions"] = {"redisAddress": settings.redis_address}
        if settings.redis_password is not None:
            spec["gcsFaultToleranceOptions"]["redisPassword"] = {"valueFrom": settings.redis_password.source()}
    drives = settings.redis_address is None
    head = _template(settings, "ray-head", settings.head, settings.head_cpus, 0, drives, keeps_account=autoscales)
    ports = {"gcs-server": 6379, "dashboard": 8265}  # of the head's service, which needs no others
    head["spec"]["containers"][0]["ports"] = [{"name": name, "containerPort": port} for name, port in ports.items()]
    spec["headGroupSpec"] = {"rayStartParams": {"num-cpus": "0", "num-gpus": "0"}, "template": head}
    workers = [_worker_group(settings, group) for group in groups]
    return {**spec, "workerGroupSpecs": workers if drives else [_driver_group(settings), *workers]}


def _worker_group(settings: Settings, group: WorkerGroup) -> dict[str, Any]:
    cpus, gpus = int(group.node.cpus), int(group.node.gpus)
    declared = {name: int(amount) for name, amount in group.node.custom.items()}
    place = settings.places.get(group.name, PodPlace())
    stays = not group.autoscales and place.spot is None
    return {
        "groupName": group.name,
        # With fewer than all of these running the operator submits no job; the autoscaler adds the others.
        "replicas": group.min_nodes,
        "minReplicas": group.min_nodes,
        "maxReplicas": group.max_nodes,
        "rayStartParams": {"num-cpus": str(cpus), "num-gpus": str(gpus), "resources": _declared(declared)},
        "template": _template(settings, "ray-worker", place, cpus, gpus, drives=False, stays=stays),
    }


def _driver_group(settings: Settings) -> dict[str, Any]:
    """One pod for the driver alone."""
    return {
        "groupName": DRIVER_GROUP,
        "replicas": 1,
        "minReplicas": 1,
        "maxReplicas": 1,
        "rayStartParams": {"num-cpus": "0", "num-gpus": "0", "resources": _declared({DRIVER_GROUP: 1})},
        "template": _template(settings, "ray-worker", settings.head, settings.head_cpus, 0, drives=True),
    }


def _declared(resources: Mapping[str, int]) -> str:
    """As `ray start --resources=` takes it through a shell, and as Ray's autoscaler reads it back."""
    escaped = json.dumps(resources).replace('"', '\\"')
    return f'"{escaped}"'


def _template(
    settings: Settings,
    name: str,
    place: PodPlace,
    cpus: int,
    gpus: int,
    drives: bool,
    keeps_account: bool = False,
    stays: bool = True,
) -> dict[str, Any]:
    """A Ray pod.

    `drives`: the run's command starts in it. `keeps_account`: something in it talks to Kubernetes. `stays`: it is to
    be left where it is.
    """
    memory = place.memory_gb or max(GB_A_CPU * cpus, GB_A_GPU * gpus)
    shm = place.shm_gb or memory / 2
    amounts = {"cpu": str(cpus), "memory": f"{memory:g}Gi"} | ({settings.gpu_resource: str(gpus)} if gpus else {})
    mounts: list[dict[str, Any]] = [
        {"name": "shared", "mountPath": settings.mount},
        {"name": "shared-mem", "mountPath": "/dev/shm"},
    ]
    volumes: list[dict[str, Any]] = [
        {"name": "shared", "persistentVolumeClaim": {"claimName": settings.claim}},
        # The operator's own one, under the same name, has no limit.
        {"name": "shared-mem", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shm:g}Gi"}},
    ]
    if drives:
        mounts.append({"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True})
        volumes.append({"name": "config", "configMap": {"name": settings.name}})
    container = {
        "name": name,
        "image": settings.gpu_image if gpus else settings.cpu_image,
        "env": _environment(settings),
        "resources": _resources(amounts),
        "securityContext": _container_security(),
        "volumeMounts": mounts,
    }
    spec = {**_pod_wide(settings, keeps_account), "containers": [container], "volumes": volumes}
    selector, tolerations = _placed(settings, place, gpus)
    spec |= {"nodeSelector": selector} if selector else {}
    spec |= {"tolerations": tolerations} if tolerations else {}
    return {"metadata": {"annotations": dict(STAYS)}, "spec": spec} if stays else {"spec": spec}


def _placed(settings: Settings, place: PodPlace, gpus: int) -> tuple[dict[str, str], list[dict[str, str]]]:
    selector, tolerations = SPOT[place.spot] if place.spot else ({}, [])
    # The usual taint of GPU nodes.
    own = [{"key": settings.gpu_resource, "operator": "Exists", "effect": "NoSchedule"}] if gpus else []
    return {**selector, **place.node_selector}, [dict(taint) for taint in [*own, *tolerations, *place.tolerations]]


def _environment(settings: Settings) -> list[dict[str, Any]]:
    """Caches on the shared volume, so that what one pod downloads or makes is there for all."""
    caches = {"HF_HOME": f"{settings.mount}/.cache/huggingface", "RAYRL_CACHE": f"{settings.mount}/.cache/rayrl"}
    plain = {**caches, "RAY_USAGE_STATS_ENABLED": "0", **settings.env}
    return [
        *({"name": name, "value": value} for name, value in plain.items()),
        *({"name": name, "valueFrom": key.source()} for name, key in settings.secrets.items()),
    ]


def _pod_wide(settings: Settings, keeps_account: bool = False) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if settings.service_account is not None:
        spec["serviceAccountName"] = settings.service_account
    elif not keeps_account:
        spec["automountServiceAccountToken"] = False
    if settings.priority_class is not None:
        spec["priorityClassName"] = settings.priority_class
    if settings.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in settings.pull_secrets]
    return spec


def _container_security() -> dict[str, Any]:
    return {"privileged": False, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _resources(amounts: Mapping[str, str]) -> dict[str, Any]:
    """Requests equal limits: such pods are the last that a node short of memory evicts."""
    return {"requests": dict(amounts), "limits": dict(amounts)}


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, and equal values written out."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, data: str) -> yaml.Node:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else None)


_Dumper.add_representer(str, _Dumper.represent_text)
