"""How experts are sampled, trained and written: samplers, optimisers, objectives, long-term memory.

See `zoo` for the experts themselves.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax
import optax

from wmpoe.diffusion import samplers
from wmpoe.experts import base as base_lib
from wmpoe.experts import key_frames
from wmpoe.experts import long_term as long_term_lib
from wmpoe.experts import objective as objective_lib
from wmpoe.experts import place_field
from wmpoe.experts import writing as writing_lib
from wmpoe.networks import lora as lora_lib

Description = Mapping[str, Any]

SAMPLERS = {
    'ddim': samplers.DDIM,
    'ddpm': samplers.DDPM,
    'heun': samplers.Heun,
    'dpm_solver_2m': samplers.DPMSolver2M,
}
_OPTIMIZERS = {'adam': optax.adam, 'adamw': optax.adamw, 'sgd': optax.sgd, 'lion': optax.lion}


def named(kind: str, table: Mapping[str, Any], description: Description) -> Any:
  """Builds `table[name](**rest)` of a description `{'name': name, **rest}`.

  Raises:
    ValueError: if the name is unknown.
  """
  options = dict(description)
  name = options.pop('name')
  if name not in table:
    raise ValueError(f'Unknown {kind} {name!r}; expected one of {", ".join(table)}.')
  return table[name](**options)


def sampler(description: Description) -> samplers.Sampler:
  """A sampler; `{'name': 'ddim', 'eta': 0.0}`."""
  return named('sampler', SAMPLERS, description)


def optimizer(description: Description) -> optax.GradientTransformation:
  """An optax optimiser of the inner loop; `{'name': 'adam', 'learning_rate': 1e-3}`.

  With 'halving_steps': h the rate at step n is `learning_rate / (1 + n / h)`, which needs no known
  end, so that writing can go on for as long as the episode does. Equal descriptions give the same
  object: it is a static part of long-term memories, and another one would compile them anew.
  """
  return _optimizer(tuple(sorted(description.items())))


@functools.cache
def _optimizer(description: tuple[tuple[str, Any], ...]) -> optax.GradientTransformation:
  options = dict(description)
  halving = options.pop('halving_steps', 0)
  if halving:
    rate = options['learning_rate']
    options['learning_rate'] = lambda step: rate / (1.0 + step / halving)
  return named('optimizer', _OPTIMIZERS, options)


def objective(description: Description) -> objective_lib.Objective:
  """A training objective; reads 'objective'."""
  return objective_lib.Objective(**description['objective'])


def writing(description: Description) -> writing_lib.Writing:
  """How a history is written; reads 'writing' but for its optimiser."""
  options = {k: v for k, v in description['writing'].items() if k != 'optimizer'}
  inner = objective_lib.Objective(**options.pop('objective'))
  return writing_lib.Writing(objective=inner, **options)


def lora_spec(description: Description) -> lora_lib.LoraSpec:
  """Rank, scale and targets; reads 'lora'."""
  options = dict(description['lora'])
  return lora_lib.LoraSpec(**{**options, 'targets': tuple(options['targets'])})


def long_term(
    description: Description, base: base_lib.Base, spatial: key_frames.Posed | None = None, *,
    action_dim: int, pose_dim: int,
) -> long_term_lib.LongTerm:
  """The long-term memory of a base; reads 'lora', 'writing', 'baseline', 'reading', 'regression'.

  Nothing of it is trained beforehand: it is the base's own weights and a way of writing them.

  Args:
    description: The entries named above. Of 'regression', 'steps' are the inner steps after it, in
      place of those of 'writing', the others are those of `place_field.Regression`; an empty one or
      None trains the field.
    base: The base.
    spatial: The spatial memory that is one network with the base. Without it there is nothing to
      regress on, and the field is trained.
    action_dim: A.
    pose_dim: P.
  """
  how, spec, regression = writing(description), lora_spec(description), None
  options = dict(description.get('regression') or {})
  if options and spatial is not None:
    how = dataclasses.replace(how, steps=options.pop('steps'))
    views = tuple(tuple(view) for view in options.pop('views'))
    regression = place_field.Regression(
        params={'encoder': spatial.params['encoder'], 'map_embed': base.params['map_embed']},
        model=spatial.model, rank=spec.rank, views=views, **options)
  return long_term_lib.create(
      jax.random.key(0), base.model, base.params, action_dim=action_dim, pose_dim=pose_dim,
      spec=spec, optimizer=optimizer(description['writing']['optimizer']), writing=how,
      regression=regression, baseline=description['baseline'], reading=description['reading'])
