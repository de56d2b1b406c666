"""XLA flags for TPU, in presets by purpose; none is set unless its preset is named."""

from collections.abc import Mapping

# Each is described, with its default, in openxla.org/xla/flags_guidance ("Performance Flags",
# "Memory Flags"), but for those of `sparse_cores`. The page spells some values as kEnabled and
# kBrkga; libtpu takes these. What they do to a step's schedule: docs/results/compiled.md.
PRESETS: dict[str, Mapping[str, str]] = {
    "overlap": {  # hide the collectives of fsdp behind arithmetic
        # "Pipelining": all-gathers of the next layer start during this one
        "xla_should_allow_loop_variant_parameter_in_chain": "enabled",
        "xla_should_add_loop_invariant_op_in_chain": "enabled",
        "xla_tpu_enable_ici_ag_pipelining": "true",
        # "v5e/Async": all-reduces of gradients as well as all-gathers
        "xla_tpu_enable_async_collective_fusion": "true",
        "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": "true",
        # "Async": gradients that models with gradient_sum="all_to_all" exchange
        "xla_tpu_enable_async_all_to_all": "true",
    },
    # v6e: collectives on the SparseCores, beside the cores that multiply (named in MaxText's
    # benchmarks/xla_flags_library.py)
    "sparse_cores": {
        "xla_tpu_enable_sparse_core_collective_offload_all_gather": "true",
        "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": "true",
        "xla_tpu_enable_sparse_core_collective_offload_all_reduce": "true",
    },
    "memory": {  # for a step that nearly fits; compiles longer
        "xla_latency_hiding_scheduler_rerun": "5",
        "xla_memory_scheduler": "brkga",
        "xla_tpu_rwb_fusion": "false",
    },
}


def flags(name: str) -> Mapping[str, str]:
    """A preset. Raises ValueError for an unknown one."""
    if name not in PRESETS:
        raise ValueError(f"unknown XLA flags {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def arguments(name: str) -> str:
    """A preset as the environment variable LIBTPU_INIT_ARGS wants it."""
    return " ".join(f"--{flag}={value}" for flag, value in flags(name).items())
