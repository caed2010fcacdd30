"""Settings of the whole suite."""

import gc
import importlib.metadata
import os
import pathlib
import sys
import tempfile

import hypothesis
import pytest

# Most of the suite's time is compilation; here, and in the processes that tests start, XLA does
# without its costly optimisations. One setting for all: programs compiled differently differ in
# rounding, and tests of bit-identity compare runs of several processes.
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'
# Its older code generator compiles in half of the time, and rounds otherwise from program to
# program: `make test` asks for it but for the laws, which hold bit for bit as everybody compiles.
# Modules split for as many threads as there are cores cost what the workers have other use for.
# A flag that another version does not know would end every process.
_KNOWN = importlib.metadata.version('jaxlib').startswith('0.10.')
if os.environ.get('WMPOE_FAST_COMPILE') and _KNOWN:
  os.environ['XLA_FLAGS'] = ' '.join([
      os.environ.get('XLA_FLAGS', ''), '--xla_cpu_use_fusion_emitters=false',
      '--xla_cpu_parallel_codegen_split_count=1'])

# What one process has compiled no other compiles again, nor does a process for its second jit of
# the same program: pytest-xdist's workers and the processes that tests start inherit the folder,
# which goes with the process that made it. A folder named from outside is used, and kept.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  _compiled = tempfile.TemporaryDirectory(prefix='wmpoe-compiled-', ignore_cleanup_errors=True)
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _compiled.name
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'

# The same examples in every run, and no deadline: the first call of a jitted function compiles.
hypothesis.settings.register_profile('wmpoe', derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile('wmpoe')


def pytest_collection_finish():
  """Tracing makes garbage by the hundred thousand; what is imported by now is none of it."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(50_000, 20, 20)


@pytest.fixture
def simulator(monkeypatch):
  """Stands in for the simulator of Memory Maze: the same calls, without physics and rendering."""
  forgotten = _forget_simulator()
  monkeypatch.syspath_prepend(pathlib.Path(__file__).parent / 'fake_simulator')
  yield
  _forget_simulator()
  sys.modules.update(forgotten)


def _forget_simulator():
  names = [name for name in sys.modules if name.partition('.')[0] == 'memory_maze']
  return {name: sys.modules.pop(name) for name in names}
