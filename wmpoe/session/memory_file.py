"""The memory file: what running episodes remember, in one file.

An `archive` (npz without pickle, hash-checked, versioned, written whole or not at all) with one
array for each leaf of the session's state, exactly as it is: what is loaded dreams on bit for bit.
Nothing is stored in 16 bits; empty slots of rings are zeros, which take no space.

What only further writing needs, a long-term memory's history of frames and the state of its
optimiser, is left out unless asked for. Without it the file is half as large, and the memory can be
read, not written to.
"""

from collections.abc import Mapping
import datetime
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wmpoe import archive
from wmpoe import multihost
from wmpoe import sharding
from wmpoe import world_model
from wmpoe.session import identity
from wmpoe.session import memory_folder

FORMAT_VERSION = 2  # 1 told models apart by their weights alone
KIND = archive.Kind(
    what='memories', version=FORMAT_VERSION, prefix='state',
    fields=('parts', 'source', 'composition', 'key', 'episodes', 'observed', 'imagined', 'history',
            'lineage', 'wmpoe', 'created'),
    dtypes=('float32', 'float16', 'uint8', 'uint32', 'int32', 'bool'),
    writer='wmpoe.session.Session.save', remedy='Use an intact copy, or write it again.',
    compression=1, worthwhile=0.9)
_KEY = 'key'  # beside the state's own leaves, so that the hash covers it


def only_for_writing(model: world_model.WorldModel) -> tuple[str, ...]:
  """Paths of the parts of the state that only writing needs."""
  return tuple(
      f'memories/{name}/{field}/' for name, memory in model.memories.items()
      for field in getattr(memory, 'only_for_writing', ()))


def write(
    path: str | os.PathLike[str], model: world_model.WorldModel,
    state: world_model.WorldState, key: jax.Array, card: Mapping[str, Any], *, history: bool,
) -> dict[str, Any]:
  """Writes a session's state; returns the card as written. See `Session.save`."""
  left_out = only_for_writing(model)
  history = history or not left_out  # nothing is left out where there is nothing to leave out
  kept = {name: leaf for name, leaf in identity.leaves_of(state).items()
          if history or not name.startswith(left_out)}
  kept[_KEY] = np.asarray(jax.random.key_data(key))
  facts = {**card, 'history': history, 'key': str(jax.random.key_impl(key)),
           'composition': identity.describe(model)}
  if memory_folder.is_one(path):
    facts['format_version'] = FORMAT_VERSION
    memory_folder.write(path, kept, facts)
    return facts
  # Episodes that lie on several hosts are one session: all gather them, one writes.
  spread = not all(getattr(leaf, 'is_fully_addressable', True) for leaf in kept.values())
  leaves = {name: multihost.whole(leaf) for name, leaf in kept.items()}
  written = archive.write(path, KIND, facts, leaves, here=multihost.is_main() or not spread)
  if spread:
    multihost.barrier(f'{os.fspath(path)} is written')
  return written


def read(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """The leaves of a file by path and the card, checked by the hash; see `archive.read`.

  Raises:
    ValueError: for a folder, too.
  """
  if memory_folder.is_one(path):
    raise ValueError(f"'{path}' is a folder of memories; expected a file, *.npz.")
  return archive.read(path, KIND)


def card(path: str | os.PathLike[str]) -> dict[str, Any]:
  """The card alone, of a file or a folder; see `archive.card` and `memory_folder.card`."""
  if not memory_folder.is_one(path):
    return archive.card(path, KIND)
  found = memory_folder.card(path)
  if found.get('format_version') != FORMAT_VERSION:
    raise ValueError(
        f"'{path}' is of format version {found.get('format_version')}; expected {FORMAT_VERSION}. "
        'Read it with the version of wmpoe that wrote it.')
  return found


def leaves_at(
    path: str | os.PathLike[str], mesh: jax.sharding.Mesh | None
) -> tuple[dict[str, Any], dict[str, Any]]:
  """The leaves by path and the card, of a file or a folder, spread over a mesh if one is given."""
  one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  each, all_of = (one, one) if mesh is None else (
      sharding.episode_sharding(mesh), sharding.replicated(mesh))
  place = lambda name: all_of if name == _KEY else each
  if memory_folder.is_one(path):
    facts = card(path)
    names = memory_folder.shapes(path)
    return memory_folder.read(path, {name: place(name) for name in names}), facts
  leaves, facts = read(path)
  if mesh is not None:
    leaves = {name: jax.device_put(leaf, place(name)) for name, leaf in leaves.items()}
  return leaves, facts


def fork(
    source: str | os.PathLike[str], destination: str | os.PathLike[str], branch: int
) -> dict[str, Any]:
  """Copies a file into one that remembers the same and dreams differently; returns its card.

  Needs no model: only the random key and the lineage change.

  Raises:
    ValueError: if the source is damaged or is not a memory file, or if the destination does not end
      in `.npz`.
    FileNotFoundError: if there is no source.
  """
  leaves, facts = read(source)
  key = jax.random.wrap_key_data(jax.device_put(leaves[_KEY]), impl=facts['key'])
  leaves[_KEY] = np.asarray(jax.random.key_data(jax.random.fold_in(key, branch)))
  parent = f'{os.path.basename(source)} {facts["sha256"][:12]}'
  lineage = [*facts['lineage'], parent, f'forked as {branch}']
  return archive.write(destination, KIND, {**facts, 'lineage': lineage, 'created': now()}, leaves)


def now() -> str:
  """The time, in the format of cards."""
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def restore(
    leaves: Mapping[str, np.ndarray], facts: Mapping[str, Any],
    model: world_model.WorldModel, *, where: str,
) -> tuple[world_model.WorldState, jax.Array]:
  """The state and the key in a file.

  Args:
    leaves: What `read` returned.
    facts: The card.
    model: Composed as the card says.
    where: Name of the file, for messages.

  Raises:
    ValueError: if the leaves are not those of the model's state.
  """
  leaves = dict(leaves)
  data = leaves.pop(_KEY, None)
  like = jax.eval_shape(lambda: model.init(facts['episodes']))
  absent = () if facts['history'] else only_for_writing(model)
  expected = {
      name: leaf.shape for name, leaf in identity.leaves_of(like).items()
      if not absent or not name.startswith(absent)}
  found = archive.differences(leaves, expected)
  if found or data is None:
    raise ValueError(f"The state in '{where}' does not fit the model. {found or 'It has no key.'}.")

  place = getattr(next(iter(leaves.values()), None), 'sharding', None)

  def leaf(keys, shape):
    stored = leaves.get(identity.path_of(keys))
    if stored is None:
      return jnp.zeros(shape.shape, shape.dtype, device=place)
    return jax.device_put(stored) if place is None else stored

  state = jax.tree_util.tree_map_with_path(leaf, like)
  return state, jax.random.wrap_key_data(jax.device_put(np.asarray(data)), impl=facts['key'])
