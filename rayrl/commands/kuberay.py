"""`rayrl kuberay render`: a PPO run's configuration as manifests for KubeRay.

What is rendered follows from the run's own roles (rayrl/placement.py) and from `cluster.kubernetes`. What can be known
beforehand is checked here, in sentences, since on the cluster it would cost a start: whether the roles fit the pods,
whether paths lie on the shared volume, whether keys come from Secrets and none stands in the configuration. PPO runs
only: other commands have no roles to make groups from, and run as jobs on a cluster made with --cluster-only.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rayrl.config.trust import ALLOW_VARIABLE, KINDS

if TYPE_CHECKING:
    from cluster.kuberay import Job, PodPlace, SecretKey, Settings
    from cluster.worker_groups import WorkerGroup
    from rayrl.config.kubernetes import KubernetesConfig, PodConfig, SecretKeyConfig
    from rayrl.config.ppo import PPOConfig

_HERE = {"localhost", "127.0.0.1", "::1"}


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Registers the command."""
    kuberay = commands.add_parser("kuberay", help="write Kubernetes manifests of a PPO run for KubeRay")
    actions = kuberay.add_subparsers(required=True, metavar="ACTION")
    render = actions.add_parser("render", help="a RayJob with the run's worker groups, from its configuration")
    render.add_argument("source", metavar="SOURCE", help="YAML file, or a preset of `rayrl ppo`")
    render.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="e.g. cluster.kubernetes.volume.claim=NAME")
    render.add_argument("--to", metavar="FILE", type=Path, help="the file; by default the manifests are printed")
    render.add_argument("--cluster-only", action="store_true", help="a RayCluster that stays, in place of a RayJob")
    render.add_argument(
        "--allow", metavar="WHAT", action="append", default=[], choices=list(KINDS), help="as of `rayrl ppo`"
    )
    render.set_defaults(handler=_render)


def _render(args: argparse.Namespace) -> None:
    from rayrl.config.load import load
    from rayrl.config.ppo import PPOConfig

    text = rendered(load(PPOConfig, args.source, args.overrides), args.cluster_only, args.allow)
    if args.to is None:
        print(text, end="")
        return
    args.to.parent.mkdir(parents=True, exist_ok=True)
    args.to.write_text(text, encoding="utf-8")
    print(f"manifests: {args.to}; its first lines say how to apply them")


def rendered(config: PPOConfig, cluster_only: bool = False, allow: Sequence[str] = ()) -> str:
    """The manifests of a run, with lines of comment first. `allow`: KINDS of rayrl/config/trust.py that pods may.

    Raises:
        ConfigError: something about the run can't be so on a cluster.
        DoesNotFit: a rank asks for more than a pod has.
    """
    from cluster.kuberay import manifests, to_yaml
    from rayrl.config.load import ConfigError, dump, require_no_placeholders

    kubernetes = config.cluster.kubernetes
    if kubernetes is None:
        raise ConfigError(
            "cluster.kubernetes isn't there: it says at least which volume the pods share "
            "(cluster.kubernetes.volume.claim=NAME of a PersistentVolumeClaim)"
        )
    require_no_placeholders(config)
    problems = [*_paths_off_the_volume(config, kubernetes), *_secrets_in(config), *_missing_secrets(config, kubernetes)]
    if problems:
        raise ConfigError("\n".join(problems))
    groups, inside = _groups(config, kubernetes)
    settings = _settings(config, kubernetes, {ALLOW_VARIABLE: ",".join(sorted(set(allow)))} if allow else {})
    job = None if cluster_only else _job(kubernetes)
    return to_yaml(manifests(settings, groups, dump(inside), job), _comment(settings, groups, job))


def _groups(config: PPOConfig, kubernetes: KubernetesConfig) -> tuple[list[WorkerGroup], PPOConfig]:
    """The worker groups, and the configuration as it is to run there: with each role pinned to its group."""
    from cluster.worker_groups import Size, group_of_role, kind, pin_name, plan
    from rayrl.config.load import ConfigError
    from rayrl.placement import role_specs

    pins = {kind(role): pin_name(group) for role, group in group_of_role(role_specs(config)).items()}
    cluster = config.cluster.model_copy(update={"address": "auto", "pin": {**pins, **config.cluster.pin}})
    inside = config.model_copy(update={"cluster": cluster})
    sizes = {entry.name: Size(entry.cpus, entry.gpus, entry.min_pods, entry.max_pods) for entry in kubernetes.workers}
    try:
        return plan(role_specs(inside), {str(name): size for name, size in sizes.items()}), inside
    except ValueError as error:
        raise ConfigError(f"cluster.kubernetes.workers: {error}") from None


def _settings(config: PPOConfig, kubernetes: KubernetesConfig, allowed: dict[str, str]) -> Settings:
    from importlib.metadata import version

    from cluster.kuberay import HEAD_CPUS, Settings

    redis, image = kubernetes.redis, kubernetes.image
    return Settings(
        name=_name(config, kubernetes),
        claim=kubernetes.volume.claim,
        mount=kubernetes.volume.mount,
        ray_version=version("ray"),
        cpu_image=image.cpu,
        gpu_image=image.gpu,
        namespace=kubernetes.namespace,
        pull_secrets=image.pull_secrets,
        head_cpus=kubernetes.head.cpus or HEAD_CPUS,
        head=_place(kubernetes.head),
        places={entry.name: _place(entry, entry.spot) for entry in kubernetes.workers},
        gpu_resource=kubernetes.gpu_resource,
        secrets={entry.name: _reference(entry) for entry in kubernetes.secrets},
        env={**kubernetes.env, **allowed},
        redis_address=redis.address if redis else None,
        redis_password=_reference(redis.password) if redis and redis.password else None,
        service_account=kubernetes.service_account,
        priority_class=kubernetes.priority_class,
        queue=kubernetes.queue,
    )


def _job(kubernetes: KubernetesConfig) -> Job:
    from cluster.kuberay import CONFIG_PATH, Job

    return Job(f"rayrl ppo {CONFIG_PATH}", kubernetes.retries, kubernetes.ttl_s, kubernetes.deadline_s)


def _name(config: PPOConfig, kubernetes: KubernetesConfig) -> str:
    from cluster.kuberay import MAX_NAME, valid_name
    from rayrl.config.load import ConfigError

    if kubernetes.name is None:
        return valid_name(PurePosixPath(config.output_dir).name)
    if valid_name(kubernetes.name) != kubernetes.name:
        raise ConfigError(
            f"cluster.kubernetes.name: {kubernetes.name!r} can't be a RayJob's name: lower case, digits and -, a "
            f"letter first, {MAX_NAME} characters at the most, as in {valid_name(kubernetes.name)!r}"
        )
    return kubernetes.name


def _place(pod: PodConfig, spot: str | None = None) -> PodPlace:
    from cluster.kuberay import PodPlace

    taints = [taint.model_dump(exclude_none=True) for taint in pod.tolerations]
    return PodPlace(pod.memory_gb, pod.shm_gb, pod.node_selector, taints, spot)


def _reference(key: SecretKeyConfig) -> SecretKey:
    from cluster.kuberay import SecretKey

    return SecretKey(key.secret, key.key)


def _paths_off_the_volume(config: PPOConfig, kubernetes: KubernetesConfig) -> Iterator[str]:
    """What pods couldn't see, or what would be gone with them."""
    mount = PurePosixPath(kubernetes.volume.mount)
    for key, value in _paths(config):
        path = PurePosixPath(value)
        if not path.is_relative_to(mount) or path == mount or ".." in path.parts:
            yield f"{key}: {value} must lie below {mount}, where all pods see the volume {kubernetes.volume.claim}"


def _paths(config: PPOConfig) -> Iterator[tuple[str, str]]:
    """(key, path) of everything that is a path on this machine; built-in data and models of a hub aren't."""
    from rayrl.data.prompts import BUILTIN_PROMPTS

    yield "output_dir", config.output_dir
    ptx = config.algorithm.ptx
    for key, data in [
        ("data.prompts", config.data.prompts),
        ("data.heldout", config.data.heldout),
        ("algorithm.ptx.data", ptx.data if ptx else None),
    ]:
        if data is not None and data not in BUILTIN_PROMPTS and "://" not in data:
            yield key, data
    models = [("policy.model", config.policy.model), ("critic.model", config.critic.model)]
    models += [("reference.model", config.reference.model or "")]
    models += [(f"rewards.{entry.name}.model", entry.model or "") for entry in config.rewards]
    for key, model in models:
        if model.startswith(("/", "~", "./", "../")) or (model and Path(model).exists()):
            yield key, model


def _secrets_in(config: PPOConfig) -> Iterator[str]:
    """Keys and passwords in the configuration, which a ConfigMap would show to everybody; never repeats one."""
    from rayrl.config.load import leaves
    from rayrl.config.secret_values import looks_secret

    for key, value in leaves(config.model_dump()):
        if looks_secret(key, value):
            yield (
                f"{key} holds what looks like a secret, and a ConfigMap hides nothing: keep it in a Kubernetes Secret "
                "and name that in cluster.kubernetes.secrets"
            )
        elif key.endswith(".endpoint") and urlsplit(value).hostname in _HERE:
            yield f"{key}: {value} is each pod's own address; name the host as the cluster's pods reach it"


def _missing_secrets(config: PPOConfig, kubernetes: KubernetesConfig) -> Iterator[str]:
    """Variables that the run reads a key from and no Secret fills."""
    from rayrl.config.load import leaves

    there = {entry.name for entry in kubernetes.secrets}
    wanted: dict[str, Any] = {
        value: key for key, value in leaves(config.model_dump()) if key.endswith("api_key_env") and value is not None
    }
    if "wandb" in config.logging.loggers and "WANDB_MODE" not in kubernetes.env:
        wanted["WANDB_API_KEY"] = "logging.loggers"
    for variable, key in wanted.items():
        if variable not in there:
            yield (
                f"{key} needs the variable {variable}: name the Secret that holds it in cluster.kubernetes.secrets "
                f"({{name: {variable}, secret: NAME, key: KEY}})"
            )


def _comment(settings: Settings, groups: list[WorkerGroup], job: Job | None) -> list[str]:
    """The first lines of the file: what it is, what it needs, how to use it, who runs where."""
    kind = "RayCluster" if job is None else "RayJob"
    name, kubectl = settings.name, "kubectl" + (f" -n {settings.namespace}" if settings.namespace else "")
    lines = [
        f"{kind} {name}, by `rayrl kuberay render`, for KubeRay 1.7, Ray {settings.ray_version} (docs/kubernetes.md).",
        "",
        "Must be there before:",
        *(f"  {needed}" for needed in _needed(settings, groups)),
        "",
        "Then:",
        f"  {kubectl} apply -f THIS_FILE",
    ]
    if job is None:
        lines += [
            f"  {kubectl} port-forward service/{name}-head-svc 8265 &",
            f"  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$({kubectl} get secret {name} "
            "-o jsonpath='{.data.auth_token}' | base64 -d)",
            "  ray job submit --address http://127.0.0.1:8265 -- rayrl ppo /etc/rayrl/config.yaml",
        ]
    else:
        lines += [
            f"  {kubectl} get rayjob {name}",
            f"  {kubectl} logs -f job/{name}",
            f"  {kubectl} delete rayjob {name}    # then apply again: the run resumes from {settings.mount}",
        ]
    what = "removes everything" if job else "nothing else ends it"
    lines.append(f"  {kubectl} delete -f THIS_FILE    # {what}; the ConfigMap goes too, the volume stays")
    lines += ["", "Worker groups (pods x what one has: roles):"]
    for group in groups:
        pods = f"{group.min_nodes} to {group.max_nodes}" if group.autoscales else f"{group.min_nodes}"
        gpus = f", {group.node.gpus:g} GPU" if group.node.gpus else ""
        lines.append(f"  {group.name}: {pods} x {group.node.cpus:g} CPU{gpus}: {', '.join(group.roles)}")
        if group.idle_gpus:
            lines.append(f"    idle GPUs: {group.idle_gpus} (choose `gpus` or the ranks so that pods are full)")
    if settings.redis_address is None:
        lines += ["", "Without Redis the head's loss ends the cluster, and the next one resumes the run: no"]
        lines += ["gcsFaultToleranceOptions. Probes are the operator's own."]
    else:
        lines += [
            "",
            "Ray's control store lies in Redis; the driver has a pod of its own. Probes are the operator's own.",
        ]
    return lines


def _needed(settings: Settings, groups: list[WorkerGroup]) -> Iterator[str]:
    """What the manifests name and don't make."""
    if settings.namespace:
        yield f"namespace {settings.namespace}"
    yield f"PersistentVolumeClaim {settings.claim}, ReadWriteMany"
    keys: dict[str, list[str]] = {}
    for entry in [*settings.secrets.values(), *([settings.redis_password] if settings.redis_password else [])]:
        keys.setdefault(entry.secret, []).append(entry.key)
    for secret, names in keys.items():
        yield f"Secret {secret}, keys: {', '.join(dict.fromkeys(names))}"
    for secret in settings.pull_secrets:
        yield f"Secret {secret} to pull images with (kubernetes.io/dockerconfigjson)"
    images = {"cpu": settings.cpu_image}
    if any(group.node.gpus for group in groups):
        images["gpu"] = settings.gpu_image
    for key, image in images.items():
        if "/" in image:
            yield f"image {image}, pushed"
        else:
            yield f"image {image} on the nodes: it names no registry (else set cluster.kubernetes.image.{key})"
    named = {
        "Redis": settings.redis_address,
        "ServiceAccount": settings.service_account,
        "PriorityClass": settings.priority_class,
        "Kueue's LocalQueue": settings.queue,
    }
    yield from (f"{kind} {name}" for kind, name in named.items() if name)
