"""Builds experts from plain descriptions: from a config, or the card of a packaged expert.

Descriptions are nested dicts of plain values (`ConfigDict.to_dict()`, or the card's JSON), so an
expert can be rebuilt years later from its card alone.
"""

from collections.abc import Mapping
import functools
import os
import pathlib
from typing import Any, TypedDict

from flax import traverse_util
import jax
import jax.numpy as jnp

from wmpoe import archive
from wmpoe import compositions
from wmpoe import packaged
from wmpoe import perception
from wmpoe import recipes
from wmpoe import world_model
from wmpoe.data import cards
from wmpoe.data import maze_config
from wmpoe.data import spaces
from wmpoe.diffusion import schedules
from wmpoe.experts import base as base_lib
from wmpoe.experts import composition
from wmpoe.experts import expert
from wmpoe.experts import key_frames
from wmpoe.experts import point_maps as point_maps_lib
from wmpoe.experts import short_term as short_term_lib
from wmpoe.experts import spatial as spatial_lib
from wmpoe.networks import attention
from wmpoe.networks import autoencoder
from wmpoe.networks import codec
from wmpoe.networks import dit
from wmpoe.networks import map_encoder
from wmpoe.networks import poses
from wmpoe.networks import ssm
from wmpoe.networks import view_reader
from wmpoe.networks import warping

EXPERTS = ('base', 'short_term', 'long_term', 'spatial')
TRAINED = ('base', 'short_term', 'spatial')  # the long-term memory is the base, written
BASELINES = ('sliding', 'full', 'ssm', 'forcing', 'absolute')  # trained alike, to compare with

Description = Mapping[str, Any]

_ENVIRONMENTS = {
    'cards': cards.CardsConfig, 'memory_maze': maze_config.MazeConfig,
    'own_data': lambda **described: spaces.from_json(described, where='env: ')}
_SCHEDULES = {
    'cosine': schedules.CosineSchedule,
    'linear_beta': schedules.LinearBetaSchedule,
}
_POSE_CODES = {'relative': poses.RelativePose, 'absolute': poses.AbsolutePose}


def environment(description: Description) -> Any:
  """The environment: `{'name': 'cards', 'size': 32}`, 'memory_maze', or a spaces.json's."""
  return recipes.named('environment', _ENVIRONMENTS, description)


class Dimensions(TypedDict):
  """What an environment's conditions measure: A and P."""

  action_dim: int
  pose_dim: int


def dimensions(description: Description) -> Dimensions:
  """Its action and pose dimensions: `{'action_dim': A, 'pose_dim': P}`."""
  env = environment(description)
  return {'action_dim': env.action_dim, 'pose_dim': env.pose_dim}


def model(description: Description) -> expert.Model:
  """The static model of an expert; reads the entries 'env' and 'model'."""
  m = description['model']
  env, in_latents = environment(description['env']), bool(m.get('latent'))
  coding = {'name': 'relative', **(m.get('pose_code') or {})}
  pose_code = recipes.named('pose code', _POSE_CODES, coding) if m.get('pose_code') else None
  recurrent = m.get('network') == 'ssm'
  build_network = functools.partial(
      ssm.SSM, **{k: m[k] for k in ('state', 'expand', 'scan') if k in m}) if recurrent else dit.DiT
  network = build_network(
      width=m['width'], depth=m['depth'], heads=m['heads'], patch=m['patch'],
      frame_shape=tuple(m['latent']) if in_latents else env.frame_shape,
      context=m['context'], mlp_ratio=m['mlp_ratio'],
      pattern=attention.Pattern(
          kind=m['attention'], window=m['window'] or None, full_every=m['full_every']),
      pose_kind=m['pose_kind'], map_dim=m['map_dim'], refiner=m.get('refiner', 0),
      dtype=jnp.dtype(m['dtype']), remat=m['remat'], field=pose_code.field if pose_code else 0,
      implementation=m.get('implementation', 'auto'), scan_layers=m.get('scan_layers', False))
  return expert.Model(
      network=network, schedule=recipes.named('schedule', _SCHEDULES, m['schedule']),
      prediction=m['prediction'], codec=codec.LatentCodec() if in_latents else codec.PixelCodec(),
      pose_code=pose_code, anchor='first' if recurrent else 'last')


def load_odometry(name: str | os.PathLike[str]) -> tuple[Any, Any, dict]:
  """The static odometry of a file or packaged name, its parameters and its card."""
  params, card = load_expert(name)
  if card['config']['expert'] != 'odometry':
    raise ValueError(f"'{name}' holds the expert {card['config']['expert']!r}; expected odometry.")
  return perception.odometry(card['config']), params, card


def load_latent_space(path: str | os.PathLike[str]) -> tuple[autoencoder.LatentSpace, dict]:
  """The latent space of an autoencoder's file or packaged name, and its card."""
  tree, card = load_expert(path)
  if card['config']['expert'] != 'autoencoder':
    raise ValueError(
        f"'{path}' holds the expert {card['config']['expert']!r}; expected an autoencoder, made by "
        'python -m wmpoe train --config=configs/memory_maze.py:autoencoder.')
  return autoencoder.LatentSpace(
      params=tree['autoencoder'], mean=tree['mean'], std=tree['std'],
      network=perception.autoencoder(
          card['config'], environment(card['config']['env']).frame_shape)), card


def encoder_hash(space: autoencoder.LatentSpace) -> str:
  """Identifies latents: the hash of everything that makes them, whatever decodes them."""
  return archive.digest_of({
      '/'.join(path): leaf for path, leaf in traverse_util.flatten_dict({
          'encoder': autoencoder.encoder_of(space.params), 'mean': space.mean, 'std': space.std,
      }).items()})


def spatial_model(description: Description) -> Any:
  """The static spatial model; reads 'env', 'model', 'encoder' and, but for cards, 'retrieval'."""
  denoiser = model(description)
  if description['env']['name'] != 'cards':
    reader = view_reader.ViewReader(
        patch=denoiser.network.patch, dtype=denoiser.network.dtype, **description['encoder'])
    return key_frames.KeyFrameModel(
        denoiser=denoiser, reader=reader,
        retrieval=key_frames.Retrieval(**description['retrieval']),
        warps=bool(description.get('points')))
  rows, columns = denoiser.network.grid
  encoder = map_encoder.MapEncoder(
      patch=denoiser.network.patch, dtype=denoiser.network.dtype, **description['encoder'])
  return spatial_lib.SpatialModel(
      denoiser=denoiser, encoder=encoder, locate=spatial_lib.FixedCamera(rows * columns))


def point_maps(
    description: Description, latents: autoencoder.LatentSpace | None = None
) -> point_maps_lib.PointMaps | None:
  """The point maps a spatial expert reads, if any; reads 'points' and 'autoencoder'.

  Args:
    description: Of the spatial expert.
    latents: Its latent space, if it is loaded already.

  Raises:
    ValueError: if the depth network is not the one the expert was trained with.
  """
  options = dict(description.get('points') or {})
  if not options:
    return None
  name = options.pop('depth')
  params, card = load_expert(name)
  if card['config']['expert'] != 'depth' or (
      description.get('depth_sha256') not in (None, card['sha256'])):
    raise ValueError(
        f"points.depth='{name}' holds the expert {card['config']['expert']!r} with hash "
        f"{card['sha256'][:12]}...; expected the depth network that the spatial expert was trained "
        f"with, {str(description.get('depth_sha256'))[:12]}... .")
  if latents is None:
    latents, _ = load_latent_space(description['autoencoder'])
  env, count = environment(description['env']), options.pop('count')
  return point_maps_lib.PointMaps(
      latents=latents, params=params, network=perception.depth(card['config'], env.frame_shape),
      camera=warping.Camera(**options), count=count)


def shapes(description: Description) -> Any:
  """The tree of shapes an expert's parameters must have; checks a file before it is used."""
  kind, dims = description['expert'], dimensions(description['env'])
  key = jax.random.key(0)
  if kind in perception.KINDS:
    return perception.shapes(
        description, environment(description['env']).frame_shape, dims['action_dim'])
  if kind == 'spatial':
    return jax.eval_shape(lambda k: spatial_model(description).init(k, **dims), key)
  return jax.eval_shape(lambda k: model(description).init(k, **dims), key)


def load_expert(path: str | os.PathLike[str]) -> tuple[Any, dict[str, Any]]:
  """Loads one expert's file, checked against what its own card describes.

  Args:
    path: A file, or the name of a packaged expert.

  Returns:
    `(params, card)`.

  Raises:
    ValueError: if the file is damaged or its leaves are not those of the described network.
    FileNotFoundError: if there is neither such a file nor such a packaged expert.
  """
  file = _file(path)
  params, found = packaged.load(file, like=shapes(packaged.card(file)['config']))
  return params, _beside(file, found)


def card(path: str | os.PathLike[str]) -> dict[str, Any]:
  """The card alone of an expert's file or a packaged expert; see `load_expert` for what it raises.

  Its weights are not checked.
  """
  file = _file(path)
  return _beside(file, packaged.card(file))


def _beside(file: str | os.PathLike[str], card: dict[str, Any]) -> dict[str, Any]:
  """The card; a depth network that was moved is looked for beside the file.

  `point_maps` checks by its hash that it is the same one.
  """
  points = card['config'].get('points')
  if points and not os.path.isfile(points['depth']) and points['depth'] not in packaged.names():
    near = pathlib.Path(file).parent / pathlib.Path(points['depth']).name
    if near.is_file():
      points['depth'] = str(near)
  return card


def _file(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
  file = packaged.find(str(path)) if str(path) in packaged.names() else path
  if not os.path.isfile(file):
    raise FileNotFoundError(
        f"'{path}' is neither a file nor a packaged expert; packaged are: "
        f'{", ".join(packaged.names()) or "none"}.')
  return file


def build(
    experts: Mapping[str, tuple[Any, Description]], compose: Description,
    latents: autoencoder.LatentSpace | None = None,
) -> world_model.WorldModel:
  """Builds a world model from loaded experts.

  Args:
    experts: `{name: (params, description)}` with 'base' and any of 'short_term', 'spatial'. A
      spatial expert of a moving camera is a joint network: without its memory it is the base,
      unless one is given.
    compose: 'rule', 'weights' (by name), 'sampler', 'num_steps', optionally 'fewer' (other weights
      where only some memories are composed: by their names joined with '+'), 'levels' (by name, the
      'low' and 'high' log-SNR between which an expert has its weight), 'baselines' (by name: 'base'
      instead of an expert's own), 'short_term', the last 'frames' that a joint network reads where
      no short-term expert is given, 'spatial', the 'frames' it holds, and 'long_term', the base's
      long-term memory (see `recipes.long_term`; its 'field' is how many keys of places it writes
      to, where a base has any), or None for none; 'follows', the memories that imagined frames are
      written into, by default the short-term one.
    latents: The latent space the experts work in, if they do.

  Raises:
    ValueError: for an unknown expert, or experts of different environments.
  """
  features = (compose['long_term'] or {}).get('field', 0)
  experts = {name: _with_field(*expert, features) for name, expert in experts.items()}
  joint = 'base' not in experts and 'spatial' in experts and (
      experts['spatial'][1]['env']['name'] != 'cards')
  if joint:
    both, described = experts['spatial']
    experts['base'] = both['denoiser'], described
  unknown = set(experts) - set(TRAINED)
  if unknown or 'base' not in experts:
    raise ValueError(
        f'Got the experts {sorted(experts)}; expected base and any of {", ".join(TRAINED[1:])}.')
  params, description = experts['base']
  env = description['env']
  for name, (_, other) in experts.items():
    if other['env'] != env:
      raise ValueError(
          f'{name} was trained on {other["env"]}, base on {env}; experts must share their '
          'environment.')
  base = base_lib.Base(params=params, model=model(description))
  spatial: Any = None
  if 'spatial' in experts:
    trained, described = experts['spatial']
    spatial = spatial_model(described)
    if isinstance(spatial, key_frames.KeyFrameModel):
      held = compose.get('spatial', {}).get('frames', key_frames.Posed.capacity)
      spatial = key_frames.Posed(
          params=trained, model=spatial, capacity=held, baseline='base' if joint else 'own',
          points=point_maps(described, latents))
    else:
      spatial = spatial_lib.Spatial(params=trained, model=spatial)
  memories: dict[str, Any] = {}
  if 'short_term' in experts:
    trained, described = experts['short_term']
    memories['short_term'] = short_term_lib.ShortTerm(
        params=trained, model=model(described), **dimensions(env))
  elif joint and compose.get('short_term'):
    memories['short_term'] = spatial.replace(capacity=compose['short_term']['frames'])
  if compose['long_term'] is not None:
    memories['long_term'] = recipes.long_term(
        compose['long_term'], base, spatial if joint else None, **dimensions(env))
  if spatial is not None:
    memories['spatial'] = spatial
  for name, baseline in compose.get('baselines', {}).items():
    if name in memories:
      memories[name] = memories[name].replace(baseline=baseline)
  fewer = {
      tuple(sorted(joined.split('+'))): tuple(sorted(weights.items()))
      for joined, weights in compose.get('fewer', {}).items()}
  for chosen, given in fewer.items():
    if not {name for name, _ in given} <= set(chosen) <= {*TRAINED[1:], 'long_term'}:
      raise ValueError(
          f"compose.fewer gives {'+'.join(chosen)!r} the weights {dict(given)}; expected memories "
          "joined with '+', and weights of these.")
  weights = {**compose['weights'], **dict(fewer.get(tuple(sorted(memories)), ()))}
  levels = {
      name: composition.Interval(**interval)
      for name, interval in compose.get('levels', {}).items() if name in memories}
  return world_model.WorldModel(
      base=base, latents=latents,
      memories={n: m.replace(weight=float(weights.get(n, 1.0))) for n, m in memories.items()},
      rule=composition.rule_by_name(compose['rule']), sampler=recipes.sampler(compose['sampler']),
      num_steps=compose['num_steps'], levels=tuple(sorted(levels.items())),
      fewer=tuple(sorted(fewer.items())),
      follows=tuple(compose.get('follows', world_model.WorldModel.follows)),
      chunk=description['model']['target'], **dimensions(env))


def _with_field(params: Any, description: Description, features: int) -> tuple[Any, Description]:
  """The expert with that many keys in its place field, if any: its table is zero in any size."""
  code = description['model'].get('pose_code') or {}
  if not features or not code.get('field'):
    return params, description
  inner = params.get('denoiser', params)
  inner = {**inner, 'field': jnp.zeros((features, inner['field'].shape[1]))}
  code = {**code, 'field': features}
  return (
      {**params, 'denoiser': inner} if 'denoiser' in params else inner,
      {**description, 'model': {**description['model'], 'pose_code': code}})


def load_files(
    files: Mapping[str, str | os.PathLike[str]], *, compose: Description | None = None,
    autoencoder: str | os.PathLike[str] | None = None,
) -> world_model.WorldModel:
  """Builds a world model from experts' files, such as `train --package` writes.

  Args:
    files: `{name: file}` with 'base' and any of 'short_term', 'spatial'; see `build`.
    compose: Overrides of `compositions.of` their environment ('rule', 'weights', 'fewer',
      'sampler', 'num_steps', 'long_term', 'follows'). Weights without 'fewer' hold for all choices.
    autoencoder: The file of their latent space, if they work in one.

  Raises:
    ValueError: for files that are none of these, do not belong together, or work in other latents.
    FileNotFoundError: if a file does not exist.
  """
  experts, latents, encoder = {}, None, None
  if autoencoder:
    latents, _ = load_latent_space(autoencoder)
    encoder = encoder_hash(latents)
  for name, file in files.items():
    params, about = load_expert(file)
    experts[name] = params, about['config']
    given = about['config'].get('encoder_sha256')
    if given != encoder:
      said = lambda digest: f'latents of {digest[:12]}...' if digest else 'pixels'
      raise ValueError(
          f"'{file}' works in {said(given)}, autoencoder={autoencoder!r} gives {said(encoder)}; "
          'expected the autoencoder it was trained with.')
  env = next((described['env'] for _, described in experts.values()), {'name': ''})
  given = dict(compose or {})
  if 'weights' in given:
    given.setdefault('fewer', {})
  return build(experts, {**compositions.of(env), **given}, latents)


def load(name: str = 'cards', *, compose: Description | None = None) -> world_model.WorldModel:
  """The packaged world model of that name, 'cards' or 'memory_maze', with all its experts.

  Args:
    name: Its name.
    compose: Overrides of how it is composed, see `load_files`.

  Raises:
    ValueError: if no experts of that name are packaged.
  """
  there = lambda name: [kind for kind in TRAINED if f'{name}_{kind}' in packaged.names()]
  if name not in compositions.COMPOSED or not there(name):
    raise ValueError(
        f'No packaged world model is named {name!r}. There are: '
        f'{", ".join(filter(there, compositions.COMPOSED)) or "none"}.')
  space = f'{name}_autoencoder'
  return load_files(
      {kind: f'{name}_{kind}' for kind in there(name)}, compose=compose,
      autoencoder=space if space in packaged.names() else None)
