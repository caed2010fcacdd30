"""Tests of the pixel codec."""

import numpy as np

from wmpoe.networks import codec


def test_every_pixel_value_comes_back():
  values = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16, 1).repeat(3, -1)
  encoded = codec.PixelCodec().encode(values)
  assert encoded.dtype == np.float32
  np.testing.assert_allclose([encoded.min(), encoded.max()], [-1, 1])
  decoded = codec.PixelCodec().decode(encoded)
  assert decoded.dtype == np.uint8
  np.testing.assert_array_equal(decoded, values)


def test_decoding_rounds_and_clips():
  x = np.array([-3.0, -1.0, 0.0, 0.6 / 127.5, 1.0, 1.01, 9.0], np.float32)
  np.testing.assert_array_equal(codec.PixelCodec().decode(x), [0, 0, 128, 128, 255, 255, 255])


def test_codecs_are_equal_by_value_and_hashable():
  assert len({codec.PixelCodec(), codec.PixelCodec()}) == 1
