"""What `gpu.py` has measured, as Markdown, beside the targets."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpu_steps import ATTACKS, FULL, MORE, OURS
from gpu_tiles import constants
from peer import ON_GPU, PYTORCH

from undo_jax.fit import chips, nvidia
from undo_jax.logs.log import format_number

FP32 = "PyTorch fp32"
FASTER, FASTEST, SMALLER, MFU, WIDE_MFU, SLOWER = 10, 4, 1 / 6, 0.40, 0.45, 3  # the targets
NONE = "–"
SAME = [  # PyTorch variants that compute the same function
    name for name, variant in {**PYTORCH, **ON_GPU}.items() if not variant.liger
]
CaseResults = Mapping[str, Mapping[str, Any]]  # results by case


class MeasuredTarget(NamedTuple):
    quantity: str
    goal: str
    measured: str
    met: bool | None  # None: not measured


def table(folder: Path) -> str:
    """Raises ValueError where nothing has been measured, or on several devices."""
    names = "kernels", "steps", "attacks", "tiles"
    files = {name: folder / f"{name}.json" for name in names}
    parts = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    if not parts:
        raise ValueError(f"{folder} has no results: measure a part first")
    abouts = [part["about"] for part in parts.values()]
    if any(about != abouts[0] for about in abouts):
        raise ValueError(f"the parts in {folder} are of several devices: {abouts}")
    results = {name: parts.get(name, {"results": {}})["results"] for name in names}
    device = abouts[0]["device"]
    steps = [StepResult.read(name, result) for name, result in results["steps"].items()]
    package_versions = {
        name: value for name, value in abouts[0].items() if name not in ("device", "dry")
    }
    versions = ", ".join(f"{name} {value or 'absent'}" for name, value in package_versions.items())
    dry = ["A dry run: toy sizes, and what is measured means nothing.", ""] * abouts[0]["dry"]
    lines = [
        *(f"# {device}", "", versions, "", *dry),
        *_section("Targets", "what | target | measured | met", targets(results, steps, device)),
        *_section("Steps", STEPS, step_rows(steps, device)),
        *_section("Attacks", ATTACK_COLUMNS, attack_rows(results["attacks"])),
        *_section("Kernels", KERNELS, kernel_rows(results["kernels"])),
        *_section("Tiles", TILES, tile_rows(results["tiles"])),
    ]
    if changed := constants(results["tiles"]):
        lines += ["```python", *changed, "```", ""]
    return "\n".join(lines)


def _section(title: str, columns: str, rows: Iterable[Sequence[str]]) -> list[str]:
    """A table; none without rows. Only the first column is of text."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    rule = "| --- " + "| ---: " * columns.count("|") + "|"
    return [f"## {title}", "", f"| {columns} |", rule, *lines, ""] if lines else []


# ------------------------------------------------------------------------------------------- steps

STEPS = "setting | variant | rows | tokens/s | times fp32 | memory | MFU | note"


class StepResult(NamedTuple):
    setting: str
    variant: str
    rows: int
    measurements: Mapping[str, Any]

    @classmethod
    def read(cls, name: str, measurements: Mapping[str, Any]) -> "StepResult":
        setting, variant, rows = name.split("; ")
        return cls(setting, variant, int(rows), measurements)

    @property
    def rate(self) -> float:
        return self.measurements.get("tokens_per_second", 0.0)

    def mfu(self, device: str) -> float | None:
        chip = chips.of_device(device)
        return self.rate * self.measurements["flops_per_token"] / chip.flops if chip else None


def _done(steps: Iterable[StepResult], setting: str, *variants: str) -> list[StepResult]:
    """Those that were measured, the fastest first."""
    measured_steps = [s for s in steps if s.setting == setting and s.variant in variants and s.rate]
    return sorted(measured_steps, key=lambda step: -step.rate)


def _memory(
    steps: Sequence[StepResult], ours: StepResult, variant: str, device: str
) -> tuple[float, bool]:
    """Bytes of a variant on as many rows as ours, and whether it is more than that: all there is.

    0 where it is not known.
    """
    for step in steps:
        if (step.setting, step.variant, step.rows) == (ours.setting, variant, ours.rows):
            if FULL in step.measurements.get("error", ""):
                sizes = [size for name, size in nvidia.CAPACITY.items() if device.startswith(name)]
                return float(sum(sizes)), True
            return step.measurements.get("peak_bytes") or 0.0, False
    return 0.0, False


def step_rows(steps: Sequence[StepResult], device: str) -> Iterator[list[str]]:
    for step in steps:
        cells = [step.setting, step.variant, str(step.rows)]
        if not step.rate:
            yield [*cells, *[NONE] * 4, step.measurements.get("error", "")]
            continue
        first = _done(steps, step.setting, FP32)
        mfu, full = step.mfu(device), step.measurements["peak_bytes"]
        yield [
            *(*cells, format_number(step.rate)),
            f"{step.rate / first[0].rate:.2f}" if first else NONE,
            f"{format_number(full)}B" if full else NONE,
            NONE if mfu is None else f"{mfu:.1%}",
            step.measurements["note"],
        ]


# ----------------------------------------------------------------------------------------- targets


def targets(
    results: Mapping[str, CaseResults], steps: Sequence[StepResult], device: str
) -> Iterator[list[str]]:
    """Every target beside what was measured."""
    rows = [*_kernel_targets(results["kernels"]), *_attack_targets(results["attacks"])]
    for setting in dict.fromkeys(step.setting for step in steps):
        rows += _step_targets(steps, setting, device)
    for quantity, goal, measured, met in rows:
        yield [quantity, goal, measured, NONE if met is None else "yes" if met else "NO"]


def _kernel_targets(results: CaseResults) -> Iterator[MeasuredTarget]:
    if results:
        well = sum(bool(result.get("well")) for result in results.values())
        text = f"{well} of {len(results)} cases"
        yield MeasuredTarget("kernels within their tolerances", "all", text, well == len(results))


def _step_targets(
    steps: Sequence[StepResult], setting: str, device: str
) -> Iterator[MeasuredTarget]:
    ours = next(iter(_done(steps, setting, OURS)), None)
    for quantity, goal, variants in (
        ("times PyTorch fp32", FASTER, [FP32]),
        ("times the fastest PyTorch", FASTEST, SAME),
    ):
        theirs = next(iter(_done(steps, setting, *variants)), None)
        text, met = "not measured", None
        if ours and theirs:
            ratio = ours.rate / theirs.rate
            text, met = f"{ratio:.2f} ({theirs.variant}, {theirs.rows} rows)", ratio >= goal
        yield MeasuredTarget(f"{setting}: {quantity}", f"≥ {goal}", text, met)
    text, met, theirs = "not measured", None, next(iter(_done(steps, setting, *SAME)), None)
    if ours and theirs and (our_bytes := ours.measurements["peak_bytes"]):
        bytes_, more = _memory(steps, ours, theirs.variant, device)
        if bytes_:
            share = our_bytes / bytes_
            text, met = f"{'< ' * more}{share:.3f} ({theirs.variant})", share <= SMALLER
    yield MeasuredTarget(f"{setting}: memory, of the fastest PyTorch's", "≤ 0.167", text, met)
    goal = MFU if setting.startswith("0.1B") else WIDE_MFU
    best = next(iter(_done(steps, setting, OURS, MORE)), None)
    mfu = best.mfu(device) if best else None
    text = f"{mfu:.1%} ({best.rows} rows)" if best and mfu is not None else "not measured"
    yield MeasuredTarget(
        f"{setting}: MFU", f"≥ {goal:.0%}", text, None if mfu is None else mfu >= goal
    )


def _attack_targets(results: CaseResults) -> Iterator[MeasuredTarget]:
    for setting, alone, together in _attacks(results):
        ratio = together["seconds"] / alone["seconds"]
        quantity = f"{setting}: {ATTACKS} attacks together, times one"
        yield MeasuredTarget(quantity, f"≤ {SLOWER}", f"{ratio:.2f}", ratio <= SLOWER)


# ------------------------------------------------------------------------- attacks, kernels, tiles

ATTACK_COLUMNS = "setting | one, ms a step | ten, ms a step | times one | with compilation"
KERNELS = "case | most of its tolerance | within | ms | XLA, ms | times as fast"
TILES = "kernel | present | ms | best | ms | times as fast"


def _attacks(results: CaseResults) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    for setting in dict.fromkeys(name.split("; ")[0] for name in results):
        alone, together = (results.get(f"{setting}; {count}", {}) for count in (1, ATTACKS))
        if "seconds" in alone and "seconds" in together:
            yield setting, alone, together


def attack_rows(results: CaseResults) -> Iterator[list[str]]:
    for setting, alone, together in _attacks(results):
        times = [format_number(1e3 * each["seconds"]) for each in (alone, together)]
        ratios = [together[key] / alone[key] for key in ("seconds", "whole_seconds")]
        yield [setting, *times, *(f"{ratio:.2f}" for ratio in ratios)]
    for name, result in results.items():
        if "error" in result:
            yield [name, result["error"], *[NONE] * 3]


def kernel_rows(results: CaseResults) -> Iterator[list[str]]:
    for name, result in results.items():
        if "error" in result:
            yield [name, result["error"], "NO", *[NONE] * 3]
            continue
        errors = result["errors"].items()
        worst, most = max(errors, key=lambda e: e[1]["error"] / e[1]["tolerance"])
        times = [NONE] * 3
        if "ms" in result:
            times = [
                format_number(result["ms"]),
                format_number(result["xla_ms"]),
                f"{result['xla_ms'] / result['ms']:.2f}",
            ]
        text = f"{worst}: {most['error']:.1e} of {most['tolerance']:.1e}"
        yield [name, text, "yes" if result["well"] else "NO", *times]


def tile_rows(results: CaseResults) -> Iterator[list[str]]:
    for name, result in results.items():
        if "error" in result:
            yield [name, result["error"], *[NONE] * 4]
            continue
        present, best = (
            " ".join(str(x) for x in result[key].values()) for key in ("present", "best")
        )
        ratio = f"{result['present_ms'] / result['best_ms']:.2f}"
        yield [
            name,
            present,
            format_number(result["present_ms"]),
            best,
            format_number(result["best_ms"]),
            ratio,
        ]
