"""Tests of the place field that is solved for, and of the long-term memory that starts from it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import small as tiny
from tests.experts import key_frames_test as small
from wmpoe.experts import long_term
from wmpoe.experts import place_field
from wmpoe.experts import writing
from wmpoe.networks import lora

RANK, CAPACITY = 4, 12
VIEWS = ((1, 0.0, 0.0), (2, 0.3, 0.3))
SPEC = lora.LoraSpec(rank=RANK, alpha=2.0, targets=('field',), table_scale=5.0)


@pytest.fixture(scope='module')
def params():
  """Random but for the field, which is zero as in every base."""
  tree = tiny.random_tree(jax.eval_shape(
      lambda key: small.MODEL.init(key, action_dim=2, pose_dim=3), jax.random.key(0)))
  tree['denoiser']['field'] = jnp.zeros_like(tree['denoiser']['field'])
  return tree


def regression(params, **changes):
  options = {'model': small.MODEL, 'rank': RANK, 'views': VIEWS, **changes}
  return place_field.Regression(
      params={'encoder': params['encoder'], 'map_embed': params['denoiser']['map_embed']},
      **options)


def memory(params, *, steps=0, **changes):
  options = {
      'spec': SPEC, 'regression': regression(params), 'optimizer': optax.adam(1e-2),
      'writing': writing.Writing(steps=steps, target=2, capacity=CAPACITY), **changes}
  return long_term.create(
      jax.random.key(0), small.DENOISER, params['denoiser'], action_dim=2, pose_dim=3, **options)


_append = jax.jit(lambda memory, state, seen: memory.append(state, seen))
_empty = jax.jit(lambda memory, state, query: memory.read(state, query).empty)


def part(seen, start, stop):
  return jax.tree.map(lambda x: x[:, start:stop], seen)


def test_rows_are_the_ridge_regression_of_what_the_reader_says(params):
  seen = small.observation(2, 6)
  solver = regression(params, views=((1, 0.0, 0.0),), ridge=1e-3)
  ours = memory(params, regression=solver)
  state = _append(ours, tiny.init(ours, 2), seen)
  # By hand, one episode at a time: the reader asked from where the frames were taken.
  there = jnp.ones((2, 6), bool)
  cells = jax.jit(small.MODEL.read)(params, seen.frames, seen.poses, there, seen.poses)
  tokens = np.asarray(cells @ params['denoiser']['map_embed']['kernel'], np.float64)
  keys = np.asarray(jax.jit(small.CODE)(seen.poses, seen.poses[:, 0])[..., -4:], np.float64)
  for episode in range(2):
    k, y = keys[episode], tokens[episode].reshape(6, -1)
    rows = np.linalg.solve(k.T @ k + 1e-3 * 6 * np.eye(RANK), k.T @ y)
    field = state.lora['field']
    written = np.asarray(SPEC.scale * field['a'][episode] @ field['b'][episode])
    np.testing.assert_allclose(written, rows, atol=1e-4)
  assert not np.any(state.step)


def test_a_few_views_are_believed_less(params):
  seen = small.observation(1, 6)

  def size(**options):
    ours = memory(params, regression=regression(params, **options))
    return np.abs(_append(ours, tiny.init(ours, 1), seen).lora['field']['b']).max()

  views = 6 * sum(kind[0] for kind in VIEWS)
  usual = size()
  assert size(few=views) == pytest.approx(usual, rel=1e-4), 'as many as are enough'
  # As with a ridge that is four times as large, where half of what would be enough is there.
  assert size(few=2 * views) == pytest.approx(size(ridge=4e-4), rel=1e-4)
  assert size(few=2 * views) < usual


def test_writing_frame_by_frame_sums_the_same_views(params):
  # With the picture itself alone to be read, when a view is asked does not matter.
  alone = dataclasses.replace(
      small.MODEL, retrieval=dataclasses.replace(small.MODEL.retrieval, count=1))
  ours = memory(params, regression=regression(params, model=alone, views=((1, 0.0, 0.0),)))
  seen = small.observation(2, 6)
  at_once = _append(ours, tiny.init(ours, 2), seen)
  state = tiny.init(ours, 2)
  for t in range(6):
    state = _append(ours, state, part(seen, t, t + 1))
  np.testing.assert_allclose(state.sums.gram, at_once.sums.gram, atol=1e-5)
  np.testing.assert_allclose(state.lora['field']['b'], at_once.lora['field']['b'], atol=1e-4)


def test_every_frame_has_the_same_views_however_many_come_at_once(params):
  ours, seen = memory(params), small.observation(2, 6)
  at_once, state = _append(ours, tiny.init(ours, 2), seen), tiny.init(ours, 2)
  for t in range(6):
    state = _append(ours, state, part(seen, t, t + 1))
  np.testing.assert_allclose(state.sums.gram, at_once.sums.gram, atol=1e-5)
  # ... and the next frame has others: seen twice, it adds another gram.
  twice = _append(ours, _append(ours, tiny.init(ours, 2), part(seen, 0, 1)), part(seen, 0, 1))
  first = _append(ours, tiny.init(ours, 2), part(seen, 0, 1))
  assert float(jnp.abs(twice.sums.gram - 2 * first.sums.gram).max()) > 1e-3


def test_what_the_ring_forgets_stays_in_the_sums(params):
  ours, seen = memory(params), small.observation(1, 20)
  state = _append(ours, _append(ours, tiny.init(ours, 1), part(seen, 0, 10)), part(seen, 10, 20))
  assert int(state.history.length[0]) == CAPACITY
  assert float(state.sums.count[0]) == 20 * 3  # views


def test_slots_of_the_history_that_hold_nothing_are_not_read(params):
  # Near the origin, where the poses of empty slots lie.
  seen = small.observation(2, 4)
  seen = dataclasses.replace(seen, poses=0.1 * seen.poses)
  roomy = memory(params)
  tight = memory(params, writing=writing.Writing(steps=0, target=2, capacity=4))
  rows = [_append(m, tiny.init(m, 2), seen).lora['field']['b'] for m in (roomy, tight)]
  np.testing.assert_allclose(rows[0], rows[1], atol=1e-4)


def test_an_episode_is_written_alike_in_any_batch(params):
  ours, seen = memory(params), small.observation(3, 5)
  together = _append(ours, tiny.init(ours, 3), seen)
  alone = _append(ours, tiny.init(ours, 1), jax.tree.map(lambda x: x[1:2], seen))
  np.testing.assert_allclose(together.lora['field']['b'][1], alone.lora['field']['b'][0], atol=1e-5)


def test_inner_steps_go_on_from_the_solution_and_stay(params):
  ours, seen = memory(params, steps=2), small.observation(1, 8)
  key = jax.random.key(1)
  solved = _append(ours, tiny.init(ours, 1), part(seen, 0, 5))
  trained = jax.jit(ours.fit)(solved, key)
  learned = trained.lora['field']['b'] - solved.lora['field']['b']
  assert float(jnp.abs(learned).max()) > 1e-3
  assert np.array_equal(trained.step, [2])
  more, plain = (_append(ours, s, part(seen, 5, 8)) for s in (trained, solved))
  np.testing.assert_allclose(
      more.lora['field']['b'] - plain.lora['field']['b'], learned, atol=1e-5)


def test_all_layers_can_be_finetuned_from_the_solution(params):
  low, seen = memory(params), small.observation(2, 5)
  whole = memory(params, steps=2, spec=dataclasses.replace(
      SPEC, full=True, targets=('field', 'query')))
  one, other = (_append(m, tiny.init(m, 2), seen) for m in (low, whole))
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 4, 2)), jnp.float32)
  query = small.query(2, 3, params)
  shown = lambda m, state: jax.jit(lambda s: m.read(s, query).positive(x, jnp.zeros((2, 3))))(state)
  assert np.array_equal(_empty(whole, tiny.init(whole, 2), query), [True, True])
  # Solved for, before any step: what the low-rank memory says.
  np.testing.assert_allclose(shown(whole, other), shown(low, one), atol=1e-4)
  assert not _empty(whole, other, query).any()
  tuned = jax.jit(whole.fit)(other, jax.random.key(1))
  layers = jax.tree_util.tree_leaves_with_path(tuned.lora)
  changed = [jax.tree_util.keystr(path) for (path, leaf), before in zip(
      layers, jax.tree.leaves(other.lora), strict=True) if (leaf != before).any()]
  assert len(changed) == len(layers) > 1, changed
  assert float(jnp.abs(shown(whole, tuned) - shown(whole, other)).max()) > 1e-3


def test_it_is_empty_until_something_is_seen(params):
  ours, query = memory(params), small.query(2, 3, params)
  read = jax.jit(ours.read)
  empty = read(tiny.init(ours, 2), query)
  assert np.array_equal(empty.empty, [True, True])
  # Of two episodes only the second has seen anything.
  other = _append(ours, tiny.init(ours, 2), small.observation(2, 5))
  mixed = jax.tree.map(lambda x, y: jnp.stack([x[0], y[1]]), tiny.init(ours, 2), other)
  contrast = read(mixed, query)
  assert np.array_equal(contrast.empty, [True, False])
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 3, 4, 4, 2)).astype(np.float32)
  says = jax.jit(lambda denoiser: denoiser(x, jnp.zeros((2, 3))))
  change = says(contrast.positive) - says(query.base)
  assert float(jnp.abs(change[1]).max()) > 1e-3 > float(jnp.abs(change[0]).max())


def test_merging_is_solving_for_what_both_have_seen(params):
  ours, seen = memory(params), small.observation(1, 10)
  first, second = (
      _append(ours, tiny.init(ours, 1), part(seen, *span)) for span in ((0, 5), (5, 10)))
  merge = jax.jit(lambda *states: ours.merge(*states, 'average'))
  merged = merge(first, second)
  expected = jax.jit(ours.regression.solve)(first.sums + second.sums)
  field = merged.lora['field']
  np.testing.assert_allclose(
      SPEC.scale * field['a'][0] @ field['b'][0], expected[0], atol=1e-5)
  # A memory that was saved for reading has no sums: adapters are all there is.
  bare = dataclasses.replace(second, sums=tiny.init(ours, 1).sums)
  averaged = merge(first, bare).lora['field']['b']
  np.testing.assert_allclose(
      averaged, (first.lora['field']['b'] + second.lora['field']['b']) / 2, atol=1e-6)


def test_what_cannot_be_solved_for_says_so(params):
  with pytest.raises(ValueError, match=r'rows is to be solved for; LoRA adapts query with rank 4'):
    memory(params, spec=dataclasses.replace(SPEC, targets=('query',)))
  with pytest.raises(ValueError, match=r'field of 4 rows .* with rank 2'):
    memory(params, spec=dataclasses.replace(SPEC, rank=2))
  with pytest.raises(ValueError, match='the base has 4 features of places. Lower the rank'):
    memory(params, spec=dataclasses.replace(SPEC, rank=9), regression=regression(params, rank=9))
  with pytest.raises(ValueError, match="the base is the spatial expert's own network"):
    memory(jax.tree.map(jnp.array, params), regression=regression(params))
  with pytest.raises(ValueError, match='steps=0 and no regression: nothing would be written'):
    memory(params, regression=None)
  with pytest.raises(ValueError, match='expected .how many, cells, radians.'):
    regression(params, views=((0, 0.3, 0.3),))
