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
from wmpoe.experts import point_maps
from wmpoe.networks import embeddings
from wmpoe.networks import poses as poses_lib
from wmpoe.networks import view_reader


@struct.dataclass
class KeyFrames:
  """Posed pictures of B episodes; a ring, the oldest are forgotten.

  Attributes:
    frames: [B S H W C], in the denoiser's space.
    poses: [B S 3].
    count: [B] int32, frames ever written.
    pictures: The same as pixels, uint8 [B S H W 3], where there are point maps.
    inverse_depth: How far every pixel is, in bytes [B S H W] (`point_maps`), or None.
    imagined: Which were imagined [B S], where there are point maps; what was seen goes before them.
  """

  frames: jax.Array
  poses: jax.Array
  count: jax.Array
  pictures: Any = None
  inverse_depth: Any = None
  imagined: Any = None

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

  def __call__(self, memory: chex.Array, valid: chex.Array, asked: chex.Array,
               second: chex.Array | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The best K of S memory poses [S 3] for each asked pose [T 3].

    Those of `second` [S] come second, see `poses.SECOND`.

    Returns:
      Their indices [T K], relative poses as the asked view sees them [T K 3], and which of them
      are usable [T K].
    """
    relative = poses_lib.relative(memory[None], asked[:, None])  # [T S 3]
    cost = poses_lib.apart(relative, length=self.length, angle=self.angle)
    if second is not None:
      cost = cost + poses_lib.SECOND * second
    usable = valid & (jnp.abs(relative[..., 2]) < 2 * self.half_view)
    negative, index = jax.lax.top_k(jnp.where(usable, -cost, -jnp.inf), self.count)
    chosen = jnp.take_along_axis(relative, index[..., None], axis=1)
    return index, chosen, jnp.isfinite(negative)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyFrameModel:
  """A denoiser that takes map tokens, the reader that makes them, and what is retrieved; static.

  Attributes:
    denoiser: Its network has `map_dim = reader.features`, and room for a patch of a warped view
      after them if it is given any.
    reader: The learned encoder.
    retrieval: Which pictures a view asks for.
    warps: Whether views warped from point maps are read, too.
  """

  denoiser: expert.Model
  reader: view_reader.ViewReader
  retrieval: Retrieval = Retrieval()
  warps: bool = False

  def __post_init__(self):
    expected = self.reader.features + self.warped_dim
    if self.denoiser.network.map_dim != expected:
      raise ValueError(
          f'The denoiser takes map tokens of {self.denoiser.network.map_dim} channels, the reader '
          f'makes {self.reader.features} and patches of warped views have {self.warped_dim}; set '
          f'map_dim={expected}.')
    if self.denoiser.network.refiner and not self.warps:
      raise ValueError(
          f'The denoiser has a refiner of width {self.denoiser.network.refiner}, which takes views '
          'warped from point maps, and the model has none; set refiner=0.')

  @property
  def warped_dim(self) -> int:
    """Channels of a patch of a warped view: its pixels, and how much of each was seen."""
    network = self.denoiser.network
    return network.patch**2 * (network.frame_shape[-1] + 1) if self.warps else 0

  def init(self, key: chex.PRNGKey, *, action_dim: int, pose_dim: int) -> Any:
    """Fresh parameters: {'denoiser', 'encoder'}."""
    key_d, key_e = jax.random.split(key)
    h, w, c = self.denoiser.network.frame_shape
    tokens = math.prod(self.denoiser.network.grid)
    return {
        'denoiser': self.denoiser.init(key_d, action_dim=action_dim, pose_dim=pose_dim),
        'encoder': self.reader.init(
            key_e, jnp.zeros((1, 1, 1, h, w, c)), jnp.ones((1, 1, 1, h, w)),
            jnp.zeros((1, 1, 1, 3)), jnp.ones((1, 1, 1), bool),
            jnp.zeros((1, 1, tokens, self.warped_dim)) if self.warps else None)['params'],
    }

  def read(
      self, params: Mapping[str, Any], frames: chex.Array, poses: chex.Array, valid: chex.Array,
      asked: chex.Array, warped: chex.Array | None = None, second: chex.Array | None = None,
  ) -> jax.Array:
    """Map tokens [B T N M] for the asked poses [B T 3] out of pictures [B S H W C].

    Args:
      params: {'denoiser', 'encoder'}.
      frames: Pictures in the denoiser's space.
      poses: Theirs [B S 3].
      valid: Which of them exist [B S].
      asked: Poses of the views.
      warped: Optional views warped from point maps [B T H W C+1] (`point_maps.PointMaps.render`).
      second: Optional; which pictures come second, see `poses.SECOND` [B S].
    """
    index, relative, usable = jax.vmap(self.retrieval)(poses, valid, asked, second)
    pictures = jax.vmap(lambda x, i: x[i])(frames, index)  # [B T K H W C]
    lead, grid = pictures.shape[:3], pictures.shape[3:5]
    # `relative` is the picture seen from the asked view: the asked view is turned by its negative.
    where, inside = poses_lib.turn_grid(
        -relative[..., 2], grid, half_view=self.retrieval.half_view, pitch=self.retrieval.pitch)
    turned = poses_lib.sample_grid(
        pictures.reshape(-1, *pictures.shape[3:]), where.reshape(-1, *grid, 2))
    inside = inside & usable[..., None, None]
    patches = None
    if self.warps:
      patches = jnp.zeros((*lead[:2], math.prod(self.denoiser.network.grid), self.warped_dim))
      if warped is not None:
        patches = embeddings.patchify(warped, self.denoiser.network.patch)
    said = self.reader.apply(
        {'params': params['encoder']}, turned.reshape(*lead, *turned.shape[1:]), inside, relative,
        usable, patches)
    return said if patches is None else jnp.concatenate([said, patches], axis=-1)


@struct.dataclass
class Posed:
  """Definition of the key-frame memory; behind the same contract as every memory.

  Of a small capacity, and followed by what is imagined, it is a short-term memory: a ring of the
  last frames.

  Attributes:
    params: {'denoiser', 'encoder'}.
    weight: The contrast's weight.
    points: Optional; point maps, for a model that reads views warped from them. Without, it reads
      its pictures alone.
    model: Static.
    capacity: Static; pictures S that an episode can hold.
    baseline: Static; 'own' (the same denoiser without tokens) or 'base', where one network is both
      and the two are the same: a branch less to run.
  """

  params: Any
  weight: Any = 1.0
  points: point_maps.PointMaps | None = None
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
    empty = KeyFrames(
        frames=jnp.zeros((batch, self.capacity, *shape)),
        poses=jnp.zeros((batch, self.capacity, 3)), count=jnp.zeros((batch,), jnp.int32))
    if self.points is None:
      return empty
    pixels = (batch, self.capacity, *self.points.latents.frame_shape)
    return dataclasses.replace(
        empty, frames=empty.frames.astype(jnp.float16),  # half the bytes, as in a latent cache
        pictures=jnp.zeros(pixels, jnp.uint8),
        inverse_depth=jnp.zeros(pixels[:-1], jnp.uint8), imagined=jnp.zeros(pixels[:2], bool))

  def write(
      self, state: KeyFrames, observation: episode.Observation, key: chex.PRNGKey
  ) -> KeyFrames:
    """Keeps the observed frames [B T ...] with their poses."""
    del key
    frames = self.model.denoiser.codec.encode(observation.frames)
    length = min(frames.shape[1], self.capacity)
    skipped = frames.shape[1] - length
    slots = (state.count[:, None] + skipped + jnp.arange(length)) % self.capacity
    put = jax.vmap(lambda old, s, new: old.at[s].set(new[skipped:].astype(old.dtype)))
    state = dataclasses.replace(
        state, frames=put(state.frames, slots, frames),
        poses=put(state.poses, slots, observation.poses),
        count=state.count + frames.shape[1])
    if self.points is None:
      return state
    pictures = observation.pictures
    imagined = jnp.full(frames.shape[:2], pictures is None)
    if pictures is None:
      pictures = self.points.latents.decode(frames)
    return dataclasses.replace(
        state, pictures=put(state.pictures, slots, pictures),
        imagined=put(state.imagined, slots, imagined),
        inverse_depth=put(
            state.inverse_depth, slots, self.points.measure(frames, observation.depth)))

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
      both = jax.tree.map(put, *(dataclasses.replace(s, count=None) for s in (old, new)))
      return dataclasses.replace(both, count=count)

    return jax.vmap(one)(first, second)

  def read(self, state: KeyFrames, query: expert.Query) -> expert.Contrast:
    """The denoiser with what the asked poses overlap, against the same without."""
    warped = None
    if self.points is not None:
      warped = self.points.render(
          state.pictures, state.inverse_depth, state.poses, state.valid, query.poses,
          state.imagined)
    cells = self.model.read(
        self.params, state.frames, state.poses, state.valid, query.poses, warped, state.imagined)
    denoiser, params = self.model.denoiser, self.params['denoiser']
    context = jnp.zeros((cells.shape[0], denoiser.context, *cells.shape[2:]))
    bind = lambda tokens: expert.bind(
        denoiser, params, query, cells=tokens, context_cells=context)
    return expert.Contrast(
        positive=bind(cells),
        negative=bind(jnp.zeros_like(cells)) if self.baseline == 'own' else None,
        weight=self.weight,
        empty=state.count == 0)


def drifted(
    poses: chex.Array, anchor: chex.Array, key: chex.PRNGKey, drift: tuple[float, float]
) -> jax.Array:
  """Remembered poses [B S 3] as they seem to one who has lost track of where he is by `anchor`.

  Who integrates motions does not know the way from then to now exactly. All poses of a sample are
  moved and turned together about its anchor [B 3], mostly by little: by a normal of standard
  deviation `drift` (units of the world, radians) times the cube of a uniform number.
  """
  key_size, key_way = jax.random.split(key)
  size = jax.random.uniform(key_size, (len(poses), 1)) ** 3
  off = size * jax.random.normal(key_way, anchor.shape) * jnp.array([*drift[:1] * 2, drift[1]])
  cos, sin = jnp.cos(off[:, 2:]), jnp.sin(off[:, 2:])
  dx, dy = (poses[..., i] - anchor[:, None, i] for i in range(2))
  return jnp.stack([
      cos * dx - sin * dy + anchor[:, None, 0] + off[:, None, 0],
      sin * dx + cos * dy + anchor[:, None, 1] + off[:, None, 1],
      poses[..., 2] + off[:, None, 2]], axis=-1)


def key_frame_loss(
    model: KeyFrameModel,
    params: Any,
    clip: objective_lib.Clip,
    history: objective_lib.Clip,
    key: chex.PRNGKey,
    objective: objective_lib.Objective,
    *,
    empty_rate: float,
    points: point_maps.PointMaps | None = None,
    seen: Mapping[str, chex.Array] | None = None,
    unwarped_rate: float = 0.3,
) -> jax.Array:
  """Training loss of reader and denoiser together.

  Args:
    model: Static.
    params: {'denoiser', 'encoder'}.
    clip: Clips to denoise [B C+G ...], without cells.
    history: Frames to remember [B h ...]; `valid` masks.
    key: Random key.
    objective: Levels and context dropout.
    empty_rate: Share of the samples that have no memory: they train the baseline, and where the
      same network serves as the base, the base. Of 1 - 1/k every k-th sample has one, and nothing
      is read for the others; of another rate each has none with that probability.
    points: Optional point maps, for a model that warps.
    seen: What they take: 'pictures' uint8 [B h H W 3] and 'inverse_depth' [B h H W] in bytes.
    unwarped_rate: Probability that a sample's views are not warped: it trains the reading of
      pictures alone.
  """
  key_empty, key_some, key_loss = jax.random.split(key, 3)
  batch, context = clip.valid.shape[0], model.denoiser.context
  every = round(1 / (1 - empty_rate)) if empty_rate < 1 else 0
  if not every or abs(every * (1 - empty_rate) - 1) > 1e-6 or batch % every:
    every = 1
  # Every k-th row: each device's own rows, whatever the batch is sharded over.
  some = lambda x: x.reshape(batch // every, every, *x.shape[1:])[:, 0]
  asked, past = some(clip.poses)[:, context:], jax.tree.map(some, history)
  warped = None
  if points is not None and seen is not None:
    warped = points.render(
        some(seen['pictures']), some(seen['inverse_depth']), past.poses, past.valid, asked)
    there = jax.random.uniform(key_some, (len(asked),)) >= unwarped_rate
    warped = warped * there[:, None, None, None, None]
  cells = model.read(
      params, model.denoiser.codec.encode(past.frames), past.poses, past.valid, asked, warped)
  if every > 1:
    none = jnp.zeros((len(cells), every - 1, *cells.shape[1:]))
    cells = jnp.concatenate([cells[:, None], none], axis=1).reshape(batch, *cells.shape[1:])
  else:
    keep = jax.random.uniform(key_empty, (batch,)) >= empty_rate
    cells = cells * keep[:, None, None, None]
  cells = jnp.pad(cells, ((0, 0), (context, 0), (0, 0), (0, 0)))
  return objective_lib.clip_loss(
      model.denoiser, params['denoiser'], dataclasses.replace(clip, cells=cells), key_loss,
      objective)
