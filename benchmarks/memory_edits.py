"""What merging two memories of one place and forgetting a span do to recall, on Memory Cards.

  python benchmarks/memory_edits.py           prints recall, writes results/memory_edits.json
  python benchmarks/memory_edits.py --quick   two episodes and few inner steps, to see it work

One board, its cards uncovered and covered again in two halves: the first session sees the first
half, the second the other, or both see all of it, each by itself. Then all cards are uncovered and
must be imagined. Recall is told apart by the half a card lies in; chance is 1 in 8. Weights of
adapters are merged as `memory merge --how=...` does; beside it with the ranks left side by side
(twice the rank, no decomposition), summed and averaged, and written in one go. Forgetting: the
session that saw both halves is made to forget the first.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from wmpoe import compositions
from wmpoe import session
from wmpoe import whole_file
from wmpoe.data import board
from wmpoe.data import cards
from wmpoe.data import episode
from wmpoe.evaluation import metrics
from wmpoe.evaluation import results
from wmpoe.session import edits

_RESULTS = pathlib.Path(__file__).parent / 'results' / 'memory_edits.json'
_PAUSE, _HALF = 9, 36


@dataclasses.dataclass(frozen=True)
class Task:
  """Boards seen in two halves of `_HALF` frames, and all cards uncovered from `start` on."""

  seen: episode.Observation
  start: int
  events: np.ndarray
  cards: np.ndarray
  first: tuple[int, ...]


def make_task(episodes: int, chunk: int) -> Task:
  """Validation boards, revealed as the module says."""
  env = cards.CardsConfig()
  path = cards.boustrophedon(env.grid)
  middle = len(path) // 2
  made = []
  for index in range(episodes):
    symbols = cards.script_episode(index, env, 'validation').cards
    world = board.Board(env.grid, env.length, cursor=path[0])
    for number, half in enumerate((path[:middle], path[middle:])):
      world.sweep(half, board.UNCOVER)
      world.sweep(half[::-1], board.COVER)
      while len(world.actions) < (number + 1) * _HALF:  # of one length, so that it compiles once
        world.step(board.STAY)
    world.go(path[0])
    for _ in range(_PAUSE):
      world.step(board.STAY)
    start, known = len(world.actions), len(world.events)
    world.sweep(path, board.UNCOVER)
    while (len(world.actions) - start) % chunk:
      world.step(board.STAY)
    bits = np.arange(env.num_cards)
    sim = cards.EpisodeArrays(
        index=index, split='validation', kind='script', cards=symbols,
        cursor=np.stack(np.divmod(np.array(world.cursors, np.int32), env.grid), -1),
        visible=(np.array(world.masks)[:, None] >> bits & 1).astype(bool),
        actions=np.array(world.actions, np.int32),
        events=np.array(world.events, np.int32))
    made.append((cards.to_episode(sim, env), np.array(world.events[known:]), symbols))
  return Task(
      seen=episode.stack([item for item, _, _ in made]), start=start,
      events=np.stack([events for _, events, _ in made]),
      cards=np.stack([symbols for _, _, symbols in made]), first=tuple(path[:middle]))


def recall(live: session.Session, task: Task, *experts: str) -> dict[str, dict]:
  """Recall of the cards of each half, with the named experts composed with the base."""
  model = live.model.compose('base', *experts)
  recent = model.init(live.batch).recent.push(
      jax.tree.map(lambda x: jnp.asarray(x[:, :task.start]), task.seen))
  state = dataclasses.replace(
      live.state, recent=recent, memories={n: live.state.memories[n] for n in model.memories})
  asked = dataclasses.replace(live, model=model, state=state, key=jax.random.key(7))
  _, frames = asked.imagine(
      task.seen.actions[:, task.start:], task.seen.poses[:, task.start:])
  tile = task.events[..., 1]
  hits = metrics.card_recall(
      np.asarray(frames), task.events[..., 0] - task.start, tile=tile, cards=task.cards,
      templates=cards.templates(cards.CardsConfig(), cursor=True))['recall']
  early = np.isin(tile, task.first)
  of = lambda chosen: results.bootstrap(
      (hits * chosen).sum(1) / chosen.sum(1), seed=0, weights=chosen.sum(1))
  return {'first_half': of(early), 'second_half': of(~early)}


def side_by_side(first: session.Session, second: session.Session, share: float) -> session.Session:
  """Ranks concatenated as they are: adapters of twice the rank, `share` of each update."""
  memory, one = first.model.memories['long_term'], first.state.memories['long_term']
  spec = dataclasses.replace(
      memory.spec, rank=2 * memory.spec.rank, alpha=2 * memory.spec.alpha)

  def join(path, x, y):
    if path[-1].key == 'a':
      return jnp.concatenate([x, y], axis=-1)
    return share * jnp.concatenate([x, y], axis=-2)

  lora = jax.tree_util.tree_map_with_path(
      join, one.lora, second.state.memories['long_term'].lora)
  memories = {**first.model.memories, 'long_term': dataclasses.replace(memory, spec=spec)}
  state = {**first.state.memories, 'long_term': dataclasses.replace(one, lora=lora)}
  return dataclasses.replace(
      first, model=dataclasses.replace(first.model, memories=memories),
      state=dataclasses.replace(first.state, memories=state))


def merged(first: session.Session, second: session.Session, task: Task) -> dict[str, dict]:
  """Every way to merge, for adapters alone, the map alone and everything composed."""
  out = {}
  arms = {'first alone': lambda: first, 'second alone': lambda: second}
  arms |= {how: functools.partial(edits.merge, first, second, how=how) for how in edits.HOW}
  for name, make in arms.items():
    live = make()
    out[name] = {
        'long_term': recall(live, task, 'long_term'), 'spatial': recall(live, task, 'spatial'),
        'all': recall(live, task, *live.model.memories)}
    print(name, line(out[name]), flush=True)
  for name, share in (('ranks side by side, summed', 1.0), ('ranks side by side, averaged', 0.5)):
    live = side_by_side(first, second, share)
    out[name] = {'long_term': recall(live, task, 'long_term')}
    print(name, line(out[name]), flush=True)
  return out


def line(found: dict) -> str:
  """Recall of both halves, by what is composed."""
  return '  '.join(
      f'{name} {100 * r["first_half"]["mean"]:.0f}/{100 * r["second_half"]["mean"]:.0f} %'
      for name, r in found.items())


def main(argv: list[str] | None = None) -> None:
  """Measures everything, prints it, writes memory_edits.json."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--quick', action='store_true', help='two episodes, ten inner steps')
  parser.add_argument('--out', type=pathlib.Path, default=_RESULTS, help='file to write')
  options = parser.parse_args(argv)
  episodes, begun = 2 if options.quick else 6, time.monotonic()
  long_term = compositions.CARDS['long_term']
  if options.quick:
    long_term = {**long_term, 'writing': {**long_term['writing'], 'steps': 10}}
  fresh = session.Session.open('cards', compose={'long_term': long_term}, batch=episodes)
  task = make_task(episodes, fresh.model.chunk)
  one, two = (
      jax.tree.map(lambda x, i=i: x[:, i * _HALF:(i + 1) * _HALF], task.seen) for i in range(2))
  first, second = fresh.observe(one), fresh.fork(1).observe(two)
  out = {'base': recall(fresh, task), 'halves': merged(first, second, task)}
  print('base', line({'base': out['base']}), flush=True)
  both, again = first.observe(two), second.fork(2).observe(one)
  forgot = edits.forget(both, 0, _HALF)
  out['forget'] = {
      name: {
          'long_term': recall(live, task, 'long_term'), 'spatial': recall(live, task, 'spatial'),
          'all': recall(live, task, *live.model.memories)}
      for name, live in (('before', both), ('after', forgot))}
  for name, found in out['forget'].items():
    print('forget,', name, line(found), flush=True)
  out['same'] = merged(both, again, task)
  out['meta'] = results.meta(
      'python benchmarks/memory_edits.py' + ' --quick' * options.quick, compositions.CARDS,
      seeds=[0], seconds=time.monotonic() - begun)
  whole_file.write(options.out, json.dumps(out, indent=2).encode())
  print(f'wrote {options.out}')


if __name__ == '__main__':
  main()
