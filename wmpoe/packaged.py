"""Packaged experts: the weights of one network in one file, without pickle.

A file is an ordinary `.npz` (a zip that `numpy.load(path, allow_pickle=False)` reads too):

  card.json                     what the weights are and where they come from
  params/<a/b/c>.npy            one float16 or float32 array for each leaf `params['a']['b']['c']`

The card holds config, data, seed, steps, command, result and licence, given by whoever saves, and
format_version, dtype, num_parameters and sha256, which `save` works out. The hash runs over the
leaves in the order of their paths, and for each over its path, dtype, shape and bytes, so that a
renamed or reshaped leaf is found as well as a changed one. It guards against damage and mix-ups,
not against an attacker, who could replace the hash with the weights.

Equal parameters and cards give equal files, byte for byte.
"""

from collections.abc import Mapping
import hashlib
from importlib import resources
import io
import json
import os
import pathlib
import secrets
from typing import Any
import zipfile

import jax
import jax.numpy as jnp
import numpy as np

FORMAT_VERSION = 1
CARD_FIELDS = ('config', 'data', 'seed', 'steps', 'command', 'result', 'licence')

_CARD_MEMBER = 'card.json'
_PREFIX = 'params/'
_SUFFIX = '.npy'
_DTYPES = ('float16', 'float32')
# A fixed time keeps equal contents equal as files; 1980 is where zip's calendar begins.
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
_MOST_NAMED = 20


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
  if destination.suffix != '.npz':
    raise ValueError(f"Packaged weights are files named *.npz, got '{destination}'.")
  if dtype not in _DTYPES:
    raise ValueError(f'dtype must be one of {", ".join(_DTYPES)}, got {dtype!r}.')
  absent = [field for field in CARD_FIELDS if field not in card]
  if absent:
    raise ValueError(
      f'The card of {destination.name} lacks {", ".join(absent)}: every packaged expert says where '
      'it comes from. Add these fields.'
    )
  leaves = {leaf: _as_stored(leaf, value, dtype=dtype) for leaf, value in _flatten(params).items()}
  if not leaves:
    raise ValueError(f'There is no leaf in the params for {destination.name}: nothing to save.')
  full_card = dict(card) | {
    'format_version': FORMAT_VERSION,
    'dtype': dtype,
    'num_parameters': sum(leaf.size for leaf in leaves.values()),
    'sha256': _digest(leaves),
  }
  try:
    card_text = json.dumps(full_card, indent=2, sort_keys=True, allow_nan=False)
  except (TypeError, ValueError) as error:
    raise TypeError(
      f'The card of {destination.name} must be made of dicts, lists, strings, finite numbers, '
      f'booleans and None ({error}). Convert it first, a ConfigDict by its to_dict().'
    ) from error
  _write_atomically(destination, _to_bytes(card_text, leaves))
  return json.loads(card_text)


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
  full_card, members = _read(source)
  leaves = _read_leaves(source, members)
  digest = _digest(leaves)
  if digest != full_card['sha256']:
    raise ValueError(
      f"'{source}' is damaged: its weights have sha256 {digest}, its card says "
      f'{full_card["sha256"]}. Fetch or train it again.'
    )
  if like is not None:
    _check_like(source, leaves, {leaf: np.shape(v) for leaf, v in _flatten(like).items()})
  arrays = {leaf: jnp.asarray(value.astype(np.float32)) for leaf, value in leaves.items()}
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
  return _read(pathlib.Path(path))[0]


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
    # Little-endian whatever the machine, for the hash is over bytes.
    stored = exact.astype(np.dtype(dtype).newbyteorder('<'))
  if not np.isfinite(exact.astype(np.float64)).all():
    raise ValueError(f"Leaf '{path}' holds NaN or infinity: such weights are not worth saving.")
  if not np.isfinite(stored).all():
    raise ValueError(
      f"Leaf '{path}' reaches {np.abs(exact).max()}, but {dtype} ends at {np.finfo(dtype).max}. "
      "Save it with dtype='float32', or look for what made it so large."
    )
  return stored


def _digest(leaves: Mapping[str, np.ndarray]) -> str:
  digest = hashlib.sha256()
  for path, leaf in sorted(leaves.items()):
    # json.dumps delimits what follows one another: no two lists of leaves give the same text.
    digest.update(json.dumps([path, leaf.dtype.str, leaf.shape]).encode())
    digest.update(leaf.tobytes())
  return digest.hexdigest()


def _to_bytes(card_text: str, leaves: Mapping[str, np.ndarray]) -> bytes:
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as archive:
    _add_member(archive, _CARD_MEMBER, card_text.encode())
    for path, leaf in leaves.items():
      member = io.BytesIO()
      np.lib.format.write_array(member, leaf, allow_pickle=False)
      _add_member(archive, f'{_PREFIX}{path}{_SUFFIX}', member.getvalue())
  return buffer.getvalue()


def _add_member(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
  archive.writestr(
    zipfile.ZipInfo(name, date_time=_ZIP_TIME), content, compress_type=zipfile.ZIP_DEFLATED
  )


def _write_atomically(destination: pathlib.Path, content: bytes) -> None:
  destination.parent.mkdir(parents=True, exist_ok=True)
  # In the same folder, since a rename is atomic only within one file system. The name doesn't end
  # in .npz: what a killed run leaves behind is never taken for an expert.
  temporary = destination.with_name(f'.{destination.name}.{secrets.token_hex(4)}.tmp')
  try:
    with open(temporary, 'xb') as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, destination)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


def _read(source: pathlib.Path) -> tuple[dict[str, Any], dict[str, bytes]]:
  """Returns the card, checked, and the other members of the zip, not yet looked at."""
  content = source.read_bytes()
  try:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
      listed = archive.namelist()
      members = {name: archive.read(name) for name in listed}
  except Exception as error:  # Damage surfaces in zipfile and zlib as a dozen unrelated types.
    raise ValueError(
      f"'{source}' ({len(content)} bytes) cannot be read as packaged weights: it is truncated, "
      f'damaged or no .npz file ({error}). Fetch or train it again.'
    ) from error
  if len(members) != len(listed):
    raise ValueError(f"'{source}' holds a member twice: it was not written by wmpoe.")
  if _CARD_MEMBER not in members:
    raise ValueError(
      f"'{source}' has no {_CARD_MEMBER}, so these are not packaged weights. wmpoe.packaged.save "
      'writes such files.'
    )
  try:
    facts = json.loads(members.pop(_CARD_MEMBER))
  except ValueError as error:
    raise ValueError(f"The {_CARD_MEMBER} in '{source}' is not JSON: {error}.") from error
  version = facts.get('format_version') if isinstance(facts, dict) else None
  if version != FORMAT_VERSION:
    raise ValueError(
      f"'{source}' is of format version {version!r}; this wmpoe reads version {FORMAT_VERSION}. "
      'Use the wmpoe that wrote it, or train it again.'
    )
  absent = [f for f in (*CARD_FIELDS, 'dtype', 'num_parameters', 'sha256') if f not in facts]
  if absent:
    raise ValueError(f"The card in '{source}' lacks {', '.join(absent)}.")
  return facts, members


def _read_leaves(source: pathlib.Path, members: Mapping[str, bytes]) -> dict[str, np.ndarray]:
  leaves = {}
  for name, content in members.items():
    if not (name.startswith(_PREFIX) and name.endswith(_SUFFIX)):
      raise ValueError(f"'{source}' holds '{name}', which is neither its card nor a leaf.")
    try:
      leaf = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # A damaged header can raise nearly anything, MemoryError included.
      raise ValueError(
        f"'{name}' in '{source}' is not a plain array ({error}). Pickled objects are never loaded."
      ) from error
    if leaf.dtype.str not in ('<f2', '<f4'):
      raise ValueError(f"'{name}' in '{source}' is {leaf.dtype}, expected {' or '.join(_DTYPES)}.")
    leaves[name[len(_PREFIX) : -len(_SUFFIX)]] = leaf
  return dict(sorted(leaves.items()))


def _check_like(
  source: pathlib.Path,
  leaves: Mapping[str, np.ndarray],
  expected: Mapping[str, tuple[int, ...]],
) -> None:
  problems = {
    'missing': [path for path in expected if path not in leaves],
    'extra': [path for path in leaves if path not in expected],
    'misshapen': [
      f'{path} (file {leaves[path].shape}, model {shape})'
      for path, shape in expected.items()
      if path in leaves and leaves[path].shape != shape
    ],
  }
  if any(problems.values()):
    described = []
    for kind, found in problems.items():
      if found:
        more = f' and {len(found) - _MOST_NAMED} more' if len(found) > _MOST_NAMED else ''
        described.append(f'{len(found)} {kind}: {", ".join(found[:_MOST_NAMED])}{more}')
    raise ValueError(
      f"The weights in '{source}' do not fit the model. {'; '.join(described)}. Build the model "
      "with the config on the file's card (wmpoe.packaged.card)."
    )
