"""One mesh, and where every array lies on it.

The mesh has four axes, any of size 1: 'data' (copies of the model, each with its share of the
batch or of the episodes), 'fsdp' (shares of the batch, and of every parameter and its optimiser
state: ZeRO, arXiv 1910.02054), 'tensor' (attention heads and hidden units of the MLPs, arXiv
1909.08053) and 'expert' (branches of a composition). The same program runs on one device, on eight
and on a pod: what lies where is said by path, from shapes alone, and XLA adds the collectives. Of
several TPU slices, which a slower network joins, each holds a part of 'data', the axis that sends
least: all other axes lie inside one.

Entry points make a mesh and pass it on; nothing here or below enters one.
"""

from collections.abc import Callable, Mapping, Sequence
import math
import re
from typing import Any

import jax
from jax.experimental import mesh_utils
import numpy as np

NamedSharding = jax.sharding.NamedSharding
PartitionSpec = jax.sharding.PartitionSpec

AXES = ('data', 'fsdp', 'tensor', 'expert')
SMALL = 2**14  # elements; a smaller leaf is replicated along an axis that does not divide it

# Path patterns, matched in full or after a '/', and how the leaf's trailing dimensions lie; the
# first that matches counts. A dense layer that leads into heads, hidden units or the channels of a
# scan is split over 'tensor' by its outputs, one that leads out of them by its inputs, so that
# between the two no device needs another's. What no rule names (embeddings, convolutions,
# modulations, the odometry, the map encoder) lies on 'fsdp' along the largest dimension that it
# divides.
_INTO = r'((query|key|value)(_\d+)?|(mlp(_\d+)?|tokens|time)_in|time_gate)'
_OUT_OF = r'(out(_\d+)?|(mlp(_\d+)?|tokens|time)_out)'
_INNER = ('tensor', 'fsdp')
RULES = (
    (f'{_INTO}/kernel', PartitionSpec('fsdp', 'tensor')),
    (f'{_OUT_OF}/kernel', PartitionSpec('tensor', 'fsdp')),
    (f'{_INTO}/bias|skip|step_bias', PartitionSpec(_INNER)),
    # A scan's own layers: their other side, of states or of a low rank, is too narrow for 'fsdp'.
    (r'(step_down|write|read)/kernel|decay', PartitionSpec(_INNER, None)),
    (r'step_up/kernel', PartitionSpec(None, _INNER)),
)

Rules = Sequence[tuple[str, PartitionSpec]]


def make_mesh(
    sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
  """A mesh with all of `AXES`.

  Args:
    sizes: Of the axes; 1 where absent. At most one may be -1: all devices that remain.
    devices: All of them, in every process, by default.

  Raises:
    ValueError: for an unknown axis, sizes that do not multiply to the number of devices, or a
      'data' axis that several TPU slices do not divide.
  """
  devices = jax.devices() if devices is None else list(devices)
  unknown = sorted(set(sizes) - set(AXES))
  if unknown:
    raise ValueError(f'Unknown mesh axes {unknown}: expected some of {", ".join(AXES)}.')
  shape = {axis: sizes.get(axis, 1) for axis in AXES}
  wrong = {
      axis: size for axis, size in shape.items()
      if not isinstance(size, int) or isinstance(size, bool) or (size < 1 and size != -1)}
  open_axes = [axis for axis, size in shape.items() if size == -1]
  if wrong or len(open_axes) > 1:
    raise ValueError(
        f'Mesh sizes {dict(sizes)}: expected whole numbers of at least 1, and at most one -1, '
        'which stands for all devices that remain.')
  given = math.prod(size for size in shape.values() if size != -1)
  if open_axes and len(devices) % given == 0:
    shape[open_axes[0]] = len(devices) // given
  if math.prod(shape.values()) != len(devices):
    product = ' x '.join(f'{axis}={size}' for axis, size in shape.items() if size != 1)
    raise ValueError(
        f'A mesh of {product or "one device"} does not use {len(devices)} device(s): the sizes '
        f'must multiply to {len(devices)}. Change one, or give one as -1 to take what remains.')
  return jax.sharding.Mesh(
      _arranged(shape, devices), AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


def _arranged(shape: Mapping[str, int], devices: Sequence[jax.Device]) -> np.ndarray:
  """The devices as an array of that shape, neighbours on the links of their slice."""
  slices = 1
  if devices[0].platform == 'tpu':  # the hosts of a GPU cluster are numbered as slices, too
    slices = len({getattr(device, 'slice_index', 0) for device in devices})
  # An axis may take a part of a torus's axis; jax.make_mesh allows that on v5e alone.
  if slices == 1:
    return mesh_utils.create_device_mesh(
        tuple(shape.values()), devices, allow_split_physical_axes=True)
  if shape['data'] % slices:
    raise ValueError(
        f'The devices belong to {slices} slices, and data={shape["data"]} does not divide over '
        f'them. Only data may span slices: choose fsdp, tensor and expert so that data is a '
        f'multiple of {slices}.')
  inside = {**shape, 'data': shape['data'] // slices}
  return mesh_utils.create_hybrid_device_mesh(
      tuple(inside.values()), (slices,) + (1,) * (len(shape) - 1), devices,
      allow_split_physical_axes=True)


def shardings(mesh: jax.sharding.Mesh, shapes: Any, rules: Rules = RULES) -> Any:
  """Where each leaf of parameters, of their average or of an optimiser's state lies.

  Rules look at the end of a leaf's path, so what mirrors the parameters lies where they do; they
  speak of the trailing dimensions, so stacked layers lie like single ones.

  Args:
    mesh: From `make_mesh`.
    shapes: A tree of arrays or, from `jax.eval_shape`, of their shapes.
    rules: `(pattern, PartitionSpec)` pairs.

  Returns:
    A tree of NamedSharding. Leaves below `SMALL` elements (biases, norms, scalars) are replicated
    along an axis that does not divide them.

  Raises:
    ValueError: naming path, shape and axis, if an axis does not divide a larger leaf.
  """
  def place(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    return NamedSharding(mesh, _spec(name, tuple(np.shape(leaf)), mesh, rules))

  return jax.tree_util.tree_map_with_path(place, shapes)


def _spec(
    path: str, shape: tuple[int, ...], mesh: jax.sharding.Mesh, rules: Rules) -> PartitionSpec:
  """The spec of one leaf."""
  matching = [rule for rule in rules if re.fullmatch(f'(.*/)?({rule[0]})', path)]
  if not matching:
    return _largest(path, shape, mesh)
  pattern, spec = matching[0]
  if len(spec) > len(shape):
    raise ValueError(
        f'{path} of shape {shape} has fewer dimensions than the rule {pattern!r} places: {spec}.')
  axes = [None] * (len(shape) - len(spec)) + list(spec)
  for dimension, axis in enumerate(axes):
    count = axis_size(mesh, axis)
    if shape[dimension] % count:
      if math.prod(shape) >= SMALL:
        raise _indivisible(path, shape, f'{shape[dimension]} (dimension {dimension})', axis, count)
      axes[dimension] = None
  return PartitionSpec(*axes)


def _largest(path: str, shape: tuple[int, ...], mesh: jax.sharding.Mesh) -> PartitionSpec:
  """'fsdp' along the largest dimension it divides."""
  count = mesh.shape['fsdp']
  fitting = [dimension for dimension, size in enumerate(shape) if size and size % count == 0]
  if not fitting:
    if math.prod(shape) >= SMALL:
      raise _indivisible(path, shape, 'any dimension', 'fsdp', count)
    return PartitionSpec()
  largest = max(fitting, key=lambda dimension: shape[dimension])
  return PartitionSpec(*(['fsdp' if d == largest else None for d in range(len(shape))]))


def _indivisible(path: str, shape: tuple[int, ...], what: str, axis: Any, count: int) -> ValueError:
  return ValueError(
      f'{path} of shape {shape}: the mesh axis {axis!r} of size {count} does not divide {what}. '
      'Choose a size that does, a wider network, or put the devices on the data axis.')


def axis_size(mesh: jax.sharding.Mesh, axis: str | Sequence[str] | None) -> int:
  """Devices along one axis or several together; 1 for None."""
  if axis is None:
    return 1
  return math.prod(mesh.shape[name] for name in ((axis,) if isinstance(axis, str) else axis))


def check_divides(
    mesh: jax.sharding.Mesh, axis: str | Sequence[str], number: int, what: str) -> None:
  """Checks that an axis, or several together, divide a number of something.

  Raises:
    ValueError: naming both.
  """
  count = axis_size(mesh, axis)
  if number % count:
    names = axis if isinstance(axis, str) else ' x '.join(axis)
    raise ValueError(
        f'{what} = {number} does not divide over the mesh axis {names} of size {count}: expected '
        f'a multiple of {count}. Change either.')


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Training examples: the leading axis over 'data' and 'fsdp'."""
  return NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))


def episode_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Memories and what is imagined from them: the leading episode axis over 'data'."""
  return NamedSharding(mesh, PartitionSpec('data'))


def create(mesh: jax.sharding.Mesh, make: Callable[..., Any], *args: Any, rules: Rules = RULES
           ) -> Any:
  """`make(*args)`, computed straight into its layout: never whole on any one device."""
  layout = shardings(mesh, jax.eval_shape(make, *args), rules)
  return jax.jit(make, out_shardings=layout)(*args)


def whole_at_use(function: Callable[..., Any], layout: Any) -> Callable[..., Any]:
  """`function(params, ...)`, differentiable, with parameters that are whole along 'fsdp' inside.

  Left to itself XLA may split activations as it finds parameters split. Here these are gathered
  before they are used, and their gradients are summed into the layout. What is split is the state
  between steps, the gradient and the update: ZeRO's second stage, and the parameters themselves.
  A step holds them whole; where they are too large for that, split them over 'tensor', too. They
  are not gathered again for the backward pass: a policy around the function that would see to that
  also overrides, in jax, what the function itself chooses to compute again, and its activations
  take far more memory than its parameters.

  Args:
    function: Of parameters and other arguments.
    layout: Tree of NamedSharding, where the parameters lie outside.
  """
  if all(place.mesh.shape['fsdp'] == 1 for place in jax.tree.leaves(layout)):
    return function
  whole = jax.tree.map(_without_fsdp, layout)

  @jax.custom_vjp
  def gather(params):
    return jax.lax.with_sharding_constraint(params, whole)

  gather.defvjp(
      lambda params: (jax.lax.with_sharding_constraint(params, whole), None),
      lambda _, grads: (jax.lax.with_sharding_constraint(grads, layout),))

  return lambda params, *args: function(gather(params), *args)


def _without_fsdp(place: NamedSharding) -> NamedSharding:
  axes = [(axis,) if isinstance(axis, str) else tuple(axis or ()) for axis in place.spec]
  kept = [tuple(name for name in names if name != 'fsdp') or None for names in axes]
  return NamedSharding(place.mesh, PartitionSpec(*kept))


def batch_rows(mesh: jax.sharding.Mesh, batch_size: int) -> tuple[int, ...]:
  """Rows of a global batch that this process has to provide, ascending.

  Processes that hold the same rows (where 'tensor' spans them) are each given them.

  Raises:
    ValueError: if the batch does not divide over 'data' and 'fsdp'.
  """
  check_divides(mesh, ('data', 'fsdp'), batch_size, 'batch_size')
  held = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
  return tuple(sorted({
      row for index in held.values() if index for row in range(batch_size)[index[0]]}))


def global_batch(mesh: jax.sharding.Mesh, rows: Any, batch_size: int) -> Any:
  """The global batch out of every process's `batch_rows`.

  Args:
    mesh: From `make_mesh`.
    rows: Pytree of numpy arrays [R ...], this process's rows in ascending order.
    batch_size: B of the whole.

  Returns:
    Pytree of arrays [B ...], spread by `batch_sharding`.
  """
  place = batch_sharding(mesh)
  return jax.tree.map(
      lambda x: jax.make_array_from_process_local_data(place, x, (batch_size, *x.shape[1:])), rows)


def gathered(mesh: jax.sharding.Mesh, tree: Any) -> Any:
  """Every array whole, as numpy, in the memory of each process; a device holds one at a time."""
  whole = jax.jit(lambda x: x, out_shardings=replicated(mesh))
  return jax.tree.map(
      lambda leaf: np.asarray(leaf if leaf.is_fully_addressable else whole(leaf)), tree)


def bytes_per_device(shapes: Any, layout: Any) -> int:
  """Bytes that one device holds of a tree laid out by `shardings`."""
  size = lambda leaf, place: math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize
  return sum(jax.tree.leaves(jax.tree.map(size, shapes, layout)))
