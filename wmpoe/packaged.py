"""Packaged experts: the weights of one network in one file, without pickle.

The file is an `archive` with one float16 or float32 array `params/a/b/c` for each leaf
`params['a']['b']['c']`. The card holds config, data, seed, steps, command, result and licence,
given by whoever saves, and format_version, dtype, num_parameters and sha256, which `save` works
out.
"""

from collections.abc import Mapping
from importlib import resources
import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wmpoe import archive

FORMAT_VERSION = 1
CARD_FIELDS = ('config', 'data', 'seed', 'steps', 'command', 'result', 'licence')

_KIND = archive.Kind(
  what='packaged weights', version=FORMAT_VERSION, prefix='params',
  fields=(*CARD_FIELDS, 'dtype', 'num_parameters'), dtypes=('float16', 'float32'),
  writer='wmpoe.packaged.save', remedy='Fetch or train it again.',
)


def save(
  path: str | os.PathLike[str],
  params: Any,
  card: Mapping[str, Any],
  *,
  dtype: str = 'float16',
) -> dict[str, Any]:
  """Writes parameters and their card into one file, whole or not at all.

  The file is written beside its destination under a temporary name and renamed when it is complete,
  so that a reader, or a run that is killed, sees the former file or the new one.

  Args:
    path: the destination, ending in `.npz`. Its folder is made if need be.
    params: nested dicts of floating-point arrays of any shape, as Linen's `init` returns them. A
      dict without any leaf under it is not kept.
    card: JSON-like facts about the weights: at least those of `CARD_FIELDS`. Values that `save`
      works out itself are replaced, so a loaded card can be handed on.
    dtype: 'float16' (half the size) or 'float32' (exact).

  Returns:
    The card as it was written.

  Raises:
    ValueError: if the path doesn't end in `.npz`, the card lacks a field, the dtype is another, a
      key can't be part of a path, there is no leaf, or a value is not finite in `dtype`.
    TypeError: if params has a container other than a dict, a key that is no string or a leaf that
      is not floating-point, or if the card is not made of JSON types.
    OSError: if the folder can't be written to.
  """
  destination = pathlib.Path(path)
  archive.check_name(destination, _KIND)
  if dtype not in _KIND.dtypes:
    raise ValueError(f'dtype must be one of {", ".join(_KIND.dtypes)}, got {dtype!r}.')
  absent = [field for field in CARD_FIELDS if field not in card]
  if absent:
    raise ValueError(
      f'The card of {destination.name} lacks {", ".join(absent)}: every packaged expert says where '
      'it comes from. Add these fields.'
    )
  leaves = {leaf: _as_stored(leaf, value, dtype=dtype) for leaf, value in _flatten(params).items()}
  if not leaves:
    raise ValueError(f'There is no leaf in the params for {destination.name}: nothing to save.')
  return archive.write(
    destination, _KIND,
    dict(card) | {'dtype': dtype, 'num_parameters': sum(leaf.size for leaf in leaves.values())},
    leaves,
  )


def load(path: str | os.PathLike[str], like: Any = None) -> tuple[Any, dict[str, Any]]:
  """Reads parameters and their card, having checked that they are what was saved.

  Args:
    path: a file that `save` wrote; for a packaged expert `find(name)`.
    like: a pytree of nested dicts whose leaves have a `shape`, e.g. from
      `jax.eval_shape(module.init, key, x)['params']`. The file must hold exactly these leaves. Only
      paths and shapes are compared: the result is float32 whatever the dtypes of `like`.

  Returns:
    `(params, card)`: the parameters as float32 JAX arrays, in the structure of `like` or else in
    nested dicts, and the card.

  Raises:
    ValueError: if the file is no such file, is damaged, of another format version, holds a pickle,
      doesn't have the hash on its card, or has missing, extra or misshapen leaves against `like`,
      which are named. Nothing is ever loaded in part.
    FileNotFoundError: if there is no file.
  """
  source = pathlib.Path(path)
  leaves, full_card = archive.read(source, _KIND)
  if like is not None:
    found = archive.differences(leaves, {leaf: np.shape(v) for leaf, v in _flatten(like).items()})
    if found:
      raise ValueError(
        f"The weights in '{source}' do not fit the model. {found}. Build the model with the config "
        "on the file's card (wmpoe.packaged.card)."
      )
  # Not jnp.asarray, which compiles a copy for every shape.
  arrays = jax.device_put({leaf: value.astype(np.float32) for leaf, value in leaves.items()})
  if like is None:
    return _unflatten(arrays), full_card
  return jax.tree_util.tree_map_with_path(lambda keys, _: arrays[_path(keys)], like), full_card


def card(path: str | os.PathLike[str]) -> dict[str, Any]:
  """Reads the card alone; the hash on it is compared with the weights only by `load`.

  Args:
    path: a file that `save` wrote; for a packaged expert `find(name)`.

  Returns:
    The card: `CARD_FIELDS`, format_version, dtype, num_parameters and sha256.

  Raises:
    ValueError: if the file is no such file, is damaged or of another format version.
    FileNotFoundError: if there is no file.
  """
  return archive.card(path, _KIND)


def names() -> list[str]:
  """Returns the names of the experts that come with the package, in alphabetical order."""
  folder = _folder()
  return sorted(file.stem for file in folder.glob('*.npz')) if folder.is_dir() else []


def find(name: str) -> pathlib.Path:
  """Returns the file of a packaged expert.

  Args:
    name: one of `names()`.

  Returns:
    Its path, for `load` and `card`.

  Raises:
    ValueError: if no packaged expert has this name; the message lists those there are.
  """
  known = names()
  if name not in known:
    raise ValueError(
      f"No packaged expert is named '{name}'. There are: {', '.join(known) or 'none'}."
    )
  return _folder() / f'{name}.npz'


def info() -> str:
  """Describes every packaged expert: size, origin, result and licence, as text for a terminal."""
  known = names()
  if not known:
    return f"No packaged experts in '{_folder()}'."
  return '\n\n'.join(_describe(name) for name in known)


def _describe(name: str) -> str:
  path = find(name)
  facts = card(path)
  lines = [
    f'{name}  ({facts["num_parameters"]:,} parameters, {facts["dtype"]}, '
    f'{path.stat().st_size / 1e6:.2f} MB)'
  ]
  for field in (*CARD_FIELDS, 'sha256'):
    value = facts[field]
    lines.append(f'  {field:<8} {value if isinstance(value, str) else json.dumps(value)}')
  return '\n'.join(lines)


def _folder() -> pathlib.Path:
  return pathlib.Path(str(resources.files('wmpoe') / 'packaged_weights'))


def _path(keys: tuple[Any, ...]) -> str:
  return '/'.join(key.key for key in keys)


def _flatten(tree: Any) -> dict[str, Any]:
  """Returns the leaves by their '/'-joined paths, in the order of these."""
  leaves = {}
  for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    where = jax.tree_util.keystr(keys) or 'the tree itself'
    if not keys or not all(isinstance(k, jax.tree_util.DictKey) for k in keys):
      raise TypeError(f'Packaged weights are nested dicts of arrays; {where} is held otherwise.')
    for key in keys:
      if not isinstance(key.key, str):
        raise TypeError(f'Packaged weights have strings as keys; {where} has {key.key!r}.')
      # Such keys would make two paths alike, or a zip member that reads back under another name.
      if not key.key or not key.key.isprintable() or '/' in key.key or '\\' in key.key:
        raise ValueError(f'The key {key.key!r} in {where} cannot be part of a path: rename it.')
    leaves[_path(keys)] = leaf
  return dict(sorted(leaves.items()))


def _unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
  tree: dict[str, Any] = {}
  for path, leaf in leaves.items():
    *parents, last = path.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf
  return tree


def _as_stored(path: str, value: Any, *, dtype: str) -> np.ndarray:
  if not hasattr(value, 'dtype') or not jnp.issubdtype(value.dtype, jnp.floating):
    kind = getattr(value, 'dtype', type(value).__name__)
    raise TypeError(f"Leaf '{path}' must be a floating-point array, got {kind}.")
  exact = np.asarray(value)
  with np.errstate(over='ignore'):
    stored = exact.astype(np.dtype(dtype))
  if not np.isfinite(exact.astype(np.float64)).all():
    raise ValueError(f"Leaf '{path}' holds NaN or infinity: such weights are not worth saving.")
  if not np.isfinite(stored).all():
    raise ValueError(
      f"Leaf '{path}' reaches {np.abs(exact).max()}, but {dtype} ends at {np.finfo(dtype).max}. "
      "Save it with dtype='float32', or look for what made it so large."
    )
  return stored
