"""Tests of what each expert is trained on, with golden metrics of one step of a DiT."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import small
from wmpoe.experts import objective
from wmpoe.networks import ssm
from wmpoe.training import state as state_lib
from wmpoe.training import tasks

OBJECTIVE = objective.Objective(null_rate=0.3)
CONFIG = state_lib.TrainConfig(steps=10, learning_rate=1e-2, warmup_steps=1, weight_decay=0.1)


def _batch(history=0):
  clip = small.clip(2, 4)
  batch = {k: getattr(clip, k) for k in ('frames', 'actions', 'poses', 'valid')}
  if history:
    past = small.clip(2, history, seed=1)
    batch |= {f'history_{k}': getattr(past, k) for k in ('frames', 'actions', 'poses', 'valid')}
  return batch


def _denoising(**changes):
  return tasks.DenoisingTask(**{
      'model': small.model(), 'objective': OBJECTIVE, **small.DIMS, **changes})


def _spatial(**changes):
  return tasks.SpatialTask(**{
      'model': small.spatial_model(), 'objective': OBJECTIVE, 'empty_rate': 0.0, **small.DIMS,
      **changes})


def _one_step(task, params, batch):
  optimizer = state_lib.optimizer_of(CONFIG)
  state, metrics = state_lib.make_train_step(task, CONFIG)(
      jax.jit(lambda tree: state_lib.create(tree, optimizer))(params), batch, jax.random.key(0))
  return state, {k: float(v) for k, v in metrics.items()}


GOLDEN = {
    'denoising': {
        'loss': 0.154947, 'grad_norm': 0.212710, 'update_norm': 1.176752, 'learning_rate': 0.01},
    'spatial': {
        'loss': 0.131004, 'grad_norm': 0.240446, 'update_norm': 1.243612, 'learning_rate': 0.01},
}


@pytest.mark.parametrize('name', GOLDEN)
def test_golden_metrics_of_one_step(name):
  task = _denoising() if name == 'denoising' else _spatial()
  params = small.params(task.model)
  before = jax.tree.map(np.array, params)
  state, metrics = _one_step(task, params, _batch(history=3))
  assert metrics == pytest.approx(GOLDEN[name], rel=1e-3)
  changed = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != b)), state.params, before)
  assert jax.tree.all(changed), 'every leaf is trained'


def test_fresh_parameters_and_a_fork():
  task = _denoising()
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  params = small.params(task.model)
  assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params)
  small.same(_denoising(initial=params).init(jax.random.key(0)), params)


def test_a_fork_keeps_what_it_shares_and_the_rest_is_fresh():
  net = small.network()
  recurrent = dataclasses.replace(small.model(), anchor='first', network=ssm.SSM(
      width=net.width, depth=net.depth, heads=net.heads, patch=net.patch,
      frame_shape=net.frame_shape, context=net.context, mlp_ratio=net.mlp_ratio))
  base = small.params(small.model())
  params = jax.jit(_denoising(model=recurrent, initial=base).init)(jax.random.key(0))
  small.same({k: params['block_0'][k] for k in base['block_0']}, base['block_0'])
  assert set(params['block_0']) - set(base['block_0']) == {'time'}


def test_a_spatial_fork_keeps_the_base_and_adds_a_fresh_map():
  base = small.params(small.model())
  params = jax.jit(_spatial(initial={'denoiser': base}).init)(jax.random.key(0))
  assert set(params) == {'denoiser', 'encoder'}
  fresh = {k: v for k, v in params['denoiser'].items() if k not in base}
  assert set(fresh) == {'map_embed'}
  small.same({k: params['denoiser'][k] for k in base}, base)


def test_a_spatial_expert_is_trained_on():
  expert = small.params(small.spatial_model())
  small.same(jax.jit(_spatial(initial=expert).init)(jax.random.key(1)), expert)


@pytest.mark.parametrize('misfit', [{'width': 32}, {'depth': 3}])
def test_a_base_that_does_not_fit(misfit):
  base = small.params(small.model(**misfit))
  with pytest.raises(ValueError, match='it is forked from has leaves this network lacks: .*block_'):
    jax.eval_shape(_spatial(initial={'denoiser': base}).init, jax.random.key(0))


def test_the_loss_is_the_objective_on_the_batch():
  task, params, key = _denoising(), small.params(small.model()), jax.random.key(2)
  loss, metrics = jax.jit(task.loss)(params, _batch(), key)
  expected = jax.jit(lambda p: objective.clip_loss(task.model, p, small.clip(2, 4), key, OBJECTIVE))
  # Two programs: equal up to the last bit of float32.
  np.testing.assert_allclose(loss, expected(params), rtol=1e-6)
  assert metrics == {}


def test_the_spatial_loss_reads_the_history():
  task, key = _spatial(), jax.random.key(2)
  params, batch = small.params(task.model), _batch(history=3)
  run = jax.jit(lambda b, rate: dataclasses.replace(task, empty_rate=rate).loss(params, b, key)[0],
                static_argnums=1)
  other = {**batch, 'history_frames': 255 - batch['history_frames']}
  assert float(run(batch, 0.0)) != float(run(other, 0.0))
  assert float(run(batch, 1.0)) == float(run(other, 1.0))
