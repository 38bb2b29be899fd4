"""Judges pairs in a process of its own, to be killed. Arguments: endpoint, folder, number of pairs, JSON of changes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from judge_cases import judge_all, judge_config

if __name__ == "__main__":
    endpoint, folder, number, changes = sys.argv[1:]
    config = judge_config(endpoint, Path(folder), **json.loads(changes))
    for judgement in judge_all(config, range(int(number))):
        print(json.dumps({"verdict": judgement.verdict, "reason": judgement.reason}))
