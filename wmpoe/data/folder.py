"""Folders of episodes: episode_00000.npz, episode_00001.npz, ... and spaces.json.

spaces.json says what all episodes of a folder have in common: environment, shapes, actions.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import json
import os
import pathlib
import re
from typing import Any

from wmpoe.data import episode

SPACES = 'spaces.json'
_NAME = re.compile(r'episode_\d{5,}\.npz')


@dataclasses.dataclass(frozen=True)
class Progress:
  """One step of `collect`: `done` of `total`; `written` is False for a file found complete."""

  done: int
  total: int
  path: pathlib.Path
  written: bool


def collect(
    out_dir: str | os.PathLike[str],
    make: Callable[[int], episode.Episode],
    *,
    episodes: int,
    spaces: Mapping[str, Any],
    overwrite: bool = False,
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

  Returns:
    An iterator that writes one episode per step (or finds it complete), and tells the progress.

  Raises:
    ValueError: episodes < 1, or a folder that holds episodes of other spaces.
    OSError: the folder cannot be written.
  """
  if episodes < 1:
    raise ValueError(f'collect got episodes={episodes}; expected at least 1.')
  folder = pathlib.Path(out_dir)
  spaces = json.loads(json.dumps({'format': episode.FORMAT, 'version': episode.VERSION, **spaces}))
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise OSError(
        f'Cannot make the folder {folder}: {error.strerror or error}. Choose one that can be '
        'written.'
    ) from error
  old = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
  if overwrite:
    for path in old:
      path.unlink()
    (folder / SPACES).unlink(missing_ok=True)  # Last: episodes never stay behind without it.
  elif old and not (folder / SPACES).exists():
    raise ValueError(
        f'{folder} holds {len(old)} episodes but no {SPACES} that says which. Choose another '
        'folder, or overwrite=True to delete them.'
    )
  if (folder / SPACES).exists():
    found = read_spaces(folder)
    differ = sorted(k for k in {*found, *spaces} if found.get(k) != spaces.get(k))
    if differ:
      raise ValueError(
          f'{folder / SPACES}: the folder holds episodes that differ in '
          + ', '.join(f'{k} ({found.get(k)!r}, asked for {spaces.get(k)!r})' for k in differ)
          + '. Choose another folder, or overwrite=True to delete them.'
      )
  else:
    text = json.dumps(spaces, indent=2).encode()
    episode.write_atomically(folder / SPACES, lambda file: file.write(text))
  return _write_all(folder, make, episodes)


def _write_all(
    folder: pathlib.Path, make: Callable[[int], episode.Episode], episodes: int
) -> Iterator[Progress]:
  for i in range(episodes):
    path = folder / f'episode_{i:05d}.npz'
    complete = _complete(path)
    if not complete:
      make(i).save(path)
    yield Progress(done=i + 1, total=episodes, path=path, written=not complete)


def _complete(path: pathlib.Path) -> bool:
  try:
    episode.Episode.load(path)
  except (FileNotFoundError, ValueError):
    return False
  return True


def read_spaces(folder: str | os.PathLike[str]) -> dict[str, Any]:
  """What the episodes of a folder have in common.

  Raises:
    FileNotFoundError: the folder has no spaces.json.
    ValueError: the file is damaged, or of another version.
  """
  path = pathlib.Path(folder) / SPACES
  try:
    spaces = json.loads(path.read_text())
  except FileNotFoundError as error:
    raise FileNotFoundError(
        f'{path} does not exist; expected a folder written by `collect`.'
    ) from error
  except ValueError as error:
    raise ValueError(f'{path} is not JSON ({error}); collect the episodes again.') from error
  if not isinstance(spaces, dict) or spaces.get('version') != episode.VERSION:
    raise ValueError(
        f'{path} is not of {episode.FORMAT!r} version {episode.VERSION}; collect the episodes '
        'again.'
    )
  return spaces


class EpisodeFolder:
  """Random access to the episodes of a folder, for grain; each is validated when read."""

  def __init__(self, folder: str | os.PathLike[str], **expected: Any):
    """Lists a folder written by `collect`.

    Args:
      folder: the folder.
      **expected: what the reader needs, see `validate`.

    Raises:
      FileNotFoundError: no spaces.json, or no episode.
      ValueError: a damaged spaces.json.
    """
    self.spaces = read_spaces(folder)
    self._expected = expected
    self._paths = sorted(p for p in pathlib.Path(folder).iterdir() if _NAME.fullmatch(p.name))
    if not self._paths:
      raise FileNotFoundError(f'{folder} holds no episode_*.npz; collect some first.')

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, index: Any) -> episode.Episode:
    return episode.Episode.load(self._paths[index], **self._expected)
