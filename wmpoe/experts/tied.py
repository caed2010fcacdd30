"""Pytrees that keep what their parts share, and the order of what they name.

A model's parts share parameters: the base's serve its long-term memory, too. A plain pytree forgets
that when it passes through `jax.jit`, where every leaf becomes a tracer of its own, and sorts its
mappings. Here an array that occurs several times is one leaf, and comes back as one array: branches
with the same parameters still know it (`composition.evaluate` runs them together), and weights are
sent, copied and counted once.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, dataclass_transform, TypeVar

from flax import struct
import jax
import numpy as np

T = TypeVar('T')
_ARRAYS = (jax.Array, np.ndarray, jax.ShapeDtypeStruct)


@dataclass_transform(frozen_default=True, field_specifiers=(struct.field,))
def dataclass(cls: type[T]) -> type[T]:
  """A frozen dataclass that is a pytree as `flax.struct.dataclass` makes them, but for the above.

  Static fields are those of `struct.field(pytree_node=False)`. What is shared is found when an
  object is made; scalars never count as shared, so that new weights are no new structure.
  """
  cls.__post_init__ = lambda one: find(one)  # type: ignore[attr-defined]
  made = dataclasses.dataclass(frozen=True)(cls)
  fields = dataclasses.fields(made)  # type: ignore[arg-type]
  nodes = [f.name for f in fields if f.metadata.get('pytree_node', True)]
  static = [f.name for f in fields if f.name not in nodes]

  def parts(one: Any) -> tuple[tuple[tuple[str, tuple[str, ...] | None], ...], list[Any]]:
    """The names and values of all nodes; a mapping's by its keys, in its order."""
    names, values = [], []
    for name in nodes:
      value = getattr(one, name)
      keys = tuple(value) if isinstance(value, Mapping) else None
      names.append((name, keys))
      values += [value] if keys is None else [value[key] for key in keys]
    return tuple(names), values

  def find(one: Any) -> None:
    """Which leaf each occurrence of an array is."""
    _, values = parts(one)
    known: dict[int, int] = {}
    places = []
    for number, leaf in enumerate(jax.tree.leaves(values)):
      shared = isinstance(leaf, _ARRAYS) and leaf.ndim > 0
      places.append(known.setdefault(id(leaf) if shared else -number, len(known)))
    object.__setattr__(one, '_places', tuple(places))

  def flatten_with_keys(one: Any) -> tuple[list[Any], Any]:
    names, values = parts(one)
    roots = [f'{name}/{key}' if keys is not None else name
             for name, keys in names for key in (keys if keys is not None else ('',))]
    path_of = lambda root, path: f'{root}/{jax.tree_util.keystr(path, simple=True, separator="/")}'
    flat = [
        (jax.tree_util.GetAttrKey(path_of(root, path).rstrip('/')), leaf)
        for root, value in zip(roots, values, strict=True)
        for path, leaf in jax.tree_util.tree_leaves_with_path(value)]
    return once(one, flat), aux(one, names, values)

  def flatten(one: Any) -> tuple[list[Any], Any]:
    names, values = parts(one)
    return once(one, jax.tree.leaves(values)), aux(one, names, values)

  def once(one: Any, leaves: list[Any]) -> list[Any]:
    """Of leaves that are one array the first."""
    found: dict[int, Any] = {}
    for place, leaf in zip(one._places, leaves, strict=True):
      found.setdefault(place, leaf)
    return list(found.values())

  def aux(one: Any, names: Any, values: Any) -> Any:
    return (
        names, jax.tree.structure(values), one._places, tuple(getattr(one, n) for n in static))

  def unflatten(about: Any, leaves: Any) -> Any:
    names, structure, places, fixed = about
    leaves = list(leaves)
    values = iter(jax.tree.unflatten(structure, [leaves[place] for place in places]))
    one = object.__new__(made)
    for name, keys in names:
      value = next(values) if keys is None else {key: next(values) for key in keys}
      object.__setattr__(one, name, value)
    for name, value in zip(static, fixed, strict=True):
      object.__setattr__(one, name, value)
    object.__setattr__(one, '_places', places)
    return one

  made.replace = dataclasses.replace  # type: ignore[attr-defined]
  jax.tree_util.register_pytree_with_keys(made, flatten_with_keys, unflatten, flatten)
  return made
