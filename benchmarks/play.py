"""How many frames a second `python -m wmpoe play` imagines in Memory Maze, and what limits it.

  python benchmarks/play.py           prints a table, writes benchmarks/results/play.json
  python benchmarks/play.py --quick   few frames, to see it work

The page's own dreamer takes every step, as for a key that is held; the dream without memory beside
it is counted on its own. Seconds on the wall, and of the processor: where the first are many more,
the machine was busy with something else.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
import time

from wmpoe import compositions
from wmpoe import session
from wmpoe import whole_file
from wmpoe import zoo
from wmpoe.data import bundled
from wmpoe.data import maze_config
from wmpoe.evaluation import results
from wmpoe.play import dreamer
from wmpoe.play import protocol
from wmpoe.play import worlds

_RESULTS = pathlib.Path(__file__).parent / 'results' / 'play.json'
_ALL = ('short_term', 'long_term', 'spatial')
_ARMS = {  # experts, frames a decision, with the dream without memory beside it
    'as the page opens: all experts, without memory beside': (_ALL, 1, True),
    'all experts': (_ALL, 1, False),
    'all experts, 2 frames a decision': (_ALL, 2, False),
    'without short-term': (('long_term', 'spatial'), 1, False),
    'spatial': (('spatial',), 1, False),
}


def measure(live, planned, experts, chunk: int, beside: bool, frames: int) -> dict[str, float]:
  """Seconds a frame, on the wall and of the processor, after a first step that compiles."""
  world = worlds.MazeWorld(
      maze_config.MazeConfig(), planned, recorded=bundled.episodes('memory_maze')[0])
  with tempfile.TemporaryDirectory() as folder:
    one = dreamer.Dreamer(live.compose('base', *experts), world, pathlib.Path(folder))
    ask = lambda do, **args: one.apply(protocol.Command(do, args))
    ask('remember', on=False)  # what is remembered makes no difference to the time
    ask('compare', on=beside)
    ask('chunk', value=chunk)
    ask('mode', name='dream')
    ask('keys', held=('up', 'left'))
    one.advance()
    wall, processor = [], []
    for _ in range(frames // chunk):
      begun, used = time.perf_counter(), time.process_time()
      one.advance()
      wall.append((time.perf_counter() - begun) / chunk)
      processor.append((time.process_time() - used) / chunk)
  return {'frames_per_second': 1 / statistics.median(wall), 'ms': 1e3 * statistics.median(wall),
          'processor_ms': 1e3 * statistics.median(processor)}


def main(argv: list[str] | None = None) -> None:
  """Measures every arm, prints the table, writes play.json."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--quick', action='store_true', help='few frames')
  parser.add_argument('--out', type=pathlib.Path, default=_RESULTS, help='file to write')
  options = parser.parse_args(argv)
  begun = time.monotonic()
  live = session.Session.open('memory_maze', compose={'follows': ['short_term']})  # as play does
  network, params, _ = zoo.load_odometry('memory_maze_odometry')
  planned = worlds.planned_by(network, params)
  out = {}
  for name, (experts, chunk, beside) in _ARMS.items():
    out[name] = measure(live, planned, experts, chunk, beside, 4 if options.quick else 20)
    print(f'{name:<54}', '  '.join(f'{k} {v:.3g}' for k, v in out[name].items()), flush=True)
  meta = results.meta(
      'python benchmarks/play.py' + ' --quick' * options.quick, compositions.MEMORY_MAZE, seeds=[0],
      seconds=time.monotonic() - begun)
  whole_file.write(options.out, json.dumps({'speed': out, 'meta': meta}, indent=2).encode())
  print(f'wrote {options.out}')


if __name__ == '__main__':
  main()
