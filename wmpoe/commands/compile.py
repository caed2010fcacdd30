r"""Compiles training, memory writing and composed sampling for a TPU slice, on any Linux machine.

  python -m wmpoe compile --topology=v5e:4x4 --config=configs/memory_maze.py:base
  python -m wmpoe compile --topology=v5e:4x4,v6e:8x8 --config=configs/memory_maze.py:base \
      --compare=configs/memory_maze.py:base_1b

No TPU is needed: the TPU compiler (pip install -e '.[tpu]') builds the program that would run and
reports its memory, work and communication. Results go to --workdir: one JSON file per program and
slice, and a table of all of them. A program whose text has not changed is not compiled again.
"""

from collections.abc import Sequence
import json
import os
import pathlib
from typing import Any

from absl import flags as absl_flags
import jax
import jax.numpy as jnp
from ml_collections import config_flags

from wmpoe import sharding
from wmpoe import whole_file
from wmpoe import world_model
from wmpoe import zoo
from wmpoe.aot import programs
from wmpoe.aot import report
from wmpoe.aot import topologies
from wmpoe.commands import common
from wmpoe.commands import runs
from wmpoe.training import trainer

_COMPOSED = ('short_term', 'spatial')
_AXES = {'train': ('fsdp', 'tensor'), 'imagine': ('expert',)}  # by program, beside 'data'


def define(flags: absl_flags.FlagValues, argv: Sequence[str]) -> None:
  """Adds the flags of `compile`."""
  common.define_config(flags, argv)
  config_flags.DEFINE_config_file(
      'compare', None, 'A second config to compile for the same slices and compare.',
      flag_values=flags, sys_argv=list(argv))
  absl_flags.DEFINE_list(
      'topology', [], 'TPU slices by generation and shape in chips, such as v5e:4x4,v5p:4x4x4; '
      '2xv5e:4x4 for two slices that train together.', flag_values=flags)
  absl_flags.DEFINE_list(
      'programs', [], f'Programs to compile, out of {", ".join(programs.PROGRAMS)}; by default '
      'those the config has.', flag_values=flags)
  absl_flags.DEFINE_list(
      'mesh', ['fsdp=8'], 'Sizes of the mesh axes fsdp and tensor (training) and expert '
      '(sampling); the remaining chips are on data.', flag_values=flags)
  absl_flags.DEFINE_integer(
      'batch', 0, "Batch size over all chips; 0 for the config's.", flag_values=flags)
  absl_flags.DEFINE_integer(
      'episodes', 1024, 'Episodes written or imagined per call.', flag_values=flags)
  absl_flags.DEFINE_list(
      'experts', [], f'Variants of the same config file, {" and ".join(_COMPOSED)}, that the '
      'sampler composes with the base and its long-term memory.', flag_values=flags)
  absl_flags.DEFINE_bool(
      'memories', True, 'Compose with the long-term memory; if false, the base samples alone.',
      flag_values=flags)
  absl_flags.DEFINE_string(
      'workdir', 'outputs/compile', 'Folder for the results.', flag_values=flags)
  absl_flags.DEFINE_string(
      'page', '', 'Markdown file for the table of all results in --workdir.',
      flag_values=flags)


def run(flags: absl_flags.FlagValues) -> None:
  """Compiles what was asked for and writes the table."""
  if 'JAX_PLATFORMS' not in os.environ:
    jax.config.update('jax_platforms', 'cpu')  # the TPU compiler is here, a TPU is not
  config = common.config_of(flags)
  if not flags.topology:
    raise ValueError('Give a slice, for instance --topology=v5e:4x4.')
  slices = [topologies.find(name) for name in flags.topology]
  sizes = _sizes(flags.mesh)
  unknown = sorted(set(flags.programs) - set(programs.PROGRAMS))
  if unknown:
    raise ValueError(
        f'Unknown programs {unknown}; expected some of {", ".join(programs.PROGRAMS)}.')
  misfits = sorted(set(flags.experts) - set(_COMPOSED))
  if misfits:
    raise ValueError(f'--experts={misfits}: expected some of {", ".join(_COMPOSED)}.')
  folder = common.output_folder(flags.workdir)
  configs = [('config', config)] + ([('compare', flags.compare)] if flags.compare else [])
  jobs = []
  for name, each in configs:
    description = _for_tpu(common.plain(each))
    wanted = flags.programs or (
        programs.PROGRAMS if description['expert'] == 'base' else ('train',))
    jobs += [(name, description, where, program) for where in slices for program in wanted]
  for _, _, where, program in jobs:  # before any work: is the compiler there, do all meshes fit?
    _mesh(where, sizes, program)
  done: dict[str, list[dict[str, Any]]] = {}
  progress = common.Progress(len(jobs))
  for name, description, where, program in jobs:
    progress(f'{description["variant"]}, {program}, {where.name}', 0.0)
    file = config_flags.get_config_filename(flags[name])
    done.setdefault(name, []).append(
        _row(flags, description, file, program, where, sizes, folder))
  progress.done()
  rows = [json.loads(path.read_text(encoding='utf-8')) for path in sorted(folder.glob('*.json'))]
  command = f'python -m wmpoe compile --topology={",".join(flags.topology)} ...'
  page = pathlib.Path(flags.page) if flags.page else folder / 'compile.md'
  whole_file.write(page, report.page(rows, command).encode())
  print(report.table([row for found in done.values() for row in found]))
  if flags.compare:
    print('\nThe second config over the first:\n')
    print(report.comparison(done['config'], done['compare']))
  print(f'\nwrote {page} and {folder}/*.json ({common.counted(len(rows), "program")}); next: try '
        'another --topology, or launch the training on such a slice')


def _sizes(mesh: Sequence[str]) -> dict[str, int]:
  """`['fsdp=8', ...]` as sizes of axes.

  Raises:
    ValueError: for anything else, or the axis 'data', which takes what remains.
  """
  sizes = {}
  for item in mesh:
    axis, _, size = item.partition('=')
    if axis not in sharding.AXES[1:] or not size.isdigit() or not int(size):
      raise ValueError(
          f'--mesh={item}: expected axis=size, where axis is one of '
          f'{", ".join(sharding.AXES[1:])}; data takes the chips that remain.')
    sizes[axis] = int(size)
  return sizes


def _mesh(where: topologies.Slice, sizes: dict[str, int], program: str) -> Any:
  """The slice as a mesh with a program's axes; the remaining chips are on 'data'."""
  used = {axis: size for axis, size in sizes.items() if axis in _AXES.get(program, ())}
  return sharding.make_mesh({'data': -1, **used}, topologies.devices(where))


def _for_tpu(description: dict[str, Any]) -> dict[str, Any]:
  """Replaces 'auto' by its choice on a TPU, which this machine is not; runs blocks in a loop."""
  model = description.get('model')
  if not model:
    raise ValueError(
        'This config has no denoiser; expected a variant such as configs/memory_maze.py:base.')
  chosen = {'implementation': 'dot_product_attention', 'scan': 'associative'}
  given = {k: v for k, v in model.items() if k not in chosen or v != 'auto'}
  return {**description, 'model': {'scan_layers': True, **chosen, **given}}


def _row(
    flags: absl_flags.FlagValues, description: dict[str, Any], file: str, program: str,
    where: topologies.Slice, sizes: dict[str, int], folder: pathlib.Path,
) -> dict[str, Any]:
  """Compiles one program, or reads the result of an earlier call for the same one."""
  mesh = _mesh(where, sizes, program)
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # which a custom kernel asks for
    label, job = _job(flags, description, file, program, mesh)
    lowered = programs.lower(job, where)
    path = folder / (f'{description["variant"]}-{program}-{where.name.replace(":", "-")}-'
                     f'{lowered.sha256[:8]}.json')
    if path.exists():
      return json.loads(path.read_text(encoding='utf-8'))
    measured = programs.measure(job, where, lowered)
  row = {'config': label, 'attention': description['model']['implementation'], **measured}
  whole_file.write(path, (json.dumps(row, indent=2) + '\n').encode())
  return row


def _job(
    flags: absl_flags.FlagValues, description: dict[str, Any], file: str, program: str, mesh: Any
) -> tuple[str, programs.Job]:
  """A program's name in tables, and the program."""
  kernel = ', splash' if description['model']['implementation'] == 'splash' else ''
  if program == 'train':
    runs.check_mesh(mesh, description)
    return description['variant'] + kernel, _training(description, flags.batch, mesh)
  experts = {'base': description}
  if program == 'write':
    world = _world(experts, description['compose'], long_term=True)
    return (
        description['variant'] + kernel,
        programs.write(world.memories['long_term'], flags.episodes, mesh))
  experts |= {name: _variant(file, name, description) for name in flags.experts}
  compose = description['compose']
  merged = ' (merged)' if compose['long_term'].get('reading') == 'merged' else ''
  label = ' + '.join([*experts, *([f'long_term{merged}'] if flags.memories else [])]) + kernel
  world = _world(experts, compose, long_term=flags.memories)
  return label, programs.imagine(world, flags.episodes, mesh)


def _training(description: dict[str, Any], batch: int, mesh: Any) -> programs.Job:
  config = trainer.TrainConfig(
      **{**description['train'], **({'batch_size': batch} if batch else {})})
  model, dims = description['model'], zoo.dimensions(description['env'])
  frame = tuple(zoo.model(description).network.frame_shape)
  dtype = jnp.float32 if 'latent' in model else jnp.uint8
  examples: dict[str, tuple[tuple[int, ...], Any]] = {}
  for prefix, length in (
      ('', model['context'] + model['target']), ('history_', description['data']['history'])):
    if length:
      examples |= {
          f'{prefix}frames': ((length, *frame), dtype),
          f'{prefix}actions': ((length, dims['action_dim']), jnp.float32),
          f'{prefix}poses': ((length, dims['pose_dim']), jnp.float32),
          f'{prefix}valid': ((length,), jnp.bool_)}
  if description.get('points'):
    pixels = (description['data']['history'], *zoo.environment(description['env']).frame_shape)
    examples |= {
        'history_pictures': (pixels, jnp.uint8), 'history_inverse_depth': (pixels[:-1], jnp.uint8)}
  return programs.train(runs.make_task(description), config, examples, mesh)


def _variant(file: str, variant: str, like: dict[str, Any]) -> dict[str, Any]:
  """Another variant of the same config file."""
  flags = absl_flags.FlagValues()
  config_flags.DEFINE_config_file(  # which looks at this process's own --config unless told not to
      'config', f'{file.partition(":")[0]}:{variant}', flag_values=flags, sys_argv=['wmpoe'])
  flags(['wmpoe'])
  return {**_for_tpu(common.plain(flags.config)), 'env': like['env']}


def _world(
    experts: dict[str, dict[str, Any]], compose: dict[str, Any], *, long_term: bool
) -> world_model.WorldModel:
  """The world model of these experts, with shapes for arrays.

  Memories contrast with the base, so that there is one branch for each expert.
  """
  compose = {
      **compose, 'baselines': dict.fromkeys(_COMPOSED, 'base'),
      'long_term': compose['long_term'] if long_term else None}
  make = lambda params: zoo.build({n: (params[n], experts[n]) for n in experts}, compose)
  return jax.eval_shape(make, {name: zoo.shapes(d) for name, d in experts.items()})
