"""What is trained and how one step changes it.

The state (step, parameters, moving average, optimiser), the options, and the jitted update.
"""

from collections.abc import Callable, Mapping
import dataclasses
import re
from typing import Any, Literal, Protocol

from flax import struct
import jax
import jax.numpy as jnp
import optax

from wmpoe import sharding

Schedule = Literal['cosine', 'constant']

_RESERVED = frozenset({
  'kind', 'step', 'loss', 'grad_norm', 'update_norm', 'learning_rate', 'steps_per_second',
  'seconds', 'examples',
})  # fmt: skip


class Task(Protocol):
  """What is to be learned: two pure functions."""

  def init(self, key: jax.Array) -> Any:
    """Returns the initial parameters."""

  def loss(self, params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns (scalar loss, dict of scalar metrics) of one batch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
  """Options of a training.

  Attributes:
    steps: number of updates.
    batch_size: examples of an update, over all devices; None takes what comes.
    accumulate: parts that a batch is computed in, one after the other, to save memory; the loss of
      an update is the mean of theirs.
    learning_rate: after the warm-up.
    warmup_steps: updates of linear warm-up.
    schedule: 'cosine' (to zero at `steps`) or 'constant'.
    weight_decay: decoupled, on matrices only.
    clip_norm: largest gradient norm, None for no clipping.
    b1: AdamW's first decay.
    b2: AdamW's second decay.
    ema_decay: of the parameters' moving average, in [0, 1).
    learn: pattern (`re.search`) of the paths of the parameters that learn, 'block_0/mlp_in/kernel';
      the others stay as they are. Empty for all.
    log_every: steps between rows of metrics.jsonl; a row holds means over them.
    checkpoint_every: steps between checkpoints; the last step always has one.
    eval_every: steps between evaluations, None for the last step only.
    keep: number of latest checkpoints kept.
    keep_best: number of checkpoints kept beside them, those of the lowest `best_metric`; with it,
      every evaluation makes a checkpoint.
    best_metric: name of a value that the evaluation gives; lower is better.
    seed: of the initial parameters and of the steps' keys.
    max_seconds: stop with a checkpoint after this wall time of one session, None for no limit.
  """

  steps: int
  batch_size: int | None = None
  accumulate: int = 1
  learning_rate: float = 1e-3
  warmup_steps: int = 100
  schedule: Schedule = 'cosine'
  weight_decay: float = 0.0
  clip_norm: float | None = 1.0
  b1: float = 0.9
  b2: float = 0.99
  ema_decay: float = 0.999
  learn: str = ''
  log_every: int = 50
  checkpoint_every: int = 500
  eval_every: int | None = None
  keep: int = 2
  keep_best: int = 0
  best_metric: str = 'validation_loss'
  seed: int = 0
  max_seconds: float | None = None

  def __post_init__(self) -> None:
    """Checks the ranges.

    Raises:
      ValueError: naming the option, what was given and what is expected.
    """
    for name in ('steps', 'accumulate', 'log_every', 'checkpoint_every', 'keep'):
      _expect(name, getattr(self, name), getattr(self, name) >= 1, 'at least 1')
    for name in ('batch_size', 'eval_every'):
      value = getattr(self, name)
      _expect(name, value, value is None or value >= 1, 'at least 1, or None')
    for name in ('clip_norm', 'max_seconds'):
      value = getattr(self, name)
      _expect(name, value, value is None or value > 0, 'more than 0, or None')
    _expect('learning_rate', self.learning_rate, self.learning_rate > 0, 'more than 0')
    for name in ('warmup_steps', 'weight_decay', 'keep_best'):
      _expect(name, getattr(self, name), getattr(self, name) >= 0, 'at least 0')
    for name in ('ema_decay', 'b1', 'b2'):
      _expect(name, getattr(self, name), 0 <= getattr(self, name) < 1, 'in [0, 1)')
    _expect(
      'schedule', self.schedule, self.schedule in ('cosine', 'constant'), "'cosine' or 'constant'"
    )


class TrainState(struct.PyTreeNode):
  """Everything a training step changes, as one pytree.

  Attributes:
    step: number of updates done so far, int32 scalar.
    params: the parameters being trained.
    ema: exponential moving average of `params`, same structure.
    opt_state: the state of the optax optimiser.
  """

  step: jax.Array
  params: Any
  ema: Any
  opt_state: Any


def create(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
  """Returns the state before the first step; the average starts at the parameters."""
  params = jax.tree.map(jnp.asarray, params)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    # The trainer donates the state, and one buffer cannot be donated twice: copy.
    ema=jax.tree.map(jnp.copy, params),
    opt_state=optimizer.init(params),
  )


def update_ema(ema: Any, params: Any, *, step: jax.Array, decay: float) -> Any:
  """Moves the average towards the parameters.

  ema <- d ema + (1 - d) params, d = min(decay, (1 + n) / (10 + n)) at update n = 0, 1, ...: the
  average forgets the initial parameters quickly and reaches its full memory later.

  Args:
    ema: the average so far.
    params: the new parameters.
    step: number of updates done before this one, n above.
    decay: the decay reached in the long run, in [0, 1).

  Returns:
    The new average.
  """
  n = step.astype(jnp.float32)
  d = jnp.minimum(decay, (1.0 + n) / (10.0 + n))
  return jax.tree.map(lambda e, p: (e + (1.0 - d) * (p - e)).astype(e.dtype), ema, params)


def learning_rate_schedule(
  *,
  learning_rate: float,
  warmup_steps: int,
  total_steps: int,
  schedule: Schedule = 'cosine',
) -> Callable[[Any], jax.Array]:
  """Returns the learning rate as a function of the step (0 for the first update).

  Linear warm-up over `warmup_steps` updates, the first of which already moves, then either
  constant or half a cosine that reaches zero at `total_steps`.

  Raises:
    ValueError: for an unknown schedule name.
  """
  if schedule not in ('cosine', 'constant'):
    raise ValueError(
      f"Unknown learning rate schedule {schedule!r}: expected 'cosine' or 'constant'."
    )

  def rate(step: Any) -> jax.Array:
    step = jnp.asarray(step, jnp.float32)
    warm = jnp.minimum(1.0, (step + 1.0) / max(warmup_steps, 1))
    if schedule == 'constant':
      return learning_rate * warm
    progress = jnp.clip((step - warmup_steps) / max(total_steps - warmup_steps, 1), 0.0, 1.0)
    return learning_rate * warm * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))

  return rate


def decay_mask(params: Any) -> Any:
  """Returns a tree of bools: True where weight decay applies.

  Decay is for matrices and larger kernels. Vectors, and whatever is called bias or scale or
  belongs to a norm (these may have more axes when layers are stacked), are left alone.
  """

  def decays(path: tuple[Any, ...], leaf: Any) -> bool:
    names = [str(getattr(k, 'key', getattr(k, 'name', k))).lower() for k in path]
    named_off = bool(names) and (
      names[-1] in ('bias', 'scale') or any('norm' in name for name in names)
    )
    return jnp.ndim(leaf) >= 2 and not named_off

  return jax.tree_util.tree_map_with_path(decays, params)


def learns(params: Any, pattern: str) -> Any:
  """Returns a tree of bools: True where a parameter's path, 'a/b/kernel', matches the pattern.

  Raises:
    ValueError: if none does.
  """
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator='/')
  mask = jax.tree_util.tree_map_with_path(
    lambda path, leaf: re.search(pattern, name(path)) is not None, params
  )
  if not any(jax.tree.leaves(mask)):
    some = [name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)][:3]
    raise ValueError(
      f"learn={pattern!r} matches the path of no parameter. They are named like {', '.join(some)}."
    )
  return mask


def loss_of(task: Task, config: TrainConfig) -> Callable[..., Any]:
  """Returns the task's loss as a training differentiates it: by the parameters that learn."""
  if not config.learn:
    return task.loss

  def loss(params: Any, batch: Any, key: jax.Array) -> Any:
    held = lambda learning, leaf: leaf if learning else jax.lax.stop_gradient(leaf)
    return task.loss(jax.tree.map(held, learns(params, config.learn), params), batch, key)

  return loss


def make_optimizer(
  *,
  learning_rate: float,
  warmup_steps: int,
  total_steps: int,
  schedule: Schedule = 'cosine',
  weight_decay: float = 0.0,
  clip_norm: float | None = 1.0,
  b1: float = 0.9,
  b2: float = 0.99,
) -> optax.GradientTransformation:
  """Returns AdamW (Loshchilov and Hutter, arXiv 1711.05101) with warm-up and clipping.

  Args:
    learning_rate: the rate after the warm-up.
    warmup_steps: updates of linear warm-up.
    total_steps: where the cosine ends; without effect for 'constant'.
    schedule: 'cosine' or 'constant' after the warm-up.
    weight_decay: decoupled decay, applied where `decay_mask` says.
    clip_norm: largest global norm of the gradient; None for no clipping.
    b1: decay of the first moment.
    b2: decay of the second moment.

  Raises:
    ValueError: for an unknown schedule name.
  """
  rate = learning_rate_schedule(
    learning_rate=learning_rate,
    warmup_steps=warmup_steps,
    total_steps=total_steps,
    schedule=schedule,
  )
  adamw = optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=decay_mask)
  if clip_norm is None:
    return adamw
  return optax.chain(optax.clip_by_global_norm(clip_norm), adamw)


def optimizer_of(config: TrainConfig) -> optax.GradientTransformation:
  """Returns the optimiser that a configuration describes; it keeps nothing of what stays."""
  optimizer = make_optimizer(
    learning_rate=config.learning_rate,
    warmup_steps=config.warmup_steps,
    total_steps=config.steps,
    schedule=config.schedule,
    weight_decay=config.weight_decay,
    clip_norm=config.clip_norm,
    b1=config.b1,
    b2=config.b2,
  )
  if not config.learn:
    return optimizer
  return optax.partition(
    {True: optimizer, False: optax.set_to_zero()}, lambda params: learns(params, config.learn)
  )


def make_train_step(
  task: Task, config: TrainConfig, *, layout: TrainState | None = None
) -> Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict[str, Any]]]:
  """Returns the jitted update `(state, batch, key) -> (state, metrics)`; it donates the state.

  The step's own key is fold_in(key, state.step). Metrics are those of the task plus loss,
  grad_norm (before clipping), update_norm and learning_rate.

  Args:
    task: what is learned.
    config: the options.
    layout: where the state lies, from `sharding.shardings`: gradients and the new state lie there,
      metrics on every device. By default wherever XLA leaves them.
  """
  optimizer = optimizer_of(config)
  rate = learning_rate_schedule(
    learning_rate=config.learning_rate,
    warmup_steps=config.warmup_steps,
    total_steps=config.steps,
    schedule=config.schedule,
  )

  loss_fn = loss_of(task, config)
  if layout is not None:
    loss_fn = sharding.whole_at_use(loss_fn, layout.params)

  def gradients(params: Any, batch: Any, key: jax.Array) -> tuple[tuple[jax.Array, Any], Any]:
    values, grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch, key)
    if layout is not None:
      grads = jax.lax.with_sharding_constraint(grads, layout.params)
    return values, grads

  def train_step(
    state: TrainState, batch: Any, key: jax.Array
  ) -> tuple[TrainState, dict[str, Any]]:
    step_key = jax.random.fold_in(key, state.step)
    compute = gradients if config.accumulate == 1 else _in_parts(gradients, config.accumulate)
    (loss, metrics), grads = compute(state.params, batch, step_key)
    _check_metrics(metrics)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = update_ema(state.ema, params, step=state.step, decay=config.ema_decay)
    metrics = {
      'loss': loss,
      **metrics,
      'grad_norm': optax.tree.norm(grads),
      'update_norm': optax.tree.norm(updates),
      'learning_rate': rate(state.step),
    }
    new = state.replace(step=state.step + 1, params=params, ema=ema, opt_state=opt_state)
    return new, metrics

  if layout is None:
    return jax.jit(train_step, donate_argnums=0)
  everywhere = layout.step
  return jax.jit(train_step, donate_argnums=0, out_shardings=(layout, everywhere))


def _in_parts(compute: Callable[..., Any], count: int) -> Callable[..., Any]:
  """Returns `compute(params, batch, key)` as the mean over `count` parts of the batch."""

  def mean(params: Any, batch: Any, key: jax.Array) -> Any:
    # Every count-th example is of one part: each device splits its own rows, and none moves.
    split = lambda x: jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1)
    parts = jax.tree.map(split, batch)

    def add(total: Any, numbered: Any) -> tuple[Any, None]:
      number, part = numbered
      values = compute(params, part, jax.random.fold_in(key, number))
      return jax.tree.map(jnp.add, total, values), None

    one = jax.eval_shape(compute, params, jax.tree.map(lambda x: x[0], parts), key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), one)
    total, _ = jax.lax.scan(add, zeros, (jnp.arange(count), parts))
    return jax.tree.map(lambda leaf: leaf / count, total)

  return mean


def _expect(name: str, given: Any, fine: bool, expected: str) -> None:
  if not fine:
    raise ValueError(f'TrainConfig.{name} = {given!r}: expected {expected}.')


def _check_metrics(metrics: Mapping[str, Any]) -> None:
  taken = sorted(_RESERVED & metrics.keys())
  if taken:
    raise ValueError(f"The task's metrics {taken} have names that the trainer uses: rename them.")
  shaped = {name: jnp.shape(value) for name, value in metrics.items() if jnp.shape(value)}
  if shaped:
    raise ValueError(f"The task's metrics {shaped} have axes: expected scalars, take means.")
