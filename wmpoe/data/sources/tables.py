"""Tables of actions and poses beside pictures: CSV, or JSON. One row per frame.

Columns: `action` (a name or a whole number: discrete), or `action_*` / `action.*` (numbers:
continuous); and optionally `x`, `y`, `heading` (planar; or `heading_degrees`), `row`, `column`
(grid) or `pose_*` / `pose.*` (vector). JSON is a list of such rows, or an object of such columns.
"""

from collections.abc import Sequence
import csv
import dataclasses
import io
import json
import math
import os
import pathlib
from typing import Any

import numpy as np

from wmpoe.data import spaces as spaces_lib

_MOST_BYTES = 256 << 20


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
  """One episode's conditions.

  Attributes:
    path: Where it stands.
    labels: Of the discrete actions [T], as text, or empty.
    actions: Continuous ones, float32 [T A].
    action_names: Of those.
    poses: float32 [T P].
    pose_kind: See `spaces.POSE_NAMES`.
    pose_names: Of the numbers.
  """

  path: pathlib.Path
  labels: tuple[str, ...]
  actions: np.ndarray
  action_names: tuple[str, ...]
  poses: np.ndarray
  pose_kind: str
  pose_names: tuple[str, ...]

  @property
  def length(self) -> int:
    """T."""
    return len(self.labels) or len(self.actions)


def read(path: str | os.PathLike[str]) -> Table:
  """Reads one table.

  Raises:
    FileNotFoundError: no such file.
    ValueError: neither CSV nor JSON, no rows, no action columns, both kinds of actions, rows of
      different length, something that is no finite number; names the file, the frame and the
      column.
  """
  path = pathlib.Path(path)
  size = path.stat().st_size
  if size > _MOST_BYTES:
    raise ValueError(f'{path}: {size:,} bytes; a table of at most {_MOST_BYTES:,} is read.')
  try:
    text = path.read_bytes().decode('utf-8-sig')
    columns = _from_json(text) if path.suffix == '.json' else _from_csv(text)
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1 or not all(lengths.values()):
      raise ValueError(f'columns of lengths {lengths or "none"}; expected one row per frame.')
    return _table(path, columns)
  except (ValueError, csv.Error, RecursionError) as error:
    raise ValueError(f'{path}: {" ".join(str(error).split())[:400]}') from error


def _from_csv(text: str) -> dict[str, list[Any]]:
  rows = list(csv.reader(io.StringIO(text, newline='')))
  if not rows:
    raise ValueError('an empty table; expected a line of column names and a row per frame.')
  names = [name.strip() for name in rows[0]]
  if len(set(names)) < len(names):
    raise ValueError(f'the column names {names} repeat.')
  for frame, row in enumerate(rows[1:]):
    if len(row) != len(names):
      raise ValueError(
          f'frame {frame} has {len(row)} values; expected {len(names)}, as the first line has.')
  return {name: [row[i].strip() for row in rows[1:]] for i, name in enumerate(names)}


def _from_json(text: str) -> dict[str, list[Any]]:
  value = json.loads(text)
  if isinstance(value, list):
    for frame, row in enumerate(value):
      if not isinstance(row, dict) or set(row) != set(value[0]):
        raise ValueError(f'frame {frame} is no object with the keys of the first; expected rows.')
    return {name: [row[name] for row in value] for name in (value[0] if value else ())}
  if isinstance(value, dict) and all(isinstance(column, list) for column in value.values()):
    return value
  raise ValueError('expected a list of rows, or an object of columns.')


def _table(path: pathlib.Path, columns: dict[str, list[Any]]) -> Table:
  part = lambda stem: tuple(n for n in columns if n.startswith((f'{stem}_', f'{stem}.')))
  labels, continuous = columns.get('action'), part('action')
  if (labels is None) == (not continuous):
    raise ValueError(
        f'the columns are {sorted(columns)[:20]}; expected either action (discrete) or action_NAME '
        'for each number (continuous).')
  names: tuple[str, ...] = ()
  kind, degrees = 'none', False
  if part('pose'):
    kind, names = 'vector', part('pose')
  elif 'x' in columns and 'y' in columns:
    degrees = 'heading' not in columns
    kind, names = 'planar', ('x', 'y', 'heading_degrees' if degrees else 'heading')
    if names[2] not in columns:
      raise ValueError('columns x and y but no heading; expected all three of a planar pose.')
  elif 'row' in columns and 'column' in columns:
    kind, names = 'grid', ('row', 'column')
  length = len(next(iter(columns.values())))
  poses = _numbers(columns, names, length)
  if degrees:
    poses[:, 2] = np.deg2rad(poses[:, 2])
  return Table(
      path=path, labels=() if labels is None else tuple(map(_label, range(length), labels)),
      actions=_numbers(columns, continuous, length), action_names=tuple(n[7:] for n in continuous),
      poses=poses, pose_kind=kind,
      pose_names=spaces_lib.POSE_NAMES[kind] or tuple(n[5:] for n in names))


def _label(frame: int, value: Any) -> str:
  if isinstance(value, bool) or not isinstance(value, (str, int)) or value == '':
    raise ValueError(f"column 'action' is {str(value)[:40]!r} in frame {frame}; expected a name or "
                     'a whole number.')
  return str(value)


def _numbers(columns: dict[str, list[Any]], names: Sequence[str], length: int) -> np.ndarray:
  out = np.zeros((length, len(names)), np.float32)
  for i, name in enumerate(names):
    for frame, value in enumerate(columns[name]):
      try:
        if isinstance(value, bool):
          raise ValueError
        number = float(value)
        if not math.isfinite(number) or abs(number) > 1e30:
          raise ValueError
      except (ValueError, TypeError, OverflowError):
        raise ValueError(
            f'column {name!r} is {str(value)[:40]!r} in frame {frame}; expected a finite number.'
        ) from None
      out[frame, i] = number
  return out


def action_names(tables: Sequence[Table]) -> tuple[str, ...]:
  """Names of the discrete actions of all tables: 0, 1, ... if all are whole numbers, else sorted.

  Raises:
    ValueError: negative or huge numbers.
  """
  found = {label for table in tables for label in table.labels}
  try:
    numbers = [int(label) for label in found]
  except ValueError:
    return tuple(sorted(found))
  if min(numbers) < 0 or max(numbers) > 1000:
    raise ValueError(
        f'Actions from {min(numbers)} to {max(numbers)}; expected 0 to at most 1000: give their '
        'names with --actions=NAME,NAME,...')
  return tuple(str(i) for i in range(max(numbers) + 1))
