"""Every test sees eight CPU devices, as a small pod slice would look."""

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
