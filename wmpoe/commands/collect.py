"""Writes episodes of an environment to disk. The same command resumes an unfinished folder.

  python -m wmpoe collect --config=configs/cards.py --episodes=100 --workdir=data/cards
  python -m wmpoe collect --config=configs/memory_maze.py --episodes=100 --workdir=data/maze/train

Memory Cards: one npz per episode in the project's format (frames, actions, poses, meta), and a
spaces.json. Memory Maze: rendered by its simulator (pip install wmpoe[maze]), one npz per episode
with the fields of the public dataset, and a collection.json with coverage and revisits.
"""

from collections.abc import Sequence
import sys
import time
from typing import Any

from absl import flags as absl_flags

from wmpoe import zoo
from wmpoe.commands import common
from wmpoe.data import cards
from wmpoe.data import maze_collection

_ONLY = {'cards': ('kind',), 'memory_maze': (
    'size', 'length', 'policy', 'seed', 'processes', 'depth')}


def define(flags: absl_flags.FlagValues, argv: Sequence[str]) -> None:
  """Adds the flags of `collect`."""
  common.define_config(flags, argv)
  define = lambda kind, *args: getattr(absl_flags, f'DEFINE_{kind}')(*args, flag_values=flags)
  define('string', 'workdir', 'outputs/episodes', 'Folder to write to.')
  define('integer', 'episodes', 10, 'Number of episodes.')
  define('string', 'split', 'train', f'One of {", ".join(cards.SPLITS)}.')
  define('boolean', 'overwrite', False, 'Delete existing episodes instead of resuming.')
  define('string', 'kind', None, "Cards: 'walk' or 'script'; by default both in turn.")
  define('integer', 'size', None, "Maze: cells per side (9, 11, 13, 15); by default the config's.")
  define('integer', 'length', None, "Maze: simulator steps per episode; by default the config's.")
  define('string', 'policy', None,
         f'Maze: one of {", ".join(maze_collection.POLICIES)} (mixed: both in turn, the default).')
  define('integer', 'seed', None, 'Maze: seed of the episodes; by default 0.')
  define('integer', 'processes', None, 'Maze: simulators to run in parallel; by default 1.')
  define('boolean', 'depth', None, 'Maze: also render the depth of every pixel.')
  define('boolean', 'strict', False, 'Maze: stop at the first episode that cannot be made.')


def run(flags: absl_flags.FlagValues) -> None:
  """Collects."""
  config = common.config_of(flags)
  if flags.episodes < 1:
    raise ValueError(f'--episodes={flags.episodes}: expected at least 1.')
  env = common.plain(config)['env']
  if env['name'] not in _ONLY:
    raise ValueError(
        f'collect makes episodes of {" and ".join(_ONLY)}; your own are converted (python -m wmpoe '
        'data convert) or recorded (docs/own_data.md).')
  for name, others in _ONLY.items():
    given = [f'--{flag}' for flag in others if flags[flag].value is not None]
    if given and name != env['name']:
      raise ValueError(f'{", ".join(given)}: only for {name}; the config is of {env["name"]}.')
  if env['name'] == 'memory_maze':
    _collect_maze(flags, env)
  else:
    _collect_cards(flags, env)


def _collect_cards(flags: absl_flags.FlagValues, env: dict[str, Any]) -> None:
  world = zoo.environment(env)
  folder = common.output_folder(flags.workdir)
  progress, begun = common.Progress(1), time.monotonic()
  for step in cards.collect(
      folder, episodes=flags.episodes, kind=flags.kind, split=flags.split, config=world,
      overwrite=flags.overwrite):
    progress(f'collecting into {folder}', step.done / step.total)
  progress.done()
  print(f'wrote {common.counted(flags.episodes, "episode")} to {folder} '
        f'({time.monotonic() - begun:.1f} s); next: '
        f"python -c \"from wmpoe.data import episode; "
        f"print(episode.Episode.load('{folder}/episode_00000.npz').frames.shape)\"")


def _collect_maze(flags: absl_flags.FlagValues, env: dict[str, Any]) -> None:
  asked = {n: flags[n].value for n in ('size', 'length') if flags[n].value is not None}
  world = zoo.environment({**env, **asked})
  settings = maze_collection.Settings(
      env=world, policy=flags.policy or 'mixed', split=flags.split, seed=flags.seed or 0,
      depth=bool(flags.depth))
  processes = 1 if flags.processes is None else flags.processes
  if processes < 1:
    raise ValueError(f'--processes={processes}: expected at least 1.')
  folder = common.output_folder(flags.workdir)
  progress, begun, written, bad = common.Progress(1), time.monotonic(), 0, {}
  for step in maze_collection.collect(
      folder, settings, episodes=flags.episodes, processes=processes,
      strict=flags.strict, overwrite=flags.overwrite):
    text = f'collecting {step.total} of {flags.episodes} episodes into {folder}'
    progress(text, step.done / step.total)
    if step.error:
      bad[step.path.name] = step.error
      progress.done()
      print(f'{step.path}: {step.error}', file=sys.stderr)
    else:
      written += 1
  progress.done()
  seconds = time.monotonic() - begun
  report = maze_collection.finish(folder, settings, episodes=flags.episodes, bad=bad)
  print(maze_collection.describe(report))
  if not report['episodes']:
    raise RuntimeError(f'None of the {len(bad)} episodes could be made; see above.')
  rate = written * world.length / seconds
  print(f'wrote {common.counted(written, "episode")} to {folder} ({seconds:.0f} s, '
        f'{rate:.1f} frames/s); report: {folder / maze_collection.INDEX}')
  print('next: python -c "from wmpoe.data import memory_maze; '
        f"print(memory_maze.MazeFolder('{folder}')[0].frames.shape)\"")
