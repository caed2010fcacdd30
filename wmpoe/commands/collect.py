"""Writes episodes of an environment to disk, in the project's format.

  python -m wmpoe collect --config=configs/cards.py --episodes=100 --workdir=data/cards

One npz per episode (frames, actions, poses, meta) and a spaces.json. The same command goes on with
a folder that is not complete yet.
"""

from collections.abc import Sequence
import time

from absl import flags as absl_flags

from wmpoe import zoo
from wmpoe.commands import common
from wmpoe.data import cards


def define(flags: absl_flags.FlagValues, argv: Sequence[str]) -> None:
  """Adds the flags of `collect`."""
  common.define_config(flags, argv)
  define = lambda kind, *args: getattr(absl_flags, f'DEFINE_{kind}')(*args, flag_values=flags)
  define('string', 'workdir', 'outputs/episodes', 'Folder to write to.')
  define('integer', 'episodes', 10, 'How many episodes.')
  define('string', 'split', 'train', f'One of {", ".join(cards.SPLITS)}.')
  define('string', 'kind', None, "'walk', 'script', or both in turn if not given.")
  define('boolean', 'overwrite', False, 'Delete what is there instead of going on with it.')


def run(flags: absl_flags.FlagValues) -> None:
  """Collects."""
  config = common.config_of(flags)
  if flags.episodes < 1:
    raise ValueError(f'--episodes={flags.episodes}: expected at least 1.')
  env = zoo.environment(common.plain(config)['env'])
  folder = common.output_folder(flags.workdir)
  progress, begun = common.Progress(1), time.monotonic()
  for step in cards.collect(
      folder, episodes=flags.episodes, kind=flags.kind, split=flags.split, config=env,
      overwrite=flags.overwrite):
    progress(f'collecting into {folder}', step.done / step.total)
  progress.done()
  print(f'wrote {flags.episodes} episodes to {folder} ({time.monotonic() - begun:.1f} s); next: '
        f"python -c \"from wmpoe.data import episode; "
        f"print(episode.Episode.load('{folder}/episode_00000.npz').frames.shape)\"")
