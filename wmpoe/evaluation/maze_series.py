"""The protocols of Memory Maze that draw curves.

context    histories of several lengths before the same frames
rank       the long-term memory by LoRA rank and by length of history
streaming  rounds of write, imagine, append: the true frames, or the imagined ones
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wmpoe import world_model
from wmpoe.evaluation import arms as arms_lib
from wmpoe.evaluation import kept as kept_lib
from wmpoe.evaluation import maze
from wmpoe.evaluation import maze_arms
from wmpoe.evaluation import maze_study
from wmpoe.evaluation import results
from wmpoe.experts import long_term as long_term_lib


def context(study: maze_study.Study) -> maze_study.Outcome:
  """Histories of several lengths, all of which end right before the same frames."""
  lengths = sorted(study.setting['contexts'])
  arms = {k: v for k, v in study.arms().items() if '+' not in k}
  summaries: maze_study.Summaries = {}
  series: dict[str, list] = {}
  for length in lengths:
    task = study.problem(length, [length], first=lengths[-1] - length)
    measured = maze_study.run(study, study.model, task, arms, label=f'history {length}, ')
    summary = maze_study.summaries(measured, task, split=False)
    summaries |= {f'{name}_{length}': metrics for name, metrics in summary.items()}
  for name in arms:
    series[name] = [summaries[f'{name}_{length}'] for length in lengths]
  return {
      'arms': summaries, 'controls': {},
      'curves': maze_study.curves(study, series, lengths, 'frames of history'),
  }, []


def rank(study: maze_study.Study) -> maze_study.Outcome:
  """The long-term memory by rank, for several lengths of history before the same frames.

  Raises:
    ValueError: if the model has no long-term memory.
  """
  memory = study.model.memories.get('long_term')
  if memory is None:
    raise ValueError('The protocol rank needs a long-term memory; this model has none.')
  lengths = sorted(study.setting['rank_histories'])
  series: dict[str, list] = {}
  last, written = max(lengths), {'long_term': study.arms()['long_term']}
  # Without memory the frames are the same, whatever was written before them.
  task = study.problem(last, [last])
  base = maze_study.run(
      study, dataclasses.replace(study.model, memories={}), task, {'base': arms_lib.Arm()})
  summaries = maze_study.summaries(base, task, split=False)
  for value in study.setting['ranks']:
    # The scale alpha / rank stays: what changes is how much fits in.
    spec = dataclasses.replace(
        memory.spec, rank=value, alpha=memory.spec.alpha * value / memory.spec.rank)
    ranked = long_term_lib.create(
        jax.random.key(0), memory.model, memory.params, action_dim=memory.action_dim,
        pose_dim=memory.pose_dim, spec=spec, optimizer=memory.optimizer, writing=memory.writing,
        weight=memory.weight, baseline=memory.baseline, reading=memory.reading,
        regression=memory.regression and memory.regression.replace(rank=value))
    model = dataclasses.replace(study.model, memories={'long_term': ranked})
    for length in lengths:
      task = study.problem(length, [length], first=last - length)
      measured = base | maze_study.run(study, model, task, written, label=(
          f'rank {value}, history {length}, '))
      summary = maze_study.summaries(measured, task, split=False)
      summaries[f'rank_{value}_history_{length}'] = summary['long_term']
    series[f'rank {value}'] = [
        summaries[f'rank_{value}_history_{length}'] for length in lengths]
  return {
      'arms': summaries, 'controls': {},
      'curves': maze_study.curves(study, series, lengths, 'frames of history'),
  }, []


def streaming(study: maze_study.Study) -> maze_study.Outcome:
  """Rounds of: write the new frames, imagine the next, append the true (or the imagined) ones.

  Arms end in `_true` or `_imagined` for what was appended.
  """
  setting, model = study.setting, study.model
  length, rounds = setting['chunks'] * model.chunk, setting['rounds']
  first = setting['first']
  task = study.problem(first, [first + length * r for r in range(rounds)])
  if 'long_term' in model.memories:
    memory = model.memories['long_term']
    # None where a place field is solved for, and no more.
    steps = setting['steps_per_round'] if memory.writing.steps else 0
    writing = dataclasses.replace(memory.writing, steps=steps)
    model = dataclasses.replace(
        model, memories={**model.memories, 'long_term': dataclasses.replace(
            memory, writing=writing)})
  standard = study.arms()
  chosen = {name: arm for name, arm in standard.items()
            if len(arm.memories) < 2 or name in ('short_term+long_term', 'all')}
  labels = [f'{name}_{appended}' for name in chosen for appended in ('true', 'imagined')]
  left = study.kept.missing(f'seed {seed}' for seed in study.seeds)
  progress = study.progress(len(left) * (len(labels) + 1))

  def measure(seed: int) -> kept_lib.Found:
    say = arms_lib.prefixed(progress, f'seed {seed}: ')
    frames = np.stack([
        _stream(arm.of(model), task, own=own, key=jax.random.key(seed), progress=functools.partial(
            say, f'streaming {name}, {"own" if own else "true"} frames appended'))
        for name, arm in chosen.items() for own in (False, True)])
    return maze_arms.score(frames, task.truth, study.measures, say)

  found = [study.kept.once(f'seed {seed}', functools.partial(measure, seed))
           for seed in study.seeds]
  progress.done()

  def summary(at: int, begin: int, end: int) -> dict[str, Any]:
    """Metrics of an arm on the frames [begin, end)."""
    return {
        m: results.bootstrap(
            np.stack([one[m][at, :, begin:end].mean(axis=1) for one in found], axis=1), seed=0)
        for m in study.measures}

  series = {
      name: [summary(at, length * index, length * (index + 1)) for index in range(rounds)]
      for at, name in enumerate(labels)}
  return {
      'arms': {name: summary(at, 0, length * rounds) for at, name in enumerate(labels)},
      'controls': {},
      'curves': maze_study.curves(study, series, list(range(1, rounds + 1)), 'round'),
  }, []


_write: Any = jax.jit(lambda model, state, seen, key: model.write(state, seen, key))
_dream: Any = jax.jit(
    lambda model, state, actions, poses, key: model.imagine(state, actions, poses, key)[1])
_encode: Any = jax.jit(lambda model, seen: model.encode(seen))


def _stream(
    model: world_model.WorldModel, task: maze.Problem, *, own: bool, key: jax.Array,
    progress: Callable[[float], None],
) -> np.ndarray:
  """Imagines round after round; frames uint8 [E T H W 3]."""
  seen = jax.tree.map(jnp.asarray, task.part(0, task.starts[0]))
  state, frames = model.init(len(task.names)), []
  for index in range(len(task.starts)):
    key_write, key_dream = jax.random.split(jax.random.fold_in(key, index))
    state = _write(model, state, seen, key_write)
    seen = jax.tree.map(jnp.asarray, task.future(index))
    out = _dream(model, state, seen.actions, seen.poses, key_dream)
    if own:
      seen = _encode(model, dataclasses.replace(seen, frames=out))
    frames.append(np.asarray(out))
    progress((index + 1) / len(task.starts))
  return np.concatenate(frames, axis=1)
