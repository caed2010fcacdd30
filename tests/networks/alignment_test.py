import jax
import jax.numpy as jnp
import numpy as np

from tests import scenes
from tests import small
from wmpoe.networks import alignment
from wmpoe.networks import poses as poses_lib

THEN, NOW = np.array([[0.3, -0.2, 0.4], [0.45, -0.1, 0.32]], np.float32)
TRUE = np.asarray(poses_lib.relative(NOW, THEN))
OFF = np.array([0.08, -0.06, 0.04], np.float32)


def _view(pose):
  depth = scenes.flat_room(pose[None], far=12.0)
  return scenes.painted(pose[None], depth)[0], depth[0]


EVERY = alignment.Alignment(stride=1)
align = jax.jit(
    lambda old, new, start, how=EVERY: alignment.align(scenes.CAMERA, old, new, start, how),
    static_argnames='how')


def test_pixels_find_the_motion_between_two_pictures():
  motion, precision = align(_view(THEN), _view(NOW), TRUE + OFF)
  assert np.all(np.abs(motion - TRUE) < 0.25 * np.abs(OFF))
  assert (precision > 0).all()


def test_the_truth_stays():
  motion, _ = align(_view(THEN), _view(NOW), TRUE)
  small.close(motion, TRUE, atol=0.03)


def test_something_else_in_the_way_does_not_matter():
  old, depth = _view(THEN)
  changed = np.array(old)
  changed[12:15, 15:20] = [255, 0, 255]
  found = lambda tolerance: align(
      (changed, depth), _view(NOW), TRUE + OFF,
      alignment.Alignment(stride=1, tolerance=tolerance, blurs=(0,), steps=8))[0]
  assert np.all(np.abs(found(0.02) - TRUE) < 0.4 * np.abs(OFF))
  assert np.abs(found(1e3) - TRUE).max() > 2 * np.abs(OFF).max()  # squares


def test_who_looks_elsewhere_is_not_believed():
  away = NOW + np.array([0.0, 0.0, 2.0], np.float32)
  start = np.asarray(poses_lib.relative(away, THEN))
  motion, precision = align(_view(THEN), _view(away), start)
  assert (precision == 0).all() and np.isfinite(motion).all()


def test_who_shares_little_is_not_believed():
  aside = NOW + np.array([0.0, 0.0, 1.3], np.float32)
  start = np.asarray(poses_lib.relative(aside, THEN))
  given = _view(THEN), _view(aside), start
  assert (align(*given)[1] == 0).all()
  assert (align(*given, alignment.Alignment(stride=1, least=0.0))[1] > 0).all()


def test_pairs_are_a_batch():
  pairs = jax.tree.map(lambda *x: jnp.stack(x), (_view(THEN), _view(NOW), TRUE + OFF),
                       (_view(NOW), _view(THEN), -OFF))
  motion, _ = jax.vmap(align)(*pairs)
  small.close(motion[0], align(_view(THEN), _view(NOW), TRUE + OFF)[0], atol=1e-4)
