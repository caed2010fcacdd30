"""What a run keeps on disk: its folder, its configuration, its lock and its checkpoints.

A run's folder holds config.json, metrics.jsonl, train.lock while a job runs, and
checkpoints/<step>/{params,ema,optimizer,data,meta}, each written under another name and renamed
when complete (orbax), so a kill at any moment leaves only whole checkpoints.
"""

from collections.abc import Collection, Iterator, Mapping
import contextlib
import fcntl
import json
import os
import pathlib
import socket
from typing import Any, Literal, TextIO

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from wmpoe.training import state as state_lib

CONFIG = "config.json"
LOCK = "train.lock"
FOLDER = "checkpoints"
_ITEMS = ("params", "ema", "optimizer", "data", "meta")


class Checkpointer:
  """Saves and restores a training state with the position in the data."""

  def __init__(self, workdir: str | os.PathLike[str], *, keep: int):
    """Opens workdir/checkpoints, removing what a kill left half-written.

    Args:
      workdir: the run's folder.
      keep: number of latest checkpoints to keep.
    """
    self._folder = pathlib.Path(workdir).absolute() / FOLDER
    self._manager = ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep, create=True, cleanup_tmp_directories=True
      ),
      item_names=_ITEMS,
    )

  def latest_step(self) -> int | None:
    """Returns the step of the last complete checkpoint, None if there is none."""
    return self._manager.latest_step()

  def latest_path(self) -> pathlib.Path | None:
    """Waits for pending saves; returns the last complete checkpoint's folder, or None."""
    self._manager.wait_until_finished()
    step = self.latest_step()
    return None if step is None else self._folder / str(step)

  def save(self, state: state_lib.TrainState, *, data: Any, meta: Mapping[str, Any]) -> None:
    """Starts writing a checkpoint; the state may be donated as soon as this returns.

    Args:
      state: the training state.
      data: what the data iterator's get_state() gave (JSON-able, or bytes).
      meta: JSON-able facts to keep with it.
    """
    step = int(state.step)
    self._manager.save(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardSave(state.params),
        ema=ocp.args.StandardSave(state.ema),
        optimizer=ocp.args.StandardSave(state.opt_state),
        data=ocp.args.JsonSave(_data_to_json(data)),
        meta=ocp.args.JsonSave({**meta, "step": step}),
      ),
      force=True,
    )

  def restore(self, like: state_lib.TrainState) -> tuple[state_lib.TrainState, Any, dict[str, Any]]:
    """Returns the last checkpoint as (state, data iterator state, meta).

    Args:
      like: a state of the same structure, shapes and shardings; its values are not used.

    Raises:
      FileNotFoundError: if there is no checkpoint.
    """
    step = self.latest_step()
    if step is None:
      raise FileNotFoundError(f"No checkpoint in {self._folder}.")
    like = jax.tree.map(_abstract, like)
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardRestore(like.params),
        ema=ocp.args.StandardRestore(like.ema),
        optimizer=ocp.args.StandardRestore(like.opt_state),
        data=ocp.args.JsonRestore(),
        meta=ocp.args.JsonRestore(),
      ),
    )
    state = state_lib.TrainState(
      step=jnp.asarray(restored.meta["step"], jnp.int32),
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
  which: Literal["ema", "params"] = "ema",
  *,
  step: int | None = None,
) -> tuple[Any, dict[str, Any]]:
  """Returns the parameters of a trained run; safe while the run still goes on.

  Args:
    workdir: the run's folder.
    which: 'ema' for the moving average, 'params' for the last iterate.
    step: which checkpoint; the last one by default.

  Returns:
    (params, meta): a tree of arrays and a dict with step, seconds, the run's config, ...

  Raises:
    ValueError: if `which` is neither 'ema' nor 'params'.
    FileNotFoundError: if the folder has no such checkpoint.
  """
  if which not in ("ema", "params"):
    raise ValueError(f"which={which!r}: expected 'ema' or 'params'.")
  folder = pathlib.Path(workdir).absolute() / FOLDER
  if not folder.is_dir():
    raise FileNotFoundError(
      f"{workdir} holds no trained run: expected the folder {folder}. Train one first, or give "
      "the --workdir of a training."
    )
  options = ocp.CheckpointManagerOptions(read_only=True)
  with ocp.CheckpointManager(folder, options=options, item_names=_ITEMS) as manager:
    steps = sorted(manager.all_steps())
    if not steps or (step is not None and step not in steps):
      wanted = "a complete checkpoint" if step is None else f"a checkpoint of step {step}"
      raise FileNotFoundError(
        f"{folder} has no such thing as {wanted}; complete checkpoints there: {steps or 'none'}."
      )
    step = steps[-1] if step is None else step
    # Onto one device whatever the run was sharded over: the shapes are on disk.
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
      manager.item_metadata(step)[which],
    )
    restored = manager.restore(
      step,
      args=ocp.args.Composite(
        **{which: ocp.args.StandardRestore(like)}, meta=ocp.args.JsonRestore()
      ),
    )
  return restored[which], restored["meta"]


def prepare_workdir(workdir: str | os.PathLike[str]) -> pathlib.Path:
  """Makes the folder and checks that it can be written to; returns its absolute path.

  Raises:
    OSError: naming the folder, if it cannot be made or written to.
  """
  path = pathlib.Path(workdir).absolute()
  try:
    path.mkdir(parents=True, exist_ok=True)
    probe = path / f".writable-{os.getpid()}"
    probe.write_text("")
    probe.unlink()
  except OSError as error:
    raise OSError(
      f"The output folder {path} cannot be written to ({error.strerror or error}). Expected a "
      "folder that can be made and written: choose another workdir or change its permissions."
    ) from error
  return path


def check_config(
  workdir: str | os.PathLike[str],
  config: Mapping[str, Any],
  *,
  may_differ: Collection[str] = (),
) -> None:
  """Writes config.json, or checks that the one there is of the same run.

  Args:
    workdir: the run's folder.
    config: JSON-able, nested mappings allowed.
    may_differ: dotted names of keys (or of whole groups) that a resumed run may change.

  Raises:
    ValueError: listing every key that differs, with both values.
  """
  path = pathlib.Path(workdir) / CONFIG
  new = json.loads(json.dumps(config))
  if path.exists():
    old_flat = _flatten(json.loads(path.read_text(encoding="utf-8")))
    new_flat = _flatten(new)
    missing = "(absent)"
    different = [
      f"  {key}: {old_flat.get(key, missing)!r} there, {new_flat.get(key, missing)!r} now"
      for key in sorted(old_flat.keys() | new_flat.keys())
      if old_flat.get(key, missing) != new_flat.get(key, missing)
      and not any(key == name or key.startswith(name + ".") for name in may_differ)
    ]
    if different:
      raise ValueError(
        f"{workdir} holds a run of another configuration. Keys that differ:\n"
        + "\n".join(different)
        + "\nGive another workdir, or the values it was started with to continue it."
      )
  temporary = path.with_suffix(".json.tmp")
  temporary.write_text(json.dumps(new, indent=2, sort_keys=True) + "\n", encoding="utf-8")
  os.replace(temporary, path)


class Lock:
  """Keeps a second job out of a folder while this one runs; a dead job's lock is taken over."""

  _held: set[str] = set()

  def __init__(self, workdir: str | os.PathLike[str]):
    """Names the lock file; nothing is taken yet."""
    self._path = pathlib.Path(workdir).absolute() / LOCK

  def __enter__(self) -> "Lock":
    """Takes the lock.

    Raises:
      RuntimeError: if another job that is alive holds it.
    """
    me = {"pid": os.getpid(), "host": socket.gethostname(), "born": _born(os.getpid())}
    with self._exclusive() as file:
      holder = _parse(file.read())
      if holder is not None and self._alive(holder):
        raise RuntimeError(
          f"Another job (process {holder['pid']} on {holder['host']}) is training in "
          f"{self._path.parent}. Wait for it, stop it, or give another workdir. If you are sure "
          f"that it is gone, remove {self._path}."
        )
      file.truncate(0)
      file.write(json.dumps(me))
    Lock._held.add(str(self._path))
    return self

  def __exit__(self, *unused: Any) -> None:
    """Frees the lock."""
    Lock._held.discard(str(self._path))
    with self._exclusive():
      self._path.unlink()

  @contextlib.contextmanager
  def _exclusive(self) -> Iterator[TextIO]:
    """Opens the file for one job at a time, so that two cannot both find the folder free."""
    while True:
      with open(self._path, "a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
          current = os.path.samestat(os.fstat(file.fileno()), os.stat(self._path))
        except FileNotFoundError:
          current = False
        if not current:
          continue  # Its holder removed it while we waited: what we have is no longer the lock.
        file.seek(0)
        yield file
        return

  def _alive(self, holder: Mapping[str, Any]) -> bool:
    if holder["host"] != socket.gethostname():
      return True  # Cannot be known from here: the message says what to do.
    if holder["pid"] == os.getpid() and holder["born"] == _born(os.getpid()):
      return str(self._path) in Lock._held
    born = _born(holder["pid"])
    return born is not None and born == holder["born"]


def _born(pid: int) -> str | None:
  """Returns what tells a process from a later one of the same id; None if it is not alive."""
  try:
    # After the name in parentheses: state is the first field, the start time the twentieth.
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"
  except (OSError, IndexError):
    pass
  if os.path.exists("/proc/self/stat"):
    return None
  try:  # No /proc (macOS): an id in use is all that can be told.
    os.kill(pid, 0)
  except ProcessLookupError:
    return None
  except PermissionError:
    pass
  return "alive"


def _parse(text: str) -> dict[str, Any] | None:
  try:
    holder = json.loads(text)
    return holder if {"pid", "host", "born"} <= holder.keys() else None
  except (ValueError, AttributeError):
    return None  # Empty, or torn by a kill: nobody's.


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
  if not isinstance(tree, dict) or not tree:
    return {prefix: tree}
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    flat |= _flatten(value, f"{prefix}.{key}" if prefix else str(key))
  return flat


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _data_to_json(data: Any) -> dict[str, Any]:
  # grain's datasets give dicts, its DataLoader gives bytes of UTF-8 text.
  if isinstance(data, bytes):
    return {"kind": "bytes", "state": data.decode("utf-8")}
  return {"kind": "json", "state": data}


def _data_from_json(saved: Mapping[str, Any]) -> Any:
  return saved["state"].encode("utf-8") if saved["kind"] == "bytes" else saved["state"]
