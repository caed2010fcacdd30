"""Tests of the input pipeline: order, shares, and resuming to the exact next batch."""

import json

import numpy as np
import pytest

from wmpoe.data import cards
from wmpoe.data import pipeline

CONFIG = cards.CardsConfig(length=20)
CLIP = cards.RandomClip(CONFIG, context=2, target=3)


class Numbers:
  """A source whose elements are their own indices."""

  def __init__(self, size):
    self.size = size

  def __len__(self):
    return self.size

  def __getitem__(self, index):
    return np.int64(index)


def _cards(**options):
  options = {'transform': CLIP, 'batch_size': 4, 'seed': 0, **options}
  return iter(pipeline.make_pipeline(cards.CardsSource(CONFIG, size=50), **options))


def _equal(a, b):
  return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def _take(iterator, number):
  return [next(iterator) for _ in range(number)]


def test_batches_have_the_promised_fields():
  batch = next(_cards())
  assert {name: (x.shape, x.dtype.name) for name, x in batch.items()} == {
      'frames': ((4, 5, 32, 32, 3), 'uint8'),
      'actions': ((4, 5, 7), 'float32'),
      'poses': ((4, 5, 2), 'float32'),
      'valid': ((4, 5), 'bool'),
  }


def test_the_seed_decides_everything():
  first, again, other = (_take(_cards(seed=seed), 3) for seed in (0, 0, 1))
  assert all(_equal(a, b) for a, b in zip(first, again, strict=True))
  assert not any(_equal(a, b) for a, b in zip(first, other, strict=True))


def test_threads_change_nothing():
  one, four = (_take(_cards(num_threads=n, prefetch=8 * n), 3) for n in (1, 4))
  assert all(_equal(a, b) for a, b in zip(one, four, strict=True))


@pytest.mark.parametrize('consumed', [0, 5, 14])
def test_restored_state_continues_with_the_identical_batches(consumed):
  iterator = _cards()
  _take(iterator, consumed)
  state = json.loads(json.dumps(iterator.get_state()))  # As a checkpoint would store it.
  expected = _take(iterator, 16)  # More than an epoch of 12 batches.
  fresh = _cards()
  fresh.set_state(state)
  assert all(_equal(a, b) for a, b in zip(expected, _take(fresh, 16), strict=True))
  assert consumed == 0 or not _equal(next(_cards()), expected[0])


def test_every_epoch_has_each_example_once_in_a_new_order():
  dataset = pipeline.make_pipeline(Numbers(12), batch_size=3, seed=0, epochs=2)
  batches = np.concatenate(list(dataset))
  assert sorted(batches[:12]) == sorted(batches[12:]) == list(range(12))
  assert batches[:12].tolist() != batches[12:].tolist()
  assert batches[:12].tolist() != list(range(12))


def test_clips_differ_between_epochs():
  def number_and_draw(element, rng):
    return {'index': element, 'draw': rng.random()}

  dataset = pipeline.make_pipeline(
      Numbers(4), transform=number_and_draw, batch_size=4, seed=0, epochs=3)
  draws = np.stack([batch['draw'][np.argsort(batch['index'])] for batch in dataset])
  assert len(np.unique(draws)) == 12


def test_without_shuffle_the_order_is_the_sources():
  dataset = pipeline.make_pipeline(Numbers(4), batch_size=2, seed=0, epochs=1, shuffle=False)
  assert np.concatenate(list(dataset)).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize('processes', [[[0, 1, 2], [3, 4, 5]], [[0, 3], [1, 4], [2, 5]]])
def test_global_batches_do_not_depend_on_the_number_of_processes(processes):
  def draw(element, rng):
    return {'index': element, 'draw': rng.integers(1000)}

  # Ten examples in batches of six: batches cross the ends of epochs, and processes are unequal.
  make = lambda rows: iter(pipeline.make_pipeline(
      Numbers(10), transform=draw, batch_size=6, seed=5, rows=rows))
  whole, parts = make(None), [make(rows) for rows in processes]
  for _ in range(5):
    batch, shares = next(whole), [next(part) for part in parts]
    for name in ('index', 'draw'):
      for rows, share in zip(processes, shares, strict=True):
        np.testing.assert_array_equal(share[name], batch[name][rows])
    assert all(part.get_state() == whole.get_state() for part in parts)
  # One process goes on from where several were.
  fresh = make(None)
  fresh.set_state(parts[1].get_state())
  assert _equal(next(fresh), next(whole))


def test_the_order_is_the_one_that_packaged_experts_were_trained_on():
  batches = iter(pipeline.make_pipeline(Numbers(10), batch_size=5, seed=5))
  assert np.concatenate(_take(batches, 3)).tolist() == [
      3, 9, 4, 8, 1, 0, 6, 5, 7, 2, 7, 6, 1, 5, 9]


def test_it_repeats_without_end_by_default():
  iterator = iter(pipeline.make_pipeline(Numbers(4), batch_size=3, seed=0))
  assert len(_take(iterator, 10)) == 10


@pytest.mark.parametrize(
    'options, message',
    [
        ({'rows': [1, 2]}, r'rows=\[1, 2\] of batch_size=2; expected at least one of 0 ... 1'),
        ({'rows': []}, r'rows=\[\] of batch_size=2'),
        ({'batch_size': 0}, 'batch_size=0 and 4 examples'),
        ({'batch_size': 5, 'epochs': 1}, 'batch_size=5 and 4 examples'),
    ],
)
def test_impossible_requests_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    pipeline.make_pipeline(Numbers(4), **{'batch_size': 2, 'seed': 0, **options})
