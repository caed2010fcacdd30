import jax
import jax.numpy as jnp
import numpy as np
import optax

from wmpoe.networks import depth

NETWORK = depth.Depth(frame_shape=(12, 10, 3), width=8, blocks=1)


def test_one_number_at_least_zero_per_pixel_of_the_uncropped_picture():
  latents = jax.random.normal(jax.random.key(0), (2, 3, 4, 3, 5))
  params = NETWORK.init(jax.random.key(1), latents)['params']
  found = NETWORK.apply({'params': params}, latents)
  assert found.shape == (2, 3, 12, 10) and found.min() >= 0.0
  # 3 latents are 12 pixels; of the 2 too many one is cropped on either side.
  wide = depth.Depth(frame_shape=(12, 12, 3), width=8, blocks=1)
  np.testing.assert_array_equal(wide.apply({'params': params}, latents)[..., 1:-1], found)


def test_it_learns_what_it_is_taught():
  latents = jax.random.normal(jax.random.key(0), (8, 3, 3, 2))
  truth = jnp.repeat(jnp.repeat(jnp.abs(latents[..., 0]), 4, axis=1), 4, axis=2)[:, :, 1:-1]
  params = NETWORK.init(jax.random.key(1), latents)['params']
  loss = lambda p: depth.depth_loss(NETWORK, p, latents, truth)
  adam = optax.adam(1e-2)

  def step(carry, _):
    value, gradient = jax.value_and_grad(loss)(carry[0])
    updates, moments = adam.update(gradient, carry[1])
    return (optax.apply_updates(carry[0], updates), moments), value

  _, losses = jax.jit(lambda p: jax.lax.scan(step, (p, adam.init(p)), None, length=150))(params)
  assert losses[-1] < 0.25 * losses[0]
