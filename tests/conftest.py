"""Eight virtual CPU devices for every test, and float64 where a test asks for it."""

import os

# Tests compile far more than they run: less optimisation, and a thread for each of the two test processes.
_FLAGS = (
    "--xla_force_host_platform_device_count=8",
    "--xla_cpu_multi_thread_eigen=false",
    "--xla_backend_optimization_level=0",
)
_GIVEN = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join([_GIVEN, *(flag for flag in _FLAGS if flag.split("=")[0] not in _GIVEN)]).strip()

import jax  # noqa: E402  (the flags must stand before JAX starts its backend)
import pytest  # noqa: E402


@pytest.fixture
def x64():
    """Runs a test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def bounded_memory():
    """Forgets compiled programs now and then: thousands of them would fill the memory."""
    yield
    bounded_memory.tests = getattr(bounded_memory, "tests", 0) + 1
    if bounded_memory.tests % 300 == 0:
        jax.clear_caches()
