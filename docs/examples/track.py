"""Send a run's records to MLflow: track.py runs/0001."""

import json
import sys
from contextlib import suppress
from pathlib import Path

import mlflow

run = Path(sys.argv[1])
with mlflow.start_run(run_name=run.name):
    mlflow.log_artifact(str(run / "config.json"))
    for path in (run / "stats.jsonl", run / "metrics.jsonl"):
        for line in path.read_text().splitlines() if path.exists() else []:
            with suppress(ValueError, AttributeError):  # cut off, or no object
                record = json.loads(line)
                group = record.get("metric", "training")
                numbers = {k: v for k, v in record.items() if isinstance(v, int | float)}
                if "label" not in record:  # but of the whole set
                    sent = {f"{group}/{key}": value for key, value in numbers.items()}
                    mlflow.log_metrics(sent, step=record["nimg"])
