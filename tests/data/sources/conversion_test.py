import dataclasses
import json

import numpy as np
import pytest

from wmpoe.data import episode
from wmpoe.data import folder
from wmpoe.data import spaces
from wmpoe.data.sources import conversion

CONTINUOUS = spaces.Spaces(
    environment='toy', frame=(4, 4), poses=spaces.PLANAR, fps=6.0,
    actions=spaces.Actions(kind='continuous', names=('a', 'b')))


@dataclasses.dataclass
class Source:
  """Episodes 'e0', 'e1', ...; those named in `faults` cannot be read."""

  names: list
  spaces: object = CONTINUOUS
  faults: dict = dataclasses.field(default_factory=dict)
  loaded: list = dataclasses.field(default_factory=list)

  def load(self, index):
    self.loaded.append(self.names[index])
    if self.names[index] in self.faults:
      raise self.faults[self.names[index]]
    rows = np.arange(10, dtype=np.float32).reshape(5, 2)
    return episode.Episode(
        frames=np.zeros((5, 4, 4, 3), np.uint8), actions=rows,
        poses=np.concatenate([rows, rows[:, :1]], axis=1), meta={'name': 'whatever', 'k': 1})


def _convert(source, out, **options):
  return list(conversion.convert(source, out, **options))


def test_options_change_what_they_say(tmp_path):
  options = conversion.Options(skip=2, action_scale=(1, 2), pose_scale=10, unit='cell')
  _convert(Source(['e0']), tmp_path, options=options)
  item = episode.Episode.load(tmp_path / 'episode_00000.npz')
  # Frames 0, 2, 4; the actions of both steps before, oldest first, the second number halved.
  np.testing.assert_allclose(item.actions, [[0, 0, 0, .5], [2, 1.5, 4, 2.5], [6, 3.5, 8, 4.5]])
  np.testing.assert_allclose(item.poses, [[0, .1, 0], [.4, .5, 4], [.8, .9, 8]])
  assert item.meta == {'environment': 'toy', 'name': 'e0', 'k': 1}
  found = folder.read_spaces(tmp_path)
  assert (found['frames']['fps'], found['actions']['dim'], found['poses']['unit']) == (3, 4, 'cell')
  assert spaces.from_json(found) == conversion.spaces_of(Source(['e0']), options)


def test_a_bad_episode_is_named_and_the_others_are_kept(tmp_path):
  source = Source(['e0', 'e1', 'e2'], faults={'e1': RuntimeError('a decoder\n died')})
  steps = _convert(source, tmp_path)
  assert [(s.written, s.error) for s in steps] == [
      (True, ''), (False, 'e1: a decoder died'), (True, '')]
  assert [p.name for p in folder.files(tmp_path)] == ['episode_00000.npz', 'episode_00002.npz']
  with pytest.raises(ValueError, match='e1: a decoder died'):
    _convert(source, tmp_path, strict=True)
  report = conversion.finish(tmp_path, converted=2, bad={'e1': 'x'}, about={'from': 'here'})
  assert json.loads(report.read_text()) == {'from': 'here', 'episodes': 2, 'bad': {'e1': 'x'}}


def test_the_same_command_goes_on_and_notices_other_files(tmp_path):
  running = conversion.convert(Source(['e0', 'e1']), tmp_path)
  next(running)
  running.close()
  source = Source(['e0', 'e1'])
  assert [s.written for s in _convert(source, tmp_path)] == [False, True]
  assert source.loaded == ['e1']
  # A file came in between: what stands at its number is another episode now.
  source = Source(['e0', 'e0b', 'e1'])
  assert [s.written for s in _convert(source, tmp_path)] == [False, True, True]
  names = [episode.Episode.load(p).meta['name'] for p in folder.files(tmp_path)]
  assert names == ['e0', 'e0b', 'e1']
  # What cannot be read any more does not stay behind under its number.
  _convert(Source(['e0', 'bad', 'e1'], faults={'bad': ValueError('x')}), tmp_path)
  assert [p.name for p in folder.files(tmp_path)] == ['episode_00000.npz', 'episode_00002.npz']
  with pytest.raises(ValueError, match='holds episode_00002.npz, more than the 1 episodes'):
    _convert(Source(['e0']), tmp_path)


@pytest.mark.parametrize(('source', 'options', 'message'), [
    (Source([]), {}, 'no episodes'),
    (Source(['a', 'a']), {}, 'same name'),
    (Source(['a']), {'action_scale': (1, 2, 3)}, 'action_scale has 3 numbers for 2 continuous'),
    (Source(['a'], spaces=dataclasses.replace(CONTINUOUS, poses=spaces.Poses())),
     {'pose_scale': 2}, "these are of kind 'none'"),
])
def test_impossible_wishes_are_refused_before_anything_is_written(
    tmp_path, source, options, message):
  with pytest.raises(ValueError, match=message):
    _convert(source, tmp_path / 'out', options=conversion.Options(**options))
  assert not (tmp_path / 'out').exists()


def test_options_and_helpers_refuse_nonsense():
  with pytest.raises(ValueError, match='skip=0'):
    conversion.Options(skip=0)
  with pytest.raises(ValueError, match='positive scales'):
    conversion.Options(pose_scale=float('nan'))
  with pytest.raises(ValueError, match='action 2 in row 1; expected 0 to 1'):
    conversion.one_hot(np.array([0, 2]), 2)
  np.testing.assert_array_equal(conversion.led_to(np.array([[1.0], [2.0]])), [[0], [1], [2]])
