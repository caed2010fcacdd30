"""Attention by jax's splash kernel for TPUs: no logits in memory, masked blocks are not computed.

The kernel is jax's own (`jax.experimental.pallas.ops.tpu.splash_attention`). Here is what lies
between it and `attention.attend`: lengths padded to whole blocks, one call for any number of
batch axes, and the mesh. XLA cannot split a custom kernel, so that a program for several devices
has to say how it lies: entry points set a mesh (`jax.sharding.set_mesh`), and what is set here
is found, not entered: each device takes its share of the examples and of the heads.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_LANES = 128  # a block is a multiple of this
_BLOCK = 512  # the largest: of 3,472 tokens, 7 blocks
_BATCH, _HEADS = ('data', 'fsdp'), 'tensor'


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: np.ndarray | None
) -> jax.Array:
  """`attention.attend` by the splash kernel; interpreted where the program is not for a TPU.

  Args:
    query: [B L H d].
    key: [B S H d].
    value: [B S H d].
    mask: Optional boolean [L S]; no row is empty.

  Returns:
    [B L H d] in the dtype of `query`.

  Raises:
    ValueError: if a row of the mask is empty.
  """
  length, span = query.shape[1], key.shape[1]
  if mask is not None and not mask.any(axis=1).all():
    row = int(np.flatnonzero(~mask.any(axis=1))[0])
    raise ValueError(
        f'Query {row} of {length} may see none of {span} keys: the softmax of nothing is '
        'undefined. Let it see at least itself.')
  scaled = (query.astype(jnp.float32) * query.shape[-1] ** -0.5).astype(query.dtype)
  seen = _Seen(np.ones((length, span), bool) if mask is None else mask)
  return _call(seen, scaled, key, value)


class _Seen:
  """A mask that can be a static argument."""

  def __init__(self, mask: np.ndarray) -> None:
    self.mask = mask
    self._content = mask.shape, np.packbits(mask).tobytes()

  def __hash__(self) -> int:
    return hash(self._content)

  def __eq__(self, other: object) -> bool:
    return isinstance(other, _Seen) and self._content == other._content


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _call(seen, query, key, value):
  return _folded(functools.partial(_spread, seen, _forward))(query, key, value)


def _call_fwd(seen, query, key, value):
  return _call(seen, query, key, value), (query, key, value)


def _call_bwd(seen, saved, grad):
  return _folded(functools.partial(_spread, seen, _backward))(*saved, grad)


_call.defvjp(_call_fwd, _call_bwd)


def _folded(function: Any) -> Any:
  """The function of arrays [B ...], for which `vmap` makes one longer batch and no new axis.

  An axis that `vmap` adds would lie outside of what is spread over the mesh, and on every device.
  """
  wrapped = jax.custom_batching.custom_vmap(function)

  @wrapped.def_vmap
  def rule(size, batched, *arrays):
    full = [
        x if is_batched else jnp.broadcast_to(x, (size, *x.shape))
        for x, is_batched in zip(arrays, batched, strict=True)]
    out = _folded(function)(*(x.reshape(-1, *x.shape[2:]) for x in full))
    unfold = lambda x: x.reshape(size, -1, *x.shape[1:])
    return jax.tree.map(unfold, out), jax.tree.map(lambda _: True, out)

  return wrapped


def _spread(seen, function, *arrays):
  """The function on every device's share of [B _ H _]."""
  mesh = jax.sharding.get_abstract_mesh()
  free = {
      name: size for name, size, kind in zip(
          mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
      if kind != jax.sharding.AxisType.Manual}
  on_device = functools.partial(function, seen)
  if math.prod(free.values()) == 1:
    return on_device(*arrays)
  batch = tuple(axis for axis in _BATCH if free.get(axis, 1) > 1)
  if arrays[0].shape[0] % math.prod(free[axis] for axis in batch):
    batch = ()  # as where parameters are made from one example
  count = free.get(_HEADS, 1)
  if arrays[0].shape[2] % count:
    raise ValueError(
        f'Splash attention of {arrays[0].shape[2]} heads does not divide over the mesh axis '
        f"{_HEADS} of size {count}: expected a multiple. Change either, or choose "
        "implementation='dot_product_attention'.")
  spec = jax.sharding.PartitionSpec(batch or None, None, _HEADS if count > 1 else None)
  outputs = jax.eval_shape(on_device, *arrays)
  return jax.shard_map(
      on_device, in_specs=(spec,) * len(arrays), out_specs=jax.tree.map(lambda _: spec, outputs),
      axis_names=set(free), check_vma=False)(*arrays)


def _forward(seen, query, key, value):
  run = lambda interpret: lambda *arrays: _padded(seen, *arrays, interpret=interpret)
  return jax.lax.platform_dependent(query, key, value, tpu=run(False), default=run(True))


def _backward(seen, query, key, value, grad):
  """Gradients; the forward pass is run again, as what it leaves is not part of jax's interface."""
  def run(interpret):
    forward = functools.partial(_padded, seen, interpret=interpret)
    return lambda grad, *arrays: jax.vjp(forward, *arrays)[1](grad)

  return jax.lax.platform_dependent(grad, query, key, value, tpu=run(False), default=run(True))


def _padded(seen, query, key, value, *, interpret):
  """One device's share, without the padding."""
  length, span = seen.mask.shape
  rows, columns = _up(length), _up(span)
  heads_first = lambda x, to: jnp.pad(
      x.transpose(0, 2, 1, 3), [(0, 0), (0, 0), (0, to - x.shape[1]), (0, 0)])
  kernel = _kernel(seen, query.shape[2], interpret)
  out = jax.vmap(kernel)(
      heads_first(query, rows), heads_first(key, columns), heads_first(value, columns))
  return out[:, :, :length].transpose(0, 2, 1, 3).astype(query.dtype)


def _up(length: int) -> int:
  """The length in whole blocks."""
  return -(-length // _LANES) * _LANES


def _block(length: int) -> int:
  """The largest block that divides a padded length."""
  return max(b for b in range(_LANES, _BLOCK + 1, _LANES) if length % b == 0)


@functools.lru_cache(maxsize=64)
def _kernel(seen: _Seen, heads: int, interpret: bool) -> Any:
  """The kernel of a padded mask: none sees the added keys, added queries see what the last does."""
  from jax.experimental.pallas.ops.tpu import splash_attention

  length, span = seen.mask.shape
  mask = np.pad(seen.mask, [(0, 0), (0, _up(span) - span)])
  mask = np.pad(mask, [(0, _up(length) - length), (0, 0)], mode='edge')
  rows, columns = _block(mask.shape[0]), _block(mask.shape[1])
  sizes = splash_attention.BlockSizes(
      block_q=rows, block_kv=columns, block_kv_compute=columns, block_q_dkv=rows,
      block_kv_dkv=columns, block_kv_dkv_compute=columns, block_q_dq=rows, block_kv_dq=columns)
  one = (
      splash_attention.FullMask(mask.shape) if mask.all() else splash_attention.NumpyMask(mask))
  with jax.ensure_compile_time_eval():
    kernel = splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([one] * heads), block_sizes=sizes, head_shards=1,
        q_seq_shards=1, interpret=interpret)
  return jax.tree.map(np.asarray, kernel)  # no array of a device, nor of a trace
