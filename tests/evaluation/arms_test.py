"""Tests of what the protocols share."""

import time

import jax
import numpy as np

from tests import small
from wmpoe.evaluation import arms


def test_a_call_is_timed_without_its_tracing_and_compilation():
  traced = []

  @jax.jit
  def late(x, y):
    traced.append(x.shape)
    time.sleep(1.2)  # more than a call may take to be repeated
    return x * y + 0.25

  x = np.arange(3.0, dtype=np.float32)
  for shape in ((3,), (2, 3)):
    with small.compilations() as compiled:
      out, seconds = arms.timed(late, np.broadcast_to(x, shape), y=x)
    np.testing.assert_allclose(out, np.broadcast_to(x * x + 0.25, shape))
    assert seconds < 1.0 and len(compiled) == 1
  assert traced == [(3,), (2, 3)]
