"""Networks that stay as they are while experts learn, write and read, built from descriptions.

The autoencoder whose latents they work in, the odometry that gives them poses, and the depth
network that places what was seen in the world. Each is trained, and packaged, by itself.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from wmpoe.networks import autoencoder as autoencoder_lib
from wmpoe.networks import depth as depth_lib
from wmpoe.networks import odometry as odometry_lib

KINDS = ('autoencoder', 'odometry', 'depth')

Description = Mapping[str, Any]


def autoencoder(
    description: Description, frame_shape: tuple[int, int, int]) -> autoencoder_lib.Autoencoder:
  """The static autoencoder of frames of a shape; reads 'autoencoder'."""
  options = dict(description['autoencoder'])
  return autoencoder_lib.Autoencoder(
      frame_shape=frame_shape,
      **{**options, 'widths': tuple(options['widths']), 'depth': tuple(options['depth'])})


def odometry(description: Description) -> odometry_lib.Odometry:
  """The static odometry; reads 'odometry'."""
  return odometry_lib.Odometry(**description['odometry'])


def depth(description: Description, frame_shape: tuple[int, int, int]) -> depth_lib.Depth:
  """The static depth network of frames of a shape; reads 'depth'."""
  return depth_lib.Depth(frame_shape=frame_shape, **description['depth'])


def shapes(
    description: Description, frame_shape: tuple[int, int, int], action_dim: int) -> Any:
  """The tree of shapes that the parameters of one of `KINDS` have."""
  kind, key = description['expert'], jax.random.key(0)
  network: Any
  if kind == 'autoencoder':
    network = autoencoder(description, frame_shape)
    statistic = jax.ShapeDtypeStruct((network.channels,), jnp.float32)
    frame = jnp.zeros((1, *frame_shape))
    return {
        'autoencoder': jax.eval_shape(lambda k: network.init(k, frame)['params'], key),
        'mean': statistic, 'std': statistic}
  frames = jnp.zeros((1, 2, *description['latent']))
  if kind == 'depth':
    network = depth(description, frame_shape)
    return jax.eval_shape(lambda k: network.init(k, frames)['params'], key)
  network = odometry(description)
  return jax.eval_shape(lambda k: network.init(
      k, frames, jnp.zeros((1, 2, action_dim)), method='all')['params'], key)
