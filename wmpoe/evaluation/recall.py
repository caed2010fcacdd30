"""Memory Cards recall: write reveal and cover into memory, imagine the second reveal, score it.

The history is never in the base's context (a pause separates them), so whatever is right above
chance was remembered. Controls: no memory (the base), another episode's memory, shuffled history.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from wmpoe import world_model
from wmpoe.data import cards
from wmpoe.data import episode
from wmpoe.evaluation import arms as arms_lib
from wmpoe.evaluation import film
from wmpoe.evaluation import kept as kept_lib
from wmpoe.evaluation import metrics
from wmpoe.evaluation import results

MEMORIES = ('short_term', 'long_term', 'spatial')

@dataclasses.dataclass(frozen=True, kw_only=True)
class Future:
  """A second reveal to imagine: the truth and its events.

  Attributes:
    truth: True frames with actions and poses [E T ...].
    frame: [E N] frame of each uncovering, counted from the first imagined frame.
    tile: [E N] which card.
    age: [E N] frames between the start of the imagined chunk and the last sight of the card.
  """

  truth: episode.Observation
  frame: np.ndarray
  tile: np.ndarray
  age: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
  """E held-out episodes.

  Attributes:
    history: Reveal and cover [E H ...].
    same: The second reveal in the order of the first.
    new: The second reveal in an order never walked in the history.
    cards: [E N] true symbols.
    templates: The symbols under the cursor, then the cover.
    cover: The cover without cursor.
    indices: Index of each episode in its split.
    split: The split.
  """

  history: episode.Observation
  same: Future
  new: Future
  cards: np.ndarray
  templates: np.ndarray
  cover: np.ndarray
  indices: tuple[int, ...]
  split: str

  @property
  def grid(self) -> int:
    """Cards along one side of the board."""
    return round(self.cards.shape[1] ** 0.5)


def problem(
    config: cards.CardsConfig, indices: Sequence[int], *, split: str, chunk: int
) -> Problem:
  """The recall problem on the given episodes of a split; futures are whole chunks long."""
  timing = cards.script_timing(config)
  length = -(-timing.reveal // chunk) * chunk

  def future(order):
    sims = [cards.script_episode(i, config, split, order) for i in indices]
    truth = episode.stack(
        [cards.to_episode(s, config) for s in sims], start=timing.history,
        stop=timing.history + length)
    events = np.stack([
        s.events[np.isin(s.events[:, 0], timing.uncover_frames)] for s in sims])
    frame = events[..., 0] - timing.history
    start = frame // chunk * chunk + timing.history
    return sims, Future(
        truth=truth, frame=frame, tile=events[..., 1], age=start - events[..., 2])

  sims, same = future('same')
  _, new = future('new')
  history = episode.stack(
      [cards.to_episode(s, config) for s in sims], stop=timing.history)
  return Problem(
      history=history, same=same, new=new, cards=np.stack([s.cards for s in sims]),
      templates=cards.templates(config, cursor=True), cover=cards.templates(config)[-1],
      indices=tuple(indices), split=split)


def standard_arms(memories: Sequence[str]) -> dict[str, arms_lib.Arm]:
  """The arms of the demo and of the recall protocol, for the memories a model has."""
  arms = {'base': arms_lib.Arm()} | {name: arms_lib.Arm(memories=(name,)) for name in memories}
  if 'long_term' in memories:
    arms['long_term_new_order'] = arms_lib.Arm(memories=('long_term',), new_order=True)
  if len(memories) > 1:
    arms['all'] = arms_lib.Arm(memories=tuple(memories))
  return arms


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
  """What one arm showed: per-event scores and frames of every seed.

  Attributes:
    scores: Arrays [S E N] as `metrics.card_recall` names them.
    psnr: [S E].
    frames: [E T H W 3] uint8 of the first seed.
    age: [E N].
    write_ms_per_episode: Mean over seeds; of all the arm's memories.
    read_ms_per_frame: Mean over seeds.
  """

  scores: Mapping[str, np.ndarray]
  psnr: np.ndarray
  frames: np.ndarray
  age: np.ndarray
  write_ms_per_episode: float
  read_ms_per_frame: float


_imagine: Any = jax.jit(lambda model, state, actions, poses, key: model.imagine(
    state, actions, poses, key)[1])


def measure(
    model: world_model.WorldModel,
    state: world_model.WorldState,
    task: Problem,
    arm: arms_lib.Arm,
    key: jax.Array,
) -> kept_lib.Found:
  """Imagines one arm from the memories in `state`: 'scores', 'psnr' [E], 'frames', 'read_ms'."""
  future = task.new if arm.new_order else task.same
  memories = {name: state.memories[name] for name in arm.memories}
  begun = world_model.WorldState(recent=state.recent, memories=memories)
  frames, seconds = arms_lib.timed(
      _imagine, arm.of(model), begun, future.truth.actions, future.truth.poses, key)
  frames = np.asarray(frames)
  scores = metrics.card_recall(
      frames, future.frame, tile=future.tile, cards=task.cards, templates=task.templates)
  scores['covered_again'] = metrics.covered_again(
      frames, future.truth.frames, future.frame, tile=future.tile, cover=task.cover, grid=task.grid)
  return {
      'scores': scores, 'psnr': metrics.psnr(frames, future.truth.frames).mean(axis=1),
      'frames': frames, 'read_ms': 1e3 * seconds / (frames.shape[0] * frames.shape[1])}


def run(
    model: world_model.WorldModel,
    task: Problem,
    *,
    arms: Mapping[str, arms_lib.Arm],
    seeds: Sequence[int],
    progress: arms_lib.Progress,
    kept: kept_lib.Kept = kept_lib.NOWHERE,
) -> dict[str, Measured]:
  """Writes and imagines every arm for every seed that is not kept."""
  def one(seed: int) -> kept_lib.Found:
    key, found = jax.random.key(seed), {}
    say = arms_lib.prefixed(progress, f'seed {seed}: ')
    state, mixed, cost = arms_lib.write_own_and_shuffled(
        model, task.history, arms=list(arms.values()), seed=seed, say=say)
    for done, (name, arm) in enumerate(arms.items()):
      source = dataclasses.replace(
          state, memories=arms_lib.memories_of(arm, state, mixed))
      found[name] = measure(model, source, task, arm, jax.random.fold_in(key, 1))
      found[name]['write_ms'] = sum(cost[m] for m in arm.memories)
      say(f'imagining {name}', (done + 1) / len(arms))
    return found

  found = [kept.once(f'seed {seed}', functools.partial(one, seed)) for seed in seeds]
  return {name: stack([each[name] for each in found], task, arm) for name, arm in arms.items()}


def protocol(
    model: world_model.WorldModel,
    task: Problem,
    *,
    seeds: Sequence[int],
    progress: arms_lib.Progress,
    kept: kept_lib.Kept = kept_lib.NOWHERE,
) -> tuple[dict[str, Measured], dict[str, Any], dict[str, Any]]:
  """The whole recall protocol: every standard arm and control of the model's memories.

  Returns:
    What was measured, and the summaries of the arms and of the controls.
  """
  memories = tuple(model.memories)
  arms, controls = standard_arms(memories), arms_lib.standard_controls(memories)
  measured = run(model, task, arms={**arms, **controls}, seeds=seeds, progress=progress, kept=kept)
  window = model.memories['short_term'].model.context if 'short_term' in memories else None
  summary = {name: summarize(m, window=window) for name, m in measured.items()}
  return measured, {k: summary[k] for k in arms}, {k: summary[k] for k in controls}


def stages(model: world_model.WorldModel, seeds: int) -> int:
  """How many different things `protocol` reports to be doing."""
  memories = tuple(model.memories)
  arms, controls = standard_arms(memories), arms_lib.standard_controls(memories)
  return seeds * (len(arms) + len(controls) + 2 * len(memories))


def stack(rows: Sequence[kept_lib.Found], task: Problem, arm: arms_lib.Arm) -> Measured:
  """Gathers one arm's rows, one per seed: what `measure` returns and 'write_ms' per episode."""
  return Measured(
      scores={k: np.stack([row['scores'][k] for row in rows]) for k in rows[0]['scores']},
      psnr=np.stack([row['psnr'] for row in rows]), frames=rows[0]['frames'],
      age=(task.new if arm.new_order else task.same).age,
      write_ms_per_episode=float(np.mean([row['write_ms'] for row in rows])),
      read_ms_per_frame=float(np.mean([row['read_ms'] for row in rows])))


def summarize(measured: Measured, *, window: int | None = None) -> dict[str, dict[str, float]]:
  """Metrics of one arm with bootstrap intervals over episodes.

  Args:
    measured: The arm.
    window: If given, recall is also split into cards last seen inside that many frames before the
      chunk (`recall_in_window`) and outside (`recall_outside`).
  """
  per_episode = lambda x: np.moveaxis(np.asarray(x, np.float64), 0, -1).mean(axis=1)  # [E S]
  out = {}
  for name in ('recall', 'covered', 'tile_mse_recall', 'covered_again'):
    out[name] = results.bootstrap(per_episode(measured.scores[name]), seed=0)
  if window is not None:
    hits = np.asarray(measured.scores['recall'], np.float64).mean(axis=0)  # [E N]
    for name, chosen in (
        ('recall_in_window', measured.age <= window), ('recall_outside', measured.age > window)):
      if chosen.any():
        out[name] = results.bootstrap(
            (hits * chosen).sum(1) / np.maximum(chosen.sum(1), 1), seed=0,
            weights=chosen.sum(1))
  out['psnr'] = results.bootstrap(measured.psnr.T, seed=0)
  fixed = lambda x: {'mean': x, 'low': x, 'high': x, 'n': measured.psnr.shape[1]}
  out['write_ms_per_episode'] = fixed(measured.write_ms_per_episode)
  out['read_ms_per_frame'] = fixed(measured.read_ms_per_frame)
  return out


def film_of(task: Problem, measured: Mapping[str, Measured], index: int) -> film.Strip:
  """Truth, base and composed side by side for one episode, right and wrong cards marked."""
  best = 'all' if 'all' in measured else next(k for k in reversed(list(measured)) if k != 'base')
  rows = {'base': measured['base'], best: measured[best]}
  marks = [
      mark for label, m in rows.items() for mark in film.tile_marks(
          label, task.same.frame[index], tile=task.same.tile[index],
          right=m.scores['recall'][0, index], grid=task.grid, size=m.frames.shape[2])]
  pictures = {'truth': np.asarray(task.same.truth.frames[index])}
  pictures |= {label: m.frames[index] for label, m in rows.items()}
  return film.Strip(
      rows=pictures, marks=tuple(marks),
      title=f'Episode {task.indices[index]} of {task.split}: the second reveal')


def strips(
    task: Problem, measured: Mapping[str, Measured], *, count: int = 3
) -> list[film.Strip]:
  """The film of the first episodes, at the frames that uncover a card."""
  return [
      film.select(film_of(task, measured, e), [int(f) for f in task.same.frame[e]])
      for e in range(min(count, len(task.indices)))]
