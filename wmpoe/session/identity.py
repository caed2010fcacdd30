"""What a memory needs to know about its model: which parts it is for, and how they are composed.

Parts are identified by a hash of their weights and of whatever else gives a memory its meaning,
such as a camera or the strength of an adapter. The composition is plain JSON: what has a name is
restored from it, everything else must be the same in the model.
"""

from collections.abc import Mapping
import dataclasses
import functools
import hashlib
import json
import math
from typing import Any

import jax
import numpy as np

from wmpoe import archive
from wmpoe import recipes
from wmpoe import world_model
from wmpoe.experts import composition

# Fields of which a memory's meaning does not depend: how it is written, how it is computed, and the
# composition, which is described by itself.
_UNTOLD = frozenset((
    'optimizer', 'writing', 'ridge', 'few', 'reading', 'implementation', 'remat', 'dtype', 'scan',
    'weight', 'level', 'parent', 'name'))


def path_of(keys: tuple[Any, ...]) -> str:
  """A leaf's path, '/'-joined."""
  return jax.tree_util.keystr(keys, simple=True, separator='/')


def leaves_of(tree: Any) -> dict[str, Any]:
  """The leaves of any pytree by their paths."""
  return {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def fingerprint(model: world_model.WorldModel) -> dict[str, str]:
  """The hash of each part of a model: 'base', 'latents' if there are any, and every memory.

  The hash covers parameters, all settings that change what a memory means, and the shapes of its
  state. It leaves out how memories are written and computed, weights of contrasts, rule and
  sampler.
  """
  known: dict[int, str] = {}  # parts share parameters: the base's serve its long-term memory, too

  def one(leaf: Any) -> str:
    if id(leaf) not in known:
      known[id(leaf)] = archive.digest_of({'': leaf})
    return known[id(leaf)]

  def of(tree: Any, state: Any = None) -> str:
    text = [json.dumps(_settings(tree), sort_keys=True)]
    text += [f'{path} {one(leaf)}' for path, leaf in sorted(leaves_of(tree).items())]
    text += [f'{path} {leaf.shape} {leaf.dtype}' for path, leaf in sorted(leaves_of(state).items())]
    return hashlib.sha256('\n'.join(text).encode()).hexdigest()

  parts = {'base': of(model.base)}
  if model.latents is not None:
    parts['latents'] = of(model.latents)
  for name, memory in model.memories.items():
    parts[name] = of(memory.replace(weight=0.0), jax.eval_shape(lambda m=memory: m.init(1)))
  return parts


def _settings(value: Any) -> Any:
  """Everything but arrays in a part of a model, as plain JSON that is the same in every process."""
  if dataclasses.is_dataclass(value):
    fields = (field.name for field in dataclasses.fields(value) if field.name not in _UNTOLD)
    return {'': type(value).__qualname__, **{n: _settings(getattr(value, n)) for n in fields}}
  if isinstance(value, Mapping):
    return {str(key): _settings(item) for key, item in value.items()}
  if isinstance(value, (tuple, list)):
    return [_settings(item) for item in value]
  if isinstance(value, functools.partial):
    return [_settings(part) for part in (value.func, value.args, value.keywords)]
  if isinstance(value, (np.ndarray, jax.Array)):
    return None  # hashed by itself
  return getattr(value, '__qualname__', None) or repr(value)


def check(parts: Mapping[str, str], expected: Mapping[str, str], *, where: str) -> None:
  """Checks that a model has all the parts a memory was written for.

  Args:
    parts: The model's fingerprint.
    expected: That of the memory.
    where: Where the memory comes from, for the message.

  Raises:
    ValueError: naming each part that is missing or differs.
  """
  wrong = [
      f'{name} (the memory is for {digest[:12]}, the model has '
      f'{parts[name][:12] if name in parts else "none"})'
      for name, digest in expected.items() if parts.get(name) != digest]
  if wrong:
    raise ValueError(
        f'{where} is the memory of another model. It differs in {"; ".join(wrong)}. Open it with '
        'the weights it was written with: a memory means nothing to others.')


def describe(model: world_model.WorldModel) -> dict[str, Any]:
  """How a model is composed and sampled, as plain JSON."""
  weight = lambda w: np.asarray(w, np.float32).astype(float).tolist()
  return {
      'experts': [*('base',) * model.with_base, *model.memories],
      'weights': {name: weight(memory.weight) for name, memory in model.memories.items()},
      'rule': _rule(model.rule),
      'levels': {name: _level(level) for name, level in model.levels if name in model.memories},
      'sampler': _sampler(model.sampler),
      'num_steps': model.num_steps, 'chunk': model.chunk, 'grid': model.grid,
      'corrector': None if model.corrector is None else repr(model.corrector),
      'follows': list(model.follows),
  }


def restore(
    model: world_model.WorldModel, described: Mapping[str, Any]
) -> world_model.WorldModel:
  """The model, composed and sampled as described.

  Raises:
    ValueError: if the description has something without a name, and the model differs in it.
  """
  own = describe(model)
  changes: dict[str, Any] = {
      'num_steps': described['num_steps'], 'chunk': described['chunk'], 'grid': described['grid'],
      'follows': tuple(described['follows'])}
  kept = {'rule': model.rule, 'sampler': model.sampler, 'corrector': model.corrector}
  for name, build in (
      ('rule', composition.rule_by_name), ('sampler', recipes.sampler), ('corrector', None)):
    if described[name] == own[name]:
      changes[name] = kept[name]
    elif build is None or (isinstance(described[name], str) and '(' in described[name]):
      raise ValueError(
          f'The memory was written with the {name} {described[name]}, which has no name to restore '
          f'it by; the model has {own[name]}. Give the model the same {name}.')
    else:
      changes[name] = build(described[name])
  weights = {
      n: w if isinstance(w, float) else np.asarray(w, np.float32)
      for n, w in described['weights'].items()}
  levels = dict(model.levels)
  for name, level in described['levels'].items():
    if level != own['levels'].get(name):
      if isinstance(level, str):
        raise ValueError(f'The weight of {name} followed {level}; give the model the same levels.')
      levels[name] = composition.Interval(
          **{end: value for end, value in level.items() if value is not None})
  levels = {name: level for name, level in levels.items() if name in described['levels']}
  model = model.compose(*described['experts'], weights=weights, levels=levels)
  return dataclasses.replace(model, **changes)


def _rule(rule: Any) -> str:
  return next((n for n, known in composition.RULES.items() if known == rule), repr(rule) + '()')


def _level(level: Any) -> Any:
  if not isinstance(level, composition.Interval):
    return repr(level)
  return {end: None if math.isinf(value) else value
          for end, value in dataclasses.asdict(level).items()}


def _sampler(sampler: Any) -> Any:
  names: dict[Any, str] = {known: name for name, known in recipes.SAMPLERS.items()}
  if type(sampler) not in names:
    return repr(sampler) + '()'
  return {'name': names[type(sampler)], **dataclasses.asdict(sampler)}
