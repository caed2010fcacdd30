"""Curves of the long-term memory: recall against inner steps and against seconds."""

from collections.abc import Sequence
import functools
from typing import Any

import jax
import numpy as np

from wmpoe import world_model
from wmpoe.evaluation import arms as arms_lib
from wmpoe.evaluation import kept as kept_lib
from wmpoe.evaluation import recall


def steps(
    model: world_model.WorldModel,
    task: recall.Problem,
    *,
    steps: Sequence[int],
    seeds: Sequence[int],
    progress: arms_lib.Progress,
    kept: kept_lib.Kept = kept_lib.NOWHERE,
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
  """Recall after each number of inner steps; the state goes on from one to the next.

  Returns:
    `(arms, curves)`: one arm `long_term_STEPS` per number, and the two curves.

  Raises:
    ValueError: if the numbers do not increase.
  """
  if list(steps) != sorted(set(steps)) or steps[0] < 1:
    raise ValueError(f'Inner steps {list(steps)} must increase, from 1.')
  lean = model.compose('base', 'long_term')
  memory = lean.memories['long_term']
  batch = task.history.frames.shape[0]
  arm = arms_lib.Arm(memories=('long_term',))
  counts = (0, *steps)

  def one(seed: int) -> kept_lib.Found:
    key, found = jax.random.key(seed), {}
    keys = jax.random.split(jax.random.fold_in(key, 0), batch)
    say = arms_lib.prefixed(progress, f'seed {seed}: ')
    start = lean.init(batch)
    written = memory.append(start.memories['long_term'], task.history)
    recent = start.recent.push(task.history)
    done, spent = 0, 0.0
    for count in counts:
      written, seconds = arms_lib.fit(
          memory, written, keys, count - done, arms_lib.prefixed(say, f'{count} steps, '))
      done, spent = count, spent + seconds
      state = world_model.WorldState(recent=recent, memories={'long_term': written})
      found[str(count)] = {
          **recall.measure(lean, state, task, arm, jax.random.fold_in(key, 1)),
          'write_ms': 1e3 * spent / batch}
    return found

  rows = [kept.once(f'seed {seed}', functools.partial(one, seed)) for seed in seeds]
  measured = {
      count: recall.stack([row[str(count)] for row in rows], task, arm) for count in counts}
  arms = {
      f'long_term_{count}' if count else 'base': recall.summarize(m)
      for count, m in measured.items()}
  series = lambda x: {
      'x': [float(v) for v in x],
      **{k: [arm['recall'][k] for arm in arms.values()] for k in ('mean', 'low', 'high')}}
  cost = [1e-3 * m.write_ms_per_episode for m in measured.values()]
  curve = lambda title, xlabel, x: {
      'title': title, 'xlabel': xlabel, 'ylabel': 'recall', 'metric': 'recall',
      'series': {'long_term': series(x)}}
  return arms, [
      curve('Recall against inner steps', 'inner steps', np.array([0, *steps])),
      curve('Recall against writing time', 'seconds per episode', cost)]
