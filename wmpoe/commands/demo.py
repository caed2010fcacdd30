"""Shows memory at work, in minutes on a laptop.

Loads the packaged Memory Cards experts, writes the history of held-out episodes (all cards were
revealed and covered again) into every memory, imagines the second reveal, and shows what was
remembered: a table here, and results.json, report.html and episode.gif in the output folder.
"""

from collections.abc import Sequence
import sys
import time

from absl import flags as absl_flags

from wmpoe import zoo
from wmpoe.commands import common
from wmpoe.data import cards
from wmpoe.evaluation import film
from wmpoe.evaluation import recall
from wmpoe.evaluation import report
from wmpoe.evaluation import results


def define(flags: absl_flags.FlagValues, argv: Sequence[str]) -> None:
  """Adds the flags of `demo`."""
  del argv
  absl_flags.DEFINE_string(
      'workdir', 'outputs/demo', 'Folder to write to.', flag_values=flags)
  absl_flags.DEFINE_integer('episodes', 16, 'Held-out episodes.', flag_values=flags)
  absl_flags.DEFINE_integer('seed', 0, 'Seed of writing and sampling.', flag_values=flags)
  absl_flags.DEFINE_list(
      'experts', list(zoo.EXPERTS), 'Which experts to compose.', flag_values=flags)


def run(flags: absl_flags.FlagValues) -> None:
  """Runs the demo."""
  if flags.episodes < 2:
    raise ValueError(
        f"--episodes={flags.episodes}: expected at least 2, as one control is another episode's "
        'memory.')
  folder = common.output_folder(flags.workdir)
  model = zoo.load('cards')
  model = model.compose(*flags.experts)
  if not model.with_base:
    raise ValueError(f'--experts={flags.experts} must include base.')
  env = cards.CardsConfig()
  task = recall.problem(env, range(flags.episodes), split='test', chunk=model.chunk)
  print(f'Memory Cards: {flags.episodes} held-out episodes, {task.history.frames.shape[1]} frames '
        f'each to remember; experts: {", ".join(flags.experts)}', file=sys.stderr)
  progress = common.Progress(recall.stages(model, 1))
  begun = time.monotonic()
  measured, arms, controls = recall.protocol(
      model, task, seeds=[flags.seed], progress=progress)
  progress.done()
  out = results.make(
      results.meta(' '.join(['python -m wmpoe', *sys.argv[1:]]),
                   {'experts': list(flags.experts), 'compose': zoo.CARDS},
                   seeds=[flags.seed], seconds=time.monotonic() - begun),
      arms, controls, references={'recall': {'chance': 1 / env.symbols}})
  strips = recall.strips(task, measured) if model.memories else None
  path = results.write(folder / 'results.json', out)
  page = report.render(
      out, folder, strips=strips, title='Memory Cards: what each memory remembers')
  wrote = [path, page]
  if model.memories:
    wrote.append(film.write_gif(
        folder / 'episode.gif', recall.film_of(task, measured, 0), fps=4))
  print(report.terminal_table(out))
  print('\nwrote ' + ', '.join(str(p) for p in wrote))
  print(f'look at it:  open {page}\n'
        'try next:    python -m wmpoe demo --experts=base,spatial\n'
        '             python -m wmpoe info composition\n'
        '             python -m wmpoe train --config=configs/cards.py:base --workdir=runs/base')
