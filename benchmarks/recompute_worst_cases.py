"""`recompute_worst_cases.py WORKDIR MIN_RETAIN`: from logs alone; scores are better when higher."""

import collections
import json
import math
import pathlib
import sys

if len(sys.argv) != 3:
    sys.exit(__doc__)
workdir, min_retain = pathlib.Path(sys.argv[1]), float(sys.argv[2])
configs = {p.parent: json.loads((p.parent / "config.json").read_text())
           for p in sorted(workdir.glob("*/summary.json"))}  # fmt: skip
models = {config["fingerprint"]: folder for folder, config in configs.items()}
points = collections.defaultdict(lambda: collections.defaultdict(list))  # by model, by step
for folder in (f for f, config in configs.items() if config["stage"] == "relearn"):
    for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        if math.isfinite(line.get("eval", {}).get("forget", math.nan)):
            scores = line["eval"]["forget"], line["eval"]["retain"]
            points[models[configs[folder]["upstream"][0]]][line["step"]].append(scores)
curves = collections.defaultdict(lambda: collections.defaultdict(list))
for folder, by_step in points.items():
    before = json.loads((folder / "summary.json").read_text())["eval"]
    best = before["forget"], before["retain"]
    for step, evaluated in sorted(by_step.items()):
        useful = [p for p in evaluated if not min_retain or p[1] >= min_retain * before["retain"]]
        best = max([best, *useful]) if min_retain else max(useful)
        curves[configs[folder]["model"]][step].append(best)
for model, curve in curves.items():
    cells = ([sum(x) / len(x) for x in zip(*seeds, strict=True)] for seeds in curve.values())
    print(model, *(f"{s}: {f:.2f} ({r:.2f})" for s, (f, r) in zip(curve, cells, strict=True)))
