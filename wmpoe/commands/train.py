"""Trains one expert: base, short_term or spatial (the long-term memory is written, not trained).

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
from wmpoe import zoo
from wmpoe.commands import common
from wmpoe.data import cards
from wmpoe.data import pipeline
from wmpoe.training import tasks
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


def make_task(description: dict[str, Any]) -> Any:
  """The training task a description names.

  Raises:
    ValueError: for an unknown expert, or one that lacks what it starts from.
  """
  kind = description['expert']
  dims = zoo.dimensions(description['env'])
  initial = None
  if description['init_from']:
    initial, card = zoo.load_expert(description['init_from'])
    if card['config']['env'] != description['env']:
      raise ValueError(
          f'init_from={description["init_from"]!r} was trained on {card["config"]["env"]}; this '
          f'run is for {description["env"]}.')
  objective = zoo.objective(description)
  if kind in ('base', 'short_term'):
    return tasks.DenoisingTask(
        model=zoo.model(description), objective=objective, initial=initial, **dims)
  if kind == 'spatial':
    return tasks.SpatialTask(
        model=zoo.spatial_model(description), objective=objective, initial=initial,
        empty_rate=description['empty_rate'], **dims)
  raise ValueError(f'Unknown expert {kind!r}; expected one of {", ".join(zoo.TRAINED)}.')


def make_batches(description: dict[str, Any], split: str, seed: int) -> Any:
  """The input pipeline of a run."""
  env = zoo.environment(description['env'])
  data, model = description['data'], description['model']
  clip = cards.RandomClip(
      env, model['context'], model['target'], history=data['history'],
      events_bias=data['events_bias'])
  return pipeline.make_pipeline(
      cards.CardsSource(env, split=split), transform=clip,
      batch_size=description['train']['batch_size'], seed=seed)


def _evaluator(task: Any, description: dict[str, Any]) -> Any:
  """Loss on held-out episodes: the same batches and keys at every call."""
  loss = jax.jit(task.loss)
  iterator = iter(make_batches(description, 'validation', seed=1))
  batches = [next(iterator) for _ in range(_EVAL_BATCHES)]

  def evaluate(params, step):
    del step
    losses = [
        loss(params, batch, jax.random.fold_in(jax.random.key(1), i))[0]
        for i, batch in enumerate(batches)]
    return {'validation_loss': float(np.mean(jax.device_get(losses)))}

  return evaluate


def run(flags: absl_flags.FlagValues) -> None:
  """Trains, and packages if asked."""
  config = common.config_of(flags)
  if not flags.workdir:
    raise ValueError('Give the folder of the run, for instance --workdir=runs/cards_base.')
  if flags.package and not flags.package.endswith('.npz'):
    raise ValueError(f'--package={flags.package} must be a file named *.npz.')
  description = common.plain(config)
  del description['compose']  # how experts are used is no part of how they are trained
  task = make_task(description)
  batches = iter(make_batches(description, 'train', seed=description['data']['seed']))
  evaluate = _evaluator(task, description)
  result = trainer.train(
      task, batches, flags.workdir, config=trainer.TrainConfig(**description['train']),
      eval_fn=evaluate, run_config={k: v for k, v in description.items() if k != 'train'})
  if flags.package and result.finished:
    card = packaged.save(flags.package, result.state.ema, {
        'config': description,
        'data': f'{description["env"]["name"]}, split train, made on the fly',
        'seed': description['train']['seed'],
        'steps': result.step,
        'command': (f'python -m wmpoe train --config=configs/{description["env"]["name"]}.py:'
                    f'{description["expert"]} --workdir={flags.workdir} '
                    f'--package={flags.package}'),
        'result': evaluate(result.state.ema, result.step),
        'licence': 'Apache-2.0',
    })
    print(f'wrote {flags.package} ({card["num_parameters"]:,} parameters); '
          f'next: python -m wmpoe info --expert={flags.package}')
