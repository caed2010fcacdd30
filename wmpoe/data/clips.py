"""Training examples cut out of whole episodes: single frames, and clips with a history.

Episodes in memory, whatever their frames are: pixels or cached latents. For Memory Cards, which are
made on the fly, see `cards.RandomClip`; the fields are the same.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from wmpoe.data import episode


@dataclasses.dataclass(frozen=True, eq=False)
class EpisodeSource:
  """Random access to episodes in memory, for grain.

  Raises:
    ValueError: if there are none.
  """

  episodes: Sequence[episode.Episode]

  def __post_init__(self):
    if not self.episodes:
      raise ValueError('EpisodeSource got no episodes; expected at least one.')

  def __len__(self) -> int:
    return len(self.episodes)

  def __getitem__(self, index: Any) -> episode.Episode:
    return self.episodes[index]


@dataclasses.dataclass(frozen=True)
class RandomFrame:
  """Draws one frame of an episode, all equally likely. Called by grain as `random_map(...)`."""

  def __call__(self, item: episode.Episode, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns `{'frames': [H W D]}`, and what more the episode holds of the frame."""
    index = rng.integers(item.length)
    return {name: x[index] for name, x in {'frames': item.frames, **item.more}.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomClip:
  """Draws a clip of `context + target` frames, and frames of the same episode to remember.

  The first target frame is uniform such that all targets lie in the episode; context before frame 0
  is zeros with valid False. The history is drawn without replacement from the frames further than
  `gap` from the clip on either side, in random order: a memory that is keyed by place may be
  trained on what comes later as well as on what came before.

  Attributes:
    context: C.
    target: G.
    history: h frames given as `history_*`, padded with invalid ones where an episode has fewer.
    gap: Frames next to the clip that are not in its history.

  Raises:
    ValueError: if the numbers are impossible, or (when called) the episode is too short.
  """

  context: int
  target: int
  history: int = 0
  gap: int = 0

  def __post_init__(self):
    if self.context < 0 or self.target < 1 or self.history < 0 or self.gap < 0:
      raise ValueError(
          f'RandomClip got context={self.context}, target={self.target}, history={self.history}, '
          f'gap={self.gap}; expected target >= 1 and the others >= 0.')

  def __call__(self, item: episode.Episode, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns frames [C+G ...], actions [C+G A], poses [C+G P], valid [C+G], and history_*.

    What more the episode holds of its frames comes with the history.
    """
    if item.length < self.target:
      raise ValueError(
          f'An episode has {item.length} frames, a clip {self.target} targets; lower the target or '
          'leave the episode out.')
    start = int(rng.integers(item.length - self.target + 1))
    first, stop = start - self.context, start + self.target
    out = _take(item, np.arange(first, stop))
    if self.history:
      frames = np.arange(item.length)
      far = frames[(frames < first - self.gap) | (frames >= stop + self.gap)]
      chosen = np.full(self.history, -1)
      count = min(self.history, far.size)
      chosen[:count] = rng.permutation(far)[:count]
      past = {**_take(item, chosen), **{name: _pick(x, chosen) for name, x in item.more.items()}}
      out |= {f'history_{name}': value for name, value in past.items()}
    return out


def _take(item: episode.Episode, index: np.ndarray) -> dict[str, np.ndarray]:
  """Frames `index`; zeros, and valid False, where it lies before the episode."""
  return {
      'frames': _pick(item.frames, index), 'actions': _pick(item.actions, index),
      'poses': _pick(item.poses, index), 'valid': index >= 0}


def _pick(x: np.ndarray, index: np.ndarray) -> np.ndarray:
  there = (index >= 0).reshape(-1, *(1,) * (x.ndim - 1))
  return np.where(there, x[np.maximum(index, 0)], np.zeros((), x.dtype))
