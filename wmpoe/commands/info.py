"""Describes the packaged experts, the card of one expert, or what composition rules do.

python -m wmpoe info                     packaged experts and this installation
python -m wmpoe info --expert=FILE       the card of one expert, checked against its weights
python -m wmpoe info composition         the 1-D mixture table: what a sampler makes of each rule
"""

from collections.abc import Sequence
import json
import platform

from absl import flags as absl_flags
import jax

import wmpoe
from wmpoe import packaged
from wmpoe import zoo
from wmpoe.commands import common
from wmpoe.evaluation import mixture_study

TOPICS = ('experts', 'composition')


def define(flags: absl_flags.FlagValues, argv: Sequence[str]) -> None:
  """Adds the flags of `info`."""
  del argv
  absl_flags.DEFINE_string(
      'topic', 'experts', f'One of {", ".join(TOPICS)}.', flag_values=flags)
  absl_flags.DEFINE_string(
      'expert', '', 'File of an expert, or name of a packaged one.', flag_values=flags)
  absl_flags.DEFINE_string(
      'workdir', 'outputs/info', 'Folder for the plot of topic composition.', flag_values=flags)


def run(flags: absl_flags.FlagValues) -> None:
  """Prints the topic."""
  if flags.topic not in TOPICS:
    raise ValueError(f'Unknown topic {flags.topic!r}; expected one of {", ".join(TOPICS)}.')
  if flags.topic == 'composition':
    folder = common.output_folder(flags.workdir)
    rows = mixture_study.run()
    mixture_study.plot(rows, folder / 'composition.png')
    print(mixture_study.table(rows))
    print('\n1-D mixture, analytic scores, 2 experts, alpha = 2, DDIM 50, 20,000 samples, '
          'seed 0.\n'
          f'wrote {folder / "composition.png"}; next: python -m wmpoe demo')
    return
  if flags.expert:
    _, card = zoo.load_expert(flags.expert)
    print(json.dumps(card, indent=2))
    print('weights match the card (sha256 and every leaf)')
    return
  print(f'wmpoe {wmpoe.__version__}, jax {jax.__version__}, python {platform.python_version()}, '
        f'{jax.device_count()} {jax.default_backend()} device(s)\n')
  print(packaged.info())
  print('\nnext: python -m wmpoe demo')
