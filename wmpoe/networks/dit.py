"""A video diffusion transformer with AdaLN-Zero per frame (arXiv 2212.09748).

One network serves base, short-term and spatial experts; they differ in attention pattern, window
and in whether a map is given. Tokens carry the conditions twice: through AdaLN (per frame) and
added to the tokens (per frame and per place), without which small networks ignore them.
"""

import functools
from typing import Any

import chex
from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from wmpoe.networks import attention
from wmpoe.networks import embeddings
from wmpoe.networks import lora
from wmpoe.networks import refiner

# What a block keeps for the backward pass.
REMAT = {
    'nothing': jax.checkpoint_policies.nothing_saveable,  # but its inputs
    'matmuls': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # dense layers' outputs
}


@struct.dataclass
class Cache:
  """Keys and values of the context, one pair per layer, each [B C*N H d]."""

  keys: tuple[jax.Array, ...]
  values: tuple[jax.Array, ...]


def _modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
  return x * (1.0 + scale) + shift


class Block(nn.Module):
  """Pre-norm attention and MLP, each modulated and gated per frame (AdaLN-Zero).

  `allowed` says which frame may see which, as rows of a tuple: static also where blocks are
  recomputed.
  """

  width: int
  heads: int
  mlp_ratio: int
  dtype: Any
  implementation: str
  allowed: tuple[tuple[bool, ...], ...]

  @nn.compact
  def __call__(self, x, modulation, rope, past):
    """Tokens [B T N D], modulation [B T 6 D]; returns tokens and this layer's (key, value)."""
    b, t, n, d = x.shape
    mask = attention.token_mask(np.array(self.allowed), n)
    parts = jnp.split(modulation.astype(self.dtype)[:, :, :, None, :], 6, axis=2)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (p[:, :, 0] for p in parts)
    norm = lambda name: nn.LayerNorm(
        use_bias=False, use_scale=False, dtype=self.dtype, name=name)
    dense = lambda features, name: lora.Dense(features, dtype=self.dtype, name=name)

    y = _modulate(norm('norm_attention')(x), shift_a, scale_a).reshape(b, t * n, d)
    split = lambda z: z.reshape(b, t * n, self.heads, d // self.heads)
    query = embeddings.rotate(split(dense(d, 'query')(y)), rope)
    key = embeddings.rotate(split(dense(d, 'key')(y)), rope)
    value = split(dense(d, 'value')(y))
    own = (key, value)
    if past is not None:
      key = jnp.concatenate([past[0].astype(key.dtype), key], axis=1)
      value = jnp.concatenate([past[1].astype(value.dtype), value], axis=1)
    y = attention.attend(query, key, value, mask, implementation=self.implementation)
    x = x + gate_a * dense(d, 'out')(y.reshape(b, t * n, d)).reshape(b, t, n, d)

    y = _modulate(norm('norm_mlp')(x), shift_m, scale_m)
    y = nn.gelu(dense(self.mlp_ratio * d, 'mlp_in')(y), approximate=True)
    return x + gate_m * dense(d, 'mlp_out')(y), own


@functools.cache
def recomputed(block: type[nn.Module], remat: bool | str) -> Any:
  """The block that keeps what `remat` names and computes the rest again; see `DiT`.

  Raises:
    ValueError: for an unknown name.
  """
  if remat is False:
    return block
  name = 'nothing' if remat is True else remat
  if name not in REMAT:
    raise ValueError(
        f'Unknown remat={remat!r}; expected False, True or one of {", ".join(REMAT)}.')
  return nn.remat(block, policy=REMAT[name])


@functools.partial(jax.jit, static_argnums=0)
def _run_block(block: nn.Module, variables: Any, *inputs: Any) -> Any:
  """Applies a block; jitted so that blocks of one form are traced once, wherever they stand."""
  return block.apply(variables, *inputs)


class DiT(nn.Module):
  """Denoises the generated frames of a clip, given context frames, actions and poses.

  The forward pass has two stages that share all weights: `prefill` runs the context and returns
  its keys and values; `__call__` runs the generated frames on top of them. With an attention
  pattern in which the context never sees generated frames the two are one network and the cache
  is exact; with the 'full' pattern put the context in front of the frames `__call__` takes.

  Attributes:
    width: Token width D.
    depth: Number of blocks.
    heads: Attention heads.
    patch: Patch size in pixels (or latent pixels).
    frame_shape: (H, W, C) of a frame.
    context: Number of context frames.
    pattern: Which frames see which.
    pose_kind: 'grid' marks the token a (row, column) pose points at; 'vector' takes poses as
      they are; 'none' ignores them.
    field: The last `field` channels of a 'vector' pose are the key of a place field, a table that
      is zero in the base and only ever changed by an adapter: what a long-term memory writes
      there is added to the tokens of the frames that ask for it. 0 for none.
    mlp_ratio: Hidden width of the MLP over D.
    map_dim: Channels of a spatial memory's tokens aligned with the frame's own (0: none).
    refiner: Width of the `refiner.Refiner` that puts views warped to the frames into the
      prediction; their patches are the last channels of the map's tokens. 0 for none.
    dtype: Computation dtype; parameters, the sums of their gradients, norms' statistics, softmax
      and output stay float32.
    remat: What blocks keep for the backward pass, a name of `REMAT`; the rest is computed again
      (less memory, more time). False keeps everything, True is 'nothing'.
    implementation: See `attention.attend`.
    scan_layers: Run all blocks as one compiled loop over their stacked parameters: a deep network
      then compiles in the time of one block. Parameters are the same either way.
  """

  width: int = 128
  depth: int = 4
  heads: int = 2
  patch: int = 8
  frame_shape: tuple[int, int, int] = (32, 32, 3)
  context: int = 3
  pattern: attention.Pattern = attention.Pattern()
  pose_kind: str = 'grid'
  mlp_ratio: int = 4
  field: int = 0
  map_dim: int = 0
  refiner: int = 0
  dtype: Any = jnp.float32
  remat: bool | str = False
  implementation: str = 'auto'
  scan_layers: bool = False

  @property
  def caches_context(self) -> bool:
    """Whether `prefill` may run the context before the generated frames are known."""
    return self.pattern.caches_context

  @property
  def grid(self) -> tuple[int, int]:
    """Rows and columns of tokens in a frame."""
    return self.frame_shape[0] // self.patch, self.frame_shape[1] // self.patch

  @nn.compact
  def _run(self, x, logsnr, actions, poses, cells, first, context, past):
    """Runs frames `first .. first+T-1` of a clip; returns output and every layer's (key, value)."""
    chex.assert_shape(x, (None, None, *self.frame_shape))
    chex.assert_equal_shape_prefix([x, logsnr, actions, poses], 2)
    b, t = x.shape[:2]
    n = self.grid[0] * self.grid[1]
    d = self.width
    dense = lambda features, name, **kw: lora.Dense(features, dtype=self.dtype, name=name, **kw)
    zeros = nn.initializers.zeros

    level = nn.silu(dense(d, 'noise_level')(
        embeddings.fourier_features(0.125 * logsnr, d, max_period=100.0)))
    poses, keys = poses[..., :poses.shape[-1] - self.field], poses[..., -self.field:]
    inputs = [actions] if self.pose_kind != 'vector' else [actions, poses]
    frame = dense(d, 'frame_condition')(jnp.concatenate(inputs, axis=-1).astype(jnp.float32))
    condition = nn.silu(dense(d, 'condition')(level + frame))

    tokens = dense(d, 'patch_embed')(embeddings.patchify(x, self.patch))
    place = self.param('place', nn.initializers.normal(0.5), (n, d))
    place = lora.embedding(self, 'place', place)
    # Spread before it is rounded, as a dense layer's bias is.
    place = jnp.broadcast_to(place, tokens.shape).astype(self.dtype)
    tokens = tokens + (frame + level)[:, :, None, :] + place
    if self.pose_kind == 'grid':
      planes = embeddings.grid_planes(poses, self.grid)
      # The plane carries the frame's action too: "this happens here" is then linear.
      local = jnp.concatenate([planes, planes * actions[:, :, None, :]], axis=-1)
      tokens = tokens + dense(d, 'pose_plane', use_bias=False)(local)
    if self.field:
      field = jax.lax.stop_gradient(self.param('field', zeros, (self.field, n * d)))
      field = lora.embedding(self, 'field', field).astype(self.dtype)
      tokens = tokens + (keys.astype(self.dtype) @ field).reshape(b, t, n, d)
    if self.map_dim:
      told = jnp.zeros((b, t, n, self.map_dim), self.dtype) if cells is None else cells
      tokens = tokens + dense(d, 'map_embed', use_bias=False)(told)

    # One modulation for all blocks plus an offset per block (arXiv 2310.00426, adaLN-single):
    # a few hundred kilobytes less in every packaged expert, and one matmul instead of `depth`.
    modulation = dense(6 * d, 'modulation', kernel_init=zeros)(condition).reshape(b, t, 6, d)
    offsets = self.param('modulation_offsets', nn.initializers.normal(0.02), (self.depth, 6, d))

    tokens, past = self._blocks(
        tokens, condition, modulation, offsets, first=first, context=context, past=past)

    tokens = nn.LayerNorm(use_bias=False, use_scale=False, dtype=self.dtype, name='norm')(tokens)
    shift, scale = jnp.split(dense(2 * d, 'output_modulation', kernel_init=zeros)(condition), 2, -1)
    tokens = _modulate(tokens, shift[:, :, None, :], scale[:, :, None, :])
    out = dense(self.patch**2 * self.frame_shape[-1], 'output', kernel_init=zeros)(tokens)
    out = embeddings.unpatchify(out.astype(jnp.float32), self.patch, self.grid)
    if self.refiner and (cells is not None or self.is_initializing()):
      spread = lambda patches: embeddings.unpatchify(patches, self.patch, self.grid)
      said = dense(self.patch**2 * self.frame_shape[-1], 'refiner_says')(tokens)
      warped = told[..., -self.patch**2 * (self.frame_shape[-1] + 1):]
      out = refiner.Refiner(self.refiner, dtype=self.dtype, name='refiner')(
          out, x, spread(warped), spread(said), condition)
    return out, past

  def _blocks(self, tokens, condition, modulation, offsets, *, first, context, past):
    """All blocks on tokens [B T N D]; returns them and what later frames need of these."""
    del condition  # the modulation says it all
    t, heads = tokens.shape[1], self.heads
    total = context + t if past is not None else t
    rope = embeddings.axial_rope(
        np.arange(first, first + t), self.grid, embeddings.head_dim(self.width, heads))
    blocks = []
    for layer in range(self.depth):
      allowed = self.pattern.allowed(total, context, layer)[total - t:]
      blocks.append(functools.partial(
          recomputed(Block, self.remat), self.width, heads, self.mlp_ratio, self.dtype,
          self.implementation, tuple(map(tuple, allowed.tolist()))))
    seen = [None] * self.depth if past is None else zip(past.keys, past.values, strict=True)
    tokens, caches = self._in_order(
        blocks, tokens, modulation, rope, list(zip(offsets, seen, strict=True)))
    return tokens, Cache(keys=tuple(k for k, _ in caches), values=tuple(v for _, v in caches))

  def _in_order(self, blocks, tokens, modulation, rope, layers):
    """Runs block after block, each with its (offset, past); returns tokens and what each keeps."""
    if self.scope.mutable:  # while parameters are made, or what blocks sow is to be captured
      kept = []
      for i, (offset, past) in enumerate(layers):
        tokens, own = blocks[i](name=f'block_{i}')(tokens, modulation + offset, rope, past)
        kept.append(own)
      return tokens, kept
    blocks = [block(parent=None) for block in blocks]
    weights = [
        {kind: tree[f'block_{i}'] for kind, tree in self.variables.items() if f'block_{i}' in tree}
        for i in range(self.depth)]
    inputs = list(zip(weights, layers, strict=True))

    def body(tokens, turned):
      kept = []
      for block, (variables, (offset, past)) in zip(blocks, turned, strict=False):
        tokens, own = _run_block(block, variables, tokens, modulation + offset, rope, past)
        kept.append(own)
      return tokens, kept

    if not self.scan_layers:
      return body(tokens, inputs)
    # One turn of the loop is as many blocks as it takes until their pattern repeats.
    turn = next(n for n in range(1, self.depth + 1) if self.depth % n == 0 and all(
        block == blocks[i % n] for i, block in enumerate(blocks)))
    tokens, kept = jax.lax.scan(body, tokens, [
        jax.tree.map(lambda *x: jnp.stack(x), *inputs[i::turn]) for i in range(turn)])
    return tokens, [
        jax.tree.map(lambda x, i=i: x[i // turn], kept[i % turn]) for i in range(self.depth)]

  def prefill(
      self,
      context: chex.Array,
      logsnr: chex.Array,
      actions: chex.Array,
      poses: chex.Array,
      cells: chex.Array | None = None,
  ) -> Cache:
    """Keys and values of the context frames.

    Args:
      context: Clean or nulled context frames [B C H W D].
      logsnr: Their levels [B C].
      actions: [B C A].
      poses: [B C P].
      cells: Optional map tokens [B C N map_dim].

    Raises:
      ValueError: if the pattern lets the context see generated frames.
    """
    if not self.caches_context:
      raise ValueError(
          f"Attention kind '{self.pattern.kind}' lets context frames see generated ones; their "
          'keys cannot be cached. Use prefix or causal, or put the context in front of the call.')
    return self._run(
        context, logsnr, actions, poses, cells, 0, context.shape[1], None)[1]

  def __call__(
      self,
      x: chex.Array,
      logsnr: chex.Array,
      actions: chex.Array,
      poses: chex.Array,
      *,
      past: Cache | None = None,
      cells: chex.Array | None = None,
  ) -> jax.Array:
    """Predicts for noised frames, after a cached context if `past` is given.

    Args:
      x: Noised frames [B T H W C]; without `past` the first `context` of them are the context.
      logsnr: Level of every frame [B T].
      actions: [B T A].
      poses: [B T P].
      past: Cache of the context frames that precede `x`.
      cells: Optional map tokens [B T N map_dim]; absent means an empty map.

    Returns:
      The prediction for every frame of `x`, float32 [B T H W C].
    """
    first = 0 if past is None else self.context
    return self._run(x, logsnr, actions, poses, cells, first, self.context, past)[0]
