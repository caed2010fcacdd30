"""Decodes images and videos and brings them to one size. Needs the extra `data`."""

from collections.abc import Iterator
import os
from typing import Any

import numpy as np

IMAGES = ('.png', '.jpg', '.jpeg', '.bmp', '.webp')
VIDEOS = ('.mp4', '.mkv', '.avi', '.webm', '.mov', '.gif')
MOST_FRAMES = 200_000  # of one episode


def fit(frame: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
  """A picture at `size` (height, width): its middle in that aspect ratio, averaged down.

  Args:
    frame: uint8 [H W], [H W 1], [H W 3] or [H W 4] (alpha is dropped).
    size: None leaves it as large as it is.

  Raises:
    ValueError: anything else.
  """
  frame = np.asarray(frame)
  if frame.dtype != np.uint8 or frame.ndim not in (2, 3) or not frame.size:
    raise ValueError(f'a picture is {frame.dtype}{list(frame.shape)}; expected uint8 [H W 3].')
  frame = frame[..., None] if frame.ndim == 2 else frame
  if frame.shape[2] not in (1, 3, 4):
    raise ValueError(f'a picture has {frame.shape[2]} channels; expected 1, 3 or 4.')
  frame = np.repeat(frame, 3, axis=2) if frame.shape[2] == 1 else frame[..., :3]
  if size is None or frame.shape[:2] == tuple(size):
    return np.ascontiguousarray(frame)
  top, left, scale = _middle(frame.shape[:2], size)
  image = _image_module().fromarray(frame)
  # Box averages over exactly the pixels that fall into each new one; enlarging is bilinear.
  how = _image_module().Resampling.BOX if scale >= 1 else _image_module().Resampling.BILINEAR
  box = (left, top, left + scale * size[1], top + scale * size[0])
  return np.asarray(image.resize((size[1], size[0]), how, box=box))


def fit_depth(depth: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
  """Depth [H W] as `fit` brings pictures to a size, float32; of a place between, the nearest one.

  Means of near and far would be surfaces where there are none.

  Raises:
    ValueError: of another rank.
  """
  depth = np.asarray(depth, np.float32)
  if depth.ndim != 2 or not depth.size:
    raise ValueError(f'depth has shape {list(depth.shape)}; expected [H W].')
  if size is None or depth.shape == tuple(size):
    return depth
  top, left, scale = _middle(depth.shape, size)
  rows, columns = (
      np.minimum((begin + scale * (np.arange(new) + 0.5)).astype(int), old - 1)
      for begin, new, old in zip((top, left), size, depth.shape, strict=True))
  return depth[rows[:, None], columns]


def _middle(shape: tuple[int, ...], size: tuple[int, int]) -> tuple[float, float, float]:
  """Top, left and scale of the largest middle part of a picture that has the size's aspect."""
  scale = min(shape[0] / size[0], shape[1] / size[1])
  return (shape[0] - scale * size[0]) / 2, (shape[1] - scale * size[1]) / 2, scale


def image(source: Any) -> np.ndarray:
  """A picture file, or its bytes in a file object: uint8 [H W 3]."""
  with _image_module().open(source) as opened:
    return np.asarray(opened.convert('RGB'))


def video(path: str | os.PathLike[str], *, start: float = 0.0) -> Iterator[np.ndarray]:
  """The frames of a video from `start` seconds on: uint8 [H W 3] each.

  Raises:
    ModuleNotFoundError: the extra is missing.
    ValueError: it cannot be decoded.
  """
  ffmpeg = _ffmpeg()
  reader = ffmpeg.read_frames(
      os.fspath(path), pix_fmt='rgb24', input_params=['-ss', f'{start:.6f}'] if start else [],
      output_params=['-fps_mode', 'passthrough'])
  try:
    try:
      width, height = next(reader)['size']
    except (OSError, RuntimeError, StopIteration, IndexError, KeyError) as error:
      raise ValueError(
          f'cannot be decoded as a video ({_last_line(error)}); write it again.') from error
    for raw in reader:
      yield np.frombuffer(raw, np.uint8).reshape(height, width, 3)
  finally:
    reader.close()


def frame_rate(path: str | os.PathLike[str]) -> float | None:
  """Frames per second of a video, None if it does not say."""
  reader = _ffmpeg().read_frames(os.fspath(path))
  try:
    rate = float(next(reader)['fps'])
  except (OSError, RuntimeError, StopIteration, IndexError, KeyError, ValueError):
    return None
  finally:
    reader.close()
  return rate if 0 < rate < 1000 else None


def _last_line(error: Exception) -> str:
  lines = [line for line in str(error).splitlines() if line.strip()]
  return lines[-1].strip()[:200] if lines else type(error).__name__


def _ffmpeg() -> Any:
  try:
    import imageio_ffmpeg
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "Reading videos needs imageio-ffmpeg; install it with: pip install 'wmpoe[data]'"
    ) from error
  return imageio_ffmpeg


def _image_module() -> Any:
  try:
    from PIL import Image
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "Reading and resizing pictures needs Pillow; install it with: pip install 'wmpoe[data]'"
    ) from error
  return Image
