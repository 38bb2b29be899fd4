#!/usr/bin/env bash
# Runs that lose parts of themselves and must end as if they hadn't: see scripts/soak.py, whose options this takes.
#
#   bash scripts/soak.sh                          20 kills of each kind, a run each, then 4 hangs of each: hours
#   bash scripts/soak.sh --kinds node --kills 5   only these
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/install.sh
if [[ $# -gt 0 ]]; then
  exec .venv/bin/python scripts/soak.py "$@"
fi
.venv/bin/python scripts/soak.py
.venv/bin/python scripts/soak.py --stop --kills 4
