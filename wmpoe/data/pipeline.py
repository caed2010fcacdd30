"""The input pipeline: random access in, batches out, resumable to the exact next batch."""

from collections.abc import Callable, Sequence
from typing import Any

import grain
import jax
import numpy as np


class _Batches:
  """A random-access source of batches: rows `rows` of the global batch, of an endless order."""

  def __init__(self, examples: Any, batch_size: int, rows: Sequence[int]):
    self._examples, self._batch_size, self._rows = examples, batch_size, list(rows)

  def __len__(self) -> int:
    return len(self._examples) // self._batch_size

  def __getitem__(self, index: int) -> Any:
    first = index * self._batch_size
    examples = [self._examples[first + row] for row in self._rows]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *examples)


def make_pipeline(
    source: Any,
    *,
    transform: Callable[..., Any] | None = None,
    batch_size: int,
    seed: int,
    rows: Sequence[int] | None = None,
    epochs: int | None = None,
    shuffle: bool = True,
    num_threads: int = 1,
    prefetch: int = 64,
) -> grain.IterDataset:
  """Shuffled, repeated, randomly transformed batches, or one process's rows of them.

  The stream of global batches is a pure function of the arguments, whatever the number of threads
  and of processes: a process reads the examples of its own rows and no others. An iterator of it
  has `get_state()` and `set_state(state)`: a restored one continues with the identical batch. The
  state counts batches, so it is the same in every process and holds for any number of them.

  Args:
    source: random access, `len(source)` and `source[i]`.
    transform: `(element, rng: np.random.Generator) -> element`, such as `cards.RandomClip`; the
      generator depends on the seed, the epoch and the element alone.
    batch_size: examples per batch of ALL processes; an incomplete last batch is dropped.
    seed: of the order and of the transform.
    rows: rows of every batch that this process provides, see `sharding.batch_rows`; all if None.
    epochs: passes over the source, None for no end.
    shuffle: a new order each epoch, rather than the source's own.
    num_threads: reading threads; more than one helps only where reading waits (disks, decoders).
    prefetch: examples made ahead, at least a batch.

  Returns:
    A grain dataset of batched pytrees; `iter(dataset)` is resumable.

  Raises:
    ValueError: rows that are not in the batch, or a source smaller than one batch.
  """
  if batch_size < 1 or (len(source) < batch_size and epochs is not None) or not len(source):
    raise ValueError(
        f'make_pipeline got batch_size={batch_size} and {len(source)} examples; '
        'expected 1 <= batch_size <= examples. Lower the batch size or give more episodes.'
    )
  rows = range(batch_size) if rows is None else [int(row) for row in rows]
  if not rows or min(rows) < 0 or max(rows) >= batch_size:
    raise ValueError(
        f'make_pipeline got rows={list(rows)} of batch_size={batch_size}; expected at least one '
        f'of 0 ... {batch_size - 1}.'
    )
  dataset = grain.MapDataset.source(source).seed(seed)
  if shuffle:
    dataset = dataset.shuffle()
  # The slice is the whole: grain's seeds depend on how many steps lie between.
  dataset = dataset.slice(slice(None)).repeat(epochs)
  if transform is not None:
    dataset = dataset.random_map(transform)
  ahead = max(1, prefetch // len(rows))
  options = grain.ReadOptions(
      num_threads=min(num_threads, ahead), prefetch_buffer_size=ahead)
  batches = grain.MapDataset.source(_Batches(dataset, batch_size, rows))
  return batches.to_iter_dataset(options)
