"""Malformed messages to the page, and malformed episodes and tables: nothing may come of them.

  python benchmarks/malformed.py           10,000 of each, writes results/malformed.json
  python benchmarks/malformed.py --count=300

Runs what the tests run, with larger numbers: no crash, no traceback, every message of the kind that
can be answered is, nothing is written outside of the output folder. Stops at the first that fails.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

_ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(_ROOT))

from tests.data import malformed  # noqa: E402 - tests are no package that is installed
from wmpoe import whole_file  # noqa: E402
from wmpoe.evaluation import results  # noqa: E402

_RESULTS = pathlib.Path(__file__).parent / 'results' / 'malformed.json'


def messages(count: int) -> dict[str, float]:
  """Sends as many to a page that is served for real."""
  begun = time.monotonic()
  subprocess.run(
      [sys.executable, '-m', 'pytest', '-q', 'tests/play/server_test.py', '-k', 'malformed'],
      cwd=_ROOT, env={**os.environ, 'WMPOE_FUZZ': str(count)}, check=True)
  return {'sent': count, 'seconds': time.monotonic() - begun}


def files(check, count: int) -> dict[str, float]:
  """Has the `data` commands read as many."""
  begun = time.monotonic()
  with tempfile.TemporaryDirectory() as folder:
    refused = check(pathlib.Path(folder), count)
  return {'read': count, 'refused_by_name': refused, 'seconds': time.monotonic() - begun}


def main(argv: list[str] | None = None) -> None:
  """Does all three, prints and writes what came of it."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--count', type=int, default=10_000, help='of each kind')
  parser.add_argument('--out', type=pathlib.Path, default=_RESULTS, help='file to write')
  options = parser.parse_args(argv)
  begun, out = time.monotonic(), {}
  for name, measure in (
      ('messages', lambda: messages(options.count)),
      ('episodes', lambda: files(malformed.check_episodes, options.count)),
      ('tables', lambda: files(malformed.check_tables, options.count // 10))):
    out[name] = measure()
    print(name, out[name], flush=True)
  out['meta'] = results.meta(
      f'python benchmarks/malformed.py --count={options.count}', {}, seeds=[0],
      seconds=time.monotonic() - begun)
  whole_file.write(options.out, json.dumps(out, indent=2).encode())
  print(f'wrote {options.out}')


if __name__ == '__main__':
  main()
