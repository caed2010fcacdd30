import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests import scenes
from tests import small
from wmpoe.networks import alignment
from wmpoe.networks import localization
from wmpoe.networks import poses

LAP = 16
FRAMES = 3 * LAP


class Eyes:
  """Stands for the odometry: motions are a little wrong, pictures tell where they were taken."""

  def apply(self, variables, first, second, method=None):
    del variables
    if method is None:  # frames and actions, which hold the true motions
      return second + jnp.array([0.01, 0.005, 0.01]) * (jnp.arange(first.shape[1]) > 0)[:, None]
    seen = lambda picture: picture[:, 0, 0, :3]
    found = poses.relative(seen(second), seen(first))
    return found, jnp.full(found.shape, -5.0)


CLOSURE = localization.LoopClosure(count=3, gap=8, reach=(1.0, 0.5), rounds=2)


def _episode():
  """Three laps of a circle."""
  motions = np.tile(np.array([0.4, 0.0, 2 * np.pi / LAP], np.float32), (FRAMES, 1))
  motions[0] = 0.0
  truth = poses.integrate(jnp.asarray(motions), jnp.zeros(3))
  pictures = jnp.broadcast_to(truth[:, None, None, :], (FRAMES, 2, 2, 3))
  return pictures, jnp.asarray(motions), truth


@functools.partial(jax.jit, static_argnames='closure')
def _locate(pictures, motions, found, known, length, closure=CLOSURE):
  return localization.locate(
      Eyes(), {}, pictures, motions, closure=closure, poses=found, known=known, length=length)


def _error(found, truth, frames=slice(None)):
  return float(np.linalg.norm((found - truth)[frames, :2], axis=-1).mean())


def test_a_place_seen_again_takes_the_drift_out():
  pictures, motions, truth = _episode()
  nothing = jnp.zeros((FRAMES, 3))
  found = _locate(pictures, motions, nothing, 0, FRAMES)
  summed = _locate(
      pictures, motions, nothing, 0, FRAMES, closure=localization.LoopClosure(count=0))
  last = slice(2 * LAP, None)
  assert _error(summed, truth, last) > 0.3
  assert _error(found, truth, last) < 0.35 * _error(summed, truth, last)
  small.close(found[0], jnp.zeros(3), atol=1e-5)


def test_what_comes_later_changes_nothing_and_what_was_found_stays():
  pictures, motions, _ = _episode()
  nothing, half = jnp.zeros((FRAMES, 3)), FRAMES // 2
  before = _locate(pictures, motions, nothing, 0, half)
  other = pictures.at[half:].add(3.0)
  small.close(_locate(other, motions, nothing, 0, half)[:half], before[:half])
  after = _locate(pictures, motions, before, half, FRAMES)
  small.close(after[:half], before[:half], atol=1e-3)
  small.differ(after[half + LAP:], before[half + LAP:])


def test_episodes_do_not_mix():
  pictures, motions, _ = _episode()
  nothing = jnp.zeros((FRAMES, 3))
  alone = _locate(pictures, motions, nothing, 0, FRAMES)
  batch = jax.vmap(lambda x, m: _locate(x, m, nothing, 0, FRAMES))(
      jnp.stack([pictures * 0.5, pictures]), jnp.stack([motions * 0.5, motions]))
  small.close(batch[1], alone, atol=1e-4)


def test_pictures_with_depth_are_aligned_where_a_network_sees_nothing():
  """The same laps, seen by a camera; of pictures the network knows no more than motions say."""
  _, motions, truth = _episode()
  far = scenes.flat_room(np.asarray(truth))
  depth = localization.Depth(
      pictures=jnp.asarray(scenes.painted(np.asarray(truth), far)), inverse=jnp.asarray(far),
      camera=scenes.CAMERA)
  closure = localization.LoopClosure(
      count=1, gap=8, reach=(1.0, 0.5), rounds=0, aligned=2,
      alignment=alignment.Alignment(stride=1))
  run = jax.jit(lambda depth: localization.locate(
      Eyes(), {}, jnp.zeros((FRAMES, 2, 2, 3)), motions, closure=closure, depth=depth))
  last = slice(2 * LAP, None)
  assert _error(run(depth), truth, last) < 0.35 * _error(run(None), truth, last)
