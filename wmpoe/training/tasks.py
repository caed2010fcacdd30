"""What each expert is trained on: pure init and loss for the trainer."""

import dataclasses
from typing import Any

import chex
from flax import traverse_util
import jax
import jax.numpy as jnp

from wmpoe.experts import expert
from wmpoe.experts import key_frames
from wmpoe.experts import objective as objective_lib
from wmpoe.experts import point_maps
from wmpoe.experts import spatial
from wmpoe.networks import autoencoder
from wmpoe.networks import depth
from wmpoe.networks import odometry


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoisingTask:
  """Base and short-term experts, and baselines: denoise the frames that follow a context.

  Attributes:
    model: The static model.
    objective: Noise levels and context dropout.
    action_dim: A.
    pose_dim: P.
    initial: Optional parameters of another expert to fork from; leaves it lacks are fresh.
  """

  model: expert.Model
  objective: objective_lib.Objective
  action_dim: int
  pose_dim: int
  initial: Any = None

  def init(self, key: chex.PRNGKey) -> Any:
    """Fresh parameters, or those of the expert this one is forked from."""
    params = self.model.init(key, action_dim=self.action_dim, pose_dim=self.pose_dim)
    return params if self.initial is None else _fork(params, self.initial)

  def loss(
      self, params: Any, batch: dict[str, Any], key: chex.PRNGKey
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The clip loss of a batch of the pipeline."""
    return objective_lib.clip_loss(self.model, params, _clip(batch), key, self.objective), {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpatialTask:
  """The spatial expert: encoder and denoiser, trained together through the memory.

  Attributes:
    model: Static.
    objective: Noise levels and context dropout of the clip.
    empty_rate: Probability that a sample's map is left empty (trains the baseline).
    action_dim: A.
    pose_dim: P.
    initial: Optional parameters to fork from, {'denoiser', 'encoder'} or one of them; leaves they
      lack are fresh.
    points: Optional point maps, of a model that reads views warped from them.
    drift: How far remembered poses are off while training, see `key_frames.drifted`.
    unwarped_rate: See `key_frames.key_frame_loss`.
  """

  model: spatial.SpatialModel | key_frames.KeyFrameModel
  objective: objective_lib.Objective
  empty_rate: float
  action_dim: int
  pose_dim: int
  initial: Any = None
  points: point_maps.PointMaps | None = None
  drift: tuple[float, float] = (0.0, 0.0)
  unwarped_rate: float = 0.3

  def init(self, key: chex.PRNGKey) -> Any:
    """Fresh parameters, but for those it is forked from."""
    params = self.model.init(key, action_dim=self.action_dim, pose_dim=self.pose_dim)
    return params if self.initial is None else _fork(params, self.initial)

  def loss(
      self, params: Any, batch: dict[str, Any], key: chex.PRNGKey
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss through the memory, of a batch of `RandomClip(history=...)`."""
    history = objective_lib.Clip(
        frames=batch['history_frames'], actions=batch['history_actions'],
        poses=batch['history_poses'], valid=batch['history_valid'])
    clip = _clip(batch)
    if isinstance(self.model, key_frames.KeyFrameModel):
      asked = clip.poses[:, self.model.denoiser.context:]
      if any(self.drift):
        history = dataclasses.replace(history, poses=key_frames.drifted(
            history.poses, asked[:, 0], jax.random.fold_in(key, 1), self.drift))
      names = ('pictures', 'inverse_depth')
      seen = {name: batch[f'history_{name}'] for name in names} if self.points else None
      return key_frames.key_frame_loss(
          self.model, params, clip, history, key, self.objective, empty_rate=self.empty_rate,
          points=self.points, seen=seen, unwarped_rate=self.unwarped_rate), {}
    return spatial.spatial_loss(
        self.model, params, clip, history, key, self.objective, empty_rate=self.empty_rate), {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OdometryTask:
  """The odometry: how the camera moved between frames of a clip, and to frames of its history.

  Attributes:
    network: Static.
    frame_shape: (h, w, C) of the frames it sees.
    action_dim: A.
  """

  network: odometry.Odometry
  frame_shape: tuple[int, int, int]
  action_dim: int

  def init(self, key: chex.PRNGKey) -> Any:
    """Fresh parameters."""
    return self.network.init(
        key, jnp.zeros((1, 2, *self.frame_shape)), jnp.zeros((1, 2, self.action_dim)),
        method='all')['params']

  def loss(
      self, params: Any, batch: dict[str, Any], key: chex.PRNGKey
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The error of the motions of a batch of `RandomClip(history=...)`, and of its matches."""
    motion = odometry.odometry_loss(
        self.network, params, batch['frames'], batch['actions'], batch['poses'], batch['valid'])
    history = tuple(batch[f'history_{name}'] for name in ('frames', 'poses', 'valid'))
    match = odometry.match_loss(
        self.network, params, batch['frames'], batch['poses'], batch['valid'], history, key)
    return motion + match, {'motion': motion, 'match': match}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DepthTask:
  """The depth network: how far every pixel of single frames is, from their latents.

  Attributes:
    network: Static.
    frame_shape: (h, w, C) of the latents it sees.
  """

  network: depth.Depth
  frame_shape: tuple[int, int, int]

  def init(self, key: chex.PRNGKey) -> Any:
    """Fresh parameters."""
    return self.network.init(key, jnp.zeros((1, *self.frame_shape)))['params']

  def loss(
      self, params: Any, batch: dict[str, Any], key: chex.PRNGKey
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The error of a batch of `RandomFrame` of episodes that know their inverse depth."""
    del key
    return depth.depth_loss(self.network, params, batch['frames'], batch['inverse_depth']), {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderTask:
  """The autoencoder: reconstruct single frames.

  Attributes:
    network: Static.
    noise: Standard deviation of the noise the decoder is trained under.
    absolute: Weight of the absolute error beside the squared one.
    perceptual: Optional distance of frames, see `autoencoder.reconstruction_loss`.
    perceptual_weight: Its weight.
    initial: Optional parameters to go on from.
  """

  network: autoencoder.Autoencoder
  noise: float
  absolute: float
  perceptual: Any = None
  perceptual_weight: float = 0.0
  initial: Any = None

  def init(self, key: chex.PRNGKey) -> Any:
    """Fresh parameters, or those to go on from."""
    params = self.network.init(key, jnp.zeros((1, *self.network.frame_shape)))['params']
    return params if self.initial is None else _fork(params, self.initial)

  def loss(
      self, params: Any, batch: dict[str, Any], key: chex.PRNGKey
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The reconstruction loss of uint8 frames [B H W 3], and its mean squared error."""
    loss, mse = autoencoder.reconstruction_loss(
        self.network, params, batch['frames'], key, noise=self.noise, absolute=self.absolute,
        perceptual=self.perceptual, perceptual_weight=self.perceptual_weight)
    return loss, {'mse': mse}


def _fork(params: Any, initial: Any) -> Any:
  """Fresh parameters, but for those of the expert they are forked from.

  What map tokens have in addition starts at zero, so that the fork is what it is forked from.

  Raises:
    ValueError: if it has leaves they lack, or of other shapes.
  """
  fork = traverse_util.flatten_dict(initial)
  own = traverse_util.flatten_dict(params)
  for path in own.keys() & fork.keys():
    if path[-2:] == ('map_embed', 'kernel'):
      more = own[path].shape[0] - fork[path].shape[0]
      fork[path] = jnp.pad(fork[path], ((0, max(more, 0)), (0, 0)))
  misfits = [
      '/'.join(path) for path, leaf in fork.items()
      if path not in own or own[path].shape != leaf.shape]
  if misfits:
    raise ValueError(f'What it is forked from has leaves this network lacks: {misfits}.')
  own.update({path: jnp.asarray(leaf) for path, leaf in fork.items()})
  return traverse_util.unflatten_dict(own)


def _clip(batch: dict[str, Any]) -> objective_lib.Clip:
  return objective_lib.Clip(
      frames=batch['frames'], actions=batch['actions'], poses=batch['poses'],
      valid=batch['valid'])
