"""Which expert drew what: how strongly each contrast pulls at every place of a frame."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp

from wmpoe import world_model
from wmpoe.data import episode
from wmpoe.diffusion import predictions
from wmpoe.diffusion import schedules
from wmpoe.experts import composition
from wmpoe.experts import expert

LOGSNR = -1.5  # where the packaged experts listen to their memories


@jax.jit
def strength(
    model: world_model.WorldModel, state: world_model.WorldState,
    observation: episode.Observation, key: chex.PRNGKey,
) -> dict[str, jax.Array]:
  """`|w (eps_i - baseline_i)|` over the channels of each place, by memory.

  The frames are brought to log-SNR `LOGSNR` by the model's schedule's noise, and every expert is
  asked once.

  Args:
    model: Its weights are counted in.
    state: Before the frames.
    observation: The frames drawn, uint8 [B T H W 3], with their actions and poses.
    key: Of the noise.

  Returns:
    Arrays [B T h w] in the space the experts work in.
  """
  encoded = model.encode(observation)
  keys = jax.random.split(key, observation.actions.shape[0])
  query = expert.Query(
      recent=state.recent, actions=encoded.actions, poses=encoded.poses, key=keys)
  base = model.base.read(query)
  query = dataclasses.replace(query, base=base)
  contrasts = {n: memory.read(state.memories[n], query) for n, memory in model.memories.items()}
  clean = model.base.model.codec.encode(encoded.frames)
  logsnr = jnp.full(clean.shape[:2], LOGSNR)
  alpha, sigma = schedules.alpha_sigma(predictions.expand(logsnr, clean))
  noisy = alpha * clean + sigma * jax.random.normal(key, clean.shape)
  branches: list[Any] = [base]
  for contrast in contrasts.values():
    branches += [contrast.positive] + [contrast.negative] * (contrast.negative is not None)
  estimates = iter(composition.evaluate(branches, noisy, logsnr))
  own, out, levels = next(estimates), {}, dict(model.levels)
  for name, contrast in contrasts.items():
    positive = next(estimates)
    negative = own if contrast.negative is None else next(estimates)
    weight = jnp.asarray(contrast.weight, jnp.float32) * jnp.ones(logsnr.shape)
    if contrast.empty is not None:
      weight = jnp.where(contrast.empty[:, None], 0.0, weight)
    if name in levels:
      weight = weight * levels[name](logsnr)
    out[name] = weight[..., None, None] * jnp.linalg.norm(positive - negative, axis=-1)
  return out
