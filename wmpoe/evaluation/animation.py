"""Strips that move: rows of frames side by side, as a GIF or an MP4. Needs extras.

Shapes: T frames, H W frame size. Pixels are uint8.
"""

import io
import os
import pathlib
import tempfile
from typing import Any

import numpy as np

from wmpoe import whole_file
from wmpoe.evaluation import film

_INK = (40, 44, 52)
_MUTED = (120, 126, 138)


def write_gif(
    path: str | os.PathLike, strip: film.Strip, *, fps: float = 6.0, scale: int | None = None
) -> pathlib.Path:
  """Writes the rows side by side as an endless animation, captions above, score below.

  Args:
    path: Where to; missing folders are made. Written atomically.
    strip: The rows; the title goes on top, and rows with marks get a running count of right ones.
    fps: Frames per second.
    scale: Screen pixels along one picture pixel; None makes each picture about 200 pixels wide.

  Returns:
    The path written.

  Raises:
    ModuleNotFoundError: Pillow is missing; the message says how to install it.
    ValueError: fps is not in (0, 50] or the scale is below 1.
    OSError: The folder cannot be written.
  """
  if not 0 < fps <= 50:
    raise ValueError(f'Got fps={fps}; expected more than 0 and at most 50, the limit of GIF.')
  pages = _pages(strip, scale)
  # Stacked pages give the palette every colour of the film; 16 of them are enough to choose from.
  image_lib = _pillow()[0]
  stack = image_lib.fromarray(np.concatenate(pages[::max(1, len(pages) // 16)]))
  palette = stack.quantize(255, method=image_lib.Quantize.MEDIANCUT)
  # All share it, so that colours never flicker.
  plain = [image_lib.fromarray(page).quantize(palette=palette, dither=image_lib.Dither.NONE)
           for page in pages]
  times = [round(1000 / fps)] * len(plain)
  times[-1] += 1500  # time to read the final score before it starts again
  buffer = io.BytesIO()
  plain[0].save(
      buffer, 'GIF', save_all=True, append_images=plain[1:], duration=times, loop=0,
      optimize=False)
  return whole_file.write(path, buffer.getvalue())


def write_mp4(
    path: str | os.PathLike, strip: film.Strip, *, fps: float = 6.0, scale: int | None = None
) -> pathlib.Path:
  """Writes the same as `write_gif` as a video (H.264) in all colours, and smaller.

  Args:
    path: Where to; missing folders are made. Written atomically.
    strip: See `write_gif`.
    fps: Frames per second.
    scale: See `write_gif`.

  Returns:
    The path written.

  Raises:
    ModuleNotFoundError: imageio-ffmpeg or Pillow is missing; the message says how to install it.
    ValueError: fps is not positive or the scale is below 1.
    OSError: The folder cannot be written.
  """
  if not fps > 0:
    raise ValueError(f'Got fps={fps}; expected more than 0.')
  try:
    import imageio_ffmpeg
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "Writing an MP4 needs imageio-ffmpeg; install it with: pip install 'wmpoe[play]'"
    ) from error
  pages = _pages(strip, scale)
  height, width = (size + size % 2 for size in pages[0].shape[:2])  # H.264 wants even sizes
  even = lambda page: np.pad(
      page, ((0, height - page.shape[0]), (0, width - page.shape[1]), (0, 0)), mode='edge')
  with tempfile.TemporaryDirectory() as folder:
    made = pathlib.Path(folder) / 'film.mp4'
    writer = imageio_ffmpeg.write_frames(
        os.fspath(made), (width, height), fps=fps, quality=8, macro_block_size=2,
        ffmpeg_log_level='error')
    writer.send(None)
    try:
      for page in pages:
        writer.send(np.ascontiguousarray(even(page)))
    finally:
      writer.close()
    return whole_file.write(path, made.read_bytes())


def _pages(strip: film.Strip, scale: int | None) -> list[np.ndarray]:
  """The drawn pictures [height width 3], one for each frame."""
  image_lib, draw_lib, font_lib = _pillow()
  scale = max(1, round(200 / strip.shape[2])) if scale is None else scale
  rows = {label: film.draw_row(strip, label, scale=scale) for label in strip.rows}
  big, small = font_lib.load_default(size=17), font_lib.load_default(size=14)
  length, height, width = next(iter(rows.values())).shape[:3]
  margin, top = 18, 42 + (26 if strip.title else 0)
  bottom = 40 if strip.marks else 20
  size = (margin + len(rows) * (width + margin), top + height + bottom)
  times = strip.times or range(length)
  pages = []
  for t in range(length):
    page = image_lib.new('RGB', size, film.PAPER)
    draw = draw_lib.Draw(page)
    draw.text((margin, 12), strip.title, fill=_INK, font=big)
    clock = f'frame {times[t]}'
    draw.text((size[0] - margin, 14), clock, fill=_MUTED, font=small, anchor='ra')
    for r, (label, row) in enumerate(rows.items()):
      left = margin + r * (width + margin)
      draw.text((left, top - 6), label, fill=_INK, font=small, anchor='ls')
      page.paste(image_lib.fromarray(row[t]), (left, top))
      right, total = film.score(strip, label, until=t)
      if film.score(strip, label)[1]:
        draw.text((left, top + height + 10), f'{right} of {total} right', fill=_INK, font=small)
    draw.rectangle((0, size[1] - 3, size[0] * (t + 1) // length, size[1]), fill=_MUTED)
    pages.append(np.asarray(page))
  return pages


def _pillow() -> tuple[Any, Any, Any]:
  """Imports Pillow, an extra."""
  try:
    from PIL import Image
    from PIL import ImageDraw
    from PIL import ImageFont
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "Drawing a film needs Pillow; install it with: pip install 'wmpoe[demo]'") from error
  return Image, ImageDraw, ImageFont
