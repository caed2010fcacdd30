"""Planar poses (x, y, heading): relative to one another, as features, as turns of a picture.

Units are those of the world (cells of a maze) and radians; the heading turns counter-clockwise from
the x axis, and a camera looks along it. Shapes: B episodes, T frames, P = 3.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np


def relative(poses: chex.Array, anchor: chex.Array) -> jax.Array:
  """Poses [... 3] seen from `anchor` [... 3]: ahead, to the left, turned left by; [... 3].

  The turn is wrapped to (-pi, pi].
  """
  delta = poses[..., :2] - anchor[..., :2]
  cos, sin = jnp.cos(anchor[..., 2]), jnp.sin(anchor[..., 2])
  turn = poses[..., 2] - anchor[..., 2]
  return jnp.stack([
      cos * delta[..., 0] + sin * delta[..., 1],
      -sin * delta[..., 0] + cos * delta[..., 1],
      jnp.arctan2(jnp.sin(turn), jnp.cos(turn))], axis=-1)


# What a picture that comes second lies farther apart than it does, as if it were 2.8 lengths away:
# what was imagined is read for what nothing that was seen shows.
SECOND = 8.0


def apart(relative_poses: chex.Array, *, length: float, angle: float) -> jax.Array:
  """How far views lie apart, [... 3] -> [...]: `(distance / length)^2 + (turn / angle)^2`."""
  distance = jnp.sum(jnp.square(relative_poses[..., :2]), axis=-1) / length**2
  return distance + jnp.square(relative_poses[..., 2] / angle)


def integrate(motions: chex.Array, start: chex.Array) -> jax.Array:
  """Poses after each of the motions [... T 3] (ahead, left, turn) from `start` [... 3]: [... T 3].

  The inverse of `relative` between neighbours; headings are not wrapped.
  """
  heading = start[..., None, 2] + jnp.cumsum(motions[..., 2], axis=-1)
  before = heading - motions[..., 2]
  cos, sin = jnp.cos(before), jnp.sin(before)
  ahead, left = motions[..., 0], motions[..., 1]
  x = start[..., None, 0] + jnp.cumsum(cos * ahead - sin * left, axis=-1)
  y = start[..., None, 1] + jnp.cumsum(sin * ahead + cos * left, axis=-1)
  return jnp.stack([x, y, heading], axis=-1)


def features(relative_poses: chex.Array) -> jax.Array:
  """Smooth features of relative poses: [... 3] -> [... 16], continuous where the turn wraps."""
  ahead_left, turn = relative_poses[..., :2], relative_poses[..., 2:]
  waves = [f(ahead_left * w) for w in (np.pi / 4, np.pi) for f in (jnp.sin, jnp.cos)]
  turns = [f(turn * k) for k in (1, 2) for f in (jnp.sin, jnp.cos)]
  distance = jnp.sqrt(jnp.sum(jnp.square(ahead_left), axis=-1, keepdims=True) + 1e-6)
  near = jnp.exp(-distance)
  return jnp.concatenate([ahead_left, *waves, *turns, distance, near], axis=-1)


FEATURES = 16


@dataclasses.dataclass(frozen=True)
class RelativePose:
  """Pose conditions of a clip: the pose relative to the last context frame, and where it is.

  The first `FEATURES` channels are `features` of the relative pose. If `field` is positive, that
  many random Fourier features of the absolute pose follow: the key under which a long-term
  memory may write what is seen there. They are `cos(w (x, y) + k heading + b)` with w normal of
  standard deviation 1 / length and k a small integer: their inner products fall off with
  distance and angle like a Gaussian and a Dirichlet kernel (Rahimi and Recht, NIPS 2007).

  Attributes:
    field: Number F of random Fourier features.
    length: Distance, in units of the world, over which places count as the same.
    turns: Largest |k|.
    seed: Of w, k, b.
  """

  field: int = 0
  length: float = 1.0
  turns: int = 3
  seed: int = 0

  @property
  def dim(self) -> int:
    """Channels of the coded pose."""
    return FEATURES + self.field

  def __call__(self, poses: chex.Array, anchor: chex.Array) -> jax.Array:
    """Codes poses [B T 3] seen from anchor [B 3] as [B T dim]."""
    coded = features(relative(poses, anchor[:, None]))
    if not self.field:
      return coded
    rng = np.random.default_rng(self.seed)
    places = rng.normal(size=(2, self.field)) / self.length
    turns = rng.integers(-self.turns, self.turns + 1, self.field)
    phase = rng.uniform(0, 2 * np.pi, self.field)
    angles = poses[..., :2] @ jnp.asarray(places, jnp.float32)
    angles = angles + poses[..., 2:] * turns.astype(np.float32) + phase.astype(np.float32)
    field = jnp.cos(angles) * np.float32((2.0 / self.field) ** 0.5)
    return jnp.concatenate([coded, field], axis=-1)


@dataclasses.dataclass(frozen=True)
class AbsolutePose:
  """Pose conditions as they are in the world, 8 of them: nothing is retrieved or warped by them.

  Place over scale, sine and cosine of a turn per two scales in x and in y, and of the heading.

  Attributes:
    scale: Side of the world, in its units.
  """

  scale: float = 9.0

  field = 0  # no place field among them

  @property
  def dim(self) -> int:
    """Channels of the coded pose."""
    return 8

  def __call__(self, poses: chex.Array, anchor: chex.Array) -> jax.Array:
    """Codes poses [B T 3] as [B T 8]; the anchor does not matter."""
    del anchor
    place = poses[..., :2] / self.scale
    angles = jnp.concatenate([jnp.pi * place, poses[..., 2:]], axis=-1)
    return jnp.concatenate([place, jnp.sin(angles), jnp.cos(angles)], axis=-1)


def turn_grid(
    turn: chex.Array, grid: tuple[int, int], *, half_view: float, pitch: float = 0.0
) -> tuple[jax.Array, jax.Array]:
  """Where a camera that turned in place finds its pixels in the picture taken before it turned.

  A pinhole camera that only turns about the vertical axis sees the same rays: each pixel's ray is
  levelled (by the pitch), turned, pitched again and projected. Exact for any depth.

  Args:
    turn: Heading of the new picture minus heading of the old one [...], radians, left positive.
    grid: Rows and columns of the picture.
    half_view: Half the field of view, radians, of its width and of its height.
    pitch: How far the camera looks down, radians.

  Returns:
    Coordinates in the old picture [... rows columns 2] (row, column; pixel centres at integers),
    and whether they lie inside it [... rows columns].
  """
  rows, columns = grid
  extent = np.tan(half_view)
  centres = lambda size: ((np.arange(size) + 0.5) / size * 2 - 1) * extent
  down, right = np.meshgrid(centres(rows), centres(columns), indexing='ij')
  # Rays as (ahead, left, up) of a level camera.
  ahead = np.cos(pitch) - np.sin(pitch) * down
  left, up = -right, -np.sin(pitch) - np.cos(pitch) * down
  cos, sin = jnp.cos(turn)[..., None, None], jnp.sin(turn)[..., None, None]
  old_ahead, old_left = cos * ahead - sin * left, sin * ahead + cos * left
  depth = np.cos(pitch) * old_ahead - np.sin(pitch) * up
  height = np.sin(pitch) * old_ahead + np.cos(pitch) * up
  in_front = depth > 0.05
  depth = jnp.where(in_front, depth, 1.0)
  to_pixel = lambda x, size: (x / extent + 1) / 2 * size - 0.5
  where = jnp.stack([to_pixel(-height / depth, rows), to_pixel(-old_left / depth, columns)], -1)
  inside = (where > -0.75) & (where < jnp.asarray(grid) - 0.25)
  return where, jnp.all(inside, axis=-1) & in_front


def sample_grid(pictures: chex.Array, where: chex.Array) -> jax.Array:
  """Bilinear samples of pictures [M H W D] at [M h w 2] (row, column), clamped at the edge."""
  height, width = pictures.shape[1:3]
  row = jnp.clip(where[..., 0], min=0, max=height - 1)
  column = jnp.clip(where[..., 1], min=0, max=width - 1)
  # A matrix unit multiplies faster than it gathers; a CPU gathers in a twentieth of the time.
  return jax.lax.platform_dependent(
      pictures, row, column, cpu=_sample_by_gather, default=_sample_by_product)


def _sample_by_product(pictures: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
  """With triangular weights on both axes."""
  height, width = pictures.shape[1:3]
  tent = lambda x, size: jnp.maximum(0.0, 1.0 - jnp.abs(x[..., None] - jnp.arange(size)))
  return jnp.einsum(
      'mhwr,mhwc,mrcd->mhwd', tent(row, height), tent(column, width), pictures)


def _sample_by_gather(pictures: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
  """Out of the four neighbours of each point."""
  _, height, width, depth = pictures.shape
  top = jnp.clip(row.astype(jnp.int32), min=0, max=height - 2)
  left = jnp.clip(column.astype(jnp.int32), min=0, max=width - 2)
  cut = lambda picture, i, j: jax.lax.dynamic_slice(picture, (i, j, 0), (2, 2, depth))
  around = jax.vmap(jax.vmap(jax.vmap(cut, (None, 0, 0)), (None, 0, 0)))(pictures, top, left)
  down, right = (row - top)[..., None, None], (column - left)[..., None]
  beside = (1.0 - down) * around[..., 0, :, :] + down * around[..., 1, :, :]
  return (1.0 - right) * beside[..., 0, :] + right * beside[..., 1, :]
