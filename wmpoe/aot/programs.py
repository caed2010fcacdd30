"""The programs that cost something on a pod, made from shapes alone, and what compiling them says.

Three: an update of training, the inner loop that writes long-term memories, and the composed
sampler that imagines a chunk. All are the functions the library runs elsewhere, not models of them.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import importlib.metadata
import math
import time
from typing import Any

import jax
import jax.numpy as jnp

from wmpoe import sharding
from wmpoe import world_model
from wmpoe.aot import hlo
from wmpoe.aot import topologies
from wmpoe.experts import long_term as long_term_lib
from wmpoe.training import state as state_lib

PROGRAMS = ('train', 'write', 'imagine')

# Warping scatters and gathers. The SparseCores would be given both, and jax 0.10 cannot read such a
# program back: `RET_CHECK ... async-update`.
_ON_TENSOR_CORES = {
    'xla_tpu_enable_offloading_scatter_to_sparsecore': False,
    'xla_tpu_offload_gather_to_sparsecore': False}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """A program to be compiled.

  Attributes:
    name: One of `PROGRAMS`.
    function: Jitted.
    arguments: Shapes with shardings.
    batch: Examples of an update, or episodes.
    steps: Denoising or inner steps in one run; 1 for an update.
    mesh: Where it runs.
    state_bytes: Of parameters and optimiser on one chip (of long-term memories for 'write').
    whole_bytes: The same of all of it, once.
  """

  name: str
  function: Any  # of jax.jit
  arguments: tuple[Any, ...]
  batch: int
  steps: int
  mesh: jax.sharding.Mesh
  state_bytes: int
  whole_bytes: int


def train(
    task: Any, config: state_lib.TrainConfig, examples: Mapping[str, tuple[tuple[int, ...], Any]],
    mesh: jax.sharding.Mesh,
) -> Job:
  """An update of training, state spread by `sharding.shardings`.

  Args:
    task: Of `training.tasks`.
    config: Its batch_size is the global batch.
    examples: Shape (without batch) and dtype of what a batch holds, by name.
    mesh: From `sharding.make_mesh`.

  Raises:
    ValueError: if the mesh divides neither the batch nor a large parameter.
  """
  batch = config.batch_size or 1
  sharding.check_divides(mesh, ('data', 'fsdp'), batch, 'batch_size')
  optimizer = state_lib.optimizer_of(config)
  shapes = jax.eval_shape(
      lambda key: state_lib.create(task.init(key), optimizer), jax.random.key(0))
  layout = sharding.shardings(mesh, shapes)
  place = sharding.batch_sharding(mesh)
  rows = {
      name: jax.ShapeDtypeStruct((batch, *shape), dtype, sharding=place)
      for name, (shape, dtype) in examples.items()}
  return Job(
      name='train', function=state_lib.make_train_step(task, config, layout=layout),
      arguments=(_placed(shapes, layout), rows, _keys((), sharding.replicated(mesh))), batch=batch,
      steps=1, mesh=mesh, state_bytes=sharding.bytes_per_device(shapes, layout),
      whole_bytes=_bytes(shapes))


def write(memory: long_term_lib.LongTerm, episodes: int, mesh: jax.sharding.Mesh) -> Job:
  """The inner loop of many episodes at once, spread over 'data'.

  Args:
    memory: Its arrays may be shapes.
    episodes: Written in one call.
    mesh: From `sharding.make_mesh`.

  Raises:
    ValueError: if 'data' does not divide the episodes.
  """
  sharding.check_divides(mesh, 'data', episodes, 'The number of episodes')
  state = jax.eval_shape(lambda m: m.init(episodes), memory)
  each = sharding.episode_sharding(mesh)
  everywhere = sharding.replicated(mesh)
  held = _bytes(state)
  return Job(
      name='write',
      function=jax.jit(lambda memory, state, keys: memory.fit(state, keys), out_shardings=each),
      arguments=(
          _placed(memory, everywhere), _placed(state, each), _keys((episodes,), each)),
      batch=episodes, steps=memory.writing.steps, mesh=mesh,
      state_bytes=held // sharding.axis_size(mesh, 'data'), whole_bytes=held)


def imagine(world: world_model.WorldModel, episodes: int, mesh: jax.sharding.Mesh) -> Job:
  """One chunk of the composed sampler: episodes over 'data', experts over 'expert' if that is > 1.

  Args:
    world: Its arrays may be shapes.
    episodes: Imagined in one call.
    mesh: From `sharding.make_mesh`.

  Raises:
    ValueError: if 'data' does not divide the episodes.
  """
  sharding.check_divides(mesh, 'data', episodes, 'The number of episodes')
  state = jax.eval_shape(lambda w: w.init(episodes), world)
  each = sharding.episode_sharding(mesh)
  if sharding.axis_size(mesh, 'expert') > 1:
    world = dataclasses.replace(world, mesh=mesh)
  row = lambda dim: jax.ShapeDtypeStruct((episodes, world.chunk, dim), jnp.float32, sharding=each)
  held = _bytes(world)
  return Job(
      name='imagine',
      function=jax.jit(
          lambda world, state, actions, poses, keys: world.imagine(state, actions, poses, keys)[1],
          out_shardings=each),
      arguments=(
          _placed(world, sharding.replicated(mesh)), _placed(state, each), row(world.action_dim),
          row(world.pose_dim), _keys((episodes,), each)),
      batch=episodes, steps=world.num_steps, mesh=mesh, state_bytes=held, whole_bytes=held)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lowered:
  """A program as the compiler gets it.

  Attributes:
    program: To be compiled.
    flops: Of its matmuls on one chip, see `matmul_flops`.
    options: Of the compiler.
    sha256: Of its text, the slice, and the compiler's versions and options: what has the same hash
      compiles to the same.
  """

  program: Any  # of jax.jit
  flops: float
  options: Mapping[str, Any]
  sha256: str


def lower(job: Job, where: topologies.Slice) -> Lowered:
  """Traces and lowers a program, which takes seconds where compiling takes minutes."""
  traced = job.function.trace(*job.arguments)
  lowered = traced.lower()
  text = lowered.as_text()
  scatters = where.chip.sparse_cores and 'stablehlo.scatter' in text
  options = _ON_TENSOR_CORES if scatters else {}
  text = '\n'.join([
      text, where.name, jax.__version__, _version('libtpu'), *map(str, options.items())])
  return Lowered(
      program=lowered, flops=matmul_flops(traced.jaxpr.jaxpr, where.chips), options=options,
      sha256=hashlib.sha256(text.encode()).hexdigest())


def measure(job: Job, where: topologies.Slice, lowered: Lowered) -> dict[str, Any]:
  """Compiles a program and reads off what it costs.

  Returns:
    A row of plain values; `fits` is False, and `needs` tells how much memory it would take, where
    the compiler finds that it does not fit. `report.NOTES` says what the entries mean.
  """
  row: dict[str, Any] = {
      'program': job.name, 'topology': where.name, 'chips': where.chips,
      'mesh': {axis: size for axis, size in job.mesh.shape.items() if size > 1},
      'batch': job.batch, 'steps': job.steps, 'state_bytes': job.state_bytes,
      'whole_state_bytes': job.whole_bytes, 'hbm': where.chip.hbm,
      'jax': jax.__version__, 'libtpu': _version('libtpu'),
      'compiler_options': dict(lowered.options)}
  begun = time.monotonic()
  try:
    compiled = lowered.program.compile(compiler_options=dict(lowered.options))
  except jax.errors.JaxRuntimeError as error:
    needs = topologies.needed_memory(error)
    if needs is None:
      raise
    return {**row, 'fits': False, 'needs': needs, 'compile_seconds': time.monotonic() - begun}
  row['compile_seconds'] = time.monotonic() - begun
  memory = compiled.memory_analysis()
  used = (
      memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
      + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes)
  program = hlo.read(compiled.as_text(), where.chips)
  costs = compiled.cost_analysis() or {}
  return {
      **row, 'fits': True, 'needs': used, 'flops': lowered.flops, 'hbm_bytes': program.hbm_bytes,
      'wire_bytes': program.wire_bytes, 'network_bytes': program.network_bytes,
      'collectives': program.by_kind(), 'kernels': len(program.kernels),
      'endless_loops': program.endless,
      'compiler': {
          name: costs.get(key) for name, key in (
              ('seconds', 'optimal_seconds'), ('flops', 'flops'), ('bytes', 'bytes accessed'))},
      **estimate(lowered.flops, program, where.chip)}


def estimate(flops: float, program: hlo.Program, chip: topologies.Chip) -> dict[str, Any]:
  """Seconds of a run and the share of the chip's peak this means, nothing overlapping.

  The compiler's cycles of each instruction; where a custom kernel is inside, for which it has none,
  the longer of FLOPs and bytes against the published peaks. Collectives come on top, at the speed
  of all links, and between slices at that of a chip's share of the network.
  """
  if program.kernels or not program.cycles:
    compute = max(flops / chip.flops, program.hbm_bytes / chip.hbm_bandwidth)
    basis = 'published peaks'
  else:
    compute, basis = program.cycles / chip.clock, 'cycles of the compiler'
  collective = program.wire_bytes / chip.links
  if program.network_bytes:
    collective += program.network_bytes / chip.network
  seconds = compute + collective
  return {
      'seconds': seconds, 'collective_seconds': collective, 'basis': basis,
      'fraction_of_peak': flops / chip.flops / seconds if seconds else 0.0}


def matmul_flops(jaxpr: Any, devices: int) -> float:
  """FLOPs of matmuls and convolutions of one device, loops as often as they turn.

  What is not written for one device (inside `shard_map`) is divided by their number. Of a
  conditional's branches the costliest counts.
  """
  total = 0.0
  for eqn in jaxpr.eqns:
    inner = [_inner(v) for v in jax.tree.leaves(
        list(eqn.params.values()), is_leaf=lambda v: _inner(v) is not None)]
    inner = [j for j in inner if j is not None]
    name = eqn.primitive.name
    if name == 'dot_general':
      (contracted, _), _ = eqn.params['dimension_numbers']
      depth = math.prod(eqn.invars[0].aval.shape[d] for d in contracted)
      total += 2.0 * depth * math.prod(eqn.outvars[0].aval.shape) / devices
    elif name == 'conv_general_dilated':
      out, kernel = eqn.outvars[0].aval.shape, eqn.invars[1].aval.shape
      features = kernel[eqn.params['dimension_numbers'].rhs_spec[0]]
      total += 2.0 * math.prod(out) * math.prod(kernel) / features / devices
    elif name == 'cond':
      total += max(matmul_flops(j, devices) for j in inner)
    else:
      times = eqn.params['length'] if name == 'scan' else 1
      if name == 'pallas_call':
        times = math.prod(n for n in eqn.params['grid_mapping'].grid if isinstance(n, int))
      within = 1 if name == 'shard_map' else devices
      total += times * sum(matmul_flops(j, within) for j in inner)
  return total


def _inner(value: Any) -> Any:
  """The jaxpr that a parameter of an equation holds, or None."""
  value = getattr(value, 'jaxpr', value)
  return value if hasattr(value, 'eqns') else None


def _placed(shapes: Any, layout: Any) -> Any:
  """Shapes with the shardings of a layout, or all with the same one."""
  if isinstance(layout, jax.sharding.Sharding):
    layout = jax.tree.map(lambda _: layout, shapes)
  return jax.tree.map(
      lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes, layout)


def _keys(shape: tuple[int, ...], place: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
  one = jax.eval_shape(lambda: jax.random.key(0))
  return jax.ShapeDtypeStruct(shape, one.dtype, sharding=place)


def _bytes(shapes: Any) -> int:
  return sum(math.prod(s.shape) * s.dtype.itemsize for s in jax.tree.leaves(shapes))


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return 'absent'
