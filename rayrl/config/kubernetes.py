"""The section `cluster.kubernetes`: what `rayrl kuberay render` has to know besides the run itself.

Read by rendering alone; a run doesn't look at it. Secrets stand here by reference only: the name of a Kubernetes Secret
and of a key in it. Sizes that are left out follow from what the roles claim (cluster/worker_groups.py).
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, field_validator, model_validator

from rayrl.config.strict import Strict

GroupName = Literal["cpu", "policy", "critic", "reference", "reward", "rollout"]
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRETIVE = re.compile(r"(KEY|TOKEN|PASSWORD|SECRET|CREDENTIALS?)$", re.IGNORECASE)
_OF_THE_OPERATOR = re.compile(r"RAY_AUTH_|RAY_REDIS_ADDRESS$|REDIS_")
_LABEL = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_SUBDOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_SECRET_KEY = re.compile(r"[A-Za-z0-9._-]{1,253}")
_IMAGE_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    r"(?:(?=[^/]*[.:]|localhost/)(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(?::[0-9]+)?/)?"  # a registry
    rf"{_IMAGE_PART}(?:/{_IMAGE_PART})*(?::\w[\w.-]{{0,127}})?(?:@[a-z0-9]+:[0-9a-f]{{32,}})?",
    re.ASCII,
)
_ADDRESS = re.compile(r"(?:rediss?://)?(?:[A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:]+\]):([0-9]{1,5})")


def _label(name: str | None) -> str | None:
    """A namespace's name (RFC 1123 label)."""
    if name is not None and (len(name) > 63 or not re.fullmatch(_LABEL, name)):
        raise ValueError(
            f"{name!r} can't be a namespace: lower case, digits and -, a letter or digit first and last, 63 at the most"
        )
    return name


def _object_name(name: str | None) -> str | None:
    """The name of most things in Kubernetes (RFC 1123 subdomain)."""
    if name is not None and (len(name) > 253 or not _SUBDOMAIN.fullmatch(name)):
        raise ValueError(
            f"{name!r} can't be a name in Kubernetes: lower case, digits, - and ., a letter or digit first and last"
        )
    return name


def _secret_key(key: str) -> str:
    if not _SECRET_KEY.fullmatch(key):
        raise ValueError(f"{key!r} can't be a key of a Secret: letters, digits, -, _ and .")
    return key


def _image(image: str) -> str:
    if not _IMAGE.fullmatch(image):
        raise ValueError(f"{image!r} can't be an image: write REGISTRY/NAME:TAG, the name in lower case, no spaces")
    return image


_Name = Annotated[str, AfterValidator(_object_name)]
_NameOrNull = Annotated[str | None, AfterValidator(_object_name)]
_Image = Annotated[str, AfterValidator(_image)]


class ImagesConfig(Strict):
    """Images built by docker/Dockerfile, with the same Ray."""

    cpu: _Image = Field("rayrl:cpu", description="Of the head and of pods without a GPU.")
    gpu: _Image = Field("rayrl:gpu", description="Of pods with GPUs.")
    pull_secrets: list[_Name] = Field([], description="Names of Secrets for a private registry.")


class VolumeConfig(Strict):
    """The volume that all pods share. The run's folder lies on it, so a new cluster resumes the run."""

    claim: _Name = Field(description="Name of a PersistentVolumeClaim that many nodes may write (ReadWriteMany).")
    mount: str = Field("/shared", description="Where pods see it; `output_dir` and local paths lie below.")

    @field_validator("mount")
    @classmethod
    def _absolute(cls, mount: str) -> str:
        path = PurePosixPath(mount)
        if not path.is_absolute() or path == PurePosixPath("/") or ".." in path.parts:
            raise ValueError("write an absolute path below /, as in /shared")
        return str(path)


class SecretKeyConfig(Strict):
    """A value in a Kubernetes Secret, by reference."""

    secret: _Name = Field(description="Name of the Secret.")
    key: Annotated[str, AfterValidator(_secret_key)] = Field(description="Key in it.")


class SecretVariableConfig(SecretKeyConfig):
    """An environment variable of all Ray pods that comes from a Secret."""

    name: str = Field(description="Name of the variable, as in HF_TOKEN.")

    @field_validator("name")
    @classmethod
    def _a_variable(cls, name: str) -> str:
        return _variable(name)


class RedisConfig(Strict):
    """Where Ray's control store keeps its state, so that the cluster outlives its head."""

    address: str = Field(description="HOST:PORT of a Redis that is there; with TLS rediss://HOST:PORT.")
    password: SecretKeyConfig | None = Field(None, description="Its password, by reference.")

    @field_validator("address")
    @classmethod
    def _host_and_port(cls, address: str) -> str:
        found = _ADDRESS.fullmatch(address)
        if found is None or not 0 < int(found[1]) < 65536:  # not repeated: it may hold a password
            raise ValueError("write HOST:PORT, as in redis:6379, and name the Secret of a password in `password`")
        return address


class TolerationConfig(Strict):
    """A taint that pods put up with (Kubernetes' own fields)."""

    key: str | None = Field(None, description="The taint's key; null with `Exists`: any.")
    operator: Literal["Exists", "Equal"] = Field("Exists", description="Whether the value counts.")
    value: str | None = Field(None, description="`Equal`: the taint's value.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(None, description="null: all.")


class PodConfig(Strict):
    """Size and place of a pod; requests equal limits."""

    cpus: PositiveInt | None = Field(
        None,
        description="CPUs a pod. By default the head has 2, a pod with GPUs 4 a GPU or what its ranks claim, whichever "
        "is more, others what their ranks claim (`cpu`: up to 16).",
    )
    memory_gb: PositiveFloat | None = Field(
        None, description="GiB a pod; by default 4 a CPU or 64 a GPU, whichever is more: set it by the models' sizes."
    )
    shm_gb: PositiveFloat | None = Field(
        None, description="GiB of /dev/shm, taken off that memory (Ray's object store); by default half of it."
    )
    node_selector: dict[str, str] = Field({}, description="Labels of the nodes, the accelerator's for one.")
    tolerations: list[TolerationConfig] = Field([], description="Taints that are put up with, besides the GPU's own.")

    @model_validator(mode="after")
    def _shm_is_memory(self) -> PodConfig:
        if self.shm_gb and self.memory_gb and self.shm_gb >= self.memory_gb:
            raise ValueError(f"shm_gb: {self.shm_gb:g} is taken off memory_gb ({self.memory_gb:g}) and must be less")
        return self


class WorkersConfig(PodConfig):
    """One worker group: `rollout`, `cpu`, or a role with GPUs, by the first of those that share its bundles."""

    name: GroupName = Field(description="The group; the rendered file's first lines list those of a run.")
    gpus: PositiveInt | None = Field(
        None, description="GPUs a pod; by default one engine's, for other roles all theirs, spread evenly, up to 8."
    )
    min_pods: int | None = Field(
        None, ge=0, description="Pods that are always there; set, the group autoscales. Needs `recovery.min_engines`."
    )
    max_pods: PositiveInt | None = Field(
        None, description="Pods at the most when it autoscales; by default what all ranks need, and never less."
    )
    spot: Literal["gke", "eks", "aks", "karpenter"] | None = Field(
        None, description="Run on spot nodes, with this provider's label and toleration."
    )

    @model_validator(mode="after")
    def _bounds(self) -> WorkersConfig:
        if self.max_pods is not None and self.min_pods is None:
            raise ValueError(f"max_pods: only a group that autoscales has bounds; set min_pods too ({self.name})")
        return self


class KubernetesConfig(Strict):
    """What `rayrl kuberay render` makes manifests for KubeRay from."""

    volume: VolumeConfig = Field(description="The shared volume.")
    name: str | None = Field(None, description="Of the RayJob; by default the last part of `output_dir`.")
    namespace: Annotated[str | None, AfterValidator(_label)] = Field(
        None, description="Kubernetes namespace; null leaves it to kubectl."
    )
    image: ImagesConfig = Field(default_factory=ImagesConfig, description="Images.")
    head: PodConfig = Field(default_factory=PodConfig, description="The head: control store, dashboard, driver.")
    workers: list[WorkersConfig] = Field([], description="Worker groups that differ from the defaults.")
    gpu_resource: str = Field("nvidia.com/gpu", pattern=r"gpu$", description="Kubernetes' name of a GPU.")
    secrets: list[SecretVariableConfig] = Field([], description="Environment variables from Secrets.")
    env: dict[str, str] = Field({}, description="Further environment variables of the Ray pods; no secrets.")
    redis: RedisConfig | None = Field(None, description="For fault tolerance of Ray's control store; null: none.")
    service_account: _NameOrNull = Field(None, description="Service account of the pods.")
    priority_class: _NameOrNull = Field(None, description="PriorityClass of the pods.")
    queue: _NameOrNull = Field(None, description="Kueue's local queue that admits the job.")
    retries: int = Field(3, ge=0, description="New clusters after a failure; each resumes from the shared volume.")
    ttl_s: int = Field(600, ge=0, description="Seconds after the end until the cluster is removed.")
    deadline_s: PositiveInt | None = Field(None, description="Seconds after which the job is ended; null: none.")

    @field_validator("env")
    @classmethod
    def _open_variables(cls, env: dict[str, str]) -> dict[str, str]:
        for name in env:
            _variable(name)
            if _SECRETIVE.search(name):
                raise ValueError(
                    f"{name} looks like a secret: keep it in a Kubernetes Secret and name that in `secrets`"
                )
        return env

    @model_validator(mode="after")
    def _names_differ(self) -> KubernetesConfig:
        groups = [str(workers.name) for workers in self.workers]
        variables = [*(secret.name for secret in self.secrets), *self.env]
        for key, names in (("workers", groups), ("secrets and env", variables)):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{key}: {', '.join(twice)} stands there twice")
        return self


def _variable(name: str) -> str:
    if not _VARIABLE.fullmatch(name):
        raise ValueError(f"{name!r} can't be the name of an environment variable: letters, digits and _")
    if name == "RAYRL_ALLOW":
        raise ValueError(f"{name} is no key of a configuration: say --allow when rendering")
    if _OF_THE_OPERATOR.match(name):
        raise ValueError(f"{name} is set by KubeRay itself (authOptions, redis); leave it out")
    return name
