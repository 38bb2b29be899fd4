#!/usr/bin/env bash
# Runs that lose parts of themselves and must end as if they hadn't: see scripts/soak.py, whose options this takes.
#
#   bash scripts/soak.sh                          20 kills of each kind and 4 hangs of each actor, a run each: an hour
#   bash scripts/soak.sh --kinds node --kills 5   only these
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/install.sh
[[ $# -gt 0 ]] || set -- --kills 20 --hangs 4
exec .venv/bin/python scripts/soak.py "$@"
