"""What a run may do with checkpoints beyond reading safetensors and running code that is installed: nothing by itself.

A checkpoint may bring Python files (remote code) or pickled weights, and either can run anything as the user who loads
it. Both are refused unless the person who starts the run names them: `--allow remote_code`, or the variable that this
option sets. It is no key of a configuration on purpose, so that a YAML from somebody else can't allow itself anything.
Every place that loads a model or a tokenizer takes its options from here. Left out: pickles that a run writes for
itself (DeepSpeed's optimizer state; docs/security.md).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from rayrl.errors import UserError

ALLOW_VARIABLE = "RAYRL_ALLOW"
"""Names of KINDS, with commas between; Ray's workers get it from the process that starts them."""
KINDS = {
    "remote_code": "run Python files that a checkpoint brings along",
    "pickle": "read weights from pickles (*.bin), where a checkpoint has no safetensors",
}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def allow(kinds: Iterable[str]) -> None:
    """Allows further KINDS to this process and to those that it starts from now on."""
    wanted = sorted(allowed() | set(kinds))
    if wanted:
        os.environ[ALLOW_VARIABLE] = ",".join(wanted)


def allowed() -> set[str]:
    """The KINDS that were asked for. Raises UserError for a name that isn't one."""
    names = {name.strip() for name in os.environ.get(ALLOW_VARIABLE, "").split(",")} - {""}
    unknown = sorted(names - set(KINDS))
    if unknown:
        raise UserError(f"{ALLOW_VARIABLE}: {unknown[0]!r} is none of {', '.join(KINDS)}")
    return names


def code_options() -> dict[str, bool]:
    """Of any `from_pretrained`: by default transformers would ask on the terminal."""
    return {"trust_remote_code": "remote_code" in allowed()}


def weight_options() -> dict[str, bool | None]:
    """Of a model's `from_pretrained`. With pickles allowed, safetensors come first all the same."""
    return {**code_options(), "use_safetensors": None if "pickle" in allowed() else True}


def vllm_options() -> dict[str, bool | str]:
    """Of vLLM's `LLM`."""
    return {**code_options(), "load_format": "auto" if "pickle" in allowed() else "safetensors"}


def check_weight_files(folder: Path) -> None:
    """Raises UserError where a checkpoint folder has no weights, or only pickled ones that aren't allowed."""
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if not pickles:
        raise UserError(f"{folder} has a config.json but no weights: no *.safetensors lies in it.")
    if "pickle" not in allowed():
        raise UserError(
            f"{folder} has its weights in {pickles[0]}, a pickle, and reading one can run anything: convert it to "
            f"safetensors, or, if you trust where it is from, allow it by name ({_how('pickle')})"
        )


def refusal(name: str, error: BaseException) -> UserError | None:
    """The sentence for an error that loading `name` ended with because something isn't allowed; else None."""
    text = str(error)
    if "trust_remote_code" in text:
        return UserError(
            f"{name} brings Python files of its own that would have to run: read them, and if you trust them, allow it "
            f"by name ({_how('remote_code')})"
        )
    no_file = "file named" in text and "safetensors" in text
    if "pickle" not in allowed() and (no_file or "Cannot find any model weights" in text):
        return UserError(
            f"{name} has no safetensors; pickled weights can run anything as they are read: if you trust where it is "
            f"from, allow it by name ({_how('pickle')})"
        )
    return None


def _how(kind: str) -> str:
    return f"--allow {kind}, or {ALLOW_VARIABLE}={kind}"
