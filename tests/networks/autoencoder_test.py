import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wmpoe.networks import autoencoder

NETWORK = autoencoder.Autoencoder(frame_shape=(12, 20, 3), channels=4, widths=(8, 8), depth=(1, 1),
    multiple=8)
_apply = jax.jit(NETWORK.apply, static_argnames='method')


@pytest.fixture(scope='module')
def params():
  init = jax.jit(NETWORK.init)
  return init(jax.random.key(0), jnp.zeros((1, *NETWORK.frame_shape)))['params']


@pytest.fixture(scope='module')
def frames():
  return np.random.default_rng(0).integers(0, 256, (3, *NETWORK.frame_shape), np.uint8)


def test_space_and_depth_are_inverse():
  x = np.random.default_rng(0).normal(size=(2, 8, 4, 3)).astype(np.float32)
  deep = autoencoder.space_to_depth(x, 4)
  assert deep.shape == (2, 2, 1, 48)
  np.testing.assert_array_equal(autoencoder.depth_to_space(deep, 4), x)


def test_sides_that_are_no_multiple_are_padded_and_cropped(params, frames):
  assert NETWORK.latent_shape == (4, 6, 4)
  x = frames / np.float32(127.5) - 1
  out, latents = _apply({'params': params}, x)
  assert out.shape == x.shape and latents.shape == (3, 4, 6, 4)
  assert np.abs(latents).max() < NETWORK.bound


def test_latent_space_standardises_and_inverts_its_scaling(params, frames):
  mean, std = np.full(4, 0.25, np.float32), np.full(4, 2.0, np.float32)
  space = autoencoder.LatentSpace(params=params, mean=mean, std=std, network=NETWORK)
  raw = _apply({'params': params}, frames / np.float32(127.5) - 1, method='encode')
  latents = jax.jit(space.encode)(frames[None])
  assert latents.shape == (1, 3, 4, 6, 4)
  np.testing.assert_allclose(latents[0] * 2.0 + 0.25, raw, atol=1e-5)
  decoded = jax.jit(space.decode)(latents)
  assert decoded.dtype == jnp.uint8 and decoded.shape == (1, 3, *NETWORK.frame_shape)
  expected = _apply({'params': params}, raw, method='decode')
  expected = np.clip(np.round((np.asarray(expected) + 1) * 127.5), 0, 255)
  assert np.abs(decoded[0].astype(int) - expected).max() <= 1


def test_loss_falls_and_noise_matters(params, frames):
  loss = jax.jit(lambda p, noise: autoencoder.reconstruction_loss(
      NETWORK, p, frames, jax.random.key(0), noise=noise, absolute=0.1))
  before, mse = loss(params, 0.0)
  x = frames / np.float32(127.5) - 1
  out, _ = _apply({'params': params}, x)
  np.testing.assert_allclose(mse, np.mean((out - x) ** 2) / 4, rtol=1e-4)
  np.testing.assert_allclose(
      before, np.mean((out - x) ** 2) + 0.1 * np.mean(np.abs(out - x)), rtol=1e-4)
  assert loss(params, 1.0)[0] != before
  optimizer = optax.adam(3e-3)

  @jax.jit
  def step(now, state):
    updates, state = optimizer.update(jax.grad(
        lambda p: autoencoder.reconstruction_loss(
            NETWORK, p, frames, jax.random.key(1), noise=0.0, absolute=0.1)[0])(now), state)
    return optax.apply_updates(now, updates), state

  state, now = optimizer.init(params), params
  for _ in range(15):
    now, state = step(now, state)
  assert loss(now, 0.0)[0] < 0.9 * before


def test_perceptual_distance_is_added_on_unit_pixels(params, frames):
  def distance(a, b):
    assert a.shape == b.shape == frames.shape
    return jnp.max(jnp.abs(b), axis=(1, 2, 3))

  loss = lambda **kw: jax.jit(lambda p: autoencoder.reconstruction_loss(
      NETWORK, p, frames, jax.random.key(0), noise=0.0, absolute=0.1, **kw)[0])(params)
  expected = np.mean(frames.max(axis=(1, 2, 3)) / 255.0)
  np.testing.assert_allclose(
      loss(perceptual=distance, perceptual_weight=0.5) - loss(), 0.5 * expected, rtol=1e-4)
