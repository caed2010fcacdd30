"""How the packaged experts are composed and their long-term memories written.

Chosen on validation episodes, never on those reported.
"""

from collections.abc import Mapping
import copy
from typing import Any

from wmpoe.experts import place_field
from wmpoe.networks import lora

CARDS: dict[str, Any] = {
    'rule': 'shared_base',
    'weights': {'short_term': 1.0, 'long_term': 0.5, 'spatial': 1.0},
    # Louder, three would push cards that lie open until they are covered.
    'fewer': {'short_term': {'short_term': 1.5}, 'long_term': {'long_term': 1.0},
              'spatial': {'spatial': 1.5}},
    # What was remembered is decided where noise is high; below it the base sharpens the picture.
    'levels': {name: {'high': -0.5} for name in ('short_term', 'long_term', 'spatial')},
    'baselines': {'short_term': 'base', 'spatial': 'base'},
    'sampler': {'name': 'ddim', 'eta': 0.0},
    'num_steps': 10,
    'long_term': {
        'lora': {
            'rank': 32, 'alpha': 32.0, 'targets': [*lora.TARGETS, 'place'],
            'table_scale': 100.0},
        'writing': {
            'steps': 100, 'clips_per_step': 1, 'target': 7, 'capacity': 128, 'balance': 1.0,
            'objective': {
                'regime': 'clean_context', 'weighting': 'v', 'null_rate': 1.0,
                'partial_rate': 0.0, 'time_power': 0.1},
            'optimizer': {'name': 'adam', 'learning_rate': 1e-3, 'halving_steps': 50}},
        'baseline': 'base',
        'reading': 'low_rank',
    },
}


# Memory Maze at CPU scale. A table keyed by place is what is written, and solved for: inner steps
# after that (or adapters of the layers beside it) add nothing on validation mazes.
MEMORY_MAZE: dict[str, Any] = {
    'rule': 'shared_base',
    'weights': {'short_term': 0.6, 'long_term': 0.1, 'spatial': 1.75},
    # What several know, each says more quietly.
    'fewer': {'short_term': {'short_term': 1.5}, 'long_term': {'long_term': 1.0},
              'short_term+long_term': {'short_term': 1.5, 'long_term': 1.0}},
    # As above; what spatial memory read is sharp enough to be followed to the end.
    'levels': {name: {'high': -1.0} for name in ('short_term', 'long_term')},
    'sampler': {'name': 'ddim', 'eta': 0.0},
    'num_steps': 10,
    # No network of its own: the spatial expert's, which reads a ring of the last frames.
    'short_term': {'frames': 33},
    # With 'short_term' here, dreams are remembered: truer to themselves, less true to the world.
    'follows': (),
    'spatial': {'frames': 256},
    'long_term': {
        'field': 256,
        # 9 views around a frame: 1800 are those of 200 frames.
        'regression': {'views': place_field.VIEWS, 'ridge': 1e-4, 'few': 1800, 'steps': 0},
        'lora': {
            'rank': 256, 'alpha': 256.0, 'targets': ['field'], 'table_scale': 30.0},
        'writing': {
            'steps': 100, 'clips_per_step': 1, 'target': 8, 'capacity': 256, 'balance': 0.0,
            'objective': {
                'regime': 'clean_context', 'weighting': 'v', 'null_rate': 0.5,
                'partial_rate': 0.0, 'time_power': 0.2},
            'optimizer': {'name': 'adam', 'learning_rate': 1e-3, 'halving_steps': 100}},
        'baseline': 'base',
        'reading': 'low_rank',
    },
}
COMPOSED = {'cards': CARDS, 'memory_maze': MEMORY_MAZE}
# Where no pose says where a frame was seen, layers are adapted and no table keyed by place.
WITHOUT_PLACES = {'rank': 32, 'alpha': 32.0, 'targets': [*lora.TARGETS]}


def of(env: Mapping[str, Any]) -> dict[str, Any]:
  """How experts of an environment are composed if nothing else is said; own data as mazes are."""
  composed = copy.deepcopy(COMPOSED.get(env['name'], MEMORY_MAZE))
  if env.get('poses', {}).get('kind', 'planar') != 'planar':
    composed['long_term']['lora'].update(WITHOUT_PLACES)
  return composed
