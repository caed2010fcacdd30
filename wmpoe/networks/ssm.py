"""A video denoiser whose memory is a state of constant size: gated selective scans over time.

Blocks are those of the DiT with two changes: attention stays inside a frame, and between attention
and MLP a gated selective scan (arXiv 2312.00752) carries every place of the frame through time.
Pre-norm, residual, modulated and gated per frame like everything else, so that a network can be
forked from a DiT's weights. What the past has left is one matrix per channel, whatever its length:
the context is read once, and a generated frame costs the same after ten frames as after a thousand.
"""

import functools
import math
from typing import Any

import chex
from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from wmpoe.networks import attention
from wmpoe.networks import dit
from wmpoe.networks import embeddings
from wmpoe.networks import lora

_STEPS = (1e-3, 1e-1)  # range of the step sizes at initialisation, as in the source


@struct.dataclass
class State:
  """What the past has left: one array per layer [B N E S], float32."""

  hidden: tuple[jax.Array, ...]


def selective_scan(
    u: chex.Array,
    delta: chex.Array,
    decay: chex.Array,
    write: chex.Array,
    read: chex.Array,
    initial: chex.Array,
    *,
    implementation: str = 'auto',
) -> tuple[jax.Array, jax.Array]:
  """Runs `h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t`, `y_t = C_t h_t` over time, in float32.

  Shapes: M sequences, T frames, E channels, S states per channel.

  Args:
    u: Input [M T E].
    delta: Positive step sizes [M T E].
    decay: A, negative [E S].
    write: B [M T S].
    read: C [M T S].
    initial: State before the first frame [M E S].
    implementation: 'associative' (`jax.lax.associative_scan`: depth log T, holds all states),
      'sequential' (`jax.lax.scan`: holds one, recomputed in the backward pass) or 'auto': the
      second on CPU, the first elsewhere.

  Returns:
    `(y [M T E], state after the last frame [M E S])`.

  Raises:
    ValueError: if the implementation is unknown.
  """
  chex.assert_equal_shape([u, delta])
  chex.assert_equal_shape([write, read])
  if implementation == 'auto':
    implementation = 'sequential' if jax.default_backend() == 'cpu' else 'associative'
  u, delta, write, read, initial = (
      jnp.asarray(x, jnp.float32) for x in (u, delta, write, read, initial))
  if implementation == 'associative':
    kept = jnp.exp(delta[..., None] * decay)  # [M T E S]
    added = (delta * u)[..., None] * write[:, :, None, :]
    kept, states = jax.lax.associative_scan(
        lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1]), (kept, added), axis=1)
    states = states + kept * initial[:, None]
    return jnp.einsum('mtes,mts->mte', states, read), states[:, -1]
  if implementation != 'sequential':
    raise ValueError(
        f'Unknown scan implementation {implementation!r}; expected auto, associative or '
        'sequential.')

  @jax.checkpoint
  def step(state, frame):
    u, delta, write, read = frame  # [M E], [M E], [M S], [M S]
    state = jnp.exp(delta[..., None] * decay) * state
    state = state + (delta * u)[..., None] * write[:, None, :]
    return state, jnp.sum(state * read[:, None, :], axis=-1)

  over_time = lambda x: jnp.moveaxis(x, 1, 0)
  last, y = jax.lax.scan(step, initial, tuple(map(over_time, (u, delta, write, read))))
  return jnp.moveaxis(y, 0, 1), last


def _decay_init(key: chex.PRNGKey, shape: tuple[int, int]) -> jax.Array:
  """log(-A): decay rates 1 to S in every channel."""
  del key
  return jnp.broadcast_to(jnp.log(jnp.arange(1.0, shape[1] + 1)), shape)


def _step_init(key: chex.PRNGKey, shape: tuple[int]) -> jax.Array:
  """Biases whose softplus is log-uniform over `_STEPS`."""
  low, high = (math.log(x) for x in _STEPS)
  steps = jnp.exp(jax.random.uniform(key, shape, minval=low, maxval=high))
  return steps + jnp.log(-jnp.expm1(-steps))


class GatedScan(nn.Module):
  """Gated selective scan over the frames of each place: [B T N D] -> [B T N D] and the state."""

  expand: int
  state: int
  dtype: Any
  scan: str

  @nn.compact
  def __call__(self, x, past):
    """Normed tokens [B T N D] after the state `past` [B N E S], or after nothing."""
    b, t, n, d = x.shape
    e = self.expand * d
    dense = lambda features, name, **kw: lora.Dense(features, dtype=self.dtype, name=name, **kw)
    u = nn.silu(dense(e, 'time_in')(x))
    gate = nn.silu(dense(e, 'time_gate')(x))
    low_rank = dense(math.ceil(d / 16), 'step_down', use_bias=False)(u)
    delta = dense(e, 'step_up', use_bias=False)(low_rank).astype(jnp.float32)
    delta = nn.softplus(delta + self.param('step_bias', _step_init, (e,)))
    decay = -jnp.exp(self.param('decay', _decay_init, (e, self.state)))
    skip = self.param('skip', nn.initializers.ones, (e,))
    fold = lambda y: y.transpose(0, 2, 1, 3).reshape(b * n, t, y.shape[-1])
    initial = jnp.zeros((b, n, e, self.state)) if past is None else past
    y, last = selective_scan(
        fold(u), fold(delta), decay, fold(dense(self.state, 'write', use_bias=False)(u)),
        fold(dense(self.state, 'read', use_bias=False)(u)), initial.reshape(b * n, e, self.state),
        implementation=self.scan)
    y = y.reshape(b, n, t, e).transpose(0, 2, 1, 3) + skip * u.astype(jnp.float32)
    return dense(d, 'time_out')(y.astype(self.dtype) * gate), last.reshape(initial.shape)


class Block(nn.Module):
  """Attention inside each frame, a gated scan over frames, an MLP; pre-norm and residual."""

  width: int
  heads: int
  mlp_ratio: int
  dtype: Any
  implementation: str
  expand: int
  state: int
  scan: str

  @nn.compact
  def __call__(self, x, modulation, rope, past):
    """Tokens [B T N D], modulation [B T 9 D], state [B N E S]; returns tokens and new state."""
    b, t, n, d = x.shape
    parts = [modulation.astype(self.dtype)[:, :, i:i + 1] for i in range(9)]
    dense = lambda features, name: lora.Dense(features, dtype=self.dtype, name=name)

    def normed(x, name, which):
      norm = nn.LayerNorm(use_bias=False, use_scale=False, dtype=self.dtype, name=name)
      return norm(x) * (1.0 + parts[3 * which + 1]) + parts[3 * which]

    y = normed(x, 'norm_attention', 0).reshape(b * t, n, d)
    split = lambda z: z.reshape(b * t, n, self.heads, d // self.heads)
    query = embeddings.rotate(split(dense(d, 'query')(y)), rope)
    key = embeddings.rotate(split(dense(d, 'key')(y)), rope)
    y = attention.attend(
        query, key, split(dense(d, 'value')(y)), implementation=self.implementation)
    x = x + parts[2] * dense(d, 'out')(y.reshape(b, t, n, d))

    scan = GatedScan(self.expand, self.state, self.dtype, self.scan, name='time')
    y, state = scan(normed(x, 'norm_time', 2), past)
    x = x + parts[8] * y

    y = nn.gelu(dense(self.mlp_ratio * d, 'mlp_in')(normed(x, 'norm_mlp', 1)), approximate=True)
    return x + parts[5] * dense(d, 'mlp_out')(y), state


class SSM(dit.DiT):
  """The DiT's conditions and output around blocks that carry a state instead of seeing the past.

  `prefill` and `__call__` are the DiT's, with a `State` for the cache; every frame depends on
  itself and on those before it. The pattern is not used.

  Attributes:
    state: States S per channel.
    expand: Channels E of the scan over D.
    scan: See `selective_scan`.
  """

  state: int = 16
  expand: int = 1
  scan: str = 'auto'

  @property
  def caches_context(self) -> bool:
    """Always: nothing depends on what comes after it."""
    return True

  def _blocks(self, tokens, condition, modulation, offsets, *, first, context, past):
    del first, context
    # Shift, scale and gate of the scan, beside the DiT's six.
    b, t, _, d = tokens.shape
    own = lora.Dense(
        3 * d, dtype=self.dtype, kernel_init=nn.initializers.zeros, name='modulation_time')
    modulation = jnp.concatenate([modulation, own(condition).reshape(b, t, 3, d)], axis=2)
    offsets = jnp.concatenate([offsets, self.param(
        'modulation_time_offsets', nn.initializers.normal(0.02), (self.depth, 3, d))], axis=1)
    rope = embeddings.axial_rope(
        np.arange(1), self.grid, embeddings.head_dim(self.width, self.heads))
    block = functools.partial(
        dit.recomputed(Block, self.remat), self.width, self.heads, self.mlp_ratio, self.dtype,
        self.implementation, self.expand, self.state, self.scan)
    seen = [None] * self.depth if past is None else past.hidden
    tokens, hidden = self._in_order(
        [block] * self.depth, tokens, modulation, rope, list(zip(offsets, seen, strict=True)))
    return tokens, State(hidden=tuple(hidden))

  def carry(
      self,
      frames: chex.Array,
      logsnr: chex.Array,
      actions: chex.Array,
      poses: chex.Array,
      past: State,
  ) -> State:
    """The state after more frames [B T H W C] with their levels [B T], actions and poses."""
    return self._run(frames, logsnr, actions, poses, None, 0, 0, past)[1]

  def empty(self, batch: int) -> State:
    """The state before the first frame of `batch` episodes."""
    tokens = self.grid[0] * self.grid[1]
    shape = batch, tokens, self.expand * self.width, self.state
    return State(hidden=tuple(jnp.zeros(shape) for _ in range(self.depth)))
