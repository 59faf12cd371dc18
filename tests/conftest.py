"""Eight virtual CPU devices for every test, and float64 where a test asks for it."""

import importlib.metadata
import os
import pathlib
import resource

# Tests compile far more than they run: less optimisation, and a thread for each of the two test processes. XLA ends the process
# at a flag that it does not know, so the last one, which halves the time of compiling, is for versions that are known to have it.
_FLAGS = [
    "--xla_force_host_platform_device_count=8",
    "--xla_cpu_multi_thread_eigen=false",
    "--xla_backend_optimization_level=0",
]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
_GIVEN = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join([_GIVEN, *(flag for flag in _FLAGS if flag.split("=")[0] not in _GIVEN)]).strip()

import jax  # noqa: E402  (the flags must stand before JAX starts its backend)
import pytest  # noqa: E402

# Compiling is most of the work: the two processes share what they compile, and a next run finds it all.
if not jax.config.jax_compilation_cache_dir:
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(__file__).parent.parent / ".cache" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture
def x64():
    """Runs a test in float64."""
    with jax.enable_x64(True):
        yield


_MOST_MEMORY = 5 * 2**30


@pytest.fixture(autouse=True)
def bounded_memory():
    """Forgets compiled programs when they fill the memory: tests share many small ones, so it must not happen often."""
    yield
    bounded_memory.tests = getattr(bounded_memory, "tests", 0) + 1
    if bounded_memory.tests % 25 == 0 and _resident_bytes() > _MOST_MEMORY:
        jax.clear_caches()


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:  # not Linux: the peak, so that from then on the programs are forgotten often
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
