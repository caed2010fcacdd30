"""Shared arrays are one leaf, and come back shared; named parts keep their order."""

from collections.abc import Mapping
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from tests import small
from wmpoe.experts import tied


@tied.dataclass
class _Pair:
  first: Any
  named: Mapping[str, Any]
  weight: Any = 1.0
  size: int = struct.field(pytree_node=False, default=2, kw_only=True)


def _made():
  shared, own = jnp.arange(3.0), jnp.ones(2)
  named = {'z': (shared, own), 'a': [own, jnp.arange(3.0)]}
  return _Pair({'w': shared}, named, jnp.float32(1.0))


def test_what_is_shared_is_one_leaf_inside_and_after_jit():
  one = _made()
  assert len(jax.tree.leaves(one)) == 4  # shared, own, its equal that is another array, the weight

  @jax.jit
  def through(pair):
    assert pair.first['w'] is pair.named['z'][0]
    assert pair.named['z'][1] is pair.named['a'][0]
    assert pair.named['a'][1] is not pair.first['w']
    return jax.tree.map(lambda x: x + 1, pair)

  out = through(one)
  assert out.first['w'] is out.named['z'][0]
  small.same(out.named['a'][1], np.arange(1.0, 4.0))
  assert jax.tree.structure(out) == jax.tree.structure(one)
  through(out)
  assert through._cache_size() == 1


def test_names_keep_their_order_and_paths_say_where_leaves_are():
  one = _made()
  assert jax.jit(lambda pair: (list(pair.named), pair)[1])(one).named.keys() == one.named.keys()
  assert list(jax.jit(lambda pair: pair)(one).named) == ['z', 'a']
  paths = [jax.tree_util.keystr(path, simple=True, separator='/')
           for path, _ in jax.tree_util.tree_leaves_with_path(one)]
  assert paths == ['first/w', 'named/z/1', 'named/a/1', 'weight']


def test_numbers_never_count_as_shared():
  """So that new weights are no new structure."""
  tree = lambda first, weight: jax.tree.structure(_Pair(first, {}, weight))
  number, other = jnp.float32(2.0), jnp.float32(3.0)
  assert tree(number, number) == tree(number, other)
  assert tree(0.5, 0.5) == tree(0.5, 0.25)


def test_a_changed_copy_knows_what_it_shares():
  one = _made()
  apart = one.replace(first={'w': jnp.zeros(3)})
  assert len(jax.tree.leaves(apart)) == 5
  again = apart.replace(first={'w': apart.named['z'][0]}, size=3)
  assert len(jax.tree.leaves(again)) == 4 and again.size == 3
  assert jax.tree.structure(again) != jax.tree.structure(one)  # the static field


def test_any_leaves_can_take_the_place_of_arrays():
  """As jax does with axes and shardings: one object for all of them stays so many leaves."""
  leaves, tree = jax.tree.flatten(_made())
  same = jax.tree.unflatten(tree, [None.__class__] * len(leaves))
  assert len(jax.tree.leaves(same)) == len(leaves)
  shapes = jax.eval_shape(lambda pair: pair, _made())
  assert shapes.first['w'] is shapes.named['z'][0]
  out = jax.vmap(lambda pair, x: pair.first['w'] * x, in_axes=(None, 0))(_made(), jnp.arange(2.0))
  assert out.shape == (2, 3)
