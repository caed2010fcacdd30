"""What merging two memories of a maze, and forgetting a span of one, do to frames seen again.

  python benchmarks/maze_edits.py                      bundled episodes
  python benchmarks/maze_edits.py --source=data/maze/test --episodes=12

Writes results/maze_edits.json. A history of 200 frames in two halves: one session sees the first,
another the second, a third both. The 16 frames after it are then imagined, and told apart by where
their place and heading were seen: in the first half alone, in the second alone (outside of the last
frames, which are the base's context), in both, or never. Merged memories are made of the first two
sessions, as `memory merge --how=...` does; forgetting makes the third forget the first half. PSNR
in dB, more is better, with 95 % bootstrap intervals over episodes.
"""

import argparse
from collections.abc import Callable
import dataclasses
import functools
import json
import pathlib
import time
from typing import Any

import jax
import numpy as np

from wmpoe import compositions
from wmpoe import session
from wmpoe import whole_file
from wmpoe.commands import runs
from wmpoe.data import bundled
from wmpoe.data import episode
from wmpoe.data import maze_config
from wmpoe.data import memory_maze
from wmpoe.evaluation import maze
from wmpoe.evaluation import metrics
from wmpoe.evaluation import results
from wmpoe.session import edits

_RESULTS = pathlib.Path(__file__).parent / 'results' / 'maze_edits.json'
_HALF, _ASKED = 100, 16
_ARMS = {'long_term': ('long_term',), 'spatial': ('spatial',), 'all': (
    'short_term', 'long_term', 'spatial')}


def groups(poses: np.ndarray, context: int) -> dict[str, np.ndarray]:
  """Where the frames asked for were seen before: bool [E T] by name; poses [E L 3]."""
  start = 2 * _HALF
  asked: Any = np.stack([
      [memory_maze.alike(own, t, start, angle=maze.ANGLE) for t in range(start, len(own))]
      for own in poses])
  first = asked[..., :_HALF].any(axis=-1)
  second = asked[..., _HALF:start - context].any(axis=-1)
  # What the context shows, base and all see alike.
  new = ~asked[..., start - context:start].any(axis=-1)
  return {'first_half': first & ~second & new, 'second_half': second & ~first & new,
          'both': first & second & new, 'never': ~first & ~second & new}


def score(live: session.Session, item: episode.Observation, recent, chosen: dict[str, np.ndarray]
          ) -> dict[str, dict[str, dict[str, float]]]:
  """PSNR by what is composed and by where frames were seen."""
  out, start = {}, 2 * _HALF
  for arm, names in _ARMS.items():
    model = live.model.compose('base', *names)
    state = dataclasses.replace(
        live.state, recent=recent, memories={n: live.state.memories[n] for n in model.memories})
    asked = dataclasses.replace(live, model=model, state=state, key=jax.random.key(7))
    _, frames = asked.imagine(item.actions[:, start:], item.poses[:, start:])
    found = np.stack([metrics.psnr(np.asarray(f), t) for f, t in zip(
        frames, item.frames[:, start:], strict=True)])
    out[arm] = {
        name: results.bootstrap(
            (found * where).sum(1) / np.maximum(where.sum(1), 1), seed=0, weights=where.sum(1))
        for name, where in chosen.items() if where.any()}
  return out


def main(argv: list[str] | None = None) -> None:
  """Measures everything, prints it, writes maze_edits.json."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--source', default='', help='folder of episodes; the bundled ones if empty')
  parser.add_argument('--episodes', type=int, default=12, help='at most')
  parser.add_argument('--out', type=pathlib.Path, default=_RESULTS, help='file to write')
  options = parser.parse_args(argv)
  begun = time.monotonic()
  found = bundled.episodes('memory_maze')
  if options.source:
    folder = runs.open_folder(options.source, maze_config.MazeConfig())
    found = [folder[i] for i in range(min(options.episodes, len(folder)))]
  item = episode.stack(found[:options.episodes], stop=2 * _HALF + _ASKED)
  part = lambda start, stop: jax.tree.map(lambda x: x[:, start:stop], item)
  fresh = session.Session.open('memory_maze', batch=len(item.frames))
  both = fresh.observe(part(0, _HALF)).observe(part(_HALF, 2 * _HALF))
  first, second = fresh.observe(part(0, _HALF)), fresh.fork(1).observe(part(_HALF, 2 * _HALF))
  chosen = groups(item.poses, fresh.model.base.model.context)
  made: dict[str, Callable[[], session.Session]] = {
      'nothing': lambda: fresh, 'first half alone': lambda: first,
      'second half alone': lambda: second, 'both halves': lambda: both,
      **{f'merged, {how}': functools.partial(edits.merge, first, second, how=how)
         for how in edits.HOW},
      'both halves, the first forgotten': lambda: edits.forget(both, 0, _HALF)}
  out = {}
  for name, make in made.items():
    out[name] = score(make(), item, both.state.recent, chosen)
    print(f'{name:<33}', '   '.join(
        f'{arm} ' + ' / '.join(f'{x["mean"]:.1f}' for x in of.values())
        for arm, of in out[name].items()), flush=True)
  print('columns:', ' / '.join(
      f'{name} ({int(where.sum())} frames)' for name, where in chosen.items() if where.any()))
  command = f'python benchmarks/maze_edits.py --source={options.source} ' + (
      f'--episodes={options.episodes}') if options.source else 'python benchmarks/maze_edits.py'
  whole_file.write(options.out, json.dumps({
      'memories': out, 'frames': {k: int(v.sum()) for k, v in chosen.items()},
      'meta': results.meta(command, compositions.MEMORY_MAZE, seeds=[0],
                           seconds=time.monotonic() - begun)}, indent=2).encode())
  print(f'wrote {options.out}')


if __name__ == '__main__':
  main()
