"""A small convolutional autoencoder: frames to latents, the space diffusion works in, and back.

Plain, not variational: latents are squashed softly to (-bound, bound) and trained under additive
noise, so that what a sampler leaves over does no harm when it is decoded.
"""

from collections.abc import Callable, Mapping
from typing import Any

import chex
from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp

_STRIDE = 4


def space_to_depth(x: jax.Array, block: int) -> jax.Array:
  """[B H W C] -> [B H/block W/block block*block*C]."""
  b, h, w, c = x.shape
  x = x.reshape(b, h // block, block, w // block, block, c).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, h // block, w // block, block * block * c)


def depth_to_space(x: jax.Array, block: int) -> jax.Array:
  """[B H W block*block*C] -> [B H*block W*block C]; the inverse of `space_to_depth`."""
  b, h, w, c = x.shape
  x = x.reshape(b, h, w, block, block, c // block**2).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, h * block, w * block, c // block**2)


class Residual(nn.Module):
  """Norm, 3x3 convolution, twice, around the identity."""

  width: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B H W width] -> the same shape."""
    y = x
    for i in range(2):
      y = nn.silu(nn.GroupNorm(num_groups=8, dtype=self.dtype, name=f'norm_{i}')(y))
      y = nn.Conv(self.width, (3, 3), dtype=self.dtype, name=f'conv_{i}')(y)
    return x + y


class Autoencoder(nn.Module):
  """Frames [B H W 3] in [-1, 1] to latents [B h w C] and back, h = H / 4 after padding.

  Sides that are no multiple of `multiple` are padded with their edge, and cropped after decoding.

  Attributes:
    frame_shape: (H, W, 3).
    channels: Latent channels C.
    widths: Channels at a half and at a quarter of the resolution.
    depth: Residual blocks at a quarter of the resolution, of encoder and decoder.
    multiple: What sides are padded to a multiple of; itself a multiple of 4. 16 makes latents that
      divide into patches of 4.
    bound: Latents lie in (-bound, bound).
    dtype: Computation dtype; outputs are float32.
  """

  frame_shape: tuple[int, int, int] = (60, 60, 3)
  channels: int = 4
  widths: tuple[int, int] = (32, 64)
  depth: tuple[int, int] = (1, 2)
  multiple: int = 16
  bound: float = 3.0
  dtype: Any = jnp.float32

  @property
  def latent_shape(self) -> tuple[int, int, int]:
    """(h, w, C)."""
    side = lambda full: -(-full // self.multiple) * self.multiple // _STRIDE
    return side(self.frame_shape[0]), side(self.frame_shape[1]), self.channels

  @property
  def padding(self) -> tuple[tuple[int, int], ...]:
    """Pixels added before and after rows and columns."""
    sides = [size * _STRIDE - full for size, full in zip(
        self.latent_shape[:2], self.frame_shape[:2], strict=True)]
    return tuple((s // 2, s - s // 2) for s in sides)

  def setup(self) -> None:
    """Makes the layers."""
    half, quarter = self.widths
    conv = lambda width, name: nn.Conv(width, (3, 3), dtype=self.dtype, name=name)
    dense = lambda width, name: nn.Dense(width, dtype=self.dtype, name=name)
    residual = lambda width, name: Residual(width, self.dtype, name=name)
    norm = lambda name: nn.GroupNorm(num_groups=8, dtype=self.dtype, name=name)
    self.encode_in = conv(quarter, 'encode_in')
    self.encode_quarter = [residual(quarter, f'encode_quarter_{i}') for i in range(self.depth[0])]
    self.encode_norm, self.encode_out = norm('encode_norm'), dense(self.channels, 'encode_out')
    self.decode_in = conv(quarter, 'decode_in')
    self.decode_quarter = [residual(quarter, f'decode_quarter_{i}') for i in range(self.depth[1])]
    self.decode_up, self.decode_half = dense(4 * half, 'decode_up'), residual(half, 'decode_half')
    self.decode_norm, self.decode_out = norm('decode_norm'), conv(12, 'decode_out')

  def encode(self, frames: chex.Array) -> jax.Array:
    """Frames [B H W 3] in [-1, 1] -> latents [B h w C]."""
    chex.assert_shape(frames, (None, *self.frame_shape))
    x = jnp.pad(frames, ((0, 0), *self.padding, (0, 0)), mode='edge').astype(self.dtype)
    x = self.encode_in(space_to_depth(x, 4))
    for block in self.encode_quarter:
      x = block(x)
    x = self.encode_out(nn.silu(self.encode_norm(x))).astype(jnp.float32)
    return self.bound * jnp.tanh(x / self.bound)

  def decode(self, latents: chex.Array) -> jax.Array:
    """Latents [B h w C] -> frames [B H W 3], unclipped."""
    chex.assert_shape(latents, (None, *self.latent_shape))
    x = self.decode_in(latents.astype(self.dtype))
    for block in self.decode_quarter:
      x = block(x)
    x = self.decode_half(depth_to_space(self.decode_up(x), 2))
    x = depth_to_space(self.decode_out(nn.silu(self.decode_norm(x))), 2).astype(jnp.float32)
    (top, _), (left, _) = self.padding
    height, width = self.frame_shape[:2]
    return x[:, top:top + height, left:left + width]

  def __call__(
      self, frames: chex.Array, key: chex.PRNGKey | None = None, noise: float = 0.0
  ) -> tuple[jax.Array, jax.Array]:
    """Reconstruction and latents; with a key the decoder sees latents plus Gaussian noise."""
    latents = self.encode(frames)
    seen = latents
    if key is not None:
      seen = latents + noise * jax.random.normal(key, latents.shape)
    return self.decode(seen), latents


def encoder_of(params: Mapping[str, Any]) -> dict[str, Any]:
  """The part of an autoencoder's parameters that makes latents."""
  return {name: part for name, part in params.items() if name.startswith('encode_')}


@struct.dataclass
class LatentSpace:
  """A trained autoencoder with standardised latents: what a world model in latents sees through.

  Attributes:
    params: Of the autoencoder.
    mean: Mean of each latent channel over the training frames [C].
    std: Their standard deviation [C].
    network: Static.
  """

  params: Any
  mean: chex.Array
  std: chex.Array
  network: Autoencoder = struct.field(pytree_node=False)

  @property
  def frame_shape(self) -> tuple[int, int, int]:
    """(H, W, 3) of the frames it encodes."""
    return self.network.frame_shape

  def encode(self, frames: chex.Array) -> jax.Array:
    """uint8 [... H W 3] -> standardised float32 latents [... h w C]."""
    lead = frames.shape[:-3]
    x = jnp.asarray(frames, jnp.float32).reshape(-1, *frames.shape[-3:]) / 127.5 - 1.0
    z = self.network.apply({'params': self.params}, x, method='encode')
    return ((z - self.mean) / self.std).reshape(*lead, *z.shape[1:])

  def decode(self, latents: chex.Array) -> jax.Array:
    """Standardised latents [... h w C] -> uint8 [... H W 3]."""
    lead = latents.shape[:-3]
    z = latents.reshape(-1, *latents.shape[-3:]) * self.std + self.mean
    bound = self.network.bound
    x = self.network.apply(
        {'params': self.params}, jnp.clip(z, min=-bound, max=bound), method='decode')
    x = jnp.clip(jnp.round((x + 1.0) * 127.5), min=0, max=255).astype(jnp.uint8)
    return x.reshape(*lead, *x.shape[1:])


def reconstruction_loss(
    network: Autoencoder,
    params: Any,
    frames: chex.Array,
    key: chex.PRNGKey,
    *,
    noise: float,
    absolute: float,
    perceptual: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    perceptual_weight: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
  """`mean (x_hat - x)^2 + absolute mean |x_hat - x| + perceptual`, the decoder under latent noise.

  Args:
    network: Static.
    params: Its parameters.
    frames: uint8 [B H W 3].
    key: Of the noise.
    noise: Standard deviation of the noise added to the latents.
    absolute: Weight of the absolute error, which keeps edges sharp.
    perceptual: Optional distance of frames in [0, 1], [B H W 3] twice -> [B], such as LPIPS: it
      keeps texture, which squared errors smooth away.
    perceptual_weight: Its weight.

  Returns:
    `(loss, mse)`, the second on pixels in [0, 1].
  """
  x = jnp.asarray(frames, jnp.float32) / 127.5 - 1.0
  x_hat, _ = network.apply({'params': params}, x, key, noise)
  error = x_hat - x
  mse = jnp.mean(jnp.square(error))
  loss = mse + absolute * jnp.mean(jnp.abs(error))
  if perceptual is not None:
    loss = loss + perceptual_weight * jnp.mean(perceptual((x_hat + 1.0) / 2.0, (x + 1.0) / 2.0))
  return loss, mse / 4.0
