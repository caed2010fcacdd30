"""Tests of the spatial memory's encoder."""

import hypothesis
from hypothesis import strategies as st
import jax
import numpy as np

from tests import small
from wmpoe.networks import map_encoder


def _run(encoder, x):
  shapes = jax.eval_shape(encoder.init, jax.random.key(0), x)['params']
  return jax.jit(encoder.apply)({'params': small.random_tree(shapes)}, x)


@hypothesis.settings(max_examples=4)
@hypothesis.given(batch=st.integers(1, 2), frames=st.integers(1, 3), rows=st.integers(1, 2),
                  dtype=st.sampled_from(['float32', 'bfloat16']))
def test_shapes_and_ranges(batch, frames, rows, dtype):
  encoder = map_encoder.MapEncoder(features=5, patch=4, width=8, dtype=dtype)
  x = np.random.default_rng(0).normal(size=(batch, frames, 4 * rows, 8, 3)).astype(np.float32)
  features, gates = _run(encoder, x)
  assert features.shape == (batch, frames, 2 * rows, 5)
  assert gates.shape == (batch, frames, 2 * rows)
  assert features.dtype == gates.dtype == np.float32
  assert (gates > 0).all() and (gates < 1).all()


def test_a_patch_is_encoded_by_itself_wherever_it_is():
  x = np.random.default_rng(0).normal(size=(1, 2, 8, 8, 3)).astype(np.float32)
  x[0, 1, 4:, 4:] = x[0, 0, :4, 4:]  # the same content, another place and frame
  features, gates = _run(map_encoder.MapEncoder(features=5, patch=4, width=8), x)
  np.testing.assert_allclose(features[0, 1, 3], features[0, 0, 1], rtol=1e-5)
  np.testing.assert_allclose(gates[0, 1, 3], gates[0, 0, 1], rtol=1e-5)
  small.differ(features[0, 1, 3], features[0, 0, 0])
