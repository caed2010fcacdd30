import jax.numpy as jnp
import numpy as np

from tests import small
from wmpoe.networks import pose_graph
from wmpoe.networks import poses

FRAMES = 12


def _walk(seed=0):
  """A walk, and the same walk summed from motions that are all a little wrong."""
  rng = np.random.default_rng(seed)
  motions = rng.normal(size=(FRAMES - 1, 3)) * (0.3, 0.1, 0.5)
  drifting = motions + (0.05, 0.02, 0.03)
  begun = np.zeros((1, 3), np.float32)
  walk = lambda steps: np.concatenate([begun, poses.integrate(jnp.asarray(steps), jnp.zeros(3))])
  return walk(motions), walk(drifting), drifting


def _edges(first, second, motion, weight, doubtful):
  count = len(first)
  return pose_graph.Edges(
      first=jnp.asarray(first), second=jnp.asarray(second), motion=jnp.asarray(motion),
      weight=jnp.full((count, 2), weight), doubtful=jnp.full(count, doubtful))


def _join(*edges):
  return pose_graph.Edges(**{
      name: jnp.concatenate([getattr(e, name) for e in edges])
      for name in ('first', 'second', 'motion', 'weight', 'doubtful')})


def _problem():
  truth, drifted, motions = _walk()
  chain = _edges(np.arange(FRAMES - 1), np.arange(1, FRAMES), motions, 100.0, False)
  first, second = np.array([0, 0, 2, 3]), np.array([11, 6, 9, 11])
  closing = _edges(
      first, second, poses.relative(truth[second], truth[first]), 1e4, True)
  return truth, jnp.asarray(drifted), chain, closing


def _error(found, truth):
  return float(np.linalg.norm(found[:, :2] - truth[:, :2], axis=-1).mean())


def test_motions_alone_leave_their_sum_as_it_is():
  _, drifted, chain, _ = _problem()
  small.close(pose_graph.solve(drifted, chain, jnp.arange(FRAMES) < 1), drifted, atol=1e-4)


def test_closed_loops_take_the_drift_out():
  truth, drifted, chain, closing = _problem()
  found = pose_graph.solve(drifted, _join(chain, closing), jnp.arange(FRAMES) < 1)
  assert _error(found, truth) < 0.2 * _error(drifted, truth)
  assert np.abs(found[:, 2] - truth[:, 2]).max() < 0.5 * np.abs(drifted[:, 2] - truth[:, 2]).max()
  small.close(found[0], truth[0], atol=1e-5)


def test_one_wrong_measurement_is_outvoted():
  truth, drifted, chain, closing = _problem()
  wrong = _edges([1], [10], np.array([[4.0, -4.0, 2.5]]), 1e4, True)
  right = pose_graph.solve(drifted, _join(chain, closing), jnp.arange(FRAMES) < 1)
  found = pose_graph.solve(drifted, _join(chain, closing, wrong), jnp.arange(FRAMES) < 1)
  trusted = pose_graph.solve(
      drifted, _join(chain, closing, wrong.replace(doubtful=jnp.zeros(1, bool))),
      jnp.arange(FRAMES) < 1)
  assert _error(trusted, right) > 0.5
  assert _error(found, right) < 0.4 * _error(trusted, right)


def test_known_poses_stay():
  truth, drifted, chain, closing = _problem()
  known = jnp.arange(FRAMES) < 8
  start = jnp.where(known[:, None], truth, drifted)
  found = pose_graph.solve(start, _join(chain, closing), known)
  small.close(found[:8], truth[:8], atol=1e-4)
  small.differ(found[8:], start[8:])
