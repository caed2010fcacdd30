"""Long-term memory: the episode written into LoRA weights by test-time finetuning.

Contrast (arXiv 2605.18813, eq. 4): the base with the episode's adapter against the base without;
before anything is written the two are the same, bit for bit.
"""

import dataclasses
from typing import Any

import chex
from flax import struct
import jax
import jax.numpy as jnp
import optax

from wmpoe.data import episode
from wmpoe.experts import expert
from wmpoe.experts import writing as writing_lib
from wmpoe.networks import lora as lora_lib

BASELINES = ('base', 'null', 'own')
READINGS = ('low_rank', 'merged')


@struct.dataclass
class LongTermState:
  """Memories of B episodes: every leaf has a leading episode axis.

  Attributes:
    lora: Adapters.
    opt_state: Optimiser states; writing goes on where it stopped.
    history: Frames written so far (the newest `capacity` of them).
    step: [B] inner steps done.
  """

  lora: Any
  opt_state: Any
  history: writing_lib.History
  step: jax.Array


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
    writing: Static; how a history is written.
    baseline: 'base' (context kept), 'null' (context nulled, no adapter) or 'own' (context kept, no
      adapter: for adapters of another network than the base it is composed with).
    reading: 'low_rank' or 'merged'; same output, different cost.
    action_dim: A.
    pose_dim: P.
  """

  params: Any
  lora_init: Any
  weight: Any = 1.0
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
    return 'opt_state', 'history'

  def init(self, batch: int) -> LongTermState:
    """Empty memories for `batch` episodes."""
    one = LongTermState(
        lora=self.lora_init,
        opt_state=self.optimizer.init(self.lora_init),
        history=writing_lib.empty_history(
            self.writing.capacity, self.model.network.frame_shape, self.action_dim, self.pose_dim,
            self.model.codec.dtype),
        step=jnp.zeros((), jnp.int32))
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
    """Appends frames [B T ...] to the histories without writing weights."""
    return dataclasses.replace(
        state, history=jax.vmap(writing_lib.append)(state.history, observation))

  def fit(
      self, state: LongTermState, key: chex.PRNGKey, steps: int | None = None
  ) -> LongTermState:
    """Runs inner steps on the histories as they are; in pieces or at once gives the same."""
    batch = state.step.shape[0]
    keys = jax.random.split(key, batch) if key.ndim == 0 else key
    lora, opt_state, losses = writing_lib.fit(
        self.model, self.params, self.spec, self.optimizer, self.writing, lora=state.lora,
        opt_state=state.opt_state, history=state.history, first_step=state.step, keys=keys,
        steps=steps)
    return dataclasses.replace(
        state, lora=lora, opt_state=opt_state, step=state.step + losses.shape[0])

  def merge(self, first: LongTermState, second: LongTermState, how: str) -> LongTermState:
    """One memory out of two; see `lora.average` and `lora.concatenate`. It is for reading only.

    Its history and optimiser state are empty: neither of the two belongs to the merged weights.

    Raises:
      ValueError: for an unknown way.
    """
    lora = lora_lib.combine(first.lora, second.lora, how)
    return dataclasses.replace(
        self.init(first.step.shape[0]), lora=lora, step=jnp.maximum(first.step, second.step))

  def read(self, state: LongTermState, query: expert.Query) -> expert.Contrast:
    """The base with the episodes' adapters against the base without."""
    if self.reading == 'merged':
      adapters = jax.vmap(lambda a: lora_lib.merged(self.params, a, self.spec))(state.lora)
    else:
      adapters = lora_lib.scaled(state.lora, self.spec)
    negative = None
    if self.baseline != 'base':
      negative = expert.bind(self.model, self.params, query, null=self.baseline == 'null')
    return expert.Contrast(
        positive=expert.bind(self.model, self.params, query, lora=adapters),
        negative=negative, weight=self.weight, empty=state.step == 0)


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
    weight: The contrast's weight.
    baseline: 'base', 'null' or 'own'.
    reading: 'low_rank' or 'merged'.

  Raises:
    ValueError: for an unknown baseline, reading or LoRA target.
  """
  expert.check_baseline(baseline, BASELINES)
  if reading not in READINGS:
    raise ValueError(f'Unknown reading {reading!r}; expected one of {", ".join(READINGS)}.')
  return LongTerm(
      params=params, lora_init=lora_lib.init(key, params, spec) if lora_init is None else lora_init,
      weight=weight, model=model, spec=spec,
      optimizer=optax.adam(3e-3) if optimizer is None else optimizer, writing=writing,
      baseline=baseline, reading=reading, action_dim=action_dim, pose_dim=pose_dim)
