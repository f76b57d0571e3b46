"""What TensorBoard and W&B themselves read in the files of a run.

usage: read_back.py RUN_DIR

Prints one JSON object: "tensorboard" has for each tag its [step, value] pairs as TensorBoard shows them, after it has dropped what
training went back behind; "wandb" has for each offline run its "run", "config", "history" (a row is an object of names and JSON
texts), "summary", "stats" and "exit" as wandb's own reader finds them.
"""

import json
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2
from wandb.sdk.internal.datastore import DataStore


def tensorboard(folder):
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    return {tag: [[event.step, event.value] for event in accumulator.Scalars(tag)] for tag in tags}


def texts(items):
    return {"/".join(item.nested_key) or item.key: item.value_json for item in items}


def wandb(folder):
    [path] = folder.glob("run-*.wandb")
    store = DataStore()
    store.open_for_scan(str(path))
    read = {"history": [], "stats": [], "metrics": [], "config": {}, "summary": {}, "run": None, "exit": None}
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "history":
            read["history"].append(texts(record.history.item))
        elif kind == "stats":
            read["stats"].append({item.key: item.value_json for item in record.stats.item})
        elif kind == "metric":
            read["metrics"].append([record.metric.name or record.metric.glob_name, record.metric.step_metric])
        elif kind in ("config", "summary"):
            read[kind].update(texts(getattr(record, kind).update))
        elif kind == "run":
            run = record.run
            read["run"] = {"id": run.run_id, "project": run.project, "group": run.run_group, "name": run.display_name,
                           "entity": run.entity, "tags": list(run.tags)}
        elif kind == "exit":
            read["exit"] = record.exit.exit_code
        else:
            assert kind == "header", kind
    return read


def main():
    run_dir = Path(sys.argv[1])
    runs = sorted((run_dir / "wandb").glob("offline-run-*"))
    print(json.dumps({"tensorboard": tensorboard(run_dir / "tensorboard"), "wandb": [wandb(run) for run in runs]}))


main()
