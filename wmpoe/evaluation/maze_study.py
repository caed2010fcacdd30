"""Memory Maze: what every protocol is given, and how it measures arms."""

from collections.abc import Callable, Collection, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from wmpoe import world_model
from wmpoe.data import episode
from wmpoe.evaluation import arms as arms_lib
from wmpoe.evaluation import budgets
from wmpoe.evaluation import film
from wmpoe.evaluation import kept as kept_lib
from wmpoe.evaluation import maze
from wmpoe.evaluation import maze_arms
from wmpoe.evaluation import metrics

Body = dict[str, Any]
Summaries = dict[str, dict[str, Any]]
# What `results.make` takes, and film strips.
Outcome = tuple[Body, list[film.Strip]]


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
    training: The training runs behind 'base', each memory, 'odometry' and each baseline.
    planar: Whether poses are (x, y, heading).
    view: Of the camera, see `maze.Problem`.
    progress: Makes a progress display out of the number of stages.
    kept: Where what is measured is kept, part by part, until the result is written.
    only: Names of the arms and controls to measure beside the base; empty for all.
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
  training: Mapping[str, budgets.Runs] = dataclasses.field(default_factory=dict)
  planar: bool = True
  view: tuple[float, float] | None = maze.MAZE_VIEW
  kept: kept_lib.Kept = kept_lib.NOWHERE
  only: tuple[str, ...] = ()

  @property
  def memories(self) -> tuple[str, ...]:
    """Names of the model's memories."""
    return tuple(self.model.memories)

  def arms(self) -> dict[str, arms_lib.Arm]:
    """The base and every combination of the memories."""
    return maze_arms.standard_arms(self.memories)

  def chosen(
      self, arms: Mapping[str, arms_lib.Arm], controls: Mapping[str, arms_lib.Arm]
  ) -> tuple[dict[str, arms_lib.Arm], dict[str, arms_lib.Arm]]:
    """Of a protocol's arms and controls those that are to be measured; the base always is.

    Raises:
      ValueError: if `only` names what is neither; lists what there is.
    """
    unknown = sorted(set(self.only) - {*arms, *controls})
    if unknown:
      raise ValueError(
          f'--arms names {", ".join(unknown)}; expected some of '
          f'{", ".join([*arms, *controls])}.')
    wanted = lambda some: {
        name: arm for name, arm in some.items()
        if not self.only or name in ('base', *self.only)}
    return wanted(arms), wanted(controls)

  @property
  def _windows(self) -> tuple[int, int]:
    """Context frames of the base and frames of the short-term memory."""
    base = self.model.base.model.context
    short = self.model.memories.get('short_term')
    return base, base if short is None else jax.eval_shape(lambda: short.init(1)).frames.shape[1]

  def problem(
      self, history: int, starts: Sequence[int], *, first: int = 0, inside: bool = False
  ) -> maze.Problem:
    """The problem on the episodes from frame `first` on; see `maze.problem`."""
    episodes = [
        dataclasses.replace(
            item, frames=item.frames[first:], actions=item.actions[first:],
            poses=item.poses[first:]) for item in self.episodes] if first else self.episodes
    return maze.problem(
        episodes, [item[first:] for item in self.latents], history=history, starts=starts,
        length=self.setting['chunks'] * self.model.chunk, windows=self._windows,
        planar=self.planar, view=self.view, inside=inside)


def run(
    study: Study, model: world_model.WorldModel, task: maze.Problem,
    arms: Mapping[str, arms_lib.Arm], *, copies: bool = False, label: str = '',
) -> dict[str, maze_arms.Measured]:
  """Measures arms on a problem, see `maze_arms.run`; shows progress."""
  left = [len(study.kept.missing(maze_arms.parts(task, [seed], label))) for seed in study.seeds]
  progress = study.progress(maze_arms.stages(model, arms, left))
  measured = maze_arms.run(
      model, task, arms=arms, seeds=study.seeds, measures=study.measures, copies=copies,
      progress=arms_lib.prefixed(progress, label), label=label, kept=study.kept)
  progress.done()
  return measured


def summaries(measured: Mapping[str, maze_arms.Measured], task: maze.Problem, *, split: bool
              ) -> Summaries:
  """The metrics of every arm, and its differences to the base, which must be among them."""
  return {
      name: maze_arms.summarize(m, measured['base'], task, split=split)
      for name, m in measured.items()}


def parted(found: Summaries, controls: Collection[str]) -> Body:
  """The summaries as arms and, those named, controls."""
  return {
      'arms': {k: v for k, v in found.items() if k not in controls},
      'controls': {k: v for k, v in found.items() if k in controls}}


def curves(
    study: Study, series: Mapping[str, Sequence[Mapping[str, Any]]], x: Sequence[int], xlabel: str,
    of: Sequence[str] = (),
) -> list[dict[str, Any]]:
  """One curve per metric, the study's if not told `of` which, out of {NAME: [metrics at each x]}.

  A series that lacks a metric has no curve of it.
  """
  return [{
      'title': f'{metrics.name(metric)} against {xlabel}', 'xlabel': xlabel,
      'ylabel': metrics.name(metric), 'metric': metric,
      'series': {
          name: {'x': [float(v) for v in x],
                 **{k: [point[metric][k] for point in points] for k in ('mean', 'low', 'high')}}
          for name, points in series.items() if metric in points[0]}}
      for metric in of or study.measures]
