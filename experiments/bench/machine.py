"""The machine of a run, and how many of its threads the benchmark may use."""

import os
import platform
from typing import Any


def limit_threads(threads: int) -> None:
    """Binds this process to some of its cores; to be called before jax, torch and NumPy start their threads.

    Args:
      threads: how many; 0 leaves everything as it is.
    """
    if not threads:
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    flags = os.environ.get("XLA_FLAGS", "")
    if threads == 1 and "xla_cpu_multi_thread_eigen" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()


def describe(threads: int) -> dict[str, Any]:
    """The device, its threads and the versions of what is measured."""
    import jax

    device = jax.devices()[0]
    return {
        "device": _processor() if device.platform == "cpu" else device.device_kind,
        "platform": device.platform,
        "cores": os.cpu_count(),
        "threads": threads or os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def slug(described: dict[str, Any]) -> str:
    """The device and its threads as a part of a file's name."""
    words = "".join(c if c.isalnum() else " " for c in described["device"]).split()
    return f"{'-'.join(words).lower()}-{described['threads']}"


def _processor() -> str:
    """The processor's name."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
