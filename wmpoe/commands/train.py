"""Trains one expert or baseline (the long-term memory is written, not trained).

  python -m wmpoe train --config=configs/cards.py:base --workdir=runs/cards_base

The same command continues a run that was stopped or killed, bit for bit. With --package the
averaged weights are written to a single file with a card when the run is finished.
"""

from collections.abc import Sequence
from typing import Any

from absl import flags as absl_flags
import jax
import numpy as np

from wmpoe import packaged
from wmpoe.commands import common
from wmpoe.commands import own_data
from wmpoe.commands import runs
from wmpoe.training import metrics_log
from wmpoe.training import trainer

_EVAL_BATCHES = 8


def define(flags: absl_flags.FlagValues, argv: Sequence[str]) -> None:
  """Adds the flags of `train`."""
  common.define_config(flags, argv)
  absl_flags.DEFINE_string(
      'workdir', None, 'Folder of the run: checkpoints, metrics.jsonl, config.json.',
      flag_values=flags)
  absl_flags.DEFINE_string(
      'package', None, 'File (*.npz) to write the finished expert to.', flag_values=flags)


def _evaluator(task: Any, description: dict[str, Any]) -> Any:
  """Loss on held-out episodes: the same batches and keys at every call."""
  loss = jax.jit(task.loss)
  iterator = iter(runs.make_batches(description, 'validation', seed=1))
  batches = [next(iterator) for _ in range(_EVAL_BATCHES)]

  def evaluate(params, step):
    del step
    measured = jax.device_get([
        loss(params, batch, jax.random.fold_in(jax.random.key(1), i))
        for i, batch in enumerate(batches)])
    values = {'validation_loss': float(np.mean([value for value, _ in measured]))}
    if 'mse' in measured[0][1]:
      mse = np.mean([metrics['mse'] for _, metrics in measured])
      values['validation_psnr'] = float(-10 * np.log10(mse))
    return values

  return evaluate


def _flops(task: Any, params: Any, batches: Any, steps: int) -> float | None:
  """Floating-point operations of so many losses and gradients, as XLA counts them; None if not.

  It counts a loop's body once: of a state-space model's recurrence, a hundredth of it, the most is
  missing where that is sequential.
  """
  step = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
  counted = step.lower(params, next(batches), jax.random.key(0)).cost_analysis()
  return None if counted is None else steps * counted['flops']


def run(flags: absl_flags.FlagValues) -> None:
  """Trains, and packages if asked."""
  config = common.config_of(flags)
  if not flags.workdir:
    raise ValueError('Give the folder of the run, for instance --workdir=runs/cards_base.')
  if flags.package and not flags.package.endswith('.npz'):
    raise ValueError(f'--package={flags.package} must be a file named *.npz.')
  description = common.plain(config)
  for use in ('compose', 'protocol', 'camera'):  # how experts are used, not how they are trained
    description.pop(use, None)
  own_data.fit(description, description['data'].get('folder'))
  runs.pin_encoder(description)
  task = runs.make_task(description)
  batches = iter(runs.make_batches(description, 'train', seed=description['data']['seed']))
  evaluate = _evaluator(task, description)
  result = trainer.train(
      task, batches, flags.workdir, config=trainer.TrainConfig(**description['train']),
      eval_fn=evaluate, run_config={k: v for k, v in description.items() if k != 'train'})
  if flags.package and result.finished:
    params = runs.finished(description, result.state.ema)
    card = packaged.save(flags.package, params, {
        'config': description,
        'data': runs.data_of(description),
        'seed': description['train']['seed'],
        'steps': result.step,
        'train_seconds': metrics_log.read(flags.workdir)[-1]['seconds'],
        'train_flops': _flops(task, result.state.ema, batches, result.step),
        'command': (f'python -m wmpoe train --config=configs/{description["env"]["name"]}.py:'
                    f'{description.get("variant", description["expert"])} '
                    f'--workdir={flags.workdir} --package={flags.package}'),
        'result': evaluate(result.state.ema, result.step),
        'licence': 'Apache-2.0',
    })
    print(f'wrote {flags.package} ({card["num_parameters"]:,} parameters); '
          f'next: python -m wmpoe info --expert={flags.package}')
