"""Files that are there whole or not at all; paths of this machine and of object stores."""

from __future__ import annotations

from collections.abc import Callable, Iterable
import contextlib
import glob
import os
import pathlib
import re
import secrets
import time
from typing import Any

from etils import epath  # comes with orbax, whose paths these are

_ABANDONED = 3600.0  # seconds after which nobody writes to a file any more


def is_remote(path: str | os.PathLike[str]) -> bool:
  """Whether a path is one of an object store, 'gs://bucket/run', also with a slash lost."""
  return re.match(r'[A-Za-z][A-Za-z0-9+.-]+:/', os.fspath(path)) is not None


def anywhere(path: str | os.PathLike[str]) -> epath.Path:
  """The path made absolute, or one of an object store as it is.

  What the store's client remembers of it is forgotten, because others write there, too: it would go
  on listing what it listed before, and read no more of a file than there was.
  """
  if not is_remote(path):
    return epath.Path(os.path.abspath(path))
  with contextlib.suppress(ImportError):  # told, with what to install, by whoever uses the path
    epath.backend.fsspec_backend.fs(path).invalidate_cache()
  return epath.Path(path)


def local(path: str | os.PathLike[str]) -> pathlib.Path:
  """The path, if it is one of this machine's.

  Raises:
    ValueError: if it is an object store's, 'gs://...', of which a folder 'gs:' would be made here.
  """
  if is_remote(path):
    raise ValueError(
        f"'{os.fspath(path)}' is in an object store, where only training runs are kept: expected "
        'a path of this machine. Write here and copy the file there.')
  return pathlib.Path(path)


def free(folder: pathlib.Path, names: Iterable[str]) -> pathlib.Path:
  """The first of the names, without end, that nothing in the folder has."""
  taken = {path.name for path in folder.iterdir()}
  return folder / next(name for name in names if name not in taken)


def write(path: str | os.PathLike[str], content: bytes | Callable[[Any], Any]) -> pathlib.Path:
  """Writes a file, its folder if need be; a reader finds all of it, or what was there before.

  Args:
    path: The file.
    content: Its bytes, or a function that writes them to an open binary file.

  Returns:
    The path.

  Raises:
    OSError: The folder cannot be made or written, or the disk is full; says what to do.
    ValueError: An object store's path.
  """
  path = local(path)
  # In the same folder, since a rename is atomic only within one file system. The name ends as no
  # file of ours does: what a killed run leaves behind is never taken for a finished one.
  temporary = path.with_name(f'.{path.name}.{secrets.token_hex(4)}.tmp')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():  # a folder is not listed for each of its new files
      _sweep(path)
    with open(temporary, 'xb') as file:
      if callable(content):
        content(file)
      else:
        file.write(content)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except OSError as error:
    message = f'Cannot write {path} ({error.strerror or error}); choose a folder you may write to'
    raise type(error)(error.errno, message) from error
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink()
  return path


def _sweep(path: pathlib.Path) -> None:
  """Removes what killed runs left of earlier attempts to write a file."""
  for left in path.parent.glob(f'.{glob.escape(path.name)}.*.tmp'):
    with contextlib.suppress(OSError):
      if time.time() - left.stat().st_mtime > _ABANDONED:
        left.unlink()
