"""The devices of a command: those of this machine, or those of several processes as one."""

import os
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import jax
from tyro.conf import OmitArgPrefixes

from undo_jax.cli.flags import MaybeInt, MaybeText, Switch
from undo_jax.data.files import CACHE, cache_folder
from undo_jax.fit.step import OFFLINE
from undo_jax.logs.log import console
from undo_jax.runtime import process_watch

# XLA's flags for several CPU devices; libtpu has none of them. The timeouts are longer than the
# default, 40 seconds, which ends programs on a busy machine. Collectives run one by one: XLA runs
# independent ones side by side, each blocks a thread while it waits, and with few threads none is
# left for those that they wait for.
SEVERAL_CPUS = {
    "xla_cpu_collective_call_warn_stuck_timeout_seconds": "300",
    "xla_cpu_collective_call_terminate_timeout_seconds": "3600",
    "xla_cpu_enable_concurrency_optimized_scheduler": "false",
}
FORCED = "xla_force_host_platform_device_count"  # XLA's own flag for the number of CPU devices
THREADS = "PJRT_NPROC"  # variable: the number of threads of all of XLA's CPU devices
PATIENCE = 300  # seconds that processes wait for each other to start


@dataclass(frozen=True)
class Processes:
    """How this process finds the others."""  # a heading in the help of commands

    distributed: Switch = False  # one of several that JAX can find: a TPU pod, Slurm, GKE
    coordinator: MaybeText = None  # HOST:PORT of process 0, where JAX cannot find them
    processes: MaybeInt = None  # with --coordinator: how many there are
    process: MaybeInt = None  # with --coordinator: which one this is, from 0

    def __post_init__(self):
        """Raises ValueError where the last three are not given together, or are not valid."""
        names = ("coordinator", "processes", "process")
        missing = [f"--{name}" for name in names if getattr(self, name) is None]
        if 0 < len(missing) < len(names):
            raise ValueError(
                f"{' and '.join(missing)} missing: give --coordinator HOST:PORT, --processes and "
                "--process together"
            )
        if self.coordinator is None:
            return
        host, _, port = self.coordinator.rpartition(":")
        if not (host and port.isdigit() and 0 < int(port) < 2**16):
            raise ValueError(f"coordinator {self.coordinator!r} is not HOST:PORT")
        if not 0 <= (self.process or 0) < (self.processes or 0):
            raise ValueError(
                f"process {self.process} of {self.processes}: processes count from 0 to one less "
                "than their number"
            )


ALONE = Processes()
Joined = OmitArgPrefixes[Processes]  # these fields as flags of a command


def keep_libtpu_quiet(dev: Path = Path("/dev")) -> None:
    """Keep libtpu from printing that there is no TPU; to be called before any device is touched.

    JAX asks it for devices wherever it is installed. Nothing changes on a host with a TPU (its
    drivers make /dev/accel0 or /dev/vfio/0) and where TPUs are asked for by name.
    """
    drivers = [*dev.glob("accel*"), *dev.glob("vfio/[0-9]*")]
    wants_tpu = "tpu" in os.environ.get("JAX_PLATFORMS", "") or "JAX_FORCE_TPU_INIT" in os.environ
    if drivers or wants_tpu or find_spec("libtpu") is None:
        return
    for name, value in OFFLINE.items():
        if name.startswith(("TPU_", "ALLOW_")):  # the others are XLA's for all devices
            os.environ.setdefault(name, value)


def prepare_devices(processes: Processes = ALONE) -> None:
    """Join the other processes, if there are any, and turn on the compilation cache.

    A CPU becomes one device per core, so that trials train in parallel, unless JAX_NUM_CPU_DEVICES
    or XLA_FLAGS say otherwise: then meshes are tried, and threads are many, which costs time.
    """
    cpu_devices = jax.config.values["jax_num_cpu_devices"]
    forced = re.search(rf"--{FORCED}=([1-9]\d*)", os.environ.get("XLA_FLAGS", ""))
    if cpu_devices < 0 and forced:
        cpu_devices = int(forced[1])
        jax.config.update("jax_num_cpu_devices", cpu_devices)
    elif cpu_devices < 0:
        affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
        jax.config.update("jax_num_cpu_devices", len(affinity) or os.cpu_count() or 1)
    jax.config.update("jax_compilation_cache_dir", os.environ.get(CACHE) or str(cache_folder()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    _let_cpus_wait(cpu_devices)
    join(processes)


def _let_cpus_wait(cpu_devices: int) -> None:
    """Let CPU devices wait for each other without a deadlock or a short timeout.

    Args:
        cpu_devices: how many the user has set; -1: not set.
    """
    if cpu_devices > 1:
        os.environ.setdefault(THREADS, str(8 * cpu_devices))
    if find_spec("libtpu") is None or jax.config.values["jax_platforms"] == "cpu":
        flags = os.environ.get("XLA_FLAGS", "")
        new = [f"--{flag}={value}" for flag, value in SEVERAL_CPUS.items() if flag not in flags]
        os.environ["XLA_FLAGS"] = " ".join([*flags.split(), *new])


def join(processes: Processes) -> None:
    """Make the devices of all processes visible to each; from here on only process 0 prints.

    Raises ConnectionError where the processes do not find each other.
    """
    if processes.coordinator is not None:  # then `processes` and `process` are given, too
        process, count = processes.process or 0, processes.processes or 1
        process_watch.connect_processes(processes.coordinator, process, count, PATIENCE)
    elif not processes.distributed:
        return
    try:
        jax.distributed.initialize(
            processes.coordinator,
            processes.processes,
            processes.process,
            cluster_detection_method=None if processes.coordinator is None else "deactivate",
            initialization_timeout=PATIENCE,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ConnectionError(
            f"the processes did not find each other ({reason}): give --coordinator HOST:PORT, "
            "--processes and --process, and start them together"
        ) from error
    if processes.coordinator is None:
        process_watch.connect_found_processes()
    console.quiet = jax.process_index() != 0
