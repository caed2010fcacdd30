"""The finished parts of a long measurement: one that is killed resumes from them."""

from collections.abc import Callable, Iterable
import hashlib
import io
import json
import pathlib
import re
import shutil
import time
from typing import Any
import zipfile

from flax import traverse_util
import jax
import numpy as np

from wmpoe import archive
from wmpoe import whole_file

# Nested dicts of arrays.
Found = dict[str, Any]
_SECONDS = 'seconds it took'


def fingerprint(settings: Any, arrays: Any) -> str:
  """Says in 12 letters what is measured: settings (JSON types), and all leaves of a pytree."""
  leaves = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(arrays))}
  said = json.dumps([settings, archive.digest_of(leaves)], sort_keys=True, default=str)
  return hashlib.sha256(said.encode()).hexdigest()[:12]


class Kept:
  """A folder of named parts of a measurement.

  Attributes:
    folder: Where the parts are; None keeps nothing.
    writes: Whether new parts are written: in a pod, by process 0.
    seconds: What it took to measure the parts that had not to be measured again.
  """

  def __init__(self, folder: pathlib.Path | None = None, *, writes: bool = True):
    self.folder, self.writes, self.seconds = folder, writes, 0.0

  def once(self, name: str, measure: Callable[[], Found]) -> Found:
    """The part of this name: as it was kept, or measured now and kept.

    Raises:
      ValueError: if the kept file is damaged; the message says what to remove.
      OSError: if it cannot be written.
    """
    if self.folder is None:
      return measure()
    path = self._path(name)
    if path.is_file():
      try:
        with np.load(path) as file:
          arrays = dict(file)
        self.seconds += float(arrays.pop(_SECONDS))
        return traverse_util.unflatten_dict(arrays, sep='/')
      except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f'{path}, kept from a run that was stopped, cannot be read ({error}); '
                         'remove it to measure that part again.') from error
    begun = time.monotonic()
    found = measure()
    if self.writes:
      data = io.BytesIO()
      flat: dict[str, Any] = traverse_util.flatten_dict(found, sep='/')
      np.savez(data, **{**flat, _SECONDS: time.monotonic() - begun})
      whole_file.write(path, data.getvalue())
    return found

  def missing(self, names: Iterable[str]) -> list[str]:
    """Those of the names that are still to be measured."""
    return [n for n in names if self.folder is None or not self._path(n).is_file()]

  def parts(self) -> int:
    """How many parts are there already."""
    return 0 if self.folder is None else len(list(self.folder.glob('*.npz')))

  def clear(self) -> None:
    """Removes the folder: the result they were for is written."""
    if self.folder is not None and self.writes:
      shutil.rmtree(self.folder, ignore_errors=True)

  def _path(self, name: str) -> pathlib.Path:
    assert self.folder is not None
    return self.folder / (re.sub(r'[^A-Za-z0-9]+', '_', name) + '.npz')


NOWHERE = Kept()
