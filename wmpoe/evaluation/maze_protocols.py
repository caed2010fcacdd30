"""The protocols of Memory Maze: which arms are measured after which histories.

table1     the frames right after a history (arXiv 2605.18813, table 1)
revisit    from several places further on: frames seen long ago, and frames never seen
contrast   every expert against the same without its contrast
context    histories of several lengths before the same frames
rank       the long-term memory by LoRA rank and by length of history
streaming  rounds of write, imagine, append: the true frames, or the imagined ones

Every function takes a `Study` and returns what `results.make` takes and the film strips.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wmpoe import world_model
from wmpoe.data import episode
from wmpoe.evaluation import arms as arms_lib
from wmpoe.evaluation import film
from wmpoe.evaluation import kept as kept_lib
from wmpoe.evaluation import maze
from wmpoe.evaluation import maze_arms
from wmpoe.evaluation import results
from wmpoe.experts import long_term as long_term_lib
from wmpoe.experts import short_term as short_term_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
  """What is measured, on what and how.

  Attributes:
    model: All experts.
    episodes: Held-out, without border.
    latents: Of each episode, [L h w C].
    setting: The config's `protocol`: 'history', 'starts', 'chunks', and what a protocol names.
    seeds: Of writing and sampling.
    measures: By name.
    odometry: Optional `(network, params)` for the arms without true poses.
    baselines: Networks to compare with, by the name of their arm; see `maze_baselines`.
    planar: Whether poses are (x, y, heading).
    view: Of the camera, see `maze.Problem`.
    progress: Makes a progress display out of the number of stages.
    kept: Where what is measured is kept, seed by seed, until the result is written.
  """

  model: world_model.WorldModel
  episodes: Sequence[episode.Episode]
  latents: Sequence[np.ndarray]
  setting: Mapping[str, Any]
  seeds: Sequence[int]
  measures: Mapping[str, maze_arms.Metric]
  progress: Callable[[int], Any]
  odometry: tuple[Any, Any] | None = None
  baselines: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  planar: bool = True
  view: tuple[float, float] | None = maze.MAZE_VIEW
  kept: kept_lib.Kept = kept_lib.NOWHERE

  @property
  def memories(self) -> tuple[str, ...]:
    """Names of the model's memories."""
    return tuple(self.model.memories)

  def arms(self) -> dict[str, arms_lib.Arm]:
    """The base and every combination of the memories, at the weights of the setting."""
    return maze_arms.standard_arms(self.memories, self.setting.get('alone'))

  @property
  def _windows(self) -> tuple[int, int]:
    """Context frames of the base and of the short-term expert."""
    base = self.model.base.model.context
    short = self.model.memories.get('short_term')
    return base, base if short is None else short.model.context

  def problem(self, history: int, starts: Sequence[int], *, first: int = 0) -> maze.Problem:
    """The problem on the episodes from frame `first` on."""
    episodes = [
        dataclasses.replace(
            item, frames=item.frames[first:], actions=item.actions[first:],
            poses=item.poses[first:]) for item in self.episodes] if first else self.episodes
    return maze.problem(
        episodes, [item[first:] for item in self.latents], history=history, starts=starts,
        length=self.setting['chunks'] * self.model.chunk, windows=self._windows,
        planar=self.planar, view=self.view)


Body = dict[str, Any]
Summaries = dict[str, dict[str, Any]]
Outcome = tuple[Body, list[film.Strip]]


def table1(study: Study) -> Outcome:
  """The frames right after the history."""
  return _arms_and_controls(study, study.setting['starts'][:1], split=False)


def revisit(study: Study) -> Outcome:
  """Frames from several places on, split into those seen long ago and those never seen.

  Raises:
    ValueError: if poses are not planar: what is a revisit is not known then.
  """
  if not study.planar:
    raise ValueError(
        'The protocol revisit needs planar poses (x, y, heading), which say what was seen before; '
        'these episodes have none. Use table1, or record them.')
  return _arms_and_controls(study, study.setting['starts'], split=True)


def _arms_and_controls(study: Study, starts: Sequence[int], *, split: bool) -> Outcome:
  task, curves = study.problem(study.setting['history'], starts), []
  if study.odometry is not None:
    task = maze.with_odometry(task, *study.odometry)
    curves = _drift(task)
  arms = study.arms()
  arms |= maze_arms.further_arms(arms, study.memories, odometry=study.odometry is not None)
  arms |= maze_arms.baseline_arms(study.baselines)
  body, measured = with_controls(study, task, arms, split=split)
  frames = {name: found.frames for name, found in measured.items()}
  if study.odometry is not None:
    body['references'] = _add_following(study, task, body, frames)
  counts = {
      'revisited_frames': task.revisited, 'unseen_frames': task.unseen,
      'in_window_frames': task.in_window}
  return {
      **body, 'curves': curves,
      'maps': maps(study, task, measured),
      'about': {name: int(chosen.sum()) for name, chosen in counts.items()} if split else {},
  }, maze.strips(task, frames)


def with_controls(
    study: Study, task: maze.Problem, arms: Mapping[str, arms_lib.Arm], *, split: bool
) -> tuple[Body, dict[str, maze_arms.Measured]]:
  """Arms, copies and controls: their metrics, and what each of them showed."""
  controls = arms_lib.standard_controls(study.memories)
  model = dataclasses.replace(
      study.model, memories={**study.model.memories, **study.baselines},
      follows=(*study.model.follows, *(
          name for name, memory in study.baselines.items() if not hasattr(memory, 'fit'))))
  measured = _run(study, model, task, {**arms, **controls}, copies=True)
  summary = _summaries(measured, task, split=split)
  return {
      'arms': {k: v for k, v in summary.items() if k not in controls},
      'controls': {k: v for k, v in summary.items() if k in controls},
  }, measured


def maps(
    study: Study, task: maze.Problem, measured: Mapping[str, maze_arms.Measured]
) -> list[dict[str, Any]]:
  """Where everything composed was better than the base, by the first metric."""
  composed, metric = list(study.arms())[-1], next(iter(study.measures))
  if not study.planar or composed == 'base':
    return []
  return maze.maps(
      task, {name: measured[name].scores[metric] for name in ('base', composed)}, metric,
      arm=composed, layouts=[item.meta.get('layout') for item in study.episodes])


def contrast(study: Study) -> Outcome:
  """Every expert, and all of them, with and without contrasts.

  Without: the plain mean of the experts' own estimates. The base's contrast is against itself with
  its context nulled.
  """
  base = study.model.base
  nulled = short_term_lib.ShortTerm(
      params=base.params, model=base.model, action_dim=study.model.action_dim,
      pose_dim=study.model.pose_dim, weight=1.0)
  model = dataclasses.replace(
      study.model, memories={**study.model.memories, 'base_contrast': nulled})
  arms = {'base': arms_lib.Arm(), 'base_contrast': arms_lib.Arm(memories=('base_contrast',))}
  for name, arm in study.arms().items():
    if arm.memories:
      arms[name] = arm
      arms[f'{name}_off'] = dataclasses.replace(
          arm, rule='mean', weights=dict.fromkeys(arm.memories, 1.0), levelled=False)
  task = study.problem(study.setting['history'], study.setting['starts'][:1])
  measured = _run(study, model, task, arms)
  return {'arms': _summaries(measured, task, split=False), 'controls': {}}, []


def context(study: Study) -> Outcome:
  """Histories of several lengths, all of which end right before the same frames."""
  lengths = sorted(study.setting['contexts'])
  arms = {k: v for k, v in study.arms().items() if '+' not in k}
  summaries: Summaries = {}
  series: dict[str, list] = {}
  for length in lengths:
    task = study.problem(length, [length], first=lengths[-1] - length)
    summary = _summaries(
        _run(study, study.model, task, arms, label=f'history {length}, '), task, split=False)
    summaries |= {f'{name}_{length}': metrics for name, metrics in summary.items()}
  for name in arms:
    series[name] = [summaries[f'{name}_{length}'] for length in lengths]
  return {
      'arms': summaries, 'controls': {},
      'curves': _curves(study, series, lengths, 'frames of history'),
  }, []


def rank(study: Study) -> Outcome:
  """The long-term memory by rank, for several lengths of history before the same frames.

  Raises:
    ValueError: if the model has no long-term memory.
  """
  memory = study.model.memories.get('long_term')
  if memory is None:
    raise ValueError('The protocol rank needs a long-term memory; this model has none.')
  lengths = sorted(study.setting['rank_histories'])
  summaries: Summaries = {}
  series: dict[str, list] = {}
  last = max(lengths)
  for value in study.setting['ranks']:
    # The scale alpha / rank stays: what changes is how much fits in.
    spec = dataclasses.replace(
        memory.spec, rank=value, alpha=memory.spec.alpha * value / memory.spec.rank)
    ranked = long_term_lib.create(
        jax.random.key(0), memory.model, memory.params, action_dim=memory.action_dim,
        pose_dim=memory.pose_dim, spec=spec, optimizer=memory.optimizer, writing=memory.writing,
        weight=memory.weight, baseline=memory.baseline, reading=memory.reading)
    model = dataclasses.replace(study.model, memories={'long_term': ranked})
    for length in lengths:
      task = study.problem(length, [length], first=last - length)
      measured = _run(
          study, model, task, {'base': arms_lib.Arm(), 'long_term': arms_lib.Arm(
              memories=('long_term',))}, label=f'rank {value}, history {length}, ')
      summary = _summaries(measured, task, split=False)
      summaries.setdefault('base', summary['base'])
      summaries[f'rank_{value}_history_{length}'] = summary['long_term']
    series[f'rank {value}'] = [
        summaries[f'rank_{value}_history_{length}'] for length in lengths]
  return {
      'arms': summaries, 'controls': {},
      'curves': _curves(study, series, lengths, 'frames of history'),
  }, []


def streaming(study: Study) -> Outcome:
  """Rounds of: write the new frames, imagine the next, append the true (or the imagined) ones.

  Arms end in `_true` or `_imagined` for what was appended.
  """
  setting, model = study.setting, study.model
  length, rounds = setting['chunks'] * model.chunk, setting['rounds']
  first = setting['first']
  task = study.problem(first, [first + length * r for r in range(rounds)])
  if 'long_term' in model.memories:
    memory = model.memories['long_term']
    writing = dataclasses.replace(memory.writing, steps=setting['steps_per_round'])
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
    return {'frames': frames, **maze_arms.score(frames, task.truth, study.measures, say)}

  found = [study.kept.once(f'seed {seed}', functools.partial(measure, seed))
           for seed in study.seeds]
  progress.done()
  measured = {
      name: maze_arms.Measured(
          scores={m: np.stack([one[m][at] for one in found]) for m in study.measures},
          frames=found[0]['frames'][at]) for at, name in enumerate(labels)}
  summaries = {
      name: {m: results.bootstrap(x, seed=0) for m, x in maze_arms.per_episode(
          one, task, split=False)[0].items()} for name, one in measured.items()}
  series: dict[str, list] = {name: [] for name in measured}
  for index in range(rounds):
    there = slice(index * length, (index + 1) * length)
    for name, one in measured.items():
      series[name].append({
          m: results.bootstrap(x[:, :, there].mean(axis=2).T, seed=0)
          for m, x in one.scores.items()})
  return {
      'arms': summaries, 'controls': {},
      'curves': _curves(study, series, list(range(1, rounds + 1)), 'round'),
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


PROTOCOLS: dict[str, Callable[[Study], Outcome]] = {
    'table1': table1, 'revisit': revisit, 'contrast': contrast, 'context': context, 'rank': rank,
    'streaming': streaming}


def _drift(task: maze.Problem) -> list[dict[str, Any]]:
  """How far the odometry is off after so many frames."""
  after = [n for n in (1, 2, 4, 8, 17, 33, 50, 75, 100) if n < task.odometry.shape[1]]
  drawn = []
  for unit, errors in zip(('cells', 'radians'), maze.drift(task, after), strict=True):
    points = [results.bootstrap(column, seed=0) for column in errors.T]
    drawn.append({
        'title': f'Drift of the odometry, {unit}', 'xlabel': 'frames', 'ylabel': unit,
        'series': {'odometry': {
            'x': [float(n) for n in after],
            **{k: [point[k] for point in points] for k in ('mean', 'low', 'high')}}}})
  return drawn


def _add_following(
    study: Study, task: maze.Problem, body: Body, frames: Mapping[str, np.ndarray]
) -> dict[str, dict[str, float]]:
  """Adds to every arm how well it moves as commanded; returns what the true frames reach."""
  latents = study.model.latents
  encode = (lambda x: x) if latents is None else jax.jit(latents.encode)
  measure = lambda shown: maze.following(task, shown, *study.odometry, encode)  # type: ignore
  for name, metrics in (*body['arms'].items(), *body['controls'].items()):
    for metric, (slopes, weights) in measure(frames[name]).items():
      metrics[metric] = results.bootstrap(slopes, seed=0, weights=weights)
  return {
      metric: {'true frames': float(np.average(slopes, weights=weights))}
      for metric, (slopes, weights) in measure(task.truth).items()}


def _run(
    study: Study, model: world_model.WorldModel, task: maze.Problem,
    arms: Mapping[str, arms_lib.Arm], *, copies: bool = False, label: str = '',
) -> dict[str, maze_arms.Measured]:
  seeds = study.kept.missing(f'{label}seed {seed}' for seed in study.seeds)
  progress = study.progress(maze_arms.stages(model, arms, len(seeds)))
  measured = maze_arms.run(
      model, task, arms=arms, seeds=study.seeds, measures=study.measures, copies=copies,
      progress=arms_lib.prefixed(progress, label), label=label, kept=study.kept)
  progress.done()
  return measured


def _summaries(measured: Mapping[str, maze_arms.Measured], task: maze.Problem, *, split: bool
               ) -> Summaries:
  return {
      name: maze_arms.summarize(m, measured['base'], task, split=split)
      for name, m in measured.items()}


def _curves(
    study: Study, series: Mapping[str, Sequence[Mapping[str, Any]]], x: Sequence[int], xlabel: str
) -> list[dict[str, Any]]:
  """One curve per metric out of `{NAME: [metrics at each x]}`."""
  return [{
      'title': f'{metric} against {xlabel}', 'xlabel': xlabel, 'ylabel': metric, 'metric': metric,
      'series': {
          name: {'x': [float(v) for v in x],
                 **{k: [point[metric][k] for point in points] for k in ('mean', 'low', 'high')}}
          for name, points in series.items()}} for metric in study.measures]
