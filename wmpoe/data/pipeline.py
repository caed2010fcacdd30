"""The input pipeline: random access in, batches out, resumable to the exact next batch."""

from collections.abc import Callable
from typing import Any

import grain


def make_pipeline(
    source: Any,
    *,
    transform: Callable[..., Any] | None = None,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    epochs: int | None = None,
    shuffle: bool = True,
    num_threads: int = 1,
    prefetch: int = 64,
) -> grain.IterDataset:
  """Shuffled, sharded, repeated, randomly transformed batches.

  The stream is a pure function of the arguments, whatever the number of threads. An iterator of it
  has `get_state()` and `set_state(state)`: a restored one continues with the identical batch.

  Args:
    source: random access, `len(source)` and `source[i]`.
    transform: `(element, rng: np.random.Generator) -> element`, such as `cards.RandomClip`; the
      generator depends on the seed, the epoch and the element alone.
    batch_size: examples per batch of THIS process; an incomplete last batch is dropped.
    seed: of the order and of the transform.
    process_index: this process.
    process_count: processes that share the source; each reads every process_count-th element.
    epochs: passes over the source, None for no end.
    shuffle: a new order each epoch, rather than the source's own.
    num_threads: reading threads; more than one helps only where reading waits (disks, decoders).
    prefetch: examples made ahead.

  Returns:
    A grain dataset of batched pytrees; `iter(dataset)` is resumable.

  Raises:
    ValueError: impossible process numbers, or a share of the source smaller than one batch.
  """
  if not 0 <= process_index < process_count:
    raise ValueError(
        f'make_pipeline got process_index={process_index} of process_count={process_count}; '
        'expected 0 <= process_index < process_count.'
    )
  share = len(range(process_index, len(source), process_count))
  if batch_size < 1 or (share < batch_size and epochs is not None) or not share:
    raise ValueError(
        f'make_pipeline got batch_size={batch_size} and {share} examples for this process; '
        'expected 1 <= batch_size <= examples. Lower the batch size or give more episodes.'
    )
  dataset = grain.MapDataset.source(source).seed(seed)
  if shuffle:
    dataset = dataset.shuffle()
  dataset = dataset.slice(slice(process_index, None, process_count)).repeat(epochs)
  if transform is not None:
    dataset = dataset.random_map(transform)
  options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
  return dataset.to_iter_dataset(options).batch(batch_size, drop_remainder=True)
