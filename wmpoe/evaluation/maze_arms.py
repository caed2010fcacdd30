"""Memory Maze: what every arm imagines, and how far it is from what the simulator showed.

All arms of a seed read the same written memories and are scored together, so that the features of
the true frames are computed once.

Shapes: A arms, E episodes, S seeds, T imagined frames of all places in a row.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import itertools
from typing import Any

import jax
import numpy as np

from wmpoe import world_model
from wmpoe.evaluation import arms as arms_lib
from wmpoe.evaluation import comparisons
from wmpoe.evaluation import kept as kept_lib
from wmpoe.evaluation import lpips
from wmpoe.evaluation import maze
from wmpoe.evaluation import metrics
from wmpoe.evaluation import results
from wmpoe.experts import short_term

# (predicted [A M H W 3], true [M H W 3]) uint8 -> one number per predicted frame [A M]
Metric = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
  """What one arm showed.

  Attributes:
    scores: By metric, [S E T].
    frames: uint8 [E T H W 3] of the first seed.
    write_ms_per_frame: Of the arm's memories, and of finding where a frame is if no poses are
      given; mean over seeds.
    read_ms_per_frame: Mean over seeds.
    memory_bytes: What an episode's memories take.
  """

  scores: Mapping[str, np.ndarray]
  frames: np.ndarray
  write_ms_per_frame: float = 0.0
  read_ms_per_frame: float = 0.0
  memory_bytes: float = 0.0


def standard_arms(memories: Sequence[str]) -> dict[str, arms_lib.Arm]:
  """The base and every combination of the memories; that of all of them is called `all`."""
  arms = {'base': arms_lib.Arm()}
  for count in range(1, len(memories) + 1):
    for chosen in itertools.combinations(memories, count):
      joined = '+'.join(chosen)
      arms['all' if count == len(memories) > 1 else joined] = arms_lib.Arm(memories=chosen)
  return arms


def further_arms(standard: Mapping[str, arms_lib.Arm], memories: Mapping[str, Any], *,
                 odometry: bool, depth: bool = False) -> dict[str, arms_lib.Arm]:
  """Spatial memory without true poses, or with true depth; short-term alone; naive product."""
  arms = {}
  if odometry and 'spatial' in memories:
    arms['spatial_odometry'] = dataclasses.replace(standard['spatial'], poses='odometry')
  if depth and points_of(memories) is not None:
    arms['spatial_depth'] = dataclasses.replace(standard['spatial'], depth='true')
  if isinstance(memories.get('short_term'), short_term.ShortTerm):
    arms['sliding'] = arms_lib.Arm(
        memories=('short_term',), with_base=False, rule='naive_product')
  if memories:
    arms['naive_product'] = arms_lib.Arm(memories=tuple(memories), rule='naive_product')
  return arms


def points_of(memories: Mapping[str, Any]) -> Any:
  """The point maps of the spatial memory, if it has any."""
  return getattr(memories.get('spatial'), 'points', None)


def baseline_arms(baselines: Mapping[str, Any]) -> dict[str, arms_lib.Arm]:
  """Networks to compare with: alone, a few episodes at a time; written weights with the base."""
  return {
      name: arms_lib.Arm(memories=(name,)) if hasattr(memory, 'fit') else arms_lib.Arm(
          memories=(name,), with_base=False, rule='naive_product', at_once=2)
      for name, memory in baselines.items()}


_imagine: Any = jax.jit(lambda model, state, actions, poses, key: model.imagine(
    state, actions, poses, key)[1])
_write: Any = jax.jit(lambda memory, state, seen, key: memory.write(state, seen, key))


def imagine(
    model: world_model.WorldModel,
    task: maze.Problem,
    arm: arms_lib.Arm,
    memories: Mapping[str, Any],
    key: jax.Array,
    place: int,
) -> tuple[np.ndarray, float]:
  """Imagines from one of the places; frames uint8 [E t H W 3] and milliseconds per frame."""
  composed, batch, start = arm.of(model), len(task.names), task.starts[place]
  before = jax.device_put(task.part(0, start, poses=arm.poses))
  now = dict(memories)
  if arm.memory_of != 'other' and start != task.history:
    # Windows move on with the episode, or back to where the history itself is asked for; what is
    # written into the other memories stays.
    back = start < task.history
    seen = before if back else jax.device_put(
        task.part(task.history, start, poses=arm.poses))
    for name in {'short_term', *model.follows} & set(now):
      memory = model.memories[name]
      now[name] = _write(memory, memory.init(batch) if back else now[name], seen, key)
  state = world_model.WorldState(
      recent=composed.init(batch).recent.push(before), memories=now)
  future = task.future(place, poses=arm.poses)
  given = (state, future.actions, future.poses,
           jax.random.split(jax.random.fold_in(key, place), batch))
  size = arm.at_once or batch
  shown, spent = [], 0.0
  for first in range(0, batch, size):
    piece = np.arange(first, first + size) % batch  # one shape; what is too much is dropped
    part = given if size == batch else jax.tree.map(lambda x, chosen=piece: x[chosen], given)
    out, seconds = arms_lib.timed(_imagine, composed, *part)
    shown.append(np.asarray(out))
    spent += seconds
  return np.concatenate(shown)[:batch], 1e3 * spent / (size * len(shown) * task.length)


def score(
    frames: np.ndarray, truth: np.ndarray, measures: Mapping[str, Metric],
    progress: arms_lib.Progress = lambda text, share: None,
) -> dict[str, np.ndarray]:
  """Every metric of frames [A E T H W 3] against the truth [E T H W 3]: [A E T]."""
  found: dict[str, list] = {name: [] for name in measures}
  for index, true in enumerate(truth):
    for name, measure in measures.items():
      found[name].append(measure(frames[:, index], true))
    progress('comparing frames', (index + 1) / len(truth))
  return {name: np.stack(values, axis=1) for name, values in found.items()}


def run(
    model: world_model.WorldModel,
    task: maze.Problem,
    *,
    arms: Mapping[str, arms_lib.Arm],
    seeds: Sequence[int],
    measures: Mapping[str, Metric],
    progress: arms_lib.Progress,
    copies: bool = True,
    label: str = '',
    kept: kept_lib.Kept = kept_lib.NOWHERE,
) -> dict[str, Measured]:
  """Writes the histories and measures every arm for every seed, and the copies if asked to.

  The `kept` parts are those of `parts`: what was measured of a seed from one of the places.
  """
  copied = maze.copies(task) if copies else {}
  points = points_of(model.memories)
  if copies and points is not None:
    copied['copy_warped'] = maze.warped_copy(task, points, copied['copy_turned'])
  names = [*arms, *copied]
  found: list[list[kept_lib.Found]] = []
  for seed in seeds:
    say = arms_lib.prefixed(progress, f'seed {seed}: ')
    written = functools.cache(functools.partial(_written, model, task, arms, seed, say))
    found.append([
        kept.once(part, functools.partial(
            _from_place, model, task, arms, place, written, jax.random.key(seed), measures,
            arms_lib.prefixed(say, f'from frame {task.starts[place]}, '),
            first=seed == seeds[0], copied=copied))
        for place, part in enumerate(parts(task, [seed], label))])
  cost = np.mean([part['cost'] for places in found for part in places], axis=0)
  measured = {}
  for at, name in enumerate(names):
    # The copies know no seed.
    own = found if name in arms else found[:1]
    spent = cost[at] if name in arms else (0.0, 0.0, 0.0)
    measured[name] = Measured(
        scores={m: np.stack([
            np.concatenate([part['scores'][m][at] for part in places], axis=1)
            for places in own]) for m in measures},
        frames=np.concatenate([part['frames'][at] for part in found[0]], axis=1),
        write_ms_per_frame=float(spent[0]), read_ms_per_frame=float(spent[1]),
        memory_bytes=float(spent[2]))
  return measured


def parts(task: maze.Problem, seeds: Sequence[int], label: str = '') -> list[str]:
  """Names of what `run` measures one after the other: from every place, seed by seed."""
  return [f'{label}seed {seed}, from frame {start}' for seed in seeds for start in task.starts]


# What `_written` gives: states of the own history, by what is known of it, of the shuffled one, and
# ms per episode.
_Known = tuple[str, str]  # poses, depth
_Written = tuple[
    Mapping[_Known, world_model.WorldState], world_model.WorldState, dict[str, float]]
_USUAL: _Known = ('true', 'network')


def _written(
    model: world_model.WorldModel, task: maze.Problem, arms: Mapping[str, arms_lib.Arm], seed: int,
    say: arms_lib.Progress,
) -> _Written:
  """All memories the arms read."""
  own, mixed, cost = arms_lib.write_own_and_shuffled(
      model, jax.device_put(task.part(0, task.history)), arms=list(arms.values()),
      seed=seed, say=say)
  states = {_USUAL: own}
  for known, memories in otherwise(arms).items():
    states[known], _ = arms_lib.write(
        model.compose('base', *memories),
        jax.device_put(task.part(0, task.history, poses=known[0], depth=known[1])),
        jax.random.fold_in(jax.random.key(seed), 0),
        arms_lib.prefixed(say, 'estimated poses, ' if known[0] == 'odometry' else 'true depth, '))
  return states, mixed, cost


def _from_place(
    model: world_model.WorldModel, task: maze.Problem, arms: Mapping[str, arms_lib.Arm],
    place: int, written: Callable[[], _Written], key: jax.Array, measures: Mapping[str, Metric],
    say: arms_lib.Progress, *, first: bool, copied: Mapping[str, np.ndarray],
) -> kept_lib.Found:
  """All arms from one place: scores and what they cost; of the first seed frames and copies."""
  states, mixed, wrote = written()
  shown, cost = [], []
  for done, (name, arm) in enumerate(arms.items()):
    frames, read = imagine(
        model, task, arm,
        arms_lib.memories_of(arm, states[arm.poses, arm.depth], mixed),
        jax.random.fold_in(key, 1), place)
    shown.append(frames)
    cost.append((
        sum(wrote[m] for m in arm.memories) / task.history + (
            task.locate_ms_per_frame if arm.poses == 'odometry' else 0.0), read,
        sum(memory_bytes(states[_USUAL].memories[m]) for m in arm.memories)))
    say(f'imagining {name}', (done + 1) / len(arms))
  there = slice(place * task.length, (place + 1) * task.length)
  if first:
    shown += [frames[:, there] for frames in copied.values()]
  pictures = np.stack(shown)
  found = {
      'scores': score(pictures, task.truth[:, there], measures, say), 'cost': np.array(cost)}
  return {**found, 'frames': pictures} if first else found


def memory_bytes(state: Any) -> float:
  """Bytes one episode's memory takes, out of a batch of them.

  Of a memory in weights the adapter alone counts: what is needed to read it.
  """
  kept = getattr(state, 'lora', state)
  return float(sum(x.nbytes / x.shape[0] for x in jax.tree.leaves(kept)))


def stages(
    model: world_model.WorldModel, arms: Mapping[str, arms_lib.Arm], parts_of_seeds: Sequence[int]
) -> int:
  """How many different things `run` reports to be doing for so many parts of each seed."""
  shuffled = arms_lib.shuffled_memories(list(arms.values()))
  writing = len(model.memories) + len(shuffled) + sum(map(len, otherwise(arms).values()))
  return sum(writing + count * (len(arms) + 1) for count in parts_of_seeds if count)


def otherwise(arms: Mapping[str, arms_lib.Arm]) -> dict[_Known, set[str]]:
  """What has to be written with estimated poses or true depth, too: by those, the memories."""
  out: dict[_Known, set[str]] = {}
  for arm in arms.values():
    if (arm.poses, arm.depth) != _USUAL:
      out.setdefault((arm.poses, arm.depth), set()).update(arm.memories)
  return out


def per_episode(measured: Measured, task: maze.Problem, *, split: bool
                ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """Means over frames by metric [E S], and how many frames [E] are behind each.

  Args:
    measured: An arm.
    task: The problem.
    split: Whether to give each metric for the revisited, unseen and in-window frames as well.
  """
  groups = {'': np.ones_like(task.revisited)}
  if split:
    groups |= {
        '_revisited': task.revisited, '_unseen': task.unseen, '_in_window': task.in_window}
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


def summarize(measured: Measured, base: Measured, task: maze.Problem, *, split: bool
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
  for name in ('write_ms_per_frame', 'read_ms_per_frame', 'memory_bytes'):
    out[name] = fixed(getattr(measured, name))
  return out


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
  each = lambda one: lambda frames, true: np.stack([one(arm, true) for arm in frames])
  chosen: dict[str, Metric] = {}
  for name in names:
    if name.startswith('lpips'):
      chosen[name] = functools.partial(lpips.lpips, lpips.load(name.removeprefix('lpips_')))
    else:
      chosen[name] = each({'psnr': metrics.psnr, 'ssim': metrics.ssim}[name])
  return chosen
