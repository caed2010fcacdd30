"""Memory Cards at the scale of a laptop: one run card per expert.

  python -m wmpoe train --config=configs/cards.py:base       --workdir=runs/cards_base \
      --package=wmpoe/packaged_weights/cards_base.npz
  python -m wmpoe train --config=configs/cards.py:spatial    --workdir=runs/cards_spatial ...
  python -m wmpoe train --config=configs/cards.py:short_term --workdir=runs/cards_short_term ...
  python -m wmpoe eval  --config=configs/cards.py --protocol=recall

Short-term and spatial are forks of the packaged base. The long-term memory is not trained: it is
the base and a way of writing its weights, `config.compose.long_term`. On two cores of an AMD EPYC a
step takes .17 s (base), .42 s (short-term) and .22 s (spatial), so that all their steps take 18, 8
and 8 minutes. What they reach together: results/cards/recall.json.
"""

import ml_collections

from wmpoe import compositions

VARIANTS = ('base', 'short_term', 'spatial')


def _model(variant: str) -> dict:
  model = dict(
      width=128, depth=4, heads=2, patch=8, mlp_ratio=4, context=3, target=7,
      attention='prefix', window=0, full_every=0, pose_kind='grid', map_dim=0,
      prediction='x0', dtype='float32', remat=False,
      schedule=dict(name='cosine', shift=0.5, logsnr_min=-15.0, logsnr_max=15.0))
  if variant == 'short_term':
    # The paper's window; every second layer sees all of it, the others only nearby frames.
    model.update(context=33, window=10, full_every=2)
  if variant == 'spatial':
    model.update(map_dim=33)
  return model


def get_config(variant: str = 'base') -> ml_collections.ConfigDict:
  """The run card of one expert: base, short_term or spatial.

  Raises:
    ValueError: for any other variant.
  """
  if variant not in VARIANTS:
    raise ValueError(
        f'Unknown variant {variant!r} of configs/cards.py; expected one of {", ".join(VARIANTS)}.')
  config = ml_collections.ConfigDict()
  config.expert = variant
  config.env = dict(name='cards', size=32, grid=4, symbols=8, length=250)
  config.model = _model(variant)
  config.objective = dict(
      regime='clean_context', weighting='v', null_rate=0.15, partial_rate=0.1, time_power=1.0)
  config.data = dict(seed=0, history=0, events_bias=0.0)
  config.train = dict(
      steps=6500, batch_size=16, learning_rate=1e-3, warmup_steps=200, weight_decay=0.01,
      clip_norm=1.0, ema_decay=0.999, log_every=50, checkpoint_every=500, seed=0,
      accumulate=1, keep_best=0,
      learn='')  # pattern of the parameters that learn, the others stay as in init_from; all
  config.compose = compositions.CARDS  # how the eval command composes, samples and writes
  config.init_from = '' if variant == 'base' else 'cards_base'

  if variant == 'short_term':
    config.data.update(seed=1, events_bias=0.8)
    config.train.update(
        steps=1200, batch_size=8, learning_rate=3e-4, ema_decay=0.99, checkpoint_every=250, seed=1)
  if variant == 'spatial':
    config.encoder = dict(features=32, width=128)
    config.empty_rate = 0.3
    config.data.update(seed=2, history=64, events_bias=0.7)
    config.train.update(
        steps=2000, learning_rate=5e-4, ema_decay=0.995, checkpoint_every=250, seed=2)
  return config
