"""Tests of the diffusion transformer."""

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import small

BATCH, CONTEXT, TARGET = 2, 3, 2
PATTERNS = {
    'prefix': {'kind': 'prefix'},
    'prefix_window': {'kind': 'prefix', 'window': 2, 'full_every': 2},
    'causal': {'kind': 'causal'},
    'causal_window': {'kind': 'causal', 'window': 2},
}


def _inputs(batch=BATCH, frames=CONTEXT + TARGET, seed=0):
  return (*small.noisy(batch, frames, seed), *small.conditions(batch, frames, seed))


def _cells(seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(
      size=(BATCH, CONTEXT + TARGET, small.TOKENS, 3)), jnp.float32)


def _params(net):
  shapes = jax.eval_shape(net.init, jax.random.key(0), *_inputs())['params']
  return {'params': small.random_tree(shapes)}


def _one_pass(net, variables, inputs, cells=None):
  return jax.jit(lambda v, i, c: net.apply(v, *i, cells=c))(variables, inputs, cells)


@pytest.mark.parametrize('name', PATTERNS)
def test_a_cached_context_is_one_masked_pass(name):
  net = small.network(context=CONTEXT, map_dim=3, **PATTERNS[name])
  variables, inputs, cells = _params(net), _inputs(), _cells()

  @jax.jit
  def cached(v, inputs, cells):
    past = net.apply(
        v, *(x[:, :CONTEXT] for x in inputs), cells[:, :CONTEXT], method='prefill')
    return past, net.apply(
        v, *(x[:, CONTEXT:] for x in inputs), past=past, cells=cells[:, CONTEXT:])

  past, out = cached(variables, inputs, cells)
  assert len(past.keys) == 2
  assert past.keys[0].shape == (BATCH, CONTEXT * small.TOKENS, 2, 8)
  small.close(out, _one_pass(net, variables, inputs, cells)[:, CONTEXT:], atol=1e-4)


def test_blocks_in_a_loop_are_blocks_in_a_row():
  # Windows in every second block: one turn of the loop is two blocks.
  options = {'context': CONTEXT, 'depth': 4, **PATTERNS['prefix_window']}
  net, loop = small.network(**options), small.network(scan_layers=True, remat=True, **options)
  variables, inputs = _params(net), _inputs()
  assert jax.tree.structure(variables) == jax.tree.structure(_params(loop))

  def cached(net, v):
    past = net.apply(v, *(x[:, :CONTEXT] for x in inputs), method='prefill')
    return net.apply(v, *(x[:, CONTEXT:] for x in inputs), past=past)

  run = lambda net: jax.jit(jax.value_and_grad(lambda v: jnp.mean(cached(net, v)**2)))(variables)
  (value, grads), (looped, looped_grads) = run(net), run(loop)
  np.testing.assert_allclose(looped, value, rtol=1e-5)
  largest = max(np.abs(g).max() for g in jax.tree.leaves(grads))
  small.close(looped_grads, grads, atol=1e-5 * largest)


def test_what_blocks_make_can_be_captured():
  net = small.network(context=CONTEXT)
  variables, inputs = _params(net), _inputs()
  out, made = jax.jit(lambda *x: net.apply(variables, *x, capture_intermediates=True))(*inputs)
  (tokens, _), = made['intermediates']['block_1']['__call__']
  assert tokens.shape == (*inputs[0].shape[:2], small.TOKENS, 16)
  small.close(out, jax.jit(lambda *x: net.apply(variables, *x))(*inputs))


@pytest.mark.parametrize('name', ['prefix', 'causal', 'full'])
def test_who_sees_whom(name):
  net = small.network(context=CONTEXT, kind=name)
  variables, inputs = _params(net), _inputs()
  run = jax.jit(lambda x: net.apply(variables, x, *inputs[1:]))
  before = run(inputs[0])
  reach = []
  for frame in range(CONTEXT + TARGET):
    after = run(inputs[0].at[:, frame].add(1.0))
    reach.append([bool(np.any(after[:, t] != before[:, t])) for t in range(CONTEXT + TARGET)])
  reach = np.array(reach).T  # [seeing, seen]
  np.testing.assert_array_equal(reach, net.pattern.allowed(CONTEXT + TARGET, CONTEXT, 0))


def test_every_condition_matters_where_it_should():
  net = small.network(context=CONTEXT, kind='causal', map_dim=3)
  variables, inputs, cells = _params(net), _inputs(), _cells()
  run = jax.jit(lambda i, c: net.apply(variables, *i, cells=c))
  before = run(inputs, cells)
  x, logsnr, actions, poses = inputs
  changed = {
      'level': ((x, logsnr.at[1, 3].add(2.0), actions, poses), cells),
      'action': ((x, logsnr, actions.at[1, 3].set(jnp.array([0.5, 0.2, 0.3])), poses), cells),
      'pose': ((x, logsnr, actions, poses.at[1, 3].set(1 - poses[1, 3])), cells),
      'cells': (inputs, cells.at[1, 3, 0].add(1.0)),
  }
  for name, (i, c) in changed.items():
    after = run(i, c)
    assert np.abs(after[1, 3] - before[1, 3]).max() > 1e-3, name
    np.testing.assert_array_equal(after[0], before[0], err_msg=f'{name}: another episode')
    np.testing.assert_array_equal(after[1, :3], before[1, :3], err_msg=f'{name}: the past')


def test_an_absent_map_is_an_empty_one():
  net = small.network(context=CONTEXT, map_dim=3)
  variables, inputs = _params(net), _inputs()
  small.same(_one_pass(net, variables, inputs),
             _one_pass(net, variables, inputs, jnp.zeros_like(_cells())))
  small.differ(_one_pass(net, variables, inputs), _one_pass(net, variables, inputs, _cells()))


@pytest.mark.parametrize('pose_kind', ['vector', 'none'])
def test_kinds_of_poses(pose_kind):
  net = small.network(context=CONTEXT, pose_kind=pose_kind)
  inputs = _inputs()
  variables = _params(net)
  assert 'pose_plane' not in variables['params']
  out = _one_pass(net, variables, inputs)
  moved = _one_pass(net, variables, (*inputs[:3], inputs[3] + 0.5))
  if pose_kind == 'none':
    small.same(moved, out)
  else:
    small.differ(moved, out)


def test_remat_changes_memory_and_nothing_else():
  inputs = _inputs()
  results, products = {}, {}
  for remat in (False, True, 'nothing', 'matmuls'):
    net = small.network(context=CONTEXT, remat=remat)
    variables = _params(net)
    loss = lambda v, net=net: jnp.mean(jnp.square(net.apply(v, *inputs)))
    text = str(jax.make_jaxpr(jax.grad(loss))(variables))
    assert ('remat' in text or 'checkpoint' in text) == bool(remat)
    products[remat] = text.count('dot_general')
    if remat in (False, 'matmuls'):
      results[remat] = jax.jit(jax.value_and_grad(loss))(variables)
  # Products that are computed again: of two blocks' six dense layers and two inside attention.
  assert products['nothing'] == products[True] > products['matmuls'] > products[False]
  small.close(results['matmuls'], results[False], atol=1e-7)
  with pytest.raises(ValueError, match="remat='dots'; expected False, True or one of nothing, mat"):
    small.network(context=CONTEXT, remat='dots').apply(_params(small.network()), *inputs)


def test_half_precision_sums_gradients_in_float32():
  inputs = _inputs()
  net = small.network(context=CONTEXT, dtype=jnp.bfloat16, depth=1)
  variables = _params(net)
  gradient = jax.jit(jax.grad(lambda v: jnp.mean(jnp.square(net.apply(v, *inputs)))))(variables)
  flat = jax.tree_util.tree_flatten_with_path(gradient)[0]
  rounded = [
      jax.tree_util.keystr(path) for path, leaf in flat
      if np.all(np.asarray(leaf) == np.asarray(leaf.astype(jnp.bfloat16), np.float32))]
  assert rounded == []


def test_half_precision_runs_with_float32_parameters_and_output():
  inputs = _inputs()
  exact = small.network(context=CONTEXT)
  variables = _params(exact)
  half = small.network(context=CONTEXT, dtype=jnp.bfloat16)
  assert jax.tree.all(jax.tree.map(
      lambda a, b: a.shape == b.shape and b.dtype == jnp.float32, variables, _params(half)))
  out, close = _one_pass(half, variables, inputs), _one_pass(exact, variables, inputs)
  assert out.dtype == jnp.float32
  assert 0 < np.abs(out - close).max() < 0.1 * np.abs(close).max()


def test_at_the_start_it_predicts_zero():
  net = small.network(context=CONTEXT)
  variables = jax.jit(net.init)(jax.random.key(0), *_inputs())
  np.testing.assert_array_equal(_one_pass(net, variables, _inputs()), 0.0)


@hypothesis.settings(max_examples=4)
@hypothesis.given(
    batch=st.integers(1, 3), context=st.integers(1, 3), target=st.integers(1, 3),
    rows=st.integers(1, 2), columns=st.integers(1, 2), channels=st.integers(1, 4))
def test_any_shape(batch, context, target, rows, columns, channels):
  net = small.network(
      context=context, patch=4, frame_shape=(4 * rows, 4 * columns, channels), depth=1)
  frames = context + target
  x = jnp.zeros((batch, frames, *net.frame_shape))
  actions, poses = small.conditions(batch, frames)
  out = jax.eval_shape(net.init_with_output, jax.random.key(0), x, x[..., 0, 0, 0], actions, poses)
  assert out[0].shape == x.shape


def test_misshapen_input_and_a_context_that_cannot_be_cached():
  net = small.network(context=CONTEXT)
  x, logsnr, actions, poses = _inputs()
  with pytest.raises(AssertionError, match='16'):
    jax.eval_shape(net.init, jax.random.key(0), x[:, :, :8], logsnr, actions, poses)
  with pytest.raises(AssertionError):
    jax.eval_shape(net.init, jax.random.key(0), x, logsnr, actions[:, 1:], poses)
  full = small.network(context=CONTEXT, kind='full')
  with pytest.raises(ValueError, match="'full' lets context frames see generated ones"):
    full.apply(_params(full), x, logsnr, actions, poses, method='prefill')


def test_a_refiner_speaks_where_a_warped_view_does():
  options = {'context': CONTEXT, 'map_dim': 3 + 8**2 * 4}
  plain, net = small.network(**options), small.network(refiner=4, **options)
  variables, inputs = _params(net), _inputs()
  cells = jnp.zeros((BATCH, CONTEXT + TARGET, small.TOKENS, options['map_dim']))
  without = _one_pass(plain, variables, inputs)
  small.close(_one_pass(net, variables, inputs), without)
  small.close(_one_pass(net, variables, inputs, cells), without)
  seen = cells.at[:, -1, :, 3:].set(1.0)
  refined, plainly = (_one_pass(n, variables, inputs, seen) for n in (net, plain))
  small.differ(refined[:, -1], plainly[:, -1])
  small.close(refined[:, :-1], plainly[:, :-1])
