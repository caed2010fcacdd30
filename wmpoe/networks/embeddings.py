"""Embeddings: Fourier features, axial 3-D rotary positions, patches, poses on the token grid."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np


def fourier_features(x: chex.Array, dim: int, *, max_period: float = 1_000.0) -> jax.Array:
  """Sine and cosine features of scalars: [...] -> [... dim] (arXiv 1706.03762, section 3.5).

  Raises:
    ValueError: if `dim` is odd.
  """
  if dim % 2:
    raise ValueError(f'dim={dim} must be even: half sines, half cosines.')
  frequencies = np.exp(-math.log(max_period) * np.arange(dim // 2) / (dim // 2))
  angles = jnp.asarray(x, jnp.float32)[..., None] * (2 * math.pi * frequencies).astype(np.float32)
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def head_dim(width: int, heads: int) -> int:
  """Channels of each attention head.

  Raises:
    ValueError: if the heads do not divide the width.
  """
  if heads < 1 or width % heads:
    raise ValueError(
        f'width={width} does not divide into heads={heads}; expected a multiple, for instance '
        f'width={max(heads, 1) * max(1, round(width / max(heads, 1)))}.')
  return width // heads


def axial_rope(
    times: np.ndarray, grid: tuple[int, int], head_dim: int, *, base: float = 100.0
) -> tuple[np.ndarray, np.ndarray]:
  """Cosines and sines of axial 3-D rotary positions (arXiv 2104.09864, one axis per third).

  The head's pairs of channels are split between time, row and column; each third turns with the
  token's coordinate on its axis.

  Args:
    times: Frame positions [T], in frames.
    grid: Rows and columns of tokens in a frame.
    head_dim: Channels of a head; must be even.
    base: Slowest wavelength is about `2 pi base` tokens.

  Returns:
    `(cos, sin)`, each [T*rows*columns, head_dim/2] float32.

  Raises:
    ValueError: if the head is too narrow for three axes.
  """
  if head_dim % 2 or head_dim < 6:
    raise ValueError(f'head_dim={head_dim} must be even and at least 6 for three rotary axes.')
  pairs = head_dim // 2
  space = pairs // 3
  sizes = (pairs - 2 * space, space, space)
  coordinates = np.meshgrid(
      np.asarray(times, np.float64), np.arange(grid[0]), np.arange(grid[1]), indexing='ij')
  angles = np.concatenate([
      c.reshape(-1, 1) * base ** (-np.arange(size) / size)
      for c, size in zip(coordinates, sizes, strict=True)
  ], axis=-1)
  return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(x: chex.Array, rope: tuple[np.ndarray, np.ndarray]) -> jax.Array:
  """Applies rotary positions to queries or keys [B L H d]."""
  cos, sin = (jnp.asarray(r, x.dtype)[None, :, None, :] for r in rope)
  first, second = jnp.split(x, 2, axis=-1)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def patchify(x: chex.Array, patch: int) -> jax.Array:
  """[B T H W C] -> [B T N patch*patch*C], N tokens in row-major order."""
  b, t, h, w, c = x.shape
  if h % patch or w % patch:
    raise ValueError(f'Frames of {h}x{w} do not divide into patches of {patch}.')
  x = x.reshape(b, t, h // patch, patch, w // patch, patch, c).transpose(0, 1, 2, 4, 3, 5, 6)
  return x.reshape(b, t, (h // patch) * (w // patch), patch * patch * c)


def unpatchify(x: chex.Array, patch: int, grid: tuple[int, int]) -> jax.Array:
  """[B T N patch*patch*C] -> [B T H W C]; the inverse of `patchify`."""
  b, t, _, d = x.shape
  x = x.reshape(b, t, *grid, patch, patch, d // patch**2).transpose(0, 1, 2, 4, 3, 5, 6)
  return x.reshape(b, t, grid[0] * patch, grid[1] * patch, d // patch**2)


def grid_planes(poses: chex.Array, grid: tuple[int, int]) -> jax.Array:
  """Marks the token a pose (row, column) points at: [B T 2] -> [B T N 1] of 0 and 1."""
  rows = jnp.round(poses[..., 0]).astype(jnp.int32)
  columns = jnp.round(poses[..., 1]).astype(jnp.int32)
  cell = rows * grid[1] + columns
  return jax.nn.one_hot(cell, grid[0] * grid[1], dtype=jnp.float32)[..., None]
