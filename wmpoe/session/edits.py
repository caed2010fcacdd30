"""Operations on memories: compare two, merge two, forget a span of one."""

from collections.abc import Mapping, Sequence
import dataclasses
import os
from typing import Any

import jax
import numpy as np

from wmpoe.data import episode
from wmpoe.experts import point_maps
from wmpoe.networks import lora
from wmpoe.session import identity
from wmpoe.session import live
from wmpoe.session import memory_file

HOW = (*lora.COMBINED, 'rewrite')


def _part(path: str) -> str:
  """The part of a state that a leaf belongs to: of a memory, name and field."""
  steps = path.split('/')
  return '/'.join(steps[1:3] if steps[0] == 'memories' else steps[:1])


def sizes(leaves: Mapping[str, Any]) -> dict[str, int]:
  """Bytes in memory of each part of a state of arrays or shapes, by three steps of the path."""
  out: dict[str, int] = {}
  for path, leaf in leaves.items():
    part = _part(path)
    out[part] = out.get(part, 0) + leaf.size * leaf.dtype.itemsize
  return out


def diff(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> dict[str, Any]:
  """How two memory files differ.

  Returns:
    'card': fields of the cards that differ, as pairs; 'state': for each part, the relative
    difference `|x - y| / |x|` of all its leaves, None where shapes differ or one lacks the part.

  Raises:
    ValueError: if a file is damaged or no memory file.
  """
  (one, card), (two, other) = memory_file.read(first), memory_file.read(second)
  told = {name: (card[name], other.get(name)) for name in memory_file.KIND.fields
          if card[name] != other.get(name)}
  squares: dict[str, Any] = {}
  for path in sorted({*one, *two}):
    part = _part(path)
    x, y = one.get(path), two.get(path)
    change, size = squares.get(part) or (0.0, 0.0)
    if x is None or y is None or x.shape != y.shape or squares.get(part, ()) is None:
      squares[part] = None
      continue
    x, y = x.astype(np.float64), y.astype(np.float64)
    squares[part] = change + np.square(x - y).sum(), size + np.square(x).sum()
  state = {
      part: None if pair is None else float((pair[0] / pair[1]) ** 0.5) if pair[1] else
      float('inf') if pair[0] else 0.0 for part, pair in squares.items()}
  return {'card': told, 'state': state}


def merge(first: live.Session, second: live.Session, *, how: str = 'rewrite') -> live.Session:
  """Merges two sessions that remember the same place; the second counts as the later one.

  Each memory merges in its own way: rings are the second's, maps are united by recency, adapters
  are combined as `how` says, an entry of `HOW`. 'average' and 'concatenate' combine the weights as
  they are (see `lora.combine`); the result can be read, not written to. 'rewrite' writes all
  memories again from both histories, one after the other: what was seen before they begin is lost,
  and the lineage tells how much.

  Raises:
    ValueError: for sessions of different models or batches, an unknown `how`, or one that needs
      histories which were not saved.
  """
  if how not in HOW:
    raise ValueError(f'Unknown way to merge {how!r}; expected one of {", ".join(HOW)}.')
  identity.check(first.parts, second.parts, where='The second memory')
  if first.batch != second.batch or set(first.state.memories) != set(second.state.memories):
    raise ValueError(
        f'The first holds {first.batch} episodes of {", ".join(first.state.memories) or "none"}, '
        f'the second {second.batch} of {", ".join(second.state.memories) or "none"}; expected the '
        'same in both.')
  lineage = (*first.lineage, 'merged with', *second.lineage, f'by {how}')
  together = dataclasses.replace(
      second, lineage=lineage, observed=first.observed + second.observed,
      imagined=first.imagined + second.imagined)
  if how == 'rewrite':
    seen = [_history(s) for s in (first, second)]
    lost = [int(s.observed[0]) - h.frames.shape[1]
            for s, h in zip((first, second), seen, strict=True)]
    if any(lost):
      together = dataclasses.replace(together, lineage=(*lineage, (
          f'without the first {lost[0]} and {lost[1]} frames, which the histories no longer held')))
    return _rewritten(together, seen, _steps(first) + _steps(second))
  memories = {}
  for name, memory in first.model.memories.items():
    if not hasattr(memory, 'merge'):
      raise ValueError(f'The memory {name!r} cannot merge two states; use how=rewrite.')
    memories[name] = memory.merge(first.state.memories[name], second.state.memories[name], how)
  return dataclasses.replace(
      together, state=dataclasses.replace(second.state, memories=memories),
      writable=not memory_file.only_for_writing(first.model))


def forget(session: live.Session, start: int, stop: int) -> live.Session:
  """The session without observed frames [start, stop), counted from the first one observed.

  All memories are written again from the remaining frames of the history, in as many inner steps as
  before; everything else in the state, including imagined frames, is lost. So is what was seen
  before the history begins, where more was observed than it holds: the lineage tells how much. The
  frames before and after the gap become neighbours.

  Raises:
    ValueError: if the memory was saved without its history, if the span is not in it, or if nothing
      would remain.
  """
  seen = _history(session)
  length, total = seen.frames.shape[1], int(session.observed[0])
  first = total - length
  if not first <= start < stop <= total:
    raise ValueError(
        f'Cannot forget frames [{start}, {stop}): the history holds frames [{first}, {total}).')
  if stop - start == length:
    raise ValueError('Nothing would remain; use reset() to start over.')
  told = f'forgot frames [{start}, {stop}) of {total}'
  if first:
    told += f' and [0, {first}), which the history no longer held'
  kept = np.r_[:start - first, stop - first:length]
  rest = jax.tree.map(lambda x: x[:, kept], seen)
  return _rewritten(dataclasses.replace(
      session, imagined=np.zeros(session.batch, np.int64),
      lineage=(*session.lineage, told)),
      [rest], _steps(session))


def _writer(session: live.Session) -> str:
  """Name of the memory whose state holds the history."""
  for name, state in session.state.memories.items():
    if hasattr(state, 'history') and session.writable:
      return name
  raise ValueError(
      'This memory does not hold the frames it was written from. To forget a span or to rewrite a '
      'memory, save it with history=True (and a long-term memory, which keeps the frames).')


def _history(session: live.Session) -> episode.Observation:
  """The encoded frames of the history, the same number for every episode.

  Raises:
    ValueError: if there is none, or if episodes differ in length.
  """
  history = session.state.memories[_writer(session)].history
  lengths = np.unique(np.asarray(history.length))
  if len(lengths) > 1 or len(np.unique(session.observed)) > 1 or not lengths[0]:
    raise ValueError(
        f'The histories of the {session.batch} episodes have {lengths.tolist()} frames; expected '
        'one length, above 0, for all of them.')
  length = int(lengths[0])
  cut = lambda x: x[:, :length]
  return episode.Observation(
      frames=cut(history.frames), actions=cut(history.actions), poses=cut(history.poses),
      **_pixels(session, length))


def _pixels(session: live.Session, length: int) -> dict[str, jax.Array]:
  """The last observed frames as pixels and their depth, if a memory of true frames holds them."""
  for name, state in session.state.memories.items():
    if name in session.model.follows or getattr(state, 'pictures', None) is None:
      continue
    size, count = state.pictures.shape[1], np.asarray(state.count)
    if length <= size and (count == session.observed).all():
      slots = np.arange(count[0] - length, count[0]) % size
      return {'pictures': state.pictures[:, slots],
              'depth': 1.0 / point_maps.from_bytes(state.inverse_depth[:, slots])}
  return {}


def _steps(session: live.Session) -> int:
  return int(np.max(session.state.memories[_writer(session)].step))


def _rewritten(
    session: live.Session, pieces: Sequence[episode.Observation], steps: int
) -> live.Session:
  """The session as if it had seen just these encoded frames, written in `steps` inner steps."""
  name, model = _writer(session), session.model
  state, key = live.init(model, session.batch), session.key
  for piece in pieces:
    state, key = live.write(model, state, piece, key)
  more = steps - int(np.max(state.memories[name].step))
  if more > 0:  # as long as before: it was written in more rounds
    key, use = jax.random.split(key)
    written = live.fit(model.memories[name], state.memories[name], use, more)
    state = dataclasses.replace(state, memories={**state.memories, name: written})
  total = sum(piece.frames.shape[1] for piece in pieces)
  return dataclasses.replace(
      session, state=state, key=key, observed=np.full(session.batch, total, np.int64))
