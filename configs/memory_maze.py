r"""Memory Maze (arXiv 2210.13383) at the scale of a laptop: one run card per network.

  python -m wmpoe collect --config=configs/memory_maze.py --episodes=48 --workdir=data/maze/test
  python -m wmpoe train  --config=configs/memory_maze.py:autoencoder \
      --workdir=runs/maze_autoencoder --package=FILE.npz
  python -m wmpoe encode --config=configs/memory_maze.py --source=data/memory_maze_9x9/training \
      --workdir=data/latents/training
  python -m wmpoe encode --config=configs/memory_maze.py --source=data/memory_maze_9x9/validation \
      --workdir=data/latents/validation
  python -m wmpoe train  --config=configs/memory_maze.py:odometry --workdir=runs/maze_odometry
  python -m wmpoe train  --config=configs/memory_maze.py:cpu_spatial --workdir=runs/maze_spatial
  python -m wmpoe train  --config=configs/memory_maze.py:cpu_short_term --workdir=runs/maze_short
  python -m wmpoe eval   --config=configs/memory_maze.py --protocol=revisit --source=data/maze/test

`data/memory_maze_9x9` holds the official offline dataset, or what `collect` wrote (it needs the
extra `maze`: pip install -e '.[maze]'). 9x9 cells, frames of 64x64 without their border of 2, every
second step.
"""

import ml_collections

from wmpoe import zoo

VARIANTS = ('', 'autoencoder', 'odometry', 'cpu_spatial', 'cpu_short_term')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """The world and how its experts are composed, or the run card of one network.

  Raises:
    ValueError: for an unknown variant.
  """
  if variant not in VARIANTS:
    raise ValueError(
        f'Unknown variant {variant!r} of configs/memory_maze.py; expected one of '
        f'{", ".join(map(repr, VARIANTS))}.')
  config = ml_collections.ConfigDict()
  config.env = dict(name='memory_maze', size=9, image=64, border=2, skip=2, length=600)
  config.autoencoder = 'memory_maze_autoencoder'
  config.compose = zoo.MEMORY_MAZE
  # Frames remembered, and where each episode is continued: the first place alone for table1.
  config.protocol = dict(
      history=200, starts=(200, 240), chunks=2, contexts=(50, 100, 150, 200, 250),
      ranks=(8, 32, 64), rank_histories=(50, 150, 250), first=33, rounds=11, steps_per_round=25,
      alone=dict(short_term=1.0, long_term=1.0, spatial=1.75), odometry='memory_maze_odometry')
  if not variant:
    return config
  config.variant, config.expert = variant, variant.removeprefix('cpu_')
  config.train = dict(
      steps=2600, batch_size=16, learning_rate=1e-3, warmup_steps=200, weight_decay=0.01,
      clip_norm=1.0, ema_decay=0.999, log_every=50, checkpoint_every=500, seed=0)
  if variant == 'autoencoder':
    _autoencoder(config)
  elif variant == 'odometry':
    _odometry(config)
  else:
    _denoiser(config)
  return config


def _autoencoder(config: ml_collections.ConfigDict) -> None:
  """Frames of 60x60, padded to 64x64, to latents of 16x16x4.

  Squared and absolute error and a little of LPIPS by AlexNet; results are reported by VGG.
  """
  config.env.skip = 1  # every frame is one to be reconstructed
  del config.autoencoder
  config.autoencoder = dict(channels=4, widths=(32, 64), depth=(1, 2), bound=3.0)
  config.objective = dict(noise=0.1, absolute=0.1, perceptual_weight=0.05)
  config.data = dict(
      seed=0, folder='data/memory_maze_9x9/training', validation='data/memory_maze_9x9/validation')
  config.train.update(
      steps=2400, batch_size=32, learning_rate=2e-3, weight_decay=1e-3, ema_decay=0.99,
      eval_every=500)


def _odometry(config: ml_collections.ConfigDict) -> None:
  """Motion between frames, and between pictures of one place: for those who have no poses."""
  config.latent = (16, 16, 4)
  config.odometry = dict(actions=3, width=32)
  config.data = dict(
      seed=2, folder='data/latents/training', validation='data/latents/validation', history=200,
      gap=8, context=2, target=8)
  config.train.update(
      steps=8000, batch_size=16, learning_rate=2e-3, ema_decay=0.99, checkpoint_every=1000, seed=2)


def _denoiser(config: ml_collections.ConfigDict) -> None:
  """Spatial: one network that is the base, too; short-term: forked from it."""
  config.model = dict(
      latent=(16, 16, 4), width=192, depth=6, heads=4, patch=4, mlp_ratio=4, context=3, target=8,
      attention='prefix', window=0, full_every=0, pose_kind='vector', map_dim=64,
      pose_code=dict(field=128, length=1.0, turns=3, seed=0), prediction='v', dtype='float32',
      remat=False, schedule=dict(name='cosine', shift=0.5, logsnr_min=-15.0, logsnr_max=15.0))
  config.objective = dict(
      regime='clean_context', weighting='v', null_rate=0.1, partial_rate=0.05, time_power=1.0)
  config.data = dict(
      seed=0, folder='data/latents/training', validation='data/latents/validation', history=200,
      gap=4)
  if config.expert == 'spatial':
    # Without its memory, as half of the samples train it, the same network is the base.
    config.encoder = dict(features=64, width=128, depth=2, heads=4)
    # The simulator's camera: 80 degrees wide (with the border padded again), 5.71 looking down.
    config.retrieval = dict(count=4, length=1.0, angle=0.6, half_view=0.6981, pitch=0.0997)
    config.empty_rate = 0.5
    config.init_from = ''
    return
  config.init_from = 'memory_maze_spatial'
  # The paper's window; every second layer sees all of it, the others only nearby frames.
  config.model.update(context=33, window=10, full_every=2, map_dim=0)
  config.model.pose_code.field = 0
  config.data.update(seed=1, history=0)
  config.train.update(
      steps=700, batch_size=8, learning_rate=4e-4, ema_decay=0.99, checkpoint_every=200, seed=1)
