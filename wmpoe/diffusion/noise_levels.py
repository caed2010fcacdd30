"""Which noise level each frame carries: in training, and in the null condition.

Levels are log-SNRs per frame, [B T]. Two regimes (METHOD: clean context, diffusion forcing) and
one operation, the null: context frames replaced by Gaussian noise and labelled with the lowest
log-SNR. The null is trained (context dropout) and read (the baseline of a contrast).
"""

import chex
import jax
import jax.numpy as jnp

from wmpoe.diffusion import schedules


def shared_times(key: chex.PRNGKey, batch: int, frames: int, *, power: float = 1.0) -> jax.Array:
  """One diffusion time per sample, the same for all its frames: [B T].

  `t = u^power` with u uniform; a power below one draws more high noise, which is where a memory's
  content is decided.
  """
  u = jax.random.uniform(key, (batch, 1))
  return jnp.broadcast_to(u**power, (batch, frames))


def independent_times(
    key: chex.PRNGKey, batch: int, frames: int, *, power: float = 1.0) -> jax.Array:
  """One diffusion time per frame (diffusion forcing, arXiv 2407.01392): [B T]."""
  return jax.random.uniform(key, (batch, frames)) ** power


def null_context(
    key: chex.PRNGKey,
    context: chex.Array,
    keep: chex.Array,
    schedule: schedules.Schedule,
) -> tuple[jax.Array, jax.Array]:
  """Applies the null condition to context frames.

  Frames with `keep` true are clean (labelled `logsnr_max`); the others are replaced by a Gaussian
  draw and labelled `logsnr_min`. The draw is fixed by the key, so a caller that reuses the result
  over the denoising steps keeps it fixed. Nothing but context frames enters or leaves.

  Args:
    key: Random key of the Gaussian draw.
    context: Context frames [B C H W D].
    keep: Boolean [B C]; false nulls a frame.
    schedule: Gives the two labels.

  Returns:
    `(context [B C H W D], logsnr [B C])`, float32.
  """
  chex.assert_equal_shape_prefix([context, keep], 2)
  noise = jax.random.normal(key, context.shape)
  mask = keep.reshape(keep.shape + (1,) * (context.ndim - 2))
  frames = jnp.where(mask, jnp.asarray(context, jnp.float32), noise)
  return frames, jnp.where(keep, schedule.logsnr_max, schedule.logsnr_min).astype(jnp.float32)


def context_dropout(
    key: chex.PRNGKey, valid: chex.Array, *, null_rate: float, partial_rate: float = 0.0
) -> jax.Array:
  """Which context frames a training sample keeps: [B C] bool.

  With probability `null_rate` a sample keeps none (this trains the null condition); with
  probability `partial_rate` it keeps only its last few, uniform in number, as at the start of an
  episode. Frames that are not `valid` (before the episode began) are never kept.

  Raises:
    ValueError: if the rates are not probabilities that sum to at most one.
  """
  if null_rate < 0 or partial_rate < 0 or null_rate + partial_rate > 1:
    raise ValueError(
        f'null_rate={null_rate} and partial_rate={partial_rate} must be probabilities that sum '
        'to at most 1.')
  batch, frames = valid.shape
  key_kind, key_count = jax.random.split(key)
  u = jax.random.uniform(key_kind, (batch, 1))
  kept = jax.random.randint(key_count, (batch, 1), 0, frames + 1)
  kept = jnp.where(u < null_rate + partial_rate, kept, frames)
  kept = jnp.where(u < null_rate, 0, kept)
  return valid & (jnp.arange(frames) >= frames - kept)
