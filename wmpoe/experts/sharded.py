"""A composition whose branches run side by side: one device of a mesh's 'expert' axis, one branch.

Every rule adds estimates with coefficients that depend on weights and noise levels alone,
`eps = sum_i c_i eps_i`. So a device evaluates its own branches, adds them up with their
coefficients, and one all-reduce over 'expert' adds up the devices. Branches may be different
networks: what a device needs of its own (weights, cached keys, adapters) lies in its rows of arrays
[K ...] that are spread over 'expert', one array for each shape and dtype that occurs, as often as
the device that has most of them. They are used as they lie: a denoising step moves nothing about.
"""

import collections
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

P = jax.sharding.PartitionSpec

# Where a leaf lies: among what has an episode axis or not, and at which place there.
_Where = tuple[bool, int]
# What becomes one array: of each device a leaf or None.
_Rows = list[Any]
# Of one device: for each branch its slots in the composition, its tree and where its leaves lie.
_Branches = tuple[tuple[tuple[int, ...], Any, tuple[_Where, ...]], ...]


@struct.dataclass
class Sharded:
  """A denoiser like the composition it was made from; see `shard`.

  Attributes:
    shared: What does not depend on the episode, each [K ...].
    own: What does, each [K B ...].
    frame: The composition with nothing for its branches: weights, levels, rule.
    branches: Static; of each device.
    mesh: Static.
  """

  shared: tuple[jax.Array, ...]
  own: tuple[jax.Array, ...]
  frame: composition.Composed
  branches: tuple[_Branches, ...] = struct.field(pytree_node=False)
  mesh: jax.sharding.Mesh = struct.field(pytree_node=False)

  def __call__(self, x_t: jax.Array, logsnr: jax.Array) -> jax.Array:
    """Composed noise estimate of x_t [B T H W C] at logsnr [B T]."""
    logsnr = jnp.broadcast_to(logsnr, x_t.shape[:2])

    def one_device(shared, own, shares, x, level):
      def run(mine):
        denoisers = [
            jax.tree.unflatten(
                tree, [(own if of_episodes else shared)[at][0] for of_episodes, at in leaves])
            for _, tree, leaves in mine]
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
    ValueError: if 'data' does not divide the episodes, or is larger than 1 where a branch is no
      network: which of its arrays have an episode axis is not known.
  """
  if not isinstance(denoiser, composition.Composed):
    return denoiser
  slots: dict[int, list[int]] = {}
  branches = denoiser.branches()
  for slot, branch in enumerate(branches):  # one that occurs twice runs once
    slots.setdefault(id(branch), []).append(slot)
  unique = [branches[found[0]] for found in slots.values()]
  batch = _episodes(unique)
  others = [type(b).__name__ for b in unique if not isinstance(b, expert.NetworkDenoiser)]
  if others and sharding.axis_size(mesh, 'data') > 1:
    raise ValueError(
        f"The mesh spreads episodes over data={sharding.axis_size(mesh, 'data')}, but the branches "
        f'{", ".join(others)} do not say which of their arrays have an episode axis; expected '
        'denoisers of `expert.bind`. Use a mesh with data=1, or none.')
  sharding.check_divides(mesh, 'data', batch, 'The number of episodes')
  places = sharding.axis_size(mesh, 'expert')
  assigned: list[list[expert.Denoiser]] = [[] for _ in range(places)]
  for branch in sorted(unique, key=_work, reverse=True):  # each to the device with least to do
    min(assigned, key=lambda mine: sum(map(_work, mine))).append(branch)
  shared, own, described = _lay_out(
      [[(tuple(slots[id(b)]), b) for b in mine] for mine in assigned])
  # Each device takes its own rows out of what all have: nothing is sent.
  shared, own = jax.shard_map(
      lambda *rows: jax.lax.switch(
          jax.lax.axis_index('expert'),
          [functools.partial(_rows_of, device, rows) for device in range(places)]),
      mesh=mesh, in_specs=(P(), P('data')), out_specs=(P('expert'), P('expert', 'data')),
      check_vma=False)(shared, own)
  nothing: Any = ()  # a tree without leaves, for what lies in the arrays
  return Sharded(
      shared=shared, own=own,
      frame=dataclasses.replace(
          denoiser, base=None if denoiser.base is None else nothing,
          contrasts=tuple(
              dataclasses.replace(
                  c, positive=nothing, negative=None if c.negative is None else nothing)
              for c in denoiser.contrasts)),
      branches=described, mesh=mesh)


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


def _of_episodes(path: Sequence[Any], branch: expert.Denoiser) -> bool:
  """Whether a leaf has an episode axis: all of a network's have but its parameters."""
  return isinstance(branch, expert.NetworkDenoiser) and path[0].name != 'params'


def _lay_out(
    assigned: Sequence[Sequence[tuple[tuple[int, ...], expert.Denoiser]]]
) -> tuple[list[_Rows], list[_Rows], tuple[_Branches, ...]]:
  """The leaves of what is to become [K ...] and [K B ...], and how to get the branches back.

  Leaves of one shape and dtype share an array, the first of each device, the second, and so on.
  What several branches of a device share is there once.
  """
  arrays: dict[bool, list[_Rows]] = {False: [], True: []}
  places: dict[Any, _Where] = {}
  described = []
  for device, mine in enumerate(assigned):
    known: dict[int, _Where] = {}
    counts: collections.Counter = collections.Counter()
    branches = []
    for slots, branch in mine:
      leaves = []
      flat, tree = jax.tree_util.tree_flatten_with_path(branch)
      for path, leaf in flat:
        if id(leaf) not in known:
          of_episodes, array = _of_episodes(path, branch), jnp.asarray(leaf)
          kind = of_episodes, array.shape, array.dtype
          if (kind, counts[kind]) not in places:
            places[kind, counts[kind]] = of_episodes, len(arrays[of_episodes])
            arrays[of_episodes].append([None] * len(assigned))
          known[id(leaf)] = places[kind, counts[kind]]
          counts[kind] += 1
          arrays[of_episodes][known[id(leaf)][1]][device] = array
        leaves.append(known[id(leaf)])
      branches.append((slots, tree, tuple(leaves)))
    described.append(tuple(branches))
  return arrays[False], arrays[True], tuple(described)


def _rows_of(device: int, arrays: Any) -> Any:
  """A device's row of every array, [1 ...]; zeros where it has none."""
  def mine(rows):
    row = rows[device]
    return (jnp.zeros_like(next(r for r in rows if r is not None)) if row is None else row)[None]

  return tuple(tuple(map(mine, kind)) for kind in arrays)
