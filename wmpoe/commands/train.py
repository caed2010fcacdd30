"""Trains one expert or baseline (the long-term memory is written, not trained).

  python -m wmpoe train --config=configs/cards.py:base --workdir=runs/cards_base

The same command continues a run that was stopped or killed, bit for bit. With --package the
averaged weights are written to a single file with a card when the run is finished.
With --mesh several devices share the work; a run can resume on other devices. On several hosts,
every process runs the same command, with --distributed (docs/pods.md).
"""

from collections.abc import Sequence
import sys
from typing import Any

from absl import flags as absl_flags
import jax
import numpy as np

from wmpoe import multihost
from wmpoe import packaged
from wmpoe import roll_call
from wmpoe import sharding
from wmpoe import whole_file
from wmpoe.commands import common
from wmpoe.commands import own_data
from wmpoe.commands import runs
from wmpoe.training import metrics_log
from wmpoe.training import trainer

_EVAL_BATCHES = 8


def define(flags: absl_flags.FlagValues, argv: Sequence[str]) -> None:
  """Adds the flags of `train`."""
  common.define_config(flags, argv)
  common.define_distributed(flags)
  common.define_mesh(flags)
  absl_flags.DEFINE_string(
      'workdir', None, 'Folder of the run: checkpoints, metrics.jsonl, config.json.',
      flag_values=flags)
  absl_flags.DEFINE_string(
      'package', None, 'File (*.npz) to write the finished expert to.', flag_values=flags)
  absl_flags.DEFINE_boolean(
      'strict', False, 'Stop at the first bad episode; otherwise name and skip it.',
      flag_values=flags)


def _evaluator(
    task: Any, description: dict[str, Any], mesh: jax.sharding.Mesh, rows: Sequence[int],
    strict: bool,
) -> Any:
  """Loss on held-out episodes: the same batches and keys at every call."""
  layout = sharding.shardings(mesh, jax.eval_shape(task.init, jax.random.key(0)))
  whole = sharding.whole_at_use(task.loss, layout)
  loss = jax.jit(
      lambda params, batch, i: whole(params, batch, jax.random.fold_in(jax.random.key(1), i)),
      out_shardings=sharding.replicated(mesh))
  iterator = iter(runs.make_batches(description, 'validation', seed=1, rows=rows, strict=strict))
  size = description['train']['batch_size']
  batches = [sharding.global_batch(mesh, next(iterator), size) for _ in range(_EVAL_BATCHES)]

  def evaluate(params, step):
    del step
    measured = jax.device_get([loss(params, batch, i) for i, batch in enumerate(batches)])
    values = {'validation_loss': float(np.mean([value for value, _ in measured]))}
    if 'mse' in measured[0][1]:
      mse = np.mean([metrics['mse'] for _, metrics in measured])
      values['validation_psnr'] = float(-10 * np.log10(mse))
    return values

  return evaluate


def _flops(loss: Any, params: Any, batch: Any, batch_size: int) -> float | None:
  """Floating-point operations of a step's loss and gradient; None if XLA does not count them.

  XLA counts a loop's body once: where a state-space model's recurrence, a hundredth of the model,
  runs sequentially, most of the recurrence is missing.
  """
  shape = lambda leaf, size=(): jax.ShapeDtypeStruct((*size, *leaf.shape[len(size):]), leaf.dtype)
  step = jax.jit(jax.value_and_grad(loss, has_aux=True))
  lowered = step.lower(
      jax.tree.map(shape, params), jax.tree.map(lambda x: shape(x, (batch_size,)), batch),
      jax.random.key(0))
  cost = lowered.cost_analysis()
  return None if cost is None else cost['flops']


def run(flags: absl_flags.FlagValues) -> int:
  """Trains, and packages if asked; returns 75 if a signal ended it before its last step."""
  config = common.config_of(flags)
  if not flags.workdir:
    raise ValueError('Give the folder of the run, for instance --workdir=runs/cards_base.')
  if flags.package and not flags.package.endswith('.npz'):
    raise ValueError(f'--package={flags.package} must be a file named *.npz.')
  if flags.package:
    whole_file.local(flags.package)  # said now, not when all is trained
  description = common.plain(config)
  if 'data' not in description:
    raise ValueError(
        'This configuration describes a world, not something to train: name a variant, for '
        'instance --config=configs/memory_maze.py:cpu_spatial.')
  steps, size = (description['train'][name] for name in ('steps', 'batch_size'))
  print(f'training {description["expert"]} of {description["env"]["name"]}: {steps:,} steps with '
        f'batch size {size}, in {flags.workdir}', file=sys.stderr)
  for use in ('compose', 'protocol', 'camera'):  # how experts are used, not how they are trained
    description.pop(use, None)
  own_data.fit(description, description['data'].get('folder'))
  runs.pin_networks(description)
  mesh = common.mesh_of(flags)
  runs.check_mesh(mesh, description)
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # which a custom kernel asks for
    return _train(flags, description, mesh)


def _train(
    flags: absl_flags.FlagValues, description: dict[str, Any], mesh: jax.sharding.Mesh) -> int:
  task, options = runs.make_task(description), trainer.TrainConfig(**description['train'])
  rows = sharding.batch_rows(mesh, description['train']['batch_size'])
  batches = iter(runs.make_batches(
      description, 'train', seed=description['data']['seed'], rows=rows, strict=flags.strict))
  evaluate = _evaluator(task, description, mesh, rows, flags.strict)
  result = trainer.train(
      task, batches, flags.workdir, config=options, mesh=mesh, eval_fn=evaluate,
      run_config={k: v for k, v in description.items() if k != 'train'})
  if flags.package and result.finished:
    # What is spread over the pod needs every process; one of them writes.
    measured = evaluate(result.state.ema, result.step)
    params = sharding.gathered(mesh, result.state.ema)
    if multihost.is_main():
      flops = _flops(
          trainer.loss_of(task, options), params, next(batches),
          description['train']['batch_size'])
      params = runs.finished(description, params)
      _package(flags, description, params, result.step, flops, measured)
  return roll_call.TRY_AGAIN if result.reason == 'signal' else 0


def _package(
    flags: absl_flags.FlagValues, description: dict[str, Any], params: Any, steps: int,
    flops: float | None, measured: dict[str, float],
) -> None:
  """Writes the finished expert to a file and says so."""
  card = packaged.save(flags.package, params, {
      'config': description,
      'data': runs.data_of(description),
      'seed': description['train']['seed'],
      'steps': steps,
      'train_seconds': metrics_log.read(flags.workdir)[-1]['seconds'],
      'train_flops': None if flops is None else steps * flops,
      'command': common.command_line(),
      'result': measured,
      'licence': 'Apache-2.0',
  })
  print(f'wrote {flags.package} ({card["num_parameters"]:,} parameters); '
        f'next: python -m wmpoe info --expert={flags.package}')
