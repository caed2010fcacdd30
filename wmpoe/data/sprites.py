"""The pictures of Memory Cards: symbols, cover and cursor, drawn analytically at any size.

Own drawings: each symbol differs from the others in shape and in colour and stays readable in the
6x6 pixels that the cursor leaves of an 8x8 tile.
"""

from collections.abc import Sequence
import functools

import numpy as np

SYMBOLS = ('disc', 'square', 'triangle', 'cross', 'ring', 'diamond', 'bars', 'heart')
_CARD, _EDGE, _COVER = (250, 246, 235), (205, 200, 188), (34, 40, 62)
_COVER_INK, _CURSOR = (108, 122, 168), (255, 0, 190)
_COLOURS = (
    (214, 34, 40),
    (28, 84, 205),
    (24, 148, 60),
    (122, 40, 168),
    (0, 160, 178),
    (240, 164, 0),
    (34, 34, 38),
    (236, 92, 148),
)
_SUPERSAMPLING = 16


def _shape(name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Mask of a symbol; x to the right and y down, both in [-1, 1] inside the cursor's border."""
  radius = np.hypot(x, y)
  if name == 'disc':
    return radius < 0.92
  if name == 'square':
    return np.maximum(abs(x), abs(y)) < 0.67
  if name == 'triangle':
    return (y < 0.9) & (abs(x) < (y + 1.0) * 0.53)
  if name == 'cross':
    return (np.minimum(abs(x), abs(y)) < 0.33) & (radius < 1.05)
  if name == 'ring':
    return (radius < 1.0) & (radius > 0.52)
  if name == 'diamond':
    return abs(x) + abs(y) < 1.0
  if name == 'bars':
    return (abs(y) > 0.33) & (abs(y) < 1.0) & (abs(x) < 1.0)
  lobes = np.hypot(abs(x) - 0.5, y + 0.42) < 0.5
  return lobes | ((y > -0.42) & (abs(x) * 0.95 + y * 0.72 < 0.66))  # A heart.


@functools.lru_cache(maxsize=16)
def tiles(tile: int, symbols: int) -> np.ndarray:
  """All tiles, plain then under the cursor: uint8 [2 (symbols + 1) tile tile 3], read-only.

  The cover is the last of each half. The cursor is a border of one pixel in eight.
  """
  border, fine = max(1, tile // 8), _SUPERSAMPLING
  axis = ((np.arange(tile * fine) + 0.5) / fine - tile / 2) / (tile / 2 - border)
  x, y = np.meshgrid(axis, axis)
  inside = np.maximum(abs(x), abs(y)) < 1.0

  def down(mask: np.ndarray, ink: Sequence[int], paper: np.ndarray) -> np.ndarray:
    image = np.where((mask & inside)[..., None], np.array(ink, np.float64), paper)
    return np.round(image.reshape(tile, fine, tile, fine, 3).mean((1, 3))).astype(np.uint8)

  card = np.where(inside[..., None], _CARD, np.array(_EDGE, np.float64))
  drawn = [
      down(_shape(name, x, y), ink, card)
      for name, ink in zip(SYMBOLS[:symbols], _COLOURS[:symbols], strict=True)
  ]
  drawn.append(down(abs(abs(x) - abs(y)) < 0.22, _COVER_INK, np.array(_COVER)))
  plain = np.stack(drawn)
  under = plain.copy()
  under[:, :border], under[:, -border:] = _CURSOR, _CURSOR
  under[:, :, :border], under[:, :, -border:] = _CURSOR, _CURSOR
  out = np.concatenate([plain, under])
  out.setflags(write=False)
  return out
