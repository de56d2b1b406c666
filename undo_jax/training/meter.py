"""Records of training: loss and speed."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from undo_jax.logs.log import Log
from undo_jax.types import Metrics

LOG_EVERY = 10  # steps between records after the first step's; up to twice as many are in flight:
# with 33, CPUs hang


class Meter:
    """Training records, fetched one record late so that no step waits for the log."""

    def __init__(self, log: Log, trial_indices: Sequence[int]):
        self.log, self.trial_indices, self.waiting = log, trial_indices, None
        self.started, self.tokens = 0.0, 0  # from the first record on, without compilation

    def step(self, step: int, active: np.ndarray, metrics: Metrics, batch: Mapping[str, Any]):
        if self.started:
            rows = [jax.tree.leaves(part)[0] for part in batch.values()]  # their tokens
            tokens = sum(part.shape[1] * (part.shape[2] - 1) for part in rows)
            self.tokens += int(active.sum()) * tokens
        if step == 1 or step % LOG_EVERY == 0:
            self.flush()
            self.waiting = step, active.copy(), metrics

    def flush(self):
        if self.waiting is None:
            return
        (step, active, metrics), self.waiting = self.waiting, None
        metrics, now = jax.device_get(metrics), time.perf_counter()
        self.started = self.started or now
        rate = self.tokens / max(now - self.started, 1e-9)
        for slot in np.flatnonzero(active).tolist():
            values = {name: float(value[slot]) for name, value in metrics.items()}
            self.log.record(self.trial_indices[slot], step=step, **values, tokens_per_second=rate)
        self.log.progress(step, float(metrics["loss"][active].mean()), rate)
