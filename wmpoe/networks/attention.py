"""Which frame may attend to which, and multi-head attention over all tokens of a clip.

A pattern speaks of frames; a mask is its expansion to tokens. All of it is static: masks are
numpy constants of a compiled program.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np

from wmpoe.networks import splash

KINDS = ('full', 'prefix', 'causal')
_MASKED = -1e30  # added to the logit of what may not be seen


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pattern:
  """A frame-level attention pattern.

  Attributes:
    kind: 'full' (every frame sees every frame), 'prefix' (context frames see context frames only,
      generated frames see all: the context's keys and values can then be computed once per chunk)
      or 'causal' (a frame sees itself and the past).
    window: If set, layers see only frames less than `window` frames away ...
    full_every: ... except every `full_every`-th layer, which sees all the kind allows (0: none).
  """

  kind: str = 'prefix'
  window: int | None = None
  full_every: int = 0

  def __post_init__(self):
    if self.kind not in KINDS:
      raise ValueError(f'Unknown attention kind {self.kind!r}; expected one of {", ".join(KINDS)}.')
    if self.window is not None and self.window < 1:
      raise ValueError(f'window={self.window} must be at least 1 frame (or None for no window).')

  @property
  def caches_context(self) -> bool:
    """Whether context frames never see generated ones, so that their keys can be cached."""
    return self.kind in ('prefix', 'causal')

  def allowed(self, frames: int, context: int, layer: int) -> np.ndarray:
    """Boolean [T T]: may frame i (row) attend to frame j (column) in this layer?"""
    query, key = np.arange(frames)[:, None], np.arange(frames)[None, :]
    if self.kind == 'full':
      allowed = np.ones((frames, frames), bool)
    elif self.kind == 'prefix':
      allowed = (query >= context) | (key < context)
    else:
      allowed = key <= query
    is_full = self.full_every and layer % self.full_every == self.full_every - 1
    if self.window is not None and not is_full:
      allowed = allowed & (np.abs(query - key) < self.window)
    return allowed


def token_mask(allowed: np.ndarray, tokens_per_frame: int) -> np.ndarray | None:
  """Expands a frame mask [T T'] to tokens [T N, T' N]; None if everything is allowed."""
  if allowed.all():
    return None
  return np.repeat(np.repeat(allowed, tokens_per_frame, 0), tokens_per_frame, 1)


def attend(
    query: chex.Array,
    key: chex.Array,
    value: chex.Array,
    mask: np.ndarray | None = None,
    *,
    implementation: str = 'auto',
) -> jax.Array:
  """Scaled dot-product attention with a float32 softmax.

  Args:
    query: [B L H d].
    key: [B S H d].
    value: [B S H d].
    mask: Optional boolean [L S].
    implementation: 'head_major' (heads folded into the batch of a matmul; on XLA's CPU backend
      many times faster than attention over strided heads), 'dot_product_attention'
      (`jax.nn.dot_product_attention`, which may use a fused kernel), 'splash' (a TPU kernel that
      keeps no logits in memory and skips masked blocks; see `splash`), or 'auto': the first on
      CPU, the second elsewhere.

  Returns:
    [B L H d] in the dtype of `query`.

  Raises:
    ValueError: if the implementation is unknown.
  """
  if implementation == 'auto':
    implementation = (
        'head_major' if jax.default_backend() == 'cpu' else 'dot_product_attention')
  if mask is not None:
    key, value, mask = _seen(key, value, mask)
  if implementation == 'dot_product_attention':
    return jax.nn.dot_product_attention(
        query, key, value, mask=None if mask is None else jnp.asarray(mask)[None, None])
  if implementation == 'splash':
    return splash.attend(query, key, value, mask)
  if implementation != 'head_major':
    raise ValueError(
        f'Unknown attention implementation {implementation!r}; expected auto, head_major, '
        'dot_product_attention or splash.')
  batch, length, heads, dim = query.shape
  fold = lambda x: x.transpose(0, 2, 1, 3).reshape(batch * heads, x.shape[1], dim)
  logits = jnp.einsum(
      'bqd,bkd->bqk', fold(query) * dim**-0.5, fold(key), preferred_element_type=jnp.float32)
  if mask is not None:
    logits = logits + np.where(mask, 0.0, _MASKED).astype(np.float32)
  # The softmax is normalised after the sum over values: there are fewer of these than of weights.
  highest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
  weights = jnp.exp(logits - highest)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  out = jnp.einsum('bqk,bkd->bqd', weights.astype(query.dtype), fold(value))
  out = (out / total).astype(query.dtype)
  return out.reshape(batch, heads, length, dim).transpose(0, 2, 1, 3)


def _seen(key: jax.Array, value: jax.Array, mask: np.ndarray
          ) -> tuple[jax.Array, jax.Array, np.ndarray | None]:
  """Without the keys at either end that no query may see, as in a sliding window."""
  seen = np.flatnonzero(mask.any(axis=0))
  span = slice(seen[0], seen[-1] + 1)
  mask = mask[:, span]
  return key[:, span], value[:, span], None if mask.all() else mask
