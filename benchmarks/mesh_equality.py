"""Trains the same run on one device, on meshes of eight and on pods; every loss must be the same.

  python benchmarks/mesh_equality.py             writes benchmarks/results/mesh_equality.json
  python benchmarks/mesh_equality.py --steps=5 --out=/tmp/mesh_equality.json   to see it work

`python -m wmpoe train` itself, with the library's DiT (two blocks of 64 channels, Memory Cards of
16x16) for 50 steps: alone, on eight devices that XLA makes up, split as every axis of the mesh can
be, and as two and four processes (launch/local_pod.sh). The batches are the same ones, as is their
order; sums are rounded in another order. Says by how much losses and trained parameters differ, and
fails where that is more than rounding makes in so many steps.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

from wmpoe import whole_file
from wmpoe.evaluation import results
from wmpoe.training import metrics_log

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_RESULTS = _ROOT / 'benchmarks' / 'results' / 'mesh_equality.json'
# Name: axes, devices a process has, processes.
_RUNS = {
    'one device': ('', 1, 1),
    'data=8': ('data=8', 8, 1), 'fsdp=8': ('fsdp=8', 8, 1), 'tensor=2': ('tensor=2', 2, 1),
    'data=4,fsdp=2': ('data=4,fsdp=2', 8, 1), 'data=4,tensor=2': ('data=4,tensor=2', 8, 1),
    'data=2,fsdp=2,tensor=2': ('data=2,fsdp=2,tensor=2', 8, 1),
    '2 processes': ('data=2', 1, 2), '4 processes, fsdp=2': ('data=2,fsdp=2', 1, 4),
}
_RUN = [
    f'--config={_ROOT / "configs" / "cards.py"}:base',
    *(f'--config.{name}' for name in (
        'env.size=16', 'env.grid=2', 'env.symbols=4', 'model.width=64', 'model.depth=2',
        'model.heads=2', 'train.batch_size=8', 'train.log_every=1', 'train.checkpoint_every=1000',
        'train.warmup_steps=10')),
]
TOLERANCE = 1e-3  # of the losses, relative


def losses(folder: pathlib.Path, axes: str, devices: int, processes: int, steps: int
           ) -> tuple[np.ndarray, np.ndarray]:
  """Trains; gives the loss of every step, and all averaged parameters as one vector."""
  folder.mkdir()
  train = [sys.executable, '-m', 'wmpoe', 'train', *_RUN, f'--config.train.steps={steps}',
           f'--workdir={folder / "run"}', *[f'--mesh={axes}'] * bool(axes)]
  if processes > 1:
    train = [str(_ROOT / 'launch' / 'local_pod.sh'), str(processes), '--', *train]
  flags = f'--xla_force_host_platform_device_count={devices}'
  done = subprocess.run(
      train, cwd=_ROOT, env={**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
      capture_output=True, text=True, check=False)
  if done.returncode:
    raise RuntimeError(f'{" ".join(train)} ended with {done.returncode}:\n{done.stderr[-3000:]}')
  rows = [row for row in metrics_log.read(folder / 'run') if 'loss' in row]
  item = folder / 'run' / 'checkpoints' / str(steps) / 'ema'
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  with ocp.StandardCheckpointer() as reader:
    tree = reader.restore(item, jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
        reader.metadata(item).item_metadata.tree))
  return np.array([row['loss'] for row in rows]), np.concatenate(
      [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def main(argv: list[str] | None = None) -> int:
  """Trains every run, prints and writes how they differ; 1 if one does by more than rounding."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--steps', type=int, default=50)
  parser.add_argument('--only', nargs='*', default=[*_RUNS], choices=[*_RUNS], metavar='RUN')
  parser.add_argument('--out', type=pathlib.Path, default=_RESULTS, help='file to write')
  options = parser.parse_args(argv)
  begun, out = time.monotonic(), {}
  with tempfile.TemporaryDirectory() as root:
    for number, name in enumerate(dict.fromkeys(['one device', *options.only])):
      found = losses(pathlib.Path(root) / str(number), *_RUNS[name], options.steps)
      if not number:
        first = found
      (loss, params), (true, kept) = found, first
      assert len(loss) == len(true) == options.steps, (name, len(loss))
      out[name] = {
          'first_loss': float(loss[0]), 'last_loss': float(loss[-1]),
          'largest_relative_difference': float(np.max(np.abs(loss - true) / np.abs(true))),
          'parameters_relative_difference': float(
              np.linalg.norm(params - kept) / np.linalg.norm(kept))}
      print(f'{name:<24} loss {loss[0]:.6f} -> {loss[-1]:.6f}   differs by at most '
            f'{out[name]["largest_relative_difference"]:.1e}; parameters by '
            f'{out[name]["parameters_relative_difference"]:.1e}', flush=True)
  wrong = [n for n, x in out.items() if x['largest_relative_difference'] > TOLERANCE]
  whole_file.write(options.out, json.dumps({
      'runs': out, 'tolerance': TOLERANCE, 'meta': results.meta(
          f'python benchmarks/mesh_equality.py --steps={options.steps}', {}, seeds=[0],
          seconds=time.monotonic() - begun)}, indent=2).encode())
  print(f'wrote {options.out}' + (f'; NOT the same: {", ".join(wrong)}' if wrong else ''))
  return int(bool(wrong))


if __name__ == '__main__':
  sys.exit(main())
