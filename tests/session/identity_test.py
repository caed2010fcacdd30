"""What tells models apart, and what does not."""

import dataclasses

import jax
import optax

from tests import small
from tests.experts import point_maps_test as maps
from tests.session import warped
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


def test_a_setting_that_changes_what_is_remembered_changes_one_part():
  model = warped.world()
  parts, camera = identity.fingerprint(model), maps.make_points().camera
  differ = lambda other: {
      name for name, part in identity.fingerprint(other).items() if part != parts[name]}
  assert differ(warped.world(camera=dataclasses.replace(camera, half_view=0.4))) == {'spatial'}
  assert differ(warped.world(count=1)) == {'spatial'}
  long_term, spatial = model.memories['long_term'], model.memories['spatial']
  change = lambda **memories: dataclasses.replace(model, memories={**model.memories, **memories})
  assert differ(change(spatial=spatial.replace(baseline='base'))) == {'spatial'}
  assert differ(change(long_term=long_term.replace(
      spec=dataclasses.replace(long_term.spec, alpha=9.0)))) == {'long_term'}
  # How it is written and computed changes nothing of what is there.
  assert not differ(change(long_term=long_term.replace(
      optimizer=optax.adam(0.1), reading='merged',
      writing=dataclasses.replace(long_term.writing, steps=7))))


def test_a_description_is_json_and_restores_what_it_names():
  model = small.world(levels=(('spatial', composition.Interval(low=-2.0)),))
  described = identity.describe(model)
  assert described['levels'] == {'spatial': {'low': -2.0, 'high': None}}
  assert described['sampler'] == {'name': 'ddim', 'eta': 0.0, 'clip_x0': None}
  assert identity.describe(identity.restore(small.world(), described)) == described
