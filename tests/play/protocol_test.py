"""What the page may say, and nothing else."""

import json

import pytest

from wmpoe.play import protocol

_KNOWN = protocol.commands(('spatial',), ('mean',), ('ddim', 'heun'))


@pytest.mark.parametrize(('said', 'args'), [
    ({'do': 'keys', 'held': ['up', 'left', 'up']}, {'held': ('up', 'left')}),
    ({'do': 'weight', 'expert': 'spatial', 'value': 1.25}, {'expert': 'spatial', 'value': 1.25}),
    ({'do': 'steps', 'value': 50}, {'value': 50}),
    ({'do': 'overlay', 'on': True}, {'on': True}),
    ({'do': 'save'}, {}),
])
def test_commands_come_through(said, args):
  assert protocol.parse(json.dumps(said), _KNOWN) == protocol.Command(said['do'], args)


@pytest.mark.parametrize(('said', 'message'), [
    (b'{}', 'Expected a text message.'),
    ('', 'Expected JSON.'),
    ('[' * 1000, 'Expected JSON.'),
    ('[1]', 'Expected an object with "do".'),
    ('{"do": 3}', 'Expected an object with "do".'),
    ('{"do": "rm"}', "There is no 'rm'; expected one of keys, tap"),
    ('{"do": "save", "path": "../x"}', r"save takes nothing; got \['path'\]"),
    ('{"do": "weight", "expert": "spatial"}', 'weight takes expert, value; got'),
    ('{"do": "weight", "expert": "base", "value": 1}', "weight.expert is 'base': expected one"),
    ('{"do": "weight", "expert": "spatial", "value": NaN}', 'weight.value is nan: expected a'),
    ('{"do": "weight", "expert": "spatial", "value": 1e999}', 'weight.value is inf: expected a'),
    ('{"do": "weight", "expert": "spatial", "value": true}', 'weight.value is True: expected a n'),
    ('{"do": "steps", "value": 1.5}', 'steps.value is 1.5: expected a whole number from 1 to 50'),
    ('{"do": "steps", "value": 51}', 'from 1 to 50'),
    ('{"do": "steps", "value": 1' + '0' * 900 + '}', 'from 1 to 50'),
    ('{"do": "keys", "held": "up"}', 'keys.held is .up.: expected a list of up, down'),
    ('{"do": "keys", "held": [["up"]]}', 'expected a list of up, down'),
    ('{"do": "rule", "name": ["mean"]}', r"rule.name is \['mean'\]: expected one of mean"),
    ('{"do": "pause", "on": 1}', 'pause.on is 1: expected true or false'),
    ('{"do": "save", "x": "' + 'y' * 1024 + '"}', 'A message is at most 1024 bytes.'),
    ('"' + '\u20ac' * 400 + '"', 'A message is at most 1024 bytes.'),
])
def test_everything_else_is_answered_in_words(said, message):
  with pytest.raises(ValueError, match=message) as error:
    protocol.parse(said, _KNOWN)
  assert len(str(error.value)) < 600
