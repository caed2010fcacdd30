"""Tests of the training objective on clips."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import small
from wmpoe.diffusion import schedules
from wmpoe.experts import objective
from wmpoe.networks import lora

MODEL = small.model()
PARAMS = small.params(MODEL)
PLAIN = objective.Objective(null_rate=0.0)


@jax.jit
def _plain(clip, seed):
  return objective.clip_loss(MODEL, PARAMS, clip, jax.random.key(seed), PLAIN)


def _loss(clip, seed=0, spec=PLAIN, model=MODEL, params=PARAMS, **kwargs):
  return jax.jit(lambda c: objective.clip_loss(
      model, params, c, jax.random.key(seed), spec, **kwargs))(clip)


def _with(clip, frame, **changes):
  return dataclasses.replace(clip, **{
      name: getattr(clip, name).at[:, frame].set(value) for name, value in changes.items()})


def test_only_valid_targets_carry_loss():
  clip = small.clip(2, 5)
  masked = _with(clip, 4, valid=False)
  assert float(_plain(masked, 0)) != float(_plain(clip, 0))
  alone = jax.jit(jax.grad(lambda p, c: objective.clip_loss(
      MODEL, p, c, jax.random.key(0), PLAIN)))
  nothing = dataclasses.replace(clip, valid=clip.valid.at[:, 2:].set(False))
  assert float(_plain(nothing, 0)) == 0.0
  assert not any(np.any(g) for g in jax.tree.leaves(alone(PARAMS, nothing)))


def test_invalid_context_is_never_seen():
  clip = small.clip(2, 5)
  assert float(_plain(_with(clip, 0, frames=0), 0)) != float(_plain(clip, 0))
  masked = _with(clip, 0, valid=False)
  assert float(_plain(_with(masked, 0, frames=0), 0)) == float(_plain(masked, 0))


def test_a_nulled_context_is_never_seen():
  clip = small.clip(2, 5)
  null = objective.Objective(null_rate=1.0)
  other = _with(_with(clip, 0, frames=0), 1, frames=0)
  assert float(_loss(other, spec=null)) == float(_loss(clip, spec=null))
  assert float(_plain(other, 0)) != float(_plain(clip, 0))


def test_context_carries_loss_only_under_diffusion_forcing():
  forcing = objective.Objective(regime='diffusion_forcing')
  clip = small.clip(2, 5)
  only_context = dataclasses.replace(clip, valid=clip.valid.at[:, 2:].set(False))
  assert float(_plain(only_context, 0)) == 0.0
  assert float(_loss(only_context, spec=forcing)) > 0.0
  nothing = dataclasses.replace(clip, valid=jnp.zeros_like(clip.valid))
  assert float(_loss(nothing, spec=forcing)) == 0.0


def test_full_attention_has_its_own_path():
  full = small.model(kind='full')
  clip = small.clip(2, 5)
  loss = _loss(clip, model=full)
  # Same weights, same draws: only who sees whom differs, and that little.
  np.testing.assert_allclose(loss, _plain(clip, 0), rtol=0.5)
  assert float(loss) != float(_plain(clip, 0))
  assert float(_loss(_with(clip, 1, frames=0), model=full)) != float(loss)


def test_a_fresh_adapter_changes_no_bit_and_another_does():
  clip = small.clip(2, 5)
  fresh = lora.init(jax.random.key(0), PARAMS, small.SPEC)
  run = jax.jit(lambda a: objective.clip_loss(
      MODEL, PARAMS, clip, jax.random.key(0), PLAIN, lora=lora.scaled(a, small.SPEC)))
  np.testing.assert_allclose(run(fresh), _plain(clip, 0), rtol=1e-6)
  other = small.random_tree(jax.eval_shape(lambda: fresh))
  assert abs(float(run(other)) - float(run(fresh))) > 1e-4  # of a loss of 1e-2


def test_pixels_can_be_weighted():
  clip = small.clip(2, 5)
  weighted = lambda w: dataclasses.replace(
      clip, pixel_weight=jnp.broadcast_to(w, (2, 5, 16, 16, 1)))
  np.testing.assert_allclose(_plain(weighted(1.0), 0), _plain(clip, 0), rtol=1e-6)
  np.testing.assert_allclose(_plain(weighted(2.5), 0), 2.5 * _plain(clip, 0), rtol=1e-5)
  # The context's own weights do not count: it carries no loss.
  context = weighted(1.0)
  context = dataclasses.replace(context, pixel_weight=context.pixel_weight.at[:, :2].set(9.0))
  np.testing.assert_allclose(_plain(context, 0), _plain(clip, 0), rtol=1e-6)


def test_every_key_is_another_draw():
  clip = small.clip(1, 4)
  assert len({float(_plain(clip, seed)) for seed in range(4)}) == 4
  assert float(_plain(clip, 0)) == float(_plain(clip, 0))


def test_unknown_names():
  with pytest.raises(ValueError, match="'clean'; expected one of clean_context, diffusion_forcing"):
    objective.Objective(regime='clean')
  with pytest.raises(ValueError, match="Unknown weighting 'snr'"):
    _loss(small.clip(1, 4), spec=objective.Objective(weighting='snr'))


def test_several_draws_are_as_many_clips_after_one_context():
  clip = small.clip(2, 5)
  twice = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), clip)
  draws = dataclasses.replace(PLAIN, draws=2)
  small.close(_loss(clip, spec=draws), _loss(twice))
  assert float(_loss(clip, spec=draws)) != pytest.approx(float(_loss(clip)))


def test_draws_need_a_context_that_does_not_see_the_targets():
  with pytest.raises(ValueError, match='draws=2 under diffusion_forcing'):
    objective.Objective(regime='diffusion_forcing', draws=2)
  full = small.model(kind='full')
  with pytest.raises(ValueError, match='this one sees the targets'):
    _loss(small.clip(2, 5), spec=dataclasses.replace(PLAIN, draws=2), model=full)


def test_what_is_not_there_looks_nulled_under_diffusion_forcing():
  spec = objective.Objective(regime='diffusion_forcing')
  # At the top noise level nothing at all is left of a frame.
  model = dataclasses.replace(MODEL, schedule=schedules.CosineSchedule(logsnr_min=-60.0))
  loss = lambda clip: float(_loss(clip, spec=spec, model=model))
  masked = _with(small.clip(2, 5), 0, valid=False)
  assert loss(_with(masked, 0, frames=0)) == pytest.approx(loss(masked), rel=1e-6)
