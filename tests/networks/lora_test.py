"""Tests of low-rank adapters."""

import dataclasses

from flax import errors
from flax import traverse_util
import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import small
from wmpoe.networks import lora

MODEL = small.model()
PARAMS = small.params(MODEL)
SPEC = lora.LoraSpec(rank=3, alpha=6.0, targets=(*lora.TARGETS, 'patch_embed', 'place'))


_merged, _merge = (jax.jit(f, static_argnums=2) for f in (lora.merged, lora.merge))
_fresh = jax.jit(lambda spec: lora.init(jax.random.key(0), PARAMS, spec), static_argnums=0)


def _adapter(spec=SPEC, seed=0):
  """An adapter with a `b` that is not zero."""
  shapes = jax.eval_shape(lambda k: lora.init(k, PARAMS, spec), jax.random.key(0))
  return small.random_tree(shapes, seed)


@jax.jit
def _forward(params, collection):
  actions, poses = small.conditions(2, 4)
  return MODEL.network.apply(
      {'params': params, 'lora': collection}, *small.noisy(2, 4), actions, poses)


def test_low_rank_and_merged_are_the_same_function_and_not_the_base():
  adapter = _adapter()
  low_rank = _forward(PARAMS, lora.scaled(adapter, SPEC))
  small.close(_forward(PARAMS, _merged(PARAMS, adapter, SPEC)), low_rank, atol=1e-4)
  small.close(_forward(_merge(PARAMS, adapter, SPEC), {}), low_rank, atol=1e-4)
  small.differ(_forward(PARAMS, {}), low_rank)


def test_whole_updates_are_what_all_ranks_can_say():
  whole = dataclasses.replace(SPEC, full=True)
  fresh = _fresh(whole)
  small.same(_forward(PARAMS, lora.applied(PARAMS, fresh, whole)), _forward(PARAMS, {}))
  # The low-rank update of every kernel, written as a whole one: the same function.
  low = _adapter()
  kernels = _merged(PARAMS, low, SPEC)
  tables = {'place': SPEC.table_scale}
  update = jax.tree_util.tree_map_with_path(
      lambda path, zero, new, old: (new - old) / tables.get(path[0].key, 1.0),
      fresh, _renamed(kernels), _renamed(_merged(
          PARAMS, jax.tree.map(jnp.zeros_like, low), SPEC)))
  small.close(
      _forward(PARAMS, lora.applied(PARAMS, update, whole)),
      _forward(PARAMS, lora.applied(PARAMS, low, SPEC)), atol=1e-4)
  both = lora.combine(update, update, 'concatenate')
  small.close(both['place']['update'], 2 * update['place']['update'])
  small.same(lora.combine(update, update, 'average'), update)


def _renamed(kernels):
  """A tree of whole kernels with the names of a tree of whole updates."""
  flat = traverse_util.flatten_dict(kernels)
  return traverse_util.unflatten_dict({(*p[:-1], 'update'): leaf for p, leaf in flat.items()})


@pytest.mark.parametrize('target', ['query', 'place'])
def test_each_target_counts_by_itself(target):
  spec = lora.LoraSpec(rank=2, targets=(target,))
  adapter = _adapter(spec)
  low_rank = _forward(PARAMS, lora.scaled(adapter, spec))
  small.close(_forward(PARAMS, _merged(PARAMS, adapter, spec)), low_rank, atol=1e-4)
  small.differ(_forward(PARAMS, {}), low_rank)


def test_a_fresh_adapter_is_the_base_bit_for_bit():
  fresh = _fresh(SPEC)
  base = _forward(PARAMS, {})
  small.same(_forward(PARAMS, lora.scaled(fresh, SPEC)), base)
  small.same(_forward(PARAMS, _merged(PARAMS, fresh, SPEC)), base)


def test_the_tree_of_an_adapter():
  fresh = _fresh(SPEC)
  assert set(fresh) == {'block_0', 'block_1', 'patch_embed', 'place'}
  assert set(fresh['block_1']) == set(lora.TARGETS)
  assert fresh['block_0']['mlp_in']['a'].shape == (16, 3)
  assert fresh['block_0']['mlp_in']['b'].shape == (3, 32)
  # A table's rows are keys already: the first `rank` of them have a row of `b` each.
  small.same(fresh['place']['a'], SPEC.table_scale * jnp.eye(small.TOKENS, 3))
  assert not any(np.any(x['b']) for x in (*fresh['block_0'].values(), fresh['place']))
  a = np.concatenate([
      fresh[f'block_{i}'][target]['a'].ravel() for i in (0, 1) for target in lora.TARGETS[:5]])
  np.testing.assert_allclose(a.std(), 16**-0.5, rtol=0.1)
  assert np.unique(a).size > 0.9 * a.size, 'every matrix has a draw of its own'


def test_the_scale_is_alpha_over_rank():
  adapter = _adapter()
  scaled = lora.scaled(adapter, SPEC)
  small.same(scaled['place']['a'], adapter['place']['a'])
  small.close(scaled['place']['b'], 2.0 * adapter['place']['b'])
  merged = _merged(PARAMS, adapter, SPEC)
  update = adapter['patch_embed']['a'] @ adapter['patch_embed']['b']
  small.close(merged['patch_embed']['kernel'], PARAMS['patch_embed']['kernel'] + 2.0 * update)


def test_merging_shares_what_it_does_not_adapt():
  spec = lora.LoraSpec(rank=1, targets=('value',))
  whole = lora.merge(PARAMS, _adapter(spec), spec)
  assert jax.tree.structure(whole) == jax.tree.structure(PARAMS)
  assert whole['block_0']['query']['kernel'] is PARAMS['block_0']['query']['kernel']
  assert whole['block_0']['value']['bias'] is PARAMS['block_0']['value']['bias']
  small.differ(whole['block_0']['value']['kernel'], PARAMS['block_0']['value']['kernel'])


@hypothesis.settings(max_examples=6)
@hypothesis.given(
    rank=st.integers(1, 4), inputs=st.integers(1, 5), outputs=st.integers(1, 5),
    lead=st.lists(st.integers(1, 3), max_size=2), alpha=st.sampled_from([0.5, 3.0]))
def test_any_shape_of_layer(rank, inputs, outputs, lead, alpha):
  layer = lora.Dense(outputs)
  rng = np.random.default_rng(rank)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  weights = {'layer': {'kernel': draw(inputs, outputs), 'bias': draw(outputs)}}
  spec = lora.LoraSpec(rank=rank, alpha=alpha, targets=('layer',))
  adapter = {'layer': {'a': draw(inputs, rank), 'b': draw(rank, outputs)}}
  x = draw(*lead, inputs)
  expected = x @ (
      weights['layer']['kernel'] + alpha / rank * adapter['layer']['a'] @ adapter['layer']['b']
  ) + weights['layer']['bias']
  for collection in (lora.scaled(adapter, spec), lora.merged(weights, adapter, spec)):
    variables = {'params': weights['layer'], 'lora': collection['layer']}
    small.close(jax.jit(layer.apply)(variables, x), expected, atol=1e-4)


@pytest.mark.parametrize('outputs', [2, 7])
def test_a_product_and_its_gradients_are_those_of_matmul(outputs):
  rng = np.random.default_rng(0)
  x, kernel = (rng.normal(size=s).astype(np.float32) for s in ((3, 4, 5), (5, outputs)))
  loss = lambda f: lambda x, k: jnp.sum(jnp.sin(f(x, k)))
  grads = lambda f: jax.jit(jax.grad(loss(f), argnums=(0, 1)))
  small.close(grads(lora.product)(x, kernel), grads(jnp.matmul)(x, kernel))
  batched = lambda f: jax.vmap(grads(f))(x, np.stack([kernel] * 3))
  small.close(batched(lora.product), batched(jnp.matmul))


def test_gradients_reach_the_adapter():
  adapter = _fresh(SPEC)
  grads = jax.jit(jax.grad(
      lambda a: jnp.mean(jnp.square(_forward(PARAMS, lora.scaled(a, SPEC))))))(adapter)
  for name in lora.TARGETS:  # `a` gets its gradient through `b`, which is still zero
    assert np.any(grads['block_0'][name]['b']), name
    assert not np.any(grads['block_0'][name]['a']), name
  assert np.any(grads['place']['b'])


@pytest.mark.parametrize(('make', 'message'), [
    (lambda: lora.LoraSpec(rank=0), 'rank 0 must be at least 1.*leave the long-term memory out'),
    (lambda: lora.LoraSpec(alpha=0), 'alpha=0, .*expected finite numbers other than 0'),
    (lambda: lora.LoraSpec(table_scale=float('inf')), 'table_scale=inf: expected finite numbers'),
    (lambda: lora.LoraSpec(targets=()), 'at least one target, for instance query'),
    (lambda: lora.init(jax.random.key(0), PARAMS, lora.LoraSpec(targets=('query', 'qkv'))),
     r"\['qkv'\] name no dense layer.*it has: .*mlp_in.*query"),
])
def test_bad_arguments(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_two_adapters_are_combined_into_one_of_the_same_rank():
  """With ranks to spare the sum is exact; without, it is the nearest: its best singular parts."""
  rng = np.random.default_rng(0)
  make = lambda rank, used: {'layer': {
      'a': jnp.asarray(rng.normal(size=(2, 6, rank)) * (np.arange(rank) < used), jnp.float32),
      'b': jnp.asarray(rng.normal(size=(2, rank, 5)), jnp.float32)}}
  product = lambda tree: np.asarray(tree['layer']['a'] @ tree['layer']['b'])
  one, two = make(4, 2), make(4, 2)
  got = lora.combine(one, two, 'concatenate')
  assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, one)
  np.testing.assert_allclose(product(got), product(one) + product(two), atol=1e-5)
  one, two = make(2, 2), make(2, 2)
  total = product(one) + product(two)
  left = np.linalg.norm(product(lora.combine(one, two, 'concatenate')) - total, axis=(1, 2))
  singular = np.linalg.svd(total, compute_uv=False)
  np.testing.assert_allclose(left, np.linalg.norm(singular[:, 2:], axis=1), rtol=1e-4)
  wide = make(7, 7)  # more ranks than the layer has
  np.testing.assert_allclose(
      product(lora.combine(wide, wide, 'concatenate')), 2 * product(wide), atol=1e-4)
  small.close(lora.combine(one, two, 'average')['layer']['a'],
              (one['layer']['a'] + two['layer']['a']) / 2)
  with pytest.raises(ValueError, match="Unknown way to merge adapters 'sum'"):
    lora.combine(one, two, 'sum')


def test_a_kernel_of_another_shape_is_named():
  given = {'kernel': np.ones((3, 5)), 'bias': np.ones(5)}
  with pytest.raises(
      errors.ScopeParamShapeError, match=r'"kernel" in "/".* generate shape \(4, 5\).* \(3, 5\)'):
    lora.Dense(5).apply({'params': given}, np.ones((2, 4)))
