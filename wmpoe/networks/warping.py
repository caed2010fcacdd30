"""Remembered pictures, warped to a view: image-based rendering with known poses and depths.

Every remembered pixel is a point of the world. Those of the pictures that share the most with an
asked view are splatted into it, nearest first, which says how far it sees; there each of its pixels
is looked up in the picture taken from nearest by that really saw the point. What none of them saw
is left open. Nothing is learned here.

Shapes: one view asked; S pictures h x w, inverse depth in one over units of the world (0 is
infinitely far), poses planar (`poses`). Points are homogeneous (x, y, z, w): the point is
(x, y, z) / w, and in the sky w is 0.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np

from wmpoe.networks import poses as poses_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Camera:
  """A pinhole camera on a planar pose.

  Attributes:
    half_view: Half the field of view, radians, of width and height alike.
    pitch: How far it looks down, radians.
    ahead: How far before the pose it stands, in units of the world.
  """

  half_view: float
  pitch: float = 0.0
  ahead: float = 0.0

  def __post_init__(self):
    if not 0 < self.half_view < np.pi / 2:
      raise ValueError(f'half_view={self.half_view}; expected radians between 0 and pi / 2.')

  def _centre(self, pose: jax.Array) -> tuple[jax.Array, jax.Array]:
    return (pose[..., 0] + self.ahead * jnp.cos(pose[..., 2]),
            pose[..., 1] + self.ahead * jnp.sin(pose[..., 2]))

  def points(self, inverse_depth: chex.Array, pose: chex.Array) -> jax.Array:
    """What pixels [... h w] of views from poses [... 3] show: points [... h w 4]."""
    centres = lambda size: ((np.arange(size) + 0.5) / size * 2 - 1) * np.tan(self.half_view)
    down, right = np.meshgrid(*map(centres, inverse_depth.shape[-2:]), indexing='ij')
    cos, sin = np.cos(self.pitch), np.sin(self.pitch)
    ahead, left, up = (x.astype(np.float32) for x in (
        cos - sin * down, -right, -sin - cos * down))
    wide = lambda x: x[..., None, None]
    cos, sin = wide(jnp.cos(pose[..., 2])), wide(jnp.sin(pose[..., 2]))
    x, y = map(wide, self._centre(pose))
    return jnp.stack(jnp.broadcast_arrays(
        cos * ahead - sin * left + x * inverse_depth,
        sin * ahead + cos * left + y * inverse_depth, up, inverse_depth), axis=-1)

  def project(
      self, points: chex.Array, pose: chex.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where views from poses [... 3] show points [... h w 4].

    Returns:
      (row, column) [... h w 2], 0 and 1 at the picture's edges; the inverse depth there [... h w];
      whether they lie inside the picture [... h w].
    """
    wide = lambda x: x[..., None, None]
    x, y = map(wide, self._centre(pose))
    cos, sin = wide(jnp.cos(pose[..., 2])), wide(jnp.sin(pose[..., 2]))
    dx, dy, up, w = (
        points[..., 0] - x * points[..., 3], points[..., 1] - y * points[..., 3],
        points[..., 2], points[..., 3])
    level, left = cos * dx + sin * dy, cos * dy - sin * dx
    cos, sin = np.cos(self.pitch), np.sin(self.pitch)
    depth, height = cos * level - sin * up, sin * level + cos * up
    in_front = depth > 1e-3
    depth = jnp.where(in_front, depth, 1.0)
    extent = 2 * np.tan(self.half_view)
    where = 0.5 - jnp.stack([height, left], axis=-1) / (extent * depth[..., None])
    inside = in_front & jnp.all((where >= 0.0) & (where < 1.0), axis=-1)
    return where, w / depth, inside


def render(
    camera: Camera,
    pictures: chex.Array,
    inverse_depth: chex.Array,
    poses: chex.Array,
    valid: chex.Array,
    asked: chex.Array,
    second: chex.Array | None = None,
    *,
    count: int = 8,
    coarse: int = 10,
) -> tuple[jax.Array, jax.Array]:
  """The asked view as far as it was seen before.

  Args:
    camera: That took them all.
    pictures: uint8 [S h w 3].
    inverse_depth: [S h w].
    poses: [S 3].
    valid: Which of the pictures exist [S].
    asked: Pose of the view [3].
    second: Optional; which of the pictures come second, see `poses.SECOND` [S].
    count: Pictures that are warped.
    coarse: Pixels a side at which it is found out which.

  Returns:
    The view, float32 [h w 3] of 0 to 255, and which of its pixels were seen [h w].
  """
  shape, bits = inverse_depth.shape[1:], tuple(
      ((np.arange(coarse) + 0.5) / coarse * size).astype(int) for size in inverse_depth.shape[1:])
  small = inverse_depth[:, bits[0]][:, :, bits[1]]
  index, usable = _choose(camera, small, poses, valid, second, asked, count)
  poses, depths = poses[index], inverse_depth[index]
  second = None if second is None else second[index]
  far = _closed(_splat(camera, depths, poses, usable, second, asked, shape))
  where, seen = _seen(camera, far, asked, depths, poses)
  seen = seen & usable[:, None, None]
  first = jnp.argmax(seen, axis=0)  # they come nearest first
  where = jnp.take_along_axis(where, first[None, ..., None], axis=0)[0]
  return sample(pictures, index[first], where), jnp.any(seen, axis=0)


def _choose(
    camera: Camera, small: jax.Array, poses: jax.Array, valid: jax.Array,
    second: jax.Array | None, asked: jax.Array, count: int,
) -> tuple[jax.Array, jax.Array]:
  """The pictures that together show the most of the asked view, from the nearest poses.

  Greedily, by what each adds (as for facility location): a pixel counts as much as the best picture
  that saw its point is near. Returns indices [count], nearest first, and which are of any use.
  """
  far = _filled(_splat(camera, small, poses, valid, second, asked, small.shape[1:]))
  _, seen = _seen(camera, far, asked, small, poses)
  cost = poses_lib.apart(poses_lib.relative(poses, asked), length=1.0, angle=0.6)
  if second is not None:
    cost = cost + poses_lib.SECOND * second
  worth = jnp.exp(-cost / 4.0)[:, None, None] * (seen & valid[:, None, None])

  def take(best, _):
    gain = jnp.sum(jnp.maximum(worth - best, 0.0), axis=(1, 2))
    chosen = jnp.argmax(gain)
    return jnp.maximum(best, worth[chosen]), (chosen, gain[chosen] > 0.0)

  _, (index, usable) = jax.lax.scan(take, jnp.zeros(small.shape[1:]), None, length=count)
  order = jnp.argsort(jnp.where(usable, cost[index], jnp.inf))
  return index[order], usable[order]


_NEAR = 1e-6  # what the sky gets, where 0 says that nothing is known


def _splat(
    camera: Camera, inverse_depth: jax.Array, poses: jax.Array, valid: jax.Array,
    second: jax.Array | None, asked: jax.Array, shape: tuple[int, ...],
) -> jax.Array:
  """Inverse depth [h w] of the asked view, the nearest of all that falls on a pixel; 0 if none.

  Pictures that come second count where no other falls: they hide nothing that others show.
  """
  points = camera.points(inverse_depth, poses)
  where, depth, inside = camera.project(points, asked)
  row, column = (
      (where[..., i] * shape[i]).astype(jnp.int32) for i in range(2))

  def nearest(valid):
    there = inside & valid[:, None, None]
    flat = jnp.where(there, row * shape[1] + column, shape[0] * shape[1])
    out = jnp.zeros((shape[0] * shape[1] + 1,)).at[flat.ravel()].max((depth + _NEAR).ravel())
    return out[:-1].reshape(shape)

  if second is None:
    return nearest(valid)
  first = nearest(valid & ~second)
  return jnp.where(first > 0.0, first, nearest(valid & second))


def _closed(inverse_depth: jax.Array) -> jax.Array:
  """Without what shows through gaps between the points of a surface near by, and lone points."""
  pool = lambda x, op, start: jax.lax.reduce_window(x, start, op, (3, 3), (1, 1), 'SAME')
  widest = lambda x: pool(x, jax.lax.max, -jnp.inf)
  narrowest = lambda x: pool(x, jax.lax.min, jnp.inf)
  return widest(narrowest(_filled(narrowest(widest(inverse_depth)))))


def _filled(inverse_depth: jax.Array, times: int = 4) -> jax.Array:
  """Holes [h w] filled with the mean of the pixels around that are known, again and again."""
  total = lambda x: jax.lax.reduce_window(x, 0.0, jax.lax.add, (3, 3), (1, 1), 'SAME')
  for _ in range(times):
    known = (inverse_depth > 0.0).astype(jnp.float32)
    mean = total(inverse_depth) / jnp.maximum(total(known), 1.0)
    inverse_depth = jnp.where(known > 0.0, inverse_depth, mean)
  return inverse_depth


def _seen(
    camera: Camera, far: jax.Array, asked: jax.Array, inverse_depth: jax.Array, poses: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Where S pictures show what the asked view does, [S h w 2], and whether they do, [S h w].

  They do if they are as far from it as its point is: nothing stands before it.
  """
  points = jnp.broadcast_to(camera.points(far, asked), (len(poses), *far.shape, 4))
  where, depth, inside = camera.project(points, poses)
  size = inverse_depth.shape[1:]
  row, column = (
      jnp.clip((where[..., i] * size[i]).astype(jnp.int32), min=0, max=size[i] - 1)
      for i in range(2))
  there = jax.vmap(lambda d, r, c: d[r, c])(inverse_depth, row, column)
  return where, inside & same_depth(there, depth) & (far > 0.0)


def same_depth(first: chex.Array, second: chex.Array) -> jax.Array:
  """Whether two inverse depths may be those of one point, as far as a network knows them."""
  return jnp.abs(first - second) < 0.3 * jnp.maximum(first, second) + 0.1


def sample(pictures: chex.Array, index: chex.Array | int, where: chex.Array) -> jax.Array:
  """Bilinear samples of pictures [S h w C], of picture index [...] at [... 2] (edges 0 and 1)."""
  size = pictures.shape[1:3]
  place = [jnp.clip(where[..., i] * size[i] - 0.5, min=0, max=size[i] - 1) for i in range(2)]
  first = [jnp.minimum(x.astype(jnp.int32), n - 2) for x, n in zip(place, size, strict=True)]
  down, right = ((x - i)[..., None] for x, i in zip(place, first, strict=True))
  at = lambda r, c: pictures[index, first[0] + r, first[1] + c].astype(jnp.float32)
  left_side = (1.0 - down) * at(0, 0) + down * at(1, 0)
  return (1.0 - right) * left_side + right * ((1.0 - down) * at(0, 1) + down * at(1, 1))
