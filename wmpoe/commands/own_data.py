"""Fits the run card of configs/own_data.py to a folder of episodes: what spaces.json says."""

from collections.abc import Mapping
import pathlib
from typing import Any

from wmpoe import compositions
from wmpoe import zoo
from wmpoe.data import inspection
from wmpoe.data import latents

NAME = 'own_data'


def fit(description: dict[str, Any], folder: str | None) -> None:
  """Completes a description of 'own_data' in place; those of other environments are left alone.

  It fills in: the environment, from the folder's spaces.json or its latent cache; the shape of
  latents, from the autoencoder, and the size of map tokens of warped views; how poses are given to
  the network; and, if there are no planar poses, adapters of the layers in place of a table keyed
  by place.

  Args:
    description: With 'env' `{'name': 'own_data'}`.
    folder: Of episodes or latents.

  Raises:
    FileNotFoundError: if the folder is neither.
    ValueError: for a spaces.json that makes no sense, an expert that needs poses the episodes lack,
      or frames that do not fit the network's patches.
  """
  if description['env']['name'] != NAME:
    return
  if not folder:
    raise ValueError('Give the folder of your episodes: --config.data.folder=FOLDER to train, '
                     '--source=FOLDER to encode and evaluate.')
  description['env'] = _environment(folder)
  spaces = zoo.environment(description['env'])
  planar = spaces.poses.kind == 'planar'
  if 'compose' in description and not planar and description['compose'].get('long_term'):
    description['compose']['long_term']['lora'].update(compositions.WITHOUT_PLACES)
  if description.get('expert') in ('spatial', 'odometry') and not planar:
    raise ValueError(
        f'{folder}: poses are of kind {spaces.poses.kind!r}; the {description["expert"]} expert '
        'needs planar ones (x, y, heading). Record them (docs/own_data.md), or train base and '
        'short_term, and compose them with the long-term memory, which needs no poses.')
  network = description.get('model', description)
  if 'latent' not in network:
    return
  if isinstance(description.get('autoencoder'), str) and description['autoencoder']:
    space, _ = zoo.load_latent_space(description['autoencoder'])
    network['latent'] = list(space.network.latent_shape)
  model = description.get('model')
  if model is None:
    return
  if description.get('points'):
    channels = model['latent'][-1] + 1  # of latents, and how much of them was seen
    model['map_dim'] = description['encoder']['features'] + model['patch']**2 * channels
  if not planar:
    model['pose_kind'] = 'vector' if spaces.pose_dim else 'none'
    model['pose_code'] = {}
  shape = tuple(model.get('latent') or spaces.frame_shape)
  if shape[0] % model['patch'] or shape[1] % model['patch']:
    raise ValueError(
        f'{folder}: frames are {shape[0]}x{shape[1]}{" latents" * bool(model.get("latent"))}, not '
        f'a multiple of the patch, {model["patch"]}. Convert them to another --size, or set '
        '--config.model.patch.')


def _environment(folder: str) -> dict[str, Any]:
  if latents.is_cache(folder):
    env = latents.read_index(folder).get('env', {})
    if not isinstance(env, Mapping) or env.get('name') != NAME:
      raise ValueError(f'{folder} holds latents of another environment: {env}; expected own data.')
    return dict(env)
  return {'name': NAME, **inspection.spaces_of(pathlib.Path(folder)).to_json()}


def view(description: Mapping[str, Any]) -> tuple[float, float] | None:
  """The camera in the config: half its field of view and its pitch, in radians."""
  camera = description.get('camera') or {}
  return (camera['half_view'], camera['pitch']) if camera.get('half_view') else None
