import jax
import numpy as np
import pytest

from wmpoe import sharding
from wmpoe.training import inputs

MESH = sharding.make_mesh({}, jax.devices()[:1])


class Counting:
  """Batches 0, 1, 2, ... up to an end; its position is the next one's number."""

  def __init__(self, end=9, rows=2):
    self.number, self._end, self._rows = 0, end, rows

  def __next__(self):
    if self.number == self._end:
      raise StopIteration
    self.number += 1
    return {'x': np.full((self._rows, 3), self.number - 1, np.float32)}

  def get_state(self):
    return {'next': self.number}

  def set_state(self, state):
    self.number = state['next']


def make(batches, *, batch_size=2, accumulate=1):
  return inputs.Inputs(batches, MESH, batch_size=batch_size, accumulate=accumulate)


def test_what_is_fetched_ahead_does_not_count_as_taken():
  batches = Counting()
  data = make(batches, batch_size=None)
  assert data.position == {'next': 0} and data.batch_size is None
  for number in range(3):
    batch = data.take()['x']
    np.testing.assert_array_equal(batch, number)
    assert isinstance(batch, jax.Array)
    assert batch.sharding == sharding.batch_sharding(MESH)
    data.fetch()
    data.fetch()  # One ahead, not two.
    assert batches.number == number + 2
    assert data.position == {'next': number + 1}
  assert data.batch_size == 2
  data.restore({'next': 1})
  np.testing.assert_array_equal(data.take()['x'], 1)


def test_the_end_of_the_data_is_met_again_when_the_batch_is_needed():
  data = make(Counting(end=1))
  data.take()
  for call in (data.fetch, data.take, data.take):
    with pytest.raises(StopIteration):
      call()
  assert data.position == {'next': 1}


@pytest.mark.parametrize(
  ('rows', 'options', 'message'),
  [
    (2, {'batch_size': 4}, r'leading axes \[\(2,\)\]: expected every one to be batch_size = 4'),
    (4, {'batch_size': 4, 'accumulate': 3}, 'batch_size = 4 does not divide into accumulate = 3'),
    (4, {'batch_size': None, 'accumulate': 3}, 'batch_size = 4 does not divide into accumulate'),
  ],
)
def test_batches_that_do_not_fit_are_refused(rows, options, message):
  with pytest.raises(ValueError, match=message):
    make(Counting(rows=rows), **options).take()


def test_a_batch_that_does_not_divide_over_the_mesh_is_refused():
  mesh = jax.sharding.AbstractMesh((2, 2, 1, 1), sharding.AXES)
  expected = 'batch_size = 6 does not divide over the mesh axis data x fsdp of size 4'
  with pytest.raises(ValueError, match=expected):
    inputs.Inputs(Counting(), mesh, batch_size=6, accumulate=1)
  with pytest.raises(ValueError, match='batch_size / accumulate = 2 does not divide'):
    inputs.Inputs(Counting(), mesh, batch_size=8, accumulate=4)
