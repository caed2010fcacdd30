"""Batches on their way to the devices: one ahead of the step that uses it."""

from typing import Any, Protocol

import jax
import numpy as np

from wmpoe import sharding


class Batches(Protocol):
  """A data iterator whose position can be saved, such as grain's."""

  def __next__(self) -> Any:
    """Returns the next batch: a pytree of arrays [B ...]."""

  def get_state(self) -> Any:
    """Returns the position: JSON-able, or bytes of UTF-8 text."""

  def set_state(self, state: Any) -> None:
    """Goes to a position."""


class Inputs:
  """Puts this process's rows onto the mesh, as a part of the global batch.

  `fetch` starts with the next batch while the devices are busy with this one; `take` hands it out.

  Attributes:
    position: of the data behind the last batch taken, for a checkpoint.
    batch_size: examples of a global batch; None before the first.
  """

  def __init__(
    self, batches: Batches, mesh: jax.sharding.Mesh, *, batch_size: int | None, accumulate: int
  ):
    """Takes nothing yet.

    Args:
      batches: gives this process's rows of every batch, see `sharding.batch_rows`.
      mesh: what they are spread over.
      batch_size: of the global batch; None for what the first batch shows.
      accumulate: parts that each device's rows will be split in.

    Raises:
      ValueError: if the batch size does not divide over the mesh and the parts.
      TypeError: if `batches` cannot tell its position.
    """
    if not (hasattr(batches, 'get_state') and hasattr(batches, 'set_state')):
      raise TypeError(
        f'batches is a {type(batches).__name__}: expected an iterator with get_state() and '
        'set_state(), such as iter(grain_dataset), so that a run can be resumed exactly.'
      )
    self._batches, self._mesh, self._accumulate = batches, mesh, accumulate
    self.batch_size = batch_size
    self._rows: int | None = None
    if batch_size is not None:
      self._rows = self._share(batch_size)
    self._ahead: tuple[Any, Any] | None = None
    self.position = batches.get_state()

  def restore(self, position: Any) -> None:
    """Goes to a position."""
    self._batches.set_state(position)
    self._ahead, self.position = None, position

  def fetch(self) -> None:
    """Reads a batch and starts its way to the devices, unless one is there already.

    Raises:
      StopIteration: if there is none.
      ValueError: if it is misshapen.
    """
    if self._ahead is None:
      rows = next(self._batches)
      self._check(rows)
      assert self.batch_size is not None
      batch = sharding.global_batch(self._mesh, rows, self.batch_size)
      self._ahead = batch, self._batches.get_state()

  def take(self) -> Any:
    """Returns the next global batch; raises what `fetch` does."""
    self.fetch()
    assert self._ahead is not None
    (batch, self.position), self._ahead = self._ahead, None
    return batch

  def _share(self, batch_size: int) -> int:
    """Rows of this process, of a batch that divides."""
    sharding.check_divides(self._mesh, ('data', 'fsdp'), batch_size, 'batch_size')
    if batch_size % self._accumulate:
      raise ValueError(
        f'batch_size = {batch_size} does not divide into accumulate = {self._accumulate} parts: '
        'change either.'
      )
    sharding.check_divides(
      self._mesh, ('data', 'fsdp'), batch_size // self._accumulate, 'batch_size / accumulate'
    )
    return len(sharding.batch_rows(self._mesh, batch_size))

  def _check(self, rows: Any) -> None:
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(rows)}
    one = len(sizes) == 1 and () not in sizes
    if one and self._rows is None:
      (size,) = next(iter(sizes))
      devices = sharding.axis_size(self._mesh, ('data', 'fsdp'))
      held = len(sharding.batch_rows(self._mesh, devices))
      self.batch_size = size * devices // held
      self._rows = self._share(self.batch_size)
    if not one or sizes != {(self._rows,)}:
      expected = 'the same'
      if self._rows is not None:
        expected = f'batch_size = {self.batch_size}'
        if self._rows != self.batch_size:
          expected = f"{self._rows}, this process's rows of {expected}"
      raise ValueError(
        f"The batch's leaves have leading axes {sorted(sizes)}: expected every one to be "
        f"{expected}. Batch the dataset accordingly."
      )
