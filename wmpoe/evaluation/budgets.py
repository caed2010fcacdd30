"""What it took to train all networks an arm uses: floating-point operations and minutes.

A network's runs are its own and those it was forked from, back to the first, as far as they taught
anything it uses; what several networks of an arm share counts once. The autoencoder, which all arms
share, is left out.
"""

from collections.abc import Iterable, Mapping
import re
from typing import Any

from flax import traverse_util
import jax

from wmpoe import zoo

# By the file of its weights, what a training run took; None where its card does not say.
Runs = dict[str, dict[str, float | None]]
_FACTS = ('train_flops', 'train_seconds')


def runs(path: str, *, alone: bool = False) -> Runs:
  """The training runs behind a file of weights, its own first.

  A file that it was forked from and that is not there took nobody knows how much.

  Args:
    path: File or packaged name.
    alone: Whether a network that reads a memory is used without: as the base.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is damaged.
  """
  card = zoo.card(path)
  used, found = _used(card['config'], alone), {}
  if used is None and card['config'].get('points'):
    found = runs(card['config']['points']['depth'])
  seen: list[str] = []
  while path and path not in seen:
    seen.append(path)
    if _taught(card['config'], used):
      found[path] = {fact: card.get(fact) for fact in _FACTS}
    path = card['config'].get('init_from')
    try:
      card = zoo.card(path) if path else card
    except FileNotFoundError:
      card = {'config': {}}
  return found


def _used(config: zoo.Description, alone: bool) -> list[str] | None:
  """Paths of the parameters a denoiser needs that reads no memory; None for all a file has."""
  if 'model' not in config or (config['expert'] == 'spatial' and not alone):
    return None
  blind = {**config, 'model': {**config['model'], 'map_dim': 0, 'refiner': 0}}
  return list(traverse_util.flatten_dict(jax.eval_shape(
      lambda key: zoo.model(blind).init(key, **zoo.dimensions(config['env'])),
      jax.random.key(0)), sep='/'))


def _taught(config: zoo.Description, used: list[str] | None) -> bool:
  """Whether a run taught any of the parameters that are used; they are a denoiser's."""
  learn = config.get('train', {}).get('learn')
  where = 'denoiser/' if config.get('expert') == 'spatial' else ''
  return used is None or not learn or any(re.search(learn, where + path) for path in used)


def metrics(used: Iterable[Runs], episodes: int) -> dict[str, dict[str, float]]:
  """The sums over all runs, each counted once, as metrics of an arm; none where one is not known.

  Args:
    used: The runs of each network the arm uses.
    episodes: The n of the arm's other metrics.
  """
  every: Runs = {}
  for one in used:
    every |= one
  out = {}
  for metric, fact, unit in (
      ('train_tflop', 'train_flops', 1e12), ('train_minutes', 'train_seconds', 60.0)):
    spent = [facts[fact] for facts in every.values()]
    if spent and all(x is not None for x in spent):
      total = sum(spent) / unit  # type: ignore[arg-type]
      out[metric] = {'mean': total, 'low': total, 'high': total, 'n': episodes}
  return out


def of_model(
    experts: Mapping[str, str], memories: Iterable[str], odometry: str = ''
) -> dict[str, Runs]:
  """The runs behind the base, each memory and, as 'odometry', what estimates poses.

  Args:
    experts: Files or packaged names by expert: 'base', 'short_term', 'spatial'; see `zoo.build`.
    memories: The model's.
    odometry: File or packaged name; '' for none.
  """
  of = {name: runs(path) for name, path in experts.items()}
  base = runs(experts.get('base') or experts['spatial'], alone=True)
  # Long-term memory is the base's own weights; short-term reads as spatial does, if not by itself.
  found = {'base': base, 'long_term': base} | {
      name: of.get(name, of.get('spatial', base)) for name in memories if name != 'long_term'}
  return found | ({'odometry': runs(odometry)} if odometry else {})


def of_arm(arm: Any, training: Mapping[str, Runs], episodes: int) -> dict[str, dict[str, float]]:
  """`metrics` of an `arms.Arm`, out of what `of_model` says; none where nothing is said."""
  names = [*('base',) * (arm.with_base or not arm.memories), *arm.memories,
           *('odometry',) * (arm.poses == 'odometry')]
  return metrics((training[name] for name in names if name in training), episodes)
