r"""Memory Maze (arXiv 2210.13383): run cards at a laptop's and at the paper's scale.

  python -m wmpoe collect --config=configs/memory_maze.py --episodes=48 --workdir=data/maze/test
  python -m wmpoe train  --config=configs/memory_maze.py:autoencoder \
      --workdir=runs/maze_autoencoder --package=FILE.npz
  python -m wmpoe encode --config=configs/memory_maze.py --source=data/memory_maze_9x9/training \
      --workdir=data/latents/training
  python -m wmpoe encode --config=configs/memory_maze.py --source=data/memory_maze_9x9/validation \
      --workdir=data/latents/validation
  python -m wmpoe train  --config=configs/memory_maze.py:odometry --workdir=runs/maze_odometry
  python -m wmpoe train  --config=configs/memory_maze.py:depth --workdir=runs/maze_depth
  python -m wmpoe train  --config=configs/memory_maze.py:cpu_spatial --workdir=runs/maze_spatial
  python -m wmpoe train  --config=configs/memory_maze.py:cpu_short_term --workdir=runs/maze_short
  python -m wmpoe eval   --config=configs/memory_maze.py --protocol=revisit --source=data/maze/test

`data/memory_maze_9x9` holds the official offline dataset, or what `collect` wrote (it needs the
extra `maze`: pip install -e '.[maze]'). 9x9 cells, frames of 64x64 without their border of 2, every
second step.

Names that begin with cpu_ are trained on two cores: cpu_spatial is packaged and is base and
short-term memory, too; cpu_short_term and cpu_full are the baselines that attend to 33 and to 200
frames, cpu_ssm and cpu_forcing state space and History Guidance, cpu_absolute the paper's spatial
expert, which is told absolute poses and no more. base, short_term, spatial, absolute, full and ssm
have the sizes of the paper (arXiv 2605.18813; ours share one modulation over all blocks, which
saves a third of the parameters), base_1b a billion parameters, for pods. Nothing has been trained
at those scales yet.
"""

import ml_collections

from wmpoe import compositions
from wmpoe.networks import lora

# What each denoiser's network has of its own. The baselines see 200 frames in every block.
_MODELS = {
    'cpu_base': dict(map_dim=0),
    'cpu_spatial': {},
    # The paper's window; every second layer sees all of it, the others only nearby frames.
    'cpu_short_term': dict(context=33, window=10, full_every=2, map_dim=0),
    'cpu_full': dict(context=200, map_dim=0),
    'cpu_ssm': dict(network='ssm', context=200, map_dim=0),
    'cpu_forcing': dict(context=33, map_dim=0),
    'cpu_absolute': dict(map_dim=0, pose_code=dict(name='absolute', scale=9.0)),
    'base': dict(width=512, patch=2, context=3, map_dim=0),
    'base_1b': dict(width=2048, depth=20, heads=16, patch=2, context=3, map_dim=0),
    'short_term': dict(width=384, context=33, window=10, full_every=4, map_dim=0),
    'spatial': dict(width=512, refiner=128),
    'full': dict(width=512, context=200, map_dim=0),
    'ssm': dict(network='ssm', width=512, context=200, map_dim=0),
    'absolute': dict(width=512, map_dim=0, pose_code=dict(name='absolute', scale=9.0)),
}
# Steps and batches at which a network of two cores costs what cpu_short_term does: 76 TFLOP. Full
# attention gets as much as all that is composed: the refiner, depth and the base they were forked
# from, which it is forked from, too.
_BUDGET = {
    'short_term': dict(steps=700, batch_size=8, warmup_steps=200),
    'full': dict(steps=330, batch_size=2, warmup_steps=20),
    'ssm': dict(steps=270, batch_size=4, warmup_steps=20),
    'forcing': dict(steps=570, batch_size=8, warmup_steps=50),
    'absolute': dict(steps=3000, batch_size=8, warmup_steps=200),
}
VARIANTS = ('', 'autoencoder', 'odometry', 'depth', *_MODELS)


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
  config.compose = compositions.MEMORY_MAZE
  # Frames remembered, and where each episode is continued: the first place alone for table1, the
  # replays inside what is remembered.
  config.protocol = dict(
      history=200, starts=(200, 240), replays=(60, 100, 140), chunks=2,
      contexts=(50, 100, 150, 200, 250), rank_histories=(50, 150, 250),
      ranks=(8, 16, 32, 64, 256, 'full'),  # 'full': all layers finetuned, so:
      full=dict(steps=100, optimizer=dict(name='adam', learning_rate=1e-4, halving_steps=100)),
      first=33, rounds=11, steps_per_round=25,
      odometry='memory_maze_odometry',
      # Files of models by themselves; '' for the packaged one, and for none if none is packaged.
      baselines=dict(sliding='', full='', ssm='', forcing='', absolute=''),
      # Vanilla: the whole window. Temporal: that and its newest frames. (begin, end) before now.
      guidance=dict(
          history_guidance_v=dict(windows=((33, 0),), strengths=(1.5,)),
          history_guidance_t=dict(windows=((33, 0), (8, 0)), strengths=(1.0, 0.5))),
      # The paper's spatial memory: absolute poses, and the episode in LoRA on all layers.
      absolute=dict(
          compositions.MEMORY_MAZE['long_term'], baseline='own',
          lora=dict(rank=16, alpha=16.0, targets=lora.TARGETS, table_scale=30.0)))
  if not variant:
    return config
  config.variant = variant
  config.expert = variant.removeprefix('cpu_').removesuffix('_1b')
  config.train = dict(
      steps=2600, batch_size=16, learning_rate=1e-3, warmup_steps=200, weight_decay=0.01,
      clip_norm=1.0, ema_decay=0.999, log_every=50, checkpoint_every=500, seed=0,
      accumulate=1, keep_best=0,
      learn='')  # pattern of the parameters that learn, the others stay as in init_from; all
  if variant == 'autoencoder':
    _autoencoder(config)
  elif variant == 'odometry':
    _odometry(config)
  elif variant == 'depth':
    _depth(config)
  else:
    _denoiser(config)
    if not variant.startswith('cpu_'):
      _paper_scale(config)
    own = dict(_MODELS[variant])
    config.model.pose_code = own.pop('pose_code', config.model.pose_code)
    config.model.update(own)
  return config


def _autoencoder(config: ml_collections.ConfigDict) -> None:
  """Frames of 60x60, padded to 64x64, to latents of 16x16x4.

  Squared and absolute error and a little of LPIPS by AlexNet; results are reported by VGG.
  """
  config.env.skip = 1  # every frame is one to be reconstructed
  config.init_from = ''  # an autoencoder to go on from; with learn='^decode_' its latents stay
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


def _depth(config: ml_collections.ConfigDict) -> None:
  """How far every pixel is, taught by the layouts of the training mazes: what places pictures."""
  config.latent = (16, 16, 4)
  config.depth = dict(width=64, blocks=4)
  config.data = dict(seed=3, folder='data/latents/training', validation='data/latents/validation')
  config.train.update(
      steps=4000, batch_size=32, learning_rate=2e-3, weight_decay=1e-3, ema_decay=0.99,
      checkpoint_every=1000, eval_every=1000, seed=3)


def _denoiser(config: ml_collections.ConfigDict) -> None:
  """Spatial: one network that is the base, too, and from which the others are forked."""
  config.model = dict(
      network='dit', latent=(16, 16, 4), width=192, depth=6, heads=4, patch=4, mlp_ratio=4,
      context=3, target=8, attention='prefix', window=0, full_every=0, pose_kind='vector',
      map_dim=64, pose_code=dict(field=128, length=1.0, turns=3, seed=0), prediction='v',
      dtype='float32', remat=False,
      schedule=dict(name='cosine', shift=0.5, logsnr_min=-15.0, logsnr_max=15.0))
  config.objective = dict(
      regime='clean_context', weighting='v', null_rate=0.1, partial_rate=0.05, time_power=1.0)
  config.data = dict(
      seed=0, folder='data/latents/training', validation='data/latents/validation', history=200,
      gap=4)
  config.init_from = ''
  if config.expert == 'spatial':
    # Without its memory, as half of the samples train it, the same network is the base.
    config.encoder = dict(features=64, width=128, depth=2, heads=4)
    # The simulator's camera: 80 degrees wide (with the border padded again), 5.71 looking down.
    config.retrieval = dict(count=4, length=1.0, angle=0.6, half_view=0.6981, pitch=0.0997)
    # 8 pictures are warped to a view; a patch of it and how much was seen follow the reader's 64.
    config.points = dict(
        depth='memory_maze_depth', count=8, half_view=0.6666, pitch=0.0997, ahead=0.075)
    config.model.map_dim = 64 + 4**2 * (4 + 1)
    config.drift = (0.12, 0.03)  # cells, radians: what odometry does not know
    config.model.refiner = 32  # width of the convolutions that put warped views into the prediction
    config.empty_rate, config.unwarped_rate = 0.5, 0.3  # samples without memory, with no view
    return
  config.data.update(seed=1, history=0)
  if config.expert == 'base':
    return
  config.init_from = 'memory_maze_spatial'
  config.model.pose_code.field = 0
  config.train.update(
      _BUDGET[config.expert], learning_rate=4e-4, ema_decay=0.99, checkpoint_every=200, seed=1)
  if config.expert == 'ssm':
    config.model.update(state=8, expand=1)
  if config.expert == 'forcing':
    config.objective.regime = 'diffusion_forcing'
  elif config.expert in ('full', 'ssm'):  # what is costly is their context
    config.objective.draws = 4


def _paper_scale(config: ml_collections.ConfigDict) -> None:
  """17 frames a chunk, DDIM of 50 steps, LoRA on all layers; batches for a slice of 32 chips."""
  config.model.update(
      depth=12, heads=8, target=17, dtype='bfloat16', remat=True, scan_layers=True,
      implementation='auto')
  config.model.schedule.shift = 0.125
  if config.expert == 'ssm':
    config.model.state = 16
  config.model.pose_code.field = 0
  config.objective.update(weighting='sigmoid', draws=1)
  config.init_from = ''
  config.train.update(
      steps=150_000, batch_size=256, learning_rate=1e-4, warmup_steps=5_000, ema_decay=0.9999,
      log_every=100, checkpoint_every=5_000, seed=0)
  config.protocol.chunks = 1
  compose = config.compose
  compose.weights, compose.fewer, compose.levels, compose.num_steps = {}, {}, {}, 50
  compose.long_term.regression = {}
  compose.long_term.lora.update(rank=64, alpha=64.0, targets=lora.TARGETS)
  writing = compose.long_term.writing
  writing.optimizer = dict(name='adamw', learning_rate=1e-4)
  writing.update(steps=500, target=17)
  writing.objective.update(
      weighting='sigmoid', null_rate=0.0, time_power=1.0)
  config.protocol.full = dict(steps=writing.steps, optimizer=writing.optimizer)
  config.protocol.absolute = {**compose.long_term.to_dict(), 'baseline': 'own'}
