"""A session: a world model with its running episodes, which can observe, imagine, fork and save.

Sessions are immutable: every method returns a new one and leaves the old one as it was. What does
not change is shared, so that a fork costs nothing, and you can go back to any old session.
"""

from collections.abc import Mapping
import dataclasses
import functools
import os
import pathlib
from typing import Any

import chex
import jax
import numpy as np

import wmpoe
from wmpoe import world_model
from wmpoe import zoo
from wmpoe.data import episode
from wmpoe.session import identity
from wmpoe.session import memory_file

_encode: Any = jax.jit(world_model.WorldModel.encode)


@jax.jit
def write(
    model: world_model.WorldModel, state: world_model.WorldState, encoded: episode.Observation,
    key: chex.PRNGKey,
) -> tuple[world_model.WorldState, chex.PRNGKey]:
  """The state after encoded frames were written into every memory, and the key to use next."""
  key, use = jax.random.split(key)
  return model.write(state, encoded, use), key


@functools.partial(jax.jit, static_argnames='steps')
def fit(memory: Any, state: Any, key: chex.PRNGKey, steps: int) -> Any:
  """`memory.fit`, compiled: the state after `steps` more inner steps."""
  return memory.fit(state, key, steps=steps)


@jax.jit
def _imagine(model, state, actions, poses, key):
  key, use = jax.random.split(key)
  after, frames = model.imagine(state, actions, poses, use)
  # Memories that the dream is not written into stay the arrays they were: none is copied.
  changed = {name: after.memories[name] for name in model.follows if name in after.memories}
  return after.recent, changed, frames, key


@functools.partial(jax.jit, static_argnames='batch')
def init(model: world_model.WorldModel, batch: int) -> world_model.WorldState:
  """`model.init`, compiled."""
  return model.init(batch)


_reset: Any = jax.jit(world_model.WorldModel.reset)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Session:
  """B running episodes of a world model.

  Attributes:
    model: The world model, composed as it dreams; use `dataclasses.replace` to give it another
      composition of the same experts at any time.
    state: What the episodes remember; every leaf has a leading episode axis.
    key: The key of the next random draws.
    parts: Hash of each part of the model.
    source: What `zoo.load` makes the model from, if it did: {'world', 'compose'}.
    observed: Frames observed of each episode [B].
    imagined: Frames imagined of each episode [B].
    lineage: Where the memory comes from: files, forks, merges, what was forgotten.
    writable: Whether more can be observed: not in a memory loaded without its history.
  """

  model: world_model.WorldModel
  state: world_model.WorldState
  key: jax.Array
  parts: Mapping[str, str]
  source: Mapping[str, Any] | None
  observed: np.ndarray
  imagined: np.ndarray
  lineage: tuple[str, ...] = ()
  writable: bool = True

  @classmethod
  def open(
      cls, model: world_model.WorldModel | str, *, compose: Mapping[str, Any] | None = None,
      batch: int = 1, seed: int = 0,
  ) -> 'Session':
    """Starts `batch` episodes with nothing seen and nothing remembered.

    Args:
      model: A world model, or the name of a packaged one: 'cards' or 'memory_maze'.
      compose: Overrides of how the packaged one is composed; see `zoo.load`.
      batch: B.
      seed: Of all random draws.

    Raises:
      ValueError: for an unknown name, an empty batch, or `compose` beside a model.
    """
    model, source = _model(model, compose)
    if batch < 1:
      raise ValueError(f'A session of {batch} episodes; expected at least 1.')
    none = np.zeros(batch, np.int64)
    return cls(
        model=model, state=init(model, batch), key=jax.random.key(seed),
        parts=identity.fingerprint(model), source=source, observed=none, imagined=none)

  @property
  def batch(self) -> int:
    """B, the number of episodes."""
    return len(self.observed)

  def observe(self, observation: episode.Observation) -> 'Session':
    """The session after every memory was shown true frames, uint8 [B T H W 3].

    Compiled once for each T.

    Raises:
      ValueError: if the observation does not fit the model or does not have B episodes, if a
        history would be shorter than the clips that inner steps learn from, or if the memory was
        loaded without its history.
    """
    if not self.writable:
      raise ValueError(
          'This memory came from a file without its history: it can be read, not written to. Save '
          'with history=True to continue observing later, or use reset() to start over.')
    self._check(observation.frames, 'frames')
    self.model.validate(observation)
    self._check_history(self.observed + observation.frames.shape[1])
    encoded = observation if self.model.latents is None else _encode(self.model, observation)
    state, key = write(self.model, self.state, encoded, self.key)
    return dataclasses.replace(
        self, state=state, key=key, observed=self.observed + observation.frames.shape[1])

  def imagine(self, actions: chex.Array, poses: chex.Array) -> tuple['Session', jax.Array]:
    """The session after a dream, and the dreamed frames.

    Args:
      actions: [B T A], the actions that lead to the frames; T a multiple of the model's chunk.
      poses: [B T P].

    Returns:
      `(session, frames [B T H W 3] uint8)`.

    Raises:
      ValueError: if a shape does not fit, or numbers are not finite.
    """
    self._check(actions, 'actions')
    self._check(poses, 'poses')
    for name, array in ('actions', actions), ('poses', poses):
      episode.check_condition(name, array)
    recent, changed, frames, key = _imagine(self.model, self.state, actions, poses, self.key)
    state = world_model.WorldState(
        recent=recent, memories={**self.state.memories, **changed})
    return dataclasses.replace(
        self, state=state, key=key, imagined=self.imagined + actions.shape[1]), frames

  def compose(self, *names: str, **options: Any) -> 'Session':
    """The session with only the named experts; see `WorldModel.compose`, also for the options."""
    model = self.model.compose(*names, **options)
    kept = {name: self.state.memories[name] for name in model.memories}
    return dataclasses.replace(
        self, model=model, state=dataclasses.replace(self.state, memories=kept))

  def reset(self, done: chex.Array | None = None) -> 'Session':
    """The session with new episodes where `done` [B] is true; by default everywhere."""
    done = np.ones(self.batch, bool) if done is None else np.asarray(done, bool)
    if done.shape != (self.batch,):
      raise ValueError(f'reset got done of shape {done.shape}; expected [{self.batch}].')
    return dataclasses.replace(
        self, state=_reset(self.model, self.state, done),
        observed=np.where(done, 0, self.observed), imagined=np.where(done, 0, self.imagined),
        lineage=() if done.all() else self.lineage, writable=self.writable or bool(done.all()))

  def fork(self, branch: int | None = None) -> 'Session':
    """Another session that remembers the same, at no cost: storage is shared.

    Args:
      branch: Without a number, the fork dreams what this session will dream; with one, it dreams
        differently.
    """
    if branch is None:
      return dataclasses.replace(self)
    return dataclasses.replace(
        self, key=jax.random.fold_in(self.key, branch),
        lineage=(*self.lineage, f'forked as {branch}'))

  def save(self, path: str | os.PathLike[str], *, history: bool = False) -> dict[str, Any]:
    """Writes the memory file or folder, whole or not at all; see `memory_file`, `memory_folder`.

    Where episodes are spread over the hosts of a pod every process must call it, and returns when
    all is there. For a file they are gathered and written by process 0; into a folder every host
    writes its own.

    Args:
      path: Destination: a file ending in `.npz`, or a folder without a suffix, which may be one of
        an object store.
      history: Also write what is needed to observe more and to forget: the frames a long-term
        memory was written from, and its optimiser's state.

    Returns:
      The file's card.

    Raises:
      ValueError: if history is asked of a memory that was loaded without it, or the name ends in
        something else.
      OSError: if the folder cannot be written to.
      FileExistsError: if there is a folder of that name; a file is replaced.
    """
    if history and not self.writable:
      raise ValueError('This memory was loaded without its history and cannot be saved with it.')
    names = ('base', 'latents', *self.model.memories)
    return memory_file.write(path, self.model, self.state, self.key, {
        'parts': {name: self.parts[name] for name in names if name in self.parts},
        'source': None if self.source is None else dict(self.source),
        'episodes': self.batch, 'observed': self.observed.tolist(),
        'imagined': self.imagined.tolist(), 'lineage': list(self.lineage),
        'wmpoe': wmpoe.__version__, 'created': memory_file.now()}, history=history)

  @classmethod
  def load(
      cls, path: str | os.PathLike[str],
      model: 'world_model.WorldModel | str | Session | None' = None,
      *, mesh: jax.sharding.Mesh | None = None,
  ) -> 'Session':
    """Loads a session from a file or folder: it continues, bit for bit, as the saved one would.

    Composition, sampler and random key are the file's.

    Args:
      path: A file or folder that `save` wrote.
      model: The model it was written with, or an open session of it, which saves computing the
        model's hash. Not needed if a packaged model was opened by its name.
      mesh: What to spread the episodes over, along 'data'; one device by default. From a folder
        every host then reads its own.

    Raises:
      ValueError: if the file is damaged, is not a memory file, or is the memory of another model.
      FileNotFoundError: if there is no such file.
    """
    facts = memory_file.card(path)
    source = facts['source']
    if isinstance(model, Session):
      whole, parts = model.model, model.parts
    else:
      if model is None and source is None:
        raise ValueError(
            f"'{path}' does not say how to load its model, which was not opened by name; give the "
            'model it was written with.')
      whole, own = _model(source['world'], source['compose']) if model is None else _model(
          model, None)
      source, parts = own or source, identity.fingerprint(whole)
    identity.check(parts, facts['parts'], where=f"'{path}'")
    composed = identity.restore(whole, facts['composition'])
    leaves, facts = memory_file.leaves_at(path, mesh)
    state, key = memory_file.restore(leaves, facts, composed, where=str(path))
    digest = f' {facts["sha256"][:12]}' if 'sha256' in facts else ''  # a folder has none
    lineage = (*facts['lineage'], f'{pathlib.PurePath(path).name}{digest}')
    return cls(
        model=composed, state=state, key=key, parts=parts, source=source,
        observed=np.asarray(facts['observed'], np.int64),
        imagined=np.asarray(facts['imagined'], np.int64), lineage=lineage,
        writable=facts['history'])

  def _check_history(self, frames: np.ndarray) -> None:
    for name, memory in self.model.memories.items():
      how = getattr(memory, 'writing', None)
      if how is not None and how.steps and frames.min() < how.target:
        raise ValueError(
            f'{name} would have a history of {frames.min()} frames; its inner steps learn from '
            f'clips of {how.target} frames. Observe more frames at once, or lower '
            'compose.long_term.writing.target.')

  def _check(self, array: Any, name: str) -> None:
    if np.shape(array)[:1] != (self.batch,):
      raise ValueError(
          f'{name} have shape {np.shape(array)}; this session runs {self.batch} episodes, expected '
          f'[{self.batch} T ...].')


def _model(
    model: world_model.WorldModel | str, compose: Mapping[str, Any] | None
) -> tuple[world_model.WorldModel, dict[str, Any] | None]:
  """The model, and what `zoo.load` makes it from if it was opened by name."""
  if isinstance(model, str):
    return zoo.load(model, compose=compose), {
        'world': model, 'compose': None if compose is None else dict(compose)}
  if compose is not None:
    raise ValueError(
        'compose overrides how a packaged model is composed; use model.compose on one of your own.')
  return model, None
