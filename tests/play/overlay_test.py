"""Which expert drew what, in a world that is imagined in latents."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from tests import small
from tests.session import warped
from wmpoe.diffusion import schedules
from wmpoe.experts import expert
from wmpoe.play import overlay


def test_what_one_memory_drew_is_what_the_base_alone_would_not_show():
  model, seen, key = warped.world(), warped.observation(), jax.random.key(1)
  silent = dataclasses.replace(model.memories['long_term'], weight=0.0)
  model = dataclasses.replace(model, memories={**model.memories, 'long_term': silent})
  blank = small.init(model, 2)
  spatial = jax.jit(lambda state, seen: model.memories['spatial'].write(
      state, model.encode(seen), key))(blank.memories['spatial'], seen)
  state = dataclasses.replace(blank, memories={**blank.memories, 'spatial': spatial})
  frames = jax.tree.map(lambda x: x[:, :2], dataclasses.replace(seen, depth=None))
  found = overlay.strength(model, state, frames, key)
  assert {name: each.shape for name, each in found.items()} == dict.fromkeys(
      model.memories, (2, 2, 14, 14))
  assert not found['long_term'].any()
  assert len(np.unique(found['spatial'])) > 4 * 49  # pixels, not the 49 latents of a frame

  @jax.jit
  def compared(key):
    clean = model.base.model.codec.encode(model.encode(frames).frames)
    key, key_null = jax.random.split(key)
    query = expert.Query(
        recent=state.recent, actions=frames.actions, poses=frames.poses,
        key=jax.random.split(key_null, 2))
    logsnr = jnp.full((2, 2), overlay.LOGSNR)
    alpha, sigma = schedules.alpha_sigma(overlay.LOGSNR)
    noisy = alpha * clean + sigma * jax.random.normal(key, clean.shape)
    composed, alone = (
        model.latents.decode((noisy - sigma * denoiser(noisy, logsnr)) / alpha) / 255.0
        for denoiser in (model.denoiser(state, query), model.base.read(query)))
    return jnp.linalg.norm(composed - alone, axis=-1)

  np.testing.assert_allclose(found['spatial'], compared(key), atol=3 / 255)
  assert np.max(found['spatial']) > 0.1
