"""Low-rank adapters as a tree of their own (arXiv 2106.09685): `W' = W + (alpha/rank) A B`.

Tables of embeddings can be adapted too: `table + (alpha/rank) A B`. The base parameters are never
touched. An adapter tree mirrors the paths of the adapted kernels and holds `a [D_in R]` and
`b [R D_out]`, `b` zero at the start, so that an empty memory is the base bit for bit. It is applied
in one of two ways that give the same output:
  low-rank path: `scaled(lora, ...)` as the 'lora' collection; cheap gradients while writing.
  merged: `merged(params, lora, ...)` as the 'lora' collection, which then holds whole kernels; a
    plain forward pass while reading.
Where `LoraSpec.full`, an adapter holds whole updates `update [D_in D_out]` instead, which is what
LoRA of growing rank comes to: finetuning. It is always merged.
"""

import dataclasses
import math
from typing import Any

import chex
from flax import errors
from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp

Params = Any

COMBINED = ('average', 'concatenate')
TARGETS = ('query', 'key', 'value', 'out', 'mlp_in', 'mlp_out')


def embedding(module: nn.Module, name: str, table: jax.Array) -> jax.Array:
  """An embedding table [N D] of `module`, with the low-rank update the 'lora' collection holds."""
  if not module.has_variable('lora', name):
    return table
  adapter = module.get_variable('lora', name)
  return adapter['kernel'] if 'kernel' in adapter else table + adapter['a'] @ adapter['b']


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`x @ kernel` for x [... D_in], computed in the dtype of x; reverse mode only.

  The kernel's gradient is summed over rows, and over devices, in the kernel's own dtype: float32
  also where activations are bfloat16. For that sum XLA's CPU backend transposes one operand; left
  to itself it takes the wider one and recomputes the activation's gradient in a strided loop, which
  costs a sixth of an inner step: here it transposes the narrower one.
  """
  return x @ kernel.astype(x.dtype)


def _product_forward(x, kernel):
  return x @ kernel.astype(x.dtype), (x, kernel)


def _product_backward(saved, gradient):
  x, kernel = saved
  rows, columns = (y.reshape(-1, y.shape[-1]) for y in (x, gradient))
  over_rows = lambda narrow, wide: jnp.einsum(
      'ni,nj->ij', narrow, wide, preferred_element_type=kernel.dtype)
  narrow_in = rows.shape[1] <= columns.shape[1]
  update = over_rows(rows, columns) if narrow_in else over_rows(columns, rows).T
  return gradient @ kernel.astype(x.dtype).T, update


product.defvjp(_product_forward, _product_backward)


def _parameter(module: nn.Module, name: str, init: Any, shape: tuple[int, ...]) -> jax.Array:
  """`module.param`, which traces `init` for its shape each time: a fifth of all tracing.

  Raises:
    flax.errors.ScopeParamShapeError: as `module.param` does.
  """
  if not module.has_variable('params', name):
    return module.param(name, init, shape)
  value = module.get_variable('params', name)
  if jnp.shape(value) != shape:
    raise errors.ScopeParamShapeError(name, module.scope.path_text, jnp.shape(value), shape)
  return value


class Dense(nn.Module):
  """A dense layer that adds a low-rank path where the 'lora' collection holds one for it."""

  features: int
  dtype: Any = jnp.float32
  kernel_init: Any = nn.initializers.lecun_normal()
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[... D_in] -> [... features]."""
    kernel = _parameter(self, 'kernel', self.kernel_init, (x.shape[-1], self.features))
    if self.has_variable('lora', 'kernel'):
      kernel = self.get_variable('lora', 'kernel')
    x = x.astype(self.dtype)
    y = product(x, kernel)
    if self.has_variable('lora', 'a'):
      a, b = self.get_variable('lora', 'a'), self.get_variable('lora', 'b')
      y = y + product(product(x, a), b)
    if self.use_bias:
      bias = _parameter(self, 'bias', nn.initializers.zeros, (self.features,))
      # Spread before it is rounded: its gradient is then summed in float32.
      y = y + jnp.broadcast_to(bias, y.shape).astype(self.dtype)
    return y


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraSpec:
  """What to adapt and how strongly.

  Attributes:
    rank: Rank R of every adapter.
    alpha: Numerator of the scale `alpha / rank`.
    targets: Names of the dense layers and embedding tables to adapt, out of the names in the
      parameter tree.
    table_scale: Tables start from `a = table_scale I` (their rows are keys already, so each keeps
      its own row of `b`). It is how much faster than a dense layer a table is written: under Adam a
      step moves every entry of `b` by about the learning rate.
    full: Whole updates of the targets; the rank is not used, and the scale is 1.

  Raises:
    ValueError: if the rank is below 1, no target is named, or an adapter would always be zero.
  """

  rank: int = 32
  alpha: float = 32.0
  targets: tuple[str, ...] = TARGETS
  table_scale: float = 30.0
  full: bool = False

  def __post_init__(self):
    if self.rank < 1:
      raise ValueError(
          f'LoRA rank {self.rank} must be at least 1. For no adapter leave the long-term memory '
          'out of the model.')
    if not (math.isfinite(self.alpha * self.table_scale) and self.alpha * self.table_scale):
      raise ValueError(
          f'LoRA alpha={self.alpha}, table_scale={self.table_scale}: expected finite numbers other '
          'than 0, which nothing could be written through. A memory is silenced by its weight.')
    if not self.targets:
      raise ValueError(f'LoRA needs at least one target, for instance {", ".join(TARGETS)}.')

  @property
  def scale(self) -> float:
    """`alpha / rank`."""
    return 1.0 if self.full else self.alpha / self.rank


def _adapted(params: Params, spec: LoraSpec) -> dict[tuple[str, ...], jax.Array]:
  """Kernels the spec adapts, by module path."""
  flat = traverse_util.flatten_dict(params)
  kernels = {
      path[:-1]: leaf for path, leaf in flat.items()
      if path[-1] == 'kernel' and path[-2] in spec.targets and leaf.ndim == 2
  }
  kernels |= {path: leaf for path, leaf in flat.items() if path[-1] in spec.targets}
  missing = [t for t in spec.targets if not any(path[-1] == t for path in kernels)]
  if missing:
    names = sorted({path[-2] for path in flat if path[-1] == 'kernel' and len(path) > 1})
    raise ValueError(
        f'LoRA targets {missing} name no dense layer of this network; it has: {", ".join(names)}.')
  return kernels


def init(key: chex.PRNGKey, params: Params, spec: LoraSpec) -> Params:
  """A fresh adapter tree: `a ~ N(0, 1/D_in)`, for tables `a = table_scale I`; `b = 0`.

  Where the spec is `full`: `update = 0`.

  Raises:
    ValueError: if a target names no dense layer.
  """
  kernels = _adapted(params, spec)
  tables = set(traverse_util.flatten_dict(params))  # a layer's path is none of a leaf
  keys = jax.random.split(key, len(kernels))
  tree = {}
  for k, (path, kernel) in zip(keys, sorted(kernels.items()), strict=True):
    if spec.full:
      tree[path + ('update',)] = jnp.zeros(kernel.shape)
      continue
    fan_in, fan_out = kernel.shape
    tree[path + ('a',)] = (
        spec.table_scale * jnp.eye(fan_in, spec.rank) if path in tables
        else jax.random.normal(k, (fan_in, spec.rank)) * fan_in**-0.5)
    tree[path + ('b',)] = jnp.zeros((spec.rank, fan_out))
  return traverse_util.unflatten_dict(tree)


def scaled(lora: Params, spec: LoraSpec) -> Params:
  """The adapter with `alpha / rank` folded into `b`: what the 'lora' collection takes."""
  return jax.tree_util.tree_map_with_path(
      lambda path, leaf: leaf * spec.scale if path[-1].key == 'b' else leaf, lora)


def merged(params: Params, lora: Params, spec: LoraSpec) -> Params:
  """Whole kernels `kernel + (alpha/rank) a b` of the adapted layers, for the 'lora' collection."""
  adapters, leaves = traverse_util.flatten_dict(lora), traverse_util.flatten_dict(params)
  tree = {}
  for path, kernel in _adapted(params, spec).items():
    if spec.full:
      update = adapters[path + ('update',)] * (spec.table_scale if path in leaves else 1.0)
    else:
      update = spec.scale * (adapters[path + ('a',)] @ adapters[path + ('b',)])
    tree[path + ('kernel',)] = kernel + update
  return traverse_util.unflatten_dict(tree)


def applied(params: Params, lora: Params, spec: LoraSpec) -> Params:
  """What the 'lora' collection takes while an adapter is written: low-rank, unless it is full."""
  return merged(params, lora, spec) if spec.full else scaled(lora, spec)


def combine(first: Params, second: Params, how: str) -> Params:
  """One adapter [B ...] out of two of one rank R [B ...], in one of the ways of `COMBINED`.

  average: the mean of `a` and the mean of `b`. Cheap; but the product of means is not the mean of
    the products, unless the two share their `a`. Of whole updates it is their mean.
  concatenate: ranks side by side, `[a a'] [b; b']`, which is the sum of both updates, brought back
    to rank R by the truncated singular value decomposition, its best approximation. Of whole
    updates it is their sum.

  Raises:
    ValueError: for an unknown way.
  """
  if how not in COMBINED:
    raise ValueError(f'Unknown way to merge adapters {how!r}; expected one of {COMBINED}.')
  if how == 'average':
    return jax.tree.map(lambda x, y: (x + y) / 2, first, second)
  one, two = (traverse_util.flatten_dict(tree) for tree in (first, second))
  tree = {}
  for path, a in one.items():
    if path[-1] == 'update':
      tree[path] = a + two[path]
    elif path[-1] == 'a':
      b = path[:-1] + ('b',)
      tree[path], tree[b] = _truncated(a @ one[b] + two[path] @ two[b], a.shape[-1])
  return traverse_util.unflatten_dict(tree)


def _truncated(update: jax.Array, rank: int) -> tuple[jax.Array, jax.Array]:
  """Factors a [B D_in R] and b [B R D_out] whose product is nearest to `update` [B D_in D_out]."""
  u, s, v = jnp.linalg.svd(update, full_matrices=False)
  kept = min(rank, s.shape[-1])
  root = jnp.sqrt(s[:, :kept])
  fill = ((0, 0), (0, rank - kept))
  a = u[:, :, :kept] * root[:, None]
  b = root[:, :, None] * v[:, :kept]
  return jnp.pad(a, ((0, 0), *fill)), jnp.pad(b, (fill[0], fill[1], (0, 0)))


def merge(params: Params, lora: Params, spec: LoraSpec) -> Params:
  """The parameters with the adapter merged in; other leaves are shared with `params`."""
  flat = traverse_util.flatten_dict(params)
  for path, kernel in traverse_util.flatten_dict(merged(params, lora, spec)).items():
    flat[path if path in flat else path[:-1]] = kernel  # a dense layer's kernel, or a table
  return traverse_util.unflatten_dict(flat)
