"""Folders of episodes: episode_00000.npz, episode_00001.npz, ... and spaces.json.

spaces.json says what all episodes of a folder have in common: environment, shapes, actions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import json
import os
import pathlib
import re
from typing import Any

from wmpoe import whole_file
from wmpoe.data import episode

SPACES = 'spaces.json'
_NAME = re.compile(r'episode_\d{5,}\.npz')


@dataclasses.dataclass(frozen=True)
class Progress:
  """One step of `collect`.

  Attributes:
    done: Episodes done with, this one among them.
    total: Episodes in all.
    path: Its file.
    written: False for a file found complete, and for an episode that could not be made.
    error: Why it could not be made.
  """

  done: int
  total: int
  path: pathlib.Path
  written: bool
  error: str = ''


def collect(
    out_dir: str | os.PathLike[str],
    make: Callable[[int], episode.Episode],
    *,
    episodes: int,
    spaces: Mapping[str, Any],
    overwrite: bool = False,
    names: Sequence[str] | None = None,
    keep_going: bool = False,
) -> Iterator[Progress]:
  """Writes episode_00000.npz ... and spaces.json; a second call finishes what the first began.

  The folder and spaces.json are made at once, the episodes as the iterator is consumed. One writer
  per folder.

  Args:
    out_dir: made if it does not exist.
    make: gives the i-th episode, always the same one.
    episodes: how many there shall be.
    spaces: what the episodes have in common; JSON.
    overwrite: delete the episodes found in the folder first.
    names: optional, of the episodes; a file found complete is left alone only if its meta has the
      same 'name'.
    keep_going: tell of an episode that cannot be made (`make` raises ValueError) and go on with
      the next, rather than raise. It has no file; the others keep their numbers.

  Returns:
    An iterator that writes one episode per step (or finds it complete), and tells the progress.

  Raises:
    ValueError: episodes < 1, or a folder that holds episodes of other spaces.
    OSError: the folder cannot be written.
  """
  if episodes < 1:
    raise ValueError(f'collect got episodes={episodes}; expected at least 1.')
  folder = _prepared(out_dir, spaces, overwrite)
  return _write_all(folder, make, episodes, names, keep_going)


def append(
    out_dir: str | os.PathLike[str], item: episode.Episode, index: int, *,
    spaces: Mapping[str, Any],
) -> pathlib.Path:
  """Writes one more episode of a folder that is made if it does not exist; returns its path.

  Raises:
    ValueError: an invalid episode, or a folder that holds episodes of other spaces.
    OSError: the folder cannot be written.
  """
  path = _prepared(out_dir, spaces, False) / f'episode_{index:05d}.npz'
  item.save(path)
  return path


def _prepared(
    out_dir: str | os.PathLike[str], spaces: Mapping[str, Any], overwrite: bool) -> pathlib.Path:
  """The folder with its spaces.json, made or found to be the same."""
  folder = pathlib.Path(out_dir)
  spaces = json.loads(json.dumps({'format': episode.FORMAT, 'version': episode.VERSION, **spaces}))
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise OSError(
        f'Cannot make the folder {folder}: {error.strerror or error}. Choose one that can be '
        'written.'
    ) from error
  old = files(folder)
  if overwrite:
    for path in old:
      path.unlink()
    (folder / SPACES).unlink(missing_ok=True)  # Last: episodes never stay behind without it.
  elif old and not (folder / SPACES).exists():
    raise ValueError(
        f'{folder} holds {len(old)} episodes but no {SPACES} that says which. Choose another '
        'folder, or overwrite (--overwrite) to delete them.'
    )
  if (folder / SPACES).exists():
    found = read_spaces(folder)
    differ = sorted(k for k in {*found, *spaces} if found.get(k) != spaces.get(k))
    if differ:
      raise ValueError(
          f'{folder / SPACES}: the folder holds episodes that differ in '
          + ', '.join(f'{k} ({found.get(k)!r}, asked for {spaces.get(k)!r})' for k in differ)
          + '. Choose another folder, or overwrite (--overwrite) to delete them.'
      )
  else:
    text = json.dumps(spaces, indent=2).encode()
    whole_file.write(folder / SPACES, text)
  return folder


def _write_all(
    folder: pathlib.Path, make: Callable[[int], episode.Episode], episodes: int,
    names: Sequence[str] | None, keep_going: bool,
) -> Iterator[Progress]:
  for i in range(episodes):
    path, error = folder / f'episode_{i:05d}.npz', ''
    complete = _complete(path, None if names is None else names[i])
    if not complete:
      try:
        item = make(i)
        episode.validate(item)
      except ValueError as caught:
        if not keep_going:
          raise
        path.unlink(missing_ok=True)  # what stood there is not this episode
        error = str(caught)
      else:
        item.save(path)
    yield Progress(
        done=i + 1, total=episodes, path=path, written=not complete and not error, error=error)


def _complete(path: pathlib.Path, name: str | None) -> bool:
  try:
    found = episode.Episode.load(path)
  except (FileNotFoundError, ValueError):
    return False
  return name is None or found.meta.get('name') == name


def read_spaces(folder: str | os.PathLike[str]) -> dict[str, Any]:
  """What the episodes of a folder have in common.

  Raises:
    FileNotFoundError: the folder has no spaces.json.
    ValueError: the file is damaged, or of another version.
  """
  path = pathlib.Path(folder) / SPACES
  try:
    spaces = json.loads(path.read_bytes())
  except (FileNotFoundError, NotADirectoryError) as error:
    raise FileNotFoundError(
        f'{path} does not exist; expected a folder of episodes in our format, as `python -m wmpoe '
        'collect`, `python -m wmpoe data convert` or an EpisodeRecorder writes it.'
    ) from error
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{path} is not JSON ({error}); collect the episodes again.') from error
  if not isinstance(spaces, dict) or spaces.get('version') != episode.VERSION or (
      spaces.get('format', episode.FORMAT) != episode.FORMAT):
    raise ValueError(
        f'{path} is not of {episode.FORMAT!r} version {episode.VERSION}; collect the episodes '
        'again.'
    )
  return spaces


def files(folder: str | os.PathLike[str]) -> list[pathlib.Path]:
  """The files of a folder that are named like episodes, in order."""
  return sorted(p for p in pathlib.Path(folder).iterdir() if _NAME.fullmatch(p.name))


def report(paths: Sequence[pathlib.Path], bad: Mapping[pathlib.Path, str]) -> str:
  """How many files are good, and every bad one by name with what is wrong."""
  lines = [f'Episodes: {len(paths)}, bad files left out: {len(bad)}']
  return '\n'.join([*lines, *(f'  {message}' for message in bad.values())])
