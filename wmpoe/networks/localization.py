"""Where an episode's frames were taken, from actions and pictures alone (loop closure).

Motions from frame to frame are summed; where the sum comes back to a place it was at before, the
two pictures are matched, and a pose graph takes the difference out of everything in between. Where
depth is known, last rounds align the pictures pixel by pixel (`alignment`). Poses are relative to
the first frame. Causal: poses once found may be given as known, and only later frames are placed.
Shapes: T frames of one episode; vmap or `lax.map` over episodes.
"""

import dataclasses

import chex
from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from wmpoe.networks import alignment as alignment_lib
from wmpoe.networks import odometry as odometry_lib
from wmpoe.networks import pose_graph
from wmpoe.networks import poses as poses_lib
from wmpoe.networks import warping


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopClosure:
  """How places seen again are found and believed.

  Attributes:
    count: Earlier pictures each picture is matched with; 0 leaves the sum of motions as it is.
    gap: Frames before a picture that are not matched with it: the motions between say it better.
    reach: Distance (cells) and angle (radians) that together cost 1; matched up to a cost of
      `limit`.
    limit: See `reach`.
    rounds: How often candidates are chosen anew with the poses found.
    step_error: Standard error of one motion, in cells and radians.
    aligned: Earlier pictures each picture is aligned with at last, where there is depth.
    last_rounds: How often they are.
    alignment: How.
  """

  count: int = 10
  gap: int = 20
  reach: tuple[float, float] = (1.0, 0.5)
  limit: float = 3.0
  rounds: int = 2
  step_error: tuple[float, float] = (0.006, 0.003)
  aligned: int = 4
  last_rounds: int = 2
  alignment: alignment_lib.Alignment = alignment_lib.Alignment()


@struct.dataclass
class Depth:
  """What alignment needs of the frames of an episode.

  Attributes:
    pictures: uint8 [T H W 3].
    inverse: Inverse depth [T H W].
    camera: Static; that took them.
  """

  pictures: jax.Array
  inverse: jax.Array
  camera: warping.Camera = struct.field(pytree_node=False, kw_only=True)


def locate(
    network: odometry_lib.Odometry,
    params: chex.ArrayTree,
    frames: chex.Array,
    actions: chex.Array,
    *,
    closure: LoopClosure = LoopClosure(),
    poses: chex.Array | None = None,
    known: chex.Array | int = 0,
    length: chex.Array | int | None = None,
    depth: Depth | None = None,
) -> jax.Array:
  """Poses [T 3] of the frames of one episode; the first is (0, 0, 0).

  Args:
    network: Static.
    params: Its parameters.
    frames: [T h w C]; what lies beyond `length` is not looked at.
    actions: [T A].
    closure: Static.
    poses: Optional poses [T 3] found before.
    known: How many of these are kept as they are.
    length: Frames that were seen, T by default; poses beyond are summed motions.
    depth: Optional; without it pictures are matched by the network alone.
  """
  total = frames.shape[0]
  length = total if length is None else length
  apply = lambda *args, **kw: network.apply({'params': params}, *args, **kw)
  motions = apply(frames[None], actions[None])[0]
  found = poses_lib.integrate(motions, jnp.zeros(3))
  index = jnp.arange(total)
  known = jnp.maximum(known, 1)  # the first frame is where the world begins
  if poses is not None:
    last = jnp.maximum(known - 1, 0)
    moved = poses_lib.integrate(jnp.where((index > last)[:, None], motions, 0.0), poses[last])
    found = jnp.where((index < known)[:, None], poses, moved)
  count = min(closure.count, total)
  if not count:
    return found
  is_known = index < known

  chain = pose_graph.Edges(
      first=index[:-1], second=index[1:], motion=motions[1:],
      weight=jnp.broadcast_to(1.0 / np.square(closure.step_error), (total - 1, 2)),
      doubtful=jnp.zeros(total - 1, bool))

  def near(at, count):
    """Pairs of pictures of one place: earlier, later, how they seem to lie [N 3], which are."""
    between = poses_lib.relative(at[:, None], at[None])  # of row, seen from column
    cost = poses_lib.apart(between, length=closure.reach[0], angle=closure.reach[1])
    earlier = (index[:, None] - index[None] > closure.gap) & (index < length)[:, None]
    lowest, then = jax.lax.top_k(-jnp.where(earlier, cost, jnp.inf), count)
    seems = jnp.take_along_axis(between, then[..., None], axis=1).reshape(-1, 3)
    return then.reshape(-1), jnp.repeat(index, count), seems, (
        lowest.reshape(-1) > -closure.limit)

  def fit(at, then, now, motion, weight):
    closures = pose_graph.Edges(
        first=then, second=now, motion=motion, weight=weight,
        doubtful=jnp.ones(then.shape, bool))
    edges = jax.tree.map(lambda *x: jnp.concatenate(x), chain, closures)
    return pose_graph.solve(at, edges, is_known)

  def improve(at, _):
    then, now, _, there = near(at, count)
    motion, log_error = apply(frames[then], frames[now], method='match')
    # A Laplace distribution of mean absolute error e has variance 2 e^2. The matches of a picture
    # share its part of the error: together they count once.
    precision = lambda log: jnp.exp(-2.0 * log) / (2.0 * count)
    weight = jnp.stack(
        [precision(jnp.mean(log_error[:, :2], axis=-1)), precision(log_error[:, 2])], axis=-1)
    return fit(at, then, now, motion, jnp.where(there[:, None], weight, 0.0)), None

  found, _ = jax.lax.scan(improve, found, length=closure.rounds)
  if depth is None:
    return found

  def align(at, _):
    then, now, seems, there = near(at, min(closure.aligned, total))
    picture = lambda i: (depth.pictures[i], depth.inverse[i])
    motion, weight = jax.lax.map(
        lambda pair: alignment_lib.align(
            depth.camera, picture(pair[0]), picture(pair[1]), pair[2], closure.alignment),
        (then, now, seems), batch_size=64)
    return fit(at, then, now, motion, jnp.where(
        there[:, None], weight / closure.aligned, 0.0)), None

  return jax.lax.scan(align, found, length=closure.last_rounds)[0]
