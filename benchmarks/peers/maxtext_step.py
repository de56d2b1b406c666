"""MaxText's distillation step, compiled for TPUs: run by `peers_tpu.py` in MaxText's environment.

The step is `MaxTextDistillationTrainer._train_step` on its `ModelBundle`, with its own optimizer,
strategy, shardings and remat. Only what would make arrays is left out: the trainer is made without
its constructor, and parameters are shapes.
"""

import json
import sys
from pathlib import Path
from typing import Any

from compiled import offline, write

offline()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from flax import nnx  # noqa: E402
from flax.core.spmd import logical_axis_rules  # noqa: E402
from jax.sharding import NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402
from maxtext.configs import pyconfig  # noqa: E402
from maxtext.trainers.post_train.distillation import distillation_utils, train_distill  # noqa: E402
from maxtext.trainers.pre_train import train_compile  # noqa: E402
from maxtext.utils import model_creation_utils, sharding  # noqa: E402

CONFIG = Path(train_distill.__file__).parents[3] / "configs/post_train/distillation.yml"


def configured(case: dict[str, Any], **more: Any) -> Any:
    """MaxText's configuration of one model of the case."""
    model, mesh = case["model"], case["mesh"]
    settings = {
        "run_name": "step",
        "base_output_directory": case["folder"],
        "skip_jax_distributed_system": True,
        "enable_checkpointing": False,
        "dataset_type": "synthetic",
        "compile_topology": case["topology"].replace("4x4", "16").replace(":", "-"),
        "compile_topology_num_slices": 1,
        "model_name": "gemma2-2b",
        "override_model_config": True,
        "base_emb_dim": model["width"],
        "base_mlp_dim": model["feed_forward"],
        "base_num_query_heads": model["heads"],
        "base_num_kv_heads": model["kv_heads"],
        "base_num_decoder_layers": model["layers"] // 2,  # of two layers: local and global
        "head_dim": model["head_width"],
        "vocab_size": model["vocabulary"],
        "sliding_window_size": model["window"],
        "ici_data_parallelism": mesh.get("data", 1),
        "ici_fsdp_parallelism": mesh.get("fsdp", 1),
        "ici_tensor_parallelism": mesh.get("tensor", 1),
        "per_device_batch_size": case["rows"],
        "max_target_length": case["length"],
        "dtype": "bfloat16",
        "weight_dtype": "float32",
        "remat_policy": "full",
        "attention": "flash",
        "distill_alpha": 1.0,  # of KL alone
        "distill_temperature": 1.0,
        "steps": 1000,
    }
    return pyconfig.initialize(["", str(CONFIG)], **(settings | more))


def abstract(config: Any, mesh: Any) -> Any:
    """A model whose parameters are shapes, with shardings."""
    return model_creation_utils.create_nnx_abstract_model(config, mesh)


def trainer(config: Any) -> Any:
    """MaxText's trainer, of which nothing is made but what a step reads."""
    forward = train_distill.create_forward_fn(config)
    distiller = object.__new__(train_distill.MaxTextDistillationTrainer)
    distiller.strategy = distillation_utils.CombinedDistillationStrategy(
        student_forward_fn=forward,
        teacher_forward_fn=forward,
        temperature=config.distill_temperature,
        alpha=config.distill_alpha,
        vocab_size=config.vocab_size,
        max_steps=config.steps,
    )
    distiller.wrt_filter = nnx.Param
    distiller._tunix_expects_grad_norm = True
    distiller.gen_model_input_fn = lambda inputs: inputs
    return distiller


def lower(case: dict[str, Any]) -> Any:
    config = configured(case)
    frozen = configured(case, weight_dtype="bfloat16")
    mesh = train_compile.get_topology_mesh(config)
    step_of = trainer(config)
    rules = logical_axis_rules(config.logical_axis_rules)
    with jax.set_mesh(mesh), rules:
        make_student, _ = abstract(config, mesh)
        make_teacher, _ = abstract(frozen, mesh)
        transform = train_distill.get_distillation_optimizer(config, config.steps)

        def start():
            teacher, student = make_teacher(), make_student()
            teacher.eval()
            student.train()
            bundle = train_distill.ModelBundle(teacher, student)
            return bundle, nnx.Optimizer(student, transform, wrt=nnx.Param)

        abstract_state = nnx.eval_shape(start)
        structure, state = nnx.split(abstract_state)
        placed = sharding.nnx_construct_named_sharding(state, mesh)
        state = jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state, placed
        )
        rows = NamedSharding(mesh, P(*sharding.get_input_data_sharding(config, mesh).spec))
        shape = case["rows"] * mesh.size, case["length"]
        tokens = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows)
        names = ("input_tokens", "positions", "decoder_segment_ids", "targets")
        batch = dict.fromkeys((*names, "targets_segmentation"), tokens)

        def step(state, batch):
            bundle, optimizer = nnx.merge(structure, state)
            loss, metrics, norm = step_of._train_step(bundle, optimizer, batch)
            return nnx.state((bundle, optimizer)), loss, metrics, norm

        out = (jax.tree.map(lambda x: x.sharding, state), None, None, None)
        return jax.jit(step, donate_argnums=0, out_shardings=out).lower(state, batch)


if __name__ == "__main__":
    case = json.loads(sys.argv[1]) | {"folder": sys.argv[2]}
    write(Path(sys.argv[2]), "step", lambda: lower(case))
