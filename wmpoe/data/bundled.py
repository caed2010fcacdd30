"""A handful of held-out episodes that come with the package, for the demo."""

import pathlib

from wmpoe.data import episode

_FOLDER = pathlib.Path(__file__).parents[1] / 'bundled_episodes'


def episodes(name: str) -> list[episode.Episode]:
  """The bundled episodes of a world, for instance 'memory_maze'.

  Raises:
    FileNotFoundError: if none of that name are there.
  """
  found = sorted(_FOLDER.glob(f'{name}_*.npz'))
  if not found:
    raise FileNotFoundError(
        f'No episodes of {name!r} are bundled in {_FOLDER.name}/; name a folder of your own with '
        'python -m wmpoe eval --source=FOLDER.')
  return [episode.Episode.load(path) for path in found]
