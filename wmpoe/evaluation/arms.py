"""What the protocols share: arms and controls, writing memories with a clock beside it.

An arm is a choice of memories and of whose history is in them. Everything is measured against the
same base and the same episodes, so that arms can be compared pair by pair.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wmpoe import world_model
from wmpoe.data import episode
from wmpoe.session import live

_PIECE = 10  # inner steps between two signs of life

# (what is being done, share of it done in [0, 1])
Progress = Callable[[str, float], None]


def prefixed(progress: Progress, prefix: str) -> Progress:
  """Progress whose every text begins with `prefix`."""
  return lambda text, share: progress(prefix + text, share)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
  """What is measured: which memories, and what was written into them.

  Attributes:
    memories: Composed with the base.
    memory_of: 'own', 'other' (the next episode's) or 'shuffled' (own history in random order).
    new_order: In Memory Cards: imagine the second reveal in an order never walked.
    at_once: In Memory Maze: episodes imagined at a time, where that takes much memory; 0 for all.
    poses: In Memory Maze: 'true', or those of the 'odometry', of past and future alike.
    depth: In Memory Maze: of the 'network', or the 'true' one, where episodes say it.
    with_base: Whether the base takes part. One memory without it under the rule naive_product is
      that memory's own denoiser as the only model.
    rule: Another composition rule than the model's, by name.
    weights: Other weights than the model's, by memory.
    levelled: Whether weights depend on the noise level as the model says; else they do not.
  """

  memories: tuple[str, ...] = ()
  memory_of: str = 'own'
  new_order: bool = False
  poses: str = 'true'
  depth: str = 'network'
  with_base: bool = True
  rule: str | None = None
  weights: Mapping[str, float] | None = None
  levelled: bool = True
  at_once: int = 0

  def of(self, model: world_model.WorldModel) -> world_model.WorldModel:
    """The model composed as this arm is."""
    return model.compose(
        *('base',) * self.with_base, *self.memories, rule=self.rule, weights=self.weights,
        levels=None if self.levelled else {})


def standard_controls(memories: Sequence[str]) -> dict[str, Arm]:
  """Another episode's memory and a shuffled history, for everything composed."""
  if not memories:
    return {}
  return {
      'other_episode': Arm(memories=tuple(memories), memory_of='other'),
      'shuffled_history': Arm(memories=tuple(memories), memory_of='shuffled'),
  }


def memories_of(
    arm: Arm, own: world_model.WorldState, shuffled: world_model.WorldState
) -> dict[str, Any]:
  """The written memories an arm reads: its own, another episode's, or of the shuffled history."""
  source = shuffled if arm.memory_of == 'shuffled' else own
  memories = {name: source.memories[name] for name in arm.memories}
  if arm.memory_of == 'other':
    memories = jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), memories)
  return memories


@functools.partial(jax.jit, static_argnames='name')
def _write(model, name, state, history, key):
  return model.memories[name].write(state, history, key)


_append: Any = jax.jit(lambda memory, state, history: memory.append(state, history))


def timed(function: Any, *args: Any, **options: Any) -> tuple[Any, float]:
  """Calls a jitted function, compiled before the clock starts. Returns output and its seconds.

  A first call that took less than a second is repeated: its dispatch would be seen in the time.
  """
  programs = function._cache_size()
  function.lower(*args, **options).compile()  # which the call finds
  for _ in range(2):
    begun = time.perf_counter()
    out = jax.block_until_ready(function(*args, **options))
    seconds = time.perf_counter() - begun
    if seconds > 1.0 or function._cache_size() == programs:
      break
  return out, seconds


def fit(
    memory: Any, state: Any, keys: jax.Array, steps: int, progress: Progress,
    name: str = 'long_term',
) -> tuple[Any, float]:
  """Runs inner steps a few at a time, to report progress; gives what a single call gives.

  Returns:
    The written state and the seconds it took, compilation excluded.
  """
  spent = 0.0
  for done in range(0, steps, _PIECE):
    state, seconds = timed(live.fit, memory, state, keys, min(_PIECE, steps - done))
    spent += seconds
    progress(f'writing {name}', min(1.0, (done + _PIECE) / steps))
  return state, spent


def write(
    model: world_model.WorldModel,
    history: episode.Observation,
    key: jax.Array,
    progress: Progress,
) -> tuple[world_model.WorldState, dict[str, float]]:
  """Writes the histories [E H ...] into every memory of the model.

  Returns:
    The state, and the milliseconds per episode of each memory, compilation excluded.
  """
  batch = history.frames.shape[0]
  state = model.init(batch)
  memories, cost = {}, {}
  for index, (name, memory) in enumerate(model.memories.items()):
    empty, key_memory = state.memories[name], jax.random.fold_in(key, index)
    if hasattr(memory, 'fit'):
      current, begun = timed(_append, memory, empty, history)
      keys = jax.random.split(key_memory, batch)
      memories[name], seconds = fit(memory, current, keys, memory.writing.steps, progress, name)
      seconds += begun
    else:
      memories[name], seconds = timed(_write, model, name, empty, history, key_memory)
    progress(f'writing {name}', 1.0)
    cost[name] = 1e3 * seconds / batch
  return world_model.WorldState(recent=state.recent.push(history), memories=memories), cost


def write_own_and_shuffled(
    model: world_model.WorldModel, history: episode.Observation, *, arms: Sequence[Arm], seed: int,
    say: Progress,
) -> tuple[world_model.WorldState, world_model.WorldState, dict[str, float]]:
  """Writes the histories of one seed, and once more in random order if an arm asks for that.

  Returns:
    `(own, shuffled, cost)`: the written states (the same one twice if none asks) and the
    milliseconds per episode of each memory.
  """
  key = jax.random.fold_in(jax.random.key(seed), 0)
  own, cost = write(model, history, key, say)
  asked = shuffled_memories(arms)
  if not asked:
    return own, own, cost
  mixed, _ = write(
      model.compose('base', *asked), shuffle(history, seed), key,
      prefixed(say, 'shuffled history, '))
  return own, mixed, cost


def shuffled_memories(arms: Sequence[Arm]) -> set[str]:
  """The memories that have to be written from shuffled histories, too."""
  return {name for arm in arms if arm.memory_of == 'shuffled' for name in arm.memories}


def shuffle(history: episode.Observation, seed: int) -> episode.Observation:
  """Each episode's frames, with their actions and poses, in a random order."""
  rng = np.random.default_rng(seed)
  batch, length = history.frames.shape[:2]
  order = np.stack([rng.permutation(length) for _ in range(batch)])
  return jax.tree.map(lambda x: np.take_along_axis(
      np.asarray(x), order.reshape(batch, length, *(1,) * (x.ndim - 2)), axis=1), history)
