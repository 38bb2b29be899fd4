"""Manifests for KubeRay: the operator's schemas, room for every role, the configuration inside, secrets, refusals."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from kuberay_cases import (
    CASES,
    CLAIM,
    RULE,
    documents,
    eight_gpus,
    four_nodes,
    group,
    launched,
    nodes,
    one_gpu,
    pod,
    problems,
    ray_cluster,
    run,
    spot,
    trainer,
)
from pydantic import ValidationError

from cluster.errors import DoesNotFit
from cluster.fit import check_fits
from cluster.kuberay import MAX_NAME, valid_name
from cluster.worker_groups import group_of_role
from rayrl.cli import main
from rayrl.commands.kuberay import rendered
from rayrl.config.kubernetes import ImagesConfig, RedisConfig
from rayrl.config.load import ConfigError, load
from rayrl.config.ppo import PPOConfig
from rayrl.placement import role_specs

Case = Callable[[], PPOConfig]
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@every_case
@pytest.mark.parametrize("cluster_only", [False, True], ids=["RayJob", "RayCluster"])
def test_manifests_pass_the_operators_schemas(case: Case, cluster_only: bool) -> None:
    files, ray = documents(case(), cluster_only)
    assert (files["apiVersion"], files["kind"], list(files["data"])) == ("v1", "ConfigMap", ["config.yaml"])
    assert ray["kind"] == ("RayCluster" if cluster_only else "RayJob")
    assert problems(ray) == []


@pytest.mark.parametrize(
    ("at", "wrong"),
    [
        ("spec", {"shutdownAfterJobFinish": True}),
        ("spec", {"backoffLimit": "3"}),
        ("metadata", {"label": {}}),
        ("spec/submitterPodTemplate/spec", {"restartPolicies": "Never"}),
        ("spec/rayClusterSpec", {"enableInTreeAutoscalling": True}),
        ("spec/rayClusterSpec/authOptions", {"mode": "tokens"}),
        ("spec/rayClusterSpec/gcsFaultToleranceOptions", {"redisAdress": "redis:6379"}),
        ("spec/rayClusterSpec/headGroupSpec", {"rayStartParam": {}}),
        ("spec/rayClusterSpec/headGroupSpec/rayStartParams", {"num-cpus": 0}),
        ("spec/rayClusterSpec/workerGroupSpecs/1", {"minReplica": 1}),
        ("spec/rayClusterSpec/workerGroupSpecs/1/template/spec", {"priorityClass": "high"}),
        ("spec/rayClusterSpec/workerGroupSpecs/1/template/spec/containers/0", {"volumeMount": []}),
        ("spec/rayClusterSpec/workerGroupSpecs/1/template/spec/containers/0/securityContext", {"privilege": False}),
        ("spec/rayClusterSpec/workerGroupSpecs/1/template/spec/tolerations/0", {"efect": "NoSchedule"}),
    ],
)
def test_a_misspelt_field_fails(at: str, wrong: dict[str, Any]) -> None:
    _, ray = documents(four_nodes())
    assert problems(ray) == []
    place: Any = ray
    for step in at.split("/"):
        place = place[int(step)] if step.isdecimal() else place[step]
    place.update(wrong)
    found = problems(ray)
    assert len(found) == 1 and next(iter(wrong)) in found[0]


@every_case
def test_every_role_has_room_in_its_own_group(case: Case) -> None:
    config = case()
    inside = loaded(config)
    specs = role_specs(inside)
    where = check_fits(specs, nodes(config))
    groups = group_of_role(specs)
    for spec in specs:
        assert len(where[spec.name]) >= (spec.min_ranks or spec.ranks)
        assert {node.rpartition("-")[0] for node in where[spec.name]} == {groups[spec.name]}
    everybody = [replace(spec, min_ranks=None) for spec in specs]
    largest = nodes(config, most=True)
    check_fits(everybody, largest)
    for name in set(groups.values()):  # and no pod is there for nothing
        with pytest.raises(DoesNotFit):
            check_fits(everybody, [node for node in largest if not node.name.startswith(f"{name}-0")])


@every_case
def test_rays_autoscaler_brings_the_pods_that_the_roles_bundles_need(case: Case) -> None:
    config = case()
    largest = {g["groupName"]: g["maxReplicas"] for g in ray_cluster(config)["workerGroupSpecs"]}
    assert launched(config, role_specs(loaded(config))) == largest


def loaded(config: PPOConfig) -> PPOConfig:
    """The configuration as the driver gets it."""
    return PPOConfig.model_validate(yaml.safe_load(documents(config)[0]["data"]["config.yaml"]))


@every_case
def test_the_configuration_inside_is_the_runs_own_and_pins_every_role(case: Case, tmp_path: Path) -> None:
    config = case()
    path = tmp_path / "config.yaml"
    path.write_text(documents(config)[0]["data"]["config.yaml"], encoding="utf-8")
    inside = load(PPOConfig, str(path))
    cluster = inside.cluster.model_copy(update={"address": config.cluster.address, "pin": config.cluster.pin})
    assert inside.model_copy(update={"cluster": cluster}) == config
    assert inside.cluster.address == "auto" and config.cluster.pin.items() <= inside.cluster.pin.items()
    declared = {name for node in nodes(config) for name in node.custom}
    assert all(set(spec.resources) <= declared and spec.resources for spec in role_specs(inside))
    assert {spec.name: spec.ranks for spec in role_specs(inside)} == {s.name: s.ranks for s in role_specs(config)}


@every_case
def test_pods_are_limited_not_root_and_behind_a_token(case: Case) -> None:
    config = case()
    job = documents(config)[1]["spec"]
    cluster = job["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"} and cluster["rayVersion"]
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}
    assert (job["shutdownAfterJobFinishes"], job["backoffLimit"], job["ttlSecondsAfterFinished"]) == (True, 3, 600)
    assert job["entrypoint"] == "rayrl ppo /etc/rayrl/config.yaml"
    templates = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for spec in [job["submitterPodTemplate"]["spec"], *map(pod, templates)]:
        (container,) = spec["containers"]
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] == 1000
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert not container["securityContext"]["privileged"]
    for spec in map(pod, templates):
        mounts = {mount["name"]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
        assert {volume["name"] for volume in spec["volumes"]} == set(mounts)
        assert (mounts["shared"], mounts["shared-mem"]) == ("/shared", "/dev/shm")
        assert next(v for v in spec["volumes"] if v["name"] == "shared-mem")["emptyDir"]["medium"] == "Memory"
    drivers = [spec for spec in map(pod, templates) if any(v["name"] == "config" for v in spec["volumes"])]
    assert len(drivers) == 1


@every_case
def test_nodes_are_not_emptied_of_pods_that_a_run_needs(case: Case) -> None:
    cluster = ray_cluster(case())
    stays = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}
    for found in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        comes_and_goes = case is spot and found.get("groupName") == "rollout"
        metadata = found["template"].get("metadata", {})
        assert metadata.get("annotations") == (None if comes_and_goes else stays)


@every_case
def test_the_operator_itself_has_nothing_against_it(case: Case) -> None:
    """Rules of its validation.go that no schema holds."""
    _, ray = documents(case())
    cluster = ray["spec"]["rayClusterSpec"]
    assert valid_name(ray["metadata"]["name"]) == ray["metadata"]["name"]
    for found in cluster["workerGroupSpecs"]:
        assert 0 <= found["minReplicas"] <= found["replicas"] <= found["maxReplicas"]
        assert "resources" not in found and "labels" not in found["rayStartParams"]
        assert "restartPolicy" not in pod(found)  # the autoscaler wants Never and sets it
        assert found["maxReplicas"] == found["minReplicas"] or cluster["enableInTreeAutoscaling"]
    variables = {entry["name"] for entry in pod(cluster["headGroupSpec"])["containers"][0]["env"]}
    assert not variables & {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME", "RAY_enable_autoscaler_v2"}


def test_one_device_is_shared_by_all_and_rules_stay_off_it() -> None:
    config = one_gpu()
    assert [found["groupName"] for found in ray_cluster(config)["workerGroupSpecs"]] == ["policy", "cpu"]
    shared, rules = pod(group(config, "policy")), pod(group(config, "cpu"))
    limits = shared["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": "6", "memory": "64Gi", "nvidia.com/gpu": "1"}
    assert (shared["containers"][0]["image"], rules["containers"][0]["image"]) == ("rayrl:gpu", "rayrl:cpu")
    assert shared["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert "tolerations" not in rules and shared["priorityClassName"] == rules["priorityClassName"] == "research"
    assert documents(config)[1]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"


def test_engines_autoscale_on_spot_nodes_and_the_rest_stays() -> None:
    config = spot()
    cluster = ray_cluster(config)
    assert cluster["enableInTreeAutoscaling"] and cluster["autoscalerOptions"]["version"] == "v2"
    bounds = {g["groupName"]: (g["minReplicas"], g["replicas"], g["maxReplicas"]) for g in cluster["workerGroupSpecs"]}
    assert bounds == {"rollout": (2, 2, 6), "policy": (1, 1, 1), "critic": (1, 1, 1), "cpu": (1, 1, 1)}
    engines = pod(group(config, "rollout"))
    assert engines["nodeSelector"] == {"cloud.google.com/gke-spot": "true"}
    assert [taint["key"] for taint in engines["tolerations"]] == ["nvidia.com/gpu", "cloud.google.com/gke-spot", "team"]
    assert "nodeSelector" not in pod(group(config, "policy"))
    assert loaded(config).cluster.pin["rollout"] == "spot"  # the user's own name for it stays
    # The autoscaler, in the head, is what talks to Kubernetes.
    assert "automountServiceAccountToken" not in pod(cluster["headGroupSpec"])
    assert pod(group(config, "policy"))["automountServiceAccountToken"] is False


def test_with_redis_the_driver_leaves_the_head() -> None:
    config = four_nodes()
    job = documents(config)[1]["spec"]
    options = job["rayClusterSpec"]["gcsFaultToleranceOptions"]
    assert options["redisAddress"] == "redis:6379"
    assert options["redisPassword"] == {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}}
    assert job["entrypointResources"] == '{"driver": 1}'
    assert [node.custom for node in nodes(config) if node.name == "driver-0"] == [{"driver": 1}]
    assert job["activeDeadlineSeconds"] == 86400
    without = documents(spot())[1]["spec"]
    assert "gcsFaultToleranceOptions" not in without["rayClusterSpec"] and "entrypointResources" not in without


@pytest.mark.parametrize("workers", [{"min_pods": 2}, {"spot": "eks"}], ids=["autoscales", "spot"])
def test_pods_that_autoscale_or_stand_on_spot_nodes_may_be_evicted(workers: dict[str, Any]) -> None:
    sections = {"policy": trainer(1, model="org/model"), "critic": trainer(1), "recovery": {"min_engines": 2}}
    engines = {"engines": 3, "gpus_per_engine": 1, "cpus_per_engine": 1}
    config = run("a", {"workers": [{"name": "rollout", **workers}]}, **sections, rollout=engines)
    assert "metadata" not in group(config, "rollout")["template"] and "metadata" in group(config, "policy")["template"]


def test_a_pod_with_gpus_has_cpus_beside_its_ranks() -> None:
    rollout = {"engines": 2, "gpus_per_engine": 1, "cpus_per_engine": 1}
    config = run("a", {"workers": [{"name": "critic", "cpus": 9}]}, rollout=rollout, **TRAINERS)
    found = {name: group(config, name) for name in ("policy", "critic", "rollout")}
    limits = {name: pod(spec)["containers"][0]["resources"]["limits"]["cpu"] for name, spec in found.items()}
    assert limits == {"policy": "16", "critic": "9", "rollout": "4"}
    assert {name: spec["rayStartParams"]["num-cpus"] for name, spec in found.items()} == limits


def header(config: PPOConfig, cluster_only: bool = False) -> list[str]:
    """The lines of comment, bare."""
    lines = rendered(config, cluster_only).partition("apiVersion")[0].splitlines()
    assert all(line.startswith("#") for line in lines)
    return [line.strip("# ") for line in lines]


def test_the_header_lists_what_must_be_there_before() -> None:
    def needed(config: PPOConfig) -> list[str]:
        lines = header(config)
        return lines[lines.index("Must be there before:") + 1 : lines.index("Then:") - 1]

    claim = "PersistentVolumeClaim runs-of-everyone, ReadWriteMany"
    cpu, gpu = (
        f"image rayrl:{key} on the nodes: it names no registry (else set cluster.kubernetes.image.{key})"
        for key in ("cpu", "gpu")
    )
    tiny = load(PPOConfig, "tiny", ["output_dir=/shared/runs/a", CLAIM])
    assert needed(tiny) == [claim, cpu]
    secrets = [f"Secret {secret}" for secret in ("judge, keys: key", "hub, keys: token", "wandb, keys: key")]
    assert needed(eight_gpus()) == ["namespace medicine", claim, *secrets, cpu, gpu, "ServiceAccount runs"]
    assert needed(one_gpu()) == [claim, cpu, gpu, "PriorityClass research", "Kueue's LocalQueue team"]
    assert needed(four_nodes()) == [claim, "Secret redis, keys: password", cpu, gpu, "Redis redis:6379"]
    secrets_of_one = [{"name": name, "secret": "hub", "key": key} for name, key in [("A", "a"), ("B", "b"), ("C", "a")]]
    image = {"cpu": "registry.example/rayrl:cpu", "pull_secrets": ["registry"]}
    assert needed(run("a", {"image": image, "secrets": secrets_of_one}, policy={"model": "org/model"})) == [
        claim,
        "Secret hub, keys: a, b",
        "Secret registry to pull images with (kubernetes.io/dockerconfigjson)",
        "image registry.example/rayrl:cpu, pushed",
    ]


def test_the_header_says_how_to_remove_everything() -> None:
    (job,) = [line for line in header(eight_gpus()) if "delete -f" in line]
    assert job.startswith("kubectl -n medicine delete -f THIS_FILE ") and "the ConfigMap goes too" in job
    (cluster,) = [line for line in header(eight_gpus(), cluster_only=True) if " delete " in line]
    assert cluster.startswith("kubectl -n medicine delete -f THIS_FILE ") and "nothing else ends it" in cluster


def test_the_header_counts_idle_gpus() -> None:
    rollout = {"engines": 4, "gpus_per_engine": 1, "cpus_per_engine": 1}
    lines = header(run("a", {"workers": [{"name": "rollout", "gpus": 3}]}, rollout=rollout, **TRAINERS))
    after = lines[lines.index("rollout: 2 x 12 CPU, 3 GPU: rollout") + 1]
    assert after.startswith("idle GPUs: 2 (choose `gpus` or the ranks")
    assert sum("idle GPUs" in line for line in lines) == 1
    assert not any("idle GPUs" in line for line in header(four_nodes()))


def test_custom_resources_reach_ray_start_through_the_operators_shell() -> None:
    params = group(spot(), "rollout")["rayStartParams"]
    command = " ".join(f"--{key}={value}" for key, value in params.items())  # as its convertParamMap writes it
    seen = subprocess.run(["bash", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True)
    assert seen.stdout.splitlines() == ["--num-cpus=4", "--num-gpus=1", '--resources={"spot": 1000}']


def test_secrets_are_named_and_never_written(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HF_TOKEN", "JUDGE_KEY", "WANDB_API_KEY"):
        monkeypatch.setenv(variable, "s3cr3t-of-this-machine")
    config = eight_gpus()
    assert "s3cr3t" not in rendered(config)
    for spec in [pod(ray_cluster(config)["headGroupSpec"]), pod(group(config, "rollout"))]:
        env = {entry["name"]: entry for entry in spec["containers"][0]["env"]}
        assert env["HF_TOKEN"] == {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}
        assert env["PYTHONPATH"]["value"] == "/shared/code"
        assert all("value" not in env[name] for name in ("HF_TOKEN", "JUDGE_KEY", "WANDB_API_KEY"))
        assert spec["serviceAccountName"] == "runs"


TRAINERS = {"policy": trainer(1, 4, model="org/model"), "critic": trainer(1, 4)}
KEY = "abcdefghijklmnopqrstuvwxyz"


def refusals() -> Iterator[tuple[PPOConfig, str]]:
    """Runs that can't be rendered, and what the sentence holds."""
    model = {"policy": {"model": "org/model"}}
    options = {**RULE, "kind": "function", "rule": None, "path": "a.b", "options": {"api_key": KEY}}
    yield run("a", **model, rewards=[options]), "rewards.length.options.api_key holds what looks like a secret"
    yield run("a", {"env": {"MODEL_HUB": f"hf_{KEY}"}}, **model), "cluster.kubernetes.env.MODEL_HUB holds what looks"
    yield run("a", **model, data={"prompts": f"s3://me:{KEY}@bucket/p"}), "data.prompts holds what looks like a secret"
    judge = {
        "model": "m",
        "send_patient_text": True,
        "endpoint": "https://judge.example/v1",
        "api_key_env": "JUDGE_KEY",
    }
    entry = {"name": "j", "kind": "judge", "judge": judge}
    yield run("a", **model, rewards=[entry]), "rewards.j.judge.api_key_env needs the variable JUDGE_KEY"
    here = {**entry, "judge": {"model": "m", "endpoint": "http://localhost:9/v1"}}
    yield run("a", **model, rewards=[here]), "http://localhost:9/v1 is each pod's own address"
    yield run("a", **model, logging={"loggers": ["wandb"]}), "logging.loggers needs the variable WANDB_API_KEY"
    yield run("a", **model, output_dir="runs/a"), "output_dir: runs/a must lie below /shared"
    yield run("a", **model, output_dir="/shared/../a"), "must lie below /shared"
    yield run("a", policy={"model": "~/models/a"}), "policy.model: ~/models/a must lie below /shared"
    yield run("a", **model, data={"prompts": "mine.jsonl"}), "data.prompts: mine.jsonl must lie below /shared"
    yield run("a", policy={"model": "path/to/model"}), "policy.model: only placeholders so far"
    yield run("a", {"name": "My_Run"}, **model), "as in 'my-run'"
    yield run("a", {"workers": [{"name": "critic"}]}, **model), "critic: the roles make no such worker group"
    yield run("a", {"workers": [{"name": "cpu", "gpus": 1}]}, **model), "has no role that claims GPUs"
    few = {"workers": [{"name": "rollout", "min_pods": 1}]}
    yield (
        run("a", few, **model, rollout={"engines": 4, "cpus_per_engine": 1}),
        "4 nodes hold the ranks that must be there at the start",
    )
    cap = {"workers": [{"name": "rollout", "min_pods": 1, "max_pods": 3}]}
    least = {"recovery": {"min_engines": 1}}
    yield run("a", cap, **model, rollout={"engines": 4, "cpus_per_engine": 1}, **least), "max_pods must be at least 4"
    pins = {"cluster": {"pin": {"policy": "a", "rollout": "a"}}}
    yield run("a", **model, **pins), "roles of different worker groups are pinned to a"


@pytest.mark.parametrize(
    ("config", "sentence"), list(refusals()), ids=lambda value: value[:40] if isinstance(value, str) else ""
)
def test_what_a_cluster_could_not_run_is_refused_in_a_sentence(config: PPOConfig, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        rendered(config)
    assert sentence in str(error.value) and KEY not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_pod_too_small_for_a_rank_is_refused() -> None:
    config = run("a", {"workers": [{"name": "policy", "gpus": 1}]}, policy=trainer(2, model="org/model"))
    with pytest.raises(DoesNotFit, match=r"worker group policy \(policy\): .*2 GPUs are asked and 1 there"):
        rendered(config)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("volume.mount=shared", "write an absolute path below /"),
        ("volumes={}", "did you mean 'cluster.kubernetes.volume'"),
        ("secrets=[{name: HF-TOKEN, secret: a, key: b}]", "can't be the name of an environment variable"),
        ("secrets=[{name: RAY_AUTH_TOKEN, secret: a, key: b}]", "is set by KubeRay itself"),
        ("env={HF_TOKEN: a}", "HF_TOKEN looks like a secret"),
        ("env={RAYRL_ALLOW: pickle}", "say --allow when rendering"),
        ("workers=[{name: rollout}, {name: rollout}]", "workers: rollout stands there twice"),
        ("workers=[{name: rollout, max_pods: 2}]", "set min_pods too"),
        ("workers=[{name: rollout, spott: gke}]", "did you mean 'cluster.kubernetes.workers.0.spot'"),
        ("workers=[{name: engines}]", "must be 'cpu', 'policy'"),
        ("head={memory_gb: 4, shm_gb: 4}", "shm_gb: 4 is taken off memory_gb"),
        ("namespace=Bad_NS", "cluster.kubernetes.namespace: 'Bad_NS' can't be a namespace: lower case"),
        (f"namespace={'a' * 64}", "63 at the most"),
        ("namespace=a.b", "can't be a namespace"),
        ("volume.claim=Runs_1", "cluster.kubernetes.volume.claim: 'Runs_1' can't be a name in Kubernetes"),
        (f"volume.claim={'a' * 254}", "can't be a name in Kubernetes"),
        ("volume.claim=a..b", "can't be a name in Kubernetes"),
        ("service_account=Me", "'Me' can't be a name in Kubernetes"),
        ("priority_class=very_high", "'very_high' can't be a name in Kubernetes"),
        ("queue=-team", "'-team' can't be a name in Kubernetes"),
        ("image.pull_secrets=[a b]", "'a b' can't be a name in Kubernetes"),
        ("secrets=[{name: A, secret: A_B, key: b}]", "'A_B' can't be a name in Kubernetes"),
        ("secrets=[{name: A, secret: a, key: b/c}]", "'b/c' can't be a key of a Secret"),
        ("image.cpu=bad image", "cluster.kubernetes.image.cpu: 'bad image' can't be an image: write REGISTRY/NAME:TAG"),
        ("image.gpu=registry.example/RayRL:gpu", "the name in lower case"),
        ("redis.address=foo", "cluster.kubernetes.redis.address: write HOST:PORT"),
        ("redis.address=foo:99999", "write HOST:PORT"),
        ("redis.address=http://foo:6379", "name the Secret of a password"),
    ],
)
def test_a_wrong_section_is_refused(override: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["tiny", "output_dir=/shared/runs/a", CLAIM, f"cluster.kubernetes.{override}"]
    assert main(["kuberay", "render", *arguments]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("image", "good"),
    [
        ("rayrl", True),
        ("rayrl:cpu", True),
        ("org/a_b/c__d-e.f:1.0_RC", True),
        ("Registry.example:5000/org/rayrl:cpu", True),
        ("localhost/rayrl", True),
        ("[::1]:5000/rayrl", True),
        (f"ghcr.io/org/rayrl:cpu@sha256:{'0a' * 32}", True),
        ("", False),
        ("Rayrl:cpu", False),
        ("Org/rayrl", False),
        ("rayrl:", False),
        ("rayrl:a:b", False),
        ("rayrl@sha256:0", False),
        ("https://registry.example/rayrl", False),
        ("a//b", False),
        ("-a", False),
        ("rayrl:cpu\n", False),
    ],
)
def test_images_are_references(image: str, good: bool) -> None:
    if good:
        assert ImagesConfig(cpu=image).cpu == image
    else:
        with pytest.raises(ValidationError, match="can't be an image"):
            ImagesConfig(cpu=image)


@pytest.mark.parametrize("address", ["redis:6379", "rediss://redis-1.x.svc:6380", "10.0.0.1:1", "[fd00::1]:6379"])
def test_redis_addresses(address: str) -> None:
    assert RedisConfig(address=address).address == address


def test_the_command_writes_a_file_or_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kuberay", "render", "tiny"]) == 2
    assert "cluster.kubernetes.volume.claim=NAME" in capsys.readouterr().err
    target = tmp_path / "new" / "tiny.yaml"
    # Overrides may stand on both sides of the options.
    assert main(["kuberay", "render", "tiny", CLAIM, "--to", str(target), "output_dir=/shared/runs/Tiny_1"]) == 0
    assert str(target) in capsys.readouterr().out
    text = target.read_text("utf-8")
    assert text.startswith("# RayJob tiny-1, ") and "kubectl apply -f" in text
    assert main(["kuberay", "render", "--cluster-only", "tiny", CLAIM, "output_dir=/shared/runs/Tiny_1"]) == 0
    printed = capsys.readouterr().out
    kinds = [document["kind"] for document in yaml.safe_load_all(printed)]
    assert kinds == ["ConfigMap", "RayCluster"] and "ray job submit" in printed
    # What a checkpoint may do is said when rendering, as it is when running.
    assert "RAYRL_ALLOW" not in printed
    assert main(["kuberay", "render", "tiny", CLAIM, "output_dir=/shared/runs/a", "--allow", "pickle"]) == 0
    assert capsys.readouterr().out.count("- name: RAYRL_ALLOW\n") == 3


def test_the_example_in_the_documentation_renders() -> None:
    page = (Path(__file__).parent.parent / "docs/kubernetes.md").read_text("utf-8")
    section = yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])
    policy = {**trainer(1, 2, model="org/model"), "train": {"mode": "lora"}}
    rollout = {"engines": 4, "gpus_per_engine": 1, "cpus_per_engine": 4}
    config = run("doctor", policy=policy, algorithm={"estimator": "rloo"}, samples_per_prompt=4, rollout=rollout)
    whole = config.model_dump(mode="json", exclude_unset=True)
    whole["cluster"], whole["recovery"] = section["cluster"], section["recovery"]
    job = documents(PPOConfig.model_validate(whole))[1]
    assert problems(job) == [] and job["metadata"] == {**job["metadata"], "name": "doctor", "namespace": "medicine"}


@given(st.text(max_size=80))
def test_names_are_valid_and_stay_as_they_are(text: str) -> None:
    name = valid_name(text)
    assert 0 < len(name) <= MAX_NAME and valid_name(name) == name
    assert name.isascii() and name == name.lower() and name[0].isalpha() and name[-1].isalnum()
    assert all(letter.isalnum() or letter == "-" for letter in name)


def test_long_names_stay_apart() -> None:
    one, other = valid_name("a" * 60), valid_name("a" * 61)
    assert one != other and len(one) == len(other) == MAX_NAME
    assert valid_name("7B, second try!") == "run-7b-second-try"
