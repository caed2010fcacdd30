"""What a session costs over the bare jitted calls, and its memory file: size, saving, loading.

  python benchmarks/session.py           prints a table, writes benchmarks/results/session.json
  python benchmarks/session.py --quick   the same with few repeats, to see it work

Session and raw call are timed in turns, so that a busy machine slows both; the overhead is the
median of the pairs' differences over the median of the raw call. The memory file is of one Memory
Maze episode, 200 frames observed, long-term memory of rank 16, and as packaged; saving ends with an
fsync, loading is into an open session, or with the model.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
import time
from typing import Any

import jax

from wmpoe import compositions
from wmpoe import session
from wmpoe import whole_file
from wmpoe import world_model
from wmpoe.data import bundled
from wmpoe.data import cards
from wmpoe.data import episode
from wmpoe.evaluation import results

_RESULTS = pathlib.Path(__file__).parent / 'results' / 'session.json'
_RANK = 16


def seconds(run) -> float:
  """How long a call takes until its arrays are there."""
  begun = time.perf_counter()
  jax.block_until_ready(run())
  return time.perf_counter() - begun


def overhead(live: session.Session, then: episode.Observation, repeats: int) -> dict[str, float]:
  """One chunk imagined through the session and by the raw jitted call, in turns."""
  imagine, chunk = jax.jit(world_model.WorldModel.imagine), live.model.chunk
  actions, poses = (jax.numpy.asarray(x[:, :chunk]) for x in (then.actions, then.poses))
  by_session = lambda: live.imagine(actions, poses)[1]
  raw = lambda: imagine(live.model, live.state, actions, poses, live.key)[1]
  return in_turns(by_session, raw, repeats)


def in_turns(by_session: Any, raw: Any, repeats: int) -> dict[str, float]:
  """Medians of both, and of what the first takes more, after a run that compiles."""
  for run in (by_session, raw):
    seconds(run)
  pairs = [(seconds(by_session), seconds(raw)) for _ in range(repeats)]
  bare = statistics.median(r for _, r in pairs)
  more = statistics.median(s - r for s, r in pairs)
  return {'raw_ms': 1e3 * bare, 'session_ms': 1e3 * statistics.median(s for s, _ in pairs),
          'overhead': more / bare, 'pairs': repeats}


def observing(live: session.Session, seen: episode.Observation, repeats: int) -> dict[str, float]:
  """Eight frames shown through the session, and by the raw jitted call, in turns."""
  observe, few = jax.jit(world_model.WorldModel.observe), jax.tree.map(lambda x: x[:, :8], seen)
  by_session = lambda: live.observe(few).state
  raw = lambda: observe(live.model, live.state, few, live.key)
  return in_turns(by_session, raw, repeats)


def memory_file(live: session.Session, *, history: bool, repeats: int) -> dict[str, float]:
  """Size of the file, and medians of saving and loading it."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'memory.npz'
    save, load = [], []
    for _ in range(repeats + 1):
      begun = time.perf_counter()
      live.save(path, history=history)
      save.append(time.perf_counter() - begun)
      load.append(seconds(lambda: session.Session.load(path, live).state))
    alone = seconds(lambda: session.Session.load(path).state)  # the model, too
    return {'megabytes': path.stat().st_size / 1e6, 'save_ms': 1e3 * statistics.median(save[1:]),
            'load_ms': 1e3 * statistics.median(load[1:]), 'load_with_model_ms': 1e3 * alone}


def main(argv: list[str] | None = None) -> None:
  """Measures everything, prints the table, writes session.json."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--quick', action='store_true', help='few repeats')
  parser.add_argument('--out', type=pathlib.Path, default=_RESULTS, help='file to write')
  options = parser.parse_args(argv)
  repeats, begun = 3 if options.quick else 30, time.monotonic()

  env = cards.CardsConfig()
  board = cards.to_episode(cards.script_episode(0, env, 'validation'), env)
  then = episode.stack([board], start=cards.HISTORY)
  flat = session.Session.open('cards')  # what it remembers makes no difference to the time
  out = {
      'imagine_cards': overhead(flat, then, repeats),
      # The fastest there is: where an overhead shows the most.
      'imagine_cards_base_alone': overhead(flat.compose('base'), then, 5 * repeats)}
  lora = {**compositions.MEMORY_MAZE['long_term']['lora'], 'rank': _RANK, 'alpha': float(_RANK)}
  maze = session.Session.open('memory_maze', compose={
      'long_term': {**compositions.MEMORY_MAZE['long_term'], 'lora': lora}})
  found = bundled.episodes('memory_maze')[:1]
  seen, ahead = episode.stack(found, stop=200), episode.stack(found, start=200)
  maze = maze.observe(seen)
  out['file'] = memory_file(maze, history=False, repeats=repeats)
  out['file_with_history'] = memory_file(maze, history=True, repeats=repeats)
  packaged = session.Session.open('memory_maze').observe(seen)
  out['imagine_maze'] = overhead(packaged, ahead, repeats)
  out['observe_maze'] = observing(packaged, seen, repeats)
  out['file_as_packaged'] = memory_file(packaged, history=False, repeats=repeats)
  out['file_as_packaged_with_history'] = memory_file(packaged, history=True, repeats=repeats)
  out['meta'] = results.meta(
      'python benchmarks/session.py' + ' --quick' * options.quick, {'rank': _RANK}, seeds=[0],
      seconds=time.monotonic() - begun)
  whole_file.write(options.out, json.dumps(out, indent=2).encode())
  for name, row in out.items():
    if name != 'meta':
      print(f'{name:<30}', '  '.join(f'{k} {v:.3g}' for k, v in row.items()))
  print(f'wrote {options.out}')


if __name__ == '__main__':
  main()
