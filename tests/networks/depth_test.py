import jax
import jax.numpy as jnp
import numpy as np
import optax

from wmpoe.networks import depth

NETWORK = depth.Depth(frame_shape=(12, 10, 3), width=8, blocks=1)
_init = jax.jit(NETWORK.init)


def test_one_number_at_least_zero_per_pixel_of_the_uncropped_picture():
  latents = jax.random.normal(jax.random.key(0), (2, 3, 4, 3, 5))
  params = _init(jax.random.key(1), latents)['params']
  found, sky = jax.jit(NETWORK.apply)({'params': params}, latents)
  assert found.shape == sky.shape == (2, 3, 12, 10) and found.min() >= 0.0
  # 3 latents are 12 pixels; of the 2 too many one is cropped on either side.
  wide = depth.Depth(frame_shape=(12, 12, 3), width=8, blocks=1)
  np.testing.assert_array_equal(
      jax.jit(wide.apply)({'params': params}, latents)[0][..., 1:-1], found)


def test_the_sky_is_infinitely_far_and_no_pixel_flies(monkeypatch):
  """A wall, one blurred row above it, and the sky; the blurred row goes to what is nearer to it."""
  rows = jnp.array([0.1, 0.1, 0.7, 1.0, 1.0, 0.9, 0.1])
  found = jnp.broadcast_to(rows[:, None], (2, 7, 5))
  sky = jnp.broadcast_to(jnp.array([1.0, 1.0, -1, -1, -1, -1, -1])[:, None], found.shape)
  monkeypatch.setattr(depth.Depth, '__call__', lambda self, latents: (found, sky))
  measured = depth.Depth().apply({'params': {}}, None, method='measure')
  np.testing.assert_allclose(measured[0, :, 2], [0, 0, 1, 1, 1, 1, 0.1], atol=1e-6)


def test_it_learns_what_it_is_taught():
  latents = jax.random.normal(jax.random.key(0), (8, 3, 3, 2))
  truth = jnp.repeat(jnp.repeat(jnp.abs(latents[..., 0]), 4, axis=1), 4, axis=2)[:, :, 1:-1]
  params = _init(jax.random.key(1), latents)['params']
  loss = lambda p: depth.depth_loss(NETWORK, p, latents, truth)
  adam = optax.adam(1e-2)

  def step(carry, _):
    value, gradient = jax.value_and_grad(loss)(carry[0])
    updates, moments = adam.update(gradient, carry[1])
    return (optax.apply_updates(carry[0], updates), moments), value

  _, losses = jax.jit(lambda p: jax.lax.scan(step, (p, adam.init(p)), None, length=150))(params)
  assert losses[-1] < 0.25 * losses[0]


def test_where_there_is_sky_no_depth_is_learned():
  latents, truth = jnp.ones((1, 3, 3, 2)), jnp.zeros((1, 12, 10))
  params = _init(jax.random.key(1), latents)['params']
  found = jax.jit(lambda p: NETWORK.apply({'params': p}, latents))
  gradient = jax.jit(jax.grad(lambda p: depth.depth_loss(NETWORK, p, latents, truth)))(params)
  after = found(jax.tree.map(lambda x, g: x - 0.1 * g, params, gradient))
  assert after[1].mean() > found(params)[1].mean()
  np.testing.assert_array_equal(gradient['output']['bias'][::2], 0.0)
