#!/usr/bin/env bash
# Installs what is needed into .venv, then runs every check and the whole test suite; stops at the first that fails.
#
#   bash scripts/test.sh [pytest arguments]     e.g. tests/test_config.py -k override
#
# Without arguments two processes share the test files (most of a run on Ray is waiting for processes to start).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/install.sh

check() {
  echo "== $*"
  "$@"
}

check .venv/bin/ruff check .
check .venv/bin/ruff format --check .
check .venv/bin/mypy
check .venv/bin/lint-imports
check .venv/bin/python scripts/build_config_reference.py --check
[[ $# -gt 0 ]] || set -- -n 2 --dist loadfile --no-loadscope-reorder
check .venv/bin/python -m pytest "$@"
