"""Point maps: every remembered pixel placed in the world, and seen again from where one asks.

The camera, or where it does not a depth network, says how far what each picture shows is; with its
pose that makes a point of every pixel (arXiv 2605.18813, section 3). For a view to be imagined they
are warped to it (`networks.warping`) and encoded into the latents the denoiser works in, beside how
much of each was seen at all.
"""

from typing import Any

import chex
from flax import struct
import jax
import jax.numpy as jnp

from wmpoe.networks import autoencoder
from wmpoe.networks import depth as depth_lib
from wmpoe.networks import warping

NEAREST = 5.0  # inverse depth that a byte can hold, in one over units of the world


def to_bytes(inverse_depth: chex.Array) -> jax.Array:
  """Inverse depth in a byte a pixel, finer where it is far: uint8."""
  share = jnp.clip(inverse_depth / NEAREST, min=0.0, max=1.0)
  return jnp.round(255.0 * jnp.sqrt(share)).astype(jnp.uint8)


def from_bytes(coded: chex.Array) -> jax.Array:
  """The inverse of `to_bytes`, float32."""
  return NEAREST * jnp.square(coded.astype(jnp.float32) / 255.0)


@struct.dataclass
class PointMaps:
  """What makes point maps of pictures, and views of point maps; it does not learn.

  Attributes:
    latents: The latent space.
    params: Of the depth network.
    network: Static; the depth network.
    camera: Static.
    count: Static; pictures that a view is warped from.
  """

  latents: autoencoder.LatentSpace
  params: Any
  network: depth_lib.Depth = struct.field(pytree_node=False, kw_only=True)
  camera: warping.Camera = struct.field(pytree_node=False, kw_only=True)
  count: int = struct.field(pytree_node=False, default=8, kw_only=True)

  def measure(self, latents: chex.Array, depth: chex.Array | None = None) -> jax.Array:
    """How far every pixel is, in bytes [... H W].

    Args:
      latents: [... h w C], of which the network tells it.
      depth: Or what is known of it, [... H W] along the optical axis, infinite for the sky.
    """
    if depth is not None:
      return to_bytes(1.0 / depth)
    return to_bytes(self.network.apply({'params': self.params}, latents, method='measure'))

  def views(
      self, pictures: chex.Array, inverse_depth: chex.Array, poses: chex.Array, valid: chex.Array,
      asked: chex.Array, second: chex.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """Views as far as they were seen, uint8 [B T H W 3], and which pixels were [B T H W].

    Args:
      pictures: uint8 [B S H W 3].
      inverse_depth: In bytes [B S H W].
      poses: [B S 3].
      valid: Which pictures exist [B S].
      asked: Poses of the views [B T 3].
      second: Optional; which pictures come second, see `poses.SECOND` [B S].
    """
    def one(pictures, coded, poses, valid, asked, second):
      far = from_bytes(coded)
      view = lambda pose: warping.render(
          self.camera, pictures, far, poses, valid, pose, second, count=self.count)
      return jax.lax.map(view, asked)

    found, seen = jax.vmap(one)(pictures, inverse_depth, poses, valid, asked, second)
    return jnp.where(seen[..., None], jnp.round(found), 127.0).astype(jnp.uint8), seen

  def render(
      self, pictures: chex.Array, inverse_depth: chex.Array, poses: chex.Array, valid: chex.Array,
      asked: chex.Array, second: chex.Array | None = None,
  ) -> jax.Array:
    """Latents of the `views`, and how much of what each stands for was seen: [B T h w C+1]."""
    views, seen = self.views(pictures, inverse_depth, poses, valid, asked, second)
    found = self.latents.encode(views)
    seen = _pooled(seen.astype(jnp.float32), self.latents.network)[..., None]
    return jax.lax.stop_gradient(jnp.concatenate([found * seen, seen], axis=-1))


def _pooled(seen: jax.Array, network: autoencoder.Autoencoder) -> jax.Array:
  """Means [... h w] over the pixels [... H W] that each latent stands for."""
  padded = jnp.pad(seen, [(0, 0)] * (seen.ndim - 2) + list(network.padding), mode='edge')
  h, w = network.latent_shape[:2]
  return jnp.mean(padded.reshape(*seen.shape[:-2], h, padded.shape[-2] // h, w, -1), axis=(-3, -1))
