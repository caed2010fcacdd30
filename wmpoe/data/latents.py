"""The latent cache: episodes encoded once, kept with the hash of what encoded them.

A cache is a folder with one `NAME.npz` an episode (`latents` float16 [T h w C], `actions`, `poses`,
the `pictures` they are of, uint8 [T H W 3], their `depth` if it is known; no pickle) and
`latents.json`, which is written last: format, the encoder's sha256, the episodes, mean and standard
deviation of each channel, and how well frames are reconstructed. A cache of another encoder is
refused, never mixed in. Caches are written on this machine and read from there or from where they
were copied to, an object store (gs://...) among others.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import functools
import json
import os
import pathlib
from typing import Any

from etils import epath  # comes with orbax, whose paths these are
import numpy as np

from wmpoe import whole_file
from wmpoe.data import episode
from wmpoe.data import npz

INDEX = 'latents.json'
FORMAT = 'wmpoe.latents'
VERSION = 1
_FIELDS = ('latents', 'actions', 'poses')


def write(
    folder: str | os.PathLike[str],
    episodes: Iterable[tuple[str, episode.Episode, np.ndarray]],
    *,
    encoder: str,
    about: Mapping[str, Any],
) -> Iterator[str]:
  """Writes a cache, one episode per step of the returned iterator; the index comes last.

  Args:
    folder: Made if missing.
    episodes: `(name, episode, latents [T h w C])`; whatever `episode.meta` holds goes to the index.
    encoder: sha256 of the encoder, see `zoo.encoder_hash`.
    about: JSON-able facts for the index; read when the last episode is written, so that they may
      be gathered on the way.

  Raises:
    OSError: if the folder cannot be written.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / INDEX).unlink(missing_ok=True)  # What is about to change is no cache until it is whole.
  metas, sums = {}, np.zeros((3, 1))
  for name, item, latents in episodes:
    sums = sums + _sums(latents)
    arrays: dict[str, Any] = {
        'latents': np.asarray(latents, np.float16), 'actions': item.actions, 'poses': item.poses,
        'pictures': item.frames}
    if item.depth is not None:
      arrays['depth'] = item.depth
    save = functools.partial(np.savez_compressed, allow_pickle=False, **arrays)
    whole_file.write(folder / f'{name}.npz', save)
    metas[name] = item.meta
    yield name
  mean, std = _statistics(sums)
  index = {
      'format': FORMAT, 'version': VERSION, 'encoder': encoder, 'episodes': metas,
      'channel_mean': mean.tolist(), 'channel_std': std.tolist(), **about}
  text = json.dumps(index, indent=1).encode()
  whole_file.write(folder / INDEX, text)


def read_index(folder: str | os.PathLike[str], *, encoder: str | None = None) -> dict[str, Any]:
  """The index of a cache.

  Args:
    folder: The cache.
    encoder: If given, the sha256 of the encoder it must come from.

  Raises:
    FileNotFoundError: if the folder holds no complete cache.
    ValueError: if it comes from another encoder, or is of another format.
  """
  path = whole_file.anywhere(folder) / INDEX
  if not is_cache(folder):
    raise FileNotFoundError(
        f'{folder} holds no complete latent cache (no {INDEX}). Make it with '
        'python -m wmpoe encode --workdir=FOLDER ...')
  try:
    index = json.loads(path.read_bytes())
    kind = index['format'], index['version']
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f'{path} is damaged ({error!r}); encode the episodes again.') from error
  if kind != (FORMAT, VERSION):
    raise ValueError(f'{path} says format {kind}; this wmpoe reads {(FORMAT, VERSION)}.')
  if encoder is not None and index['encoder'] != encoder:
    raise ValueError(
        f'{folder} is a stale cache: its latents come from the encoder {index["encoder"][:12]}..., '
        f'this run uses {encoder[:12]}... . Encode the episodes again, into another folder.')
  return index


def read(
    folder: str | os.PathLike[str], *, encoder: str | None = None, pictures: bool = False
) -> list[episode.Episode]:
  """All episodes of a cache; their `frames` are latents, float16 [T h w C].

  Args:
    folder: The cache.
    encoder: If given, the sha256 of the encoder it must come from.
    pictures: Whether to read the pictures, too, as `more['pictures']`, and their depth.

  Raises:
    FileNotFoundError: if there is no complete cache, or a file of it is gone.
    ValueError: if it comes from another encoder, or a file is damaged; names it.
  """
  index, where = read_index(folder, encoder=encoder), whole_file.anywhere(folder)
  return [
      _read_one(where / f'{name}.npz', meta, pictures)
      for name, meta in index['episodes'].items()]


def is_cache(folder: str | os.PathLike[str]) -> bool:
  """Whether a folder holds a complete cache."""
  return (whole_file.anywhere(folder) / INDEX).exists()


def _read_one(path: epath.Path, meta: dict[str, Any], pictures: bool) -> episode.Episode:
  if not path.exists():
    raise FileNotFoundError(
        f'{path} is named in {INDEX} but is not there; encode the episodes again.')
  fields = npz.read(
      path, (*_FIELDS, *['pictures'] * pictures), what='a latent cache',
      remedy='encode the episodes again', optional=['depth'] * pictures)
  depth = fields.pop('depth', None)
  latents, actions, poses = (fields.pop(name) for name in _FIELDS)
  if (latents.ndim, actions.ndim, poses.ndim) != (4, 2, 2) or not (
      len(latents) == len(actions) == len(poses)):
    raise ValueError(
        f'{path} holds latents {latents.shape}, actions {actions.shape} and poses {poses.shape}; '
        'expected [T h w C], [T A], [T P] of one length. Encode the episodes again.')
  if any(len(x) != len(latents) for x in fields.values()):
    raise ValueError(
        f'{path} holds {len(latents)} latents and {len(fields["pictures"])} pictures; expected as '
        'many. Encode the episodes again.')
  if depth is not None and depth.shape != fields['pictures'].shape[:-1]:
    raise ValueError(
        f'{path} holds pictures {fields["pictures"].shape} and depth {depth.shape}; expected a '
        'number for every pixel. Encode the episodes again.')
  return episode.Episode(
      frames=latents, actions=actions, poses=poses, meta=meta, depth=depth, more=fields)


def channel_statistics(latents: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """Mean and standard deviation of each latent channel, float32 [C], over [M h w C] arrays."""
  mean, std = _statistics(sum(map(_sums, latents)))
  return mean.astype(np.float32), std.astype(np.float32)


def _sums(latents: np.ndarray) -> np.ndarray:
  """How many there are of each channel, their sum and that of their squares, float64 [3 C]."""
  flat = np.asarray(latents, np.float64).reshape(-1, np.shape(latents)[-1])
  return np.stack([np.full(flat.shape[1], len(flat)), flat.sum(0), np.square(flat).sum(0)])


def _statistics(sums: Any) -> tuple[np.ndarray, np.ndarray]:
  count, total, squares = sums
  mean = total / np.maximum(count, 1)
  return mean, np.sqrt(np.maximum(squares / np.maximum(count, 1) - mean**2, 0))
