"""What the page may send: one JSON object per message, checked field by field before it is obeyed.

A client never sends a path, a file name or code: every name is from a fixed list, and every number
lies between two bounds.
"""

from collections.abc import Callable, Mapping
import dataclasses
import json
from typing import Any

MAX_BYTES = 1024
KEYS = ('up', 'down', 'left', 'right', 'space')
_SAID = 80  # characters of a client's own words in an answer


@dataclasses.dataclass(frozen=True)
class Command:
  """One thing to do, with its checked arguments."""

  do: str
  args: Mapping[str, Any]


def _choice(*names: str) -> Callable[[Any], Any]:
  def check(value):
    if not isinstance(value, str) or value not in names:
      raise ValueError(f'expected one of {", ".join(names)}')
    return value
  return check


def _number(low: float, high: float, *, whole: bool = False) -> Callable[[Any], Any]:
  def check(value):
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not (
        low <= value <= high):  # also what is no number at all
      raise ValueError(f'expected a {"whole " * whole}number from {low} to {high}')
    return value
  return check


def _switch(value: Any) -> bool:
  if not isinstance(value, bool):
    raise ValueError('expected true or false')
  return value


def _keys(value: Any) -> tuple[str, ...]:
  if not isinstance(value, list) or len(value) > len(KEYS) or not all(
      isinstance(key, str) and key in KEYS for key in value):
    raise ValueError(f'expected a list of {", ".join(KEYS)}')
  return tuple(dict.fromkeys(value))


def commands(
    experts: tuple[str, ...], rules: tuple[str, ...], samplers: tuple[str, ...]
) -> dict[str, dict[str, Callable[[Any], Any]]]:
  """The commands for a world with these experts: their fields, and how each is checked."""
  expert: Callable[[Any], Any] = _choice(*experts)
  on: dict[str, Callable[[Any], Any]] = {'on': _switch}
  return {
      'keys': {'held': _keys}, 'tap': {'key': _choice(*KEYS)},
      'weight': {'expert': expert, 'value': _number(0, 4)}, 'expert': {'expert': expert, **on},
      'rule': {'name': _choice(*rules)}, 'sampler': {'name': _choice(*samplers)},
      'steps': {'value': _number(1, 50, whole=True)}, 'chunk': {'value': _number(1, 8, whole=True)},
      'compare': on, 'overlay': on, 'remember': on, 'follow': on, 'run': on, 'pause': on,
      'mode': {'name': _choice('real', 'dream')},
      'step': {}, 'rewind': {'frames': _number(1, 300, whole=True)},
      'watch': {'frames': _number(1, 1000, whole=True)}, 'write': {}, 'forget': {},
      'fork': {}, 'branch': {'index': _number(0, 7, whole=True)},
      'save': {}, 'record': on, 'claim': {},
  }


def parse(
    text: Any, known: Mapping[str, Mapping[str, Callable[[Any], Any]]]
) -> Command:
  """The command in a message.

  Raises:
    ValueError: saying what was wrong, in words fit to be sent back.
  """
  if not isinstance(text, str):
    raise ValueError('Expected a text message.')
  if len(text.encode('utf-8', 'replace')) > MAX_BYTES:
    raise ValueError(f'A message is at most {MAX_BYTES} bytes.')
  try:
    said = json.loads(text)
  except (ValueError, RecursionError):
    raise ValueError('Expected JSON.') from None
  if not isinstance(said, dict) or not isinstance(said.get('do'), str):
    raise ValueError('Expected an object with "do".')
  do = said.pop('do')
  if do not in known:
    raise ValueError(f'There is no {_quoted(do)}; expected one of {", ".join(known)}.')
  fields = known[do]
  if set(said) != set(fields):
    raise ValueError(f'{do} takes {", ".join(fields) or "nothing"}; got {_quoted(sorted(said))}.')
  args = {}
  for name, check in fields.items():
    try:
      args[name] = check(said[name])
    except ValueError as error:
      raise ValueError(f'{do}.{name} is {_quoted(said[name])}: {error}.') from None
  return Command(do, args)


def _quoted(value: Any) -> str:
  text = ascii(value)
  return text if len(text) <= _SAID else text[:_SAID] + '...'
