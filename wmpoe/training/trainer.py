"""The training loop: one jitted step, exact resume, and nothing lost when it is stopped.

`train(task, batches, workdir, config=...)` with the same arguments continues where it was,
bit for bit: parameters, average, optimiser, data order and keys, also after a SIGKILL. With a mesh
the same loop runs over many devices and processes; process 0 alone writes configuration and logs.
"""

from collections.abc import Callable, Collection, Mapping
import contextlib
import dataclasses
import math
import os
import signal
import threading
from typing import Any

from etils import epath  # comes with orbax, whose paths these are
import jax

from wmpoe import multihost
from wmpoe import sharding
from wmpoe import whole_file
from wmpoe.training import checkpoints
from wmpoe.training import inputs
from wmpoe.training import locks
from wmpoe.training import metrics_log
from wmpoe.training import state as state_lib
from wmpoe.training import workdir as workdir_lib

# Changing these does not make it another run: they say how long, how often and what is kept.
_MAY_DIFFER = (
  'steps', 'max_seconds', 'log_every', 'checkpoint_every', 'eval_every', 'keep', 'keep_best',
  'best_metric',
)  # fmt: skip


# Written where the step is built; named here too, as the words of the trainer's interface.
Batches = inputs.Batches
Task = state_lib.Task
TrainConfig = state_lib.TrainConfig
make_train_step = state_lib.make_train_step
loss_of = state_lib.loss_of


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
  workdir: epath.Path

  @property
  def finished(self) -> bool:
    """Whether all steps were done."""
    return self.reason == 'finished'


class DivergedError(FloatingPointError):
  """The loss, the gradient or the update is not finite."""


def train(
  task: Task,
  batches: Batches,
  workdir: str | os.PathLike[str],
  *,
  config: TrainConfig,
  mesh: jax.sharding.Mesh | None = None,
  eval_fn: Callable[[Any, int], Mapping[str, float]] | None = None,
  run_config: Mapping[str, Any] | None = None,
  may_differ: Collection[str] = (),
  next_hint: str | None = None,
) -> TrainResult:
  """Trains, or continues what is in `workdir`.

  SIGTERM and SIGINT (when called from the main thread) end it after the current step with a
  checkpoint; a second one ends the process at once. One that reaches any process of a pod ends all
  at the same step.

  Args:
    task: initial parameters and loss.
    batches: data iterator with get_state and set_state; dicts of numpy [B ...], in a pod of this
      process's rows (`sharding.batch_rows`).
    workdir: the run's folder, made if missing.
    config: the options.
    mesh: what state and batches are spread over, from `sharding.make_mesh`; one device by default.
      A run can go on on another mesh.
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
    ValueError: the folder holds a run of another configuration, a batch is misshapen, or the mesh
      does not divide it or a parameter.
    TypeError: `batches` cannot tell its position.
    DivergedError: something is not finite; names the step and the last good checkpoint.
  """
  if mesh is None:
    if jax.process_count() > 1:
      raise ValueError('Training in a pod needs a mesh of all its devices: sharding.make_mesh.')
    mesh = sharding.make_mesh({}, jax.devices()[:1])
  if mesh.shape['expert'] > 1:
    raise ValueError(
      f"The mesh has expert={mesh.shape['expert']}, but one expert is trained at a time: expected "
      "1. Put these devices on the data or fsdp axis."
    )
  data = inputs.Inputs(
    batches, mesh, batch_size=config.batch_size, accumulate=config.accumulate)
  folder = whole_file.anywhere(workdir)
  described = {'train': dataclasses.asdict(config), 'run': dict(run_config or {})}
  free = [f'train.{name}' for name in _MAY_DIFFER] + [f'run.{name}' for name in may_differ]
  with _Signals() as signals, contextlib.ExitStack() as stack:
    if multihost.is_main():
      workdir_lib.prepare(folder)
      stack.enter_context(locks.lock(folder, multihost.end_at_once))
      workdir_lib.check_config(folder, described, may_differ=free)
    # A folder in gs:// that a killed job left is ours after two minutes. Others that went on to
    # their first collective would wait for half a minute, where devices are CPUs, and then fail.
    multihost.barrier('workdir')
    run = _Run(task, data, folder, mesh, config=config, described=described, eval_fn=eval_fn)
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
    data: inputs.Inputs,
    folder: epath.Path,
    mesh: jax.sharding.Mesh,
    *,
    config: TrainConfig,
    described: Mapping[str, Any],
    eval_fn: Callable[[Any, int], Mapping[str, float]] | None,
  ):
    self.config, self.folder, self.data = config, folder, data
    self.described, self.eval_fn = described, eval_fn
    self.started = metrics_log.clock()
    keys = jax.jit(
      lambda: jax.random.split(jax.random.key(config.seed)),
      out_shardings=sharding.replicated(mesh))
    init_key, self.key = keys()
    optimizer = state_lib.optimizer_of(config)
    make = lambda key: state_lib.create(task.init(key), optimizer)
    shapes = jax.eval_shape(make, init_key)
    layout = sharding.shardings(mesh, shapes)
    self.train_step = make_train_step(task, config, layout=layout)
    self.checkpointer = checkpoints.Checkpointer(
      folder, keep=config.keep, keep_best=config.keep_best, best_metric=config.best_metric)
    self.seconds_before = 0.0
    self.window = metrics_log.Window()
    # What process 0 found: a listing of shared storage can be late on one host.
    latest = multihost.told(-1 if (found := self.checkpointer.latest_step()) is None else found)
    if latest < 0:
      self.state = jax.jit(make, out_shardings=layout)(init_key)
    else:
      self.state, position, meta = self.checkpointer.restore(
        jax.tree.map(checkpoints.placed, shapes, layout), latest)
      data.restore(position)
      self.seconds_before = float(meta['seconds'])
      self.window = metrics_log.Window(meta['window'])
    self.step = self.saved_step = int(self.state.step)
    main = multihost.is_main()
    self.log = (
      metrics_log.MetricsLog(folder, resume_step=self.step) if main else metrics_log.Silence())
    self.progress = metrics_log.Progress(config.steps, silent=not main)
    if self.step:
      self.progress.say(f'continuing {folder} from step {self.step}')
    self.mark = (self.step, metrics_log.clock())

  def loop(self, signals: '_Signals') -> str:
    """Runs to the end, the time limit or a signal; returns which."""
    config = self.config
    pending: tuple[int, Any] | None = None
    reason = 'finished'
    while self.step < config.steps:
      # Every process asks, and all hear the same: they stop at the same step.
      if multihost.agree(signals.name is not None):
        reason = 'signal'
      elif config.max_seconds is not None and multihost.agree(
        self._elapsed() >= config.max_seconds
      ):
        reason = 'time'
      if reason != 'finished':
        break
      batch = self._next_batch(pending)
      self.state, metrics = self.train_step(self.state, batch, self.key)
      self.step += 1
      # The device is busy with this step while the host prepares the next and looks at the last.
      if self.step < config.steps:
        self._fetch()
      self._absorb(pending)
      pending = (self.step, metrics)
      last = self.step == config.steps
      evaluate = self.eval_fn is not None and (last or _due(self.step, config.eval_every))
      save = last or _due(self.step, config.checkpoint_every) or (
        evaluate and config.keep_best > 0)
      if evaluate or save:
        # Nothing is evaluated or saved before its own step is known to be finite.
        self._absorb(pending)
        pending = None
      measured = self._evaluate() if evaluate else None
      if save:
        self._save(measured)
    self._absorb(pending)
    if self.step > self.saved_step:
      self._save()
    self.checkpointer.wait()
    return reason

  def _elapsed(self) -> float:
    return metrics_log.clock() - self.started

  def _fetch(self) -> None:
    # The end of the data matters once the batch is needed: `take` meets it again.
    with contextlib.suppress(StopIteration):
      self.data.fetch()

  def _next_batch(self, pending: tuple[int, Any] | None) -> Any:
    try:
      return self.data.take()
    except StopIteration:
      self._absorb(pending)
      if self.step > self.saved_step:
        self._save()
      raise RuntimeError(
        f'The data ended after step {self.step} of {self.config.steps}. Expected an endless '
        'iterator: repeat() the dataset, or ask for fewer steps. The last checkpoint is '
        f'{self.checkpointer.latest_path()}.'
      ) from None

  def _absorb(self, pending: tuple[int, Any] | None) -> None:
    """Fetches the metrics of a step, checks and logs them."""
    if pending is None:
      return
    step, device_metrics = pending
    metrics = {name: float(value) for name, value in jax.device_get(device_metrics).items()}
    bad = {k: metrics[k] for k in ('loss', 'grad_norm', 'update_norm') if _bad(metrics[k])}
    if bad:
      good = self.checkpointer.latest_path()
      raise DivergedError(
        f"Training diverged at step {step}: {bad}, expected finite numbers. Nothing of it was "
        f"saved; the last good checkpoint is {good or 'none, as none was made yet'}. Start anew "
        "in another workdir with a lower learning_rate, a longer warmup_steps or a smaller "
        "clip_norm, or look at the data of that step."
      )
    learning_rate = metrics.pop('learning_rate')
    self.window.add(metrics)
    if _due(step, self.config.log_every) or step == self.config.steps:
      now = metrics_log.clock()
      since_step, since = self.mark
      rate = (step - since_step) / max(now - since, 1e-9)
      self.mark = (step, now)
      means = self.window.means()
      loss = means['loss']
      self.log.write(
        {
          'kind': 'train',
          'step': step,
          'loss': means.pop('loss'),
          **means,
          'learning_rate': learning_rate,
          'steps_per_second': rate,
          'seconds': self.seconds_before + self._elapsed(),
          'examples': step * (self.data.batch_size or 0),
        }
      )
      self.progress.report(step, loss, rate)

  def _evaluate(self) -> dict[str, float]:
    assert self.eval_fn is not None
    paused = metrics_log.clock()
    values = dict(self.eval_fn(self.state.ema, self.step))
    self.log.write({
      'kind': 'eval', 'step': self.step, **values,
      'seconds': self.seconds_before + self._elapsed(),
    })  # fmt: skip
    shown = '  '.join(f'{name} {float(value):.5g}' for name, value in values.items())
    self.progress.say(f'evaluated at step {self.step}: {shown}')
    self._leave_out(paused)
    return values

  def _save(self, measured: Mapping[str, float] | None = None) -> None:
    paused = metrics_log.clock()
    # A checkpoint promises that every row up to its step is in the log.
    self.log.sync()
    self.checkpointer.save(
      self.state,
      data=self.data.position,
      meta={
        'seconds': self.seconds_before + self._elapsed(),
        'window': self.window.to_json(),
        'config': self.described,
      },
      measured=measured,
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
    wrote = f'wrote {folder / checkpoints.FOLDER / str(self.step)} and {self.log.path}'
    if not self.step:
      wrote = 'no step was done yet'
    if reason == 'finished':
      hint = next_hint or f'wmpoe.training.checkpoints.load_params({str(folder)!r})'
      self.progress.say(f'finished all {self.step} steps; {wrote}; next: {hint}')
      return
    by = signal_name or 'a signal to another process'
    why = f'stopped by {by}' if reason == 'signal' else 'stopped at the time limit'
    self.progress.say(
      f'{why} at step {self.step}/{self.config.steps}; {wrote}; run the same command again to '
      'continue'
    )


class _Signals:
  """Notes SIGTERM and SIGINT instead of dying of them; a second one gets its usual effect."""

  def __init__(self) -> None:
    self.name: str | None = None
    self._before: dict[int, Any] = {}

  def __enter__(self) -> '_Signals':
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
