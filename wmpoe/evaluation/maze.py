"""Memory Maze: write a history, imagine what follows, compare with what the simulator showed.

Protocols. `table1`: the frames right after a history. `revisit`: frames from several places further
on, split into those that show a place and heading seen long ago (memory must help) and those never
seen (it must not hurt). What is remembered is always frames [0, H); the context of base and
short-term are the frames right before those to be imagined.

Beside the arms: no memory (the base), another episode's memory, the history in random order, and
three copies: the last frame, the mean of the history, the remembered frame nearest in true pose.

Shapes: E episodes, S seeds, T imagined frames of all places in a row.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wmpoe import world_model
from wmpoe.data import episode
from wmpoe.data import memory_maze
from wmpoe.evaluation import arms as arms_lib
from wmpoe.evaluation import comparisons
from wmpoe.evaluation import film
from wmpoe.evaluation import lpips
from wmpoe.evaluation import metrics
from wmpoe.evaluation import results

REVISIT_GAP = 50  # frames; longer than every context window
ANGLE = np.pi / 4

# (predicted [M H W 3], true [M H W 3]) uint8 -> one number per frame [M]
Metric = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
  """E episodes and the places at which each is to be continued.

  Attributes:
    pixels: The episodes as they are, frames uint8 [E L H W 3].
    encoded: The same with latents for frames.
    history: Frames H that memories are written from.
    starts: First frame to imagine, for each place.
    length: Frames to imagine from each place.
    revisited: [E T] frames whose cell and heading were seen in the history, long ago.
    unseen: [E T] frames whose cell and heading were never seen before their place.
    names: Of the episodes.
  """

  pixels: episode.Observation
  encoded: episode.Observation
  history: int
  starts: tuple[int, ...]
  length: int
  revisited: np.ndarray
  unseen: np.ndarray
  names: tuple[str, ...]

  @property
  def truth(self) -> np.ndarray:
    """True frames uint8 [E T H W 3]."""
    return np.concatenate(
        [self.pixels.frames[:, s:s + self.length] for s in self.starts], axis=1)

  def part(self, which: episode.Observation, start: int, stop: int) -> episode.Observation:
    """Frames [start, stop) of all episodes."""
    return jax.tree.map(lambda x: x[:, start:stop], which)


def problem(
    episodes: Sequence[episode.Episode],
    encode: Callable[[np.ndarray], np.ndarray],
    *,
    history: int,
    starts: Sequence[int],
    length: int,
) -> Problem:
  """The problem on given episodes.

  Args:
    episodes: Of one length, without border.
    encode: Frames uint8 [T H W 3] -> latents [T h w C].
    history: H.
    starts: Places, none before H.
    length: Frames to imagine at each.

  Raises:
    ValueError: if a place lies before the end of the history or an episode is too short.
  """
  end = max(starts) + length
  if min(starts) < history:
    raise ValueError(
        f'starts={list(starts)} with a history of {history} frames; expected places after it.')
  short = [item.meta.get('name', '?') for item in episodes if item.length < end]
  if short:
    raise ValueError(
        f'The episodes {", ".join(short)} have fewer than the {end} frames needed; lower history, '
        'starts or length, or collect longer ones.')
  pixels = episode.stack(episodes, stop=end)
  latents = np.stack([encode(frames) for frames in pixels.frames])
  seen = [_seen(item.poses, history=history, starts=starts, length=length) for item in episodes]
  return Problem(
      pixels=pixels,
      encoded=episode.Observation(frames=latents, actions=pixels.actions, poses=pixels.poses),
      history=history, starts=tuple(starts), length=length,
      revisited=np.stack([r for r, _ in seen]), unseen=np.stack([u for _, u in seen]),
      names=tuple(str(item.meta.get('name', i)) for i, item in enumerate(episodes)))


def _seen(poses: np.ndarray, *, history: int, starts: Sequence[int], length: int
          ) -> tuple[np.ndarray, np.ndarray]:
  """Which of the frames to imagine were seen long ago, and which never: bool [T] each."""
  cell = memory_maze.cells(poses)
  revisited, unseen = [], []
  for start in starts:
    for t in range(start, start + length):
      alike = (cell[:start] == cell[t]).all(axis=1) & (
          np.abs(memory_maze.wrap(poses[:start, 2] - poses[t, 2])) <= ANGLE)
      revisited.append(alike[:max(0, min(history, t - REVISIT_GAP))].any())
      unseen.append(not alike.any())
  return np.array(revisited), np.array(unseen)


# ------------------------------------------------------------------------------------- arms, copies


def standard_arms(memories: Sequence[str]) -> dict[str, arms_lib.Arm]:
  """The base and every combination of the memories; that of all of them is called `all`."""
  arms = {'base': arms_lib.Arm()}
  for count in range(1, len(memories) + 1):
    for chosen in itertools.combinations(memories, count):
      everything = count == len(memories) > 1
      arms['all' if everything else '+'.join(chosen)] = arms_lib.Arm(memories=chosen)
  return arms


def copies(task: Problem) -> dict[str, np.ndarray]:
  """What needs no model: frames uint8 [E T H W 3] of the three copy baselines."""
  frames, poses = task.pixels.frames, task.pixels.poses
  past, out = frames[:, :task.history], {}
  count = task.length * len(task.starts)
  out['copy_last'] = np.concatenate([
      np.repeat(frames[:, s - 1:s], task.length, axis=1) for s in task.starts], axis=1)
  mean = np.round(past.mean(axis=1, keepdims=True)).astype(np.uint8)
  out['copy_mean'] = np.repeat(mean, count, axis=1)
  asked = np.concatenate([poses[:, s:s + task.length] for s in task.starts], axis=1)
  relative = memory_maze.relative_pose(poses[:, None, :task.history], asked[:, :, None])
  cost = np.square(relative[..., :2]).sum(-1) + np.square(relative[..., 2] / 0.6)
  nearest = cost.argmin(axis=2)  # [E T]
  out['copy_pose'] = np.take_along_axis(past, nearest[..., None, None, None], axis=1)
  return out


_imagine: Any = jax.jit(lambda model, state, actions, poses, key: model.imagine(
    state, actions, poses, key)[1])


def imagine(
    model: world_model.WorldModel,
    task: Problem,
    arm: arms_lib.Arm,
    memories: Mapping[str, Any],
    key: jax.Array,
) -> tuple[np.ndarray, float]:
  """Imagines from every place; frames uint8 [E T H W 3] and milliseconds per frame."""
  composed, batch = model.compose('base', *arm.memories), len(task.names)
  frames, spent = [], 0.0
  for index, start in enumerate(task.starts):
    before = jax.tree.map(jnp.asarray, task.part(task.encoded, 0, start))
    state = composed.init(batch)
    now = dict(memories)
    if 'short_term' in now and arm.memory_of != 'other' and start > task.history:
      # The window moves on with the episode; what is written into the other memories stays.
      now['short_term'] = model.memories['short_term'].write(
          now['short_term'], task.part(task.encoded, task.history, start), key)
    state = world_model.WorldState(recent=state.recent.push(before), memories=now)
    future = task.part(task.encoded, start, start + task.length)
    out, seconds = arms_lib.timed(
        _imagine, composed, state, future.actions, future.poses, jax.random.fold_in(key, index))
    frames.append(np.asarray(out))
    spent += seconds
  count = batch * task.length * len(task.starts)
  return np.concatenate(frames, axis=1), 1e3 * spent / count


# ---------------------------------------------------------------------------------------- measuring


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
  """What one arm showed.

  Attributes:
    scores: By metric, [S E T].
    frames: uint8 [E T H W 3] of the first seed.
    write_ms_per_frame: Of the arm's memories, mean over seeds.
    read_ms_per_frame: Mean over seeds.
  """

  scores: Mapping[str, np.ndarray]
  frames: np.ndarray
  write_ms_per_frame: float = 0.0
  read_ms_per_frame: float = 0.0


def score(frames: np.ndarray, truth: np.ndarray, measures: Mapping[str, Metric]
          ) -> dict[str, np.ndarray]:
  """Every metric of frames [E T H W 3] against the truth: [E T]."""
  flat = lambda x: x.reshape(-1, *x.shape[2:])
  return {
      name: np.asarray(measure(flat(frames), flat(truth))).reshape(frames.shape[:2])
      for name, measure in measures.items()}


def run(
    model: world_model.WorldModel,
    task: Problem,
    *,
    arms: Mapping[str, arms_lib.Arm],
    seeds: Sequence[int],
    measures: Mapping[str, Metric],
    progress: arms_lib.Progress,
) -> dict[str, Measured]:
  """Writes the histories and measures every arm for every seed, and the copies."""
  truth = task.truth
  history = jax.tree.map(jnp.asarray, task.part(task.encoded, 0, task.history))
  rows: dict[str, list] = {name: [] for name in arms}
  for seed in seeds:
    key = jax.random.key(seed)
    say = arms_lib.prefixed(progress, f'seed {seed}: ')
    own, mixed, cost = arms_lib.write_own_and_shuffled(
        model, history, arms=list(arms.values()), seed=seed, say=say)
    for done, (name, arm) in enumerate(arms.items()):
      frames, read = imagine(
          model, task, arm, arms_lib.memories_of(arm, own, mixed), jax.random.fold_in(key, 1))
      written = sum(cost[m] for m in arm.memories) / task.history
      rows[name].append((score(frames, truth, measures), frames, written, read))
      say(f'imagining {name}', (done + 1) / len(arms))
  measured = {}
  for name, found in rows.items():
    per_seed, pictures, wrote, reads = zip(*found, strict=True)
    measured[name] = Measured(
        scores={m: np.stack([s[m] for s in per_seed]) for m in measures}, frames=pictures[0],
        write_ms_per_frame=float(np.mean(wrote)), read_ms_per_frame=float(np.mean(reads)))
  for name, copied in copies(task).items():
    measured[name] = Measured(
        scores={m: x[None] for m, x in score(copied, truth, measures).items()}, frames=copied)
  return measured


def stages(model: world_model.WorldModel, arms: Mapping[str, arms_lib.Arm], seeds: int) -> int:
  """How many different things `run` reports to be doing."""
  shuffled = any(arm.memory_of == 'shuffled' for arm in arms.values())
  return seeds * (len(arms) + (1 + shuffled) * len(model.memories))


def per_episode(measured: Measured, task: Problem, *, split: bool
                ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """Means over frames by metric [E S], and how many frames [E] are behind each.

  Args:
    measured: An arm.
    task: The problem.
    split: Whether to give each metric for the revisited and the unseen frames as well.
  """
  groups = {'': np.ones_like(task.revisited)}
  if split:
    groups |= {'_revisited': task.revisited, '_unseen': task.unseen}
  values, weights = {}, {}
  for suffix, chosen in groups.items():
    counts = chosen.sum(axis=1)
    if not counts.any():
      continue
    for name, scores in measured.scores.items():
      total = np.einsum('set,et->es', scores, chosen)
      values[name + suffix] = total / np.maximum(counts, 1)[:, None]
      weights[name + suffix] = counts.astype(np.float64)
  return values, weights


def summarize(measured: Measured, base: Measured, task: Problem, *, split: bool
              ) -> dict[str, dict[str, float]]:
  """Metrics of one arm, and their paired differences to the base, with bootstrap intervals.

  Args:
    measured: The arm.
    base: The base, on the same episodes; nothing is compared if it is the arm.
    task: The problem.
    split: See `per_episode`.
  """
  values, weights = per_episode(measured, task, split=split)
  out = {
      name: results.bootstrap(x, seed=0, weights=weights[name]) for name, x in values.items()}
  if measured is not base:
    reference, _ = per_episode(base, task, split=split)
    out |= comparisons.against_base(values, reference, seed=0, weights=weights)
  fixed = lambda x: {'mean': x, 'low': x, 'high': x, 'n': len(task.names)}
  out['write_ms_per_frame'] = fixed(measured.write_ms_per_frame)
  out['read_ms_per_frame'] = fixed(measured.read_ms_per_frame)
  return out


def film_of(task: Problem, measured: Mapping[str, Measured], index: int) -> film.Strip:
  """Truth, base, each memory and all composed, for one episode from its first place on."""
  whole = slice(0, task.length)
  rows = {'truth': task.truth[index, whole]}
  rows |= {n: measured[n].frames[index, whole] for n in arms_of_film(measured)}
  return film.Strip(
      rows=rows, marks=(), title=f'Episode {task.names[index]}, frames after {task.starts[0]}')


def strips(task: Problem, measured: Mapping[str, Measured], *, count: int = 4
           ) -> list[film.Strip]:
  """Every second frame of the films of the episodes that revisit the most."""
  order = np.argsort(-task.revisited[:, :task.length].sum(axis=1), kind='stable')[:count]
  return [film.select(film_of(task, measured, e), range(0, task.length, 2)) for e in order]


def arms_of_film(measured: Mapping[str, Any]) -> list[str]:
  """The arms worth looking at."""
  wanted = ('copy_pose', 'base', 'short_term', 'long_term', 'spatial', 'all')
  return [name for name in wanted if name in measured]


def measures(names: Sequence[str]) -> dict[str, Metric]:
  """The named metrics: psnr, ssim, lpips_vgg, lpips_alex.

  Raises:
    ValueError: for an unknown name.
    ModuleNotFoundError: if a metric needs an extra that is not installed.
  """
  known = ('psnr', 'ssim', 'lpips_vgg', 'lpips_alex')
  unknown = [name for name in names if name not in known]
  if unknown or not names:
    raise ValueError(f'Metrics {list(names)}; expected some of {", ".join(known)}.')
  chosen: dict[str, Metric] = {}
  for name in names:
    if name.startswith('lpips'):
      chosen[name] = functools.partial(lpips.lpips, lpips.load(name.removeprefix('lpips_')))
    else:
      chosen[name] = {'psnr': metrics.psnr, 'ssim': metrics.ssim}[name]
  return chosen
