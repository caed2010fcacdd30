"""Shows memory at work, in minutes on a laptop.

  python -m wmpoe demo                                      Memory Cards
  python -m wmpoe demo --config=configs/memory_maze.py      Memory Maze

Loads the packaged experts and held-out episodes, writes each episode's history into every memory,
imagines what comes next, and shows what was remembered: a table here, and results.json, report.html
and episode.gif in the output folder. Memory Cards: all cards are revealed, covered again, and
revealed a second time. Memory Maze: real episodes of the simulator, with 200 frames to remember
and the frames that follow.
"""

from collections.abc import Sequence
import dataclasses
import sys
import time
from typing import Any

from absl import flags as absl_flags
import jax

from wmpoe import compositions
from wmpoe import world_model
from wmpoe import zoo
from wmpoe.commands import common
from wmpoe.commands import runs
from wmpoe.data import bundled
from wmpoe.data import cards
from wmpoe.evaluation import animation
from wmpoe.evaluation import maze
from wmpoe.evaluation import maze_arms
from wmpoe.evaluation import maze_protocols
from wmpoe.evaluation import maze_study
from wmpoe.evaluation import recall
from wmpoe.evaluation import report
from wmpoe.evaluation import results


def define(flags: absl_flags.FlagValues, argv: Sequence[str]) -> None:
  """Adds the flags of `demo`."""
  common.define_config(flags, argv)
  absl_flags.DEFINE_string(
      'workdir', 'outputs/demo', 'Folder to write to.', flag_values=flags)
  absl_flags.DEFINE_integer(
      'episodes', 16, 'Maximum number of held-out episodes.', flag_values=flags)
  absl_flags.DEFINE_integer('seed', 0, 'Seed of writing and sampling.', flag_values=flags)
  absl_flags.DEFINE_list(
      'experts', None, 'Experts to compose, including base; by default all.',
      flag_values=flags)


def run(flags: absl_flags.FlagValues) -> None:
  """Runs the demo."""
  if flags.episodes < 2:
    raise ValueError(
        f'--episodes={flags.episodes}: expected at least 2, because one control uses another '
        "episode's memory.")
  folder = common.output_folder(flags.workdir)
  description = {'env': {'name': 'cards'}} if flags.config is None else common.plain(flags.config)
  name = description['env']['name']
  compose = description.get('compose') or compositions.COMPOSED[name]
  model = zoo.load(name, compose=compose)
  experts = flags.experts or ['base', *model.memories]
  model = model.compose(*experts)
  if not model.with_base:
    raise ValueError(f'--experts={experts} must include base.')
  begun = time.monotonic()
  body, strips, best = (_maze if name == 'memory_maze' else _cards)(model, description, flags)
  out = results.make(
      results.meta(common.command_line(),
                   {'experts': experts, 'compose': compose},
                   seeds=[flags.seed], seconds=time.monotonic() - begun), **body)
  title = {'cards': 'Memory Cards', 'memory_maze': 'Memory Maze'}[name]
  path = results.write(folder / 'results.json', out)
  page = report.render(out, folder, strips=strips, title=f'{title}: what each memory remembers')
  wrote = [path, page]
  if best is not None:
    wrote.append(animation.write_gif(folder / 'episode.gif', best, fps=4))
  print(report.terminal_table(out))
  print('\nwrote ' + ', '.join(str(p) for p in wrote))
  world = '' if flags.config is None else f' --config=configs/{name}.py'
  call = common.program()
  print(f'look at it:  {page} in a browser\n'
        f'step inside: {call} play{world}    (a page on this machine; open its link)\n'
        f'try next:    {call} demo{world} --experts=base,spatial\n'
        f'             {call} info composition\n'
        f'             {call} train --config=configs/{name}.py:'
        f'{"cpu_spatial" if name == "memory_maze" else "base"} --workdir=runs/mine')


def _cards(
    model: world_model.WorldModel, description: dict[str, Any], flags: absl_flags.FlagValues
) -> tuple[dict[str, Any], Any, Any]:
  """Memory Cards: arguments for `results.make`, film strips, the film of one episode."""
  env = cards.CardsConfig()
  if (given := zoo.environment(description['env'])) != env:
    changed = {name: value for name, value in dataclasses.asdict(given).items()
               if value != getattr(env, name)}
    raise ValueError(
        f'The packaged experts were trained on {env.grid}x{env.grid} boards of {env.size} pixels '
        f'and {env.symbols} symbols; --config.env changes {changed}. Leave it out, or train '
        'experts of your own and measure them with eval --experts.')
  task = recall.problem(env, range(flags.episodes), split='test', chunk=model.chunk)
  _announce('Memory Cards', flags.episodes, task.history.frames.shape[1], model)
  progress = common.Progress(recall.stages(model, 1))
  measured, arms, controls = recall.protocol(
      model, task, seeds=[flags.seed], progress=progress)
  progress.done()
  body = {'arms': arms, 'controls': controls,
          'references': {'recall': {'chance': 1 / env.symbols}}}
  if not model.memories:
    return body, None, None
  return body, recall.strips(task, measured), recall.film_of(task, measured, 0)


def _maze(
    model: world_model.WorldModel, description: dict[str, Any], flags: absl_flags.FlagValues
) -> tuple[dict[str, Any], Any, Any]:
  """Memory Maze, the same, on the bundled episodes."""
  setting = description['protocol']
  found = bundled.episodes('memory_maze')[:flags.episodes]
  encode = jax.jit(model.latents.encode)
  study = maze_study.Study(
      model=model, episodes=found, latents=[runs.in_pieces(encode, item.frames) for item in found],
      setting=setting, seeds=[flags.seed], measures=maze_arms.measures(['psnr', 'ssim']),
      progress=common.Progress)
  task = study.problem(setting['history'], setting['starts'][:1])
  _announce('Memory Maze', len(found), task.history, model)
  arms = {name: arm for name, arm in study.arms().items() if '+' not in name}
  body, measured = maze_protocols.with_controls(study, task, arms, split=True)
  body['maps'] = maze_protocols.maps(study, task, measured)
  frames = {name: found.frames for name, found in measured.items()}
  most = int(task.revisited.sum(axis=1).argmax())
  return body, maze.strips(task, frames), maze.film_of(task, frames, most)


def _announce(world: str, episodes: int, frames: int, model: world_model.WorldModel) -> None:
  print(f'{world}: {episodes} held-out episodes, {frames} frames each to remember; experts: '
        f'{", ".join(["base", *model.memories])}', file=sys.stderr)
