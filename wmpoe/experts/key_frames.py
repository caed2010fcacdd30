"""Spatial long-term memory for a moving camera: posed key frames, retrieved by what they overlap.

What was seen is kept with the pose it was seen from. For every frame to be imagined the K pictures
that overlap its view the most are retrieved, turned to its heading, and read by a learned encoder
into tokens aligned with the denoiser's own (arXiv 2605.18813, section 3; retrieval by overlap of
the field of view as in arXiv 2504.12369). Contrast: the same denoiser without those tokens.

Poses are planar, (x, y, heading) in cells and radians; see `networks.poses`.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

import chex
from flax import struct
import jax
import jax.numpy as jnp

from wmpoe.data import episode
from wmpoe.experts import expert
from wmpoe.experts import objective as objective_lib
from wmpoe.networks import poses as poses_lib
from wmpoe.networks import view_reader


@struct.dataclass
class KeyFrames:
  """Posed pictures of B episodes; a ring, the oldest are forgotten.

  Attributes:
    frames: [B S H W C], in the denoiser's space.
    poses: [B S 3].
    count: [B] int32, frames ever written.
  """

  frames: jax.Array
  poses: jax.Array
  count: jax.Array

  @property
  def valid(self) -> jax.Array:
    """Which slots hold a picture [B S]."""
    return jnp.arange(self.frames.shape[1]) < self.count[:, None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrieval:
  """Which key frames a view asks for.

  The score of a picture is minus `(distance / length)^2 + (turn / angle)^2`; pictures whose field
  of view shares nothing with the asked one are not retrieved.

  Attributes:
    count: Pictures K per asked view.
    length: Distance, in cells, that costs one.
    angle: Turn, in radians, that costs one.
    half_view: Half the camera's field of view, radians.
    pitch: How far the camera looks down, radians.
  """

  count: int = 4
  length: float = 1.0
  angle: float = 0.6
  half_view: float = math.radians(40.0)
  pitch: float = 0.0

  def __post_init__(self):
    if self.count < 1 or min(self.length, self.angle, self.half_view) <= 0:
      raise ValueError(f'{self}: expected count >= 1 and positive length, angle and half_view.')

  def __call__(self, memory: chex.Array, valid: chex.Array, asked: chex.Array
               ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The best K of S memory poses [S 3] for each asked pose [T 3].

    Returns:
      Their indices [T K], relative poses as the asked view sees them [T K 3], and which of them
      are usable [T K].
    """
    relative = poses_lib.relative(memory[None], asked[:, None])  # [T S 3]
    distance = jnp.sum(jnp.square(relative[..., :2]), axis=-1) / self.length**2
    cost = distance + jnp.square(relative[..., 2] / self.angle)
    usable = valid & (jnp.abs(relative[..., 2]) < 2 * self.half_view)
    negative, index = jax.lax.top_k(jnp.where(usable, -cost, -jnp.inf), self.count)
    chosen = jnp.take_along_axis(relative, index[..., None], axis=1)
    return index, chosen, jnp.isfinite(negative)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyFrameModel:
  """A denoiser that takes map tokens, the reader that makes them, and what is retrieved; static.

  Attributes:
    denoiser: Its network has `map_dim = reader.features`.
    reader: The learned encoder.
    retrieval: Which pictures a view asks for.
  """

  denoiser: expert.Model
  reader: view_reader.ViewReader
  retrieval: Retrieval = Retrieval()

  def __post_init__(self):
    if self.denoiser.network.map_dim != self.reader.features:
      raise ValueError(
          f'The denoiser takes map tokens of {self.denoiser.network.map_dim} channels, the reader '
          f'makes {self.reader.features}; set map_dim={self.reader.features}.')

  def init(self, key: chex.PRNGKey, *, action_dim: int, pose_dim: int) -> Any:
    """Fresh parameters: {'denoiser', 'encoder'}."""
    key_d, key_e = jax.random.split(key)
    h, w, c = self.denoiser.network.frame_shape
    return {
        'denoiser': self.denoiser.init(key_d, action_dim=action_dim, pose_dim=pose_dim),
        'encoder': self.reader.init(
            key_e, jnp.zeros((1, 1, 1, h, w, c)), jnp.ones((1, 1, 1, h, w)),
            jnp.zeros((1, 1, 1, 3)), jnp.ones((1, 1, 1), bool))['params'],
    }

  def read(
      self, params: Mapping[str, Any], frames: chex.Array, poses: chex.Array, valid: chex.Array,
      asked: chex.Array,
  ) -> jax.Array:
    """Map tokens [B T N M] for the asked poses [B T 3] out of pictures [B S H W C]."""
    index, relative, usable = jax.vmap(self.retrieval)(poses, valid, asked)
    pictures = jax.vmap(lambda x, i: x[i])(frames, index)  # [B T K H W C]
    lead, grid = pictures.shape[:3], pictures.shape[3:5]
    # `relative` is the picture seen from the asked view: the asked view is turned by its negative.
    where, inside = poses_lib.turn_grid(
        -relative[..., 2], grid, half_view=self.retrieval.half_view, pitch=self.retrieval.pitch)
    turned = poses_lib.sample_grid(
        pictures.reshape(-1, *pictures.shape[3:]), where.reshape(-1, *grid, 2))
    inside = inside & usable[..., None, None]
    return self.reader.apply(
        {'params': params['encoder']}, turned.reshape(*lead, *turned.shape[1:]), inside, relative,
        usable)


@struct.dataclass
class Posed:
  """Definition of the key-frame memory; behind the same contract as every memory.

  Of a small capacity, and followed by what is imagined, it is a short-term memory: a ring of the
  last frames.

  Attributes:
    params: {'denoiser', 'encoder'}.
    weight: The contrast's weight.
    model: Static.
    capacity: Static; pictures S that an episode can hold.
    baseline: Static; 'own' (the same denoiser without tokens) or 'base', where one network is both
      and the two are the same: a branch less to run.
  """

  params: Any
  weight: Any = 1.0
  model: KeyFrameModel = struct.field(pytree_node=False, kw_only=True)
  capacity: int = struct.field(pytree_node=False, default=256, kw_only=True)
  baseline: str = struct.field(pytree_node=False, default='own', kw_only=True)

  def __post_init__(self):
    expert.check_baseline(self.baseline, ('own', 'base'))
    if self.capacity < self.model.retrieval.count:
      raise ValueError(
          f'A memory of {self.capacity} pictures is too small: every view reads '
          f'{self.model.retrieval.count} of them. Hold at least as many (in a config: '
          'compose.short_term.frames, compose.spatial.frames).')

  def init(self, batch: int) -> KeyFrames:
    """No pictures yet, for `batch` episodes."""
    shape = self.model.denoiser.network.frame_shape
    return KeyFrames(
        frames=jnp.zeros((batch, self.capacity, *shape)),
        poses=jnp.zeros((batch, self.capacity, 3)), count=jnp.zeros((batch,), jnp.int32))

  def write(
      self, state: KeyFrames, observation: episode.Observation, key: chex.PRNGKey
  ) -> KeyFrames:
    """Keeps the observed frames [B T ...] with their poses."""
    del key
    frames = self.model.denoiser.codec.encode(observation.frames)
    length = min(frames.shape[1], self.capacity)
    skipped = frames.shape[1] - length
    slots = (state.count[:, None] + skipped + jnp.arange(length)) % self.capacity
    put = jax.vmap(lambda old, s, new: old.at[s].set(new[skipped:]))
    return KeyFrames(
        frames=put(state.frames, slots, frames),
        poses=put(state.poses, slots, observation.poses),
        count=state.count + frames.shape[1])

  def merge(self, first: KeyFrames, second: KeyFrames, how: str) -> KeyFrames:
    """The union of both, the second's pictures counted as the newer ones.

    What both hold, seen from the very same pose, is kept once.
    """
    del how
    size = self.capacity

    def one(old, new):  # of one episode
      twice = jnp.all(old.poses[:, None] == new.poses, axis=-1) & (jnp.arange(size) < new.count)
      there = jnp.concatenate([
          (jnp.arange(size) < old.count) & ~jnp.any(twice, axis=1), jnp.arange(size) < new.count])
      # By age: a ring that was filled starts at its next slot. Empty slots go first.
      age = [jnp.mod(jnp.arange(size) - jnp.maximum(s.count, size), size) for s in (old, new)]
      age[1] = age[1] + size
      order = jnp.argsort(jnp.where(there, jnp.concatenate(age), -1))[size:]
      count = jnp.minimum(jnp.sum(there), size)
      put = lambda x, y: jnp.roll(jnp.concatenate([x, y])[order], count - size, axis=0)
      return KeyFrames(
          frames=put(old.frames, new.frames), poses=put(old.poses, new.poses), count=count)

    return jax.vmap(one)(first, second)

  def read(self, state: KeyFrames, query: expert.Query) -> expert.Contrast:
    """The denoiser with what the asked poses overlap, against the same without."""
    cells = self.model.read(self.params, state.frames, state.poses, state.valid, query.poses)
    denoiser, params = self.model.denoiser, self.params['denoiser']
    context = jnp.zeros((cells.shape[0], denoiser.context, *cells.shape[2:]))
    bind = lambda tokens: expert.bind(
        denoiser, params, query, cells=tokens, context_cells=context)
    return expert.Contrast(
        positive=bind(cells),
        negative=bind(jnp.zeros_like(cells)) if self.baseline == 'own' else None,
        weight=self.weight,
        empty=state.count == 0)


def key_frame_loss(
    model: KeyFrameModel,
    params: Any,
    clip: objective_lib.Clip,
    history: objective_lib.Clip,
    key: chex.PRNGKey,
    objective: objective_lib.Objective,
    *,
    empty_rate: float,
) -> jax.Array:
  """Training loss of reader and denoiser together.

  Args:
    model: Static.
    params: {'denoiser', 'encoder'}.
    clip: Clips to denoise [B C+G ...], without cells.
    history: Frames to remember [B h ...]; `valid` masks.
    key: Random key.
    objective: Levels and context dropout.
    empty_rate: Probability that a sample has no memory: it trains the baseline, and where the same
      network serves as the base, the base.
  """
  key_empty, key_loss = jax.random.split(key)
  batch, context = clip.valid.shape[0], model.denoiser.context
  keep = jax.random.uniform(key_empty, (batch,)) >= empty_rate
  pictures = model.denoiser.codec.encode(history.frames)
  cells = model.read(
      params, pictures, history.poses, history.valid, clip.poses[:, context:])
  cells = cells * keep[:, None, None, None]
  cells = jnp.pad(cells, ((0, 0), (context, 0), (0, 0), (0, 0)))
  return objective_lib.clip_loss(
      model.denoiser, params['denoiser'], dataclasses.replace(clip, cells=cells), key_loss,
      objective)
