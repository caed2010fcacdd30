"""A run's folder: where it is, whose it is, and the configuration it holds.

It is a local path or one of an object store (gs://...), which `etils.epath` treats alike.
"""

from collections.abc import Collection, Mapping
import json
import os
from typing import Any

from etils import epath  # comes with orbax, whose paths these are

from wmpoe import whole_file

CONFIG = 'config.json'


def prepare(workdir: str | os.PathLike[str]) -> epath.Path:
  """Makes the folder and checks that it can be written to; returns its absolute path.

  Raises:
    OSError: naming the folder, if it cannot be made or written to.
    ImportError: for an object store whose client is not installed.
  """
  path = whole_file.anywhere(workdir)
  try:
    path.mkdir(parents=True, exist_ok=True)
    probe = path / f'.writable-{os.getpid()}'
    probe.write_text('')
    probe.unlink()
  except ImportError as error:
    raise ImportError(
      f"The output folder {path} is on an object store whose client is missing ({error}). For "
      "gs://: pip install -e '.[gcs]'"
    ) from error
  except OSError as error:
    raise OSError(
      f'The output folder {path} cannot be written to ({error.strerror or error}). Expected a '
      'folder that can be made and written: choose another workdir or change its permissions.'
    ) from error
  return path


def check_config(
  workdir: str | os.PathLike[str],
  config: Mapping[str, Any],
  *,
  may_differ: Collection[str] = (),
) -> None:
  """Writes config.json, or checks that the one there is of the same run.

  Args:
    workdir: the run's folder.
    config: JSON-able, nested mappings allowed.
    may_differ: dotted names of keys (or of whole groups) that a resumed run may change.

  Raises:
    ValueError: listing every key that differs, with both values.
  """
  path = whole_file.anywhere(workdir) / CONFIG
  new = json.loads(json.dumps(config))
  if path.exists():
    old_flat = _flatten(json.loads(path.read_text()))
    new_flat = _flatten(new)
    missing = '(absent)'
    different = [
      f'  {key}: {old_flat.get(key, missing)!r} there, {new_flat.get(key, missing)!r} now'
      for key in sorted(old_flat.keys() | new_flat.keys())
      if old_flat.get(key, missing) != new_flat.get(key, missing)
      and not any(key == name or key.startswith(name + '.') for name in may_differ)
    ]
    if different:
      raise ValueError(
        f'{workdir} holds a run of another configuration. Keys that differ:\n'
        + '\n'.join(different)
        + '\nGive another workdir, or the values it was started with to continue it.'
      )
  temporary = path.with_suffix('.json.tmp')
  temporary.write_text(json.dumps(new, indent=2, sort_keys=True) + '\n')
  temporary.replace(path)


def _flatten(tree: Any, prefix: str = '') -> dict[str, Any]:
  if not isinstance(tree, dict) or not tree:
    return {prefix: tree}
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    flat |= _flatten(value, f'{prefix}.{key}' if prefix else str(key))
  return flat
