"""Tests of the single-file weight format: what goes in comes out, and nothing else does."""

import io
import json
import os
import pickle
import subprocess
import sys
import textwrap
import zipfile

import flax.core
import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import small
from wmpoe import packaged

_CARD = {
  'config': {'width': 8, 'depth': [1, 2]},
  'data': 'cards, seeds 0-9',
  'seed': 3,
  'steps': 100,
  'command': 'python -m wmpoe train --config=configs/cards.py',
  'result': {'recall': 0.97},
  'licence': 'Apache-2.0',
}


def _params():
  rng = np.random.default_rng(0)
  return {
    'in': {'kernel': rng.normal(size=(3, 4)).astype('f'), 'bias': np.zeros(4, 'f')},
    'out': {'kernel': rng.normal(size=(4, 3)).astype('f'), 'scale': np.float32(0.5)},
  }


def _like(params):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.float32), params)


@pytest.fixture(name='path')
def _path(tmp_path):
  path = tmp_path / 'expert.npz'
  packaged.save(path, _params(), _CARD, dtype='float32')
  return path


def _members(path):
  with zipfile.ZipFile(path) as archive:
    return {name: archive.read(name) for name in archive.namelist()}


def _rewrite(path, members):
  """Writes a sound zip (its own checksums hold), so that only our checks can object."""
  with zipfile.ZipFile(path, 'w') as archive:
    for name, content in members.items():
      archive.writestr(name, content)


def _npy(array, *, allow_pickle=False):
  buffer = io.BytesIO()
  np.lib.format.write_array(buffer, np.asarray(array), allow_pickle=allow_pickle)
  return buffer.getvalue()


def _with_card(path, **changes):
  members = _members(path)
  card = json.loads(members['card.json']) | changes
  members['card.json'] = json.dumps({k: v for k, v in card.items() if v is not None}).encode()
  _rewrite(path, members)


def _assert_equal(got, expected):
  assert jax.tree.structure(got) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_float32_is_exact_and_the_card_comes_back(path):
  params, card = packaged.load(path)
  _assert_equal(params, _params())
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
  assert {field: card[field] for field in _CARD} == _CARD
  assert (card['format_version'], card['dtype'], card['num_parameters']) == (1, 'float32', 29)
  assert packaged.card(path) == card


def test_float16_is_the_rounded_value_as_float32(tmp_path):
  packaged.save(tmp_path / 'e.npz', _params(), _CARD)
  params, card = packaged.load(tmp_path / 'e.npz')
  _assert_equal(params, jax.tree.map(lambda x: np.float16(x).astype('f'), _params()))
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
  assert card['dtype'] == 'float16'


def test_a_real_network_survives(tmp_path):
  module = nn.Dense(5, name='dense')
  params = module.init(jax.random.key(0), jnp.ones((2, 3)))['params']
  packaged.save(tmp_path / 'e.npz', flax.core.freeze(params), _CARD, dtype='float32')
  like = jax.eval_shape(module.init, jax.random.key(0), jnp.ones((2, 3)))['params']
  _assert_equal(packaged.load(tmp_path / 'e.npz', like)[0], params)


def test_loading_compiles_nothing(path):
  with small.compilations() as compiled:
    jax.block_until_ready(packaged.load(path)[0])
  assert not compiled, 'a program for each shape takes longer than the file'


def test_equal_contents_give_equal_files(path, tmp_path):
  again = tmp_path / 'again.npz'
  packaged.save(again, packaged.load(path)[0], packaged.card(path), dtype='float32')
  assert again.read_bytes() == path.read_bytes()


def test_numpy_reads_the_file_without_pickle(path):
  with np.load(path, allow_pickle=False) as file:
    np.testing.assert_array_equal(file['params/in/kernel'], _params()['in']['kernel'])


_KEYS = st.text(max_size=5).filter(lambda k: k.isprintable() and k and not set('/\\') & set(k))
_LEAVES = st.builds(
  lambda shape, seed: np.random.default_rng(seed).normal(size=shape).astype('f'),
  st.lists(st.integers(0, 3), max_size=3).map(tuple),
  st.integers(0, 99),
)
_TREES = st.dictionaries(
  _KEYS,
  st.recursive(_LEAVES, lambda t: st.dictionaries(_KEYS, t, min_size=1, max_size=3), max_leaves=5),
  min_size=1,
  max_size=3,
)


@hypothesis.given(_TREES)
@hypothesis.settings(max_examples=60)
def test_any_tree_comes_back(tmp_path_factory, tree):
  path = tmp_path_factory.mktemp('any') / 'e.npz'
  packaged.save(path, tree, _CARD, dtype='float32')
  _assert_equal(packaged.load(path)[0], tree)
  _assert_equal(packaged.load(path, _like(tree))[0], tree)


def test_a_flipped_bit_anywhere_never_changes_what_is_loaded(path):
  """Each byte of the file in turn: refused, or (in zip's unused fields) without any effect."""
  intact = path.read_bytes()
  params, card = packaged.load(path)
  refused = 0
  for position in range(len(intact)):
    damaged = bytearray(intact)
    damaged[position] ^= 1 << (position % 8)
    path.write_bytes(damaged)
    try:
      got_params, got_card = packaged.load(path)
    except ValueError:
      refused += 1
    else:
      _assert_equal(got_params, params)
      assert got_card == card
  assert refused > 0.7 * len(intact)


@pytest.mark.parametrize('share', [0.0, 0.3, 0.99])
def test_a_truncated_file_is_refused(path, share):
  content = path.read_bytes()
  path.write_bytes(content[: int(share * len(content))])
  with pytest.raises(ValueError, match='truncated, damaged or no .npz file'):
    packaged.load(path)


def test_a_file_of_another_kind_is_refused(path):
  path.write_bytes(pickle.dumps(_params()))
  with pytest.raises(ValueError, match='truncated, damaged or no .npz file'):
    packaged.load(path)
  np.savez(path, kernel=np.ones(3))
  with pytest.raises(ValueError, match='has no card.json'):
    packaged.load(path)
  with pytest.raises(FileNotFoundError):
    packaged.load(path.with_name('nowhere.npz'))


@pytest.mark.parametrize('with_like', [False, True])
@pytest.mark.parametrize('change', ['value', 'shape', 'name', 'swap'])
def test_the_hash_is_always_verified(path, change, with_like):
  members = _members(path)
  kernel, other = 'params/in/kernel.npy', 'params/out/kernel.npy'
  if change == 'value':
    members[kernel] = _npy(_params()['in']['kernel'] + np.float32(1e-3))
  elif change == 'shape':
    members[kernel] = _npy(_params()['in']['kernel'].reshape(4, 3))
  elif change == 'name':
    members['params/in/kernels.npy'] = members.pop(kernel)
  else:
    members[kernel], members[other] = members[other], members[kernel]
  _rewrite(path, members)
  with pytest.raises(ValueError, match='is damaged: its contents have sha256'):
    packaged.load(path, _like(packaged._unflatten(_leaves(members))) if with_like else None)


def _leaves(members):
  arrays = {k[7:-4]: v for k, v in members.items() if k.startswith('params/')}
  return {k: np.lib.format.read_array(io.BytesIO(v)) for k, v in arrays.items()}


class _Trap:
  """Unpickling this makes the file that is named in it."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (str(self.path), 'w')


def test_a_pickle_is_refused_and_not_run(path, tmp_path):
  sprung = tmp_path / 'sprung'
  trap = np.empty(1, object)
  trap[0] = _Trap(sprung)
  _rewrite(path, _members(path) | {'params/in/kernel.npy': _npy(trap, allow_pickle=True)})
  with pytest.raises(ValueError, match='Pickled objects are never loaded'):
    packaged.load(path)
  assert not sprung.exists()


def test_a_leaf_of_another_dtype_is_refused(path):
  _rewrite(path, _members(path) | {'params/in/kernel.npy': _npy(np.ones((3, 4), 'i4'))})
  with pytest.raises(ValueError, match='is int32, expected float16 or float32'):
    packaged.load(path)


def test_a_stray_or_doubled_member_is_refused(path):
  members = _members(path)
  _rewrite(path, members | {'evil.py': b''})
  with pytest.raises(ValueError, match="'evil.py', which is neither its card nor a leaf"):
    packaged.load(path)
  _rewrite(path, members)
  with zipfile.ZipFile(path, 'a') as archive, pytest.warns(UserWarning, match='Duplicate name'):
    archive.writestr('card.json', members['card.json'])
  with pytest.raises(ValueError, match='holds a member twice'):
    packaged.load(path)


def test_leaves_that_do_not_fit_are_all_named(path):
  like = _like(_params())
  like['in'] |= {'kernel': jax.ShapeDtypeStruct((4, 3), jnp.float32)}
  like['new'] = like.pop('out')
  with pytest.raises(ValueError) as error:
    packaged.load(path, like)
  message = str(error.value)
  assert '2 missing: new/kernel, new/scale;' in message
  assert '2 extra: out/kernel, out/scale;' in message
  assert '1 misshapen: in/kernel (file (3, 4), model (4, 3)).' in message


@pytest.mark.parametrize('kind', ['missing', 'extra', 'misshapen'])
def test_one_leaf_that_does_not_fit_is_enough(path, kind):
  like = _like(_params())
  if kind == 'missing':
    like['in']['more'] = like['in']['bias']
  elif kind == 'extra':
    del like['in']['bias']
  else:
    like['in']['bias'] = jax.ShapeDtypeStruct((1, 4), jnp.float32)
  with pytest.raises(ValueError, match=f'do not fit the model. 1 {kind}: in/'):
    packaged.load(path, like)


def test_long_lists_of_leaves_are_cut(path):
  like = {str(i): jax.ShapeDtypeStruct((), jnp.float32) for i in range(30)}
  with pytest.raises(ValueError, match='30 missing: .* and 10 more; 4 extra'):
    packaged.load(path, like)


@pytest.mark.parametrize('version', [2, '1', None])
def test_another_format_version_is_refused(path, version):
  _with_card(path, format_version=version)
  for read in (packaged.load, packaged.card):
    with pytest.raises(ValueError, match=f'format version {version!r}; this wmpoe reads version 1'):
      read(path)


def test_a_card_that_lacks_a_field_is_refused(path):
  _with_card(path, sha256=None, licence=None)
  with pytest.raises(ValueError, match='lacks licence, sha256'):
    packaged.load(path)
  with pytest.raises(ValueError, match='The card of e.npz lacks seed, licence'):
    card = {k: v for k, v in _CARD.items() if k not in ('seed', 'licence')}
    packaged.save(path.with_name('e.npz'), _params(), card)


@pytest.mark.parametrize(
  ('params', 'error', 'message'),
  [
    ({}, ValueError, 'no leaf'),
    ({'a': {}}, ValueError, 'no leaf'),
    (np.ones(2, 'f'), TypeError, 'nested dicts of arrays; the tree itself is held otherwise'),
    ({'a': [np.ones(2, 'f')]}, TypeError, r"nested dicts of arrays; \['a'\]\[0\] is held"),
    ({3: np.ones(2, 'f')}, TypeError, 'strings as keys; .* has 3'),
    ({'a/b': np.ones(2, 'f')}, ValueError, "key 'a/b' .* cannot be part of a path"),
    ({'': np.ones(2, 'f')}, ValueError, "key '' .* cannot be part of a path"),
    ({'a\0b': np.ones(2, 'f')}, ValueError, 'cannot be part of a path'),
    ({'a': np.ones(2, 'i4')}, TypeError, "Leaf 'a' must be a floating-point array, got int32"),
    ({'a': 1.5}, TypeError, "Leaf 'a' must be a floating-point array, got float"),
    ({'a': np.float32([1, np.nan])}, ValueError, "Leaf 'a' holds NaN or infinity"),
    ({'a': np.float32([1, 7e4])}, ValueError, "Leaf 'a' reaches 70000.0, but float16 ends"),
  ],
)
def test_params_that_cannot_be_kept_are_refused(tmp_path, params, error, message):
  with pytest.raises(error, match=message):
    packaged.save(tmp_path / 'e.npz', params, _CARD)
  assert not list(tmp_path.iterdir())


def test_bad_arguments_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r'files named \*\.npz, got .*e.msgpack'):
    packaged.save(tmp_path / 'e.msgpack', _params(), _CARD)
  with pytest.raises(ValueError, match="one of float16, float32, got 'bfloat16'"):
    packaged.save(tmp_path / 'e.npz', _params(), _CARD, dtype='bfloat16')
  for value in (np.ones(2), float('nan')):
    with pytest.raises(TypeError, match='The card of e.npz must be made of dicts'):
      packaged.save(tmp_path / 'e.npz', _params(), _CARD | {'result': value})


def test_bfloat16_weights_are_accepted(tmp_path):
  params = {'a': jnp.asarray([1.5, -2.0], jnp.bfloat16)}
  packaged.save(tmp_path / 'e.npz', params, _CARD)
  np.testing.assert_array_equal(packaged.load(tmp_path / 'e.npz')[0]['a'], [1.5, -2.0])


def test_a_failed_save_leaves_the_former_file_and_no_other(path, monkeypatch):
  before = path.read_bytes()

  def fail(*_):
    raise OSError('no space left')

  monkeypatch.setattr(os, 'fsync', fail)
  with pytest.raises(OSError, match='no space left'):
    packaged.save(path, {'a': np.ones(3, 'f')}, _CARD)
  assert path.read_bytes() == before
  assert list(path.parent.iterdir()) == [path]


def test_a_kill_before_the_rename_leaves_the_former_file(path):
  before = path.read_bytes()
  program = f"""
    import os, signal
    import numpy as np
    from wmpoe import packaged
    os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    packaged.save({str(path)!r}, {{'a': np.ones(3, 'f')}}, {_CARD!r})
  """
  done = subprocess.run([sys.executable, '-c', textwrap.dedent(program)], check=False)
  assert done.returncode == -9
  assert path.read_bytes() == before
  left = [file for file in path.parent.iterdir() if file != path]
  assert len(left) == 1  # The new file was complete, under its temporary name alone.
  assert left[0].suffix == '.tmp'
  assert list(packaged.load(left[0])[0]) == ['a']


def test_packaged_experts_are_found_and_described(tmp_path, monkeypatch):
  monkeypatch.setattr(packaged, '_folder', lambda: tmp_path / 'weights')
  assert packaged.names() == []
  assert 'No packaged experts in' in packaged.info()
  packaged.save(packaged._folder() / 'cards_b.npz', _params(), _CARD)
  packaged.save(packaged._folder() / 'cards_a.npz', _params(), _CARD | {'seed': 4})
  (packaged._folder() / '.cards_c.npz.12.tmp').write_bytes(b'')
  assert packaged.names() == ['cards_a', 'cards_b']
  assert packaged.load(packaged.find('cards_a'))[1]['seed'] == 4
  text = packaged.info()
  assert text.startswith('cards_a  (29 parameters, float16, 0.00 MB)\n  config   {"depth"')
  assert 'cards_b' in text
  assert packaged.card(packaged.find('cards_a'))['sha256'] in text
  with pytest.raises(ValueError, match="is named 'cards_z'. There are: cards_a, cards_b."):
    packaged.find('cards_z')


def test_the_experts_that_come_with_the_package_are_sound_and_small():
  sizes = {'cards': 0, 'memory_maze': 0}
  for name in packaged.names():
    packaged.load(packaged.find(name))
    world = next(world for world in sizes if name.startswith(world))
    sizes[world] += packaged.find(name).stat().st_size
  assert 0 < sizes['cards'] <= 10e6 and 0 < sizes['memory_maze'] <= 25e6
