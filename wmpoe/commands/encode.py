r"""Encodes Memory Maze episodes, or your own, into a latent cache that every run can use.

  python -m wmpoe encode --config=configs/memory_maze.py \
      --source=data/memory_maze_9x9/training --workdir=data/latents/training

The cache is keyed by the autoencoder's hash: a run with another autoencoder refuses it. The command
also reports how well the autoencoder reconstructs the frames.
"""

from collections.abc import Sequence
import sys
import time

from absl import flags as absl_flags
import jax
import numpy as np

from wmpoe import zoo
from wmpoe.commands import common
from wmpoe.commands import own_data
from wmpoe.commands import runs
from wmpoe.data import latents
from wmpoe.evaluation import metrics

_NEXT = {'memory_maze': 'memory_maze.py:cpu_spatial', 'own_data': 'own_data.py:spatial'}


def define(flags: absl_flags.FlagValues, argv: Sequence[str]) -> None:
  """Adds the flags of `encode`."""
  common.define_config(flags, argv)
  define = lambda kind, *args: getattr(absl_flags, f'DEFINE_{kind}')(*args, flag_values=flags)
  define('string', 'source', None, 'Folder of episodes (*.npz).')
  define('string', 'workdir', None, 'Folder to write the cache to.')
  define('boolean', 'strict', False, 'Stop at the first bad file; otherwise name and skip it.')


def run(flags: absl_flags.FlagValues) -> None:
  """Encodes."""
  description = common.plain(common.config_of(flags))
  name = description.get('autoencoder')
  if not isinstance(name, str) or not name:
    raise ValueError(
        'The config names no trained autoencoder; give one that works in latents, such as '
        '--config=configs/memory_maze.py:cpu_spatial.')
  if not flags.source or not flags.workdir:
    raise ValueError('Give the folder of the episodes, --source, and of the cache, --workdir.')
  folder = common.output_folder(flags.workdir)
  space, _ = zoo.load_latent_space(name)
  own_data.fit(description, flags.source)
  found = runs.open_folder(flags.source, zoo.environment(description['env']), flags.strict)
  print(found.report(), file=sys.stderr)
  encode, decode = jax.jit(space.encode), jax.jit(space.decode)
  progress, begun = common.Progress(1), time.monotonic()
  quality: list[float] = []
  about = {'env': description['env'], 'autoencoder': name}

  def encoded():
    for i in range(len(found)):
      item = found[i]
      z = runs.in_pieces(encode, item.frames)
      quality.append(float(metrics.psnr(runs.in_pieces(decode, z), item.frames).mean()))
      about['reconstruction_psnr'] = float(np.mean(quality))
      yield item.meta['name'], item, z

  writing = latents.write(folder, encoded(), encoder=zoo.encoder_hash(space), about=about)
  for done, _ in enumerate(writing):
    progress(f'encoding into {folder}', (done + 1) / len(found))
  progress.done()
  print(f'wrote the latents of {common.counted(len(found), "episode")} to {folder} '
        f'({time.monotonic() - begun:.1f} s); reconstruction '
        f'{metrics.format_value("psnr", about["reconstruction_psnr"])}\n'
        f'next: python -m wmpoe train --config=configs/{_NEXT[description["env"]["name"]]} ...')
