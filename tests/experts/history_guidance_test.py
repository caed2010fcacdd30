"""Tests of history guidance: what is contrasted with what."""

import functools

import jax
import jax.numpy as jnp
import pytest

from tests import small
from wmpoe.experts import expert
from wmpoe.experts import history_guidance

MODEL = small.model(context=4)


@functools.cache
def params():
  return small.params(MODEL)


def memory(windows, strengths):
  return history_guidance.HistoryGuidance(
      params=params(), model=MODEL, windows=windows, strengths=strengths, **small.DIMS)


WINDOW = small.window(2, 4)


@jax.jit
def contrast(given, window):
  read = given.read(window, small.query(2))
  return read.positive(*small.noisy(2, 2)), read.negative(*small.noisy(2, 2)), read.empty


def guided(given, window):
  return contrast(given, window)[0]


@jax.jit
def seeing(params, keep):
  query = small.query(2, recent=WINDOW)
  return expert.bind(MODEL, params, query, keep=keep)(*small.noisy(2, 2))


def test_vanilla_guidance_is_classifier_free_guidance_by_the_history():
  everything, nothing = (seeing(params(), jnp.full((4,), kept)) for kept in (True, False))
  small.differ(everything, nothing)
  for strength in (0.0, 1.0, 1.5):
    got = guided(memory(((4, 0),), (strength,)), WINDOW)
    small.close(got, nothing + strength * (everything - nothing), atol=1e-4)


def test_temporal_guidance_adds_what_each_window_says():
  nothing = seeing(params(), jnp.zeros((4,), bool))
  whole = seeing(params(), jnp.ones((4,), bool))
  newest = seeing(params(), jnp.array([False, False, True, True]))
  older = seeing(params(), jnp.array([False, True, True, False]))
  small.differ(newest, older)
  got = guided(memory(((4, 0), (2, 0), (3, 1)), (1.0, 0.5, 0.25)), WINDOW)
  expected = (
      nothing + (whole - nothing) + 0.5 * (newest - nothing) + 0.25 * (older - nothing))
  small.close(got, expected, atol=1e-4)


def test_its_baseline_hides_the_history():
  # A memory of one window: the same program as in the tests above.
  _, negative, empty = contrast(memory(((4, 0),), (1.5,)), WINDOW)
  small.close(negative, seeing(params(), jnp.zeros((4,), bool)))
  assert not empty.any()
  nothing = jax.tree.map(jnp.zeros_like, WINDOW)
  positive, negative, empty = contrast(memory(((4, 0),), (1.5,)), nothing)
  small.close(positive, negative)
  assert empty.all()


@pytest.mark.parametrize(('windows', 'strengths', 'message'), [
    (((5, 0),), (1.0,), 'of a history of 4 frames'),
    (((2, 2),), (1.0,), 'begin > end'),
    ((), (), 'expected pairs'),
    (((4, 0), (2, 0)), (1.0,), '1 strengths for 2 windows'),
])
def test_impossible_windows(windows, strengths, message):
  with pytest.raises(ValueError, match=message):
    memory(windows, strengths)
