"""Collects Memory Maze episodes into a folder: several processes, resumable, with a report.

A folder holds 000000.npz, 000001.npz, ... in the public dataset's fields (see `memory_maze`), and
collection.json: the settings they share, and when all is done, how much of their mazes they saw and
how often they came back. One collection per folder, one writer at a time.
"""

from collections import deque
from collections.abc import Iterator, Sequence
import concurrent.futures
from concurrent.futures import process
import dataclasses
import json
import multiprocessing
import os
import pathlib
from typing import Any

from absl import logging
import numpy as np

from wmpoe import whole_file
from wmpoe.data import maze_config
from wmpoe.data import maze_explorer
from wmpoe.data import maze_simulator
from wmpoe.data import memory_maze

INDEX = 'collection.json'
FORMAT = 'wmpoe.collection'
VERSION = 1
POLICIES = (*maze_explorer.POLICIES, 'mixed')
GAP = 50  # kept frames after which seeing a place again counts as a revisit
_STATISTICS = ('coverage', 'revisited', 'turn_rate')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """What all episodes of a folder share.

  Attributes:
    env: The world.
    policy: 'waypoints', 'revisit', or 'mixed': both in turn.
    split: 'train', 'validation' or 'test'; they never share a maze's seed.
    seed: Another seed gives other episodes of the same split.
    depth: Whether episodes say how far every pixel is.

  Raises:
    ValueError: for an unknown policy or split, or a world that the simulator cannot run.
  """

  env: maze_config.MazeConfig = maze_config.MazeConfig()
  policy: str = 'mixed'
  split: str = 'train'
  seed: int = 0
  depth: bool = False

  def __post_init__(self):
    if self.policy not in POLICIES:
      raise ValueError(f'Unknown policy {self.policy!r}; expected one of {", ".join(POLICIES)}.')
    maze_simulator.episode_seed(0, self.split, seed=self.seed)
    maze_simulator.check(size=self.env.size, length=self.env.length, image=self.env.image)

  def policy_of(self, index: int) -> str:
    """The policy of the index-th episode."""
    names = list(maze_explorer.POLICIES)
    return names[index % len(names)] if self.policy == 'mixed' else self.policy

  def describe(self) -> dict[str, Any]:
    """What has to be the same to go on with a folder; frame skip and border come in later."""
    env = {name: getattr(self.env, name) for name in ('size', 'image', 'length')}
    out = {**env, 'policy': self.policy, 'split': self.split, 'seed': self.seed}
    return out | ({'depth': True} if self.depth else {})


@dataclasses.dataclass(frozen=True)
class Progress:
  """One step of `collect`: `done` of `total` that were missing; `error` if the last one is bad."""

  done: int
  total: int
  path: pathlib.Path
  error: str | None = None


@dataclasses.dataclass(frozen=True)
class _Job:
  """One episode to be made; goes to another process."""

  index: int
  path: pathlib.Path
  settings: Settings


def collect(
    folder: str | os.PathLike[str], settings: Settings, *, episodes: int, processes: int = 1,
    strict: bool = False, overwrite: bool = False) -> Iterator[Progress]:
  """Writes the episodes of a folder that are missing or damaged, one per step of the iterator.

  An episode that cannot be made is named in the progress, and the next one follows.

  Args:
    folder: Made if it does not exist.
    settings: What to collect.
    episodes: How many there shall be.
    processes: How many simulators run at a time.
    strict: Stop at the first episode that cannot be made.
    overwrite: Delete what is in the folder first.

  Raises:
    ImportError: if there is no simulator; says what to install.
    ValueError: episodes < 1, processes < 1, or a folder that holds a collection of other settings.
    RuntimeError: with `strict`, for an episode that cannot be made.
    OSError: if the folder cannot be written.
  """
  for name, value in (('episodes', episodes), ('processes', processes)):
    if value < 1:
      raise ValueError(f'collect got {name}={value}; expected at least 1.')
  maze_simulator.episode_seed(episodes - 1, settings.split, seed=settings.seed)
  folder = pathlib.Path(folder)
  maze_simulator.require()
  _prepare(folder, settings, overwrite)
  paths = [folder / f'{index:06d}.npz' for index in range(episodes)]
  jobs = [_Job(i, path, settings) for i, path in enumerate(paths) if not _complete(path, settings)]
  return _write(jobs, processes, strict)


def _write(jobs: Sequence[_Job], processes: int, strict: bool) -> Iterator[Progress]:
  results = _serial(jobs) if processes == 1 else _parallel(jobs, processes)
  for done, (job, error) in enumerate(results, 1):
    if error and strict:
      raise RuntimeError(f'{job.path}: {error} Without --strict it is left out and named.')
    yield Progress(done, len(jobs), job.path, error)


def _prepare(folder: pathlib.Path, settings: Settings, overwrite: bool) -> None:
  """Makes the folder, or makes sure that it holds the same collection."""
  folder.mkdir(parents=True, exist_ok=True)
  index, here = folder / INDEX, sorted(folder.glob('*.npz'))
  if overwrite:
    for path in here:
      path.unlink()
    index.unlink(missing_ok=True)
  elif index.exists():
    found, asked = read_index(folder)['settings'], settings.describe()
    differ = [
        f'{name} ({found.get(name)!r}, asked for {asked.get(name)!r})'
        for name in {**found, **asked} if found.get(name) != asked.get(name)]
    if differ:
      raise ValueError(
          f'{index}: the folder holds episodes that differ in {", ".join(differ)}. Choose another '
          'folder, or --overwrite to delete them.')
    return
  elif here:
    raise ValueError(
        f'{folder} holds {len(here)} npz files but no {INDEX} that says which. Choose another '
        'folder, or --overwrite to delete them.')
  _write_index(folder, {'settings': settings.describe()})


def _complete(path: pathlib.Path, settings: Settings) -> bool:
  if not path.exists():
    return False
  try:
    return memory_maze.load(path).length == settings.env.length
  except ValueError:
    return False


# --------------------------------------------------------------------------------------- processes


def _make(job: _Job) -> str | None:
  """Makes and writes one episode; what went wrong with it, or None.

  Raises:
    ImportError, OSError: what would go wrong with every episode.
  """
  env, settings = job.settings.env, job.settings
  seed = maze_simulator.episode_seed(job.index, settings.split, seed=settings.seed)
  try:
    fields = maze_simulator.run(
        seed, maze_explorer.policy(settings.policy_of(job.index)), size=env.size,
        length=env.length, image=env.image, depth=settings.depth)
    memory_maze.from_fields(fields, source=job.path)
  except (ImportError, OSError):
    raise
  except Exception as error:  # Physics, rendering, policy: whatever it is, it is this episode's.
    return f'episode of seed {seed} cannot be made ({type(error).__name__}: {error}).'
  whole_file.write(
      job.path, lambda file: np.savez_compressed(file, allow_pickle=False, **fields))
  return None


def _quiet() -> None:
  logging.set_verbosity(logging.ERROR)  # The simulator warns in every episode of the same thing.


def _serial(jobs: Sequence[_Job]) -> Iterator[tuple[_Job, str | None]]:
  _quiet()
  for job in jobs:
    yield job, _make(job)


def _parallel(jobs: Sequence[_Job], processes: int) -> Iterator[tuple[_Job, str | None]]:
  """Runs jobs in other processes; one that dies takes only its own episode with it."""
  waiting, suspects = deque(jobs), deque[_Job]()
  while waiting or suspects:
    # Those that ran when a process died are tried again, one by one, to know which it was.
    queue, workers = (waiting, processes) if waiting else (suspects, 1)
    running: dict[concurrent.futures.Future, _Job] = {}
    with concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context('spawn'), initializer=_quiet) as pool:
      try:
        while queue or running:
          while queue and len(running) < workers:
            running[pool.submit(_make, queue[0])] = queue[0]
            queue.popleft()
          finished, _ = concurrent.futures.wait(
              running, return_when=concurrent.futures.FIRST_COMPLETED)
          for future in finished:
            error = future.result()
            yield running.pop(future), error
      except process.BrokenProcessPool:
        if queue is waiting:
          suspects.extend(running.values())
          continue
        for job in running.values():
          yield job, 'the process that made the episode died (out of memory, or a crash in OpenGL).'


# ------------------------------------------------------------------------------------------ report


def _write_index(folder: pathlib.Path, content: dict[str, Any]) -> None:
  text = json.dumps({'format': FORMAT, 'version': VERSION, **content}, indent=1).encode()
  whole_file.write(folder / INDEX, text)


def read_index(folder: str | os.PathLike[str]) -> dict[str, Any]:
  """The contents of collection.json.

  Raises:
    FileNotFoundError: if the folder has none.
    ValueError: if it is damaged or of another version.
  """
  path = pathlib.Path(folder) / INDEX
  try:
    index = json.loads(path.read_text(encoding='utf-8'))
    kind = index['format'], index['version']
    index['settings'].items()
  except FileNotFoundError as error:
    raise FileNotFoundError(f'{path} does not exist; expected a folder of `collect`.') from error
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(
        f'{path} is damaged ({error!r}); collect into another folder, or --overwrite.') from error
  if kind != (FORMAT, VERSION):
    raise ValueError(f'{path} says format {kind}; this wmpoe reads {(FORMAT, VERSION)}.')
  return index


def statistics(maze_episode: memory_maze.MazeEpisode, *, skip: int = 2) -> dict[str, float]:
  """Coverage, fraction of revisited frames and turn rate of the frames that are kept.

  'coverage' is the fraction of free cells visited; 'revisited' the fraction of kept frames whose
  cell and heading (within 45 degrees) were seen at least `GAP` kept frames earlier; 'turn_rate' the
  mean turn between kept frames, radians.
  """
  poses = maze_episode.poses[::skip]
  return {
      'coverage': memory_maze.coverage(poses, maze_episode.layout),
      'revisited': float(memory_maze.revisits(poses, gap=GAP).mean()),
      'turn_rate': memory_maze.turn_rate(poses)}


def finish(
    folder: str | os.PathLike[str], settings: Settings, *, episodes: int,
    bad: dict[str, str]) -> dict[str, Any]:
  """Reads what was collected, writes collection.json and returns it.

  Args:
    folder: The folder.
    settings: Its settings.
    episodes: How many there should be.
    bad: Those that could not be made, by file name, with what went wrong.

  Returns:
    'settings'; 'episodes' by file name, each with its policy, seed and `statistics`; 'summary' by
    policy, with the number of episodes and mean, min and max of each statistic; 'bad'; 'gap'.
  """
  folder = pathlib.Path(folder)
  rows: dict[str, dict[str, Any]] = {}
  for index in range(episodes):
    path = folder / f'{index:06d}.npz'
    if path.name in bad:
      continue
    rows[path.name] = {
        'policy': settings.policy_of(index),
        'seed': maze_simulator.episode_seed(index, settings.split, seed=settings.seed),
        **statistics(memory_maze.load(path), skip=settings.env.skip)}
  summary = {}
  for name in sorted({row['policy'] for row in rows.values()}):
    chosen = [row for row in rows.values() if row['policy'] == name]
    summary[name] = {'episodes': len(chosen), **{
        key: {
            how: float(getattr(np, how)([row[key] for row in chosen]))
            for how in ('mean', 'min', 'max')}
        for key in _STATISTICS}}
  content = {
      'settings': settings.describe(), 'skip': settings.env.skip, 'gap': GAP, 'summary': summary,
      'bad': dict(bad), 'episodes': rows}
  _write_index(folder, content)
  return content


def describe(content: dict[str, Any]) -> str:
  """The report of `finish`, as text."""
  lines = [
      f'{len(content["episodes"])} episodes, {len(content["bad"])} bad',
      'policy     episodes  free cells seen   frames revisited  turn per frame']
  for name, row in content['summary'].items():
    part = lambda key, scale, unit, row=row: (
        f'{scale * row[key]["mean"]:4.0f} ({scale * row[key]["min"]:.0f}-'
        f'{scale * row[key]["max"]:.0f}) {unit}')
    lines.append(
        f'{name:<10} {row["episodes"]:>8}  {part("coverage", 100, "%"):<16}  '
        f'{part("revisited", 100, "%"):<16}  {part("turn_rate", 180 / np.pi, "degrees")}')
  lines.append(
      f'Mean (least-most) over episodes; every {content["skip"]}. frame; revisited: same cell and '
      f'heading within 45 degrees at least {content["gap"]} frames earlier.')
  return '\n'.join([*lines, *(f'bad: {name}: {why}' for name, why in content['bad'].items())])
