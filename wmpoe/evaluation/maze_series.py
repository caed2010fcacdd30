"""The protocols of Memory Maze that draw curves.

context    histories of several lengths before the same frames
rank       the long-term memory by LoRA rank and by length of history
streaming  rounds of write, imagine, append: the true frames, or the imagined ones
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from wmpoe import recipes
from wmpoe import world_model
from wmpoe.evaluation import arms as arms_lib
from wmpoe.evaluation import comparisons
from wmpoe.evaluation import film
from wmpoe.evaluation import kept as kept_lib
from wmpoe.evaluation import maze
from wmpoe.evaluation import maze_arms
from wmpoe.evaluation import maze_study
from wmpoe.evaluation import metrics
from wmpoe.evaluation import results
from wmpoe.experts import long_term as long_term_lib
from wmpoe.networks import lora as lora_lib


def context(study: maze_study.Study) -> maze_study.Outcome:
  """Histories of several lengths, all of which end right before the same frames.

  Controls and copies, too, end in the length of the history.
  """
  lengths = sorted(study.setting['contexts'])
  arms, controls = study.chosen(
      {k: v for k, v in study.arms().items() if '+' not in k},
      arms_lib.standard_controls(study.memories))
  series: dict[str, maze_study.Summaries] = {}
  strips: list[film.Strip] = []
  for length in lengths:
    task = study.problem(length, [length], first=lengths[-1] - length)
    measured = maze_study.run(
        study, study.model, task, {**arms, **controls}, copies=True, label=f'history {length}, ')
    for name, found in maze_study.summaries(measured, task, split=False).items():
      series.setdefault(name, {})[f'{name}_{length}'] = found
    strips = maze.strips(task, {name: one.frames for name, one in measured.items()})
  body = maze_study.parted(
      {k: v for points in series.values() for k, v in points.items()},
      [k for name in controls for k in series[name]])
  return {**body, 'curves': maze_study.curves(
      study, {name: list(points.values()) for name, points in series.items()}, lengths,
      'frames of history')}, strips


def rank(study: maze_study.Study) -> maze_study.Outcome:
  """The long-term memory by rank, for several lengths of history before the same frames.

  Of a place field that is solved for, the rank is how many keys it has. 'full' finetunes all layers
  LoRA can adapt, whole, after the field is solved for if it is. Controls are measured after the
  longest history.

  Raises:
    ValueError: if the model has no long-term memory, for a rank that it cannot have, or if arms are
      asked for.
  """
  if study.only:
    raise ValueError('The protocol rank has no --arms to choose from: set protocol.ranks.')
  if 'long_term' not in study.memories:
    raise ValueError('The protocol rank needs a long-term memory; this model has none.')
  lean = study.model.compose('base', 'long_term')
  memory = lean.memories['long_term']
  # All are made before any is measured.
  ranked = {value: _of_rank(memory, value, study.setting['full']) for value in
            study.setting['ranks']}
  lengths = sorted(study.setting['rank_histories'])
  last = max(lengths)
  kinds = arms_lib.standard_controls(['long_term'])
  # Without memory the frames are the same, whatever was written before them.
  task = study.problem(last, [last])
  measured = maze_study.run(
      study, study.model.compose('base'), task, {'base': arms_lib.Arm()},
      copies=True)
  base, shown = measured['base'], {name: one.frames for name, one in measured.items()}
  summaries, controls = maze_study.summaries(measured, task, split=False), []
  series: dict[str, list] = {}
  for value, one in ranked.items():
    model = dataclasses.replace(lean, memories={'long_term': one})
    for length in lengths:
      name = f'rank_{value}_history_{length}'
      task = study.problem(length, [length], first=last - length)
      measured = {'base': base, **maze_study.run(
          study, model, task,
          maze_arms.standard_arms(['long_term']) | (kinds if length == last else {}),
          label=f'rank {value}, history {length}, ')}
      summary = maze_study.summaries(measured, task, split=False)
      summaries[name] = summary['long_term']
      if length == last:
        summaries |= {f'{kind}_rank_{value}': summary[kind] for kind in kinds}
        controls += [f'{kind}_rank_{value}' for kind in kinds]
      series.setdefault(f'rank {value}', []).append(summaries[name])
    shown[f'rank_{value}'] = measured['long_term'].frames
  curves = maze_study.curves(study, series, lengths, 'frames of history')
  return {**maze_study.parted(summaries, controls), 'curves': curves}, (
      maze.strips(task, shown, [*shown]))


def _of_rank(
    memory: long_term_lib.LongTerm, value: int | str, full: Mapping[str, Any]
) -> long_term_lib.LongTerm:
  """The memory with another rank; or, with 'full', all layers finetuned as that says."""
  spec, writing, optimizer = memory.spec, memory.writing, memory.optimizer
  field = memory.model.network.field if memory.regression is not None else None
  if value == 'full':
    targets = (*lora_lib.TARGETS, *(t for t in spec.targets if t not in lora_lib.TARGETS))
    spec = dataclasses.replace(spec, full=True, targets=targets)
    writing = dataclasses.replace(writing, steps=full['steps'])
    optimizer, keys = recipes.optimizer(full['optimizer']), spec.rank
  elif not isinstance(value, int) or not 1 <= value <= (field or value):
    raise ValueError(
        f"protocol.ranks holds {value!r}; expected 'full' or whole numbers from 1" +
        (f' to {field}, the keys of the place field.' if field else '.'))
  else:
    # The scale alpha / rank stays: what changes is how much fits in.
    spec, keys = dataclasses.replace(spec, rank=value, alpha=spec.scale * value), value
  regression = memory.regression and dataclasses.replace(memory.regression, rank=keys)
  return long_term_lib.create(
      jax.random.key(0), memory.model, memory.params, action_dim=memory.action_dim,
      pose_dim=memory.pose_dim, spec=spec, optimizer=optimizer, writing=writing,
      weight=memory.weight, baseline=memory.baseline, reading=memory.reading,
      regression=regression)


def streaming(study: maze_study.Study) -> maze_study.Outcome:
  """Rounds of: write the new frames, imagine the next, append the true (or the imagined) ones.

  Arms end in `_true` or `_imagined` for what was appended; to controls the true frames are, each
  round's in random order for `shuffled_history`.
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
  chosen, controls = study.chosen(chosen, arms_lib.standard_controls(study.memories))
  runs = {f'{name}_{appended}': (arm, appended == 'imagined')
          for name, arm in chosen.items() for appended in ('true', 'imagined')}
  parts = {'seed': runs, 'controls of seed': {k: (arm, False) for k, arm in controls.items()}}
  progress = study.progress(sum(
      len(study.kept.missing(f'{part} {seed}' for seed in study.seeds)) * (len(some) + 1)
      for part, some in parts.items() if some))

  def measure(part: str, seed: int) -> kept_lib.Found:
    say = arms_lib.prefixed(progress, f'{part} {seed}: ')
    frames = np.stack([
        _stream(model, arm, task, own=own, seed=seed, progress=functools.partial(
            say, f'streaming {name}')) for name, (arm, own) in parts[part].items()])
    return maze_arms.score(frames, task.truth, study.measures, say)

  scores: dict[str, dict[str, np.ndarray]] = {}  # by name and metric, [E S T]
  for part, some in parts.items():
    found = [study.kept.once(f'{part} {seed}', functools.partial(measure, part, seed))
             for seed in study.seeds if some]
    scores |= {
        name: {m: np.stack([one[m][at] for one in found], axis=1) for m in study.measures}
        for at, name in enumerate(some)}
  progress.done()

  def summary(name: str, begin: int, end: int) -> dict[str, Any]:
    """Metrics on the frames [begin, end), and against the base with as true frames appended."""
    average = lambda name: {m: x[..., begin:end].mean(axis=-1) for m, x in scores[name].items()}
    base = 'base_imagined' if name.endswith('_imagined') else 'base_true'
    out = {m: results.bootstrap(x, seed=0) for m, x in average(name).items()}
    return out if name == base else out | comparisons.against_base(
        average(name), average(base), seed=0)

  series = {name: [summary(name, length * i, length * (i + 1)) for i in range(rounds)]
            for name in scores}
  x, cuts = list(range(1, rounds + 1)), [
      f'{m}_cut' for m in study.measures if metrics.direction(m) < 0]
  return {
      **maze_study.parted({name: summary(name, 0, length * rounds) for name in scores}, controls),
      'curves': maze_study.curves(study, series, x, 'round', [*study.measures, *cuts]),
  }, []


_write: Any = jax.jit(lambda model, state, seen, key: model.write(state, seen, key))
_dream: Any = jax.jit(
    lambda model, state, actions, poses, key: model.imagine(state, actions, poses, key)[1])
_encode: Any = jax.jit(lambda model, seen: model.encode(seen))


def _stream(
    model: world_model.WorldModel, arm: arms_lib.Arm, task: maze.Problem, *, own: bool, seed: int,
    progress: Callable[[float], None],
) -> np.ndarray:
  """Imagines round after round; frames uint8 [E T H W 3]."""
  model = arm.of(model)
  seen = jax.device_put(task.part(0, task.starts[0]))
  state, frames = model.init(len(task.names)), []
  for index in range(len(task.starts)):
    key_write, key_dream = jax.random.split(jax.random.fold_in(jax.random.key(seed), index))
    recent = state.recent.push(seen)
    if arm.memory_of == 'shuffled':
      seen = jax.device_put(arms_lib.shuffle(seen, seed + index))
    state = dataclasses.replace(_write(model, state, seen, key_write), recent=recent)
    seen = jax.device_put(task.future(index))
    read = dataclasses.replace(state, memories=arms_lib.memories_of(arm, state, state))
    out = _dream(model, read, seen.actions, seen.poses, key_dream)
    if own:
      seen = _encode(model, dataclasses.replace(seen, frames=out))
    frames.append(np.asarray(out))
    progress((index + 1) / len(task.starts))
  return np.concatenate(frames, axis=1)
