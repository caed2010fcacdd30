"""A day on the page of `python -m wmpoe play`, in minutes: does memory grow?

  python benchmarks/soak.py           100,000 frames, writes benchmarks/results/soak.json
  python benchmarks/soak.py --quick   2,000 frames, to see it work

The page's own dreamer dreams in Memory Cards, all experts in one denoising step, with the dream
without memory beside it and a key held down all the time: first one long dream, then with what a
visitor does now and then: waking up, looking, remembering, falling asleep, which writes weights,
going back, forking, saving, forgetting. 100,000 frames are 28 hours at one frame a second. Resident
memory is read from the system as it goes, and beside it what all arrays that are alive take.
"""

import argparse
import json
import os
import pathlib
import random
import tempfile
import time

import jax

from wmpoe import compositions
from wmpoe import session
from wmpoe import whole_file
from wmpoe.data import cards
from wmpoe.evaluation import results
from wmpoe.play import dreamer
from wmpoe.play import protocol
from wmpoe.play import worlds

_RESULTS = pathlib.Path(__file__).parent / 'results' / 'soak.json'
_EVERY = 500  # dreamed chunks between two visits
_DREAM = 0.3  # share of the frames that are one dream, without any


def resident() -> float:
  """Megabytes of this process that lie in memory (Linux)."""
  pages = int(pathlib.Path('/proc/self/statm').read_text(encoding='ascii').split()[1])
  return pages * os.sysconf('SC_PAGE_SIZE') / 1e6


def alive() -> float:
  """Megabytes of all arrays of this process."""
  return sum(array.nbytes for array in jax.live_arrays()) / 1e6


def main(argv: list[str] | None = None) -> None:
  """Dreams, prints memory as it goes, writes soak.json."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--quick', action='store_true', help='2,000 frames')
  parser.add_argument('--out', type=pathlib.Path, default=_RESULTS, help='file to write')
  options = parser.parse_args(argv)
  frames, begun, rng = 2_000 if options.quick else 100_000, time.monotonic(), random.Random(0)
  live = session.Session.open('cards', compose={'follows': ['short_term']})  # as play does
  seen = 0
  history: list[dict[str, float]] = []
  with tempfile.TemporaryDirectory() as folder:
    one = dreamer.Dreamer(live, worlds.CardsWorld(cards.CardsConfig(), 0), pathlib.Path(folder))
    ask = lambda do, **args: one.apply(protocol.Command(do, args))
    ask('steps', value=1)
    ask('chunk', value=live.model.chunk)
    chunk = 0
    while seen < frames:
      visited = seen >= _DREAM * frames
      if chunk == 0 or visited and chunk % _EVERY == 0:
        ask('mode', name='real')
        for _ in range(20):
          ask('keys', held=(rng.choice(('up', 'down', 'left', 'right', 'space')),))
          one.advance()
        if rng.random() < 0.2:
          ask('forget')
        ask('mode', name='dream')
      if visited and chunk % _EVERY == _EVERY // 2:
        ask('fork')
        ask('rewind', frames=rng.randint(1, 20))
        ask('save')
      ask('keys', held=(rng.choice(('up', 'down', 'left', 'right', 'space')),))
      seen, chunk = seen + sum('dream' in pictures for _, pictures in one.advance()), chunk + 1
      if seen >= (len(history) + 1) * frames / 20:
        history.append({'frames': seen, 'megabytes': resident(), 'arrays_megabytes': alive()})
        print(f'{seen:>8,} frames  {history[-1]["megabytes"]:.0f} MB, '
              f'{history[-1]["arrays_megabytes"]:.0f} of them arrays', flush=True)
  # What is bounded fills up first: how far back one can go, the path that is shown; then forks.
  at = {share: history[round(share * len(history)) - 1]['megabytes']
        for share in (_DREAM / 3, _DREAM, 0.6, 1.0)}
  growth = {'one_dream': at[_DREAM] - at[_DREAM / 3], 'visited': at[1.0] - at[0.6]}
  seconds = time.monotonic() - begun
  out = {
      'frames': seen, 'growth_megabytes': growth, 'resident': history,
      'meta': results.meta(
          'python benchmarks/soak.py' + ' --quick' * options.quick, compositions.CARDS, seeds=[0],
          seconds=seconds)}
  whole_file.write(options.out, json.dumps(out, indent=2).encode())
  print(f'{seen:,} frames in {seconds:.0f} s; memory grew by {growth["one_dream"]:.0f} MB in the '
        f'last two thirds of one long dream, and by {growth["visited"]:.0f} MB in the last '
        f'{0.4 * frames:,.0f} frames, of {at[1.0]:.0f}\nwrote {options.out}')


if __name__ == '__main__':
  main()
