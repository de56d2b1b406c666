"""undo_jax's distillation step, compiled for TPUs: run by `peers_tpu.py`, as the peers' are."""

import json
import sys
from pathlib import Path
from typing import Any

import jax

from undo_jax.fit import chips
from undo_jax.fit.step import compile_step, distillation, mesh_on
from undo_jax.models.gemma2 import preset
from undo_jax.runtime.mesh import MeshShape
from undo_jax.training.optim import AdamW
from undo_jax.training.train_step import Training


def main(case: dict[str, Any], folder: Path) -> None:
    jax.config.update("jax_platforms", "cpu")
    lm = preset(case["size"], dtype="bfloat16", remat="full")
    mesh = mesh_on(chips.find(case["topology"]), MeshShape(**case["mesh"]))
    rows = case["rows"] * mesh.size
    training = Training(steps=1000, batch_size=rows, optimizer=AdamW(), eval_every=100)
    compiled_step = compile_step(distillation(lm, lm, training, case["length"]), mesh)
    if compiled_step.cost is not None:
        (folder / "step.hlo").write_text(compiled_step.text)
    (folder / "step.json").write_text(json.dumps({"peak": compiled_step.memory.total}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
