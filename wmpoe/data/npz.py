"""Reads npz archives that anybody may have written: no pickle, and every fault named."""

from collections.abc import Sequence
import os
import pathlib
from typing import Any

import numpy as np

MOST_BYTES = 16 << 30  # of one archive when unpacked: more is no episode but a mistake or a trap


def read(
    path: str | os.PathLike[str], fields: Sequence[str], *, what: str, remedy: str,
    exact: bool = False, optional: Sequence[str] = (),
) -> dict[str, np.ndarray]:
  """The named arrays of an archive.

  Args:
    path: The file; whatever has `open(mode)`, an object store's path too, is opened by that.
    fields: Names of the arrays to read; others are left alone.
    what: What the file should be, for messages: 'an episode'.
    remedy: What to do about a bad one, for messages: 'write it again'.
    exact: Whether fields that are not named are an error.
    optional: Names of arrays to read where they are there.

  Raises:
    OSError: no such file, or one that cannot be opened.
    ValueError: no whole archive, one that is too large, fields that are missing or unknown, pickled
      or damaged arrays; names the file and the field.
  """
  known: Any = path if hasattr(path, 'open') else pathlib.Path(path)
  with known.open('rb') as file, _archive(file, f'{path}', f'expected {what}: {remedy}') as archive:
    found = archive.files
    missing = [name for name in fields if name not in found]
    unknown = sorted(set(found) - {*fields, *optional}) if exact else []
    if missing or unknown:
      raise ValueError(
          f'{path}: not {what}, '
          + ' and '.join([f'it has no {_listed(missing)}'] * bool(missing)
                         + [f'it has unknown fields {_listed(unknown)}'] * bool(unknown))
          + f'; expected {"exactly" if exact else "the fields"} {", ".join(fields)}, found '
          f'{", ".join(sorted(found)) or "none"}: {remedy}.')
    size = sum(entry.file_size for entry in archive.zip.infolist()) if archive.zip else 0
    if size > MOST_BYTES:
      raise ValueError(
          f'{path}: {size:,} bytes when unpacked; at most {MOST_BYTES:,} are read: cut it into '
          'several episodes.')
    chosen = [*fields, *(name for name in optional if name in found)]
    return {name: _field(archive, name, path, remedy) for name in chosen}


def _archive(file: Any, path: str, expected: str) -> np.lib.npyio.NpzFile:
  try:
    archive = np.load(file, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
      raise ValueError('it holds a single array')
  except OSError:
    raise
  except Exception as error:  # hostile bytes make zipfile and numpy raise whatever they like
    raise ValueError(f'{path}: not a whole npz archive ({_said(error)}); {expected}.') from error
  return archive


def _field(
    archive: np.lib.npyio.NpzFile, name: str, path: str | os.PathLike[str], remedy: str
) -> np.ndarray:
  try:
    array = archive[name]
    if not isinstance(array, np.ndarray):
      raise ValueError('it is no array')
    return array
  except Exception as error:
    if 'allow_pickle' in str(error):
      why = 'a pickled array, which could run code when read; save it as plain numbers'
    else:
      why = f'damaged ({_said(error)}); {remedy}'
    raise ValueError(f'{path}: field {name!r} is {why}.') from error


def _listed(names: Sequence[str]) -> str:
  return ', '.join(map(repr, names))


def _said(error: Exception) -> str:
  """The error on one line, of bounded length: messages quote what hostile files hold."""
  text = ' '.join(str(error).split()) or type(error).__name__
  return text if len(text) <= 200 else f'{text[:200]}...'
