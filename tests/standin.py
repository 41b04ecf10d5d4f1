"""Stands in for `python -m pipeline.stages STAGE NAME`: writes the same files, small, in no time.

Its behaviour is steered by environment variables, since it must be the same file in every commit:
SLEEP_AT / FAIL_AT name a stage; MARKS is a folder that gets a file per stage started; DEAF: it ignores Ctrl-C.
"""

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

stage, name = sys.argv[1:]
base = Path("artifacts") / name
pins = json.loads(Path("pins", f"{name}.json").read_text())
if "DEAF" in os.environ:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
if "MARKS" in os.environ:
    Path(os.environ["MARKS"], f"{stage}-{name}").write_text(str(os.getpid()))
sys.stdout.write(f"{stage} of {name} with {os.environ.get('LABEL')}\n")
sys.stdout.flush()
if os.environ.get("SLEEP_AT") == stage:
    time.sleep(60)
if os.environ.get("FAIL_AT") == stage:
    sys.stderr.write("error: the loss is NaN at step 7; lower training.learning_rate\nit was inf at step 6\n")
    sys.exit(1)

outputs = {
    "prepare": {
        "prepared/train/rows.txt": Path(pins["params"]["data"]["path"]).read_text(),
        "prepared/card.json": "{}",
    },
    "train": {
        "adapter/adapter_config.json": json.dumps(pins["params"]["training"]),
        "curves.jsonl": '{"step": 1}\n',
    },
    "evaluate": {"evaluation/rows.parquet": str(pins["champion"]), "evaluation/base/probe.txt": "0.5"},
}[stage]
for path, text in outputs.items():
    (base / path).parent.mkdir(parents=True, exist_ok=True)
    (base / path).write_text(text)
manifest = {path: hashlib.sha256(text.encode()).hexdigest() for path, text in outputs.items()}
record = {"prepare": "prepared.json", "train": "trained.json", "evaluate": "evaluated.json"}[stage]
(base / record).write_text(json.dumps({"manifest": manifest}))
