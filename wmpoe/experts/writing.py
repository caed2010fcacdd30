"""The inner loop: an episode's history written into adapter weights by test-time finetuning.

Pure functions for one episode, to be vmapped over episodes; `long_term.py` does. A history has a
fixed capacity and a length, so that growing histories never retrace.
"""

import dataclasses
from typing import Any

import chex
from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from wmpoe.data import episode
from wmpoe.experts import expert
from wmpoe.experts import objective as objective_lib
from wmpoe.networks import embeddings
from wmpoe.networks import lora as lora_lib

_GOLDEN = np.uint32(2654435769)  # of 2^32; its multiples mod 1 fill the unit interval evenly


@struct.dataclass
class History:
  """What an episode has shown so far, with room for more.

  Attributes:
    frames: [... S H W D], as the model's codec takes them.
    actions: [... S A].
    poses: [... S P].
    length: [...] int32, how many of the S frames are there.
  """

  frames: jax.Array
  actions: jax.Array
  poses: jax.Array
  length: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writing:
  """How a history is written.

  Attributes:
    steps: Inner steps of one `write`; 0 where a place field is only solved for.
    clips_per_step: Sub-clips per inner step.
    target: Target frames G of a sub-clip.
    capacity: Frames S a history can hold; beyond it the oldest are forgotten.
    objective: Distribution of levels and nulls. Nulling the context makes the weights hold the
      content instead of leaning on the context frames.
    balance: 0 counts every pixel of every history frame alike; 1 counts every distinct content of
      a patch alike, however many frames show it (see `balance_weights`).
  """

  steps: int = 100
  clips_per_step: int = 1
  target: int = 7
  capacity: int = 128
  objective: objective_lib.Objective = objective_lib.Objective(
      weighting='v', null_rate=0.5, time_power=0.5)
  balance: float = 0.0

  def __post_init__(self):
    for name, least in (('steps', 0), ('clips_per_step', 1), ('target', 1), ('capacity', 1)):
      if getattr(self, name) < least:
        raise ValueError(f'Writing.{name}={getattr(self, name)} must be at least {least}.')
    if self.capacity < self.target:
      raise ValueError(
          f'A history of capacity {self.capacity} cannot hold one sub-clip of {self.target} target '
          'frames; raise the capacity.')


def empty_history(
    capacity: int, frame_shape: tuple[int, int, int], action_dim: int, pose_dim: int,
    dtype: Any = jnp.uint8,
) -> History:
  """A history of one episode that holds nothing yet."""
  return History(
      frames=jnp.zeros((capacity, *frame_shape), dtype),
      actions=jnp.zeros((capacity, action_dim)),
      poses=jnp.zeros((capacity, pose_dim)),
      length=jnp.zeros((), jnp.int32))


def append(history: History, observation: episode.Observation) -> History:
  """Appends frames [T ...] of one episode; over capacity the oldest frames are forgotten.

  Raises:
    ValueError: if the frames alone exceed the capacity.
  """
  capacity, new = history.frames.shape[0], observation.frames.shape[0]
  if new > capacity:
    raise ValueError(
        f'Cannot write {new} frames at once into a history of capacity {capacity}; raise the '
        'capacity or write in pieces.')
  overflow = jnp.maximum(history.length + new - capacity, 0)

  def put(old, x):
    old = jnp.roll(old, -overflow, axis=0)
    return jax.lax.dynamic_update_slice_in_dim(
        old, x.astype(old.dtype), history.length - overflow, axis=0)

  return History(
      frames=put(history.frames, observation.frames),
      actions=put(history.actions, observation.actions),
      poses=put(history.poses, observation.poses),
      length=history.length + new - overflow)


def starts(offset: chex.Array, draw: chex.Array, length: chex.Array, target: int) -> jax.Array:
  """First target frame of the `draw`-th sub-clip: every history frame a target equally often.

  Sub-clips may hang over both ends of the history (the frames outside are masked): out of the
  `length + target - 1` positions exactly `target` cover any given frame. Positions follow the
  golden-ratio sequence, which visits all parts of the history at the same rate from the first
  steps on, where independent uniform draws would leave gaps.

  Args:
    offset: Random number in [0, 1) of the episode.
    draw: Index of the draw, any shape.
    length: Frames in the history.
    target: Target frames of a sub-clip.
  """
  turns = jnp.asarray(draw).astype(jnp.uint32) * _GOLDEN  # wraps around exactly, however many
  u = jnp.mod(offset + turns.astype(jnp.float32) / 2.0**32, 1.0)
  positions = length + target - 1
  return jnp.clip((u * positions).astype(jnp.int32), max=positions - 1) - (target - 1)


def balance_weights(
    history: History, *, patch: int, balance: float, tolerance: float = 0.1
) -> jax.Array:
  """Weights `count^-balance`, where a patch's count is how often its content was seen there.

  What was in view for a moment weighs little in a plain average over frames, against what was in
  view all the time; a memory wants both. For each place (patch position) the frames whose patch
  looks the same are counted, softly: `count_i = sum_j exp(-|p_i - p_j|^2 / (2 tolerance^2))`,
  distances per pixel on [0, 1]. With a moving camera hardly anything repeats and the weights are
  even.

  Args:
    history: Of one episode.
    patch: Patch size in pixels.
    balance: 0 (even weights) to 1 (every distinct content counts alike).
    tolerance: RMSE under which two patches show the same thing.

  Returns:
    [S N], mean 1 over the frames that are there, 0 elsewhere.
  """
  tokens = embeddings.patchify(history.frames[None].astype(jnp.float32) / 255.0, patch)[0]
  tokens = tokens.transpose(1, 0, 2)  # [N S patch*patch*3]
  square = jnp.mean(jnp.square(tokens), axis=-1)
  product = jnp.einsum('nip,njp->nij', tokens, tokens) / tokens.shape[-1]
  distance = jnp.maximum(square[:, :, None] + square[:, None, :] - 2.0 * product, 0.0)
  there = jnp.arange(history.frames.shape[0]) < history.length
  count = jnp.sum(jnp.exp(-0.5 * distance / tolerance**2) * there, axis=-1)
  weight = jnp.where(there, jnp.maximum(count, 1.0) ** -balance, 0.0).T
  total = jnp.sum(weight) / jnp.maximum(history.length * weight.shape[1], 1)
  return weight / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)


def sub_clips(
    history: History, first: chex.Array, *, context: int, target: int,
    weights: chex.Array | None = None, patch: int = 1,
) -> objective_lib.Clip:
  """Sub-clips [M C+G ...] whose first target frames are `first` [M].

  Args:
    history: Of one episode.
    first: [M].
    context: C.
    target: G.
    weights: Optional weights of patches [S N].
    patch: Their size.
  """
  index = first[:, None] + jnp.arange(-context, target)
  valid = (index >= 0) & (index < history.length)
  safe = jnp.clip(index, 0, history.frames.shape[0] - 1)
  pixels = None
  if weights is not None:
    rows, columns = history.frames.shape[1] // patch, history.frames.shape[2] // patch
    pixels = weights[safe].reshape(*safe.shape, rows, columns, 1)
    pixels = jnp.repeat(jnp.repeat(pixels, patch, axis=2), patch, axis=3)
  return objective_lib.Clip(
      frames=history.frames[safe], actions=history.actions[safe], poses=history.poses[safe],
      valid=valid, pixel_weight=pixels)


def writing_loss(
    model: expert.Model,
    params: Any,
    lora: Any,
    clip: objective_lib.Clip,
    key: chex.PRNGKey,
    objective: objective_lib.Objective,
) -> jax.Array:
  """The training loss on sub-clips, each target frame of the history with the same weight."""
  loss = objective_lib.clip_loss(model, params, clip, key, objective, lora=lora)
  return loss * jnp.mean(clip.valid[:, model.context:].astype(jnp.float32))


def fit(
    model: expert.Model,
    params: Any,
    spec: lora_lib.LoraSpec,
    optimizer: optax.GradientTransformation,
    writing: Writing,
    *,
    lora: Any,
    opt_state: Any,
    history: History,
    first_step: chex.Array,
    keys: chex.PRNGKey,
    steps: int | None = None,
) -> tuple[Any, Any, jax.Array]:
  """Runs the inner loop for a batch of episodes as one scan over optax steps.

  Args:
    model: Static model of the base.
    params: Its parameters, shared by all episodes and never changed.
    spec: LoRA rank, scale, targets.
    optimizer: Any optax transformation.
    writing: Steps, sub-clips, objective.
    lora: Adapters [B ...].
    opt_state: Optimiser states [B ...].
    history: Histories [B S ...].
    first_step: [B] int32, inner steps done before (the state continues).
    keys: One key per episode [B].
    steps: Overrides `writing.steps`.

  Returns:
    `(lora, opt_state, losses [steps B])`.

  Raises:
    ValueError: if a history is shorter than a sub-clip's targets (checked where lengths are known:
      not of tracers).
  """
  steps = writing.steps if steps is None else steps
  if not steps:
    return lora, opt_state, jnp.zeros((0, keys.shape[0]))
  if not isinstance(history.length, jax.core.Tracer) and jnp.min(history.length) < writing.target:
    raise ValueError(
        f'A history has {int(jnp.min(history.length))} frames; a sub-clip has {writing.target} '
        'target frames. Observe more frames before writing, or lower Writing.target.')
  count = writing.clips_per_step
  offsets = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, 0)))(keys)

  def loss_of(adapter, clip, key):
    return writing_loss(
        model, params, lora_lib.applied(params, adapter, spec), clip, key, writing.objective)

  patch = model.network.patch
  weights = None
  if writing.balance:
    weights = jax.vmap(
        lambda h: balance_weights(h, patch=patch, balance=writing.balance))(history)

  def one_step(adapter, opt, past, weight, offset, step, key):
    draws = step * count + jnp.arange(count)
    clip = sub_clips(
        past, starts(offset, draws, past.length, writing.target), context=model.context,
        target=writing.target, weights=weight, patch=patch)
    # Keys follow the step's number, so that writing in pieces is writing at once.
    loss, grads = jax.value_and_grad(loss_of)(adapter, clip, jax.random.fold_in(key, 1 + step))
    updates, opt = optimizer.update(grads, opt, adapter)
    return optax.apply_updates(adapter, updates), opt, loss

  def body(carry, step):
    adapters, opts = carry
    adapters, opts, loss = jax.vmap(one_step)(
        adapters, opts, history, weights, offsets, first_step + step, keys)
    return (adapters, opts), loss

  (lora, opt_state), losses = jax.lax.scan(body, (lora, opt_state), jnp.arange(steps))
  return lora, opt_state, losses
