"""TPU slices by name, what they can do, and the compiler for them, which needs no TPU."""

import dataclasses
import math
import os
import re
from typing import Any

import jax


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """What a vendor publishes of one chip (cloud.google.com/tpu/docs/system-architecture-tpu-vm).

  Attributes:
    flops: Peak of bfloat16 matmuls, per second.
    hbm: Memory in bytes.
    hbm_bandwidth: Bytes per second to and from it.
    links: Bytes per second to all neighbours together, one way.
    network: Bytes per second to other slices, a chip's share, one way; 0 where none is published.
    clock: Cycles per second: the peak over the products that the chip's matrix units start in a
      cycle.
    shapes: The slices it comes in here, chips along each axis.
    sparse_cores: Whether it has SparseCores, to which the compiler hands scatters and gathers.
    options: What the compiler must be told beside the name.
  """

  flops: float
  hbm: float
  hbm_bandwidth: float
  links: float
  clock: float
  shapes: tuple[tuple[int, ...], ...]
  network: float = 0.0
  sparse_cores: bool = False
  options: tuple[tuple[str, Any], ...] = ()


_FLAT = ((2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_CUBES = (
    (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8))
_GIB = 2**30
CHIPS = {
    # One program a chip: its two cores work as one.
    'v4': Chip(
        flops=275e12, hbm=32 * _GIB, hbm_bandwidth=1228e9, links=300e9, clock=1.05e9,
        shapes=_CUBES, options=(('chip_config_name', 'megacore'),)),
    'v5e': Chip(
        flops=197e12, hbm=16 * _GIB, hbm_bandwidth=819e9, links=200e9, clock=1.5e9, shapes=_FLAT,
        network=25e9 / 8),
    'v5p': Chip(
        flops=459e12, hbm=95 * _GIB, hbm_bandwidth=2765e9, links=600e9, clock=1.75e9,
        shapes=_CUBES, network=50e9 / 8, sparse_cores=True),
    'v6e': Chip(
        flops=918e12, hbm=32 * _GIB, hbm_bandwidth=1640e9, links=448e9, clock=1.75e9,
        shapes=_FLAT, network=100e9 / 8, sparse_cores=True),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
  """A slice of chips, or several that a network joins.

  Attributes:
    name: As in 'v5e:4x4'; '2xv5e:4x4' for two of them.
    chip: What it is made of.
    chips: In all slices together.
    slices: How many.
  """

  name: str
  chip: Chip
  chips: int
  slices: int = 1


def names() -> list[str]:
  """All single slices that can be named."""
  return [
      f'{kind}:{"x".join(map(str, shape))}' for kind, chip in CHIPS.items()
      for shape in chip.shapes]


def find(name: str) -> Slice:
  """The slice of that name, 'v5e:4x4', or several: '2xv5e:4x4'.

  Raises:
    ValueError: if there is none; lists those there are.
  """
  several = re.fullmatch(r'([1-9]\d*)x(.*)', name)
  slices, one = (int(several[1]), several[2]) if several else (1, name)
  if one not in names():
    known = '\n  '.join(
        ', '.join(n for n in names() if n.startswith(f'{kind}:')) for kind in CHIPS)
    raise ValueError(
        f'Unknown topology {name!r}; expected generation and shape in chips (2xv5e:4x4 for two '
        f'slices), one of\n  {known}')
  kind, _, shape = one.partition(':')
  if slices > 1 and not CHIPS[kind].network:
    raise ValueError(
        f'{name}: what the network between slices of {kind} carries is not published; expected '
        'one slice of it.')
  return Slice(
      name=name if slices > 1 else one, chip=CHIPS[kind], slices=slices,
      chips=slices * math.prod(map(int, shape.split('x'))))


def devices(where: Slice) -> list[Any]:
  """Devices of slices that are not there; programs can be compiled for them, not run.

  Raises:
    ImportError: without the TPU compiler.
    RuntimeError: if the compiler is there but does not start.
  """
  try:
    import libtpu  # noqa: F401
  except ImportError as error:
    raise ImportError(
        'Compiling for TPUs needs the TPU compiler, libtpu, which runs on any Linux machine '
        "(x86-64): pip install -e '.[tpu]'.") from error
  # No metadata server is there to be asked, and several programs may compile side by side.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  os.environ.setdefault('TPU_STDERR_LOG_LEVEL', '3')
  from jax.experimental import topologies
  try:
    return topologies.get_topology_desc(
        platform='tpu', topology_name=where.name[where.name.index('v'):], num_slices=where.slices,
        **dict(where.chip.options)).devices
  except jax.errors.JaxRuntimeError as error:
    raise RuntimeError(f'The TPU compiler does not give {where.name}: {error}') from error


def needed_memory(error: Exception) -> float | None:
  """Bytes that a program which doesn't fit would need, read from the compiler's error; or None."""
  found = re.search(
      r'(?:Used|total memory required for HLO temporaries \()\s*([\d.]+)([KMGT])', str(error))
  if 'RESOURCE_EXHAUSTED' not in str(error) or not found:
    return None
  return float(found[1]) * 2.0 ** (10 * (1 + 'KMGT'.index(found[2])))
