import dataclasses
import json

import numpy as np
import pytest

from wmpoe.data import cards
from wmpoe.data import episode
from wmpoe.data import spaces

DISCRETE = spaces.Actions(kind='discrete', names=('left', 'right', 'go'))
WORLD = spaces.Spaces(
    environment='toy', frame=(4, 6), actions=DISCRETE, poses=spaces.PLANAR, fps=5.0)


def _episode(**changes):
  fields = {
      'frames': np.zeros((5, 4, 6, 3), np.uint8), 'poses': np.zeros((5, 3), np.float32),
      'actions': np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1]], **changes}
  return episode.Episode(**fields)


def _with(array, index, value):
  array = array.copy()
  array[index] = value
  return array


def test_json_there_and_back():
  text = json.dumps({**WORLD.to_json(), 'format': 'wmpoe.episode', 'note': 'kept'})
  assert spaces.from_json(json.loads(text)) == WORLD
  assert (WORLD.frame_shape, WORLD.action_dim, WORLD.pose_dim) == ((4, 6, 3), 3, 3)


def test_repeated_actions_are_wider():
  twice = dataclasses.replace(WORLD, actions=dataclasses.replace(DISCRETE, repeat=2))
  assert twice.action_dim == 6
  assert spaces.from_json(twice.to_json()) == twice
  steps = np.zeros((5, 6), np.float32)
  steps[1:, 0] = steps[1:, 4] = 1
  twice.check(_episode(actions=steps))
  with pytest.raises(ValueError, match='actions are .* in frame 3 .1 such.*expected one-hot'):
    twice.check(_episode(actions=_with(steps, (3, 4), 0)))


def test_memory_cards_are_in_the_format():
  config = cards.CardsConfig()
  cards.spaces_of(config).check(cards.to_episode(cards.simulate(0, config, 'test'), config))


@pytest.mark.parametrize(('key', 'value', 'message'), [
    ('frames', {'shape': [4, 6]}, r'frames.shape is \[4, 6\]; expected \[H, W, 3\]'),
    ('frames', {'shape': [4, 0, 3]}, 'expected 1 to 4096 pixels'),
    ('frames', {'shape': [4, True, 3]}, 'frames.shape holds a bool'),
    ('frames', {'shape': [4, 6, 3], 'fps': -1}, 'frames.fps is -1.0'),
    ('frames', None, 'frames is a NoneType; expected an object'),
    ('actions', {'kind': 'odd', 'names': ['a']}, "actions.kind is 'odd'; expected one of discrete"),
    ('actions', {'kind': 'discrete', 'names': ['a', 'a']}, 'expected different names'),
    ('actions', {'kind': 'discrete', 'names': 'ab'}, 'actions.names is a str; expected a list'),
    ('actions', {'kind': 'discrete', 'names': ['a'], 'dim': 2}, 'actions.dim is 2; its names'),
    ('actions', {'kind': 'discrete', 'names': ['a'], 'repeat': 0}, 'actions.repeat is 0'),
    ('poses', {'kind': 'planar', 'names': ['x', 'y']}, "poses.names of kind 'planar'"),
    ('poses', {'kind': 'vector', 'names': []}, 'expected one per number'),
    ('environment', '', 'environment is a str; expected a text that is not empty'),
])
def test_what_makes_no_sense_is_named(key, value, message):
  with pytest.raises(ValueError, match=f'^there: .*{message}'):
    spaces.from_json({**WORLD.to_json(), key: value}, where='there: ')


def test_a_missing_key_is_named():
  value = WORLD.to_json()
  del value['actions']['kind']
  with pytest.raises(ValueError, match='actions.kind is missing'):
    spaces.from_json(value)


@pytest.mark.parametrize(('world', 'changes', 'message'), [
    (WORLD, {'actions': _with(_episode().actions, (3, 0), 0.5)},
     r'a.npz: actions are \[0.5, 0.0, 0.0\] in frame 3 \(1 such frames\); expected one-hot'),
    (WORLD, {'actions': _with(_episode().actions, 2, 0)}, 'in frame 2 .*all zero in frame 0 alone'),
    (WORLD, {'poses': _with(_episode().poses, (4, 1), np.nan)}, 'poses hold NaN.* in frame 4'),
    (WORLD, {'frames': np.zeros((5, 4, 4, 3), np.uint8)}, r'frames are \(4, 4, 3\)'),
    (dataclasses.replace(WORLD, poses=spaces.Poses()), {}, 'poses have 3 dimensions'),
    (dataclasses.replace(WORLD, poses=spaces.Poses(kind='grid', names=('row', 'column'))),
     {'poses': np.full((5, 2), 0.5, np.float32)}, 'poses are .* in frame 0 .*whole numbers'),
])
def test_a_bad_episode_is_told_by_file_field_and_frame(world, changes, message):
  with pytest.raises(ValueError, match=message):
    world.check(_episode(**changes), where='a.npz: ')


def test_nothing_may_have_led_to_the_first_frame_alone():
  WORLD.check(_episode(actions=_with(_episode().actions, 0, 0)))
