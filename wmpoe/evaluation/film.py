"""Film strips: rows of frames side by side, with marks around what matters.

Shapes: T frames, H W frame size. Pixels are uint8. Needs numpy alone; what moves is in `animation`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
import dataclasses
import html
import struct
import zlib

import numpy as np

from wmpoe.evaluation import charts

# Okabe-Ito bluish green and vermillion: told apart with any colour vision. A wrong mark is dashed
# as well, for print.
RIGHT = (0, 158, 115)
WRONG = (213, 94, 0)
PAPER = (255, 255, 255)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mark:
  """A frame drawn around part of a picture.

  Attributes:
    row: Label of the row it belongs to.
    frame: Index of the frame in that row.
    top: First pixel row of the marked part, in the picture's own pixels.
    left: First pixel column.
    height: Height in pixels.
    width: Width in pixels.
    right: Whether the row is right there: solid green, else dashed red.
  """

  row: str
  frame: int
  top: int
  left: int
  height: int
  width: int
  right: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strip:
  """Rows of the same moments, e.g. truth, base and composed.

  Attributes:
    rows: `{LABEL: uint8 [T H W 3]}`, one shape for all rows.
    marks: Frames to draw around parts of pictures.
    title: What the strip shows.
    times: What to call the T frames; 0 .. T-1 if empty.
  """

  rows: Mapping[str, np.ndarray]
  marks: Sequence[Mark] = ()
  title: str = ''
  times: Sequence[int] = ()

  def __post_init__(self) -> None:
    """Raises ValueError or TypeError on rows, marks or times that do not fit together."""
    if not self.rows:
      raise ValueError('A strip has no rows; expected {label: uint8 [T H W 3]}.')
    shapes = {label: np.shape(frames) for label, frames in self.rows.items()}
    shape = next(iter(shapes.values()))
    if len(set(shapes.values())) != 1 or len(shape) != 4 or shape[-1] != 3 or 0 in shape:
      raise ValueError(f'Rows have shapes {shapes}; expected one non-empty shape [T H W 3].')
    for label, frames in self.rows.items():
      if np.asarray(frames).dtype != np.uint8:
        raise TypeError(
          f'Row {label!r} has dtype {np.asarray(frames).dtype}; expected uint8. Scale [0, 1] '
          'floats by 255, round, and cast.'
        )
    if len(self.times) not in (0, shape[0]):
      raise ValueError(f'Got {len(self.times)} times for {shape[0]} frames; expected one each.')
    for mark in self.marks:
      inside = mark.top + mark.height <= shape[1] and mark.left + mark.width <= shape[2]
      inside = inside and min(mark.top, mark.left) >= 0 and min(mark.height, mark.width) > 0
      if mark.row not in self.rows or not 0 <= mark.frame < shape[0] or not inside:
        raise ValueError(
          f'{mark} is outside rows {list(self.rows)} of {shape[0]} frames, {shape[1]}x{shape[2]} '
          'pixels each.'
        )

  @property
  def shape(self) -> tuple[int, int, int]:
    """Number of frames, height and width."""
    return np.shape(next(iter(self.rows.values())))[:3]


def select(strip: Strip, frames: Sequence[int]) -> Strip:
  """Returns a strip of only the given frames, with their marks and times.

  Args:
    strip: The strip to choose from.
    frames: Distinct indices of the frames to keep, in the order to show.

  Returns:
    The shorter strip.

  Raises:
    ValueError: A frame is given twice or does not exist.
  """
  place = {int(frame): index for index, frame in enumerate(frames)}
  length = strip.shape[0]
  if len(place) != len(frames) or not all(0 <= frame < length for frame in place):
    raise ValueError(f'Got frames {list(frames)}; expected distinct indices in 0..{length - 1}.')
  times = strip.times or range(length)
  return dataclasses.replace(
    strip,
    rows={label: np.asarray(row)[list(place)] for label, row in strip.rows.items()},
    marks=tuple(
      dataclasses.replace(mark, frame=place[mark.frame])
      for mark in strip.marks
      if mark.frame in place
    ),
    times=tuple(times[frame] for frame in place),
  )


def tile_marks(
  row: str, frame: np.ndarray, *, tile: np.ndarray, right: np.ndarray, grid: int, size: int
) -> list[Mark]:
  """Returns marks around tiles of a grid, e.g. around newly uncovered cards.

  Args:
    row: Label of the row to mark.
    frame: Integer [N], frame of each event; negative entries (padding) are left out.
    tile: Integer [N], row-major tile index.
    right: bool [N], whether the row shows the right thing there.
    grid: Tiles along one side.
    size: Height and width of the frame in pixels.

  Returns:
    One mark per event.
  """
  side = size // grid
  return [
    Mark(
      row=row, frame=int(f), top=int(t) // grid * side, left=int(t) % grid * side,
      height=side, width=side, right=bool(r),
    )
    for f, t, r in zip(frame, tile, right, strict=True)
    if f >= 0
  ]


def score(strip: Strip, label: str, *, until: int | None = None) -> tuple[int, int]:
  """Returns how many marks of a row are right, and how many there are.

  Args:
    strip: The strip.
    label: The row.
    until: Count marks up to and including this frame; all of them if None.
  """
  marks = [m for m in strip.marks if m.row == label and (until is None or m.frame <= until)]
  return sum(mark.right for mark in marks), len(marks)


def draw_row(strip: Strip, label: str, *, scale: int) -> np.ndarray:
  """Returns one row enlarged pixel by pixel, with its marks drawn.

  Args:
    strip: The strip.
    label: The row.
    scale: Screen pixels along one picture pixel.

  Returns:
    uint8 [T H*scale W*scale 3].

  Raises:
    ValueError: The scale is below 1.
  """
  if scale < 1:
    raise ValueError(f'Got scale={scale}; expected an integer >= 1.')
  frames = np.asarray(strip.rows[label]).repeat(scale, axis=1).repeat(scale, axis=2)
  for mark in strip.marks:
    if mark.row == label:
      top, left = mark.top * scale, mark.left * scale
      part = frames[
        mark.frame, top : top + mark.height * scale, left : left + mark.width * scale
      ]
      _outline(part, right=mark.right, thickness=max(1, scale // 2))
  return frames


def _outline(part: np.ndarray, *, right: bool, thickness: int) -> None:
  """Draws a frame just inside an image, in place: solid green or dashed red."""
  height, width = part.shape[:2]
  y, x = np.mgrid[:height, :width]
  depth = np.minimum.reduce([y, x, height - 1 - y, width - 1 - x])
  edge = depth < thickness
  part[edge] = PAPER  # between the dashes: seen on any picture
  if not right:
    dash = max(2, round(height / 7))
    # The dashes run along whichever side is nearer.
    along = np.where(np.minimum(y, height - 1 - y) <= np.minimum(x, width - 1 - x), x, y)
    edge &= along // dash % 2 == 0
  part[edge] = RIGHT if right else WRONG


def contact_sheet(
  strip: Strip, *, scale: int = 3, columns: int | None = None, gap: int = 4
) -> np.ndarray:
  """Returns all frames as one picture: a row per label, wrapped into blocks of columns.

  Args:
    strip: The strip.
    scale: Screen pixels along one picture pixel.
    columns: Frames side by side before the rows start again below; all of them if None.
    gap: White pixels between pictures; blocks are three gaps apart.

  Returns:
    uint8 [height width 3], white where there is no picture.

  Raises:
    ValueError: Scale or columns below 1.
  """
  columns = strip.shape[0] if columns is None else columns
  if columns < 1:
    raise ValueError(f'Got columns={columns}; expected at least 1.')
  rows = [draw_row(strip, label, scale=scale) for label in strip.rows]
  length, height, width = rows[0].shape[:3]
  columns, blocks = min(columns, length), -(-length // columns)
  block = len(rows) * (height + gap) + 2 * gap
  sheet = np.full((blocks * block - 3 * gap, columns * (width + gap) - gap, 3), 255, np.uint8)
  for r, row in enumerate(rows):
    for t, frame in enumerate(row):
      top = t // columns * block + r * (height + gap)
      left = t % columns * (width + gap)
      sheet[top : top + height, left : left + width] = frame
  return sheet


def svg(strip: Strip) -> str:
  """Returns the strip as an HTML figure of inline SVG with embedded PNG, marks drawn on top.

  Colours come from the page's classes `mark ok` and `mark bad`.
  """
  length, height, width = strip.shape
  blocks = -(-length // 10)
  columns = -(-length // blocks)  # blocks of equal length rather than a short last one
  left, gap, total = 20 + 9 * max(len(charts.arm_name(name)) for name in strip.rows), 5, 960
  if strip.marks:
    left = max(left, 96)  # room for "16 of 16 right" under the label
  scale = min((total - left + gap) / columns - gap, 110) / width
  across, down, head = width * scale + gap, height * scale + gap, 22
  block = head + len(strip.rows) * down + 12
  times = strip.times or range(length)
  title = html.escape(strip.title or 'film strip')
  out = [
    f'<svg viewBox="0 0 {total} {blocks * block - 12:.0f}" role="img" aria-label="{title}">'
  ]
  for t in range(length):
    x, y = left + t % columns * across, t // columns * block
    middle = x + width * scale / 2
    out.append(f'<text class="tick mid" x="{middle:.1f}" y="{y + 14:.1f}">{times[t]}</text>')
    for r, (label, row) in enumerate(strip.rows.items()):
      top = y + head + r * down
      if t % columns == 0:
        out.append(_row_label(strip, label, y=top + height * scale / 2))
      data = base64.b64encode(png(np.asarray(row)[t])).decode()
      out.append(
        f'<image x="{x:.1f}" y="{top:.1f}" width="{width * scale:.1f}" '
        f'height="{height * scale:.1f}" href="data:image/png;base64,{data}"/>'
      )
      out += [
        f'<rect class="mark {kind}" x="{x + m.left * scale + 1:.1f}" '
        f'y="{top + m.top * scale + 1:.1f}" width="{m.width * scale - 2:.1f}" '
        f'height="{m.height * scale - 2:.1f}"/>'
        for m in strip.marks
        if m.row == label and m.frame == t
        for kind in ('halo', 'ok' if m.right else 'bad')
      ]
  words = f'<b>{title}</b>'
  if strip.marks:
    words += '<br>Newly revealed: <i class="key ok">solid, right</i>, '
    words += '<i class="key bad">dashed, wrong</i>'
  return f'<figure><figcaption>{words}</figcaption>{"".join(out)}</svg></figure>'


def _row_label(strip: Strip, label: str, *, y: float) -> str:
  """Returns the SVG text left of a row: its label and, if it has marks, its score."""
  right, total = score(strip, label)
  text = f'<text class="label b" x="0" y="{y:.1f}">{html.escape(charts.arm_name(label))}</text>'
  if total:
    text += f'<text class="tick" x="0" y="{y + 17:.1f}">{right} of {total} right</text>'
  return text


def png(image: np.ndarray) -> bytes:
  """Encodes a picture, uint8 [H W 3], as PNG with nothing but the standard library.

  Raises:
    ValueError: The image has another shape or dtype.
  """
  image = np.asarray(image)
  if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8 or not image.size:
    raise ValueError(f'png got {image.dtype}{list(image.shape)}; expected non-empty uint8 [H W 3].')
  height, width = image.shape[:2]

  def chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', checksum)

  lines = np.zeros((height, 1 + 3 * width), np.uint8)  # each line starts with filter type 0
  lines[:, 1:] = image.reshape(height, -1)
  header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  data = zlib.compress(lines.tobytes(), 9)
  start = b'\x89PNG\r\n\x1a\n'
  return start + chunk(b'IHDR', header) + chunk(b'IDAT', data) + chunk(b'IEND', b'')
