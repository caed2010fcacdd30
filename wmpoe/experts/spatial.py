"""Spatial long-term memory: a map of what was seen where.

A learned encoder turns every patch of a seen frame into features and a write gate; a locator says
which cell of the world each patch shows; features are written to their cells,
`m <- (1 - g) m + g e`. Reading gathers the cells that the asked poses will show and hands them to
the denoiser, aligned with its tokens. For Memory Cards the camera does not move and cells are the
tiles; for a moving camera the locator maps poses (or point maps) to voxels.

Contrast: the same denoiser with the map against itself with an empty map, context kept; or against
the base, which spares a branch.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import chex
from flax import struct
import jax
import jax.numpy as jnp

from wmpoe.data import episode
from wmpoe.experts import expert
from wmpoe.experts import objective as objective_lib
from wmpoe.networks import map_encoder

# poses [B T P] -> cells of the world the N patches of each frame show, int32 [B T N]
Locate = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class FixedCamera:
  """A camera that never moves: patch n always shows cell n."""

  patches: int

  @property
  def cells(self) -> int:
    """Number of cells in the world."""
    return self.patches

  def __call__(self, poses: jax.Array) -> jax.Array:
    """Cells [B T N] that frames with poses [B T P] show."""
    return jnp.broadcast_to(jnp.arange(self.patches), (*poses.shape[:2], self.patches))


@struct.dataclass
class Map:
  """Maps of B episodes.

  Attributes:
    features: [B cells M].
    seen: [B cells] in [0, 1], how much of a cell has been written.
  """

  features: jax.Array
  seen: jax.Array


def empty_map(batch: int, cells: int, features: int) -> Map:
  """Maps in which nothing was seen."""
  return Map(features=jnp.zeros((batch, cells, features)), seen=jnp.zeros((batch, cells)))


def write_map(state: Map, features: jax.Array, gates: jax.Array, cells: jax.Array) -> Map:
  """Writes frames in order: `m <- (1 - g) m + g e` on the cells each frame shows.

  Args:
    state: Maps.
    features: [B T N M].
    gates: [B T N]; 0 leaves a cell as it is.
    cells: [B T N] int32. Patches of one frame that show the same cell are averaged by gate.
  """
  size = state.seen.shape[1]

  def step(state, frame):
    e, g, c = frame  # [N M], [N], [N]
    count = jnp.zeros((size,)).at[c].add(1.0)
    total = jnp.zeros((size,)).at[c].add(g)
    content = jnp.zeros_like(state.features).at[c].add(g[:, None] * e)
    gate = total / jnp.maximum(count, 1.0)
    content = content / jnp.maximum(count, 1.0)[:, None]
    return Map(
        features=(1.0 - gate)[:, None] * state.features + content,
        seen=(1.0 - gate) * state.seen + gate), None

  one = lambda state, *frames: jax.lax.scan(step, state, frames)[0]
  return jax.vmap(one)(state, features, gates, cells)


def read_map(state: Map, cells: jax.Array) -> jax.Array:
  """Gathers cells [B T N] -> map tokens [B T N M+1]: features and how much was seen."""
  tokens = jnp.concatenate([state.features, state.seen[..., None]], axis=-1)
  return jax.vmap(lambda m, c: m[c])(tokens, cells)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpatialModel:
  """A denoiser that takes map tokens, the encoder that makes them and the locator.

  Attributes:
    denoiser: Its network has `map_dim = encoder.features + 1`.
    encoder: The map encoder.
    locate: Which cells a pose shows; has an attribute `cells`, their number.
  """

  denoiser: expert.Model
  encoder: map_encoder.MapEncoder
  locate: Any

  def __post_init__(self):
    expected = self.encoder.features + 1
    if self.denoiser.network.map_dim != expected:
      raise ValueError(
          f'The denoiser takes map tokens of {self.denoiser.network.map_dim} channels, the map has '
          f'{expected} (features and seen); set map_dim={expected}.')

  def init(self, key: chex.PRNGKey, *, action_dim: int, pose_dim: int) -> Any:
    """Fresh parameters: {'denoiser', 'encoder'}."""
    key_d, key_e = jax.random.split(key)
    frame = jnp.zeros((1, 1, *self.denoiser.network.frame_shape))
    return {
        'denoiser': self.denoiser.init(key_d, action_dim=action_dim, pose_dim=pose_dim),
        'encoder': self.encoder.init(key_e, frame)['params'],
    }

  def write(
      self, params: Any, state: Map, frames: jax.Array, poses: jax.Array,
      valid: jax.Array | None = None,
  ) -> Map:
    """Encodes uint8 frames [B T H W 3] and writes them; frames not `valid` [B T] are skipped."""
    features, gates = self.encoder.apply(
        {'params': params['encoder']}, self.denoiser.codec.encode(frames))
    if valid is not None:
      gates = gates * valid[..., None]
    return write_map(state, features, gates, self.locate(poses))

  def empty(self, batch: int) -> Map:
    """Empty maps for `batch` episodes."""
    return empty_map(batch, self.locate.cells, self.encoder.features)


@struct.dataclass
class Spatial:
  """Definition of the spatial memory.

  Attributes:
    params: {'denoiser', 'encoder'}.
    weight: The contrast's weight.
    model: Static.
    baseline: Static; 'own' (the same denoiser, empty map) or 'base'.
  """

  params: Any
  weight: Any = 1.0
  model: SpatialModel = struct.field(pytree_node=False, kw_only=True)
  baseline: str = struct.field(pytree_node=False, default='own', kw_only=True)

  def __post_init__(self):
    expert.check_baseline(self.baseline, ('own', 'base'))

  def init(self, batch: int) -> Map:
    """Empty maps for `batch` episodes."""
    return self.model.empty(batch)

  def write(self, state: Map, observation: episode.Observation, key: chex.PRNGKey) -> Map:
    """Writes what the observed frames show to where they show it."""
    del key
    return self.model.write(self.params, state, observation.frames, observation.poses)

  def merge(self, first: Map, second: Map, how: str) -> Map:
    """The union of two maps of one place: what writing the second's frames after would give."""
    del how
    share = second.seen[..., None]
    return Map(
        features=(1.0 - share) * first.features + second.features,
        seen=1.0 - (1.0 - first.seen) * (1.0 - second.seen))

  def read(self, state: Map, query: expert.Query) -> expert.Contrast:
    """The denoiser with the cells the asked poses will show, against an empty map or the base."""
    context = query.recent.last(self.model.denoiser.context)
    cells = read_map(state, self.model.locate(query.poses))
    past_cells = read_map(state, self.model.locate(context.poses))
    bind = lambda c, p: expert.bind(
        self.model.denoiser, self.params['denoiser'], query, cells=c, context_cells=p)
    return expert.Contrast(
        positive=bind(cells, past_cells),
        negative=(
            bind(jnp.zeros_like(cells), jnp.zeros_like(past_cells))
            if self.baseline == 'own' else None),
        weight=self.weight, empty=~jnp.any(state.seen > 0, axis=1))


def spatial_loss(
    model: SpatialModel,
    params: Any,
    clip: objective_lib.Clip,
    history: objective_lib.Clip,
    key: chex.PRNGKey,
    objective: objective_lib.Objective,
    *,
    empty_rate: float,
) -> jax.Array:
  """Training loss of encoder and denoiser together, through the map.

  Args:
    model: Static.
    params: {'denoiser', 'encoder'}.
    clip: Clips to denoise, without cells.
    history: Frames before the clip [B h ...] to be written; `valid` masks.
    key: Random key.
    objective: Levels and context dropout.
    empty_rate: Probability that a sample's map stays empty (trains the baseline).
  """
  key_empty, key_loss = jax.random.split(key)
  batch = clip.valid.shape[0]
  keep = jax.random.uniform(key_empty, (batch, 1)) >= empty_rate
  state = model.write(
      params, model.empty(batch), history.frames, history.poses, history.valid & keep)
  clip = dataclasses.replace(clip, cells=read_map(state, model.locate(clip.poses)))
  return objective_lib.clip_loss(model.denoiser, params['denoiser'], clip, key_loss, objective)
