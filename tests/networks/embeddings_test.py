"""Tests of the embeddings."""

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from tests import small
from wmpoe.networks import embeddings


def test_fourier_features_by_hand():
  got = embeddings.fourier_features(np.array([[0.0, 0.25]]), 4, max_period=100.0)
  assert got.shape == (1, 2, 4)
  # Frequencies 1 and 1 / 10: [sin, sin, cos, cos].
  np.testing.assert_allclose(got[0, 0], [0, 0, 1, 1], atol=1e-6)
  slow = 2 * np.pi * 0.025
  np.testing.assert_allclose(got[0, 1], [1, np.sin(slow), 0, np.cos(slow)], atol=1e-6)


@hypothesis.settings(max_examples=10)
@hypothesis.given(
    rows=st.integers(1, 3), columns=st.integers(1, 3), patch=st.integers(1, 4),
    channels=st.integers(1, 3))
def test_patches_come_back_and_are_in_row_major_order(rows, columns, patch, channels):
  shape = (2, 3, rows * patch, columns * patch, channels)
  x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
  tokens = embeddings.patchify(x, patch)
  assert tokens.shape == (2, 3, rows * columns, patch * patch * channels)
  np.testing.assert_array_equal(embeddings.unpatchify(tokens, patch, (rows, columns)), x)
  last = x[1, 2, -patch:, :patch].ravel()  # the patch in the last row, first column
  np.testing.assert_array_equal(tokens[1, 2, (rows - 1) * columns], last)


def test_rotary_positions_see_distances_only():
  rng = np.random.default_rng(0)
  query, key = rng.normal(size=(2, 1, 1, 1, 16)).astype(np.float32)

  def product(first, second):
    """Dot product of the query at one (time, row, column) and the key at another."""
    def at(x, place):
      rope = embeddings.axial_rope(np.array([place[0]]), (3, 3), 16)
      token = place[1] * 3 + place[2]
      return embeddings.rotate(x, tuple(r[token:token + 1] for r in rope))
    return float((at(query, first) * at(key, second)).sum())

  here = product((0, 0, 0), (0, 0, 0))
  np.testing.assert_allclose(here, float((query * key).sum()), rtol=1e-5)
  np.testing.assert_allclose(
      product((5, 1, 2), (2, 0, 1)), product((7, 2, 1), (4, 1, 0)), rtol=1e-4)
  for axis in range(3):  # every axis turns something
    place = [0, 0, 0]
    place[axis] = 1
    assert abs(product((0, 0, 0), place) - here) > 1e-3


@pytest.mark.parametrize('head_dim', [6, 8, 12, 14, 64])
def test_rotary_angles_fill_the_head(head_dim):
  cos, sin = embeddings.axial_rope(np.arange(2), (2, 3), head_dim)
  assert cos.shape == sin.shape == (12, head_dim // 2)
  np.testing.assert_allclose(cos**2 + sin**2, 1, atol=1e-6)


def test_grid_planes_mark_one_token():
  poses = np.array([[[0, 0], [1, 2]], [[0, 1], [1, 0]]], np.float32)
  planes = embeddings.grid_planes(poses, (2, 3))
  assert planes.shape == (2, 2, 6, 1)
  np.testing.assert_array_equal(planes[..., 0].argmax(-1), [[0, 5], [1, 3]])
  np.testing.assert_array_equal(planes.sum((2, 3)), np.ones((2, 2)))


@pytest.mark.parametrize(('make', 'message'), [
    (lambda: embeddings.fourier_features(np.zeros(1), 3), 'dim=3 must be even'),
    (lambda: embeddings.axial_rope(np.arange(1), (1, 1), 4), 'head_dim=4 must be even and at'),
    (lambda: embeddings.axial_rope(np.arange(1), (1, 1), 9), 'head_dim=9 must be even'),
    (lambda: embeddings.head_dim(190, 4), 'width=190 does not divide into heads=4.* width=192'),
    (lambda: small.params(small.model(heads=3)), 'width=16 does not divide into heads=3'),
    (lambda: embeddings.patchify(np.zeros((1, 1, 6, 8, 3)), 4), '6x8 do not divide.*patches of 4'),
])
def test_bad_arguments(make, message):
  with pytest.raises(ValueError, match=message):
    make()
