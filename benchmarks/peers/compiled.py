"""What a driver hands back of each program: its optimised HLO, and the compiler's own sizes.

It imports nothing of undo_jax: a driver runs in its peer's environment.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

OFFLINE = {  # else libtpu asks the metadata server, locks and logs
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def offline() -> None:
    """To be called before JAX is imported."""
    os.environ.update(OFFLINE)


def write(folder: Path, name: str, lower: Callable[[], Any]) -> None:
    """Compile a program into `folder`: NAME.hlo and NAME.json, which has the compiler's refusal."""
    lowered = lower()
    try:
        compiled = lowered.compile()
    except Exception as error:  # JAX's or XLA's, by version; the reader knows which are of size
        (folder / f"{name}.json").write_text(json.dumps({"refused": str(error)}))
        return
    (folder / f"{name}.hlo").write_text(compiled.as_text())
    memory = compiled.memory_analysis()
    sizes = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "peak": memory.peak_memory_in_bytes,
    }
    (folder / f"{name}.json").write_text(json.dumps(sizes))
