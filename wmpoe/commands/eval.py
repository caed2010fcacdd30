"""Measures a protocol on held-out episodes and writes PROTOCOL.json and PROTOCOL.html.

  python -m wmpoe eval --config=configs/cards.py --protocol=recall
  python -m wmpoe eval --config=configs/cards.py --protocol=steps

recall: 64 test episodes x 3 seeds, every arm and control of the README's table.
steps: recall of the long-term memory against inner steps and against seconds.
Episodes of the test split are reported; --split=validation is for choosing anything.
"""

from collections.abc import Sequence
import pathlib
import sys
import time
from typing import Any

from absl import flags as absl_flags

from wmpoe import world_model
from wmpoe import zoo
from wmpoe.commands import common
from wmpoe.evaluation import curves
from wmpoe.evaluation import recall
from wmpoe.evaluation import report
from wmpoe.evaluation import results

PROTOCOLS = ('recall', 'steps')


def define(flags: absl_flags.FlagValues, argv: Sequence[str]) -> None:
  """Adds the flags of `eval`."""
  common.define_config(flags, argv)
  define = lambda kind, *args, **kw: getattr(
      absl_flags, f'DEFINE_{kind}')(*args, flag_values=flags, **kw)
  define('string', 'protocol', 'recall', f'One of {", ".join(PROTOCOLS)}.')
  define('string', 'workdir', 'outputs/eval', 'Folder to write to.')
  define('string', 'experts', '', 'Files of experts instead of the packaged ones: '
         'name=file,name=file with names base, short_term, spatial.')
  define('integer', 'episodes', 64, 'Held-out episodes.')
  define('integer', 'seeds', 3, 'Seeds of writing and sampling: 0, 1, ...')
  define('string', 'split', 'test', "'test' to report, 'validation' to choose.")
  define('list', 'steps', ['20', '50', '100', '250'], 'Inner steps of the protocol steps.')


def model_of(experts: str, description: dict[str, Any]) -> world_model.WorldModel:
  """The packaged world model, or one of the files the user named, composed as the config says."""
  compose = description['compose']
  if not experts:
    return zoo.load(description['env']['name'], compose=compose)
  files = {}
  for item in experts.split(','):
    name, _, path = item.partition('=')
    if not path:
      raise ValueError(f'--experts got {item!r}; expected name=file, comma separated.')
    params, card = zoo.load_expert(path)
    files[name] = (params, card['config'])
  return zoo.build(files, compose)


def run(flags: absl_flags.FlagValues) -> None:
  """Runs the protocol."""
  if flags.protocol not in PROTOCOLS:
    raise ValueError(
        f'Unknown protocol {flags.protocol!r}; expected one of {", ".join(PROTOCOLS)}.')
  if flags.episodes < 2 or flags.seeds < 1:
    raise ValueError(
        f'--episodes={flags.episodes} and --seeds={flags.seeds}: expected at least 2 episodes (one '
        "control is another episode's memory) and 1 seed.")
  description = common.plain(common.config_of(flags))
  folder = common.output_folder(flags.workdir)
  model = model_of(flags.experts, description)
  env = zoo.environment(description['env'])
  task = recall.problem(
      env, range(flags.episodes), split=flags.split, chunk=model.chunk)
  seeds = list(range(flags.seeds))
  begun = time.monotonic()
  command = ' '.join(['python -m wmpoe', *sys.argv[1:]])
  meta = lambda: results.meta(
      command, {'env': description['env'], 'split': flags.split, 'episodes': flags.episodes,
                'compose': description['compose']},
      seeds=seeds, seconds=time.monotonic() - begun)
  if flags.protocol == 'recall':
    progress = common.Progress(recall.stages(model, len(seeds)))
    measured, arms, controls = recall.protocol(model, task, seeds=seeds, progress=progress)
    out = results.make(
        meta(), arms, controls, references={'recall': {'chance': 1 / env.symbols}})
    strips = recall.strips(task, measured)
  else:
    if 'long_term' not in model.memories:
      raise ValueError('The protocol steps needs a long-term memory; this model has none.')
    steps = [int(s) for s in flags.steps]
    progress = common.Progress(len(seeds) * len(steps) + 1)
    summary, drawn = curves.steps(model, task, steps=steps, seeds=seeds, progress=progress)
    out = results.make(
        meta(), summary, {}, references={'recall': {'chance': 1 / env.symbols}}, curves=drawn)
    strips = None
  progress.done()
  path = results.write(folder / f'{flags.protocol}.json', out)
  page = report.render(
      out, folder, strips=strips, title=f'Memory Cards: {flags.protocol}',
      name=f'{flags.protocol}.html')
  print(report.terminal_table(out))
  print(f'\nwrote {path} and {pathlib.Path(page)}; next: open {page}')
