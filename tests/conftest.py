"""Every test sees eight CPU devices, as a small pod slice would look.

The tests' programs are tiny: most of their time is compilation, so XLA compiles without its costly
optimisations.

XLA's CUDA plugin is in a folder of its own (see the Makefile): beside jax it would look for a GPU
in every program that does not say it wants a CPU.
"""

import sys
from pathlib import Path

import jax

PLUGIN = Path(sys.prefix, "gpu")
if PLUGIN.is_dir():
    sys.path.append(str(PLUGIN))

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_disable_most_optimizations", True)
