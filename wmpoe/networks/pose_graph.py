"""Poses out of many measurements between pairs of them: the graph of Lu and Milios (1997).

Each measurement says where pose j lies, seen from pose i, and how sure that is. Headings are solved
first and positions with them fixed, each a weighted least-squares problem that is linear, and a few
times over: measurements that disagree with all others lose their weight (iteratively reweighted
least squares with Cauchy's function).
"""

from flax import struct
import jax
import jax.numpy as jnp

from wmpoe.networks import poses as poses_lib

_PINNED = 1e8  # weight of what is known, against 1e4 of the surest measurement


@struct.dataclass
class Edges:
  """Measurements between poses.

  Attributes:
    first: Index i [N], int32.
    second: Index j [N], int32.
    motion: Pose j seen from pose i: ahead, to the left, turned left by [N 3].
    weight: Inverse variances of position and of heading [N 2]; 0 where there is no measurement.
    doubtful: Whether a measurement may be wrong altogether [N], bool.
  """

  first: jax.Array
  second: jax.Array
  motion: jax.Array
  weight: jax.Array
  doubtful: jax.Array


def solve(
    poses: jax.Array, edges: Edges, known: jax.Array, *, iterations: int = 3,
    tolerance: tuple[float, float] = (0.3, 0.1),
) -> jax.Array:
  """The poses [T 3] that fit the measurements best.

  Args:
    poses: Where to start; poses that nothing is measured of stay there.
    edges: The measurements.
    known: [T] bool: poses that are as given.
    iterations: Of reweighting.
    tolerance: Disagreement (in units of the world, in radians) at which a doubtful measurement has
      lost half of its weight.
  """
  def correct(at, error, weight, limit):
    """Moves `at` [T D] such that weighted errors [N D] of the edges vanish."""
    doubt = 1.0 + jnp.sum(jnp.square(error), axis=-1) / limit**2
    weight = jnp.where(edges.doubtful, weight / doubt, weight)
    size = at.shape[0]
    laplacian = jnp.zeros((size, size)).at[edges.first, edges.first].add(weight)
    laplacian = laplacian.at[edges.second, edges.second].add(weight)
    laplacian = laplacian.at[edges.first, edges.second].add(-weight)
    laplacian = laplacian.at[edges.second, edges.first].add(-weight)
    pull = weight[:, None] * error
    right = jnp.zeros_like(at).at[edges.second].add(-pull).at[edges.first].add(pull)
    # Poses without measurements have nothing but the little weight that keeps the matrix regular.
    laplacian = laplacian + jnp.diag(jnp.where(known, _PINNED, 1e-3))
    return at + jax.scipy.linalg.solve(laplacian, right, assume_a='pos')

  def iterate(found, _):
    position, heading = found[:, :2], found[:, 2:]
    turned = heading[edges.second] - heading[edges.first] - edges.motion[:, 2:]
    turned = jnp.arctan2(jnp.sin(turned), jnp.cos(turned))
    heading = correct(heading, turned, edges.weight[:, 1], tolerance[1])
    start = jnp.concatenate([position, heading], axis=-1)[edges.first]
    reached = poses_lib.integrate(edges.motion[:, None], start)[:, 0, :2]
    position = correct(
        position, position[edges.second] - reached, edges.weight[:, 0], tolerance[0])
    return jnp.concatenate([position, heading], axis=-1), None

  return jax.lax.scan(iterate, poses, length=iterations)[0]
