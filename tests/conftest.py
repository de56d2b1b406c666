"""Every test sees eight CPU devices, as a small pod slice would look.

The tests' programs are tiny: most of their time is compilation, so XLA compiles without its costly
optimisations.
"""

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_disable_most_optimizations", True)
