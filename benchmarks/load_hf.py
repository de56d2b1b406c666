"""Memory and time of loading Hugging Face's files: `python benchmarks/load_hf.py FOLDER`.

FOLDER is made if it is not there: a sharded model of random bf16 weights in a real family's shapes.
It is then loaded by one process onto one CPU device, and by another onto a mesh of eight. Memory is
anonymous memory (RssAnon of /proc/self/status, read every 2 ms while loading), less what the
process had before: pages of the mapped files are the page cache's, and do not count. Files that
were just written are in the page cache, so that no disk is timed.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from undo_jax.models import hf, hf_folder
from undo_jax.models.transformer import Transformer
from undo_jax.runtime.mesh import MeshShape, make_mesh

SHARD = 0.6e9  # bytes of a file, at most
DEVICES = 1, 8


def write(folder: Path, lm: Transformer) -> None:
    """A folder of random weights, one file in memory at a time."""
    folder.mkdir(parents=True)
    (folder / hf_folder.CONFIG).write_text(json.dumps(hf_folder.describe(lm)))
    random, where, content = np.random.default_rng(0), {}, {}
    names = hf.tensors(lm)

    def flush():
        file = f"model-{len(set(where.values())) + 1:05}.safetensors"
        save_file(content, folder / file, metadata={"format": "pt"})
        where.update(dict.fromkeys(content, file))
        content.clear()

    for name, tensor in names.items():
        bits = random.integers(0, 2**16, tensor.shape, np.uint16) & 0xBFFF  # below 2 in magnitude
        if content and sum(x.nbytes for x in content.values()) + bits.nbytes > SHARD:
            flush()
        content[name] = bits.view(ml_dtypes.bfloat16)
    flush()
    (folder / hf_folder.INDEX).write_text(json.dumps({"weight_map": where}))


def anonymous() -> int:
    """Bytes of anonymous memory that this process has now."""
    match = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None, "Linux alone says how much of a process's memory is anonymous"
    return 1024 * int(match[1])


def load(folder: Path) -> dict[str, float]:
    """Load a folder onto all devices: bytes of the arrays and of the peak, and seconds."""
    lm = hf_folder.read_config(folder)
    mesh = make_mesh(MeshShape(fsdp=len(jax.devices())))
    jax.block_until_ready(jax.device_put(np.zeros(8), jax.devices()[0]))
    before, peak, done = anonymous(), 0, threading.Event()

    def watch():
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start, busy = time.perf_counter(), time.process_time()
    params = jax.block_until_ready(hf.load(folder, lm, mesh))
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    done.set()
    watcher.join()
    arrays = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    return {
        "arrays": arrays,
        "peak": max(peak, anonymous()) - before,
        "seconds": seconds,
        "busy": busy,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", default="llama:3.2-1B", help="FAMILY:NAME")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(load(options.folder)))
        return
    if not options.folder.exists():
        family, _, name = options.preset.partition(":")
        write(options.folder, hf_folder.family(family).preset(name, layers=options.layers))
    files = sum(file.stat().st_size for file in options.folder.glob("*.safetensors"))
    print(f"{files / 1e9:.2f} GB of files")
    for count in DEVICES:
        flags = f"--xla_force_host_platform_device_count={count}"
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        command = [sys.executable, __file__, str(options.folder), "--child"]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        measured = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{count} devices: {measured['arrays'] / 1e9:.2f} GB of arrays, peak anonymous memory "
            f"{measured['peak'] / 1e9:.2f} GB = {measured['peak'] / measured['arrays']:.2f} of them"
            f"; for each GB of files {1e9 * measured['seconds'] / files:.1f} s, of all cores "
            f"{1e9 * measured['busy'] / files:.1f} s"
        )


if __name__ == "__main__":
    main()
