"""What tells models apart, and what does not."""

import dataclasses

import jax

from tests import small
from wmpoe.experts import composition
from wmpoe.session import identity


def test_a_fingerprint_is_of_weights_not_of_how_they_are_composed():
  model = small.world()
  parts = identity.fingerprint(model)
  assert set(parts) == {'base', 'short_term', 'long_term', 'spatial'}
  assert len({*parts.values()}) == 4
  weighed = model.compose('base', *model.memories, weights={'spatial': 7.0}, rule='mean')
  assert identity.fingerprint(dataclasses.replace(weighed, num_steps=9)) == parts


def test_one_changed_number_changes_one_part():
  model = small.world()
  leaves, tree = jax.tree.flatten(model.memories['spatial'])
  leaves[0] = leaves[0].at[(0,) * leaves[0].ndim].add(1e-6)
  changed = dataclasses.replace(
      model, memories={**model.memories, 'spatial': jax.tree.unflatten(tree, leaves)})
  parts, other = identity.fingerprint(model), identity.fingerprint(changed)
  assert {name for name in parts if parts[name] != other[name]} == {'spatial'}


def test_a_description_is_json_and_restores_what_it_names():
  model = small.world(levels=(('spatial', composition.Interval(low=-2.0)),))
  described = identity.describe(model)
  assert described['levels'] == {'spatial': {'low': -2.0, 'high': None}}
  assert described['sampler'] == {'name': 'ddim', 'eta': 0.0, 'clip_x0': None}
  assert identity.describe(identity.restore(small.world(), described)) == described
