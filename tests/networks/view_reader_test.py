import jax
import numpy as np
import pytest

from wmpoe.networks import view_reader

READER = view_reader.ViewReader(features=6, patch=2, width=16, depth=1, heads=2)


@pytest.fixture(scope='module')
def inputs():
  rng = np.random.default_rng(0)
  return (
      rng.normal(size=(2, 3, 2, 4, 4, 5)).astype(np.float32), np.ones((2, 3, 2, 4, 4), bool),
      rng.normal(size=(2, 3, 2, 3)).astype(np.float32), np.ones((2, 3, 2), bool))


@pytest.fixture(scope='module')
def read(inputs):
  params = jax.jit(READER.init)(jax.random.key(0), *inputs)
  return jax.jit(lambda *args: READER.apply(params, *args))


def test_tokens_are_aligned_with_the_patches(read, inputs):
  assert read(*inputs).shape == (2, 3, 4, 6)


def test_pictures_that_do_not_exist_or_show_nothing_are_not_read(read, inputs):
  pictures, inside, relative, valid = inputs
  other = pictures.copy()
  other[:, :, 1] = 7.0
  gone = valid.copy()
  gone[:, :, 1] = False
  np.testing.assert_array_equal(
      read(pictures, inside, relative, gone), read(other, inside, relative, gone))
  hidden = inside.copy()
  hidden[:, :, 1] = False
  np.testing.assert_array_equal(
      read(pictures, hidden, relative, valid), read(other, hidden, relative, valid))
  assert np.abs(read(pictures, inside, relative, valid) - read(
      other, inside, relative, valid)).max() > 1e-4


def test_with_no_picture_at_all_it_is_finite_and_blind(read, inputs):
  pictures, inside, relative, valid = inputs
  none = np.zeros_like(valid)
  out = read(pictures, inside, relative, none)
  assert np.all(np.isfinite(out))
  np.testing.assert_array_equal(out, read(-pictures, inside, -relative, none))


def test_order_of_the_pictures_does_not_matter(read, inputs):
  swapped = [x[:, :, ::-1] for x in inputs]
  np.testing.assert_allclose(read(*inputs), read(*swapped), atol=1e-5)
