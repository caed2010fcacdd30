"""The training objective on a clip: one function, called by training and by the inner loop.

A clip is `context + target` frames. Under 'clean_context' the context is clean (or nulled, with
probability) and one noise level is shared by the target frames, which alone carry the loss. Under
'diffusion_forcing' every frame has its own level and carries loss.
"""

import dataclasses
from typing import Any

import chex
from flax import struct
import jax
import jax.numpy as jnp

from wmpoe.diffusion import losses
from wmpoe.diffusion import noise_levels
from wmpoe.experts import expert

REGIMES = ('clean_context', 'diffusion_forcing')


@struct.dataclass
class Clip:
  """A batch of clips of C context and G target frames.

  Attributes:
    frames: [B C+G H W D], as the model's codec takes them.
    actions: [B C+G A].
    poses: [B C+G P].
    valid: [B C+G] bool; false frames lie outside the episode: never context, never target.
    cells: Optional map tokens [B C+G N M].
    pixel_weight: Optional weight of every pixel's error [B C+G H W 1].
  """

  frames: jax.Array
  actions: jax.Array
  poses: jax.Array
  valid: jax.Array
  cells: jax.Array | None = None
  pixel_weight: jax.Array | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
  """What distribution of noise levels and contexts the loss is taken over.

  Attributes:
    regime: 'clean_context' or 'diffusion_forcing'.
    weighting: See `losses.WEIGHTINGS`.
    null_rate: Probability that a clip's whole context is nulled.
    partial_rate: Probability that only its last few context frames are kept.
    time_power: `t = u^power`; below one draws more high noise.
    draws: How often a clip's targets are noised, each time anew, after a context that is read once:
      where the context is long this costs little beside it. Not for diffusion forcing.
  """

  regime: str = 'clean_context'
  weighting: str = 'sigmoid'
  null_rate: float = 0.15
  partial_rate: float = 0.0
  time_power: float = 1.0
  draws: int = 1

  def __post_init__(self):
    if self.regime not in REGIMES:
      raise ValueError(f'Unknown regime {self.regime!r}; expected one of {", ".join(REGIMES)}.')
    if self.draws < 1 or (self.draws > 1 and self.regime != 'clean_context'):
      raise ValueError(
          f'draws={self.draws} under {self.regime}; expected 1, or more under clean_context.')


def clip_loss(
    model: expert.Model,
    params: Any,
    clip: Clip,
    key: chex.PRNGKey,
    objective: Objective,
    *,
    lora: Any | None = None,
) -> jax.Array:
  """The denoising loss of a batch of clips under an objective.

  Args:
    model: The static model.
    params: Its parameters.
    clip: Frames and conditions.
    key: Random key.
    objective: Levels and context dropout.
    lora: Optional adapter tree (scale folded in), shared by the batch.

  Returns:
    A float32 scalar.

  Raises:
    ValueError: for several draws with a context that cannot be cached.
  """
  key_keep, key_null, key_time, key_noise = jax.random.split(key, 4)
  variables = {'params': params} if lora is None else {'params': params, 'lora': lora}
  x = model.codec.encode(clip.frames)
  batch, length = clip.valid.shape
  context = model.context
  split = lambda a: (None, None) if a is None else (a[:, :context], a[:, context:])
  apply = model.network.apply

  if objective.regime == 'diffusion_forcing':
    times = noise_levels.independent_times(
        key_time, batch, length, power=objective.time_power)
    times = jnp.where(clip.valid, times, 1.0)  # what is not there looks like what was nulled
    coded = jnp.concatenate(model.code_poses(
        clip.poses[:, :context], clip.valid[:, :context], clip.poses[:, context:]), axis=1)
    predict = lambda x_t, logsnr: apply(
        variables, x_t, logsnr, clip.actions, coded, cells=clip.cells)
    return losses.denoising_loss(
        predict, x, model.schedule(times), key_noise, prediction=model.prediction,
        weighting=objective.weighting, mask=clip.valid, pixel_weight=clip.pixel_weight)

  (frames, targets), (valid, mask) = split(x), split(clip.valid)
  (past_actions, actions), (past_poses, poses) = split(clip.actions), split(clip.poses)
  past_poses, poses = model.code_poses(past_poses, valid, poses)
  past_cells, cells = split(clip.cells)
  _, pixel_weight = split(clip.pixel_weight)
  keep = noise_levels.context_dropout(
      key_keep, valid, null_rate=objective.null_rate, partial_rate=objective.partial_rate)
  frames, level = noise_levels.null_context(key_null, frames, keep, model.schedule)
  logsnr = model.schedule(noise_levels.shared_times(
      key_time, batch * objective.draws, length - context, power=objective.time_power))
  if model.network.caches_context:
    past = apply(variables, frames, level, past_actions, past_poses, past_cells, method='prefill')
    if objective.draws > 1:
      past, targets, mask, actions, poses, cells, pixel_weight = jax.tree.map(
          lambda x: jnp.repeat(x, objective.draws, axis=0),
          (past, targets, mask, actions, poses, cells, pixel_weight))
    predict = lambda x_t, logsnr: apply(
        variables, x_t, logsnr, actions, poses, past=past, cells=cells)
  elif objective.draws > 1:
    raise ValueError(
        f'draws={objective.draws} need a context that is read once; this one sees the targets.')
  else:
    predict = lambda x_t, logsnr: apply(
        variables, jnp.concatenate([frames, x_t], axis=1),
        jnp.concatenate([level, logsnr], axis=1), clip.actions,
        jnp.concatenate([past_poses, poses], axis=1),
        cells=clip.cells)[:, context:]
  return losses.denoising_loss(
      predict, targets, logsnr, key_noise, prediction=model.prediction,
      weighting=objective.weighting, mask=mask, pixel_weight=pixel_weight)
