"""From a run card to what is trained: the task, its batches, and what is packaged at the end."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import json
import re
import sys
from typing import Any

from flax import traverse_util
import jax
import numpy as np

from wmpoe import perception
from wmpoe import recipes
from wmpoe import sharding
from wmpoe import zoo
from wmpoe.data import cards
from wmpoe.data import clips
from wmpoe.data import episode
from wmpoe.data import inspection
from wmpoe.data import latents
from wmpoe.data import maze_config
from wmpoe.data import maze_geometry
from wmpoe.data import memory_maze
from wmpoe.data import pipeline
from wmpoe.data import spaces
from wmpoe.evaluation import lpips
from wmpoe.experts import point_maps
from wmpoe.networks import autoencoder
from wmpoe.training import tasks

_ENCODE_AT_ONCE = 128


def make_task(description: Mapping[str, Any]) -> Any:
  """The training task a description names.

  Raises:
    ValueError: for an unknown expert, one whose starting weights do not fit, or one that freezes
      parameters which its starting weights lack.
  """
  task = _task(description)
  learn = description['train'].get('learn')
  if learn:
    own = traverse_util.flatten_dict(jax.eval_shape(task.init, jax.random.key(0)), sep='/')
    given = traverse_util.flatten_dict(getattr(task, 'initial', None) or {}, sep='/')
    fresh = sorted(path for path, leaf in own.items() if not re.search(learn, path) and (
        path not in given or given[path].shape != leaf.shape))
    if fresh:
      raise ValueError(
          f'train.learn={learn!r} leaves all other parameters as they were in init_from='
          f'{description.get("init_from", "")!r}, which lacks these {len(fresh)}: '
          f'{", ".join(fresh[:4])}{", ..." if fresh[4:] else ""}.')
  return task


def _task(description: Mapping[str, Any]) -> Any:
  kind, frame_shape = description['expert'], zoo.environment(description['env']).frame_shape
  if kind == 'autoencoder':
    perceptual = None
    if description['objective']['perceptual_weight']:
      perceptual = functools.partial(lpips.distance, lpips.load('alex'))
    tree = _earlier(description)
    return tasks.AutoencoderTask(
        network=perception.autoencoder(description, frame_shape), perceptual=perceptual,
        initial=tree and tree['autoencoder'], **description['objective'])
  dims = zoo.dimensions(description['env'])
  if kind == 'depth':
    return tasks.DepthTask(
        network=perception.depth(description, frame_shape),
        frame_shape=tuple(description['latent']))
  if kind == 'odometry':
    return tasks.OdometryTask(
        network=perception.odometry(description), action_dim=dims['action_dim'],
        frame_shape=tuple(description['latent']))
  initial = None
  if description['init_from']:
    initial, card = zoo.load_expert(description['init_from'])
    if card['config']['env'] != description['env']:
      raise ValueError(
          f'init_from={description["init_from"]!r} was trained on {card["config"]["env"]}; this '
          f'run is for {description["env"]}.')
    if kind == 'spatial':
      initial = initial if 'denoiser' in initial else {'denoiser': initial}
    else:
      # A joint network is base and spatial expert in one: it is the base that others fork from,
      # and what only serves another memory does not come along.
      initial = initial.get('denoiser', initial)
      own = jax.eval_shape(
          lambda key: zoo.model(description).init(key, **dims), jax.random.key(0))
      initial = {name: leaf for name, leaf in initial.items() if name in own}
    if kind == 'absolute':
      del initial['frame_condition']  # it reads poses of another kind
  objective = recipes.objective(description)
  if kind in ('base', 'short_term', *zoo.BASELINES):
    return tasks.DenoisingTask(
        model=zoo.model(description), objective=objective, initial=initial, **dims)
  if kind == 'spatial':
    return tasks.SpatialTask(
        model=zoo.spatial_model(description), objective=objective, initial=initial,
        empty_rate=description['empty_rate'], points=zoo.point_maps(description),
        drift=tuple(description.get('drift', (0.0, 0.0))),
        unwarped_rate=description.get('unwarped_rate', 0.3), **dims)
  known = (*zoo.TRAINED, *zoo.BASELINES, *perception.KINDS)
  raise ValueError(f'Unknown expert {kind!r}; expected one of {", ".join(known)}.')


def check_mesh(mesh: jax.sharding.Mesh, description: Mapping[str, Any]) -> None:
  """Checks that a mesh splits attention between heads, not within them.

  Raises:
    ValueError: if 'tensor' does not divide the heads.
  """
  for part in ('model', 'encoder'):
    heads = description.get(part, {}).get('heads')
    if heads:
      sharding.check_divides(mesh, 'tensor', heads, f'{part}.heads')


def make_batches(
    description: Mapping[str, Any], split: str, seed: int, rows: Sequence[int] | None = None,
    strict: bool = False,
) -> Any:
  """The input pipeline of a run; `split` is 'train' or 'validation'.

  `rows` are those of each batch that this process provides, see `sharding.batch_rows`. With
  `strict` a bad file stops the run; otherwise it is named and skipped.
  """
  env, data = zoo.environment(description['env']), description['data']
  transform: Any
  source: Any
  if description['env']['name'] == 'cards':
    model = description['model']
    transform = cards.RandomClip(
        env, model['context'], model['target'], history=data['history'],
        events_bias=data['events_bias'])
    source = cards.CardsSource(env, split=split)
  else:
    folder = data['folder' if split == 'train' else 'validation']
    if description['expert'] == 'autoencoder':
      transform, source = clips.RandomFrame(), clips.EpisodeSource(pixels(folder, env, strict))
    elif description['expert'] == 'depth':
      transform, source = clips.RandomFrame(), clips.EpisodeSource(
          with_inverse_depth(description, folder))
    else:
      model = description.get('model', data)
      transform = clips.RandomClip(
          context=model['context'], target=model['target'], history=data['history'],
          gap=data['gap'])
      source = clips.EpisodeSource(
          with_point_maps(description, folder) if description.get('points')
          else latents.read(folder, encoder=description['encoder_sha256'])
          if description['autoencoder'] else pixels(folder, env, strict))
  return pipeline.make_pipeline(
      source, transform=transform, batch_size=description['train']['batch_size'], seed=seed,
      rows=rows)


def open_folder(folder: str, env: Any, strict: bool = False) -> Any:
  """The episodes of a folder as a world model sees them, and which files are bad.

  Memory Maze files without border, every `skip`-th frame; own data as it is.

  Raises:
    ValueError: own data of other spaces than the environment's, or mazes of another resolution.
  """
  if not isinstance(env, spaces.Spaces):
    mazes = memory_maze.MazeFolder(folder, strict, skip=env.skip, border=env.border)
    if mazes.frame_shape != tuple(env.frame_shape):
      raise ValueError(
          f"{mazes.paths[0]}: field 'image' gives frames {mazes.frame_shape}; expected "
          f'{tuple(env.frame_shape)} for this configuration (config.env.image, border).')
    return mazes
  found = inspection.GoodEpisodes(folder, strict)
  if found.spaces != env:
    raise ValueError(
        f'{folder} holds episodes of {found.spaces}; expected {env}. Folders for training, '
        'validation and evaluation must share their spaces.')
  return found


def pixels(folder: str, env: Any, strict: bool = False) -> list[episode.Episode]:
  """The good episodes of a folder, in memory; bad ones are named on stderr."""
  found = open_folder(folder, env, strict)
  if found.bad:
    print(found.report(), file=sys.stderr)
  return [found[i] for i in range(len(found))]


def with_inverse_depth(description: Mapping[str, Any], folder: str) -> list[episode.Episode]:
  """The episodes of a latent cache, with the inverse depth of every pixel.

  It comes from their depth, or from the layout of a Memory Maze.

  Raises:
    ValueError: if an episode has neither.
  """
  env = zoo.environment(description['env'])

  def known(item):
    if item.depth is not None:
      return np.minimum(1.0 / item.depth, point_maps.NEAREST)
    if not isinstance(env, maze_config.MazeConfig):
      raise ValueError(
          f'{folder}: {item.meta.get("name", "an episode")} has no depth; expected it in all '
          'episodes a depth network is trained on. Record them with depth, encode them again, or '
          'train the variant spatial, which needs none.')
    half_view = memory_maze.half_view(image=env.image, border=env.border)
    return maze_geometry.inverse_depth(
        np.asarray(item.meta['layout']), item.poses, env.frame_shape[0], half_view)

  return [
      dataclasses.replace(item, more={'inverse_depth': known(item)})
      for item in latents.read(folder, encoder=description['encoder_sha256'], pictures=True)]


def with_point_maps(description: Mapping[str, Any], folder: str) -> list[episode.Episode]:
  """The episodes of a latent cache, with their pictures and the inverse depth of every pixel.

  Where the cache has no depth, the depth network estimates it.
  """
  points: Any = zoo.point_maps(description)
  measure = jax.jit(points.measure)
  far = lambda item: in_pieces(measure, item.frames) if item.depth is None else np.asarray(
      points.measure(item.frames, item.depth))
  return [
      dataclasses.replace(item, more={**item.more, 'inverse_depth': far(item)})
      for item in latents.read(folder, encoder=description['encoder_sha256'], pictures=True)]


def pin_networks(description: dict[str, Any]) -> None:
  """Writes into the description the hashes of the autoencoder and depth network it names."""
  if description.get('points'):
    description['depth_sha256'] = zoo.card(description['points']['depth'])['sha256']
  if isinstance(description.get('autoencoder'), str) and description['autoencoder']:
    space, _ = zoo.load_latent_space(description['autoencoder'])
    description['encoder_sha256'] = zoo.encoder_hash(space)


def finished(description: Mapping[str, Any], params: Any) -> Any:
  """What is packaged: the parameters.

  Those of an autoencoder come with the statistics of its latents, taken over the training frames,
  so that standardised latents have mean 0 and variance 1. If its encoder did not change, neither do
  the statistics, and everything trained on these latents still fits.
  """
  if description['expert'] != 'autoencoder':
    return params
  earlier = _earlier(description)
  if earlier is not None and jax.tree.all(jax.tree.map(
      np.array_equal, *map(autoencoder.encoder_of, (params, earlier['autoencoder'])))):
    return {**earlier, 'autoencoder': params}
  env = zoo.environment(description['env'])
  network = perception.autoencoder(description, env.frame_shape)
  channels = np.zeros(network.channels, np.float32)
  raw = autoencoder.LatentSpace(params=params, mean=channels, std=channels + 1, network=network)
  encode = jax.jit(lambda space, frames: space.encode(frames))
  found = []
  for item in pixels(description['data']['folder'], env):
    found.append(np.asarray(encode(raw, item.frames[::10])))
  mean, std = latents.channel_statistics(found)
  return {'autoencoder': params, 'mean': mean, 'std': std}


def _earlier(description: Mapping[str, Any]) -> Any:
  """The autoencoder to continue training; None to train a new one.

  Raises:
    ValueError: if its sizes differ from this run's.
  """
  name = description.get('init_from')
  if not name:
    return None
  tree, card = zoo.load_expert(name)
  own, its = (json.dumps({k: d.get(k) for k in ('env', 'autoencoder')})
              for d in (description, card['config']))
  if own != its:
    raise ValueError(f'init_from={name!r} is an autoencoder of {its}; this run is for {own}.')
  return tree


def data_of(description: Mapping[str, Any]) -> str:
  """What a card says about the data."""
  if description['env']['name'] == 'cards':
    return 'cards, split train, made on the fly'
  if description['env']['name'] == 'own_data':
    return f'{description["env"]["environment"]}, {description["data"]["folder"]}'
  return f'Memory Maze {description["env"]["size"]}x{description["env"]["size"]}, ' + (
      description['data']['folder'])


def in_pieces(function: Any, frames: np.ndarray, size: int = _ENCODE_AT_ONCE) -> np.ndarray:
  """Applies a jitted per-frame function to [T ...] in equal pieces, so that it compiles once."""
  pad = -len(frames) % size
  padded = np.concatenate([frames, np.repeat(frames[-1:], pad, axis=0)]) if pad else frames
  out = [np.asarray(function(padded[i:i + size])) for i in range(0, len(padded), size)]
  return np.concatenate(out)[:len(frames)]


