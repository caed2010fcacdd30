"""What a run says: metrics.jsonl (one JSON object a line) and a progress line on stderr."""

from collections.abc import Mapping
import json
import math
import os
import sys
import time
from typing import Any, TextIO

from wmpoe import whole_file

FILENAME = 'metrics.jsonl'


class MetricsLog:
  """Appends rows to metrics.jsonl.

  Opening it at the step a run resumes from drops the rows beyond that step and a last line torn
  by a kill, atomically, so that no step is ever logged twice. In an object store, where nothing can
  be appended to, the file is written anew by `sync`.
  """

  def __init__(self, workdir: str | os.PathLike[str], *, resume_step: int):
    """Opens the log.

    Args:
      workdir: the run's folder.
      resume_step: rows with a larger step are dropped; 0 starts an empty log.
    """
    self.path = whole_file.anywhere(workdir) / FILENAME
    lines = [json.dumps(row) + '\n' for row in read(workdir) if row['step'] <= resume_step]
    self._remote = lines if whole_file.is_remote(workdir) else None
    if self._remote is not None:
      self.sync()
      return
    whole_file.write(self.path, ''.join(lines).encode())
    self._file = open(self.path, 'a', encoding='utf-8')  # noqa: SIM115 (closed by close())

  def write(self, row: Mapping[str, Any]) -> None:
    """Appends one row; numbers that are not finite become null, as JSON has none."""
    line = json.dumps({k: _jsonable(v) for k, v in row.items()}) + '\n'
    if self._remote is not None:
      self._remote.append(line)
      return
    self._file.write(line)
    # Handed to the system at once: a SIGKILL then loses nothing that was logged.
    self._file.flush()

  def sync(self) -> None:
    """Waits until every row is on disk; called before a checkpoint that relies on them."""
    if self._remote is not None:
      self.path.write_text(''.join(self._remote))
      return
    os.fsync(self._file.fileno())

  def close(self) -> None:
    """Closes the file."""
    if self._remote is not None:
      self.sync()
      return
    self._file.close()


class Silence:
  """The log of a process that has none, in a pod: all but process 0."""

  path = None

  def write(self, row: Mapping[str, Any]) -> None:
    """Drops the row."""

  def sync(self) -> None:
    """Does nothing."""

  def close(self) -> None:
    """Does nothing."""


def read(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Returns the rows of a run's metrics.jsonl, without a torn last line; [] if there is none.

  Raises:
    ValueError: if a line other than the last is not a JSON object with a step.
  """
  path = whole_file.anywhere(workdir) / FILENAME
  if not path.exists():
    return []
  lines = path.read_text().split('\n')
  rows = []
  for number, line in enumerate(lines, start=1):
    if not line:
      continue
    try:
      row = json.loads(line)
      if not isinstance(row, dict) or 'step' not in row:
        raise ValueError("no 'step'")
    except ValueError as error:
      if number == len(lines):  # No newline behind it: the writer was killed in this line.
        break
      raise ValueError(
        f"{path}, line {number}: expected a JSON object with a 'step', got {line[:80]!r}. "
        "Remove that line, or move the file away."
      ) from error
    rows.append(row)
  return rows


class Window:
  """Means of the metrics over the steps since the last row.

  Its sums are Python floats, which JSON keeps exactly: saved with a checkpoint, a resumed run
  logs the same means as an undisturbed one.
  """

  def __init__(self, saved: Mapping[str, Any] | None = None):
    """Starts empty, or from what `to_json` gave."""
    self._count = int(saved['count']) if saved else 0
    self._sums = {k: float(v) for k, v in saved['sums'].items()} if saved else {}

  def add(self, metrics: Mapping[str, float]) -> None:
    """Adds the metrics of one step."""
    self._count += 1
    for name, value in metrics.items():
      self._sums[name] = self._sums.get(name, 0.0) + float(value)

  def means(self) -> dict[str, float]:
    """Returns the means and empties the window."""
    means = {k: v / max(self._count, 1) for k, v in self._sums.items()}
    self._count, self._sums = 0, {}
    return means

  def to_json(self) -> dict[str, Any]:
    """Returns the count and the sums."""
    return {'count': self._count, 'sums': dict(self._sums)}


class Progress:
  """One line that renews itself on a terminal, one line per report elsewhere."""

  def __init__(
    self, total_steps: int, *, first_step: int = 0, stream: TextIO | None = None,
    silent: bool = False,
  ):  # fmt: skip
    """Starts the clock.

    Args:
      total_steps: the step at which the run ends.
      first_step: the step it starts from in this session.
      stream: where to write; stderr by default.
      silent: say nothing: another process does.
    """
    self._silent = silent
    self._stream = sys.stderr if stream is None else stream
    self._total = total_steps
    self._first = first_step
    self._start: float | None = None
    self._width = 0

  def report(self, step: int, loss: float, steps_per_second: float) -> None:
    """Shows the step, the loss, the rate and the time left."""
    if self._silent:
      return
    left = (self._total - step) / steps_per_second if steps_per_second > 0 else math.inf
    text = (
      f'step {step}/{self._total} ({100 * step / max(self._total, 1):.0f} %)  loss {loss:.5f}  '
      f'{steps_per_second:.2f} steps/s  {duration(left)} left'
    )
    if self._stream.isatty():
      self._stream.write('\r' + text.ljust(self._width))
      self._width = len(text)
    else:
      self._stream.write(text + '\n')
    self._stream.flush()

  def say(self, text: str) -> None:
    """Writes a line of its own."""
    if self._silent:
      return
    if self._width:
      self._stream.write('\n')
      self._width = 0
    self._stream.write(text + '\n')
    self._stream.flush()


def duration(seconds: float) -> str:
  """Returns seconds as a person would write them: 45 s, 3 min 20 s, 2 h 05 min."""
  if not math.isfinite(seconds):
    return '?'
  whole = round(seconds)
  if whole < 60:
    return f'{whole} s'
  if whole < 3600:
    return f'{whole // 60} min {whole % 60:02d} s'
  return f'{whole // 3600} h {whole % 3600 // 60:02d} min'


def clock() -> float:
  """Returns a clock that never goes back, in seconds."""
  return time.monotonic()


def _jsonable(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {k: _jsonable(v) for k, v in value.items()}
  if isinstance(value, (str, bool, int)) or value is None:
    return value
  number = float(value)
  return number if math.isfinite(number) else None
