"""Does a change of the code change results? `python benchmarks/same.py compare WORKDIR WORKDIR`.

Run an experiment before the change into one workdir and after it into another, then compare them.
Models are paired by stage, name, seed and attack, not by their folders, whose fingerprints may
change. Of each, all that a run writes is compared: every record, the scores and costs of the
summary, and every parameter array, also those saved at chosen steps. Not compared are speeds and
hashes of files, which hold speeds.

Each difference is printed as one line. The exit status is 0 if there is none, 1 if there are some,
and 2 if a workdir holds no models.
"""

import argparse
import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workdirs import read_arrays

RUN_SPECIFIC = ("fingerprint", "files", "sha256", "tokens_per_second", "runs")  # JSON keys
SHOWN = 120  # characters of a value in a line


def describe_workdir(workdir: Path) -> dict[str, Any]:
    """Returns the results of each model of a workdir, by its stage, name, seed and attack.

    Models that share all four, because the workdir holds several experiments, are numbered in the
    order of their results.
    """
    same_name = defaultdict(list)
    for config_file in sorted(workdir.glob("*/config.json")):
        config = json.loads(config_file.read_text())
        results = describe_model(config_file.parent)
        attack = results.get("summary", {}).get("attack")
        name = f"{config['stage']} of {config['model']}, seed {config['seed']}"
        same_name[name + (f", attack {attack}" if attack else "")].append(results)
    models = {}
    for name, all_results in same_name.items():
        all_results.sort(key=lambda results: json.dumps(results, sort_keys=True))
        for number, results in enumerate(all_results, start=1):
            models[name + (f" (number {number})" if len(all_results) > 1 else "")] = results
    return models


def describe_model(folder: Path) -> dict[str, Any]:
    """Returns the summary, records and parameter digests in a model's folder.

    An unfinished model has no summary.
    """
    summary_file, records_file = folder / "summary.json", folder / "metrics.jsonl"
    results: dict[str, Any] = {"records": [], "params": {}}
    if summary_file.exists():
        results["summary"] = _comparable(json.loads(summary_file.read_text()))
    if records_file.exists():
        lines = records_file.read_text().splitlines()
        results["records"] = [_comparable(json.loads(line)) for line in lines]
    for params in (folder / "params", *sorted(folder.glob("steps/*/params"))):
        if params.exists():
            results["params"][str(params.relative_to(folder))] = digest_arrays(params)
    return results


def digest_arrays(params: Path) -> dict[str, str]:
    """Returns a SHA-256 digest of the type, shape and bytes of each array of a checkpoint.

    Raises ValueError if the checkpoint cannot be read.
    """
    arrays = read_arrays(params.resolve())
    if isinstance(arrays, str):
        raise ValueError(f"{params} is {arrays}")
    return {
        name: hashlib.sha256(f"{dtype} {shape} ".encode() + content).hexdigest()
        for name, (dtype, shape, content) in arrays.items()
    }


def _comparable(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in RUN_SPECIFIC}


def find_differences(first: Any, second: Any, place: str = "") -> Iterator[str]:
    """Yields a line for each value that differs, or that only one of the two has."""
    if isinstance(first, list) and isinstance(second, list):
        first, second = dict(enumerate(first)), dict(enumerate(second))
    if isinstance(first, dict) and isinstance(second, dict):
        for name in {**first, **second}:
            inner_place = f"{place}: {name}" if place else str(name)
            if name not in second:
                yield f"{inner_place} is only in the first"
            elif name not in first:
                yield f"{inner_place} is only in the second"
            else:
                yield from find_differences(first[name], second[name], inner_place)
    elif json.dumps(first) != json.dumps(second):  # NaN equals NaN, and 1 is not 1.0
        yield f"{place}: {str(first)[:SHOWN]} became {str(second)[:SHOWN]}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("compare",))
    parser.add_argument("first", type=Path, help="the workdir of a run before the change")
    parser.add_argument("second", type=Path, help="the workdir of a run after it")
    options = parser.parse_args()
    first, second = describe_workdir(options.first), describe_workdir(options.second)
    for workdir, models in ((options.first, first), (options.second, second)):
        if not models:
            parser.error(f"{workdir}: no models there: give the workdir of a run")
    lines = list(find_differences(first, second))
    records = sum(len(results["records"]) for results in first.values())
    arrays = sum(
        len(digests) for results in first.values() for digests in results["params"].values()
    )
    counts = f"{len(first)} models, {records} records, {arrays} parameter arrays"
    print("\n".join(lines) or f"equal: {counts}")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
