"""The training loop: one jitted step, exact resume, and nothing lost when it is stopped.

`train(task, batches, workdir, config=...)` with the same arguments continues where it was,
bit for bit: parameters, average, optimiser, data order and keys, also after a SIGKILL.
"""

from collections.abc import Callable, Collection, Mapping
import dataclasses
import math
import os
import pathlib
import signal
import threading
from typing import Any, Protocol

import jax
import numpy as np

from wmpoe.training import checkpoints
from wmpoe.training import metrics_log
from wmpoe.training import state as state_lib

# Changing these does not make it another run: they say how long, how often and what is kept.
_MAY_DIFFER = (
  "steps", "max_seconds", "log_every", "checkpoint_every", "eval_every", "keep"
)  # fmt: skip


# Written where the step is built; named here too, as the words of the trainer's interface.
Task = state_lib.Task
TrainConfig = state_lib.TrainConfig
make_train_step = state_lib.make_train_step


class Batches(Protocol):
  """A data iterator whose position can be saved, such as grain's."""

  def __next__(self) -> Any:
    """Returns the next batch: a pytree of arrays [B ...]."""

  def get_state(self) -> Any:
    """Returns the position: JSON-able, or bytes of UTF-8 text."""

  def set_state(self, state: Any) -> None:
    """Goes to a position."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainResult:
  """How a training ended.

  Attributes:
    state: the state it ended with.
    step: updates done in all.
    reason: 'finished', 'time' (max_seconds) or 'signal' (SIGTERM, SIGINT).
    workdir: the run's folder.
  """

  state: state_lib.TrainState
  step: int
  reason: str
  workdir: pathlib.Path

  @property
  def finished(self) -> bool:
    """Whether all steps were done."""
    return self.reason == "finished"


class DivergedError(FloatingPointError):
  """The loss, the gradient or the update is not finite."""


def train(
  task: Task,
  batches: Batches,
  workdir: str | os.PathLike[str],
  *,
  config: TrainConfig,
  eval_fn: Callable[[Any, int], Mapping[str, float]] | None = None,
  run_config: Mapping[str, Any] | None = None,
  may_differ: Collection[str] = (),
  next_hint: str | None = None,
) -> TrainResult:
  """Trains, or continues what is in `workdir`.

  SIGTERM and SIGINT (when called from the main thread) end it after the current step with a
  checkpoint; a second one ends the process at once.

  Args:
    task: initial parameters and loss.
    batches: data iterator with get_state and set_state; dicts of numpy [B ...].
    workdir: the run's folder, made if missing.
    config: the options.
    eval_fn: `(ema, step) -> dict of numbers`, called every `eval_every` steps and at the end.
    run_config: JSON-able description of model and data, kept in config.json and in each
      checkpoint's meta and compared when resuming.
    may_differ: dotted names in `run_config` that a resumed run may change.
    next_hint: what to run next, said at the end.

  Returns:
    The last state and why it ended.

  Raises:
    OSError: the folder cannot be written to.
    RuntimeError: another job is in the folder, or the data ended before the last step.
    ValueError: the folder holds a run of another configuration, or a batch is misshapen.
    TypeError: `batches` cannot tell its position.
    DivergedError: something is not finite; names the step and the last good checkpoint.
  """
  if not (hasattr(batches, "get_state") and hasattr(batches, "set_state")):
    raise TypeError(
      f"batches is a {type(batches).__name__}: expected an iterator with get_state() and "
      "set_state(), such as iter(grain_dataset), so that a run can be resumed exactly."
    )
  folder = checkpoints.prepare_workdir(workdir)
  described = {"train": dataclasses.asdict(config), "run": dict(run_config or {})}
  free = [f"train.{name}" for name in _MAY_DIFFER] + [f"run.{name}" for name in may_differ]
  with checkpoints.Lock(folder), _Signals() as signals:
    checkpoints.check_config(folder, described, may_differ=free)
    run = _Run(task, batches, folder, config=config, described=described, eval_fn=eval_fn)
    try:
      reason = run.loop(signals)
    finally:
      run.close()
    run.say_end(reason, signals.name, next_hint)
  return TrainResult(state=run.state, step=run.step, reason=reason, workdir=folder)


class _Run:
  """One session of a training: the state and the things that watch it."""

  def __init__(
    self,
    task: Task,
    batches: Batches,
    folder: pathlib.Path,
    *,
    config: TrainConfig,
    described: Mapping[str, Any],
    eval_fn: Callable[[Any, int], Mapping[str, float]] | None,
  ):
    self.config, self.folder, self.batches = config, folder, batches
    self.described, self.eval_fn = described, eval_fn
    self.started = metrics_log.clock()
    init_key, self.key = jax.random.split(jax.random.key(config.seed))
    self.train_step = make_train_step(task, config)
    optimizer = state_lib.optimizer_of(config)
    make = jax.jit(lambda key: state_lib.create(task.init(key), optimizer))
    self.state = make(init_key)
    self.checkpointer = checkpoints.Checkpointer(folder, keep=config.keep)
    self.seconds_before = 0.0
    self.window = metrics_log.Window()
    if self.checkpointer.latest_step() is not None:
      self.state, data, meta = self.checkpointer.restore(self.state)
      batches.set_state(data)
      self.seconds_before = float(meta["seconds"])
      self.window = metrics_log.Window(meta["window"])
    self.step = self.saved_step = int(self.state.step)
    self.log = metrics_log.MetricsLog(folder, resume_step=self.step)
    self.progress = metrics_log.Progress(config.steps)
    if self.step:
      self.progress.say(f"continuing {folder} from step {self.step}")
    self.examples_per_batch: int | None = None
    self.mark = (self.step, metrics_log.clock())

  def loop(self, signals: "_Signals") -> str:
    """Runs to the end, the time limit or a signal; returns which."""
    config = self.config
    pending: tuple[int, Any] | None = None
    reason = "finished"
    while self.step < config.steps:
      if signals.name:
        reason = "signal"
      elif config.max_seconds is not None and self._elapsed() >= config.max_seconds:
        reason = "time"
      if reason != "finished":
        break
      batch = self._next_batch(pending)
      self.state, metrics = self.train_step(self.state, batch, self.key)
      self.step += 1
      # The device is busy with this step while the host looks at the one before.
      self._absorb(pending)
      pending = (self.step, metrics)
      last = self.step == config.steps
      evaluate = self.eval_fn is not None and (last or _due(self.step, config.eval_every))
      save = last or _due(self.step, config.checkpoint_every)
      if evaluate or save:
        # Nothing is evaluated or saved before its own step is known to be finite.
        self._absorb(pending)
        pending = None
      if evaluate:
        self._evaluate()
      if save:
        self._save()
    self._absorb(pending)
    if self.step > self.saved_step:
      self._save()
    self.checkpointer.wait()
    return reason

  def _elapsed(self) -> float:
    return metrics_log.clock() - self.started

  def _next_batch(self, pending: tuple[int, Any] | None) -> Any:
    try:
      batch = next(self.batches)
    except StopIteration:
      self._absorb(pending)
      if self.step > self.saved_step:
        self._save()
      raise RuntimeError(
        f"The data ended after step {self.step} of {self.config.steps}. Expected an endless "
        "iterator: repeat() the dataset, or ask for fewer steps. The last checkpoint is "
        f"{self.checkpointer.latest_path()}."
      ) from None
    if self.examples_per_batch is None:
      sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
      expected = self.config.batch_size
      if len(sizes) != 1 or () in sizes or (expected is not None and sizes != {(expected,)}):
        raise ValueError(
          f"The batch's leaves have leading axes {sorted(sizes)}: expected every one to be "
          f"{'the same' if expected is None else f'batch_size = {expected}'}. Batch the dataset "
          "accordingly."
        )
      self.examples_per_batch = sizes.pop()[0]
    return batch

  def _absorb(self, pending: tuple[int, Any] | None) -> None:
    """Fetches the metrics of a step, checks and logs them."""
    if pending is None:
      return
    step, device_metrics = pending
    metrics = {name: float(value) for name, value in jax.device_get(device_metrics).items()}
    bad = {k: metrics[k] for k in ("loss", "grad_norm", "update_norm") if _bad(metrics[k])}
    if bad:
      good = self.checkpointer.latest_path()
      raise DivergedError(
        f"Training diverged at step {step}: {bad}, expected finite numbers. Nothing of it was "
        f"saved; the last good checkpoint is {good or 'none, as none was made yet'}. Start anew "
        "in another workdir with a lower learning_rate, a longer warmup_steps or a smaller "
        "clip_norm, or look at the data of that step."
      )
    learning_rate = metrics.pop("learning_rate")
    self.window.add(metrics)
    if _due(step, self.config.log_every) or step == self.config.steps:
      now = metrics_log.clock()
      since_step, since = self.mark
      rate = (step - since_step) / max(now - since, 1e-9)
      self.mark = (step, now)
      means = self.window.means()
      loss = means["loss"]
      self.log.write(
        {
          "kind": "train",
          "step": step,
          "loss": means.pop("loss"),
          **means,
          "learning_rate": learning_rate,
          "steps_per_second": rate,
          "seconds": self.seconds_before + self._elapsed(),
          "examples": step * (self.examples_per_batch or 0),
        }
      )
      self.progress.report(step, loss, rate)

  def _evaluate(self) -> None:
    assert self.eval_fn is not None
    paused = metrics_log.clock()
    values = dict(self.eval_fn(self.state.ema, self.step))
    self.log.write({
      "kind": "eval", "step": self.step, **values,
      "seconds": self.seconds_before + self._elapsed(),
    })  # fmt: skip
    shown = "  ".join(f"{name} {float(value):.5g}" for name, value in values.items())
    self.progress.say(f"evaluated at step {self.step}: {shown}")
    self._leave_out(paused)

  def _save(self) -> None:
    paused = metrics_log.clock()
    # A checkpoint promises that every row up to its step is in the log.
    self.log.sync()
    self.checkpointer.save(
      self.state,
      data=self.batches.get_state(),
      meta={
        "seconds": self.seconds_before + self._elapsed(),
        "window": self.window.to_json(),
        "config": self.described,
      },
    )
    self.saved_step = self.step
    self._leave_out(paused)

  def _leave_out(self, since: float) -> None:
    """Keeps a pause out of the steps per second."""
    self.mark = (self.mark[0], self.mark[1] + metrics_log.clock() - since)

  def close(self) -> None:
    """Finishes pending saves and closes the files."""
    self.checkpointer.close()
    self.log.close()

  def say_end(self, reason: str, signal_name: str | None, next_hint: str | None) -> None:
    """Says what was written and what to run next."""
    folder = self.folder
    wrote = f"wrote {folder / checkpoints.FOLDER / str(self.step)} and {self.log.path}"
    if not self.step:
      wrote = "no step was done yet"
    if reason == "finished":
      hint = next_hint or f"wmpoe.training.checkpoints.load_params({str(folder)!r})"
      self.progress.say(f"finished all {self.step} steps; {wrote}; next: {hint}")
      return
    why = f"stopped by {signal_name}" if reason == "signal" else "stopped at the time limit"
    self.progress.say(
      f"{why} at step {self.step}/{self.config.steps}; {wrote}; run the same command again to "
      "continue"
    )


class _Signals:
  """Notes SIGTERM and SIGINT instead of dying of them; a second one gets its usual effect."""

  def __init__(self) -> None:
    self.name: str | None = None
    self._before: dict[int, Any] = {}

  def __enter__(self) -> "_Signals":
    # Python lets only the main thread handle signals; elsewhere the caller's handling stays.
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._before[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *unused: Any) -> None:
    self._restore()

  def _note(self, number: int, frame: Any) -> None:
    del frame
    self.name = signal.Signals(number).name
    self._restore()

  def _restore(self) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)
    self._before = {}


def _due(step: int, every: int | None) -> bool:
  return every is not None and step % every == 0


def _bad(value: float) -> bool:
  return not math.isfinite(value)
