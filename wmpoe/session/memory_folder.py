"""The memory folder: what many episodes of a pod remember, written by all of its hosts at once.

A memory file (`memory_file`) gathers every episode on one host. A folder is a checkpoint of orbax:
each host writes the episodes that lie on it, to a disk they share or to an object store, and they
are read onto any mesh. It is there whole or not at all, and holds the same leaves and the same card
as a file, without the hash.
"""

from collections.abc import Mapping
import os
from typing import Any

from etils import epath  # comes with orbax, whose paths these are
from flax import traverse_util
import jax
import orbax.checkpoint as ocp

from wmpoe import multihost
from wmpoe import whole_file

_STATE, _CARD = 'state', 'card'


def is_one(path: str | os.PathLike[str]) -> bool:
  """Whether a path names a folder: it has no suffix."""
  return not epath.Path(path).suffix


def write(
    path: str | os.PathLike[str], leaves: Mapping[str, jax.Array], card: Mapping[str, Any]
) -> None:
  """Writes leaves by path and their card; in a pod every process calls it.

  Raises:
    FileExistsError: if there is something of that name.
  """
  folder = whole_file.anywhere(path)
  taken = folder.exists()
  multihost.barrier(f'{folder} was looked for')  # before anybody makes it
  if taken:
    raise FileExistsError(f"'{folder}' already exists: name another folder, or remove it.")
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
    writer.save(folder, args=ocp.args.Composite(**{
        _STATE: ocp.args.StandardSave(traverse_util.unflatten_dict(dict(leaves), sep='/')),
        _CARD: ocp.args.JsonSave(dict(card))}))


def card(path: str | os.PathLike[str]) -> dict[str, Any]:
  """The card alone.

  Raises:
    FileNotFoundError: if there is no such folder.
    ValueError: if it is no memory folder.
  """
  with _open(path) as reader:
    return reader.restore(whole_file.anywhere(path), args=ocp.args.Composite(
        **{_CARD: ocp.args.JsonRestore()}))[_CARD]


def shapes(path: str | os.PathLike[str]) -> dict[str, jax.ShapeDtypeStruct]:
  """Shape and dtype of the leaves by path; see `card` for errors."""
  with _open(path) as reader:
    found = reader.metadata(whole_file.anywhere(path)).item_metadata[_STATE]
  flat = traverse_util.flatten_dict(getattr(found, 'tree', found), sep='/')
  return {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in flat.items()}


def read(
    path: str | os.PathLike[str], places: Mapping[str, jax.sharding.Sharding]
) -> dict[str, jax.Array]:
  """The leaves by path, each straight into its place; see `card` for errors.

  Args:
    path: The folder.
    places: By path, of all leaves that are there.
  """
  like = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=places[name])
          for name, leaf in shapes(path).items()}
  with _open(path) as reader:
    tree = reader.restore(whole_file.anywhere(path), args=ocp.args.Composite(**{
        _STATE: ocp.args.StandardRestore(traverse_util.unflatten_dict(like, sep='/'))}))[_STATE]
  return traverse_util.flatten_dict(tree, sep='/')


def _open(path: str | os.PathLike[str]) -> ocp.Checkpointer:
  folder = whole_file.anywhere(path)
  if not folder.exists():
    raise FileNotFoundError(f"'{folder}' does not exist: expected a folder of memories.")
  if not all((folder / item).exists() for item in (_STATE, _CARD)):
    raise ValueError(
        f"'{folder}' is no folder of memories: expected one that wmpoe.session.Session.save wrote, "
        f'with {_STATE} and {_CARD} inside.')
  return ocp.Checkpointer(ocp.CompositeCheckpointHandler(
      **{_STATE: ocp.StandardCheckpointHandler(), _CARD: ocp.JsonCheckpointHandler()}))
