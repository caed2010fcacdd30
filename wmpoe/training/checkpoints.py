"""What a run keeps of its training: checkpoints, complete or absent.

checkpoints/<step>/{params,ema,optimizer,data,meta} in the run's folder, each written under another
name and renamed when complete (orbax), so a kill at any moment leaves only whole checkpoints. They
hold arrays, not shards: what one mesh of devices and processes saved, another restores.
"""

from collections.abc import Mapping
import os
from typing import Any, Literal

from etils import epath  # comes with orbax, whose paths these are
import jax
import numpy as np
import orbax.checkpoint as ocp

from wmpoe import sharding
from wmpoe import whole_file
from wmpoe.training import state as state_lib

FOLDER = 'checkpoints'
_TREES, _FACTS = ('params', 'ema', 'optimizer'), ('data', 'meta')
_policies = ocp.checkpoint_managers


class Checkpointer:
  """Saves and restores a training state with the position in the data; in a pod all call it."""

  def __init__(
    self,
    workdir: str | os.PathLike[str],
    *,
    keep: int,
    keep_best: int = 0,
    best_metric: str = 'validation_loss',
  ):
    """Opens workdir/checkpoints, removing what a kill left half-written.

    Args:
      workdir: the run's folder.
      keep: number of latest checkpoints to keep.
      keep_best: number of checkpoints to keep beside them: those measured with the lowest ...
      best_metric: ... value of this name.
    """
    self._folder = whole_file.anywhere(workdir) / FOLDER
    self._best_metric = best_metric if keep_best else None
    policy = _policies.LatestN(n=keep)
    if keep_best:
      best = _policies.BestN(
        get_metric_fn=_value_of(best_metric),
        reverse=True,
        n=keep_best,
        keep_checkpoints_without_metrics=False,
      )
      policy = _policies.AnyPreservationPolicy([policy, best])
    self._manager = ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        best_fn=_value_of(best_metric) if keep_best else None,
        best_mode='min',
        create=True,
        cleanup_tmp_directories=True,
      ),
      item_handlers=_handlers(),
    )

  def latest_step(self) -> int | None:
    """Returns the step of the last complete checkpoint, None if there is none."""
    return self._manager.latest_step()

  def latest_path(self) -> epath.Path | None:
    """Waits for pending saves; returns the last complete checkpoint's folder, or None."""
    self._manager.wait_until_finished()
    step = self.latest_step()
    return None if step is None else self._folder / str(step)

  def save(
    self,
    state: state_lib.TrainState,
    *,
    data: Any,
    meta: Mapping[str, Any],
    measured: Mapping[str, float] | None = None,
  ) -> None:
    """Starts writing a checkpoint; the state may be donated as soon as this returns.

    Args:
      state: the training state.
      data: what the data iterator's get_state() gave (JSON-able, or bytes).
      meta: JSON-able facts to keep with it.
      measured: what an evaluation of this state gave; kept in meta, too.

    Raises:
      ValueError: if the best are to be kept and the evaluation did not give their metric.
    """
    step = int(state.step)
    best = self._best_metric
    if measured is not None and best is not None and best not in measured:
      raise ValueError(
        f"keep_best keeps checkpoints by {best!r}, but the evaluation gave "
        f"{sorted(measured) or 'nothing'}: choose one of these as best_metric."
      )
    measured = None if measured is None else {k: float(v) for k, v in measured.items()}
    self._manager.save(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardSave(state.params),
        ema=ocp.args.StandardSave(state.ema),
        optimizer=ocp.args.StandardSave(state.opt_state),
        data=ocp.args.JsonSave(_data_to_json(data)),
        meta=ocp.args.JsonSave(
          {**meta, 'step': step, **({'measured': measured} if measured else {})}
        ),
      ),
      metrics=None if best is None else measured,
      force=True,
    )

  def restore(
    self, like: state_lib.TrainState, step: int | None = None
  ) -> tuple[state_lib.TrainState, Any, dict[str, Any]]:
    """Returns a checkpoint as (state, data iterator state, meta).

    Args:
      like: a state of the same structure and shapes, of arrays or of `placed` shapes; each array
        is restored straight into its sharding there.
      step: of the checkpoint, the last one by default.

    Raises:
      FileNotFoundError: if there is no checkpoint.
      ValueError: if it is of other parameters or another optimiser; lists what differs.
    """
    step = self.latest_step() if step is None else step
    if step is None:
      raise FileNotFoundError(f'No checkpoint in {self._folder}.')
    like = jax.tree.map(lambda leaf: placed(leaf, leaf.sharding), like)
    items = {'params': like.params, 'ema': like.ema, 'optimizer': like.opt_state}
    saved = self._manager.item_metadata(step)
    _check_same(f'{self._folder / str(step)}', {name: saved[name] for name in items}, items)
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        **{name: ocp.args.StandardRestore(item) for name, item in items.items()},
        data=ocp.args.JsonRestore(),
        meta=ocp.args.JsonRestore(),
      ),
    )
    number = np.int32(restored.meta['step'])
    state = state_lib.TrainState(
      step=jax.make_array_from_callback((), like.step.sharding, lambda _: number),
      params=restored.params,
      ema=restored.ema,
      opt_state=restored.optimizer,
    )
    return state, _data_from_json(restored.data), restored.meta

  def wait(self) -> None:
    """Waits until every started save is complete."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for pending saves and frees the manager."""
    self._manager.close()


def load_params(
  workdir: str | os.PathLike[str],
  which: Literal['ema', 'params'] = 'ema',
  *,
  step: int | Literal['best'] | None = None,
  best_metric: str = 'validation_loss',
  mesh: jax.sharding.Mesh | None = None,
) -> tuple[Any, dict[str, Any]]:
  """Returns the parameters of a trained run; safe while the run still goes on.

  Args:
    workdir: the run's folder.
    which: 'ema' for the moving average, 'params' for the last iterate.
    step: which checkpoint: a number, 'best' for the lowest `best_metric` of those there, or the
      last one by default.
    best_metric: a value that the run's evaluation gave.
    mesh: what to spread them over, by the rules of `sharding`; one device by default, whatever the
      run was spread over.

  Returns:
    (params, meta): a tree of arrays and a dict with step, seconds, the run's config, ...

  Raises:
    ValueError: if `which` is neither 'ema' nor 'params'.
    FileNotFoundError: if the folder has no such checkpoint.
  """
  if which not in ('ema', 'params'):
    raise ValueError(f"which={which!r}: expected 'ema' or 'params'.")
  folder = whole_file.anywhere(workdir) / FOLDER
  if not folder.is_dir():
    raise FileNotFoundError(
      f'{workdir} holds no trained run: expected the folder {folder}. Train one first, or give '
      'the --workdir of a training.'
    )
  options = ocp.CheckpointManagerOptions(read_only=True)
  with ocp.CheckpointManager(folder, options=options, item_handlers=_handlers()) as manager:
    steps = sorted(manager.all_steps())
    wanted = 'a complete checkpoint' if step is None else f'a checkpoint of step {step}'
    if step == 'best':
      wanted = f'a checkpoint measured with {best_metric}'
      step = _best_of(manager, steps, best_metric)
    elif step is None and steps:
      step = steps[-1]
    if step not in steps:
      raise FileNotFoundError(
        f"{folder} has no such thing as {wanted}; complete checkpoints there: {steps or 'none'}."
      )
    shapes = manager.item_metadata(step)[which]
    if mesh is None:
      device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
      layout = jax.tree.map(lambda _: device, shapes)
    else:
      layout = sharding.shardings(mesh, shapes)
    restored = manager.restore(
      step,
      args=ocp.args.Composite(
        **{which: ocp.args.StandardRestore(jax.tree.map(placed, shapes, layout))},
        meta=ocp.args.JsonRestore(),
      ),
    )
  return restored[which], restored['meta']


def placed(leaf: Any, place: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
  """The shape and type of an array, and where it lies."""
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)


def _handlers() -> dict[str, Any]:
  """What reads and writes each item; named, so that shapes can be looked up before anything."""
  trees = {name: ocp.StandardCheckpointHandler() for name in _TREES}
  return {**trees, **{name: ocp.JsonCheckpointHandler() for name in _FACTS}}


def _value_of(metric: str) -> Any:
  return lambda measured: measured[metric]


def _best_of(manager: ocp.CheckpointManager, steps: list[int], metric: str) -> int | None:
  """The step of the lowest metric, None if none was measured."""
  values = {}
  for step in steps:
    meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))['meta']
    if metric in meta.get('measured', {}):
      values[step] = meta['measured'][metric]
  return min(values, key=lambda step: values[step]) if values else None


def _check_same(where: str, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
  """Compares the shapes on disk with those of the state to be restored."""
  there, now = (
    {
      jax.tree_util.keystr(path, simple=True, separator='/'): tuple(leaf.shape)
      for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
      if hasattr(leaf, 'shape')
    }
    for tree in (saved, wanted)
  )
  different = [
    f"  {path}: {there.get(path, 'absent')} there, {now.get(path, 'absent')} now"
    for path in sorted(there.keys() | now.keys())
    if there.get(path) != now.get(path)
  ]
  if different:
    more = [f'  ... and {len(different) - 8} more'] if len(different) > 8 else []
    raise ValueError(
      f'{where} is a checkpoint of another network or optimiser. Shapes that differ:\n'
      + '\n'.join(different[:8] + more)
      + '\nGive another workdir, or the configuration it was trained with.'
    )


def _data_to_json(data: Any) -> dict[str, Any]:
  # grain's datasets give dicts, its DataLoader gives bytes of UTF-8 text.
  if isinstance(data, bytes):
    return {'kind': 'bytes', 'state': data.decode('utf-8')}
  return {'kind': 'json', 'state': data}


def _data_from_json(saved: Mapping[str, Any]) -> Any:
  return saved['state'].encode('utf-8') if saved['kind'] == 'bytes' else saved['state']
