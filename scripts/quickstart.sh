#!/usr/bin/env bash
# Installs what is needed into .venv, then runs the whole loop on a small real model on two CPU cores: fine-tuning, sampling,
# feedback, reward model, PPO. Ends with a table and says where the report is.
#
#   bash scripts/quickstart.sh [key=value ...]     e.g. output_dir=runs/second seed=1 stages.ppo.steps=30
#
# The same command again resumes a run that was interrupted; of one that is done it shows the result.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
bash "$here/install.sh"
# Paths in arguments, and runs/, are the caller's: no change of folder.
"$here/../.venv/bin/rayrl" pipeline quickstart "$@"
