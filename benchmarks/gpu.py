"""What is to be measured on one NVIDIA GPU, in parts; `benchmarks/gpu.sh` calls it.

python benchmarks/gpu.py PART OUT   measures what OUT/PART.json does not have
python benchmarks/gpu.py table OUT  prints what is there, as a table, and writes OUT/table.md
python benchmarks/gpu.py about      prints the device and the versions, as JSON

kernels  values and gradients of the Triton kernels against plain references, and their times
steps    tokens/s, memory and MFU of a distillation step, beside PyTorch
attacks  ten learning rates trained together, beside one
tiles    other tiles for the kernels, and the constants that would be faster

Every result is written at once: a part that is stopped goes on with the rest when it is called
again. `--dry` does the same at toy sizes on a CPU, with the kernels interpreted.
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

PACKAGES = "jax", "torch", "transformers", "liger-kernel"
MEMORY = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}
STOPPED = 75  # exit status: the same command goes on
ON_CPU = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}


class GpuPart(NamedTuple):
    """What a part does, in a process that has the device."""

    names: Callable[[Mapping[str, Any], bool], list[str]]  # of its cases, by the results so far
    measure: Callable[[str, bool], dict[str, Any]]
    limit: int  # seconds of a case
    group: int  # cases of a process


PARTS = {  # module, and its functions' names
    "kernels": ("gpu_kernels", "names", "measure"),
    "steps": ("gpu_steps", "names", "measure"),
    "attacks": ("gpu_steps", "attack_names", "measure_attacks"),
    "tiles": ("gpu_tiles", "names", "measure"),
}


def part(name: str) -> GpuPart:
    module, names, measure = PARTS[name]
    implementation = importlib.import_module(module)
    return GpuPart(
        getattr(implementation, names),
        getattr(implementation, measure),
        implementation.LIMIT,
        implementation.GROUP,
    )


def about(dry: bool) -> dict[str, Any]:
    """Where and with what results are made. Raises ValueError where that is no known GPU."""
    import jax

    from undo_jax.ops import gpu

    device, versions = jax.devices()[0], {}
    if gpu.supported_gpu() is None and not dry:
        raise ValueError(
            f"this is for {', '.join(gpu.GPUS)}, and here is {device.device_kind}: use --dry"
        )
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {"device": device.device_kind, "dry": dry, **versions}


class Results:
    """A part's results in a file, which is whole at any time."""

    def __init__(self, path: Path, about: Mapping[str, Any]):
        """Raises ValueError for a file of another device, or of other versions."""
        self.path, self.about, self.by_case = path, dict(about), {}
        if path.exists():
            content = json.loads(path.read_text())
            if content["about"] != self.about:
                raise ValueError(
                    f"{path} is of {_text(content['about'])}, and here is {_text(about)}: "
                    "give another folder"
                )
            self.by_case = content["results"]

    def add(self, name: str, result: Mapping[str, Any]) -> None:
        self.by_case[name] = dict(result)
        text = json.dumps({"about": self.about, "results": self.by_case}, indent=1)
        beside = self.path.with_suffix(".new")
        beside.write_text(text + "\n")
        os.replace(beside, self.path)


def _text(about: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in about.items() if value is not None)


def measure(name: str, folder: Path, dry: bool) -> None:
    """Measure what a part still lacks, in processes that a crash or a full memory may end."""
    folder.mkdir(parents=True, exist_ok=True)
    results, this = Results(folder / f"{name}.json", _read_json_output(["about"], dry)), part(name)

    def left() -> list[str]:
        return [case for case in this.names(results.by_case, dry) if case not in results.by_case]

    while todo := left():
        with closing(run(name, todo[: this.group], dry, this.limit)) as case_results:
            for case, result in case_results:
                results.add(case, result)
                print(f"{name}: {case}: {summary(result)}; {len(left())} to go", flush=True)


def summary(result: Mapping[str, Any]) -> str:
    if "error" in result:
        return str(result["error"])
    if "well" in result:
        return "well" if result["well"] else "beyond its tolerance"
    return ", ".join(f"{k} {v:.4g}" for k, v in result.items() if isinstance(v, int | float))


def run(
    name: str, cases: Sequence[str], dry: bool, limit: int
) -> Generator[tuple[str, dict[str, Any]], None, None]:
    """Results of cases as they are made. A case that ends the process has the reason as its."""
    left, command = list(cases), _command([name, "--cases", json.dumps(cases)], dry)
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, env=_environment(), text=True, stdout=subprocess.PIPE, stderr=errors
        )
        try:
            for line in process.stdout or ():
                if line.startswith("{"):
                    message = json.loads(line)
                    left.remove(message["case"])
                    yield message["case"], message["result"]
            status = process.wait()
        finally:
            process.kill()
        if left and (status or len(left) == len(cases)):
            errors.seek(0)
            yield left[0], {"error": reason(status, errors.read(), limit)}


def reason(status: int, stderr: str, limit: int) -> str:
    if status == -signal.SIGALRM:
        return f"took longer than {limit} s"
    last = (stderr.strip().splitlines() or ["nothing"])[-1]
    return f"ended with status {status}, and said: {last[:200]}"


def worker(name: str, cases: Sequence[str], dry: bool) -> None:
    """Measure cases and print each result; end after an error, which may have spoilt the device."""
    from undo_jax.ops import gpu

    gpu.INTERPRET, this = dry, part(name)
    for case in cases:
        signal.alarm(this.limit)  # ends the process, in compiled code too
        try:
            result = this.measure(case, dry)
        except Exception as error:
            result = {"error": describe_error(error)}
        signal.alarm(0)
        print(json.dumps({"case": case, "result": result}), flush=True)
        if "error" in result:
            return


def describe_error(error: Exception) -> str:
    """A line; what different libraries say of a full memory is one text."""
    text = str(error).strip() or type(error).__name__
    full = "out of memory", "RESOURCE_EXHAUSTED", "ALLOC_FAILED"
    if any(sign.lower() in text.lower() for sign in full):
        return "out of memory"
    if isinstance(error, ImportError):
        return f"absent: {text.splitlines()[0]}"
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}"


def _read_json_output(words: list[str], dry: bool) -> Any:
    """What a process of this program prints, as JSON. Raises ValueError with what it says."""
    done = subprocess.run(_command(words, dry), env=_environment(), capture_output=True, text=True)
    if done.returncode:
        raise ValueError((done.stderr.strip().splitlines() or ["no reason told"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def _command(words: list[str], dry: bool) -> list[str]:
    return [sys.executable, __file__, *words, *(["--dry"] if dry else [])]


def _environment() -> dict[str, str]:
    return {**os.environ, **MEMORY}


def _refuse(message: str) -> NoReturn:
    print(f"gpu: {message}", file=sys.stderr)
    raise SystemExit(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=[*PARTS, "table", "about"])
    parser.add_argument("out", type=Path, nargs="?", help="a folder")
    parser.add_argument("--dry", action="store_true", help="toy sizes on a CPU")
    parser.add_argument("--cases", type=json.loads, help=argparse.SUPPRESS)
    parser.error = _refuse
    options = parser.parse_args()
    os.environ.update(ON_CPU if options.dry else {})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))  # and end what was started
    try:
        if options.part == "about":
            print(json.dumps(about(options.dry)))
        elif options.cases is not None:
            worker(options.part, options.cases, options.dry)
        elif options.out is None:
            raise ValueError(f"{options.part} of which folder: name it")
        elif options.part == "table":
            from gpu_table import table

            text = table(options.out)
            (options.out / "table.md").write_text(text)
            print(text, end="")
        else:
            measure(options.part, options.out, options.dry)
    except (ValueError, OSError) as error:
        _refuse(str(error))


if __name__ == "__main__":
    main()
