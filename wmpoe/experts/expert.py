"""The contracts: denoisers, contrasts, queries and memories.

A memory expert is something you can write an episode into and read a denoiser out of. What it
reads is a contrast: its own estimate against its own baseline. Everything is a pytree whose
leaves have a leading episode axis B, so one compiled program serves every episode.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, Protocol

import chex
from flax import struct
import jax
import jax.numpy as jnp

from wmpoe.data import episode
from wmpoe.diffusion import noise_levels
from wmpoe.diffusion import predictions
from wmpoe.diffusion import schedules
from wmpoe.networks import codec as codec_lib
from wmpoe.networks import dit

Params = Any
# (x_t [B T H W C], logsnr [B T]) -> eps [B T H W C]
Denoiser = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  """A network and how to read its output; static and hashable.

  Attributes:
    network: The Linen module.
    schedule: Its noise schedule.
    prediction: What it outputs: 'eps', 'x0' or 'v'.
    codec: Maps an episode's frames to the space it works in.
    pose_code: Optional static `(poses [B T P], anchor [B P]) -> [B T dim]`, such as
      `networks.poses.RelativePose`.
    anchor: Whose pose the anchor is: the 'last' context frame's or the 'first' one's, for those
      that read a context before they know where it ends.
  """

  network: dit.DiT
  schedule: schedules.Schedule
  prediction: str = 'v'
  codec: Any = codec_lib.PixelCodec()
  pose_code: Any = None
  anchor: str = 'last'

  def __post_init__(self):
    if self.anchor not in ('last', 'first'):
      raise ValueError(f"Unknown anchor {self.anchor!r}; expected 'last' or 'first'.")
    if self.network.context < 1:
      raise ValueError(
          f'The network has a context of {self.network.context} frames; expected at least 1 (which '
          'is empty at the start of an episode, and can be nulled).')

  @property
  def context(self) -> int:
    """Context frames the network conditions on."""
    return self.network.context

  def init(self, key: chex.PRNGKey, *, action_dim: int, pose_dim: int) -> Params:
    """Fresh parameters."""
    frames = self.context + 1
    x = jnp.zeros((1, frames, *self.network.frame_shape))
    pose_dim = pose_dim if self.pose_code is None else self.pose_code.dim
    level = jnp.zeros((1, frames))
    return self.network.init(
        key, x, level, jnp.zeros((1, frames, action_dim)),
        jnp.zeros((1, frames, pose_dim)))['params']

  def code_poses(self, past: chex.Array, valid: chex.Array, poses: chex.Array
                 ) -> tuple[jax.Array, jax.Array]:
    """What the network is told of the poses of context [B C P] and generated frames [B T P].

    Before the episode's start (`valid` [B C] false for the last context frame) the first generated
    frame is the anchor.
    """
    if self.pose_code is None:
      return past, poses
    anchor = past[:, -1]
    if self.anchor == 'first':
      anchor = jax.vmap(lambda p, v: p[jnp.argmax(v)])(past, valid)
    anchor = jnp.where(valid[:, -1:], anchor, poses[:, 0])
    return self.pose_code(past, anchor), self.pose_code(poses, anchor)


@struct.dataclass
class Window:
  """The most recent frames of an episode, oldest first; frames before its start are not valid.

  Attributes:
    frames: [B C H W D], as the model's codec takes them: uint8 pixels, or latents.
    actions: [B C A].
    poses: [B C P].
    valid: [B C] bool.
  """

  frames: jax.Array
  actions: jax.Array
  poses: jax.Array
  valid: jax.Array

  def last(self, length: int) -> 'Window':
    """The last `length` frames.

    Raises:
      ValueError: if the window is shorter than that.
    """
    if length > self.frames.shape[1]:
      raise ValueError(
          f'Asked for the last {length} frames of a window of {self.frames.shape[1]}.')
    return jax.tree.map(lambda x: x[:, x.shape[1] - length:], self)

  def push(self, observation: episode.Observation) -> 'Window':
    """Appends observed frames [B T ...] and drops as many of the oldest."""
    new = Window(
        frames=observation.frames, actions=observation.actions, poses=observation.poses,
        valid=jnp.ones(observation.frames.shape[:2], bool))
    length = self.frames.shape[1]
    return jax.tree.map(
        lambda old, x: jnp.concatenate([old, x.astype(old.dtype)], axis=1)[:, -length:]
        if length else old, self, new)


def empty_window(
    batch: int, length: int, frame_shape: tuple[int, int, int], action_dim: int, pose_dim: int,
    dtype: Any = jnp.uint8,
) -> Window:
  """A window in which no frame is valid yet."""
  return Window(
      frames=jnp.zeros((batch, length, *frame_shape), dtype),
      actions=jnp.zeros((batch, length, action_dim)),
      poses=jnp.zeros((batch, length, pose_dim)),
      valid=jnp.zeros((batch, length), bool))


@struct.dataclass
class Query:
  """What one chunk to be imagined gives to every memory's `read`.

  Attributes:
    recent: The most recent frames (observed or imagined), at least as long as any context.
    actions: Actions that lead to the frames to generate [B T A].
    poses: Their poses [B T P].
    key: One key per episode [B], of the null condition's Gaussian draws.
    base: The base denoiser of this chunk, which a memory may contrast with.
  """

  recent: Window
  actions: jax.Array
  poses: jax.Array
  key: jax.Array
  base: 'NetworkDenoiser | None' = None


@struct.dataclass
class Contrast:
  """One expert's evidence against its own baseline (PoCE, section 4 of the method).

  Attributes:
    positive: The expert's denoiser, conditioned on its memory.
    negative: Its baseline; None means the base the contrast is composed with.
    weight: Scalar or [B]; the expert's alpha.
    empty: Optional [B] bool, episodes whose memory holds nothing. Their weight is exactly zero:
      equal branches at different places of a batch are equal only up to rounding.
    level: Optional static function of the log-SNR that multiplies the weight.
  """

  positive: Denoiser
  negative: Denoiser | None
  weight: jax.Array | float = 1.0
  empty: jax.Array | None = None
  level: Callable[[jax.Array], jax.Array] | None = struct.field(pytree_node=False, default=None)


def check_baseline(given: str, known: tuple[str, ...]) -> None:
  """Checks what a memory contrasts its denoiser with.

  Raises:
    ValueError: for a baseline that this memory does not have.
  """
  if given not in known:
    raise ValueError(f'Unknown baseline {given!r}; expected one of {", ".join(known)}.')


class Memory(Protocol):
  """Three pure functions on a state whose every leaf has a leading episode axis."""

  weight: Any

  def init(self, batch: int) -> Any:
    """The empty memory of `batch` episodes."""

  def write(self, state: Any, observation: episode.Observation, key: chex.PRNGKey) -> Any:
    """Writes observed frames into the memory."""

  def read(self, state: Any, query: Query) -> Contrast:
    """Reads a denoiser and its baseline for the frames the query asks for."""


@struct.dataclass
class Context:
  """A context whose keys cannot be cached, as its frames see the generated ones: frames [B C ...].

  Attributes:
    frames: Encoded, clean or nulled [B C H W D].
    logsnr: [B C].
    actions: [B C A].
    poses: [B C P].
    cells: Optional map tokens [B C N M].
  """

  frames: jax.Array
  logsnr: jax.Array
  actions: jax.Array
  poses: jax.Array
  cells: jax.Array | None


@struct.dataclass
class NetworkDenoiser:
  """A network with its conditions bound: weights and conditions are leaves, the model is static.

  Attributes:
    params: Shared parameters.
    past: Keys and values of the context, or a recurrent network's state, or the context itself
      under 'full' attention.
    actions: [B T A] of the generated frames.
    poses: [B T P].
    lora: Optional adapters with a leading episode axis, scale folded in (`lora.scaled`).
    cells: Optional map tokens [B T N M].
    model: Static.
  """

  params: Params
  past: Any
  actions: jax.Array
  poses: jax.Array
  lora: Params | None = None
  cells: jax.Array | None = None
  model: Model = struct.field(pytree_node=False, kw_only=True)

  def __call__(self, x_t: jax.Array, logsnr: jax.Array) -> jax.Array:
    """Noise estimate of x_t [B T H W C] at logsnr [B T]."""
    def run(lora, x, level, actions, poses, past, cells):
      variables = {'params': self.params} if lora is None else {'params': self.params, 'lora': lora}
      apply = self.model.network.apply
      if not isinstance(past, Context):
        return apply(variables, x, level, actions, poses, past=past, cells=cells)
      whole = jax.tree.map(
          lambda old, new: jnp.concatenate([old, new], axis=1), past,
          Context(frames=x, logsnr=level, actions=actions, poses=poses, cells=cells))
      return apply(
          variables, whole.frames, whole.logsnr, whole.actions, whole.poses,
          cells=whole.cells)[:, self.model.context:]

    logsnr = jnp.broadcast_to(logsnr, x_t.shape[:2])
    out = per_episode(run, self.lora)(
        x_t, logsnr, self.actions, self.poses, self.past, self.cells)
    return predictions.to_eps(self.model.prediction, x_t, out, logsnr)


def per_episode(run: Callable[..., Any], lora: Params | None) -> Callable[..., Any]:
  """Calls `run(lora, *args)` on a batch, with each episode's own adapter if there is one.

  The base matmuls stay one large matmul over all episodes; only the low-rank ones are batched.
  """
  if lora is None:
    return lambda *args: run(None, *args)

  def one(adapter, *args):
    out = run(adapter, *jax.tree.map(lambda x: x[None], args))
    return jax.tree.map(lambda x: x[0], out)

  return lambda *args: jax.vmap(one)(lora, *args)


def bind(
    model: Model,
    params: Params,
    query: Query,
    *,
    null: bool = False,
    keep: chex.Array | None = None,
    lora: Params | None = None,
    cells: jax.Array | None = None,
    context_cells: jax.Array | None = None,
) -> NetworkDenoiser:
  """Binds a model to a query: context (or its null), actions, poses, adapters, map.

  The context's keys and values are computed here, once per chunk (with 'full' attention they depend
  on the generated frames and are computed at every call). Frames of the context that lie
  before the episode's start are nulled like a dropped context, and so are all with `null` and those
  of which `keep` [C] is false; actions stay.
  """
  context = query.recent.last(model.context)
  kept = jnp.zeros_like(context.valid) if null else context.valid
  if keep is not None:
    kept = kept & keep
  # One draw per episode from its own key: an episode reads the same in any batch.
  frames, level = jax.vmap(
      lambda k, x, keeps: jax.tree.map(
          lambda leaf: leaf[0],
          noise_levels.null_context(k, x[None], keeps[None], model.schedule)))(
              query.key, model.codec.encode(context.frames), kept)

  past_poses, poses = model.code_poses(context.poses, context.valid, query.poses)

  def prefill(adapter, x, lev, actions, poses, cells_):
    variables = {'params': params} if adapter is None else {'params': params, 'lora': adapter}
    return model.network.apply(variables, x, lev, actions, poses, cells_, method='prefill')

  past: Any = Context(
      frames=frames, logsnr=level, actions=context.actions, poses=past_poses,
      cells=context_cells)
  if model.network.caches_context:
    past = per_episode(prefill, lora)(
        frames, level, context.actions, past_poses, context_cells)
  return NetworkDenoiser(
      params=params, past=past, actions=query.actions, poses=poses, lora=lora, cells=cells,
      model=model)
