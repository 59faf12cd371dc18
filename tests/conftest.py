"""Eight virtual CPU devices for every test, and float64 where a test asks for it."""

import os

_FLAG = "--xla_force_host_platform_device_count=8"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG} --xla_cpu_multi_thread_eigen=false".strip()

import jax  # noqa: E402  (the flags must stand before JAX starts its backend)
import pytest  # noqa: E402


@pytest.fixture
def x64():
    """Runs a test in float64."""
    with jax.enable_x64(True):
        yield
