r"""Measures a protocol on held-out episodes and writes PROTOCOL.json and PROTOCOL.html.

  python -m wmpoe eval --config=configs/cards.py --protocol=recall
  python -m wmpoe eval --config=configs/cards.py --protocol=steps
  python -m wmpoe eval --config=configs/memory_maze.py --protocol=table1  --source=data/maze/test
  python -m wmpoe eval --config=configs/memory_maze.py --protocol=revisit --source=data/maze/test
  python -m wmpoe eval --config=configs/own_data.py    --protocol=revisit --source=data/own/test \
      --experts=spatial=spatial.npz --config.autoencoder=autoencoder.npz

Memory Cards. recall: every arm and control of the README's table; steps: recall of the long-term
memory against inner steps and against seconds.
Memory Maze and own data. table1: the frames right after a history of 200; revisit: frames from
several places further on, split into those seen long ago and those never seen; replay: frames of
the history itself; contrast: experts with and without their contrast; context and rank: by length
of the history and by LoRA rank; streaming: rounds of write, imagine, append.
Results are reported on test episodes. To choose settings, use --split=validation (Memory Cards) or
another --source (mazes, own data). The same command resumes a stopped run, part by part. Several
protocols, separated by commas, are measured one after the other; table1,revisit takes no longer
than revisit alone.
"""

from collections.abc import Sequence
import pathlib
import sys
import time
from typing import Any

from absl import flags as absl_flags
import jax

from wmpoe import multihost
from wmpoe import world_model
from wmpoe import zoo
from wmpoe.commands import common
from wmpoe.commands import own_data
from wmpoe.commands import runs
from wmpoe.data import spaces
from wmpoe.evaluation import budgets
from wmpoe.evaluation import curves
from wmpoe.evaluation import kept as kept_lib
from wmpoe.evaluation import maze
from wmpoe.evaluation import maze_arms
from wmpoe.evaluation import maze_baselines
from wmpoe.evaluation import maze_protocols
from wmpoe.evaluation import maze_study
from wmpoe.evaluation import recall
from wmpoe.evaluation import report
from wmpoe.evaluation import results

PROTOCOLS = {
    'cards': ('recall', 'steps'), 'memory_maze': tuple(maze_protocols.PROTOCOLS),
    'own_data': tuple(maze_protocols.PROTOCOLS)}
# Protocols that measure the same from one or several places: what is kept for one serves the other.
_SHARED = {'table1': 'places', 'revisit': 'places'}
_TITLES = {'cards': 'Memory Cards', 'memory_maze': 'Memory Maze', 'own_data': 'Own data'}


def define(flags: absl_flags.FlagValues, argv: Sequence[str]) -> None:
  """Adds the flags of `eval`."""
  common.define_config(flags, argv)
  common.define_distributed(flags)
  define = lambda kind, *args, **kw: getattr(
      absl_flags, f'DEFINE_{kind}')(*args, flag_values=flags, **kw)
  define('string', 'protocol', None, 'One or several, separated by commas. ' + '; '.join(
      f'{name}: {", ".join(known)}' for name, known in PROTOCOLS.items()) + '.')
  define('string', 'workdir', 'outputs/eval', 'Folder to write to.')
  define('string', 'experts', '', 'Expert files to use instead of the packaged ones: '
         'name=file,name=file, where name is base, short_term or spatial.')
  define('integer', 'episodes', 64, 'Maximum number of held-out episodes.')
  define('integer', 'seeds', 3, 'Number of seeds for writing and sampling: 0, 1, ...')
  define('string', 'split', 'test',
         "Memory Cards: 'test' to report results, 'validation' to choose settings.")
  define('string', 'source', None, 'Memory Maze and own data: folder of held-out episodes (*.npz).')
  define('boolean', 'strict', False, 'Stop at the first bad file; otherwise name and skip it.')
  define('list', 'arms', [], 'Memory Maze and own data: arms and controls to measure beside the '
         'base, such as spatial,all; by default all.')
  define('list', 'metrics', ['lpips_vgg', 'lpips_alex', 'ssim', 'psnr'],
         'Memory Maze and own data: metrics to measure.')
  define('list', 'steps', ['20', '50', '100', '250'],
         'Protocol steps: numbers of inner steps to measure after.')


def model_of(experts: str, description: dict[str, Any]) -> world_model.WorldModel:
  """The packaged world model, or one of the files the user named, composed as the config says."""
  compose = description['compose']
  own = description['env']['name'] == own_data.NAME
  if own and not experts:
    raise ValueError('Give the experts you trained on your data, as many as you have: --experts='
                     'base=base.npz,short_term=short_term.npz,spatial=spatial.npz')
  if not experts:
    return zoo.load(description['env']['name'], compose=compose)
  files = common.experts_of(experts, description['env']['name'])
  for path in files.values():
    trained = zoo.card(path)['config'].get('env')
    if own and trained != description['env']:
      raise ValueError(
          f"{path} was trained on {trained}; the episodes are of {description['env']}.")
  space = description.get('autoencoder')
  return zoo.load_files(
      files, compose=compose, autoencoder=space if isinstance(space, str) else None)


def run(flags: absl_flags.FlagValues) -> None:
  """Runs the protocols."""
  description = common.plain(common.config_of(flags))
  own_data.fit(description, flags.source)
  zoo.environment(description['env'])
  name = description['env']['name']
  protocols = (flags.protocol or PROTOCOLS[name][0]).split(',')
  for protocol in protocols:
    if protocol not in PROTOCOLS[name]:
      raise ValueError(
          f'Unknown protocol {protocol!r} of {name}; expected one of {", ".join(PROTOCOLS[name])}, '
          'or several separated by commas.')
  if flags.episodes < 2 or flags.seeds < 1:
    raise ValueError(
        f'--episodes={flags.episodes} and --seeds={flags.seeds}: expected at least 2 episodes (one '
        "control uses another episode's memory) and 1 seed.")
  folder = common.output_folder(flags.workdir)
  model = model_of(flags.experts, description)
  measure, kept = _cards if name == 'cards' else _maze, []
  for protocol in protocols:
    begun = time.monotonic()
    print(f'{_TITLES[name]}: {protocol}, up to {flags.episodes} episodes, {flags.seeds} seeds, '
          f'into {folder}', file=sys.stderr)
    body, strips, about, parts = measure(protocol, model, description, flags, folder)
    kept.append(parts)
    if multihost.is_main():  # The others measured the same.
      facts = {key: description[key] for key in ('env', 'compose')}
      _write(folder, protocol, f'{_TITLES[name]}: {protocol}', strips, results.make(
          results.meta(
              common.command_line(), {**facts, **about},
              seeds=list(range(flags.seeds)), seconds=time.monotonic() - begun + parts.seconds),
          **body))
  for parts in kept:
    parts.clear()


def _write(
    folder: pathlib.Path, protocol: str, title: str, strips: Any, result: dict[str, Any]) -> None:
  """Writes a result and its page, and prints its table."""
  path = results.write(folder / f'{protocol}.json', result)
  page = report.render(result, folder, strips=strips, title=title, name=f'{protocol}.html')
  print(report.terminal_table(result))
  print(f'\nwrote {path} and {pathlib.Path(page)}; next: open {page}')


def _keep(
    folder: pathlib.Path, protocol: str, description: dict[str, Any],
    flags: absl_flags.FlagValues, arrays: Any,
) -> kept_lib.Kept:
  """Where this measurement is kept until its result is written; prints a line if it resumes."""
  measured = _SHARED.get(protocol, protocol)
  facts = results.meta(measured, description, seeds=[], seconds=0.0)
  chosen = {name: flags[name].value for name in ('split', 'arms', 'metrics', 'steps')}
  name = kept_lib.fingerprint([facts, chosen], arrays)
  kept = kept_lib.Kept(folder / f'.{measured}-{name}', writes=multihost.is_main())
  if kept.parts():
    print(f'resuming from {common.counted(kept.parts(), "measured part")} in {kept.folder}; delete '
          'that folder to measure everything again', file=sys.stderr)
  return kept


def _cards(
    protocol: str, model: world_model.WorldModel, description: dict[str, Any],
    flags: absl_flags.FlagValues, folder: pathlib.Path,
) -> tuple[dict[str, Any], Any, dict[str, Any], kept_lib.Kept]:
  """A protocol of Memory Cards: what `results.make` takes, film strips, facts, what is kept."""
  if flags.arms:
    raise ValueError(
        f'--arms={",".join(flags.arms)} is for Memory Maze and own data; here all are measured.')
  env = zoo.environment(description['env'])
  files = common.experts_of(flags.experts, 'cards') or {'base': 'cards_base'}
  for path in files.values():
    trained = zoo.environment(zoo.card(path)['config']['env'])
    board = lambda world: (world.size, world.grid, world.symbols)
    if board(trained) != board(env):
      raise ValueError(
          f'{path} was trained on boards of (pixels, grid, symbols) = {board(trained)}; '
          f'--config.env asks for {board(env)}. Expected the same: leave it out, or give experts '
          'trained on such boards.')
  task = recall.problem(env, range(flags.episodes), split=flags.split, chunk=model.chunk)
  seeds = list(range(flags.seeds))
  kept = _keep(folder, protocol, description, flags, (model, task.history))
  left = len(kept.missing(f'seed {seed}' for seed in seeds))
  body: dict[str, Any] = {'references': {'recall': {'chance': 1 / env.symbols}}}
  strips = None
  if protocol == 'recall':
    progress = common.Progress(recall.stages(model, left))
    measured, arms, controls = recall.protocol(
        model, task, seeds=seeds, progress=progress, kept=kept)
    body |= {'arms': arms, 'controls': controls}
    strips = recall.strips(task, measured)
  else:
    if 'long_term' not in model.memories:
      raise ValueError('The protocol steps needs a long-term memory; this model has none.')
    if not all(s.isdigit() for s in flags.steps):
      raise ValueError(
          f'--steps={",".join(flags.steps)}: expected whole numbers, such as 20,50,100.')
    steps = [int(s) for s in flags.steps]
    progress = common.Progress(left * len(steps) + 1)
    summary, drawn = curves.steps(
        model, task, steps=steps, seeds=seeds, progress=progress, kept=kept)
    body |= {'arms': summary, 'controls': {}, 'curves': drawn}
  progress.done()
  return body, strips, {'split': flags.split, 'episodes': flags.episodes}, kept


def _maze(
    protocol: str, model: world_model.WorldModel, description: dict[str, Any],
    flags: absl_flags.FlagValues, folder: pathlib.Path,
) -> tuple[dict[str, Any], Any, dict[str, Any], kept_lib.Kept]:
  """A protocol of a maze or own data: what `_cards` returns."""
  if flags['split'].present:
    raise ValueError(
        f'--split={flags.split} is for Memory Cards, whose episodes are generated on demand; give '
        'the folder of the episodes of this world, --source.')
  if not flags.source:
    raise ValueError(
        'Give the folder of held-out Memory Maze episodes, for instance --source=data/maze/test '
        '(python -m wmpoe collect --config=configs/memory_maze.py makes them).')
  env = zoo.environment(description['env'])
  own = isinstance(env, spaces.Spaces)
  if model.latents is None and not own:
    raise ValueError('A Memory Maze model works in latents; its autoencoder is missing.')
  found = runs.open_folder(flags.source, env, flags.strict)
  if found.bad:
    print(found.report(), file=sys.stderr)
  count = min(flags.episodes, len(found))
  if count < 2:
    raise ValueError(
        f'{flags.source} holds {common.counted(count, "good episode")}: expected at least 2, '
        "because one control uses another episode's memory.")
  encode = None if model.latents is None else jax.jit(model.latents.encode)
  odometry = None
  if description['protocol']['odometry']:
    odometry = zoo.load_odometry(description['protocol']['odometry'])[:2]
  setting, episodes = description['protocol'], [found[i] for i in range(count)]
  baselines: dict[str, Any] = {}
  facts: dict[str, Any] = {}
  training: dict[str, budgets.Runs] = {}
  if protocol in _SHARED:
    files = common.experts_of(flags.experts, description['env']['name'])
    training = budgets.of_model(files, model.memories, setting['odometry'])
  if protocol in _SHARED and not own:
    baselines, facts['training'], facts['left_out'] = maze_baselines.load(
        setting, description['env'], zoo.encoder_hash(model.latents))
    training |= {arm: budgets.runs(said['file']) for arm, said in facts['training'].items()}
    if facts['left_out']:
      print(f'left out for lack of matching weights: {", ".join(facts["left_out"])}. Train them '
            'with python -m wmpoe train and give them with '
            '--config.protocol.baselines.NAME=FILE.npz.', file=sys.stderr)
  seen = [(item.frames, item.actions, item.poses) for item in episodes]
  kept = _keep(
      folder, protocol, description, flags, (model, baselines, odometry and odometry[1], seen))
  body, strips = maze_protocols.PROTOCOLS[protocol](maze_study.Study(
      model=model, episodes=episodes,
      latents=[runs.in_pieces(encode, item.frames) if encode else item.frames
               for item in episodes],
      setting=setting, planar=not own or env.poses.kind == 'planar',
      view=own_data.view(description) if own else maze.MAZE_VIEW,
      seeds=list(range(flags.seeds)), measures=maze_arms.measures(flags.metrics),
      odometry=odometry, progress=common.Progress, baselines=baselines, training=training,
      kept=kept, only=tuple(flags.arms)))
  return body, strips or None, {
      'source': flags.source, 'episodes': count, 'protocol': setting,
      'poses': 'true, but for arms that end in _odometry' if model.pose_dim else 'none', **facts,
      **body.pop('about', {})}, kept
