"""tunix's distillation step, compiled for TPUs: run by `peers_tpu.py` in tunix's environment.

It is two programs: `LogitStrategy.get_teacher_outputs`, whose logits of the whole batch are an
argument of the other, `DistillationTrainer._train_step`. The trainer is made without its
constructor, and parameters are shapes. tunix puts no constraint on activations where JAX's own
device is a CPU, as it is here: the constraints of a TPU are put back.
"""

import json
import sys
from pathlib import Path
from typing import Any

from compiled import offline, write

offline()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402
from flax import nnx  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import Mesh, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402
from tunix.distillation import distillation_trainer  # noqa: E402
from tunix.distillation.strategies.logit import LogitStrategy  # noqa: E402
from tunix.models.gemma import model as gemma  # noqa: E402
from tunix.sft import utils  # noqa: E402

KINDS = gemma.AttentionType.LOCAL_SLIDING, gemma.AttentionType.GLOBAL


def configured(model: dict[str, Any]) -> Any:
    """tunix's configuration of the case's model."""
    return gemma.ModelConfig(
        num_layers=model["layers"],
        num_embed=model["vocabulary"],
        embed_dim=model["width"],
        hidden_dim=model["feed_forward"],
        num_heads=model["heads"],
        head_dim=model["head_width"],
        num_kv_heads=model["kv_heads"],
        final_logit_softcap=30.0,
        use_post_attn_norm=True,
        use_post_ffw_norm=True,
        attention_types=[KINDS[i % 2] for i in range(model["layers"])],
        attn_logits_soft_cap=50.0,
        sliding_window_size=model["window"],
        remat_config=gemma.RematConfig.DECODER,
    )


def forward(model: Any, input_tokens: Any, input_mask: Any) -> Any:
    """Logits, by tunix's masks and positions."""
    positions = utils.build_positions_from_mask(input_mask)
    mask = utils.make_causal_attn_mask(input_mask)
    return model(input_tokens, positions, None, mask)[0]


def shapes(tree: Any, mesh: Mesh, dtype: Any = None) -> Any:
    """A state's shapes where tunix puts it; floating-point ones in another dtype, if given."""
    state, specs = tree, nnx.get_partition_spec(tree)

    def of(x: Any, spec: Any) -> Any:
        change = dtype is not None and jnp.issubdtype(x.dtype, jnp.floating)
        place = NamedSharding(mesh, spec if isinstance(spec, P) else P())
        return jax.ShapeDtypeStruct(x.shape, dtype if change else x.dtype, sharding=place)

    return jax.tree.map(of, state, specs)


def programs(case: dict[str, Any]) -> dict[str, Any]:
    """Functions that lower the teacher's program and the student's."""
    topology = topologies.get_topology_desc(platform="tpu", topology_name=case["topology"])
    size = case["mesh"].get("fsdp", 1), case["mesh"].get("tensor", 1)
    mesh = topologies.make_mesh(topology, size, ("fsdp", "tp"))
    rows, vocabulary = case["rows"] * mesh.size, case["model"]["vocabulary"]
    gemma.shard = lambda x, axes: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*axes)))
    trainer = object.__new__(distillation_trainer.DistillationTrainer)
    trainer.strategy = LogitStrategy(
        forward,
        forward,
        lambda input_tokens, input_mask: jax.nn.one_hot(input_tokens, vocabulary),
        temperature=1.0,
        alpha=1.0,  # of KL alone
    )
    trainer.loss_fn, trainer._has_aux, trainer._lora_enabled = trainer.get_train_loss, True, False
    trainer.gen_model_input_fn = lambda batch: batch
    config = configured(case["model"])
    make = lambda: gemma.Gemma(config, rngs=nnx.Rngs(0))  # noqa: E731
    transform = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-5))

    def start() -> Any:
        student = make()
        return student, nnx.Optimizer(student, transform, wrt=nnx.Param)

    structure, state = nnx.split(nnx.eval_shape(start))
    teacher_structure, teacher = nnx.split(nnx.eval_shape(make))
    place = NamedSharding(mesh, P("fsdp"))
    inputs = {
        "input_tokens": jax.ShapeDtypeStruct((rows, case["length"]), jnp.int32, sharding=place),
        "input_mask": jax.ShapeDtypeStruct((rows, case["length"]), jnp.bool_, sharding=place),
    }

    def teach(teacher: Any, inputs: Any) -> Any:
        return trainer.strategy.get_teacher_outputs(nnx.merge(teacher_structure, teacher), inputs)

    def step(state: Any, logits: Any, inputs: Any) -> Any:
        student, optimizer = nnx.merge(structure, state)
        step_result = trainer._train_step(
            student, optimizer, {"teacher_output": logits, "inputs": inputs}
        )
        return nnx.state((student, optimizer)), step_result

    placed = shapes(state, mesh)
    state_shardings = jax.tree.map(lambda x: x.sharding, placed)
    frozen = shapes(teacher, mesh, jnp.bfloat16)
    out = jax.ShapeDtypeStruct(
        (rows, case["length"], vocabulary), jnp.bfloat16, sharding=NamedSharding(mesh, P("fsdp"))
    )
    teaching = jax.jit(teach, out_shardings=out.sharding)
    training = jax.jit(step, donate_argnums=0, out_shardings=(state_shardings, None))
    return {
        "teacher": lambda: teaching.lower(frozen, inputs),
        "student": lambda: training.lower(placed, out, inputs),
    }


if __name__ == "__main__":
    for name, lower in programs(json.loads(sys.argv[1])).items():
        write(Path(sys.argv[2]), name, lower)
