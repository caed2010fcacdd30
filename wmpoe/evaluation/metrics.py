"""Image and memory metrics in plain numpy.

Nothing here knows an environment: the Cards metric receives the templates and the events it needs.
Shapes: B episodes, T frames, N events per episode, H W frame size, h w tile size, S symbols.
"""

from __future__ import annotations

import math

import numpy as np

# A re-revealed tile counts as recalled below this mean squared error on [0, 1] pixels: the
# criterion of the Memory Cards experiment (arXiv 2605.18813).
TILE_MSE_THRESHOLD = 2e-5

# Metric: its name in words, its unit, and whether more is better (1) or worse (-1).
KNOWN = {
  'recall': ('Recall', '%', 1),
  'covered': ('Still covered', '%', -1),
  'tile_mse_recall': ('Recall by tile MSE', '%', 1),
  'covered_again': ('Covered again', '%', -1),
  'psnr': ('PSNR', 'dB', 1),
  'ssim': ('SSIM', '', 1),
  'lpips': ('LPIPS', '', -1),
  'lpips_vgg': ('LPIPS (VGG)', '', -1),
  'lpips_alex': ('LPIPS (AlexNet)', '', -1),
  'turn_following': ('Turns as commanded (1: fully)', '', 1),
  'advance_following': ('Advances as commanded', '', 1),
  'write_ms_per_episode': ('Write an episode', 'ms', -1),
  'write_ms_per_frame': ('Write a frame', 'ms', -1),
  'read_ms_per_frame': ('Read a frame', 'ms', -1),
  'memory_bytes': ('Memory of an episode', 'bytes', -1),
  'train_tflop': ('Training of all its networks', 'TFLOP', -1),
  'train_minutes': ('Training, on two cores', 'min', -1),
}


# Endings that any metric may take, one after another, and what they add to its name: which frames
# were measured, then how an arm compares with the base (see `comparisons`).
SUFFIXES = {
  '_revisited': ', revisited',
  '_unseen': ', unseen',
  '_in_window': ', in window',
  '_outside': ', outside the window',
  '_minus_base': ', minus base',
  '_cut': ', cut against base',
}

_SSIM_RADIUS = 5  # 11 x 11 pixels
_SSIM_SIGMA = 1.5
_SSIM_CHUNK_PIXELS = 2**16


def name(metric: str) -> str:
  """Returns the name of a metric in words, without its unit, e.g. `LPIPS (VGG), revisited`."""
  return _facts(metric)[0]


def unit(metric: str) -> str:
  """Returns the unit people read a metric in; '%' for fractions, '' if none is known."""
  return _facts(metric)[1]


def direction(metric: str) -> int:
  """Returns 1 if more of a metric is better, -1 if less is better and 0 if that is not known."""
  return _facts(metric)[2]


def _facts(metric: str) -> tuple[str, str, int]:
  """Returns what `KNOWN` says of a metric, or of the metric that it is derived from."""
  if metric in KNOWN:
    return KNOWN[metric]
  for suffix, words in SUFFIXES.items():
    stem = metric.removesuffix(suffix)
    if stem and stem != metric:
      text, symbol, better = _facts(stem)
      # A cut is a fraction, and good where less is better.
      return (text + words, '%', -better) if suffix == '_cut' else (text + words, symbol, better)
  words = metric.replace('_', ' ')
  return words[:1].upper() + words[1:], '', 0


def format_value(metric: str, value: float, *, with_unit: bool = True) -> str:
  """Returns a value as people read it, e.g. `99.3 %`, `27.1 dB`, `1,480 ms`.

  Args:
    metric: Name in results.json; decides the unit.
    value: The value; a fraction where the unit is percent.
    with_unit: Whether to append the unit.

  Returns:
    Percents with one decimal, else three or four digits.
  """
  symbol = unit(metric)
  if symbol == '%':
    text = f'{100 * value:.1f}'
  else:
    size = abs(value)
    text = f'{value:,.{0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3}f}'
  return f'{text} {symbol}' if with_unit and symbol else text


def psnr(a: np.ndarray, b: np.ndarray, *, cap: float = 100.0) -> np.ndarray:
  """Returns the peak signal-to-noise ratio of every frame, in decibels.

  PSNR = -10 log10(mean((a - b)^2)) with pixels on [0, 1]. Identical frames would give infinity,
  which no mean survives, so values are capped.

  Args:
    a: Frames [... H W C], uint8 or float in [0, 1].
    b: Frames of the same shape; its dtype may differ from a's.
    cap: The largest value returned, in dB.

  Returns:
    float64 [...]: [B T] for frames [B T H W C].

  Raises:
    TypeError: A dtype is neither uint8 nor a float.
    ValueError: Shapes differ, fewer than three dimensions, or floats outside [0, 1].
  """
  a, b = unit_pixels(a, name='a'), unit_pixels(b, name='b')
  if a.shape != b.shape or a.ndim < 3:
    raise ValueError(
      f'psnr got a{list(a.shape)} and b{list(b.shape)}; expected two arrays of one shape '
      '[... H W C]. Cut both to the predicted frames first.'
    )
  mse = np.mean(np.square(a - b), axis=(-3, -2, -1))
  return np.minimum(-10.0 * np.log10(np.maximum(mse, 1e-30)), cap)


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Returns the structural similarity of every frame, of Wang et al. (IEEE TIP 13(4), 2004).

  SSIM = mean((2 m_a m_b + c1)(2 s_ab + c2) / ((m_a^2 + m_b^2 + c1)(s_a^2 + s_b^2 + c2))), over
  pixels and colours, with means m and (co)variances s under an 11 x 11 Gaussian of sigma 1.5,
  c1 = .01^2 and c2 = .03^2 for pixels on [0, 1]. Only windows wholly inside the frame count. It is
  the paper's definition and what scikit-image's `structural_similarity` computes with
  `gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=-1`.

  Args:
    a: Frames [... H W C], uint8 or float in [0, 1].
    b: Frames of the same shape; its dtype may differ from a's.

  Returns:
    float64 [...] in [-1, 1], 1 where frames are equal.

  Raises:
    TypeError: A dtype is neither uint8 nor a float.
    ValueError: Shapes differ, frames below 11 x 11 pixels, or floats outside [0, 1].
  """
  a, b = np.asarray(a), np.asarray(b)
  size = 2 * _SSIM_RADIUS + 1
  if a.shape != b.shape or a.ndim < 3 or min(a.shape[-3:-1]) < size:
    raise ValueError(
      f'ssim got a{list(a.shape)} and b{list(b.shape)}; expected two arrays of one shape '
      f'[... H W C] with frames of at least {size}x{size} pixels. Cut both to the predicted frames '
      'first.'
    )
  shape, (height, width) = a.shape[:-3], a.shape[-3:-1]
  a, b = a.reshape(-1, *a.shape[-3:]), b.reshape(-1, *b.shape[-3:])
  rows, columns = _gaussian_windows(height), _gaussian_windows(width).T
  # A few frames at a time stay in the processor's cache.
  chunk = max(1, _SSIM_CHUNK_PIXELS // (height * width))
  out = np.empty(len(a))
  for start in range(0, len(a), chunk):
    there = slice(start, start + chunk)
    x, y = (
      np.moveaxis(unit_pixels(frames[there], name=label), -1, 1)
      for label, frames in (('a', a), ('b', b))
    )
    mean_x, mean_y, xx, yy, xy = (rows @ z @ columns for z in (x, y, x * x, y * y, x * y))
    covariance = xy - mean_x * mean_y
    squares = mean_x**2 + mean_y**2
    top = (2 * mean_x * mean_y + 0.01**2) * (2 * covariance + 0.03**2)
    bottom = (squares + 0.01**2) * (xx + yy - squares + 0.03**2)
    out[there] = np.mean(top / bottom, axis=(1, 2, 3))
  return out.reshape(shape)


def _gaussian_windows(size: int) -> np.ndarray:
  """Returns the matrix [size - 10, size] that takes every whole window's weighted mean."""
  offsets = np.arange(size) - np.arange(_SSIM_RADIUS, size - _SSIM_RADIUS)[:, None]
  weights = np.exp(-0.5 * np.square(offsets / _SSIM_SIGMA)) * (np.abs(offsets) <= _SSIM_RADIUS)
  return weights / weights.sum(axis=1, keepdims=True)


def unit_pixels(pixels: np.ndarray, *, name: str = 'pixels') -> np.ndarray:
  """Returns pixels as float64 on [0, 1].

  Args:
    pixels: uint8, or float already in [0, 1], of any shape.
    name: What to call the array in an error.

  Returns:
    float64 array of the same shape.

  Raises:
    TypeError: The dtype is neither uint8 nor float16/32/64.
    ValueError: A float lies outside [0, 1] or is not finite.
  """
  pixels = np.asarray(pixels)
  if pixels.dtype == np.uint8:
    return pixels / 255.0
  if not np.issubdtype(pixels.dtype, np.floating):
    raise TypeError(
      f'{name} has dtype {pixels.dtype}; expected uint8 in 0..255 or float in [0, 1]. '
      'Cast with .astype(np.uint8) or .astype(np.float32).'
    )
  if pixels.size:
    low, high = float(np.min(pixels)), float(np.max(pixels))
    if not (low >= -1e-6 and high <= 1 + 1e-6):
      raise ValueError(
        f'{name} is float with values from {low:g} to {high:g}; expected finite values in [0, 1]. '
        'Map model outputs to [0, 1] and clip them, or pass uint8.'
      )
  return pixels.astype(np.float64)


def template_mse(tiles: np.ndarray, templates: np.ndarray) -> np.ndarray:
  """Returns the mean squared error of every tile to every template.

  Args:
    tiles: [... h w 3], uint8 or float in [0, 1].
    templates: [K h w 3], uint8 or float in [0, 1].

  Returns:
    float64 [... K], on [0, 1] pixels.

  Raises:
    TypeError: See `unit_pixels`.
    ValueError: Tiles and templates differ in size, or see `unit_pixels`.
  """
  tiles = unit_pixels(tiles, name='tiles')
  templates = unit_pixels(templates, name='templates')
  if templates.ndim != 4 or tiles.ndim < 3 or tiles.shape[-3:] != templates.shape[1:]:
    raise ValueError(
      f'Got tiles{list(tiles.shape)} and templates{list(templates.shape)}; expected tiles '
      '[... h w 3] and templates [K h w 3] of the same h and w. Render the templates at the '
      'frame size of the predictions.'
    )
  # One template at a time: K times less memory than one broadcast difference.
  errors = [np.mean(np.square(tiles - template), axis=(-3, -2, -1)) for template in templates]
  return np.stack(errors, axis=-1)


def event_tiles(
  frames: np.ndarray, frame: np.ndarray, *, tile: np.ndarray, grid: int
) -> np.ndarray:
  """Cuts the tile of every event out of its frame.

  Args:
    frames: [B T H W 3] with H and W multiples of grid.
    frame: Integer [B N], index of the frame of each event.
    tile: Integer [B N], row-major tile index of each event.
    grid: Tiles along one side of the frame.

  Returns:
    [B N H/grid W/grid 3], dtype of frames.

  Raises:
    ValueError: The frame cannot be cut into grid x grid tiles.
  """
  batch, time, height, width, channels = frames.shape
  if height % grid or width % grid:
    raise ValueError(
      f'Frames of {height}x{width} pixels do not divide into {grid}x{grid} tiles; choose a frame '
      f'size that is a multiple of {grid}.'
    )
  cut = frames.reshape(batch, time, grid, height // grid, grid, width // grid, channels)
  cut = cut.transpose(0, 1, 2, 4, 3, 5, 6)  # [B T row column h w 3]
  return cut[np.arange(batch)[:, None], frame, tile // grid, tile % grid]


def card_recall(
  frames: np.ndarray,
  frame: np.ndarray,
  *,
  tile: np.ndarray,
  cards: np.ndarray,
  templates: np.ndarray,
) -> dict[str, np.ndarray]:
  """Scores what predicted frames show on newly uncovered cards.

  Args:
    frames: Predicted frames [B T H W 3], uint8 or float in [0, 1].
    frame: Integer [B N], frame of each event counted from the first predicted frame. A negative
      entry is padding, for episodes that have fewer events than others.
    tile: Integer [B N], row-major index of the card uncovered by each event.
    cards: Integer [B G*G], the true symbol of every card.
    templates: [S+1 h w 3], the S symbols as they look under the cursor, then the cover.

  Returns:
    A dict of [B N] arrays: `recall` (bool, the nearest template is the true symbol), `covered`
    (bool, the nearest template is the cover), `tile_mse` (float64, error to the true symbol on
    [0, 1] pixels, NaN in padding), `tile_mse_recall` (bool, tile_mse < 2e-5: the criterion of
    arXiv 2605.18813) and `valid` (bool, False in padding, where the other flags are False too).

  Raises:
    TypeError: Frames or templates of another dtype, or indices that are not integers.
    ValueError: Shapes that do not fit one another, or an index out of range.
  """
  frames, frame, tile, cards = (np.asarray(x) for x in (frames, frame, tile, cards))
  grid = _check_events(frames, frame, tile, cards, len(templates) - 1)
  valid = frame >= 0
  where = np.where(valid, tile, 0)
  tiles = event_tiles(frames, np.where(valid, frame, 0), tile=where, grid=grid)
  errors = template_mse(tiles, templates)
  nearest = np.argmin(errors, axis=-1)
  truth = np.take_along_axis(cards, where, axis=1)
  error = np.take_along_axis(errors, truth[..., None], axis=-1)[..., 0]
  return {
    'recall': valid & (nearest == truth),
    'covered': valid & (nearest == len(templates) - 1),
    'tile_mse': np.where(valid, error, np.nan),
    'tile_mse_recall': valid & (error < TILE_MSE_THRESHOLD),
    'valid': valid,
  }


def covered_again(
  frames: np.ndarray,
  truth: np.ndarray,
  frame: np.ndarray,
  *,
  tile: np.ndarray,
  cover: np.ndarray,
  grid: int,
) -> np.ndarray:
  """How often a card that was uncovered, and stays so in truth, is shown covered after that.

  Args:
    frames: Predicted frames [B T H W 3].
    truth: The true ones.
    frame: Integer [B N], frame of each uncovering.
    tile: Integer [B N], which card.
    cover: The cover [h w 3].
    grid: Tiles along one side of the frame.

  Returns:
    float64 [B N]: share of the frames after the uncovering in which the card's tile is nearer to
    the cover than to the true tile. 0 where no frame comes after.
  """
  (batch, count), time = tile.shape, frames.shape[1]
  when = np.tile(np.arange(time), (batch, count))
  where = np.repeat(tile, time, axis=1)
  seen, true = (unit_pixels(event_tiles(x, when, tile=where, grid=grid)) for x in (frames, truth))
  error = lambda x: np.square(seen - x).mean(axis=(-3, -2, -1)).reshape(batch, count, time)
  later = np.arange(time) > frame[..., None]
  again = later & (error(unit_pixels(cover)) < error(true))
  return again.sum(axis=-1) / np.maximum(later.sum(axis=-1), 1)


def _check_events(
  frames: np.ndarray, frame: np.ndarray, tile: np.ndarray, cards: np.ndarray, symbols: int
) -> int:
  """Raises on events that do not fit the frames; returns the side of the card grid."""
  if frames.ndim != 5 or frames.shape[-1] != 3:
    raise ValueError(f'frames has shape {list(frames.shape)}; expected [B T H W 3].')
  for name, array in (('frame', frame), ('tile', tile), ('cards', cards)):
    if not np.issubdtype(array.dtype, np.integer):
      raise TypeError(f'{name} has dtype {array.dtype}; expected integers.')
    if array.ndim != 2 or array.shape[0] != frames.shape[0]:
      raise ValueError(
        f'{name} has shape {list(array.shape)}; expected two dimensions, the first '
        f'{frames.shape[0]} (the episodes in frames).'
      )
  if frame.shape != tile.shape:
    raise ValueError(
      f'frame{list(frame.shape)} and tile{list(tile.shape)} differ; expected [B N] each.'
    )
  grid = math.isqrt(cards.shape[1])
  if grid * grid != cards.shape[1]:
    raise ValueError(f'cards has {cards.shape[1]} cards an episode; expected a square number.')
  valid = frame >= 0
  for name, array, end in (
    ('frame', frame[valid], frames.shape[1]),
    ('tile', tile[valid], grid * grid),
    ('cards', cards, symbols),
  ):
    if array.size and not (array.min() >= 0 and array.max() < end):
      raise ValueError(
        f'{name} has values from {array.min()} to {array.max()}; expected 0 to {end - 1}. '
        'Count frames from the first predicted frame, tiles row by row, symbols without the cover.'
      )
  return grid
