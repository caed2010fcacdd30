"""Kills a training again and again; it must end with the bits of one that was left alone.

  python benchmarks/kill_resume.py           writes benchmarks/results/kill_resume.json
  python benchmarks/kill_resume.py --kills=2 --steps=12 --out=/tmp/kill_resume.json   to see it work

A tiny training of Memory Cards runs once undisturbed and once with `--kills` interruptions: at a
random moment within a random step a random process gets SIGKILL, the pod has to end by itself, and
the same command is given again, which has to go on from the last checkpoint. Then parameters,
average, optimiser, position in the data and every logged loss are compared bit for bit. Both as one
process and as a pod of two (launch/local_pod.sh). Needs Linux: it finds processes in /proc.
"""

import argparse
from collections.abc import Iterator
import contextlib
import hashlib
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from wmpoe import whole_file
from wmpoe.evaluation import results
from wmpoe.training import metrics_log

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_RESULTS = _ROOT / 'benchmarks' / 'results' / 'kill_resume.json'
_ARRAYS = ('params', 'ema', 'optimizer')
_TINY = [
    f'--config={_ROOT / "configs" / "cards.py"}:base',
    *(f'--config.{name}' for name in (
        'env.size=16', 'env.grid=2', 'env.symbols=4', 'model.width=16', 'model.depth=1',
        'model.heads=1', 'train.batch_size=4', 'train.log_every=1', 'train.checkpoint_every=3',
        'train.warmup_steps=1')),
]
# What a row of metrics.jsonl says about time differs between any two runs.
_TIMES = ('seconds', 'steps_per_second')


def command(workdir: pathlib.Path, *, processes: int, steps: int) -> list[str]:
  """The command that starts the training, and continues it."""
  train = [sys.executable, '-m', 'wmpoe', 'train', *_TINY, f'--config.train.steps={steps}',
           f'--workdir={workdir}']
  if processes == 1:
    return train
  return [str(_ROOT / 'launch' / 'local_pod.sh'), str(processes), '--', *train]


@contextlib.contextmanager
def started(arguments: list[str], log: pathlib.Path) -> Iterator[subprocess.Popen]:
  """Runs a command with its output in a file, and ends all of it at the end."""
  environment = {**os.environ, 'PYTHONPATH': str(_ROOT), 'JAX_PLATFORMS': 'cpu',
                 # The time is compilation; every run here is compiled in the same way.
                 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
  with log.open('a') as file:
    running = subprocess.Popen(
        arguments, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
    try:
      yield running
    finally:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(running.pid, signal.SIGKILL)
      running.wait()


def process_of(running: subprocess.Popen, index: int, processes: int) -> int:
  """The id of one process of the pod."""
  if processes == 1:
    return running.pid
  wanted = f'WMPOE_PROCESS_ID={index}'.encode()
  children = pathlib.Path(f'/proc/{running.pid}/task/{running.pid}/children').read_text().split()
  for child in children:
    with contextlib.suppress(OSError):
      if wanted in pathlib.Path(f'/proc/{child}/environ').read_bytes().split(b'\0'):
        return int(child)
  raise RuntimeError(f'local_pod.sh has no process {index} among {children}.')


def steps_of(workdir: pathlib.Path) -> int:
  """The last step that was logged."""
  return max((row['step'] for row in metrics_log.read(workdir)), default=0)


def checkpoint_of(workdir: pathlib.Path) -> int:
  """Step of the last complete checkpoint, 0 if there is none."""
  folder = workdir / 'checkpoints'
  names = [path.name for path in folder.iterdir()] if folder.exists() else []
  return max((int(name) for name in names if name.isdigit()), default=0)


def resumed_from(workdir: pathlib.Path) -> list[int]:
  """The steps from which runs said they continue, in order."""
  return [int(step) for step in re.findall(
      r'continuing \S+ from step (\d+)', workdir.with_suffix('.log').read_text())]


def kill_once(
    arguments: list[str], workdir: pathlib.Path, rng: random.Random, *, processes: int, until: int
) -> dict[str, Any]:
  """Starts the training, kills a process once step `until` is logged, waits for the end."""
  log = workdir.with_suffix('.log')
  with started(arguments, log) as running:
    while steps_of(workdir) < until:
      if running.poll() is not None:
        raise RuntimeError(f'The training ended by itself ({running.returncode}); see {log}.')
      time.sleep(0.005)
    index = rng.randrange(processes)
    time.sleep(rng.uniform(0.0, 0.3))
    victim = process_of(running, index, processes)
    begun = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    code = running.wait(timeout=600)
    return {'process': index, 'after_step': steps_of(workdir),
            'checkpoint': checkpoint_of(workdir), 'exit_code': code,
            'seconds_until_all_ended': round(time.monotonic() - begun, 3)}


def finish(arguments: list[str], workdir: pathlib.Path) -> None:
  """Runs the training to its end.

  Raises:
    RuntimeError: if it fails.
  """
  log = workdir.with_suffix('.log')
  with started(arguments, log) as running:
    if running.wait():
      raise RuntimeError(f'{" ".join(arguments)} failed:\n{log.read_text()[-3000:]}')


def fingerprint(workdir: pathlib.Path, steps: int) -> dict[str, str]:
  """Hashes of everything a run leaves: arrays with their names, types and shapes; data; losses."""
  checkpoint = workdir / 'checkpoints' / str(steps)
  found = {}
  for item in _ARRAYS:
    with ocp.StandardCheckpointer() as reader:
      shapes = reader.metadata(checkpoint / item).item_metadata
      tree = reader.restore(checkpoint / item, jax.tree.map(_on_one_device, shapes.tree))
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
      array = np.asarray(leaf)
      digest.update(f'{jax.tree_util.keystr(path)} {array.dtype} {array.shape}'.encode())
      digest.update(array.tobytes())
    found[item] = digest.hexdigest()
  # The file beside it names the folder it was written to.
  found['data'] = hashlib.sha256((checkpoint / 'data' / 'metadata').read_bytes()).hexdigest()
  rows = [{k: v for k, v in row.items() if k not in _TIMES} for row in metrics_log.read(workdir)]
  found['metrics'] = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
  return found


def _on_one_device(leaf: Any) -> jax.ShapeDtypeStruct:
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)


def study(folder: pathlib.Path, *, processes: int, kills: int, steps: int, seed: int) -> dict:
  """One undisturbed training and one that is killed, compared."""
  rng = random.Random(seed)
  calm, disturbed = folder / f'calm_{processes}', folder / f'disturbed_{processes}'
  finish(command(calm, processes=processes, steps=steps), calm)
  arguments = command(disturbed, processes=processes, steps=steps)
  done: list[dict[str, Any]] = []
  while len(done) < kills:
    # From where it will go on, at most so far that all kills find their place before the end.
    until = steps_of(disturbed) + rng.randint(1, max(1, steps // (kills + 1)))
    if until >= steps:
      break
    done.append(kill_once(arguments, disturbed, rng, processes=processes, until=until))
    print(f'{processes} process(es), kill {len(done)}: {done[-1]}', flush=True)
  finish(arguments, disturbed)
  expected, found = fingerprint(calm, steps), fingerprint(disturbed, steps)
  same = {name: found[name] == expected[name] for name in expected}
  resumed = resumed_from(disturbed)
  if resumed != [kill['checkpoint'] for kill in done if kill['checkpoint']]:
    raise RuntimeError(f'Continued from {resumed}, not from the checkpoints there were: {done}.')
  print(f'{processes} process(es), {len(done)} kills: bit-identical {same}')
  return {'processes': processes, 'steps': steps, 'kills': done, 'resumed_from': resumed,
          'bit_identical': same, 'sha256': expected}


def main(argv: list[str] | None = None) -> None:
  """Runs the study and writes its result.

  Raises:
    SystemExit: with 1 if anything differs.
  """
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--kills', type=int, default=20, help='SIGKILLs of each training')
  parser.add_argument('--steps', type=int, default=126, help='steps of each training')
  parser.add_argument('--processes', type=int, nargs='+', default=[1, 2], help='sizes of the pod')
  parser.add_argument('--seed', type=int, default=0, help='of steps, moments and processes')
  parser.add_argument('--out', type=pathlib.Path, default=_RESULTS)
  options = parser.parse_args(argv)
  begun = time.monotonic()
  with tempfile.TemporaryDirectory() as folder:
    runs = [study(pathlib.Path(folder), processes=n, kills=options.kills, steps=options.steps,
                  seed=options.seed) for n in options.processes]
  called = ' '.join(['python benchmarks/kill_resume.py', *(sys.argv[1:] if argv is None else argv)])
  out = {
      'meta': results.meta(called, [flag.replace(f'{_ROOT}/', '') for flag in _TINY],
                           seeds=[options.seed], seconds=time.monotonic() - begun),
      'runs': runs,
  }
  whole_file.write(options.out, json.dumps(out, indent=2).encode())
  print(f'wrote {options.out}')
  if not all(all(run['bit_identical'].values()) for run in runs):
    sys.exit('Something differs: see bit_identical in the result.')


if __name__ == '__main__':
  main()
