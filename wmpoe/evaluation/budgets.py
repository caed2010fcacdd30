"""What it took to train all networks an arm uses: floating-point operations and minutes.

A network's runs are its own and those it was forked from, back to the first; what several networks
of an arm share counts once. The autoencoder, which all arms share, is left out.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from wmpoe import zoo

# By the file of its weights, what a training run took; None where its card does not say.
Runs = dict[str, dict[str, float | None]]
_FACTS = ('train_flops', 'train_seconds')


def runs(path: str) -> Runs:
  """The training runs behind a file of weights, its own first.

  A file that it was forked from and that is not there took nobody knows how much.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is damaged.
  """
  found: Runs = {}
  while path and path not in found:
    try:
      _, card = zoo.load_expert(path)
    except FileNotFoundError:
      if not found:
        raise
      card = {'config': {}}
    found[path] = {fact: card.get(fact) for fact in _FACTS}
    depth = card['config'].get('points', {}).get('depth')
    if depth:
      found |= runs(depth)
    path = card['config'].get('init_from')
  return found


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
  base = of.get('base', of.get('spatial', {}))
  found = {'base': base} | {name: of.get(name, of.get('spatial', base)) for name in memories}
  return found | ({'odometry': runs(odometry)} if odometry else {})


def of_arm(arm: Any, training: Mapping[str, Runs], episodes: int) -> dict[str, dict[str, float]]:
  """`metrics` of an `arms.Arm`, out of what `of_model` says; none where nothing is said."""
  names = [*('base',) * (arm.with_base or not arm.memories), *arm.memories,
           *('odometry',) * (arm.poses == 'odometry')]
  return metrics((training[name] for name in names if name in training), episodes)
