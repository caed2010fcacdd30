r"""Your own data: from a folder of episodes to a world model with memory. See docs/own_data.md.

  python -m wmpoe train  --config=configs/own_data.py:autoencoder \
      --config.data.folder=data/own/train --config.data.validation=data/own/validation \
      --workdir=runs/autoencoder --package=autoencoder.npz
  python -m wmpoe encode --config=configs/own_data.py --config.autoencoder=autoencoder.npz \
      --source=data/own/train --workdir=data/latents/train          (and the same for validation)
  python -m wmpoe train  --config=configs/own_data.py:spatial --config.autoencoder=autoencoder.npz \
      --config.data.folder=data/latents/train --config.data.validation=data/latents/validation \
      --workdir=runs/spatial --package=spatial.npz
  python -m wmpoe eval   --config=configs/own_data.py --config.autoencoder=autoencoder.npz \
      --experts=spatial=spatial.npz --source=data/own/test --protocol=revisit

Variants: autoencoder; base, short_term, spatial on its latents; and pixels_base, pixels_short_term,
pixels_spatial, which need none (frames up to about 32x32; `pixels` to evaluate them). `spatial`
needs planar poses, and is the base, too; where episodes say how far every pixel is, `depth` and
then `spatial_points` make one that warps what it remembers. Frames, actions and poses are what
spaces.json says.
"""

import ml_collections

from wmpoe import compositions

VARIANTS = ('', 'autoencoder', 'depth', 'base', 'short_term', 'spatial', 'spatial_points', 'pixels',
            'pixels_base', 'pixels_short_term', 'pixels_spatial')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """How experts are composed and measured, or the run card of one network.

  Raises:
    ValueError: for an unknown variant.
  """
  if variant not in VARIANTS:
    raise ValueError(
        f'Unknown variant {variant!r} of configs/own_data.py; expected one of '
        f'{", ".join(map(repr, VARIANTS))}.')
  config = ml_collections.ConfigDict()
  config.env = dict(name='own_data')  # the rest is read from the folder's spaces.json
  in_pixels = variant.startswith('pixels')
  config.autoencoder = '' if in_pixels else 'autoencoder.npz'
  config.compose = compositions.MEMORY_MAZE
  # Half the field of view, and how far the camera looks down, in radians; for worlds seen along the
  # heading. half_view = 0 says that this is not known: nothing is turned for the copy baseline.
  # Here the middle of a 4:3 picture that is 90 degrees wide. Spatial experts have the same.
  config.camera = dict(half_view=0.6435, pitch=0.0)
  # Frames remembered, and where each episode is continued; see configs/memory_maze.py.
  config.protocol = dict(
      history=200, starts=(200, 240), replays=(60, 100, 140), chunks=2,
      contexts=(50, 100, 150, 200), ranks=(8, 32, 64, 'full'), rank_histories=(50, 150, 200),
      full=dict(steps=100, optimizer=dict(name='adam', learning_rate=1e-4, halving_steps=100)),
      first=33, rounds=8, steps_per_round=25,
      odometry='')
  if variant in ('', 'pixels'):
    return config
  config.variant = variant
  config.expert = variant.removeprefix('pixels_').removesuffix('_points')
  config.data = dict(seed=0, folder='', validation='')
  config.train = dict(
      steps=2600, batch_size=16, learning_rate=1e-3, warmup_steps=100, weight_decay=0.01,
      clip_norm=1.0, ema_decay=0.999, log_every=50, checkpoint_every=500, seed=0,
      accumulate=1, keep_best=0,
      learn='')  # pattern of the parameters that learn, the others stay as in init_from; all
  if variant == 'autoencoder':
    _autoencoder(config)
  elif variant == 'depth':
    _depth(config)
  else:
    _denoiser(config, in_pixels)
  if variant == 'spatial_points':
    _points(config)
  return config


def _autoencoder(config: ml_collections.ConfigDict) -> None:
  """Frames to latents of a quarter of their side."""
  config.init_from = ''  # an autoencoder to go on from; with learn='^decode_' its latents stay
  del config.autoencoder
  config.autoencoder = dict(channels=4, widths=(32, 64), depth=(1, 2), bound=3.0)
  config.objective = dict(noise=0.1, absolute=0.1, perceptual_weight=0.0)
  config.train.update(steps=1500, batch_size=32, learning_rate=2e-3, weight_decay=1e-3,
                      ema_decay=0.99, eval_every=500)


def _depth(config: ml_collections.ConfigDict) -> None:
  """How far every pixel is, out of its latents, taught by episodes that say it."""
  config.latent = ()
  config.depth = dict(width=64, blocks=4)
  config.train.update(steps=1500, batch_size=32, learning_rate=2e-3, weight_decay=1e-3,
                      ema_decay=0.99, eval_every=500)


def _denoiser(config: ml_collections.ConfigDict, in_pixels: bool) -> None:
  """Base and short-term; spatial: one network that is the base, too."""
  config.model = dict(
      latent=(), width=192, depth=6, heads=4, patch=8 if in_pixels else 4, mlp_ratio=4, context=3,
      target=8, attention='prefix', window=0, full_every=0, pose_kind='vector', map_dim=0,
      pose_code=dict(field=128, length=1.0, turns=3, seed=0), prediction='v', dtype='float32',
      remat=False, schedule=dict(name='cosine', shift=0.5, logsnr_min=-15.0, logsnr_max=15.0))
  config.objective = dict(
      regime='clean_context', weighting='v', null_rate=0.1, partial_rate=0.05, time_power=1.0)
  config.data.update(history=0, gap=4)
  config.init_from = ''
  if config.expert == 'spatial':
    config.model.map_dim = 64
    config.data.history = 200
    config.encoder = dict(features=64, width=128, depth=2, heads=4)
    camera = {name: config.camera.get_ref(name) for name in config.camera}
    config.retrieval = dict(count=4, length=1.0, angle=0.6, **camera)
    config.empty_rate = 0.5
  if config.expert == 'short_term':
    # The paper's window; every second layer sees all of it, the others only nearby frames. Set
    # init_from to the file of the base or the spatial expert to start from it.
    config.model.update(context=33, window=10, full_every=2)
    config.model.pose_code.field = 0
    config.train.update(steps=700, batch_size=8, learning_rate=4e-4, ema_decay=0.99)


def _points(config: ml_collections.ConfigDict) -> None:
  """What is remembered is warped to the view that is asked, pixel by pixel; see memory_maze.py."""
  camera = {name: config.camera.get_ref(name) for name in config.camera}
  config.points = dict(depth='depth.npz', count=8, ahead=0.0, **camera)
  config.drift = (0.12, 0.03)
  config.model.refiner = 32
  config.unwarped_rate = 0.3
