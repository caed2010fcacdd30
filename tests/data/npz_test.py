import numpy as np
import pytest

from wmpoe.data import npz


def _read(path, fields=('a', 'b'), **options):
  return npz.read(path, fields, what='an example', remedy='write it again', **options)


def test_the_named_arrays_are_read(tmp_path):
  np.savez(tmp_path / 'x.npz', a=np.arange(3), b=np.eye(2), c=np.zeros(1))
  found = _read(tmp_path / 'x.npz')
  assert list(found) == ['a', 'b']
  np.testing.assert_array_equal(found['b'], np.eye(2))
  with pytest.raises(ValueError, match=r"x.npz: not an example, it has unknown fields 'c'; "
                                       'expected exactly a, b, found a, b, c'):
    _read(tmp_path / 'x.npz', exact=True)
  with pytest.raises(ValueError, match="it has no 'd'; expected the fields a, d"):
    _read(tmp_path / 'x.npz', ('a', 'd'))


def test_no_file_is_an_oserror_and_bytes_are_a_value_error(tmp_path):
  with pytest.raises(FileNotFoundError):
    _read(tmp_path / 'x.npz')
  (tmp_path / 'x.npz').write_bytes(b'\x80\x04 anything')
  with pytest.raises(ValueError, match=r'x\.npz: not a whole npz archive .*write it again'):
    _read(tmp_path / 'x.npz')


def test_what_is_too_large_is_not_unpacked(tmp_path, monkeypatch):
  np.savez_compressed(tmp_path / 'x.npz', a=np.zeros(10_000), b=np.zeros(1))
  monkeypatch.setattr(npz, 'MOST_BYTES', 1000)
  monkeypatch.setattr(np.lib.npyio.NpzFile, '__getitem__', lambda *_: pytest.fail('unpacked'))
  with pytest.raises(ValueError, match='bytes when unpacked; at most 1,000 are read'):
    _read(tmp_path / 'x.npz')
