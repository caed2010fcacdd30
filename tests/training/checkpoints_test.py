import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmpoe.training import checkpoints
from wmpoe.training import state

OPTIMIZER = state.make_optimizer(learning_rate=1e-2, warmup_steps=2, total_steps=9)


@functools.partial(jax.jit, static_argnums=0)
def make_state(step):
  params = {'layer': {'kernel': jnp.arange(6.0).reshape(2, 3), 'low': jnp.ones(2, jnp.bfloat16)}}
  made = state.create(params, OPTIMIZER)
  for _ in range(step):
    updates, opt_state = OPTIMIZER.update(made.params, made.opt_state, made.params)
    made = made.replace(
      step=made.step + 1,
      params=jax.tree.map(jnp.add, made.params, updates),
      opt_state=opt_state,
    )
  return made


def save(workdir, *steps, keep=2, data=None):
  checkpointer = checkpoints.Checkpointer(workdir, keep=keep)
  for step in steps:
    checkpointer.save(make_state(step), data=data or {'next': step}, meta={'note': f'n{step}'})
  checkpointer.close()


def assert_same(a, b):
  def check(x, y):
    assert x.dtype == y.dtype and x.shape == y.shape
    np.testing.assert_array_equal(x, y)

  jax.tree.map(check, a, b)


@pytest.mark.parametrize('data', [{'next': 3, 'inner': {'a': [1, 2]}}, b'{"text": 1}'])
def test_restore_gives_back_everything(tmp_path, data):
  save(tmp_path, 3, data=data)
  checkpointer = checkpoints.Checkpointer(tmp_path, keep=2)
  restored, position, meta = checkpointer.restore(make_state(0))
  checkpointer.close()
  assert_same(restored, make_state(3))
  assert jax.tree.structure(restored) == jax.tree.structure(make_state(3))
  assert position == data
  assert meta == {'note': 'n3', 'step': 3}


def test_items_are_separate_and_old_checkpoints_go(tmp_path):
  save(tmp_path, 1, 2, 3, keep=2)
  folder = tmp_path / checkpoints.FOLDER
  assert sorted(p.name for p in folder.iterdir()) == ['2', '3']
  items = {p.name for p in (folder / '3').iterdir() if p.is_dir()}
  assert items == {'params', 'ema', 'optimizer', 'data', 'meta'}


def test_half_written_checkpoint_is_not_used(tmp_path):
  save(tmp_path, 1, 2)
  half = tmp_path / checkpoints.FOLDER / '3.orbax-checkpoint-tmp'
  (half / 'params').mkdir(parents=True)
  assert checkpoints.load_params(tmp_path)[1]['step'] == 2
  assert half.exists()  # It may be the work of a job that is still training.
  checkpointer = checkpoints.Checkpointer(tmp_path, keep=2)
  assert checkpointer.latest_step() == 2
  assert checkpointer.latest_path() == tmp_path / checkpoints.FOLDER / '2'
  # The remains are removed in the background, before the next save at the latest.
  checkpointer.save(make_state(4), data={}, meta={})
  checkpointer.close()
  assert not half.exists()
  assert checkpoints.load_params(tmp_path)[1]['step'] == 4


def test_load_params_needs_no_shapes(tmp_path):
  save(tmp_path, 2, 4)
  made = make_state(4)
  ema, meta = checkpoints.load_params(tmp_path)
  assert_same(ema, made.ema)
  assert meta['note'] == 'n4'
  assert_same(checkpoints.load_params(tmp_path, 'params')[0], made.params)
  older, meta = checkpoints.load_params(tmp_path, 'params', step=2)
  assert_same(older, make_state(2).params)
  assert meta['step'] == 2


def test_load_params_says_what_is_missing(tmp_path):
  with pytest.raises(FileNotFoundError, match='holds no trained run: expected the folder'):
    checkpoints.load_params(tmp_path)
  save(tmp_path, 1)
  with pytest.raises(FileNotFoundError, match=r'checkpoint of step 7; complete.*\[1\]'):
    checkpoints.load_params(tmp_path, step=7)
  with pytest.raises(ValueError, match=r"which='average': expected 'ema' or 'params'"):
    checkpoints.load_params(tmp_path, 'average')


def test_the_best_are_kept_beside_the_last(tmp_path):
  values = {1: 0.5, 2: 0.3, 3: 0.9, 4: None, 5: 0.4, 6: 0.8, 7: None}
  for steps in ((1, 2, 3, 4), (5, 6, 7)):  # What was measured is known after a restart, too.
    checkpointer = checkpoints.Checkpointer(tmp_path, keep=1, keep_best=2)
    for step in steps:
      measured = None if values[step] is None else {'validation_loss': values[step]}
      state = make_state(0).replace(step=jnp.int32(step))
      checkpointer.save(state, data={}, meta={}, measured=measured)
    checkpointer.close()
  kept = sorted(int(p.name) for p in (tmp_path / checkpoints.FOLDER).iterdir())
  assert kept == [2, 5, 7]
  assert checkpoints.load_params(tmp_path)[1]['step'] == 7
  best = checkpoints.load_params(tmp_path, step='best')[1]
  assert (best['step'], best['measured']) == (2, {'validation_loss': 0.3})
  with pytest.raises(FileNotFoundError, match='no such thing as a checkpoint measured with psnr'):
    checkpoints.load_params(tmp_path, step='best', best_metric='psnr')
  checkpointer = checkpoints.Checkpointer(tmp_path, keep=1, keep_best=2, best_metric='psnr')
  with pytest.raises(ValueError, match=r"by 'psnr', but the evaluation gave \['loss'\]: choose"):
    checkpointer.save(make_state(0), data={}, meta={}, measured={'loss': 1.0})
  checkpointer.close()


def test_a_checkpoint_of_another_network_is_named_with_what_differs(tmp_path):
  save(tmp_path, 3)
  state = make_state(0)
  wider = jax.tree.map(
    lambda leaf: jnp.zeros((2, 4)) if leaf.shape == (2, 3) else leaf, state)
  deeper = state.replace(params={**state.params, 'new': jnp.zeros(1)})
  checkpointer = checkpoints.Checkpointer(tmp_path, keep=2)
  with pytest.raises(ValueError, match='checkpoints/3 is a checkpoint of another network') as error:
    checkpointer.restore(wider)
  assert '  params/layer/kernel: (2, 3) there, (2, 4) now\n' in str(error.value)
  assert 'low' not in str(error.value)
  with pytest.raises(ValueError, match=r'  params/new: absent there, \(1,\) now\nGive another wor'):
    checkpointer.restore(deeper)
  checkpointer.close()
