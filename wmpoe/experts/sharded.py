"""A composition whose branches run side by side: one device of a mesh's 'expert' axis, one branch.

Every rule adds estimates with coefficients that depend on weights and noise levels alone,
`eps = sum_i c_i eps_i`. So a device evaluates its own branches, adds them up with their
coefficients, and one all-reduce over 'expert' adds up the devices. Branches may be different
networks: what a device needs of its own (weights, cached keys, adapters) lies packed in one row of
a buffer [K ...] that is spread over 'expert', and no device holds another's.
"""

from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from wmpoe import sharding
from wmpoe.diffusion import predictions
from wmpoe.experts import composition
from wmpoe.experts import expert

_LANES = 128  # packed rows are as wide as a TPU's registers
P = jax.sharding.PartitionSpec


@dataclasses.dataclass(frozen=True)
class _Piece:
  """Where a leaf lies in its device's rows: first row, shape (of one episode), dtype."""

  of_episodes: bool
  start: int
  shape: tuple[int, ...]
  dtype: Any


# Of one device: for each branch its slots in the composition, its tree and its leaves' places.
_Branches = tuple[tuple[tuple[int, ...], Any, tuple[_Piece, ...]], ...]


@struct.dataclass
class Sharded:
  """A denoiser like the composition it was made from; see `shard`.

  Attributes:
    shared: What does not depend on the episode, packed [K rows 128].
    own: What does [K B rows 128].
    frame: The composition with nothing for its branches: weights, levels, rule.
    branches: Static; of each device.
    mesh: Static.
  """

  shared: jax.Array
  own: jax.Array
  frame: composition.Composed
  branches: tuple[_Branches, ...] = struct.field(pytree_node=False)
  mesh: jax.sharding.Mesh = struct.field(pytree_node=False)

  def __call__(self, x_t: jax.Array, logsnr: jax.Array) -> jax.Array:
    """Composed noise estimate of x_t [B T H W C] at logsnr [B T]."""
    logsnr = jnp.broadcast_to(logsnr, x_t.shape[:2])

    def one_device(shared, own, shares, x, level):
      def run(mine):
        denoisers = [
            jax.tree.unflatten(tree, [_unpack(piece, shared[0], own[0]) for piece in pieces])
            for _, tree, pieces in mine]
        total = jnp.zeros_like(x)  # all there is where devices outnumber branches
        for (slots, _, _), eps in zip(
            mine, composition.evaluate(denoisers, x, level), strict=True):
          total = total + predictions.expand(sum(shares[slot] for slot in slots), x) * eps
        return total

      mine = jax.lax.switch(
          jax.lax.axis_index('expert'), [functools.partial(run, each) for each in self.branches])
      return jax.lax.psum(mine, 'expert')

    return jax.shard_map(
        one_device, mesh=self.mesh,
        in_specs=(P('expert'), P('expert', 'data'), P(None, 'data'), P('data'), P('data')),
        out_specs=P('data'), check_vma=False)(
            self.shared, self.own, coefficients(self.frame, logsnr), x_t, logsnr)


def coefficients(composed: composition.Composed, logsnr: jax.Array) -> jax.Array:
  """What a composition's rule, which is linear, multiplies each branch with: [branches B T].

  Args:
    composed: Its branches are not evaluated.
    logsnr: [B T].
  """
  count = len(composed.branches())
  units = jnp.broadcast_to(
      jnp.eye(count)[:, None, None, None, None], (count, *logsnr.shape, 1, 1, count))
  return jnp.moveaxis(composed.combine(list(units), logsnr)[:, :, 0, 0], -1, 0)


def shard(denoiser: expert.Denoiser, mesh: jax.sharding.Mesh) -> expert.Denoiser:
  """Spreads a composition's branches over the 'expert' axis of a mesh, episodes over 'data'.

  Call it where the composition is made, once a chunk, not once a denoising step.

  Args:
    denoiser: From `composition.compose`; one that is no composition is returned as it is.
    mesh: From `sharding.make_mesh`. It is passed on, not entered.

  Returns:
    A denoiser that gives what `denoiser` gives up to rounding.

  Raises:
    ValueError: if 'data' does not divide the episodes.
  """
  if not isinstance(denoiser, composition.Composed):
    return denoiser
  slots: dict[int, list[int]] = {}
  branches = denoiser.branches()
  for slot, branch in enumerate(branches):  # one that occurs twice runs once
    slots.setdefault(id(branch), []).append(slot)
  unique = [branches[found[0]] for found in slots.values()]
  batch = _episodes(unique)
  sharding.check_divides(mesh, 'data', batch, 'The number of episodes')
  places = sharding.axis_size(mesh, 'expert')
  assigned: list[list[expert.Denoiser]] = [[] for _ in range(places)]
  for branch in sorted(unique, key=_work, reverse=True):  # each to the device with least to do
    min(assigned, key=lambda mine: sum(map(_work, mine))).append(branch)
  packed = [_pack([(tuple(slots[id(b)]), b) for b in mine], batch) for mine in assigned]
  spread = lambda rows, spec: jax.lax.with_sharding_constraint(
      _stacked(rows), jax.sharding.NamedSharding(mesh, spec))
  nothing: Any = ()  # a tree without leaves, for what lies packed
  return Sharded(
      shared=spread([p[0] for p in packed], P('expert')),
      own=spread([p[1] for p in packed], P('expert', 'data')),
      frame=dataclasses.replace(
          denoiser, base=None if denoiser.base is None else nothing,
          contrasts=tuple(
              dataclasses.replace(
                  c, positive=nothing, negative=None if c.negative is None else nothing)
              for c in denoiser.contrasts)),
      branches=tuple(p[2] for p in packed), mesh=mesh)


def _episodes(branches: Sequence[expert.Denoiser]) -> int:
  """The number of episodes that denoisers are bound to."""
  for branch in branches:
    if isinstance(branch, expert.NetworkDenoiser):
      return branch.actions.shape[0]
  raise ValueError(
      'None of the branches is a NetworkDenoiser, which says for how many episodes it is: expected '
      'at least one of `expert.bind`. Run others without a mesh.')


def _work(branch: expert.Denoiser) -> float:
  """About how long a branch takes: its tokens times the weights they meet."""
  if not isinstance(branch, expert.NetworkDenoiser):
    return 0.0
  network = branch.model.network
  return float(math.prod(network.grid) * network.depth * network.width**2)


def _stacked(rows: Sequence[jax.Array]) -> jax.Array:
  """Arrays [... rows 128] as one, the shorter padded."""
  longest = max(r.shape[-2] for r in rows)
  pad = lambda r: [(0, 0)] * (r.ndim - 2) + [(0, longest - r.shape[-2]), (0, 0)]
  return jnp.stack([jnp.pad(r, pad(r)) for r in rows])


def _unpack(piece: _Piece, shared: jax.Array, own: jax.Array) -> jax.Array:
  """A leaf out of its device's rows [rows 128] and [B rows 128]."""
  rows = own if piece.of_episodes else shared
  size = math.prod(piece.shape)
  lead = rows.shape[:-2]
  rows = jax.lax.slice_in_dim(
      rows, piece.start, piece.start + -(-size // _LANES), axis=rows.ndim - 2)
  flat = rows.reshape(*lead, -1)[..., :size]
  return flat.reshape(*lead, *piece.shape).astype(piece.dtype)


def _of_episodes(path: Sequence[Any], leaf: jax.Array, batch: int) -> bool:
  """Whether a leaf has an episode axis: everything but parameters that begins with one."""
  names = [getattr(key, 'name', None) for key in path]
  return 'params' not in names and jnp.ndim(leaf) > 0 and jnp.shape(leaf)[0] == batch


def _pack(
    branches: Sequence[tuple[tuple[int, ...], expert.Denoiser]], batch: int
) -> tuple[jax.Array, jax.Array, _Branches]:
  """One device's branches as rows: shared [rows 128], own [B rows 128], and how to get them back.

  Parameters that several branches share are packed once.
  """
  rows: dict[bool, list[jax.Array]] = {False: [], True: []}
  filled = {False: 0, True: 0}
  known: dict[int, _Piece] = {}
  described = []
  for slots, branch in branches:
    pieces = []
    flat, tree = jax.tree_util.tree_flatten_with_path(branch)
    for path, leaf in flat:
      if id(leaf) not in known:
        mine = _of_episodes(path, leaf, batch)
        lead = (batch,) if mine else ()
        leaf_array = jnp.asarray(leaf)
        shape = leaf_array.shape[1:] if mine else leaf_array.shape
        size = math.prod(shape)
        # float32 holds every value of the dtypes that networks compute in.
        line = leaf_array.astype(jnp.float32).reshape(*lead, size)
        line = jnp.pad(line, [(0, 0)] * len(lead) + [(0, -size % _LANES)])
        rows[mine].append(line.reshape(*lead, -1, _LANES))
        known[id(leaf)] = _Piece(mine, filled[mine], shape, leaf_array.dtype)
        filled[mine] += rows[mine][-1].shape[-2]
      pieces.append(known[id(leaf)])
    described.append((slots, tree, tuple(pieces)))
  joined = {
      mine: jnp.concatenate(found, axis=-2) if found else jnp.zeros(
          ((batch,) if mine else ()) + (0, _LANES)) for mine, found in rows.items()}
  return joined[False], joined[True], tuple(described)
