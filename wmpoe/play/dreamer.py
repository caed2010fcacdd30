"""The dreamer: a session, a world and the settings of the page, one step at a time.

It knows nothing of networks and threads: `server` and tests drive it. Reality and dream are two
sessions that share what they remember: waking up returns to the first.
"""

from collections import deque
from collections.abc import Callable, Collection
import dataclasses
import functools
import itertools
import pathlib
import time
from typing import Any

import jax
import numpy as np

from wmpoe import recipes
from wmpoe import session as session_lib
from wmpoe import whole_file
from wmpoe import world_model
from wmpoe.data import episode
from wmpoe.evaluation import animation
from wmpoe.evaluation import arms
from wmpoe.evaluation import film
from wmpoe.experts import composition
from wmpoe.play import overlay
from wmpoe.play import protocol
from wmpoe.play import settings as settings_lib
from wmpoe.play import worlds

_BACK, _BRANCHES, _FILM, _PATH = 300, 8, 2000, 2000


@functools.partial(jax.jit, static_argnames='remember')
def _glance(model, state, observation, key, remember):
  """The state after a look at frames; a long-term memory keeps them to be written later."""
  encoded, memories = model.encode(observation), dict(state.memories)
  for index, (name, memory) in enumerate(sorted(model.memories.items()) if remember else ()):
    if hasattr(memory, 'append'):
      memories[name] = memory.append(memories[name], encoded)
    else:
      memories[name] = memory.write(memories[name], encoded, jax.random.fold_in(key, index))
  return world_model.WorldState(recent=state.recent.push(encoded), memories=memories)


def _learns_by_steps(memory: Any) -> bool:
  """Whether a memory is written by inner steps, and not while frames are shown to it."""
  return hasattr(memory, 'fit') and memory.writing.steps > 0


@dataclasses.dataclass(frozen=True)
class _Mark:
  """A moment to go back to: sessions are immutable, so it costs next to nothing."""

  session: session_lib.Session
  bare: session_lib.Session
  place: worlds.Place
  path: tuple[list[float], ...]
  followed: int


Event = tuple[dict[str, Any], dict[str, np.ndarray]]  # what to tell, and pictures by name


class Dreamer:
  """See the module; `apply` and `advance` return what to show."""

  def __init__(
      self, session: session_lib.Session, world: worlds.World, folder: pathlib.Path, *,
      say: Callable[[str], None] = lambda text: None):
    """Starts awake, at the beginning of reality.

    Args:
      session: One episode; whatever it remembers already, it keeps.
      world: Of the same kind.
      folder: Where memories and films are saved; nothing is written anywhere else.
      say: Called with a text before something that takes a while.
    """
    model = session.model
    self.world, self.folder, self._say = world, folder, say
    self.settings = settings_lib.Settings.of(model)
    self.known = protocol.commands(
        tuple(model.memories) or ('none',), tuple(composition.RULES), tuple(recipes.SAMPLERS))
    self._session = self._awake = session
    self._bare = session.compose('base')
    self._place, self._followed = world.now().place, 0
    self._path: deque[list[float]] = deque(maxlen=_PATH)
    self._walked: deque[list[float]] = deque(maxlen=_PATH)
    self._back: deque[_Mark] = deque(maxlen=_BACK)
    self._branches: list[_Mark] = []
    self._film: list[dict[str, np.ndarray]] | None = None
    self._held: tuple[str, ...] = ()
    self._taps: deque[tuple[str, ...]] = deque(maxlen=16)
    self._watching, self._compiled = 0, set[Any]()
    self._read_ms = self._write_ms = self._fps = 0.0
    self._unwritten = 0
    self._look(world.now())

  # --------------------------------------------------------------------------------------- asked

  def hello(self) -> dict[str, Any]:
    """Everything a page needs when it opens, or after more than one thing changed."""
    return {
        'kind': 'hello', 'world': self.world.name, 'title': self.world.title,
        'hint': self.world.hint, 'can_follow': self.world.can_follow, 'plan': self.world.plan(),
        'rules': list(composition.RULES), 'samplers': list(recipes.SAMPLERS),
        'walked': list(self._walked), 'path': list(self._path), **self.status()}

  def status(self) -> dict[str, Any]:
    """Settings and counters."""
    return {
        'settings': dataclasses.asdict(self.settings), 'branches': len(self._branches),
        'recording': self._film is not None, 'observed': int(self._awake.observed[0]),
        'unwritten': self._unwritten, 'back': len(self._back), 'pose': self._place.pose.tolist(),
        'fps': self._fps, 'read_ms': self._read_ms, 'write_ms': self._write_ms}

  def wants_step(self) -> bool:
    """Whether there is something to do without being asked again."""
    moving = self._held or self.settings.run
    return bool(self._watching or self._taps or (moving and not self.settings.pause))

  def apply(self, command: protocol.Command) -> list[Event]:
    """Does what the page asks.

    Raises:
      ValueError: if it cannot be done now, saying why.
      OSError: if a file can't be written.
    """
    settings, args = self.settings, dict(command.args)
    do = command.do
    if do in ('rule', 'sampler', 'mode'):
      args = {do: args['name']}
    elif do in ('steps', 'chunk'):
      args = {do: args['value']}
    elif do in ('compare', 'overlay', 'remember', 'follow', 'run', 'pause'):
      args = {do: args['on']}
    elif do in ('weight', 'expert'):
      field, value = ('weights', args.get('value')) if do == 'weight' else ('on', args.get('on'))
      args = {field: {**getattr(settings, field), args['expert']: value}}
    else:
      return getattr(self, f'_{do}')(**args)
    if args.get('follow') and not self.world.can_follow:
      raise ValueError('This reality is not recorded: there is nothing to follow.')
    self.settings = dataclasses.replace(settings, **args)
    if do == 'mode' and self.settings.mode != settings.mode:
      return self._switch()
    return [({'kind': 'status', **self.status()}, {})]

  def _keys(self, held: tuple[str, ...]) -> list[Event]:
    self._held = held
    return []

  def _tap(self, key: str) -> list[Event]:
    self._taps.append((key,))
    return []

  def _step(self) -> list[Event]:
    self._taps.append(self._held)
    return []

  def _watch(self, frames: int) -> list[Event]:
    if self.settings.mode != 'real':
      raise ValueError('Only reality can be watched: wake up first.')
    self._watching = frames
    return []

  def _switch(self) -> list[Event]:
    """Falls asleep where reality stands, or wakes up there."""
    self._watching = 0
    if self.settings.mode == 'dream':
      self._write()
    self._session, self._place = self._awake, self.world.now().place
    self._bare = self._recent_of(self._awake)
    self._path.clear()
    self._followed = 0
    self._back.clear()
    return [(self.hello(), self._pictures(self.world.now().frame))]

  def _write(self) -> list[Event]:
    """Writes what was seen into the long-term memory's weights."""
    session, model = self._awake, self._awake.model
    for name, memory in model.memories.items():
      if self._unwritten and _learns_by_steps(memory):
        key, use = jax.random.split(session.key)
        state, seconds = arms.fit(
            memory, session.state.memories[name], use[None], memory.writing.steps,
            lambda text, share: self._say(f'{text.replace("_", " ")}, {100 * share:.0f} %'))
        self._write_ms = 1e3 * seconds
        session = dataclasses.replace(session, key=key, state=dataclasses.replace(
            session.state, memories={**session.state.memories, name: state}))
    self._unwritten, self._awake = 0, session
    if self.settings.mode == 'real':
      self._session = session
    return [({'kind': 'status', **self.status()}, {})]

  def _forget(self) -> list[Event]:
    """Forgets everything, forks included; reality continues where it is."""
    fresh = self._awake.reset()
    self._awake = dataclasses.replace(fresh, state=dataclasses.replace(
        fresh.state, recent=self._awake.state.recent))
    self._unwritten = 0
    self._walked.clear()
    self._branches.clear()
    return self._switch()

  def _rewind(self, frames: int) -> list[Event]:
    if not self._back:
      raise ValueError('This dream cannot be rewound any further.')
    mark = self._back[-1]
    for _ in range(min(frames, len(self._back))):
      mark = self._back.pop()
    return self._return(mark)

  def _fork(self) -> list[Event]:
    if self.settings.mode != 'dream':
      raise ValueError('Only dreams can be forked: fall asleep first.')
    self._branches = [*self._branches, self._mark()][-_BRANCHES:]
    self._session = self._session.fork(len(self._branches))
    return [({'kind': 'status', **self.status()}, {})]

  def _branch(self, index: int) -> list[Event]:
    if index >= len(self._branches):
      raise ValueError(f'There are {len(self._branches)} forks.')
    self.settings = dataclasses.replace(self.settings, mode='dream')
    return self._return(self._branches[index])

  def _save(self) -> list[Event]:
    path, session = self._free('memory', '.npz'), self._session
    # Composed as the page has it; an expert that is off keeps what it remembers, at weight 0.
    session = dataclasses.replace(session, model=self.settings.compose(session.model))
    session.save(path, history=session.writable)
    return [self._wrote(path)]

  def _record(self, on: bool) -> list[Event]:
    if on:
      self._film = []
      return [({'kind': 'status', **self.status()}, {})]
    frames, self._film = self._film, None
    if not frames:
      return [({'kind': 'status', **self.status()}, {})]
    rows = {name: np.stack([f[name] for f in frames if name in f]) for name in frames[0]}
    rows = {name: row for name, row in rows.items() if len(row) == len(frames)}
    gif, strip = self._free('film', '.gif'), film.Strip(rows=rows, title=self.world.title)
    return [self._wrote(animation.write_gif(gif, strip, fps=5)),
            self._wrote(animation.write_mp4(gif.with_suffix('.mp4'), strip, fps=5))]

  # ---------------------------------------------------------------------------------------- steps

  def advance(self) -> list[Event]:
    """One look at reality, or one chunk of the dream; returns what to show for each frame."""
    keys = self._taps.popleft() if self._taps else self._held
    if self.settings.mode == 'real':
      return self._live(keys)
    return self._dream(keys)

  def _live(self, keys: Collection[str]) -> list[Event]:
    self._watching = max(0, self._watching - 1)
    moment = self.world.live(keys)
    if moment is None:
      self._watching, self._held = 0, ()
      self.settings = dataclasses.replace(self.settings, run=False)
      raise ValueError('Reality has ended: fall asleep, or remember it.')
    self._look(moment)
    self._keep({'shown': moment.frame})
    return [({'kind': 'frame', **self.status()}, self._pictures(moment.frame))]

  def _look(self, moment: worlds.Moment) -> None:
    """Takes a real frame into the context and, if asked, into the memories."""
    session, remember = self._awake, self.settings.remember and self._awake.writable
    begun, (key, use) = time.perf_counter(), jax.random.split(session.key)
    state = jax.block_until_ready(_glance(session.model, session.state, episode.Observation(
        frames=moment.frame[None, None], actions=moment.action[None, None],
        poses=moment.place.pose[None, None]), use, remember))
    self._write_ms = 1e3 * (time.perf_counter() - begun)
    self._awake = self._session = dataclasses.replace(
        session, state=state, key=key, observed=session.observed + remember)
    self._unwritten += remember and any(map(_learns_by_steps, session.model.memories.values()))
    self._place = moment.place
    self._walked.append(moment.place.pose.tolist())

  def _dream(self, keys: Collection[str]) -> list[Event]:
    settings, model = self.settings, self.settings.compose(self._session.model)
    actions, places, truths = [], [], []
    place = self._place
    for i in range(settings.chunk):
      moment = self.world.ahead(self._followed + i + 1) if settings.follow else None
      if settings.follow and moment is None:
        self._held = ()
        self.settings = dataclasses.replace(settings, run=False, follow=False)
        raise ValueError('The recording has ended: from here on, the keys steer.')
      action, place = (
          (moment.action, moment.place) if moment else self.world.move(place, keys))
      actions.append(action)
      places.append(place)
      truths.append(moment.frame if moment else self.world.nearest(place))
    asked = np.stack(actions)[None], np.stack([p.pose for p in places])[None]
    self._back.append(self._mark())
    first = self._announce(model)
    before = dataclasses.replace(self._session, model=model)
    begun = time.perf_counter()
    after, imagined = before.imagine(*asked)
    frames = np.asarray(imagined[0])
    read_ms = 1e3 * (time.perf_counter() - begun) / settings.chunk
    pictures: list[dict[str, np.ndarray]] = [{'dream': frame} for frame in frames]
    if settings.compare:
      self._bare, bare = dataclasses.replace(
          self._bare, model=settings.compose(self._bare.model)).imagine(*asked)
      for picture, frame in zip(pictures, np.asarray(bare[0]), strict=True):
        picture['bare'] = frame
    for picture, truth in zip(pictures, truths, strict=True):
      if truth is not None:
        picture['truth'] = truth
    if settings.overlay and model.memories:
      drawn = overlay.strength(model, before.state, episode.Observation(
          frames=frames[None], actions=asked[0], poses=asked[1]), before.key)
      # One scale for all experts, so that they can be compared; what is next to nothing stays dark.
      top = max(0.02, *(float(np.percentile(found, 99)) for found in drawn.values()))
      for name, found in drawn.items():
        for picture, heat in zip(pictures, np.asarray(found[0]), strict=True):
          picture[f'drew:{name}'] = np.clip(255 * heat / top, 0, 255).astype(np.uint8)
    rate = settings.chunk / (time.perf_counter() - begun)
    if not first:  # a step that compiled says nothing about the next ones
      self._read_ms = read_ms
      self._fps = rate if not self._fps else 0.7 * self._fps + 0.3 * rate
    self._session = dataclasses.replace(after, model=self._session.model)
    self._place, self._followed = place, self._followed + settings.chunk * settings.follow
    events = []
    for step, picture in zip(places, pictures, strict=True):
      self._path.append(step.pose.tolist())
      self._keep({title: picture[name] for title, name in (
          ('shown', 'dream'), ('without memory', 'bare')) if name in picture})
      events.append(({'kind': 'frame', **self.status(), 'pose': step.pose.tolist()}, picture))
    return events

  # -------------------------------------------------------------------------------------- helpers

  def _announce(self, model: world_model.WorldModel) -> bool:
    """Whether this is the first step with these settings, which is compiled and takes longer."""
    program = (model.rule, model.sampler, model.num_steps, model.chunk, self.settings.compare,
               self.settings.overlay)
    if program in self._compiled:
      return False
    self._compiled.add(program)
    self._say('compiling this composition, once')
    return True

  def _recent_of(self, session: session_lib.Session) -> session_lib.Session:
    return dataclasses.replace(
        self._bare, key=session.key, state=dataclasses.replace(
            self._bare.state, recent=session.state.recent))

  def _mark(self) -> _Mark:
    return _Mark(self._session, self._bare, self._place, tuple(self._path), self._followed)

  def _return(self, mark: _Mark) -> list[Event]:
    self._session, self._bare, self._place = mark.session, mark.bare, mark.place
    self._path, self._followed = deque(mark.path, maxlen=_PATH), mark.followed
    last = mark.session.state.recent.last(1).frames
    if mark.session.model.latents is not None:
      last = mark.session.model.latents.decode(last)
    return [(self.hello(), self._pictures(np.asarray(last[0, 0])))]

  def _pictures(self, frame: np.ndarray) -> dict[str, np.ndarray]:
    return {'reality' if self.settings.mode == 'real' else 'dream': frame}

  def _keep(self, pictures: dict[str, np.ndarray]) -> None:
    if self._film is not None and len(self._film) < _FILM:
      self._film.append(pictures)

  def _free(self, stem: str, suffix: str) -> pathlib.Path:
    self.folder.mkdir(parents=True, exist_ok=True)
    return whole_file.free(
        self.folder, (f'{stem}_{i:03d}{suffix}' for i in itertools.count(1)))

  def _wrote(self, path: pathlib.Path) -> Event:
    return {'kind': 'note', 'text': f'wrote {path}', **self.status()}, {}
