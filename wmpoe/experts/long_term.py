"""Long-term memory: the episode written into LoRA weights by test-time finetuning.

Of a place field (`place_field`) the weights can be solved for; the inner loop goes on from there.
Contrast (arXiv 2605.18813, eq. 4): the base with the episode's adapter against the base without;
before anything is written the two are the same, bit for bit.
"""

import dataclasses
import functools
from typing import Any

import chex
from flax import struct
from flax import traverse_util
import jax
import jax.numpy as jnp
import optax

from wmpoe.data import episode
from wmpoe.experts import expert
from wmpoe.experts import place_field
from wmpoe.experts import writing as writing_lib
from wmpoe.networks import lora as lora_lib

BASELINES = ('base', 'null', 'own')
READINGS = ('low_rank', 'merged')


@struct.dataclass
class LongTermState:
  """Memories of B episodes: every leaf has a leading episode axis.

  Attributes:
    lora: Adapters.
    opt_state: Optimiser states; writing goes on where it stopped. Empty if no steps are taken.
    history: Frames written so far (the newest `capacity` of them).
    step: [B] inner steps done.
    sums: Of the place field's regression, if it is solved for.
  """

  lora: Any
  opt_state: Any
  history: writing_lib.History
  step: jax.Array
  sums: Any = None


@struct.dataclass
class LongTerm:
  """Definition of the long-term memory.

  Attributes:
    params: The base's parameters.
    lora_init: Adapter every episode starts from (no episode axis, `b` zero).
    weight: The contrast's weight.
    model: Static; the base's model.
    spec: Static; rank, scale, targets.
    optimizer: Static; any optax transformation.
    regression: Optional; solves for the place field of all frames seen whenever some are appended.
    writing: Static; how a history is written.
    baseline: 'base' (context kept), 'null' (context nulled, no adapter) or 'own' (context kept, no
      adapter: for adapters of another network than the base it is composed with).
    reading: 'low_rank' or 'merged'; same output, different cost. Whole updates are merged.
    action_dim: A.
    pose_dim: P.
  """

  params: Any
  lora_init: Any
  weight: Any = 1.0
  regression: place_field.Regression | None = None
  model: expert.Model = struct.field(pytree_node=False, kw_only=True)
  spec: lora_lib.LoraSpec = struct.field(pytree_node=False, kw_only=True)
  optimizer: optax.GradientTransformation = struct.field(pytree_node=False, kw_only=True)
  writing: writing_lib.Writing = struct.field(pytree_node=False, kw_only=True)
  baseline: str = struct.field(pytree_node=False, default='base', kw_only=True)
  reading: str = struct.field(pytree_node=False, default='low_rank', kw_only=True)
  action_dim: int = struct.field(pytree_node=False, kw_only=True)
  pose_dim: int = struct.field(pytree_node=False, kw_only=True)

  @property
  def only_for_writing(self) -> tuple[str, ...]:
    """Fields of the state that reading does without: files may leave them out."""
    return 'opt_state', 'history', 'sums'

  def init(self, batch: int) -> LongTermState:
    """Empty memories for `batch` episodes."""
    one = LongTermState(
        lora=self.lora_init,
        opt_state=self.optimizer.init(self.lora_init) if self.writing.steps else (),
        history=writing_lib.empty_history(
            self.writing.capacity, self.model.network.frame_shape, self.action_dim, self.pose_dim,
            self.model.codec.dtype),
        step=jnp.zeros((), jnp.int32),
        sums=None if self.regression is None else self.regression.init())
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (batch, *jnp.shape(x))), one)

  def write(
      self, state: LongTermState, observation: episode.Observation, key: chex.PRNGKey
  ) -> LongTermState:
    """Appends the frames to the history and runs `writing.steps` inner steps on all of it.

    Args:
      state: Memories of B episodes.
      observation: Frames [B T ...].
      key: One key, or one per episode [B].
    """
    return self.fit(self.append(state, observation), key)

  def append(self, state: LongTermState, observation: episode.Observation) -> LongTermState:
    """Appends frames [B T ...] to the histories; of weights, only what is solved for changes."""
    state = dataclasses.replace(
        state, history=jax.vmap(writing_lib.append)(state.history, observation))
    if self.regression is None:
      return state
    sums = self.regression.add(state.sums, state.history, observation.frames.shape[1])
    # What inner steps have added stays.
    change = self.regression.solve(sums) - self.regression.solve(state.sums)
    return dataclasses.replace(state, lora=self._with_field(state.lora, change), sums=sums)

  def _with_field(self, lora: Any, rows: jax.Array) -> Any:
    """The adapters with rows [B R N*D] added to the place field."""
    field, name = lora['field'], 'update' if self.spec.full else 'b'
    rows = rows / (self.spec.table_scale * self.spec.scale)
    return {**lora, 'field': {**field, name: field[name].at[:, :rows.shape[1]].add(rows)}}

  def fit(
      self, state: LongTermState, key: chex.PRNGKey, steps: int | None = None
  ) -> LongTermState:
    """Runs inner steps on the histories as they are; in pieces or at once gives the same.

    Raises:
      ValueError: if steps are asked of a memory that takes none, `Writing.steps=0`.
    """
    if steps and not self.writing.steps:
      raise ValueError(
          f'fit got steps={steps}; this memory has Writing.steps=0, and so no optimiser state. Make'
          ' it with at least one step.')
    batch = state.step.shape[0]
    keys = jax.random.split(key, batch) if key.ndim == 0 else key
    lora, opt_state, losses = writing_lib.fit(
        self.model, self.params, self.spec, self.optimizer, self.writing, lora=state.lora,
        opt_state=state.opt_state, history=state.history, first_step=state.step, keys=keys,
        steps=steps)
    return dataclasses.replace(
        state, lora=lora, opt_state=opt_state, step=state.step + losses.shape[0])

  def merge(self, first: LongTermState, second: LongTermState, how: str) -> LongTermState:
    """One memory out of two, for reading only; see `lora.average` and `lora.concatenate`.

    Its history and optimiser state are empty: neither of the two belongs to the merged weights.
    A place field that was solved for is so again, of all that both have seen, where both have
    their sums.

    Raises:
      ValueError: for an unknown way.
    """
    lora = lora_lib.combine(first.lora, second.lora, how)
    blank = self.init(first.step.shape[0])
    merged = dataclasses.replace(blank, lora=lora, step=jnp.maximum(first.step, second.step))
    if self.regression is None:
      return merged
    sums = first.sums + second.sums
    solved = self._with_field(blank.lora, self.regression.solve(sums))
    both = (first.sums.count > 0) & (second.sums.count > 0)
    pick = jax.vmap(lambda there, new, old: jnp.where(there, new, old))
    return dataclasses.replace(merged, sums=sums, lora={
        **lora, 'field': jax.tree.map(
            functools.partial(pick, both), solved['field'], lora['field'])})

  def read(self, state: LongTermState, query: expert.Query) -> expert.Contrast:
    """The base with the episodes' adapters against the base without."""
    if self.reading == 'merged' or self.spec.full:
      adapters = jax.vmap(lambda a: lora_lib.merged(self.params, a, self.spec))(state.lora)
    else:
      adapters = lora_lib.scaled(state.lora, self.spec)
    negative = None
    if self.baseline != 'base':
      negative = expert.bind(self.model, self.params, query, null=self.baseline == 'null')
    return expert.Contrast(
        positive=expert.bind(self.model, self.params, query, lora=adapters),
        negative=negative, weight=self.weight, empty=_blank(state.lora))


def _blank(lora: Any) -> jax.Array:
  """Which episodes' adapters change nothing yet [B]."""
  flat = traverse_util.flatten_dict(lora)
  zero = [jnp.all(leaf == 0, axis=tuple(range(1, leaf.ndim)))
          for path, leaf in flat.items() if path[-1] in ('b', 'update')]
  return functools.reduce(jnp.logical_and, zero)


def create(
    key: chex.PRNGKey,
    model: expert.Model,
    params: Any,
    *,
    action_dim: int,
    pose_dim: int,
    spec: lora_lib.LoraSpec = lora_lib.LoraSpec(),
    optimizer: optax.GradientTransformation | None = None,
    writing: writing_lib.Writing = writing_lib.Writing(),
    lora_init: Any | None = None,
    regression: place_field.Regression | None = None,
    weight: Any = 1.0,
    baseline: str = 'base',
    reading: str = 'low_rank',
) -> LongTerm:
  """A long-term memory on top of a base.

  Args:
    key: Draws the adapters' `a` if no `lora_init` is given.
    model: The base's static model.
    params: The base's parameters.
    action_dim: A.
    pose_dim: P.
    spec: LoRA rank, scale, targets.
    optimizer: Any optax transformation; Adam at 3e-3 by default.
    writing: How a history is written.
    lora_init: Optional adapter to start from, with `b` zero.
    regression: Optional; solves for the place field, before inner steps if there are any.
    weight: The contrast's weight.
    baseline: 'base', 'null' or 'own'.
    reading: 'low_rank' or 'merged'.

  Raises:
    ValueError: for an unknown baseline, reading or LoRA target, a regression of what the base does
      not read, no inner steps where nothing is solved for, or a balance of latents.
  """
  expert.check_baseline(baseline, BASELINES)
  if reading not in READINGS:
    raise ValueError(f'Unknown reading {reading!r}; expected one of {", ".join(READINGS)}.')
  if regression is None and not writing.steps:
    raise ValueError(
        'Writing.steps=0 and no regression: nothing would be written. Take at least one step.')
  if writing.balance and model.codec.dtype != jnp.uint8:
    raise ValueError(
        f'Writing.balance={writing.balance} counts patches of frames that look alike, which is '
        'measured in pixels; this base works in latents. Leave it at 0.')
  if regression is not None:
    _check_regression(regression, params, spec)
  return LongTerm(
      params=params, lora_init=lora_lib.init(key, params, spec) if lora_init is None else lora_init,
      regression=regression, weight=weight, model=model, spec=spec,
      optimizer=optax.adam(3e-3) if optimizer is None else optimizer, writing=writing,
      baseline=baseline, reading=reading, action_dim=action_dim, pose_dim=pose_dim)


def _check_regression(
    regression: place_field.Regression, params: Any, spec: lora_lib.LoraSpec
) -> None:
  if 'field' not in spec.targets or regression.rank != spec.rank and not spec.full:
    raise ValueError(
        f'A place field of {regression.rank} rows is to be solved for; LoRA adapts '
        f"{', '.join(spec.targets)} with rank {spec.rank}. Add 'field', give both one rank, or "
        'leave the regression out.')
  known = regression.model.denoiser.network.field
  if regression.rank > known:
    raise ValueError(
        f'A place field of {regression.rank} rows is to be solved for; the base has {known} '
        'features of places. Lower the rank, or widen the field (compose.long_term.field).')
  ours = (params.get('map_embed') or {}).get('kernel')
  if ours is not regression.params['map_embed']['kernel']:
    raise ValueError(
        "A place field can be solved for where the base is the spatial expert's own network; this "
        'base is another one. Leave the regression out, and the field is trained.')
