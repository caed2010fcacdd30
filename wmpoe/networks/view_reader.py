"""Reads what posed pictures say about another view: the learned encoder of the key-frame memory."""

from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from wmpoe.networks import embeddings
from wmpoe.networks import poses


class ViewReader(nn.Module):
  """Cross-attention from the patches of an asked view to those of K remembered pictures.

  The pictures come turned to the asked heading (`poses.turn_grid`), so that what is left to learn
  is parallax, occlusion and which picture to believe. Runs once per chunk, not once per denoising
  step: its output does not depend on the noise.

  Attributes:
    features: Channels M of a token.
    patch: Patch size of the denoiser that takes the tokens.
    width: Width D.
    depth: Cross-attention blocks.
    heads: Attention heads.
    dtype: Computation dtype; the output is float32.
  """

  features: int = 64
  patch: int = 2
  width: int = 128
  depth: int = 2
  heads: int = 4
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
      self, pictures: chex.Array, inside: chex.Array, relative: chex.Array, valid: chex.Array,
      warped: chex.Array | None = None,
  ) -> jax.Array:
    """Tokens aligned with the asked view's patches.

    Args:
      pictures: Remembered pictures, turned to the asked heading [B T K H W C].
      inside: Which of their pixels were in view [B T K H W].
      relative: Their poses relative to the asked pose [B T K 3].
      valid: Which of them exist [B T K].
      warped: Optional; patches of the asked view as far as point maps show it [B T N D]
        (`experts.point_maps`), so that it is known what is left to be said. Zeros are the same as
        None.

    Returns:
      [B T N M], N patches in row-major order.
    """
    b, t, k, h, w, _ = pictures.shape
    n, d, m = (h // self.patch) * (w // self.patch), self.width, b * t
    dense = lambda width, name: nn.Dense(width, dtype=self.dtype, name=name)
    norm = lambda name: nn.LayerNorm(use_bias=False, dtype=self.dtype, name=name)
    mlp = lambda x, name: dense(d, f'{name}_out')(nn.gelu(dense(2 * d, f'{name}_in')(x)))

    seen = jnp.concatenate([pictures * inside[..., None], inside[..., None]], axis=-1)
    seen = embeddings.patchify(seen.reshape(m, k, h, w, -1), self.patch)  # [M K N C']
    known = jnp.mean(embeddings.patchify(
        inside.astype(jnp.float32).reshape(m, k, h, w, 1), self.patch), axis=-1)
    place = self.param('place', nn.initializers.normal(0.5), (n, d)).astype(self.dtype)
    offset = dense(d, 'relative')(poses.features(relative).reshape(m, k, 1, -1))
    tokens = dense(d, 'picture')(seen) + offset + place
    tokens = tokens + mlp(norm('norm_tokens')(tokens), 'tokens')
    tokens = norm('norm_source')(tokens).reshape(m, k * n, d)
    usable = (known > 0.0) & valid.reshape(m, k, 1)
    # One token that is always there says "nothing was seen".
    nothing = self.param('nothing', nn.initializers.normal(0.5), (1, d)).astype(self.dtype)
    tokens = jnp.concatenate([jnp.broadcast_to(nothing, (m, 1, d)), tokens], axis=1)
    usable = jnp.concatenate([jnp.ones((m, 1), bool), usable.reshape(m, k * n)], axis=1)

    x = jnp.broadcast_to(place, (m, n, d)) + dense(d, 'query_place')(place)
    if warped is not None:
      x = x + nn.Dense(
          d, use_bias=False, kernel_init=nn.initializers.zeros, dtype=self.dtype, name='warped')(
              warped.reshape(m, n, -1))
    size = embeddings.head_dim(d, self.heads)
    split = lambda y: y.reshape(m, -1, self.heads, size).transpose(0, 2, 1, 3)
    for i in range(self.depth):
      query = split(dense(d, f'query_{i}')(norm(f'norm_query_{i}')(x)))
      key, value = split(dense(d, f'key_{i}')(tokens)), split(dense(d, f'value_{i}')(tokens))
      logits = jnp.einsum(
          'mhqd,mhkd->mhqk', query, key, preferred_element_type=jnp.float32) * query.shape[-1]**-0.5
      logits = jnp.where(usable[:, None, None, :], logits, jnp.finfo(jnp.float32).min)
      attended = jnp.einsum('mhqk,mhkd->mhqd', jax.nn.softmax(logits).astype(self.dtype), value)
      x = x + dense(d, f'out_{i}')(attended.transpose(0, 2, 1, 3).reshape(m, n, d))
      x = x + mlp(norm(f'norm_mlp_{i}')(x), f'mlp_{i}')
    out = dense(self.features, 'features')(norm('norm')(x))
    return out.astype(jnp.float32).reshape(b, t, n, self.features)
