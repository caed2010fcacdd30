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

  Noise of the model's schedule brings the frames to log-SNR `LOGSNR`, and every expert is evaluated
  once.

  Args:
    model: With at least one memory; its weights are counted in.
    state: Before the frames.
    observation: The frames drawn, uint8 [B T H W 3], with their actions and poses.
    key: Of the noise, and of the null conditions.

  Returns:
    Arrays [B T h w] in the space the experts work in.
  """
  encoded = model.encode(observation)
  key, key_null = jax.random.split(key)
  keys = jax.random.split(key_null, observation.actions.shape[0])
  query = expert.Query(
      recent=state.recent, actions=encoded.actions, poses=encoded.poses, key=keys)
  # Who pulls where is a matter of contrasts, whatever rule adds them up.
  composed: Any = dataclasses.replace(
      model, rule=composition.shared_base, with_base=True).denoiser(state, query)
  clean = model.base.model.codec.encode(encoded.frames)
  logsnr = jnp.full(clean.shape[:2], LOGSNR)
  alpha, sigma = schedules.alpha_sigma(predictions.expand(logsnr, clean))
  noisy = alpha * clean + sigma * jax.random.normal(key, clean.shape)
  _, terms = composed.terms(composition.evaluate(composed.branches(), noisy, logsnr), logsnr)
  return {
      name: jnp.linalg.norm(weight * (positive - negative), axis=-1)
      for name, (positive, negative, weight) in zip(model.memories, terms, strict=True)}
