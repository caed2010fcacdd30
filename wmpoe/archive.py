"""Arrays and a card of facts in one file, without pickle: what packaged weights and memories share.

A file is an ordinary `.npz` (a zip that `numpy.load(path, allow_pickle=False)` reads too):

  card.json                     what the arrays are and where they come from
  <prefix>/<a/b/c>.npy          one array for each leaf

The card has at least the fields its kind of file asks for, format_version and sha256. The hash runs
over the leaves in the order of their paths, and for each over its path, dtype, shape and bytes, so
that a renamed or reshaped leaf is found as well as a changed one. It guards against damage and
mix-ups, not against an attacker, who could replace the hash with the arrays.

Equal leaves and cards give equal files, byte for byte. A file is written beside its destination
under a temporary name and renamed when it is complete, so that a reader, or a run that is killed,
sees the former file or the new one.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import io
import json
import os
import pathlib
from typing import Any
import zipfile
import zlib

import numpy as np

from wmpoe import whole_file

_CARD_MEMBER = 'card.json'
_SUFFIX = '.npy'
# A fixed time keeps equal contents equal as files; 1980 is where zip's calendar begins.
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
_MOST_NAMED = 20
_SAMPLE = 2048


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
  """A kind of file.

  Attributes:
    what: What such a file holds, for messages.
    version: Format version it is written in and must have to be read.
    prefix: Folder of the leaves inside the file.
    fields: Fields every card has, besides format_version and sha256.
    dtypes: Names of the dtypes leaves may have.
    writer: Who writes such files, for messages.
    remedy: What to do when one is damaged.
    compression: 0 (none) to 9 of zip's deflate.
    worthwhile: Members of which a sample is not compressed to this share are stored as they are:
      most floats take long to compress to little less.
  """

  what: str
  version: int
  prefix: str
  fields: tuple[str, ...]
  dtypes: tuple[str, ...]
  writer: str
  remedy: str
  compression: int = 6
  worthwhile: float = 1.0


def write(
    path: str | os.PathLike[str], kind: Kind, card: Mapping[str, Any],
    leaves: Mapping[str, np.ndarray], *, here: bool = True,
) -> dict[str, Any]:
  """Writes leaves by path and their card into one file, whole or not at all.

  Args:
    path: The destination, ending in `.npz`. Its folder is made if need be.
    kind: Kind of file.
    card: JSON-like facts; format_version and sha256 are replaced.
    leaves: Arrays of any shape by their '/'-joined paths.
    here: False where another process of a pod writes the file: all is checked, nothing written.

  Returns:
    The card as it was written.

  Raises:
    ValueError: if the path doesn't end in `.npz`.
    TypeError: if the card is not made of JSON types, or a leaf has a dtype such files don't hold.
    OSError: if the folder can't be written to.
  """
  destination = pathlib.Path(path)
  check_name(destination, kind)
  for name, leaf in leaves.items():
    if leaf.dtype.name not in kind.dtypes:
      raise TypeError(
          f"Leaf '{name}' is {leaf.dtype.name}; files of {kind.what} hold "
          f'{", ".join(kind.dtypes)}.')
  # Little-endian whatever the machine, for the hash is over bytes.
  leaves = {
      name: np.asarray(leaf, leaf.dtype.newbyteorder('<'))
      for name, leaf in sorted(leaves.items())}
  full_card = dict(card) | {'format_version': kind.version, 'sha256': _digest(leaves)}
  try:
    card_text = json.dumps(full_card, indent=2, sort_keys=True, allow_nan=False)
  except (TypeError, ValueError) as error:
    raise TypeError(
        f'The card of {destination.name} must be made of dicts, lists, strings, finite numbers, '
        f'booleans and None ({error}). Convert it first, a ConfigDict by its to_dict().'
    ) from error
  if here:
    whole_file.write(destination, _to_bytes(kind, card_text, leaves))
  return json.loads(card_text)


def check_name(path: pathlib.Path, kind: Kind) -> None:
  """Checks that a destination is named as such files are.

  Raises:
    ValueError: if it doesn't end in `.npz`.
  """
  if path.suffix != '.npz':
    raise ValueError(f"{kind.what[0].upper()}{kind.what[1:]} are files named *.npz, got '{path}'.")


def read(
    path: str | os.PathLike[str], kind: Kind
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Reads the leaves by path, in the order of these, and their card, checked by the hash.

  Raises:
    ValueError: if the file is no such file, is damaged, of another format version, holds a pickle,
      or doesn't have the hash on its card. Nothing is ever read in part.
    FileNotFoundError: if there is no file.
  """
  source = pathlib.Path(path)
  full_card, members = _read(source, kind)
  leaves = _read_leaves(source, kind, members)
  digest = _digest(leaves)
  if digest != full_card['sha256']:
    raise ValueError(
        f"'{source}' is damaged: its contents have sha256 {digest}, its card says "
        f'{full_card["sha256"]}. {kind.remedy}')
  return leaves, full_card


def card(path: str | os.PathLike[str], kind: Kind) -> dict[str, Any]:
  """Reads the card alone; the hash on it is compared with the leaves only by `read`.

  Raises:
    ValueError: if the file is no such file, is damaged or of another format version.
    FileNotFoundError: if there is no file.
  """
  return _read(pathlib.Path(path), kind)[0]


def digest_of(leaves: Mapping[str, Any]) -> str:
  """The hash of leaves by path, as it stands on a card."""
  return _digest({name: np.asarray(leaf) for name, leaf in leaves.items()})


def differences(
    leaves: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]]
) -> str:
  """Which leaves are missing, extra or misshapen against the expected shapes; '' if none are."""
  problems = {
      'missing': [path for path in expected if path not in leaves],
      'extra': [path for path in leaves if path not in expected],
      'misshapen': [
          f'{path} (file {leaves[path].shape}, model {shape})'
          for path, shape in expected.items()
          if path in leaves and leaves[path].shape != shape],
  }
  described = []
  for kind, found in problems.items():
    if found:
      more = f' and {len(found) - _MOST_NAMED} more' if len(found) > _MOST_NAMED else ''
      described.append(f'{len(found)} {kind}: {", ".join(found[:_MOST_NAMED])}{more}')
  return '; '.join(described)


def _digest(leaves: Mapping[str, np.ndarray]) -> str:
  digest = hashlib.sha256()
  for path, leaf in sorted(leaves.items()):
    # json.dumps delimits what follows one another: no two lists of leaves give the same text.
    digest.update(json.dumps([path, leaf.dtype.str, leaf.shape]).encode())
    digest.update(np.ascontiguousarray(leaf).data if leaf.size else b'')
  return digest.hexdigest()


def _to_bytes(kind: Kind, card_text: str, leaves: Mapping[str, np.ndarray]) -> bytes:
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as archive:
    def add(name: str, content: bytes) -> None:
      compress = _compressed_share(content, kind.compression) <= kind.worthwhile
      archive.writestr(
          zipfile.ZipInfo(name, date_time=_ZIP_TIME), content, compresslevel=kind.compression,
          compress_type=zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED)

    add(_CARD_MEMBER, card_text.encode())
    for path, leaf in leaves.items():
      member = io.BytesIO()
      np.lib.format.write_array(member, leaf, allow_pickle=False)
      add(f'{kind.prefix}/{path}{_SUFFIX}', member.getvalue())
  return buffer.getvalue()


def _compressed_share(content: bytes, level: int) -> float:
  """How small a sample of it becomes: 16 pieces, evenly spaced, as ends are often empty."""
  step = max(len(content) // 16, _SAMPLE)
  sample = b''.join(content[at:at + _SAMPLE] for at in range(0, len(content), step))
  return len(zlib.compress(sample, level)) / max(len(sample), 1)


def _read(source: pathlib.Path, kind: Kind) -> tuple[dict[str, Any], dict[str, bytes]]:
  """Returns the card, checked, and the other members of the zip, not yet looked at."""
  content = source.read_bytes()
  try:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
      listed = archive.namelist()
      members = {name: archive.read(name) for name in listed}
  except Exception as error:  # Damage surfaces in zipfile and zlib as a dozen unrelated types.
    raise ValueError(
        f"'{source}' ({len(content)} bytes) cannot be read as {kind.what}: it is truncated, "
        f'damaged or no .npz file ({error}). {kind.remedy}') from error
  if len(members) != len(listed):
    raise ValueError(f"'{source}' holds a member twice: it was not written by wmpoe.")
  if _CARD_MEMBER not in members:
    raise ValueError(
        f"'{source}' has no {_CARD_MEMBER}, so it does not hold {kind.what}. {kind.writer} "
        'writes such files.')
  try:
    facts = json.loads(members.pop(_CARD_MEMBER))
  except ValueError as error:
    raise ValueError(f"The {_CARD_MEMBER} in '{source}' is not JSON: {error}.") from error
  version = facts.get('format_version') if isinstance(facts, dict) else None
  if version != kind.version:
    raise ValueError(
        f"'{source}' is of format version {version!r}; this wmpoe reads version {kind.version} of "
        f'{kind.what}. Use the wmpoe that wrote it. {kind.remedy}')
  absent = [f for f in (*kind.fields, 'sha256') if f not in facts]
  if absent:
    raise ValueError(
        f"The card in '{source}' lacks {', '.join(absent)}. Files of {kind.what} are "
        f'written by {kind.writer}.')
  return facts, members


def _read_leaves(
    source: pathlib.Path, kind: Kind, members: Mapping[str, bytes]
) -> dict[str, np.ndarray]:
  leaves, prefix = {}, f'{kind.prefix}/'
  known = [np.dtype(name).newbyteorder('<').str for name in kind.dtypes]
  for name, content in members.items():
    if not (name.startswith(prefix) and name.endswith(_SUFFIX)):
      raise ValueError(f"'{source}' holds '{name}', which is neither its card nor a leaf.")
    try:
      leaf = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # A damaged header can raise nearly anything, MemoryError included.
      raise ValueError(
          f"'{name}' in '{source}' is not a plain array ({error}). Pickled objects are never "
          'loaded.') from error
    if leaf.dtype.str not in known:
      raise ValueError(
          f"'{name}' in '{source}' is {leaf.dtype}, expected {' or '.join(kind.dtypes)}.")
    leaves[name[len(prefix) : -len(_SUFFIX)]] = leaf
  return dict(sorted(leaves.items()))
