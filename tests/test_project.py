"""The project's own papers agree with its code: README and docs, the lock, the sizes of files."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from rayrl.cli import main
from rayrl.config import yaml_text
from rayrl.config.corpus import STAGES, CorpusConfig
from rayrl.config.load import load, presets
from rayrl.config.ppo import AlgorithmConfig, PPOConfig
from rayrl.config.sources import SourceConfig
from rayrl.data.prompts import read_prompts
from rayrl.data.readers.read import read_conversations, read_prompt_rows
from rayrl.rewards.function import load_function
from rayrl.rewards.rules import RULES
from rayrl.types import PromptRow

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
LOCK = [
    line.split("==")
    for line in (ROOT / "requirements/cpu.lock").read_text("utf-8").splitlines()
    if line and not line.startswith("#")
]
LOCKED = {str(canonicalize_name(name)): version for name, version in LOCK}


def blocks(path: str, language: str) -> list[str]:
    """The fenced code blocks of a document, taken out of lists."""
    text = (ROOT / path).read_text("utf-8")
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", body, flags=re.MULTILINE) for indent, body in found]


def anchor(heading: str) -> str:
    """A heading's anchor as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_readme_is_short_and_its_config_is_valid(tmp_path: Path) -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) < 230
    whole = blocks("README.md", "yaml")[0]
    assert len(whole.splitlines()) <= 10
    path = tmp_path / "first.yaml"
    path.write_text(whole, encoding="utf-8")
    config = load(PPOConfig, str(path), ["steps=40", "rewards.questions.weight=2"])
    assert (config.steps, config.rewards[0].weight) == (40, 2)


@pytest.mark.parametrize(
    "part", [*blocks("README.md", "yaml")[1:], *blocks("docs/bring-your-own.md", "yaml")], ids=lambda part: part[:30]
)
def test_parts_of_configs_in_the_documentation_are_valid(part: str) -> None:
    whole = yaml_text.parse(blocks("README.md", "yaml")[0])
    changed = yaml_text.parse(part)
    assert set(changed) <= set(PPOConfig.model_fields) and changed != {}
    PPOConfig.model_validate({**whole, **changed})


@pytest.mark.parametrize("document", ["README.md", "docs/bring-your-own.md"])
def test_reward_functions_in_the_documentation_score(
    document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = next(block for block in blocks(document, "python") if "my_rewards.py" in block)
    name = f"my_rewards_of_{Path(document).stem.replace('-', '_').lower()}"
    (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    entries = [entry for part in blocks(document, "yaml") for entry in yaml_text.parse(part)["rewards"]]
    entry = next(entry for entry in entries if entry["kind"] == "function")
    module, _, function = entry["path"].rpartition(".")
    assert module == "my_rewards"
    scorer: Callable[[PromptRow, str], float] = load_function(f"{name}.{function}", entry.get("options", {}))
    row = PromptRow("1", [{"role": "user", "content": "My knee hurts."}])
    assert scorer(row, "Rest it.") == 1.0
    assert scorer(row, "It is certainly nothing: take 400 mg.") < 1.0


def test_prompt_rows_in_the_documentation_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    writer = next(block for block in blocks("docs/bring-your-own.md", "python") if "prompts.jsonl" in block)
    exec(compile(writer, "bring-your-own.md", "exec"), {})
    with open("prompts.jsonl", "a", encoding="utf-8") as file:
        file.writelines(blocks("README.md", "json"))
    read = read_prompts("prompts.jsonl")
    assert read.rejected == []
    assert [row.id for row in read.rows] == ["knee-1", "knee-2", "7"]


def test_the_tutorial_writes_its_rows_and_its_config_is_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks("docs/tutorial.md", "python")[0], "tutorial.md", "exec"), {})
    dialogues = read_conversations(SourceConfig(name="dialogues", path="dialogues.jsonl", kind="real"))
    questions = read_prompt_rows(SourceConfig(name="questions", path="questions.jsonl", kind="real"))
    assert (len(dialogues.rows), dialogues.rejected, questions.rejected) == (200, [], [])
    assert len(questions.rows) == 70
    loop, *raters = blocks("docs/tutorial.md", "yaml")
    Path("loop.yaml").write_text(loop, encoding="utf-8")
    assert main(["pipeline", "loop.yaml", "--dry-run"]) == 0
    assert "dialogues.jsonl" in capsys.readouterr().out
    for rater in raters:
        changed = yaml_text.parse(loop)
        changed["stages"]["feedback"] |= yaml_text.parse(rater)
        Path("loop.yaml").write_text(yaml_text.render(changed), encoding="utf-8")
        assert main(["pipeline", "loop.yaml", "--dry-run"]) == 0


@pytest.mark.parametrize("page", ["corpus", *(f"corpus-{stage}" for stage in STAGES)])
def test_corpus_configs_in_the_documentation_are_valid(page: str) -> None:
    whole = yaml_text.parse(blocks("docs/corpus.md", "yaml")[0])
    assert CorpusConfig.model_validate(whole).stages() == list(STAGES)
    parts = blocks(f"docs/{page}.md", "yaml")
    assert parts
    for part in parts:
        CorpusConfig.model_validate({**whole, **yaml_text.parse(part)})


def test_the_corpus_tutorial_writes_its_texts_and_its_configs_are_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    join_lines, sample, *others = blocks("docs/tutorial-corpus.md", "python")
    Path("raw").mkdir()
    pages = "Head\n\nIt may\nhurt. See\n\n1\n\fHead\n\n膝盖\n疼。\nRest\n\n2\n\fHead\n\nit.\n\nThe end.\n\n3\n\f"
    Path("raw/a.txt").write_text(pages, encoding="utf-8")
    exec(compile(join_lines, "join_lines.py", "exec"), {})
    assert Path("text/a.txt").read_text(encoding="utf-8") == "It may hurt. See 膝盖疼。\nRest it.\n\nThe end."
    exec(compile(sample, "sample.py", "exec"), {})
    assert len(list(Path("text").iterdir())) == 401
    for other in others:
        compile(other, "tutorial-corpus.md", "exec")
    first, *changes, tuning = blocks("docs/tutorial-corpus.md", "yaml")
    config = yaml_text.parse(first)
    for change in [{}, *map(yaml_text.parse, changes)]:
        config |= change
        Path("corpus.yaml").write_text(yaml_text.render(config), encoding="utf-8")
        assert main(["corpus", "corpus.yaml", "--dry-run"]) == 0
    assert CorpusConfig.model_validate(config).stages() == list(STAGES)
    Path("sft.yaml").write_text(tuning, encoding="utf-8")
    assert main(["sft", "sft.yaml", "--dry-run"]) == 0
    assert "runs/corpus/check" in capsys.readouterr().out


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, fragment = target.partition("#")
        file = document.parent / path if path else document
        assert file.exists(), f"{document.name} links to {target}, which isn't there"
        if fragment:
            headings = re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.MULTILINE)
            assert fragment in map(anchor, headings), f"{document.name} links to {target}: no such heading"


def test_readme_links_every_document() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    for path in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{path.name})" in readme, f"README.md doesn't link docs/{path.name}"


def test_documentation_names_every_rule_preset_estimator_and_algorithm_key() -> None:
    readme, own, algorithms = (
        (ROOT / path).read_text("utf-8") for path in ("README.md", "docs/bring-your-own.md", "docs/algorithms.md")
    )
    for rule in RULES:
        assert f"`{rule}`" in readme and f"`{rule}`" in own
    for preset in presets():
        assert f"`{preset}`" in readme
    for key in AlgorithmConfig.model_fields:
        assert re.search(rf"`(?:algorithm\.)?{key}(?:\.[a-z]+)?\b", algorithms), f"algorithms.md leaves out {key}"


def test_lock_satisfies_pyproject() -> None:
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *extras["cpu"], *extras["demo"], *extras["dev"]]:
        wanted = Requirement(text)
        name = str(canonicalize_name(wanted.name))
        if name == "torch":  # scripts/install.sh fetches it
            continue
        assert name in LOCKED, f"requirements/cpu.lock leaves out {name}"
        assert wanted.specifier.contains(LOCKED[name]), f"the lock has {name} {LOCKED[name]}, pyproject wants {text}"


def test_lock_is_sorted_and_leaves_out_what_does_not_load_on_a_cpu() -> None:
    keys = [name.lower().replace("-", "_") for name, _ in LOCK]
    assert keys == sorted(set(keys))
    assert not {"torch", "torchvision", "torchaudio", "torchcodec", "triton"} & set(LOCKED)


def test_install_script_takes_the_torch_of_pyproject() -> None:
    script = (ROOT / "scripts/install.sh").read_text("utf-8")
    pinned = re.findall(r"^torch=(\S+)$", script, re.MULTILINE)
    assert [f"torch=={version}" for version in pinned] == [d for d in PROJECT["dependencies"] if d.startswith("torch=")]


def test_no_file_of_the_packages_is_long() -> None:
    files = [path for package in ("rayrl", "actors", "cluster") for path in (ROOT / package).rglob("*.py")]
    assert len(files) > 50
    lengths = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in files}
    assert {path: length for path, length in lengths.items() if length > 450} == {}
