"""The protocols of Memory Maze: which arms are measured after which histories.

table1     the frames right after a history (arXiv 2605.18813, table 1)
revisit    from several places further on: frames seen long ago, and frames never seen
replay     frames of the history itself, to see what of it can be read back
contrast   every expert against the same without its contrast
context    histories of several lengths before the same frames
rank       the long-term memory by LoRA rank and by length of history
streaming  rounds of write, imagine, append: the true frames, or the imagined ones

The last three are in `maze_series`. Every protocol takes a `maze_study.Study` and returns what
`results.make` takes and the film strips.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from wmpoe.evaluation import arms as arms_lib
from wmpoe.evaluation import budgets
from wmpoe.evaluation import maze
from wmpoe.evaluation import maze_arms
from wmpoe.evaluation import maze_series
from wmpoe.evaluation import maze_study
from wmpoe.evaluation import results
from wmpoe.experts import short_term as short_term_lib


def table1(study: maze_study.Study) -> maze_study.Outcome:
  """The frames right after the history."""
  return _arms_and_controls(study, study.setting['starts'][:1], split=False)


def revisit(study: maze_study.Study) -> maze_study.Outcome:
  """Frames from several places on, split into those seen long ago and those never seen.

  Raises:
    ValueError: if poses are not planar: what is a revisit is not known then.
  """
  if not study.planar:
    raise ValueError(
        'The protocol revisit needs planar poses (x, y, heading), which say what was seen before; '
        'these episodes have none. Use table1, or record poses.')
  return _arms_and_controls(study, study.setting['starts'], split=True)


def _arms_and_controls(
    study: maze_study.Study, starts: Sequence[int], *, split: bool) -> maze_study.Outcome:
  task, curves = study.problem(study.setting['history'], starts), []
  arms = study.arms()
  arms |= maze_arms.further_arms(
      arms, study.model.memories, odometry=study.odometry is not None,
      depth=task.encoded.depth is not None)
  arms |= maze_arms.baseline_arms(study.baselines)
  arms, _ = study.chosen(arms, arms_lib.standard_controls(study.memories))
  if study.odometry is not None and any(arm.poses == 'odometry' for arm in arms.values()):
    progress = study.progress(1)
    task = maze.with_odometry(
        task, *study.odometry, maze_arms.points_of(study.model.memories), progress)
    progress.done()
    curves = _drift(task)
  body, measured = with_controls(study, task, arms, split=split)
  frames = {name: found.frames for name, found in measured.items()}
  for name, arm in arms.items():
    body['arms'][name] |= budgets.of_arm(arm, study.training, len(task.names))
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
    study: maze_study.Study, task: maze.Problem, arms: Mapping[str, arms_lib.Arm], *, split: bool
) -> tuple[maze_study.Body, dict[str, maze_arms.Measured]]:
  """Arms, copies and controls: their metrics, and what each of them showed."""
  arms, controls = study.chosen(arms, arms_lib.standard_controls(study.memories))
  model = dataclasses.replace(
      study.model, memories={**study.model.memories, **study.baselines},
      follows=(*study.model.follows, *(
          name for name, memory in study.baselines.items() if not hasattr(memory, 'fit'))))
  measured = maze_study.run(study, model, task, {**arms, **controls}, copies=True)
  return maze_study.parted(
      maze_study.summaries(measured, task, split=split), controls), measured


def maps(
    study: maze_study.Study, task: maze.Problem, measured: Mapping[str, maze_arms.Measured]
) -> list[dict[str, Any]]:
  """Where everything composed was better than the base, by the first metric."""
  composed, metric = list(study.arms())[-1], next(iter(study.measures))
  if not study.planar or composed == 'base' or composed not in measured:
    return []
  return maze.maps(
      task, {name: measured[name].scores[metric] for name in ('base', composed)}, metric,
      arm=composed, layouts=[item.meta.get('layout') for item in study.episodes])


def replay(study: maze_study.Study) -> maze_study.Outcome:
  """Frames of the history itself, by every memory alone and all, and another episode's memories.

  The contexts are the true frames before; a short-term memory goes back to those, too.
  """
  task = study.problem(study.setting['history'], study.setting['replays'], inside=True)
  arms = {name: arm for name, arm in study.arms().items() if '+' not in name}
  controls = {name: arm for name, arm in arms_lib.standard_controls(study.memories).items()
              if arm.memory_of == 'other'}
  arms, controls = study.chosen(arms, controls)
  measured = maze_study.run(study, study.model, task, {**arms, **controls})
  found = maze_study.summaries(measured, task, split=False)
  return maze_study.parted(found, controls), maze.strips(
      task, {name: one.frames for name, one in measured.items()})


def contrast(study: maze_study.Study) -> maze_study.Outcome:
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
  arms, controls = study.chosen(arms, arms_lib.standard_controls(study.memories))
  measured = maze_study.run(study, model, task, {**arms, **controls}, copies=True)
  return maze_study.parted(maze_study.summaries(measured, task, split=False), controls), (
      maze.strips(task, {name: one.frames for name, one in measured.items()}, [*arms]))


PROTOCOLS: dict[str, Callable[[maze_study.Study], maze_study.Outcome]] = {
    'table1': table1, 'revisit': revisit, 'replay': replay, 'contrast': contrast,
    'context': maze_series.context, 'rank': maze_series.rank, 'streaming': maze_series.streaming}


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
    study: maze_study.Study, task: maze.Problem, body: maze_study.Body,
    frames: Mapping[str, np.ndarray],
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


