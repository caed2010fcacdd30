"""Kills a training again and again; it must end with the bits of one that was left alone.

  python benchmarks/kill_resume.py           writes benchmarks/results/kill_resume.json
  python benchmarks/kill_resume.py --kills=2 --steps=12 --out=/tmp/kill_resume.json   to see it work

A tiny training of Memory Cards runs once undisturbed and once with `--kills` interruptions: at a
random moment within a random step a random process gets SIGKILL, the pod has to end by itself, and
the same command is given again, which has to go on from the last checkpoint. Then parameters,
average, optimiser, position in the data and every logged loss are compared bit for bit. Both as one
process and as a pod of two (launch/local_pod.sh). With `--signals KILL TERM` every second signal is
the one that announces a preemption: all processes have to save the step they are at, and say that
the same command goes on. Needs Linux: it finds processes in /proc.

  python tests/fake_object_store.py -- python benchmarks/kill_resume.py --where=gs://wmpoe \
      --processes 2 --signals KILL TERM --kills=2 --steps=36 \
      --out=benchmarks/results/kill_resume_gs_pod.json

The run that is killed is then in an object store, here one on this machine, the undisturbed one is
still on disk.
"""

import argparse
from collections.abc import Iterator
import contextlib
import dataclasses
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

from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp

from wmpoe import roll_call
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


@dataclasses.dataclass(frozen=True)
class Run:
  """A training: where it is, the file of its output, processes, steps."""

  workdir: epath.Path
  log: pathlib.Path
  processes: int
  steps: int

  @property
  def command(self) -> list[str]:
    """The command that starts the training, and continues it."""
    train = [sys.executable, '-m', 'wmpoe', 'train', *_TINY, f'--config.train.steps={self.steps}',
             f'--workdir={self.workdir}']
    if self.processes == 1:
      return train
    return [str(_ROOT / 'launch' / 'local_pod.sh'), str(self.processes), '--', *train]


@contextlib.contextmanager
def started(run: Run) -> Iterator[subprocess.Popen]:
  """Runs a training with its output in a file, and ends all of it at the end."""
  environment = {**os.environ, 'PYTHONPATH': str(_ROOT), 'JAX_PLATFORMS': 'cpu',
                 # The time is compilation; every run here is compiled in the same way.
                 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
  with run.log.open('a') as file:
    running = subprocess.Popen(
        run.command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
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


def steps_of(run: Run) -> int:
  """The last step that was logged."""
  return max((row['step'] for row in metrics_log.read(run.workdir)), default=0)


def checkpoint_of(run: Run) -> int:
  """Step of the last complete checkpoint, 0 if there is none."""
  folder = whole_file.anywhere(run.workdir) / 'checkpoints'
  return max(ocp.utils.checkpoint_steps(folder) if folder.exists() else [], default=0)


def resumed_from(run: Run) -> list[int]:
  """The steps from which runs said they continue, in order."""
  return [int(step) for step in re.findall(
      r'continuing \S+ from step (\d+)', run.log.read_text())]


def interrupt(
    run: Run, rng: random.Random, *, until: int, sent: signal.Signals) -> dict[str, Any]:
  """Starts the training, signals a process once step `until` is logged, waits for the end.

  Raises:
    RuntimeError: if it ended before, or did not save when it was told that it will be preempted.
  """
  with started(run) as running:
    while steps_of(run) < until:
      if running.poll() is not None:
        raise RuntimeError(f'The training ended by itself ({running.returncode}):\n{_end(run)}')
      time.sleep(0.5 if whole_file.is_remote(run.workdir) else 0.005)
    index = rng.randrange(run.processes)
    time.sleep(rng.uniform(0.0, 0.3))
    victim = process_of(running, index, run.processes)
    begun = time.monotonic()
    os.kill(victim, sent)
    code = running.wait(timeout=600)
    seconds = round(time.monotonic() - begun, 3)
  after, saved = steps_of(run), checkpoint_of(run)
  if sent == signal.SIGTERM and (code, saved) != (roll_call.TRY_AGAIN, after):
    raise RuntimeError(f'Preempted after step {after}, it saved {saved} and exited with {code}.')
  return {'signal': sent.name, 'process': index, 'after_step': after, 'checkpoint': saved,
          'exit_code': code, 'seconds_until_all_ended': seconds}


def finish(run: Run) -> None:
  """Runs the training to its end.

  Raises:
    RuntimeError: if it fails.
  """
  with started(run) as running:
    if running.wait():
      raise RuntimeError(f'{" ".join(run.command)} failed:\n{_end(run)}')


def _end(run: Run) -> str:
  return run.log.read_text()[-3000:]


def fingerprint(run: Run) -> dict[str, str]:
  """Hashes of everything a run leaves: arrays with their names, types and shapes; data; losses."""
  checkpoint = whole_file.anywhere(run.workdir) / 'checkpoints' / str(run.steps)
  found = {}
  with ocp.CheckpointManager(
      checkpoint.parent, options=ocp.CheckpointManagerOptions(read_only=True),
      item_handlers={item: ocp.StandardCheckpointHandler() for item in _ARRAYS}) as reader:
    shapes = reader.item_metadata(run.steps)
    trees = reader.restore(run.steps, args=ocp.args.Composite(**{
        item: ocp.args.StandardRestore(jax.tree.map(_on_one_device, shapes[item]))
        for item in _ARRAYS}))
  for item, tree in trees.items():
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
      array = np.asarray(leaf)
      digest.update(f'{jax.tree_util.keystr(path)} {array.dtype} {array.shape}'.encode())
      digest.update(array.tobytes())
    found[item] = digest.hexdigest()
  # The file beside it names the folder it was written to.
  found['data'] = hashlib.sha256((checkpoint / 'data' / 'metadata').read_bytes()).hexdigest()
  rows = [{k: v for k, v in row.items() if k not in _TIMES}
          for row in metrics_log.read(run.workdir)]
  found['metrics'] = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
  return found


def _on_one_device(leaf: Any) -> jax.ShapeDtypeStruct:
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)


def study(
    folder: pathlib.Path, where: epath.Path, *, processes: int, kills: int,
    signals: list[signal.Signals], steps: int, seed: int,
) -> dict[str, Any]:
  """One undisturbed training, in `folder`, and one that is interrupted, in `where`, compared."""
  rng = random.Random(seed)
  calm, disturbed = (
      Run(place / f'{name}_{processes}', folder / f'{name}_{processes}.log', processes, steps)
      for place, name in ((epath.Path(folder), 'calm'), (where, 'disturbed')))
  finish(calm)
  done: list[dict[str, Any]] = []
  while len(done) < kills:
    # From where it will go on, at most so far that all kills find their place before the end.
    until = steps_of(disturbed) + rng.randint(1, max(1, steps // (kills + 1)))
    if until >= steps:
      break
    sent = signals[len(done) % len(signals)]
    done.append(interrupt(disturbed, rng, until=until, sent=sent))
    print(f'{processes} process(es), kill {len(done)}: {done[-1]}', flush=True)
  finish(disturbed)
  expected, found = fingerprint(calm), fingerprint(disturbed)
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
  parser.add_argument('--kills', type=int, default=20, help='signals to each training')
  parser.add_argument('--signals', nargs='+', choices=['KILL', 'TERM'], default=['KILL'],
                      help='what is sent, by turns')
  parser.add_argument('--steps', type=int, default=126, help='steps of each training')
  parser.add_argument('--processes', type=int, nargs='+', default=[1, 2], help='sizes of the pod')
  parser.add_argument('--seed', type=int, default=0, help='of steps, moments and processes')
  parser.add_argument('--where', help='folder of the runs that are killed; else beside the others')
  parser.add_argument('--out', type=pathlib.Path, default=_RESULTS)
  options = parser.parse_args(argv)
  begun = time.monotonic()
  with tempfile.TemporaryDirectory() as folder:
    runs = [study(pathlib.Path(folder), epath.Path(options.where or folder), processes=n,
                  kills=options.kills, signals=[signal.Signals[f'SIG{s}'] for s in options.signals],
                  steps=options.steps, seed=options.seed)
            for n in options.processes]
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
