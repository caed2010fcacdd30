"""A small world that remembers pictures and depth, in latents; run as a script it dreams a file on.

  python -m tests.session.warped MEMORY.npz FRAMES.npy
"""

import dataclasses
import sys

import jax
import numpy as np
import optax

from tests import small
from tests.experts import point_maps_test as maps
from wmpoe import session
from wmpoe import world_model
from wmpoe.experts import base
from wmpoe.experts import key_frames
from wmpoe.experts import long_term


def world(**points):
  """Base, long-term memory and one of point maps, which have the changes."""
  model, made = maps.MODEL, maps.make_points().replace(**points)
  params = small.random_tree(jax.eval_shape(
      lambda key: model.init(key, action_dim=2, pose_dim=3), jax.random.key(0)))
  denoiser, dims = model.denoiser, {'action_dim': 2, 'pose_dim': 3}
  return world_model.WorldModel(
      base=base.Base(params=params['denoiser'], model=denoiser), latents=made.latents, memories={
          'long_term': long_term.create(
              jax.random.key(0), denoiser, params['denoiser'], spec=small.SPEC,
              writing=small.WRITING, optimizer=optax.adam(0.05), **dims),
          'spatial': key_frames.Posed(params=params, points=made, model=model, capacity=6)},
      chunk=2, num_steps=2, **dims)


def observation():
  """Two episodes of six pictures, with depth."""
  seen = maps.observation(2, 6, maps.make_points())
  depth = np.random.default_rng(1).uniform(0.3, 20.0, (2, 6, 14, 14)).astype(np.float32)
  return dataclasses.replace(seen, frames=seen.pictures, pictures=None, depth=depth)


def dream(opened):
  """The next four frames."""
  draw = np.random.default_rng(5).normal
  return np.asarray(opened.imagine(*(
      draw(size=(2, 4, size)).astype(np.float32) for size in (2, 3)))[1])


if __name__ == '__main__':
  np.save(sys.argv[2], dream(session.Session.load(sys.argv[1], world())))
