"""Episodes: what a world model is shown, checked by one validator and kept in one file format.

Shapes: B episodes, T frames, H W pixels, A action and P pose dimensions.

An episode file is an npz archive without pickle: `frames`, `actions`, `poses`, `depth` if it is
known, and `meta`, UTF-8 JSON `{"format": "wmpoe.episode", "version": 1, "meta": {...}}` as bytes.
"""

from collections.abc import Sequence
import dataclasses
import json
import os
import pathlib
from typing import Any

import flax.struct
import jax
import numpy as np

from wmpoe import whole_file
from wmpoe.data import npz

FORMAT = 'wmpoe.episode'
VERSION = 1
_FIELDS = ('frames', 'actions', 'poses')


@flax.struct.dataclass
class Observation:
  """A batch of frames with the conditions that led to them; a pytree.

  Attributes:
    frames: uint8 [B T H W 3].
    actions: float32 [B T A]; action t is the one that LED to frame t.
    poses: float32 [B T P]; the pose AT frame t.
    pictures: the pixels, uint8 [B T H W 3], where frames are latents and both are at hand.
    depth: how far every pixel is along the optical axis, float32 [B T H W] in the units of the
      poses, infinite for the sky; None where it is not known.
  """

  frames: Any
  actions: Any
  poses: Any
  pictures: Any = None
  depth: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class Episode:
  """One episode in host memory.

  Attributes:
    frames: uint8 [T H W 3].
    actions: float32 [T A]; action t is the one that LED to frame t.
    poses: float32 [T P]; the pose AT frame t.
    meta: anything JSON can hold: where the episode comes from.
    depth: how far every pixel is, float32 [T H W], see `Observation`; None if it is not known.
    more: further arrays [T ...] of its frames by name, in memory only.
  """

  frames: np.ndarray
  actions: np.ndarray
  poses: np.ndarray
  meta: dict[str, Any] = dataclasses.field(default_factory=dict)
  depth: np.ndarray | None = None
  more: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

  @property
  def length(self) -> int:
    """T."""
    return self.frames.shape[0]

  def save(self, path: str | os.PathLike[str]) -> None:
    """Writes the episode; the file appears whole or not at all.

    Raises:
      ValueError: an invalid episode, or meta that JSON cannot hold.
      OSError: the folder cannot be written.
    """
    path = pathlib.Path(path)
    validate(self, where=f'{path}: ')
    try:
      header = json.dumps({'format': FORMAT, 'version': VERSION, 'meta': self.meta})
    except (TypeError, ValueError) as error:
      raise ValueError(f'{path}: meta is not JSON ({error}); use plain values.') from error
    meta = np.frombuffer(header.encode(), np.uint8)
    arrays = {name: getattr(self, name) for name in _FIELDS}
    if self.depth is not None:
      arrays['depth'] = self.depth
    whole_file.write(
        path, lambda file: np.savez_compressed(file, allow_pickle=False, **arrays, meta=meta))

  @staticmethod
  def load(path: str | os.PathLike[str], **expected: Any) -> 'Episode':
    """Reads and validates an episode.

    Args:
      path: a file written by `save`.
      **expected: what the reader needs, see `validate`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not an episode file, another version, a field that is missing, unknown or
        damaged, or contents that `validate` refuses; names the file and the field.
    """
    fields: dict[str, Any] = {**npz.read(
        path, (*_FIELDS, 'meta'), what='an episode file written by Episode.save',
        remedy='write it again', exact=True, optional=('depth',))}
    episode = Episode(**{**fields, 'meta': _parse(fields['meta'], path)})
    validate(episode, where=f'{path}: ', **expected)
    return episode


def _parse(raw: np.ndarray, path: str | os.PathLike[str]) -> dict[str, Any]:
  try:
    header = json.loads(raw.tobytes().decode())
    kind, version, meta = header['format'], header['version'], header['meta']
    if not isinstance(meta, dict):
      raise TypeError(f'meta is a {type(meta).__name__}')
  except (ValueError, TypeError, KeyError, RecursionError) as error:
    raise ValueError(f"{path}: field 'meta' is not an episode header ({error!r}).") from error
  if (kind, version) != (FORMAT, VERSION):
    raise ValueError(
        f"{path}: field 'meta' says format {kind!r} version {version!r}; this wmpoe reads "
        f'{FORMAT!r} version {VERSION}.'
    )
  return meta


def stack(episodes: Sequence[Episode], *, start: int = 0, stop: int | None = None) -> Observation:
  """Frames [start, stop) of B episodes as one batch, with depth if it is known of all of them.

  Raises:
    ValueError: no episodes, or episodes whose shapes differ.
  """
  if not episodes:
    raise ValueError('stack got no episodes; expected at least one.')
  fields = {}
  known = all(episode.depth is not None for episode in episodes)
  for name in (*_FIELDS, *['depth'] * known):
    arrays = [getattr(episode, name)[start:stop] for episode in episodes]
    shapes = sorted({array.shape for array in arrays})
    if len(shapes) > 1:
      raise ValueError(f'Episodes to stack have {name} of different shapes: {shapes}.')
    fields[name] = np.stack(arrays)
  return Observation(**fields)


# ----------------------------------------------------------------------------- validation


def validate(
    item: Observation | Episode,
    *,
    action_dim: int | None = None,
    pose_dim: int | None = None,
    frame_shape: Sequence[int] | None = None,
    min_length: int | None = None,
    where: str = '',
) -> None:
  """Checks a batch or an episode before anything is learned from it.

  Values are checked where they are known; of tracers (under jit) only shapes and dtypes are.

  Args:
    item: an `Observation` (with B) or an `Episode` (without).
    action_dim: the A that the model was trained with.
    pose_dim: the P that the model was trained with.
    frame_shape: (H, W) or (H, W, 3) that the model was trained with.
    min_length: fewest frames that will do.
    where: put before every message, such as a file name.

  Raises:
    ValueError: frames that are not uint8, conditions that are not float32 or not finite, depth
      that is not positive float32, a wrong rank, lengths that disagree, a dimension that does not
      fit, or too few frames.
  """
  batched = isinstance(item, Observation)
  for name, letters in (('frames', 'T H W 3'), ('actions', 'T A'), ('poses', 'T P')):
    array = getattr(item, name)
    layout = f'B {letters}' if batched else letters
    if not hasattr(array, 'shape') or not hasattr(array, 'dtype'):
      raise ValueError(
          f'{where}{name} is a {type(array).__name__}; expected an array [{layout}]: '
          'use np.asarray.'
      )
    if len(array.shape) != len(layout.split()):
      raise ValueError(
          f'{where}{name} has shape {tuple(array.shape)}; expected rank {len(layout.split())}, '
          f'[{layout}].' + _rank_hint(len(array.shape) - len(layout.split()), batched)
      )
  _check_frames(item.frames, where)
  for name in ('actions', 'poses'):
    check_condition(name, getattr(item, name), where, axis=int(batched))
  if item.depth is not None:
    _check_depth(item.depth, item.frames, where, axis=int(batched))
  lead = 2 if batched else 1
  leads = {name: tuple(getattr(item, name).shape[:lead]) for name in _FIELDS}
  if len(set(leads.values())) > 1:
    raise ValueError(
        f'{where}lengths disagree: '
        + ', '.join(f'{name} {"[B T]" if batched else "[T]"} {v}' for name, v in leads.items())
        + '; expected one action and one pose per frame (frame 0 has the action that led to it).'
    )
  for name, expected in (('actions', action_dim), ('poses', pose_dim)):
    given = getattr(item, name).shape[-1]
    if expected is not None and given != expected:
      raise ValueError(
          f'{where}{name} have {given} dimensions; the model was made for {expected}. Convert '
          'them, or load a model trained on this environment.'
      )
  shape = tuple(item.frames.shape[-3:])
  if frame_shape is not None and shape[: len(frame_shape)] != tuple(frame_shape):
    raise ValueError(
        f'{where}frames are {shape}; the model was made for {tuple(frame_shape)}. Resize them, '
        'or load a model trained at this size.'
    )
  length, least = item.frames.shape[lead - 1], 1 if min_length is None else min_length
  if length < least:
    raise ValueError(f'{where}{length} frames given; at least {least} are needed: give more.')


def _rank_hint(extra: int, batched: bool) -> str:
  if batched and extra == -1:
    return ' For one episode add the batch axis: x[None].'
  return ' Take the episodes apart: one Episode each.' if extra == 1 and not batched else ''


def _known(array: Any) -> bool:
  """Whether the values can be read here: no tracer, no mere shape, nothing on other hosts."""
  if isinstance(array, jax.Array):
    return not isinstance(array, jax.core.Tracer) and array.is_fully_addressable
  return isinstance(array, np.ndarray)


def _check_frames(frames: Any, where: str) -> None:
  if frames.shape[-1] != 3:
    raise ValueError(
        f'{where}frames have shape {tuple(frames.shape)}; expected 3 colours (RGB) on the last.'
    )
  if frames.dtype == np.uint8:
    return
  how = 'round and clip them to 0..255, then .astype(np.uint8)'
  found = ''
  if np.issubdtype(frames.dtype, np.floating):
    how = 'multiply by 255 if they lie in 0..1, round, then .astype(np.uint8)'
    if _known(frames) and frames.size:
      values = np.asarray(frames)
      low, high = float(values.min()), float(values.max())
      found = f' with values from {low:g} to {high:g}'
      if not np.isfinite(values).all():
        how = 'they hold NaN or infinity: find out where these come from'
      elif low < 0:
        how = 'they hold negative values: bring them to 0..255, round, then .astype(np.uint8)'
      elif high <= 1:
        how = 'multiply by 255, round, then .astype(np.uint8)'
      else:
        how = 'round, then .astype(np.uint8)'
  raise ValueError(f'{where}frames are {frames.dtype}{found}; expected uint8 in 0..255: {how}.')


def check_condition(name: str, array: Any, where: str = '', *, axis: int = 1) -> None:
  """Checks actions or poses alone, frames along `axis`.

  Raises:
    ValueError: not float32, or not finite; names the frame.
  """
  if array.dtype != np.float32:
    raise ValueError(
        f'{where}{name} are {array.dtype}; expected float32: use .astype(np.float32)'
        + (' (discrete actions as one-hot vectors).' if name == 'actions' else '.')
    )
  if _known(array):
    bad = np.argwhere(~np.isfinite(np.asarray(array)))
    if len(bad):
      raise ValueError(
          f'{where}{name} hold NaN or infinity in {len(bad)} places, first at index '
          f'{tuple(bad[0].tolist())}, in frame {bad[0, axis]}; expected finite numbers.'
      )


def _check_depth(depth: Any, frames: Any, where: str, *, axis: int) -> None:
  shape, dtype = (getattr(depth, name, None) for name in ('shape', 'dtype'))
  if shape != frames.shape[:-1] or dtype != np.float32:
    raise ValueError(
        f'{where}depth is {dtype or type(depth).__name__} {shape or ""}; expected float32 '
        f'{tuple(frames.shape[:-1])}, a number for every pixel of the frames: resize it, or leave '
        'it out.')
  if _known(depth):
    wrong = np.argwhere(~(np.asarray(depth) > 0.0))
    if len(wrong):
      raise ValueError(
          f'{where}depth holds NaN or numbers that are not positive in {len(wrong)} pixels, first '
          f'in frame {wrong[0, axis]}; expected distances in the units of the poses, and infinity '
          'where nothing is.')
