"""Malformed episodes of every kind, seeded, and what must be true of the commands that read them.

`benchmarks/malformed.py` has many of them read.
"""

import contextlib
import io
import json
import pathlib
import zipfile

import numpy as np

from wmpoe import cli
from wmpoe.data import episode
from wmpoe.data import spaces

WORLD = spaces.Spaces(
    environment='toy', frame=(4, 4), poses=spaces.PLANAR,
    actions=spaces.Actions(kind='discrete', names=('a', 'b')))
_KINDS = 12
_JUNK = (None, [], {}, 1e999, -1, '', '../../evil', 'x' * 5000, {'a': {'a': []}}, [[[]]], True)


def good(rng):
  """A valid episode of a few frames."""
  length = int(rng.integers(2, 7))
  return episode.Episode(
      frames=rng.integers(256, size=(length, 4, 4, 3), dtype=np.uint8),
      actions=np.eye(2, dtype=np.float32)[rng.integers(2, size=length)],
      poses=rng.normal(size=(length, 3)).astype(np.float32), meta={'name': '../../evil'})


def _npy(array):
  buffer = io.BytesIO()
  np.save(buffer, array, allow_pickle=True)
  return buffer.getvalue()


def _archive(members):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as archive:
    for name, content in members:
      archive.writestr(name, content)
  return buffer.getvalue()


def _array(rng, array):
  """The array with something wrong."""
  spoiled = [
      lambda: array.astype(rng.choice(['f8', 'i1', 'c8', 'U3', 'M8[s]', '?'])),
      lambda: array[..., None], lambda: array[:0], lambda: array.reshape(-1), lambda: array[0],
      lambda: np.float32(3), lambda: np.array([{'a': 1}], object), lambda: array[:-1],
      lambda: np.where(rng.random(array.shape) < 0.2, np.nan, array.astype(np.float32)),
      lambda: np.full_like(array, 7), lambda: np.array(['x' * 99]),
      lambda: np.zeros(len(array), [('a', 'i4'), ('b', 'f8')])]
  return np.asarray(spoiled[rng.integers(len(spoiled))]())


def episode_file(rng):
  """The bytes of one malformed episode file, and whether it is: flipped bytes may be harmless."""
  item = good(rng)
  header = {'format': episode.FORMAT, 'version': episode.VERSION, 'meta': item.meta}
  fields = {name: getattr(item, name) for name in ('frames', 'actions', 'poses')}
  meta = np.frombuffer(json.dumps(header).encode(), np.uint8)
  members = [(f'{k}.npy', _npy(v)) for k, v in {**fields, 'meta': meta}.items()]
  whole, kind = _archive(members), int(rng.integers(_KINDS))
  at = int(rng.integers(len(members)))
  if kind == 0:
    return whole[:rng.integers(len(whole))], True
  if kind == 1:
    flipped = bytearray(whole)
    for place in rng.integers(len(whole), size=rng.integers(1, 20)):
      flipped[place] = rng.integers(256)
    return bytes(flipped), False
  if kind == 2:
    return rng.bytes(int(rng.integers(0, 400))), True
  if kind == 3:
    cut = int(rng.integers(len(whole)))
    return whole[:cut] + rng.bytes(int(rng.integers(1, 50))) + whole[cut:], False
  if kind == 4:
    name = str(rng.choice(list(fields)))
    wrong = _array(rng, fields[name])
    like = lambda: (wrong.dtype, wrong.shape) == (fields[name].dtype, fields[name].shape)
    while like() and np.isfinite(wrong).all() and (
        name != 'actions' or np.array_equal(wrong, fields[name])):
      wrong = _array(rng, fields[name])  # poses may be any numbers, frames any bytes
    members[list(fields).index(name)] = (f'{name}.npy', _npy(wrong))
  elif kind == 5:
    members[at] = (members[at][0], rng.bytes(int(rng.integers(0, 200))))
  elif kind == 6:  # a header that promises more than there is
    shape = str(rng.choice(['(99999999999, 9)', '(-1,)', '((),)', '[3]', '(1e9,)', "('a',)"]))
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    members[at] = (
        members[at][0], b'\x93NUMPY\x01\x00' + len(text).to_bytes(2, 'little') + text + b'x' * 50)
  elif kind == 7:
    junk = _JUNK[rng.integers(len(_JUNK))]
    key = str(rng.choice(['format', 'version', 'meta']))
    fine = key == 'meta' and isinstance(junk, dict) or header[key] == junk
    text = '[' * 9999 if fine else json.dumps({**header, key: junk})
    members[3] = ('meta.npy', _npy(np.frombuffer(text.encode(), np.uint8)))
  elif kind == 8:
    members.append((str(rng.choice(['../../evil.npy', '/evil.npy', 'a/b.npy', 'evil'])), b'x'))
  elif kind == 9:
    del members[at]
  elif kind == 10:
    members[at] = (members[at][0].replace('.npy', '.bin'), members[at][1])
  else:
    return _npy(fields['frames']) if rng.random() < 0.5 else _archive([]), True
  return _archive(members), True


def table_file(rng):
  """`(suffix, text)` of one malformed table of three rows."""
  text = 'action,x,y,heading\na,0,0,0\nb,1,0,0\na,2,0,0\n'
  kind = int(rng.integers(6))
  if kind == 0:
    return 'csv', text[:rng.integers(len(text) - 8)].encode()
  if kind == 1:
    return 'csv', rng.bytes(int(rng.integers(0, 300)))
  if kind == 2:
    junk = str(rng.choice(['nan', 'inf', '1e400', '', 'ü', '"', '\0', 'x' * 200_000, '1,2']))
    return 'csv', text.replace('2,0,0', f'{junk},0,0').encode()
  if kind == 3:
    return 'csv', text.replace('action', str(rng.choice(['act', 'action_a', 'x']))).encode()
  junk = _JUNK[rng.integers(len(_JUNK))]
  value = [{'action': 'a', 'x': junk, 'y': 0, 'heading': 0}] * 3 if kind == 4 else junk
  return 'json', json.dumps(value).encode()


def _run(root, *arguments):
  """Exit code and all that was printed by a command, run in a folder that stays empty."""
  said, here = io.StringIO(), root / 'here' / 'deep'
  here.mkdir(parents=True, exist_ok=True)
  with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), contextlib.chdir(here):
    code = cli.main(['wmpoe', 'data', *map(str, arguments)])
  return code, said.getvalue()


def _tree(path):
  assert not pathlib.Path('/evil.npy').exists()
  return {p: p.read_bytes() for p in sorted(path.rglob('*')) if p.is_file()}


def check_episodes(root, count, seed=0):
  """Reads `count` malformed and two good episodes by every topic; returns how many were refused."""
  rng, source = np.random.default_rng(seed), root / 'in' / 'episodes'
  source.mkdir(parents=True)
  text = json.dumps({'format': episode.FORMAT, 'version': episode.VERSION, **WORLD.to_json()})
  (source / 'spaces.json').write_text(text)
  sure = []
  for i in range(count):
    content, wrong = episode_file(rng)
    (source / f'episode_{i:05d}.npz').write_bytes(content)
    sure += [f'episode_{i:05d}.npz'] * wrong
  for i in (count, count + 1):
    good(rng).save(source / f'episode_{i:05d}.npz')
  before = _tree(root)
  code, said = _run(root, 'validate', f'--source={source}')
  assert code == 2 and 'Traceback' not in said, said[-2000:]
  refused = [line for line in said.splitlines() if line.startswith('bad: ')]
  named = [f'episode_{i:05d}.npz' for i in range(count)]
  harmless = [n for n in named if not any(n in line for line in refused)]
  assert len(refused) + len(harmless) == count
  assert not set(sure) & set(harmless), [n for n in sure if n in harmless]
  assert f'{len(refused)} of {count + 2} episodes' in said
  for name in harmless:
    WORLD.check(episode.Episode.load(source / name))
  code, said = _run(root, 'stats', f'--source={source}', f'--workdir={root / "out"}')
  assert code == 0 and 'Traceback' not in said, said[-2000:]
  assert f'{len(harmless) + 2} episodes' in said
  code, said = _run(root, 'preview', f'--source={source}', f'--workdir={root / "out"}')
  assert code == 0 and 'Traceback' not in said, said[-2000:]
  after = _tree(root)
  assert {p for p in after if p not in before} == {
      root / 'out' / n for n in ('stats.json', 'preview.png', 'preview.gif')}
  assert all(after[p] == before[p] for p in before)
  return len(refused)


def check_tables(root, count, seed=0):
  """Converts `count` folders of images with malformed tables, and one good; returns the refused."""
  from PIL import Image

  rng, source = np.random.default_rng(seed), root / 'in' / 'media'
  for i in range(count + 1):
    folder = source / f'e{i:05d}'
    folder.mkdir(parents=True)
    for t in range(3):
      Image.fromarray(np.full((4, 4, 3), t, np.uint8)).save(folder / f'{t}.png')
    kind, content = table_file(rng) if i < count else (
        'csv', b'action,x,y,heading\na,0,0,0\nb,1,0,0\na,2,0,0\n')
    (source / f'e{i:05d}.{kind}').write_bytes(content)
  before = _tree(root)
  out = root / 'converted'
  code, said = _run(
      root, 'convert', '--from=media', '--actions=a,b', f'--source={source}', f'--workdir={out}')
  assert code == 0 and 'Traceback' not in said, said[-2000:]
  refused = json.loads((out / 'conversion.json').read_text())
  assert refused['episodes'] + len(refused['bad']) == count + 1
  assert f'e{count:05d}' not in refused['bad']
  new = {p for p in _tree(root) if p not in before}
  assert all(p.parent == out for p in new) and len(new) == refused['episodes'] + 2
  assert _run(root, 'validate', f'--source={out}')[0] == 0
  return len(refused['bad'])
