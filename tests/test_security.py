"""What rayrl keeps to unless it is told otherwise (docs/security.md): no foreign code, open port or written secret."""

import ast
import contextlib
import ipaddress
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from judge_server import HostileServer
from run_cases import COMMAND, MARK, SMALL, leaves_nothing, marked
from torch import nn

from cluster import session
from cluster.errors import CannotConnect
from rayrl import cli
from rayrl.config.load import ConfigError, load
from rayrl.config.parts import OptimizerConfig, TrainerConfig
from rayrl.config.ppo import PPOConfig
from rayrl.config.secret_values import looks_secret
from rayrl.config.trust import ALLOW_VARIABLE, allow, allowed, vllm_options, weight_options
from rayrl.data.chat import load_tokenizer
from rayrl.errors import UserError
from rayrl.evaluation.consultations.patient_server import served_patient
from rayrl.judge.local_server import local_endpoint
from rayrl.models.builtin import resolve_model
from rayrl.models.deepspeed_engine import TrainEngine
from rayrl.models.loading import load_causal_lm, load_scorer, model_config

ROOT = Path(__file__).parent.parent
SECRET = "planted-5ecret-0123456789"


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def nothing_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ALLOW_VARIABLE, raising=False)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return Path(shutil.copytree(resolve_model("tiny-random"), tmp_path / "model"))


def pickle_weights(model: Path, *bombs: Path) -> None:
    weights: dict[str, Any] = load_causal_lm(str(model), "fp32").state_dict()
    (model / "model.safetensors").unlink()
    torch.save({**weights, **{f"bomb{i}": Bomb(path) for i, path in enumerate(bombs)}}, model / "pytorch_model.bin")


def bring_code(model: Path, marker: Path, file: str, **auto_map: Any) -> None:
    """The checkpoint's `file` (config.json or tokenizer_config.json) names Python of its own, which makes `marker`."""
    (model / "brought.py").write_text(
        f"open({str(marker)!r}, 'w').close()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "class Config(LlamaConfig):\n    model_type = 'brought'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n"
        "class Tokenizer(PreTrainedTokenizerFast):\n    pass\n",
        "utf-8",
    )
    content = json.loads((model / file).read_text("utf-8"))
    (model / file).write_text(json.dumps({**content, **auto_map}), "utf-8")


@pytest.mark.usefixtures("nothing_allowed")
def test_pickled_weights_are_refused_by_name(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pickle_weights(tiny)
    said = f"{tiny} has its weights in pytorch_model.bin, a pickle"
    for load_it in (resolve_model, lambda path: load_causal_lm(path, "fp32"), lambda path: load_scorer(path, "fp32")):
        with pytest.raises(UserError, match="--allow pickle, or RAYRL_ALLOW=pickle"):
            load_it(str(tiny))
    assert cli.main(["ppo", "tiny", f"policy.model={tiny}", f"output_dir={tmp_path}/run"]) == 2
    assert f"rayrl: {said}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("nothing_allowed")
def test_allowed_pickles_still_run_nothing(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOW_VARIABLE, "pickle")
    pickle_weights(tiny)
    assert load_causal_lm(resolve_model(str(tiny)), "fp32").num_parameters() > 0
    marker = tmp_path / "marker"
    bomb = Path(shutil.copytree(resolve_model("tiny-random"), tmp_path / "bomb"))
    pickle_weights(bomb, marker)
    with pytest.raises(Exception, match=r"(?i)weights.only|unsupported|pickle"):
        load_causal_lm(str(bomb), "fp32")
    assert not marker.exists()


@pytest.mark.usefixtures("nothing_allowed")
def test_code_that_a_checkpoint_brings_runs_only_when_asked_for(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "marker"
    names = {"AutoConfig": "brought.Config", "AutoModelForCausalLM": "brought.Model"}
    bring_code(tiny, marker, "config.json", model_type="brought", architectures=["Model"], auto_map=names)
    for load_it in (model_config, lambda path: load_causal_lm(path, "fp32"), lambda path: load_scorer(path, "fp32")):
        with pytest.raises(UserError, match=r"brings Python files of its own .*--allow remote_code"):
            load_it(str(tiny))
    assert cli.main(["ppo", "tiny", f"policy.model={tiny}", f"output_dir={tmp_path}/run"]) == 2
    assert f"rayrl: {tiny} brings Python files of its own" in capsys.readouterr().err
    assert not marker.exists()
    monkeypatch.setenv(ALLOW_VARIABLE, "remote_code")
    assert type(load_causal_lm(str(tiny), "fp32")).__name__ == "Model"
    assert marker.exists()


@pytest.mark.usefixtures("nothing_allowed")
def test_a_tokenizers_code_neither(tiny: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    names = {"AutoTokenizer": ["brought.Tokenizer", "brought.Tokenizer"]}
    bring_code(tiny, marker, "tokenizer_config.json", tokenizer_class="Tokenizer", auto_map=names)
    with pytest.raises(UserError, match="brings Python files of its own"):
        load_tokenizer(str(tiny))
    assert not marker.exists()


@pytest.mark.usefixtures("nothing_allowed")
def test_what_is_allowed_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert weight_options() == {"trust_remote_code": False, "use_safetensors": True}
    assert vllm_options() == {"trust_remote_code": False, "load_format": "safetensors"}
    allow([])
    assert ALLOW_VARIABLE not in os.environ
    monkeypatch.setenv(ALLOW_VARIABLE, "pickle")
    allow(["remote_code"])
    assert os.environ[ALLOW_VARIABLE] == "pickle,remote_code"
    assert weight_options() == {"trust_remote_code": True, "use_safetensors": None}
    monkeypatch.setenv(ALLOW_VARIABLE, "everything")
    with pytest.raises(UserError, match="RAYRL_ALLOW: 'everything' is none of remote_code, pickle"):
        allowed()
    assert session.handed_on({ALLOW_VARIABLE: "pickle", "OTHER": "x"}) == {ALLOW_VARIABLE: "pickle"}
    job = {session.JOB_DRIVER_VARIABLE: json.dumps({"runtime_env": {"env_vars": {ALLOW_VARIABLE: "pickle"}}})}
    assert session.handed_on({ALLOW_VARIABLE: "pickle", **job}) == {}


@pytest.mark.usefixtures("one_rank")
def test_trainer_state_from_somebody_else_runs_nothing(tmp_path: Path) -> None:
    def engine() -> TrainEngine:
        torch.manual_seed(0)
        config = TrainerConfig(dtype="fp32", optimizer=OptimizerConfig(lr=0.1), zero_stage=2)
        return TrainEngine(nn.Linear(3, 1), config, 1, 4)

    trained = engine()
    trained.backward(trained.engine(torch.ones(1, 3)).sum())
    trained.save(tmp_path / "good")
    fresh = engine()
    fresh.load(tmp_path / "good")
    assert torch.equal(fresh.engine.module.weight, trained.engine.module.weight)
    marker = tmp_path / "marker"
    for part in ("model_states", "optim_states"):
        shutil.copytree(tmp_path / "good", tmp_path / part)
        (file,) = (tmp_path / part).rglob(f"*{part}.pt")
        torch.save({**torch.load(file, weights_only=False), "bomb": Bomb(marker)}, file)
        with pytest.raises(Exception, match="Weights only load failed"):
            engine().load(tmp_path / part)
    assert not marker.exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


Listener = tuple[str, int, str]
"""Address, port, process."""


def listeners(processes: list[psutil.Process]) -> set[Listener]:
    """Every TCP port that these listen on."""
    names = {}
    for process in processes:
        with contextlib.suppress(psutil.Error):
            names[process.pid] = process.name()
    found = [one for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN and one.pid in names]
    return {(one.laddr.ip, one.laddr.port, names[one.pid]) for one in found}


def on_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    mapped = getattr(parsed, "ipv4_mapped", None)
    return bool((mapped or parsed).is_loopback)


Finished = tuple[Path, str, set[Listener], HostileServer]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """A run with a vLLM engine, two ranks a role and a judge with a key: folder, output, its listeners, the judge."""
    folder = tmp_path_factory.mktemp("secure") / "run"
    heard: set[Listener] = set()
    with HostileServer(score=lambda texts: {"accuracy": 6}) as judge, leaves_nothing() as marks:
        settings = {"endpoint": judge.url, "model": "m", "api_key_env": "JUDGE_KEY", "criteria": [{"name": "accuracy"}]}
        settings |= {"cache": str(folder.parent / "judge.sqlite")}
        reward = json.dumps([{"name": "judge", "kind": "judge", "judge": settings}])
        environment = {**os.environ, **marks, "JUDGE_KEY": SECRET, "HF_TOKEN": SECRET, "WANDB_API_KEY": SECRET}
        words = ["ppo", "tiny", f"output_dir={folder}", "steps=1", *SMALL, "logging.loggers=[tensorboard]"]
        command = [COMMAND, *words, f"rewards={reward}"]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True)
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.5):
                heard.update(listeners(marked(marks[MARK])))

        watching = threading.Thread(target=watch)
        watching.start()
        output = process.communicate(timeout=300)[0]
        over.set()
        watching.join()
        assert process.returncode == 0, output
    yield folder, output, heard, judge


def test_a_local_run_listens_on_loopback_alone(finished: Finished) -> None:
    _, _, heard, _ = finished
    names = " ".join(name for *_, name in heard)
    for part in ("gcs_server", "raylet", "PolicyActor", "RolloutActor"):
        assert part in names, heard
    assert [found for found in heard if not on_loopback(found[0])] == []


def test_no_secret_is_written_or_printed(finished: Finished) -> None:
    folder, output, _, judge = finished
    assert {header["authorization"] for header in judge.headers} == {f"Bearer {SECRET}"}, "the judge got its key"
    assert SECRET not in output
    files = [path for path in folder.parent.rglob("*") if path.is_file()]
    assert {"config.yaml", "run.json", "metrics.jsonl", "report.html"} <= {path.name for path in files}
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def test_a_local_ray_wants_its_token_and_shows_no_dashboard() -> None:
    code = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); print('joined')"
    with session.connect("local", num_cpus=1, object_store_mb=100) as connection:
        assert connection.address.startswith("127.0.0.1:")
        plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        plain |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
        command = [sys.executable, "-c", code, connection.address]
        without = {**plain, "RAY_AUTH_MODE": "disabled"}
        done = subprocess.run(command, env=without, capture_output=True, text=True, timeout=120)
        assert done.returncode != 0 and "joined" not in done.stdout
        assert "uthenticat" in done.stdout + done.stderr
        assert not ray._private.worker._global_node.webui_url
    assert session.CLUSTER_VARIABLE not in os.environ


def test_rays_folder_must_be_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    base = Path("/tmp") / f"t{os.getpid()}"
    monkeypatch.setattr(session.os, "getuid", lambda: os.geteuid() + 1)
    try:
        with pytest.raises(CannotConnect, match="belongs to another user; set RAY_TMPDIR"):
            session.temp_root({"RAY_TMPDIR": str(base)})
    finally:
        shutil.rmtree(base)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes links for others")
def test_anothers_link_isnt_followed_to_a_folder_of_the_users(tmp_path: Path) -> None:
    base, mine = Path("/tmp") / f"t{os.getpid()}", tmp_path / "mine"
    base.mkdir()
    mine.mkdir()
    mine.chmod(0o755)
    link = base / f"rayrl-{os.getuid()}"
    link.symlink_to(mine)
    os.lchown(link, 12345, 12345)
    try:
        with pytest.raises(CannotConnect, match="belongs to another user; set RAY_TMPDIR"):
            session.temp_root({"RAY_TMPDIR": str(base)})
        assert mine.stat().st_mode & 0o777 == 0o755
    finally:
        shutil.rmtree(base)


def test_servers_of_a_run_listen_on_loopback_alone() -> None:
    before = listeners([psutil.Process()])
    with served_patient() as patient, local_endpoint(lambda request: "", "rubric") as rubric:
        assert rubric.startswith("http://127.0.0.1:") and patient.startswith("http://127.0.0.1:")
        found = listeners([psutil.Process()]) - before
        assert found and all(on_loopback(address) for address, *_ in found)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rewards.mine.options.api_key", "x"),
        ("a.password", "x"),
        ("logging.project", "sk-0123456789abcdefghij"),
        ("data.prompts", "hf_0123456789abcdefghij"),
        ("policy.model", "https://me:pw@host/model"),
        ("note", "-----BEGIN RSA PRIVATE KEY-----"),
    ],
)
def test_what_looks_like_a_secret(key: str, value: str) -> None:
    assert looks_secret(key, value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("judge.api_key_env", "JUDGE_KEY"),
        ("judge.max_tokens_key", "max_tokens"),
        ("judge.max_tokens", 256),
        ("a.token", None),
        ("policy.model", "https://host:8000/model"),
        ("policy.model", "http://[broken"),
        ("rewards.sk-1.name", "sk-short"),
        ("cluster.kubernetes.secrets.JUDGE_KEY.secret", "judge"),
    ],
)
def test_what_doesnt(key: str, value: object) -> None:
    assert not looks_secret(key, value)


def test_a_configuration_with_a_secret_is_refused_without_repeating_it() -> None:
    reward = f"rewards=[{{name: mine, kind: function, path: a.b, options: {{api_key: {SECRET}}}}}]"
    with pytest.raises(ConfigError, match=r"^rewards\.mine\.options\.api_key holds what looks like a secret") as caught:
        load(PPOConfig, "tiny", [reward])
    assert SECRET not in str(caught.value)
    judge = f"judge: {{endpoint: 'http://127.0.0.1:1/v1', model: m, api_key_env: {SECRET}}}"
    with pytest.raises(ConfigError, match="never the key itself") as caught:
        load(PPOConfig, "tiny", [f"rewards=[{{name: mine, kind: judge, {judge}}}]"])
    assert SECRET not in str(caught.value)


REASONS = {
    ("rayrl/config/yaml_text.py", "yaml.load"): "with a subclass of SafeLoader",
    ("rayrl/data/chat.py", "GenerationConfig.from_pretrained"): "reads a JSON file",
    ("rayrl/stages/reward_data.py", "GenerationConfig.from_pretrained"): "reads a JSON file",
    ("actors/device_transfer.py", "probe.bind"): "looks for a free port and never listens",
}
"""Calls that the scan below finds, and why they may stay."""
UNPICKLE = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
TRUSTING = ("code_options", "weight_options", "vllm_options")


def suspicious(tree: ast.AST) -> Iterator[str]:
    """What in a module could run foreign code or listen for everybody, by the name of the call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] in UNPICKLE)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNPICKLE:
            yield str(node.module)
        elif isinstance(node, ast.Call) and is_suspicious(node):
            yield ast.unparse(node.func)


def is_suspicious(call: ast.Call) -> bool:
    name, last = ast.unparse(call.func), ast.unparse(call.func).rsplit(".", 1)[-1]
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg}
    spread = [ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg is None]
    decided = any(f"{function}(" in text for function in TRUSTING for text in spread)
    first = ast.unparse(call.args[0]) if call.args else ""
    return (
        given.get("trust_remote_code") == "True"
        or given.get("allow_pickle") == "True"
        or given.get("shell") == "True"
        or name in ("eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load", "yaml.full_load")
        or (name == "torch.load" and given.get("weights_only") != "True")
        or ((last == "from_pretrained" or name in ("LLM", "SentenceTransformer")) and not decided)
        or (last == "bind" and first.startswith(("('',", "('0.0.0.0',", "('::',")))
        or (last.endswith("HTTPServer") and not first.startswith("('127.0.0.1',"))
    )


def test_no_code_of_the_project_trusts_what_it_reads() -> None:
    found = set()
    files = [path for package in ("rayrl", "actors", "cluster") for path in sorted((ROOT / package).rglob("*.py"))]
    for path in files:
        tree = ast.parse(path.read_text("utf-8"))
        found |= {(str(path.relative_to(ROOT)), name) for name in suspicious(tree)}
    # vLLM's options are gathered before the call, in one place.
    engine = (ROOT / "rayrl/models/engine.py").read_text("utf-8")
    assert "**vllm_options()," in engine
    assert found - set(REASONS) == set()
    assert set(REASONS) - found == set(), "a reason that is no longer needed"
