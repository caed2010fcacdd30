"""How two pictures with depth lie to each other, by their pixels: direct alignment.

The motion between them is the one by which the points of the newer picture fall on the same colours
in the older one: a robust least-squares problem of three numbers, solved by a few steps of
Gauss-Newton, on blurred pictures first (dense visual odometry: Steinbruecker, Sturm, Cremers, ICCV
workshops 2011; Kerl, Sturm, Cremers, ICRA 2013). Finer than a network's guess, from near by.

Shapes: pictures h x w; one pair, vmap over more.
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp

from wmpoe.networks import warping


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alignment:
  """How pictures are aligned, and how far the answer is believed.

  Attributes:
    blurs: How often pictures are blurred (by 1, 2, 1 in both directions), for one pass after the
      other.
    steps: Of Gauss-Newton in a pass.
    stride: Every so many pixels of the newer picture are compared, in both directions.
    tolerance: Difference of colour (of 1) at which a pixel has lost half of its weight.
    trust: Squared differences that a departure from the start by one (cell, radian) costs.
    furthest: Largest step, in cells and radians.
    error: Standard error of the answer where all of the pixels are compared, cells and radians.
    least: Share of the pixels that must be comparable for an answer to count.
  """

  blurs: tuple[int, ...] = (2, 0)
  steps: int = 4
  stride: int = 2
  tolerance: float = 0.1
  trust: tuple[float, float] = (2.0, 8.0)
  furthest: tuple[float, float] = (0.15, 0.08)
  error: tuple[float, float] = (0.04, 0.012)
  least: float = 0.2


def align(
    camera: warping.Camera,
    old: tuple[chex.Array, chex.Array],
    new: tuple[chex.Array, chex.Array],
    start: chex.Array,
    how: Alignment = Alignment(),
) -> tuple[jax.Array, jax.Array]:
  """Where the newer picture was taken, seen from the older one: ahead, left, turn [3].

  Args:
    camera: That took both.
    old: A picture, uint8 [h w 3], and its inverse depth [h w].
    new: The newer ones.
    start: What is believed [3].
    how: Static.

  Returns:
    The motion, and the inverse variances of position and turn [2], 0 where too little is
    comparable.
  """
  pixels = lambda x: x[how.stride // 2::how.stride, how.stride // 2::how.stride]
  planar = lambda pair: jnp.array([pair[0], pair[0], pair[1]])
  trust, furthest = planar(how.trust), planar(how.furthest)
  total = functools.partial(jnp.einsum, precision='highest')  # a matrix unit rounds to bfloat16

  def shown(motion):
    """Where the older picture shows the newer one's pixels; that, depth and whether it does."""
    where, depth, inside = camera.project(pixels(camera.points(new[1], motion)), jnp.zeros(3))
    return where, (where, depth, inside)

  def refine(motion, blurs):
    before, now = (_blurred(x[0].astype(jnp.float32) / 255.0, blurs) for x in (old, new))
    now = pixels(now)
    # Colours, how they change along rows and columns, and depth: looked up together.
    slopes = jnp.gradient(before, axis=(0, 1))
    atlas = jnp.concatenate([before, *slopes, old[1][..., None]], axis=-1)
    size = jnp.array(before.shape[:2], jnp.float32)

    def step(motion, _):
      slope, (where, depth, inside) = jax.jacfwd(shown, has_aux=True)(motion)
      found = warping.sample(atlas[None], 0, where)
      off, same = found[..., :3] - now, inside & warping.same_depth(found[..., 9], depth)
      # [h w 3 colours, 3 motions]
      change = total(
          'hwdc,hwdm->hwcm', found[..., 3:9].reshape(*off.shape[:2], 2, 3), slope * size[:, None])
      weight = same[..., None] / (1.0 + jnp.square(off / how.tolerance))
      bend = total('hwc,hwci,hwcj->ij', weight, change, change) + jnp.diag(trust)
      pull = total('hwc,hwc,hwci->i', weight, off, change) + trust * (motion - start)
      by = jnp.clip(-jnp.linalg.solve(bend, pull), min=-furthest, max=furthest)
      return motion + by, jnp.mean(weight)

    motion, shares = jax.lax.scan(step, motion, length=how.steps)
    return motion, shares[-1]

  motion, share = start, jnp.zeros(())
  for blurs in how.blurs:
    motion, share = refine(motion, blurs)
  precision = share / jnp.square(jnp.array(how.error))
  return motion, jnp.where(share >= how.least, precision, 0.0)


def _blurred(picture: jax.Array, times: int) -> jax.Array:
  """A picture [h w C], every pixel mixed with its neighbours."""
  for axis in (0, 1) * times:
    rows = jnp.moveaxis(picture, axis, 0)
    wide = jnp.concatenate([rows[:1], rows, rows[-1:]])
    picture = jnp.moveaxis(0.25 * wide[:-2] + 0.5 * rows + 0.25 * wide[2:], 0, axis)
  return picture
