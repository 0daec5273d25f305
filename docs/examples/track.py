"""Send a run's records to MLflow, once it has ended or while it trains: track.py runs/0001."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow

QUIET = 600  # a run whose log has had no line for so many seconds has ended


def new_records(path: Path, seen: set[str]) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines() if path.exists() else []:
        if line not in seen:
            with suppress(ValueError):  # cut off: perhaps whole the next time
                record = json.loads(line)
                seen.add(line)
                yield record


run, seen, ended = Path(sys.argv[1]), set[str](), False
with mlflow.start_run(run_name=run.name):
    mlflow.log_artifact(str(run / "config.json"))
    while not ended:
        ended = time.time() - (run / "log.txt").stat().st_mtime > QUIET
        for name in ("stats.jsonl", "metrics.jsonl"):
            for record in new_records(run / name, seen):
                if "label" not in record:  # of the whole set
                    group = record.get("metric", "training")
                    numbers = {k: v for k, v in record.items() if isinstance(v, (int, float))}
                    sent = {f"{group}/{k}": v for k, v in numbers.items()}
                    mlflow.log_metrics(sent, step=record["nimg"])
        time.sleep(0 if ended else 10)
