"""The place field solved for instead of trained: what a reader says of places, by regression.

A base that is one network with a spatial expert knows what map tokens mean. Around every frame seen
views are asked of the reader, as the spatial memory asks it while imagining, and the rows of the
field (`networks.dit.DiT.field`) are the ridge regression of its answers on the keys of the views'
poses: in effect test-time finetuning with a quadratic loss, solved for. The sums of the normal
equations are all that is kept of the past: constant in size, written frame by frame (recursive
least squares), and two of them are merged by adding.
"""

from collections.abc import Mapping
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from wmpoe.experts import key_frames
from wmpoe.experts import writing

# Views around every frame seen: how many, how far off (cells) and how far turned (radians). The
# frame itself, near ones to see it from beside, far ones to say what is not known there.
VIEWS = ((1, 0.0, 0.0), (4, 0.3, 0.3), (4, 1.5, 3.0))
_PERIOD = 200  # frames after which the views' offsets begin again


@struct.dataclass
class Sums:
  """Normal equations of B episodes: R keys, N tokens of M channels.

  Attributes:
    gram: Keys times keys [B R R].
    moment: Keys times what the reader says [B R N*M].
    count: Views summed over [B] float32.
  """

  gram: jax.Array
  moment: jax.Array
  count: jax.Array

  def __add__(self, other: 'Sums') -> 'Sums':
    """The sums of all that two memories of one place have seen."""
    return jax.tree.map(jnp.add, self, other)


@struct.dataclass
class Regression:
  """How a place field is solved for; it can stand before the inner loop of a `LongTerm`.

  Attributes:
    params: {'encoder', 'map_embed'}, of the spatial expert that is the base, too.
    model: Static.
    rank: Static; keys R, the first of a pose's, as many as the adapter has rows.
    views: Static; see `VIEWS`.
    ridge: Static; in units of a key's mean square times R.
    few: Static; of fewer views than this the ridge is (few / views)^2 times as large. They leave
      most keys open, and what was seen would be heard where nothing was.
  """

  params: Mapping[str, Any]
  model: key_frames.KeyFrameModel = struct.field(pytree_node=False, kw_only=True)
  rank: int = struct.field(pytree_node=False, kw_only=True)
  views: tuple[tuple[int, float, float], ...] = struct.field(
      pytree_node=False, default=VIEWS, kw_only=True)
  ridge: float = struct.field(pytree_node=False, default=1e-4, kw_only=True)
  few: int = struct.field(pytree_node=False, default=0, kw_only=True)

  def __post_init__(self):
    if self.ridge <= 0 or not self.views or any(
        len(view) != 3 or view[0] < 1 or min(view[1:]) < 0 for view in self.views):
      raise ValueError(
          f'views={self.views} and ridge={self.ridge}; expected (how many, cells, radians) for '
          'every kind of view, and a positive ridge.')

  def init(self) -> Sums:
    """The sums of one episode that has seen nothing."""
    rows, columns = self.model.denoiser.network.grid
    width = rows * columns * self.model.reader.features
    return Sums(
        gram=jnp.zeros((self.rank, self.rank)), moment=jnp.zeros((self.rank, width)),
        count=jnp.zeros(()))

  def add(self, sums: Sums, history: writing.History, new: int) -> Sums:
    """Adds the views around the newest `new` frames of the histories [B S ...].

    Pictures are retrieved from all frames of the history. The t-th frame that was ever seen has the
    same views in every episode, however many frames are added at once: writing needs no key.
    """
    denoiser = self.model.denoiser
    pictures = denoiser.codec.encode(history.frames)
    there = jnp.arange(pictures.shape[1]) < history.length[:, None]
    newest = history.length[:, None] - new + jnp.arange(new)
    poses = jax.vmap(lambda p, i: p[i])(history.poses, newest)
    rng = np.random.default_rng(0)
    offsets = np.concatenate([
        rng.normal(size=(count, _PERIOD, 3)) * (cells, cells, radians)
        for count, cells, radians in self.views]).astype(np.float32)
    seen = jnp.round(sums.count / len(offsets)).astype(jnp.int32)
    now = (seen[:, None] + jnp.arange(new)) % _PERIOD  # [B new]
    exact = jax.lax.Precision.HIGHEST

    def one_each(sums, offset):
      asked = poses + offset
      said = self.model.read(self.params, pictures, history.poses, there, asked)
      keys = denoiser.pose_code(asked, asked[:, 0])[..., -denoiser.network.field:]
      keys = keys[..., :self.rank]
      said = said[..., :self.model.reader.features]  # no view is warped
      said = said.reshape(*said.shape[:2], -1)
      return sums + Sums(
          gram=jnp.einsum('btr,bts->brs', keys, keys, precision=exact),
          moment=jnp.einsum('btr,btm->brm', keys, said, precision=exact),
          count=jnp.full_like(sums.count, new)), None

    return jax.lax.scan(one_each, sums, jnp.asarray(offsets)[:, now])[0]

  def solve(self, sums: Sums) -> jax.Array:
    """Rows of the field [B R N*D]; zero where nothing was seen."""
    features = self.model.reader.features
    kernel = self.params['map_embed']['kernel'][:features]
    count = jnp.maximum(sums.count, 1.0)[:, None, None]
    weight = self.ridge * count * jnp.square(jnp.maximum(self.few / count, 1.0))
    factor = jax.scipy.linalg.cho_factor(sums.gram + weight * jnp.eye(self.rank))
    cells = jax.scipy.linalg.cho_solve(factor, sums.moment)
    cells = cells.reshape(*cells.shape[:2], -1, features)
    return (cells @ kernel).reshape(*cells.shape[:2], -1)
