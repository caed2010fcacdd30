"""Denoisers of one network with the same parameters, run as one call on a larger batch."""

from collections.abc import Sequence
import dataclasses
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from wmpoe.experts import expert


@struct.dataclass
class Joined:
  """Several denoisers at once; see `join`.

  Attributes:
    calls: What is called: a denoiser, or several as one with an episode's copies side by side.
    counts: Static; of how many denoisers each of the calls is.
    places: Static; for each denoiser the call it is part of and its place there.
  """

  calls: tuple[Any, ...]
  counts: tuple[int, ...] = struct.field(pytree_node=False)
  places: tuple[tuple[int, int], ...] = struct.field(pytree_node=False)

  def __call__(self, x_t: jax.Array, logsnr: jax.Array) -> list[jax.Array]:
    """One estimate [B T H W C] per denoiser, in order, of x_t [B T H W C] at logsnr [B T]."""
    out = []
    for call, count in zip(self.calls, self.counts, strict=True):
      if count == 1:
        out.append([call(x_t, logsnr)])
      else:
        eps = call(*(_beside(*[x] * count) for x in (x_t, logsnr)))
        eps = eps.reshape(-1, count, *eps.shape[1:])
        out.append([eps[:, place] for place in range(count)])
    return [out[call][place] for call, place in self.places]


def join(denoisers: Sequence[expert.Denoiser]) -> Joined:
  """Puts together the denoisers that can share a call.

  Those are network denoisers of the same model and the same parameters, with adapters of one shape
  or none. (A branch without could join those with as adapters of zero: what that adds costs more
  than a second call.) A denoiser that occurs twice is evaluated once. Do it where a composition is
  made, once a chunk: contexts and adapters are copied.
  """
  groups: list[list[int]] = []
  for i, denoiser in enumerate(denoisers):
    for group in groups:
      if all(_can_join(denoisers[other], denoiser) for other in group):
        group.append(i)
        break
    else:
      groups.append([i])
  calls: list[expert.Denoiser] = []
  counts: list[int] = []
  places: dict[int, tuple[int, int]] = {}
  for group in groups:
    members = [denoisers[i] for i in group]
    unique = [m for k, m in enumerate(members) if not any(m is other for other in members[:k])]
    for i, member in zip(group, members, strict=True):
      places[i] = len(calls), next(k for k, u in enumerate(unique) if u is member)
    calls.append(_together(unique))
    counts.append(len(unique))
  return Joined(
      calls=tuple(calls), counts=tuple(counts),
      places=tuple(places[i] for i in range(len(denoisers))))


def _can_join(first: expert.Denoiser, second: expert.Denoiser) -> bool:
  """Whether two denoisers can share a call: same object, or same model and same parameters.

  Adapters may differ in their values, but not in rank or in what they adapt.
  """
  if first is second:
    return True
  if not (isinstance(first, expert.NetworkDenoiser) and isinstance(second, expert.NetworkDenoiser)):
    return False
  same = lambda a, b: len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))
  adapters = lambda denoiser: jax.tree.map(jnp.shape, denoiser.lora)
  return (
      first.model == second.model
      and same(jax.tree.leaves(first.params), jax.tree.leaves(second.params))
      and (first.cells is None) == (second.cells is None)
      and adapters(first) == adapters(second))


def _together(members: Sequence[expert.Denoiser]) -> expert.Denoiser:
  if len(members) == 1:
    return members[0]
  networks = [m for m in members if isinstance(m, expert.NetworkDenoiser)]  # no others join
  # The parameters are shared: they are kept out of it.
  conditions = [dataclasses.replace(m, params=None) for m in networks]
  return dataclasses.replace(
      jax.tree.map(_beside, *conditions), params=networks[0].params)


def _beside(*rows: jax.Array) -> jax.Array:
  """[B ...] each -> [B*K ...], an episode's side by side.

  Where episodes are spread over devices, no row leaves its own.
  """
  return jnp.stack(rows, axis=1).reshape(-1, *rows[0].shape[1:])
