"""Memory Maze: what is to be imagined after which history, and what needs no model to do so.

What is remembered is always frames [0, H) of an episode. It is continued from one or several places
after that; the contexts of base and short-term are the frames right before those to be imagined.

Shapes: E episodes, T imagined frames of all places in a row.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wmpoe.data import episode
from wmpoe.data import memory_maze
from wmpoe.evaluation import arms as arms_lib
from wmpoe.evaluation import film
from wmpoe.evaluation import metrics
from wmpoe.evaluation import result_format
from wmpoe.experts import point_maps
from wmpoe.networks import localization
from wmpoe.networks import odometry as odometry_lib
from wmpoe.networks import poses as poses_lib

REVISIT_GAP = 50  # frames; longer than every context window
ANGLE = np.pi / 4
# The arms worth looking at.
FILMED = ('copy_pose', 'copy_warped', 'base', 'short_term', 'long_term', 'spatial', 'all')
# Half the field of view, and the pitch, of the official files, cropped.
MAZE_VIEW = (memory_maze.half_view(), float(memory_maze.CAMERA_PITCH))


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
    in_window: [E T] frames whose cell and heading were seen in the last frames before their place,
      but not by the base: what a short-term memory is for.
    names: Of the episodes.
    odometry: Poses [E L 3] from actions and frames, if there is an odometry; see `with_odometry`.
    planned: Poses [E T 3] of the frames to imagine, from actions alone after each place.
    locate_ms_per_frame: What the odometry takes, compilation excluded.
    planar: Whether poses are planar; if not, nothing counts as revisited or unseen.
    view: Half the field of view and the pitch of the camera, radians; None for a camera that is not
      known, or none that looks along the heading.
  """

  pixels: episode.Observation
  encoded: episode.Observation
  history: int
  starts: tuple[int, ...]
  length: int
  revisited: np.ndarray
  unseen: np.ndarray
  in_window: np.ndarray
  names: tuple[str, ...]
  odometry: Any = None
  planned: Any = None
  locate_ms_per_frame: float = 0.0
  planar: bool = True
  view: tuple[float, float] | None = MAZE_VIEW

  @property
  def truth(self) -> np.ndarray:
    """True frames uint8 [E T H W 3]."""
    return np.concatenate(
        [self.pixels.frames[:, s:s + self.length] for s in self.starts], axis=1)

  @property
  def asked(self) -> np.ndarray:
    """True poses [E T P] of the frames to imagine."""
    return np.concatenate(
        [self.pixels.poses[:, s:s + self.length] for s in self.starts], axis=1)

  def part(self, start: int, stop: int, *, poses: str = 'true', depth: str = 'network'
           ) -> episode.Observation:
    """Encoded frames [start, stop) of all episodes.

    Poses are 'true' or those of the 'odometry'; depth comes along where it is to be the 'true' one.
    """
    seen = self.encoded if depth == 'true' else dataclasses.replace(self.encoded, depth=None)
    if poses == 'odometry':
      seen = dataclasses.replace(seen, poses=self.odometry)
    return jax.tree.map(lambda x: x[:, start:stop], seen)

  def future(self, place: int, *, poses: str = 'true') -> episode.Observation:
    """The frames to imagine from a place; with planned poses if the 'odometry' is asked for."""
    start = self.starts[place]
    out = self.part(start, start + self.length)
    if poses == 'odometry':
      there = slice(place * self.length, (place + 1) * self.length)
      out = dataclasses.replace(out, poses=self.planned[:, there])
    return out


def problem(
    episodes: Sequence[episode.Episode],
    latents: Sequence[np.ndarray],
    *,
    history: int,
    starts: Sequence[int],
    length: int,
    windows: tuple[int, int] = (3, 33),
    planar: bool = True,
    view: tuple[float, float] | None = MAZE_VIEW,
    inside: bool = False,
) -> Problem:
  """The problem on given episodes.

  Args:
    episodes: Of one length, without border.
    latents: Of each, [L h w C].
    history: H.
    starts: Places, none before H; or all so long before it that the history has what is imagined.
    length: Frames to imagine at each.
    windows: Context frames of the base and of the short-term expert.
    planar: Whether poses are (x, y, heading).
    view: See `Problem`.
    inside: Which of the two.

  Raises:
    ValueError: if a place lies where it must not, or an episode is too short.
  """
  end = max(starts) + length
  if inside and (min(starts) < max(windows) or end > history):
    raise ValueError(
        f'Places {list(starts)} and {length} frames from there, with a history of {history}; '
        f'expected them inside it, after the {max(windows)} frames of the longest context.')
  if not inside and min(starts) < history:
    raise ValueError(
        f'starts={list(starts)} with a history of {history} frames; expected places after it.')
  end = max(end, history)
  short = [item.meta.get('name', '?') for item in episodes if item.length < end]
  if short:
    raise ValueError(
        f'The episodes {", ".join(short)} have fewer than the {end} frames needed; lower history, '
        'starts or length, or collect longer ones.')
  pixels = episode.stack(episodes, stop=end)
  encoded = np.stack([item[:end] for item in latents])
  nothing = (np.zeros(length * len(starts), bool),) * 3
  revisited, unseen, in_window = (np.stack(masks) for masks in zip(*(
      _seen(item.poses, history=history, starts=starts, length=length, windows=windows)
      if planar else nothing for item in episodes), strict=True))
  return Problem(
      pixels=pixels,
      encoded=dataclasses.replace(
          pixels, frames=encoded,
          pictures=None if encoded.shape == pixels.frames.shape else pixels.frames),
      history=history, starts=tuple(starts), length=length,
      revisited=revisited, unseen=unseen, in_window=in_window,
      planar=planar, view=view if planar else None,
      names=tuple(str(item.meta.get('name', i)) for i, item in enumerate(episodes)))


def _seen(
    poses: np.ndarray, *, history: int, starts: Sequence[int], length: int,
    windows: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Which of the frames to imagine were seen long ago, never, or in the window: bool [T] each."""
  base, window = windows
  revisited, unseen, in_window = [], [], []
  for start in starts:
    for t in range(start, start + length):
      alike = memory_maze.alike(poses, t, start, angle=ANGLE)
      revisited.append(alike[:max(0, min(history, t - REVISIT_GAP + 1))].any())
      unseen.append(not alike.any())
      in_window.append(
          alike[max(0, start - window):start - base].any() and not alike[start - base:].any())
  return np.array(revisited), np.array(unseen), np.array(in_window)


def with_odometry(
    task: Problem, network: odometry_lib.Odometry, params: Any,
    points: point_maps.PointMaps | None = None,
    progress: arms_lib.Progress = lambda text, share: None,
) -> Problem:
  """The problem for those who have no poses: they are estimated, from the first frame on.

  No estimate uses what comes after it: the history is located first, then the frames up to each
  place, and what was found before stays as it is. With `points` pictures are aligned by depth.
  """
  def one(seen, poses, known, length):
    depth = None if points is None else localization.Depth(
        pictures=seen.pictures, camera=points.camera,
        inverse=point_maps.from_bytes(points.measure(seen.frames)))
    return localization.locate(
        network, params, seen.frames, seen.actions, poses=poses, known=known, length=length,
        depth=depth)

  locate = jax.jit(lambda seen, poses, known, length: jax.lax.map(
      lambda each: one(each[0], each[1], known, length), (seen, poses)))
  seen = jax.device_put(task.encoded)
  poses, known, spent = jnp.zeros(task.encoded.poses.shape), 0, 0.0
  for length in sorted({task.history, *task.starts, poses.shape[1]}):
    progress('estimating poses from pictures and actions', known / poses.shape[1])
    poses, seconds = arms_lib.timed(locate, seen, poses, known, length)
    known, spent = length, spent + seconds
  planned = jax.jit(lambda actions: network.apply({'params': params}, actions, method='planned'))(
      seen.actions)
  ahead = [poses_lib.integrate(planned[:, s:s + task.length], poses[:, s - 1]) for s in task.starts]
  return dataclasses.replace(
      task, odometry=np.asarray(poses), planned=np.asarray(jnp.concatenate(ahead, axis=1)),
      locate_ms_per_frame=1e3 * spent / (poses.shape[0] * poses.shape[1]))


def drift(task: Problem, after: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
  """Mean error of the odometry after so many frames: in cells and in radians, [E len(after)]."""
  position, heading = [], []
  relative = lambda poses, count: memory_maze.relative_pose(poses[:, count:], poses[:, :-count])
  for count in after:
    true, found = (relative(poses, count) for poses in (task.pixels.poses, task.odometry))
    position.append(np.linalg.norm((found - true)[..., :2], axis=-1).mean(axis=1))
    heading.append(np.abs(memory_maze.wrap((found - true)[..., 2])).mean(axis=1))
  return np.stack(position, axis=1), np.stack(heading, axis=1)


def following(
    task: Problem, frames: np.ndarray, network: odometry_lib.Odometry, params: Any, encode: Any
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """How far imagined frames move as commanded, by pictures alone.

  The odometry's matching, which knows no action, says how the camera moved from each frame to the
  next, the first one from the true frame before it. That is regressed on the commanded motion, that
  of the true poses: a slope of 1 is to move as commanded, 0 to stand still or to move at random.

  Args:
    task: The problem.
    frames: uint8 [E T H W 3].
    network: Odometry.
    params: Its parameters.
    encode: From frames [N H W 3] to what the odometry looks at.

  Returns:
    'turn_following' and 'advance_following': slope and weight of each episode, [E] both.
  """
  episodes, places = len(task.names), len(task.starts)
  seen = np.stack([encode(item) for item in frames])
  seen = seen.reshape(episodes, places, task.length, *seen.shape[2:])
  first = np.stack([task.encoded.frames[:, s - 1] for s in task.starts], axis=1)
  before = np.concatenate([first[:, :, None], seen[:, :, :-1]], axis=2)
  moved = np.stack([
      _matched(network, params, a.reshape(-1, *a.shape[2:]), b.reshape(-1, *b.shape[2:]))
      for a, b in zip(before, seen, strict=True)])  # [E T 3]
  poses, found = task.pixels.poses, {}
  told = np.concatenate([memory_maze.relative_pose(
      poses[:, s:s + task.length], poses[:, s - 1:s + task.length - 1])
      for s in task.starts], axis=1)
  for name, axis in (('turn_following', 2), ('advance_following', 0)):
    # Centred, so that always going ahead is no following.
    command = told[..., axis] - told[..., axis].mean()
    weight = np.square(command).sum(axis=1)
    found[name] = (command * moved[..., axis]).sum(axis=1) / np.maximum(weight, 1e-9), weight
  return found


@functools.partial(jax.jit, static_argnames='network')
def _matched(network: odometry_lib.Odometry, params: Any, first: jax.Array, second: jax.Array
             ) -> jax.Array:
  """Motion [N 3] between pictures [N h w C]; compiled once for all arms."""
  return network.apply({'params': params}, first, second, method='match')[0]


def copies(task: Problem) -> dict[str, np.ndarray]:
  """What needs no model: frames uint8 [E T H W 3] of the copy baselines.

  The last frame, the mean of the history, the remembered frame nearest in true pose if poses are
  planar, and that frame turned to the asked heading if the camera is known.
  """
  frames, poses = task.pixels.frames, task.pixels.poses
  past, out = frames[:, :task.history], {}
  count = task.length * len(task.starts)
  out['copy_last'] = np.concatenate([
      np.repeat(frames[:, s - 1:s], task.length, axis=1) for s in task.starts], axis=1)
  mean = np.round(past.mean(axis=1, keepdims=True)).astype(np.uint8)
  out['copy_mean'] = np.repeat(mean, count, axis=1)
  if not task.planar:
    return out
  relative = memory_maze.relative_pose(poses[:, None, :task.history], task.asked[:, :, None])
  cost = np.square(relative[..., :2]).sum(-1) + np.square(relative[..., 2] / 0.6)
  nearest = cost.argmin(axis=2)  # [E T]
  out['copy_pose'] = np.take_along_axis(past, nearest[..., None, None, None], axis=1)
  if task.view is not None:
    turn = np.take_along_axis(relative[..., 2], nearest[..., None], axis=2)[..., 0]
    out['copy_turned'] = _turned(out['copy_pose'], turn, task.view)
  return out


def warped_copy(
    task: Problem, points: point_maps.PointMaps, otherwise: np.ndarray) -> np.ndarray:
  """What point maps of the history show of the frames to imagine, without any denoiser.

  Args:
    task: The problem.
    points: Depth, camera, how many pictures are warped.
    otherwise: Frames uint8 [E T H W 3], for the pixels that were never seen.

  Returns:
    Frames uint8 [E T H W 3].
  """
  out = []
  for index, other in enumerate(otherwise):
    past = jax.tree.map(lambda x, i=index: x[i:i + 1, :task.history], task.encoded)
    views, seen = _views(
        points, task.pixels.frames[index:index + 1, :task.history], past.frames, past.poses,
        task.asked[index:index + 1])
    out.append(np.where(seen[0][..., None], views[0], other))
  return np.stack(out)


@jax.jit
def _views(
    points: point_maps.PointMaps, pictures: jax.Array, latents: jax.Array, poses: jax.Array,
    asked: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  everything = jnp.ones(poses.shape[:2], bool)
  return points.views(pictures, points.measure(latents), poses, everything, asked)


@functools.partial(jax.jit, static_argnames='view')
def _turned(frames: jax.Array, turn: jax.Array, view: tuple[float, float]) -> jax.Array:
  """Frames [E T H W 3] of a camera that stood turned by `turn` [E T], as seen without that turn."""
  where, _ = poses_lib.turn_grid(
      -turn, (frames.shape[2], frames.shape[3]), half_view=view[0], pitch=view[1])
  flat = lambda x: x.reshape(-1, *x.shape[2:])
  found = poses_lib.sample_grid(flat(frames).astype(jnp.float32), flat(where))
  return jnp.round(found).astype(jnp.uint8).reshape(frames.shape)


def film_of(
    task: Problem, frames: Mapping[str, np.ndarray], index: int, names: Sequence[str] = FILMED
) -> film.Strip:
  """Truth, and those of the arms there are, for one episode from its first place on."""
  whole = slice(0, task.length)
  rows = {'truth': task.truth[index, whole]}
  rows |= {n: frames[n][index, whole] for n in names if n in frames}
  return film.Strip(
      rows=rows, marks=(), title=f'Episode {task.names[index]}, frames after {task.starts[0]}')


def strips(
    task: Problem, frames: Mapping[str, np.ndarray], names: Sequence[str] = FILMED, *,
    count: int = 4,
) -> list[film.Strip]:
  """Every second frame of the films of the episodes that revisit the most."""
  return [film.select(film_of(task, frames, index, names), range(0, task.length, 2))
          for index in most_revisiting(task, count)]


def maps(
    task: Problem, scores: Mapping[str, np.ndarray], metric: str, *, arm: str,
    layouts: Sequence[Any], count: int = 4,
) -> list[dict[str, Any]]:
  """Maps of the episodes that revisit the most, see `result_format.validate`.

  Args:
    task: The problem, with planar poses.
    scores: Of 'base' and the arm by the metric, each [S E T].
    metric: Its name.
    arm: What is compared with the base.
    layouts: Of each episode [N N], 1 where free; or None.
    count: How many maps.
  """
  gain = metrics.direction(metric) * (scores[arm] - scores['base']).mean(axis=0)
  poses, asked = task.pixels.poses, task.asked
  kind = np.where(task.revisited, 2, np.where(task.unseen, 0, 1))
  return [{
      'title': f'Episode {task.names[index]}', 'metric': metric, 'arm': arm,
      'layout': [] if layouts[index] is None else layouts[index],
      'path': np.round(poses[index, :task.history, :2].astype(float), 3).tolist(),
      'asked': [
          {'x': round(float(x), 3), 'y': round(float(y), 3), 'heading': round(float(h), 3),
           'gain': round(float(g), 4), 'seen': result_format.SEEN[k]}
          for (x, y, h), g, k in zip(asked[index], gain[index], kind[index], strict=True)],
  } for index in most_revisiting(task, count)]


def most_revisiting(task: Problem, count: int) -> list[int]:
  """The episodes that revisit the most in their first place."""
  revisits = task.revisited[:, :task.length].sum(axis=1)
  return np.argsort(-revisits, kind='stable')[:count].tolist()
