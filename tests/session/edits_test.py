"""Comparing, merging and forgetting, against what writing the same frames would have given."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import small
from tests.session import warped
from wmpoe import session
from wmpoe.experts import writing
from wmpoe.session import edits


@pytest.fixture
def later(seen):
  """Another session of the same place."""
  return seen.reset().observe(small.observation(2, 6, seed=9))


def test_diff_says_where_two_files_differ(seen, asked, tmp_path):
  seen.save(tmp_path / 'a.npz')
  dreamt, _ = seen.imagine(*asked)
  dreamt.save(tmp_path / 'b.npz', history=True)
  same = edits.diff(tmp_path / 'a.npz', tmp_path / 'a.npz')
  assert same['card'] == {} and set(same['state'].values()) == {0.0}
  found = edits.diff(tmp_path / 'a.npz', tmp_path / 'b.npz')
  assert {'imagined', 'history'} <= set(found['card']) <= {'imagined', 'history', 'created'}
  assert found['state']['long_term/lora'] == 0.0
  assert found['state']['recent'] > 0.1
  assert found['state']['long_term/history'] is None


def test_merged_maps_are_what_writing_one_after_the_other_gives(seen, later):
  merged = edits.merge(seen, later, how='average')
  both = seen.observe(small.observation(2, 6, seed=9))
  small.close(merged.state.memories['spatial'], both.state.memories['spatial'])
  small.differ(merged.state.memories['spatial'].features, later.state.memories['spatial'].features)
  assert not merged.writable
  assert merged.observed.tolist() == [12, 12]
  assert 'by average' in merged.lineage


def test_merged_adapters(seen, later):
  one, two = (s.state.memories['long_term'].lora for s in (seen, later))
  got = edits.merge(seen, later, how='average').state.memories['long_term'].lora
  small.close(got, jax.tree.map(lambda x, y: (x + y) / 2, one, two))


def test_rewriting_writes_both_histories(seen, later):
  merged = edits.merge(seen, later, how='rewrite')
  history = merged.state.memories['long_term'].history
  assert np.asarray(history.length).tolist() == [8, 8]  # what it can hold
  small.same(history.frames[:, 2:], small.observation(2, 6, seed=9).frames)
  assert np.asarray(merged.state.memories['long_term'].step).tolist() == [4, 4]
  assert merged.writable


def test_the_order_in_which_memories_were_composed_does_not_matter(seen):
  turned = seen.compose('base', *reversed(seen.model.memories))
  assert list(turned.state.memories) != list(seen.state.memories)
  small.same(edits.merge(seen, turned, how='average').state.memories,
             edits.merge(seen, seen, how='average').state.memories)


def test_forgetting_is_never_having_seen(seen):
  """The memory without frames 2 and 3 is the memory of the other four, bit for bit."""
  got = edits.forget(seen, 2, 4)
  assert got.observed.tolist() == [4, 4]
  assert got.lineage == ('forgot frames [2, 4) of 6',)
  rest = jax.tree.map(lambda x: jnp.concatenate([x[:, :2], x[:, 4:]], axis=1),
                      small.observation(2, 6))
  never = dataclasses.replace(seen.reset(), key=seen.key).observe(rest)
  small.same(got.state, never.state)


def test_pictures_and_depth_outlive_forgetting():
  """They are handed on as they are, not decoded out of latents."""
  seen = warped.observation()
  opened = session.Session.open(warped.world(), batch=2).observe(seen)
  rest = jax.tree.map(lambda x: np.concatenate([x[:, :2], x[:, 4:]], axis=1), seen)
  got = edits.forget(opened, 2, 4).state.memories['spatial']
  never = opened.reset().observe(rest).state.memories['spatial']
  small.same(got.pictures, never.pictures)
  small.same(got.inverse_depth, never.inverse_depth)


def test_what_cannot_be_done_is_named(seen, later, tmp_path, world, other):
  for span in ((-1, 2), (2, 2), (4, 7)):
    with pytest.raises(ValueError, match=r'the history holds frames \[0, 6\)'):
      edits.forget(seen, *span)
  with pytest.raises(ValueError, match='Nothing would remain'):
    edits.forget(seen, 0, 6)
  seen.save(tmp_path / 'm.npz')
  loaded = session.Session.load(tmp_path / 'm.npz', seen)
  for use in (lambda: edits.forget(loaded, 2, 4), lambda: edits.merge(loaded, later)):
    with pytest.raises(ValueError, match='does not hold the frames it was written from'):
      use()
  with pytest.raises(ValueError, match="Unknown way to merge 'add'"):
    edits.merge(seen, later, how='add')
  strange = session.Session.open(world(base=other[0]), batch=2)
  with pytest.raises(ValueError, match='The second memory is the memory of another model.'):
    edits.merge(seen, strange, how='average')
  single = session.Session.open(world(), batch=1)
  with pytest.raises(ValueError, match='The first holds 2 episodes of'):
    edits.merge(seen, single, how='average')


def test_what_the_history_lost_cannot_be_forgotten_alone_nor_kept(seen):
  longer = seen.observe(small.observation(2, 6, seed=9))
  assert small.WRITING.capacity == 8 and isinstance(small.WRITING, writing.Writing)
  with pytest.raises(ValueError, match=r'the history holds frames \[4, 12\)'):
    edits.forget(longer, 2, 5)
  less = edits.forget(longer, 10, 12)
  assert less.observed.tolist() == [6, 6]
  assert less.lineage[-1] == (
      'forgot frames [10, 12) of 12 and [0, 4), which the history no longer held')
  both = edits.merge(longer, seen)
  assert both.observed.tolist() == [14, 14]
  assert both.lineage[-1].startswith('without the first 4 and 0 frames')
