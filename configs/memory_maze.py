"""Memory Maze (arXiv 2210.13383), rendered by its simulator.

  python -m wmpoe collect --config=configs/memory_maze.py --episodes=100 --workdir=data/maze/train

Needs the extra `maze`: pip install -e '.[maze]'.
"""

import ml_collections

VARIANTS = ('',)


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """The world: 9x9 cells, frames of 64x64 with a border of 2, every second step.

  Raises:
    ValueError: for an unknown variant.
  """
  if variant not in VARIANTS:
    raise ValueError(
        f'Unknown variant {variant!r} of configs/memory_maze.py; expected one of '
        f'{", ".join(map(repr, VARIANTS))}.')
  config = ml_collections.ConfigDict()
  config.env = dict(name='memory_maze', size=9, image=64, border=2, skip=2, length=600)
  return config
