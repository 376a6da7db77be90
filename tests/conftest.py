"""Every test runs under strict dtype and rank promotion, with warnings as errors."""

import itertools
import os
import pathlib
import signal
import sys
import tempfile

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a job in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

sys.path.append(str(pathlib.Path(__file__).parents[1]))  # benchmarks, wherever pytest is started

# Eight host devices, for the sharding tests; must be said before JAX starts.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

# The processes of a run share what they compile. With a folder of your own the next run starts warm.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    programs = tempfile.TemporaryDirectory(prefix="adamfx-programs-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = programs.name
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest
from hypothesis import settings

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

settings.register_profile("adamfx", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("adamfx")


_done = itertools.count(1)


@pytest.fixture(autouse=True)
def few_programs():
    """A process that holds ten thousand compiled programs meets Linux's limit of memory maps, and aborts."""
    yield
    if next(_done) % 400 == 0:
        jax.clear_caches()


@pytest.fixture
def x64():
    """The test runs with 64-bit numbers."""
    with enable_x64():
        yield


def enable_x64():
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64  # where JAX before 0.8 keeps it

    return enable_x64()


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    """A press that comes too late for what is tested, on a machine that stood still, fails one test.

    It would end the worker, and with it the whole run.
    """
    try:
        return (yield)
    except KeyboardInterrupt:
        if "PYTEST_XDIST_WORKER" not in os.environ:
            raise
        pytest.fail("a press reached the test itself")
