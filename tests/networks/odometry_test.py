import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests import small
from wmpoe.networks import odometry
from wmpoe.networks import poses

NETWORK = odometry.Odometry(actions=3, width=4)


def _world(batch=4, frames=6, seed=0):
  """A camera that moves as it is told, and half of what it was told two frames ago, in curves."""
  rng = np.random.default_rng(seed)
  actions = rng.normal(size=(batch, frames, 3)).astype(np.float32) * 0.1
  motions = actions + 0.5 * np.pad(actions, ((0, 0), (2, 0), (0, 0)))[:, :-2]
  motions[..., 1] += 10 * actions[..., 0] * actions[..., 2]  # who turns while walking
  pictures = rng.normal(size=(batch, frames, 8, 8, 2)).astype(np.float32)
  return pictures, actions, motions


def _params(seed=0):
  pictures, actions, _ = _world()
  shapes = jax.eval_shape(
      lambda k: NETWORK.init(k, pictures, actions, method='all')['params'], jax.random.key(0))
  return small.random_tree(shapes, seed)


def test_integration_is_the_inverse_of_relative_poses():
  path = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 3)), jnp.float32)
  motions = poses.relative(path[:, 1:], path[:, :-1])
  found = poses.integrate(motions, path[:, 0])
  small.close(found[..., :2], path[:, 1:, :2])
  small.close(jnp.cos(found[..., 2]), jnp.cos(path[:, 1:, 2]))


def test_what_comes_later_changes_nothing():
  pictures, actions, _ = _world()
  run = jax.jit(lambda x, a: NETWORK.apply({'params': _params()}, x, a))
  now = run(pictures, actions)
  assert not np.any(now[:, 0]), 'nothing led to the first frame'
  later = run(pictures + (np.arange(6) > 3)[:, None, None, None], actions)
  small.close(later[:, :4], now[:, :4])
  small.differ(later[:, 4], now[:, 4])


def test_plans_are_learned_from_actions_and_frames_before_the_clip_are_not_guessed():
  pictures, actions, motions = _world(batch=64)
  path = np.asarray(poses.integrate(jnp.asarray(motions), jnp.zeros((64, 3))))
  valid = np.ones((64, 6), bool)
  loss = lambda p, first: odometry.odometry_loss(
      NETWORK, p, pictures[:, first:], actions[:, first:], path[:, first:], valid[:, first:])
  params, optimizer = _params(), optax.adam(0.03)

  @jax.jit
  def step(params, state):
    value, gradient = jax.value_and_grad(loss)(params, 0)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state, value

  state, values = optimizer.init(params), []
  for _ in range(250):
    params, state, value = step(params, state)
    values.append(value)
  planned = NETWORK.apply({'params': params}, actions, method='planned')
  whole, cut = step(params, state)[2], jax.jit(lambda p: loss(p, 2))(params)
  assert whole < 0.05 * values[0]
  assert np.abs(planned - motions).mean() < 0.015  # a linear plan's is at least .02
  # A clip cut out of the middle lacks the actions before it; such motions are not scored.
  assert cut < 2 * whole + 0.02
