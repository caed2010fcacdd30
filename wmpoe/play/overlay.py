"""Which expert drew what: how much of every pixel each contrast makes."""

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
  """How much each pixel would change without the contrast `w (eps_i - baseline_i)`, by memory.

  Noise of the model's schedule brings the frames to log-SNR `LOGSNR`, every expert is evaluated
  once, and the clean frames that follow from all of them are compared, as pictures, with those that
  follow from all but one.

  Args:
    model: With at least one memory; its weights are counted in.
    state: Before the frames.
    observation: The frames drawn, uint8 [B T H W 3], with their actions and poses.
    key: Of the noise, and of the null conditions.

  Returns:
    Arrays [B T H W], the norm over the channels of a pixel, where black and white are 0 and 1.
  """
  encoded = model.encode(observation)
  key, key_null = jax.random.split(key)
  keys = jax.random.split(key_null, observation.actions.shape[0])
  query = expert.Query(
      recent=state.recent, actions=encoded.actions, poses=encoded.poses, key=keys)
  # Who pulls where is a matter of contrasts, whatever rule adds them up.
  composed: Any = dataclasses.replace(
      model, rule=composition.shared_base, with_base=True).denoiser(state, query)
  codec = model.base.model.codec
  clean = codec.encode(encoded.frames)
  logsnr = jnp.full(clean.shape[:2], LOGSNR)
  alpha, sigma = schedules.alpha_sigma(predictions.expand(logsnr, clean))
  noisy = alpha * clean + sigma * jax.random.normal(key, clean.shape)
  base, terms = composed.terms(composition.evaluate(composed.branches(), noisy, logsnr), logsnr)

  def picture(eps):
    frames = codec.decode((noisy - sigma * eps) / alpha)
    shown = frames if model.latents is None else model.latents.decode(frames)
    return shown.astype(jnp.float32) / 255

  whole = composed.rule(base, terms)
  return {
      name: jnp.linalg.norm(
          picture(whole) - picture(whole - weight * (positive - negative)), axis=-1)
      for name, (positive, negative, weight) in zip(model.memories, terms, strict=True)}
