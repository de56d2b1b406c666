"""Agreement between the processes of one job."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def agree_on(values: Any) -> np.ndarray:
    """Returns process 0's values on every process. All processes must call it together."""
    values = np.asarray(values)
    if jax.process_count() > 1 and values.size:
        values = np.asarray(multihost_utils.broadcast_one_to_all(values))
    return values


def barrier(name: str) -> None:
    """Waits until every process has called it with this name."""
    multihost_utils.sync_global_devices(name)
