"""How fast experts train, are written and are read, against a plain matmul in the same run.

  python benchmarks/speed.py           prints a table, writes benchmarks/results/speed.json
  python benchmarks/speed.py --quick   the same on two episodes and single repeats, to see it work

Everything is compiled and run once before it is timed; times are medians, and what is compared is
timed in turns, so that a busy machine slows both. FLOPs are counted by hand from the shapes of the
network: the matmuls that the mathematics needs, two operations per multiply-add.
"""

import argparse
from collections.abc import Callable
import dataclasses
import json
import math
import pathlib
import runpy
import statistics
import sys
import time
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from wmpoe import compositions
from wmpoe import packaged
from wmpoe import whole_file
from wmpoe import zoo
from wmpoe.commands import common
from wmpoe.commands import runs
from wmpoe.data import cards
from wmpoe.evaluation import recall
from wmpoe.evaluation import results
from wmpoe.training import state as state_lib

_RESULTS = pathlib.Path(__file__).parent / 'results' / 'speed.json'
_PER_TOKEN = ('patch_embed', 'pose_plane', 'map_embed', 'output')  # the rest is per frame


def race(runs: dict[str, Callable], repeats: int) -> dict[str, float]:
  """Median seconds of each, timed in turns after one untimed call."""
  times: dict[str, list[float]] = {name: [] for name in runs}
  for run in runs.values():
    jax.block_until_ready(run())
  for _ in range(repeats):
    for name, run in runs.items():
      begun = time.perf_counter()
      jax.block_until_ready(run())
      times[name].append(time.perf_counter() - begun)
  return {name: statistics.median(seconds) for name, seconds in times.items()}


def matmuls(network, rows: int) -> tuple[dict[str, Callable], dict[str, int], list[str]]:
  """Plain float32 matmuls, their FLOPs, and which are those of the network's MLP."""
  width, hidden = network.width, network.mlp_ratio * network.width
  own = [(rows, width, hidden), (rows, hidden, width)]
  shapes = [(2048, 2048, 2048), *own, (8192, 512, 512)]
  dot = jax.jit(lambda a, b: a @ b)
  runs, flops = {}, {}
  for m, k, n in shapes:
    a, b = jnp.ones((m, k)), jnp.ones((k, n))
    runs[f'{m}x{k}x{n}'] = lambda a=a, b=b: dot(a, b)
    flops[f'{m}x{k}x{n}'] = 2 * m * k * n
  return runs, flops, ['x'.join(map(str, shape)) for shape in own]


def forward_flops(network, params, batch: int, frames: int, *, context: bool = False
                  ) -> dict[str, int]:
  """FLOPs of one forward pass of a network or adapter, by part.

  The last block of the `context` is asked for its keys and values only.
  """
  tokens = network.grid[0] * network.grid[1]
  counts = {'blocks': 0, 'output': 0, 'rest': 0}
  last = f'block_{network.depth - 1}'
  for path, leaf in traverse_util.flatten_dict(params).items():
    in_block = path[0].startswith('block_')
    unused = path[0].startswith('output') or (path[0] == last and path[1] not in ('key', 'value'))
    if path[-1] not in ('kernel', 'a', 'b') or (context and unused):
      continue
    rows = batch * frames * (tokens if in_block or path[0] in _PER_TOKEN else 1)
    kind = 'blocks' if in_block else 'output' if path[0] == 'output' else 'rest'
    counts[kind] += 2 * rows * leaf.size
  keys = frames if context else network.context + frames
  counts['attention'] = (
      (network.depth - context) * 4 * batch * frames * keys * tokens**2 * network.width)
  return counts


def cards_base(batch_size: int | None) -> tuple[dict, dict]:
  """The run card of the packaged base of Memory Cards and one of its batches."""
  description = packaged.card(packaged.find('cards_base'))['config']
  if batch_size:
    description['train']['batch_size'] = batch_size
  return description, next(iter(runs.make_batches(description, 'train', seed=0)))


def paper_base() -> tuple[dict, dict]:
  """The base at the size of the paper, one example of noise in float32."""
  file = pathlib.Path(__file__).parents[1] / 'configs' / 'memory_maze.py'
  description = common.plain(runpy.run_path(str(file))['get_config']('base'))
  description['model'] |= {'dtype': 'float32', 'remat': False, 'scan_layers': False}
  description['train']['batch_size'] = 1
  model, dims = description['model'], zoo.dimensions(description['env'])
  frames, rng = model['context'] + model['target'], np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=(1, frames, *shape)).astype(np.float32)
  return description, {
      'frames': draw(*model['latent']), 'actions': draw(dims['action_dim']),
      'poses': draw(dims['pose_dim']), 'valid': np.ones((1, frames), bool)}


def measure_training(description: dict, batch: dict) -> tuple[dict, Callable]:
  """The training step of a run card on a batch; returns its FLOPs and the step."""
  task = runs.make_task(description)
  config = state_lib.TrainConfig(**description['train'])
  params = task.init(jax.random.key(0))
  state, key = state_lib.create(params, state_lib.optimizer_of(config)), jax.random.key(1)
  one_step: Any = state_lib.make_train_step(task, config)
  step = one_step.lower(state, batch, key).compile()
  network, size = task.model.network, description['train']['batch_size']
  flops = 3 * sum(  # backward: once for the inputs, once for the weights
      sum(forward_flops(network, params, size, frames, context=context).values())
      for frames, context in ((network.context, True), (description['model']['target'], False)))
  held = [state]

  def run():  # the step donates its state: it goes on from the new one
    held[0], metrics = step(held[0], batch, key)
    return metrics

  return {'flops': flops, 'flops_by_xla': step.cost_analysis()['flops']}, run


def plain_rates(seconds: dict, flops: dict, own: list[str]) -> dict[str, float]:
  """FLOP/s of plain matmuls, of all in the MLP's shapes together, and of the best."""
  rates = {name: flops[name] / seconds[name] for name in flops}
  mlp = sum(flops[name] for name in own) / sum(seconds[name] for name in own)
  return {**rates, 'mlp': mlp, 'best': max(rates.values())}


def rate_of(found: dict, seconds: float, rates: dict[str, float]) -> None:
  """Adds to a measurement its time, and its FLOP/s alone and against plain matmuls."""
  rate = found['flops'] / seconds
  found |= {'ms': 1e3 * seconds, 'flops_per_second': rate, 'of_mlp_matmul': rate / rates['mlp'],
            'of_best_matmul': rate / rates['best']}


def measure_paper(repeats: int) -> dict:
  """The same for the training step at the size of the paper, with matmuls in its shapes."""
  description, batch = paper_base()
  found, train = measure_training(description, batch)
  network = zoo.model(description).network
  plain, flops, own = matmuls(network, description['model']['target'] * math.prod(network.grid))
  seconds = race({'training': train, **plain}, repeats)
  rate_of(found, seconds['training'], plain_rates(seconds, flops, own))
  return found


def measure_inner_loop(memory, state, steps: int) -> tuple[dict, Callable]:
  """`steps` inner steps of every episode in `state`; FLOPs are of one episode-step."""
  network, batch = memory.model.network, state.step.shape[0]
  keys = jax.random.split(jax.random.key(0), batch)
  fit = lambda count: jax.jit(lambda m, s, k: m.fit(s, k, steps=count))
  flops, clips = 0, memory.writing.clips_per_step
  for frames, context in ((network.context, True), (memory.writing.target, False)):
    dense = forward_flops(network, memory.params, clips, frames, context=context)
    # The frozen base needs gradients of its inputs only, and none before the first adapter.
    flops += 2 * (dense['blocks'] + dense['output']) + dense['rest'] + 3 * dense['attention']
    flops += 3 * forward_flops(
        network, memory.lora_init, clips, frames, context=context)['blocks']
  compiled: Any = fit(1).lower(memory, state, keys).compile()
  by_xla = compiled.cost_analysis()['flops'] / batch
  run = fit(steps)
  return {'flops': flops, 'flops_by_xla': by_xla}, lambda: run(memory, state, keys)


def with_long_term(model, *, steps: int = 1, **changes):
  """The model with a long-term memory that is written in so many inner steps."""
  memory = model.memories['long_term']
  writing = dataclasses.replace(memory.writing, steps=steps)
  memory = dataclasses.replace(memory, writing=writing, **changes)
  return dataclasses.replace(model, memories={**model.memories, 'long_term': memory})


def measure_writing(model, history, repeats: int, steps: int) -> dict[str, float]:
  """Writing all episodes in one program against one at a time, in every memory of the model."""
  model = with_long_term(model, steps=steps)
  observe = jax.jit(lambda m, h, k: m.observe(m.init(h.frames.shape[0]), h, k).memories)
  batch, key = history.frames.shape[0], jax.random.key(0)
  one = jax.tree.map(lambda x: x[:1], history)
  seconds = race({'together': lambda: observe(model, history, key),
                  'alone': lambda: observe(model, one, key)}, repeats)
  return {'together_ms': 1e3 * seconds['together'] / batch, 'alone_ms': 1e3 * seconds['alone'],
          'ratio': seconds['together'] / batch / seconds['alone'], 'inner_steps': steps}


def measure_sampling(model, state, task, repeats: int) -> dict[str, dict[str, float]]:
  """One chunk of every episode, by what is composed with the base; ratios to the base alone."""
  merged = with_long_term(model, reading='merged')
  arms = {'base': model.compose('base')}
  arms |= {name: model.compose('base', name) for name in model.memories}
  arms |= {'long_term_merged': merged.compose('base', 'long_term'), 'all': model,
           'all_merged': merged}
  truth = task.same.truth
  actions, poses = (x[:, :model.chunk] for x in (truth.actions, truth.poses))
  imagine = jax.jit(lambda m, s, k: m.imagine(s, actions, poses, k)[1])
  runs = {}
  for name, arm in arms.items():
    kept = dataclasses.replace(state, memories={n: state.memories[n] for n in arm.memories})
    runs[name] = lambda arm=arm, kept=kept: imagine(arm, kept, jax.random.key(0))
  seconds = race(runs, repeats)
  frames = actions.shape[0] * model.chunk
  return {name: {'ms_per_frame': 1e3 * s / frames, 'ratio': s / seconds['base']}
          for name, s in seconds.items()}


def count_traces(model, task) -> dict[str, int]:
  """Traces of one jitted `observe` and one jitted `imagine` over histories, episodes and chunks."""
  counts = {'observe': 0, 'imagine': 0}
  model = with_long_term(model, steps=1)

  def counted(name, run):
    def traced(*args):
      counts[name] += 1
      return run(*args)
    return jax.jit(traced)

  observe = counted('observe', lambda m, *args: m.observe(*args))
  imagine = counted('imagine', lambda m, *args: m.imagine(*args)[0])
  for index in range(2):
    part = lambda tree, first, size, index=index: jax.tree.map(
        lambda x: x[index:index + 1, first:first + size], tree)
    key, state = jax.random.key(index), jax.jit(lambda m: m.init(1))(model)
    for first in (0, 20):  # the history grows
      state = observe(model, state, part(task.history, first, 20), key)
    for chunk in range(2):
      truth = part(task.same.truth, chunk * model.chunk, model.chunk)
      state = imagine(model, state, truth.actions, truth.poses, key)
  return counts


def main(argv: list[str] | None = None) -> None:
  """Measures everything, prints the table, writes speed.json."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--quick', action='store_true', help='two episodes, single repeats')
  parser.add_argument('--out', type=pathlib.Path, default=_RESULTS, help='file to write')
  options = parser.parse_args(argv)
  episodes, repeats, steps = (2, 1, 1) if options.quick else (16, 7, 10)
  begun = time.monotonic()
  model = zoo.load('cards')
  memory = model.memories['long_term']
  task = recall.problem(cards.CardsConfig(), range(episodes), split='validation', chunk=model.chunk)
  history = jax.tree.map(jnp.asarray, task.history)
  appended = jax.jit(lambda m, h: m.append(m.init(episodes), h))(memory, history)

  training, train = measure_training(*cards_base(2 if options.quick else None))
  inner, write = measure_inner_loop(memory, appended, steps)
  plain, plain_flops, own = matmuls(model.base.model.network, 1792)
  seconds = race({'training': train, 'inner': write, **plain}, repeats)
  rates = plain_rates(seconds, plain_flops, own)
  rate_of(training, seconds['training'], rates)
  rate_of(inner, seconds['inner'] / episodes / steps, rates)
  empty = model.init(episodes)
  state = dataclasses.replace(empty, memories={**empty.memories, 'long_term': write()})
  out = {
      'matmul_flops_per_second': rates,
      'training_step': training,
      'inner_loop': {**inner, 'episodes': episodes, 'rank': memory.spec.rank},
      'writing': measure_writing(model, history, 1 if options.quick else 3, steps),
      'sampling': measure_sampling(model, state, task, repeats),
      'traces': count_traces(model, task),
  }
  if not options.quick:
    out['training_step_paper'] = measure_paper(3)
  out['meta'] = results.meta(
      'python benchmarks/speed.py' + ' --quick' * options.quick, compositions.CARDS, seeds=[0],
      seconds=time.monotonic() - begun)
  whole_file.write(options.out, json.dumps(out, indent=2).encode())
  print(table(out))
  print(f'wrote {options.out}')


def table(out: dict) -> str:
  """The result in words."""
  giga = 1e-9
  rates = out['matmul_flops_per_second']
  lines = [f'plain matmuls: {giga * rates["mlp"]:.1f} GFLOP/s in the shapes of the network\'s MLP, '
           f'{giga * rates["best"]:.1f} in the best of {len(rates) - 2} shapes']
  for name, label in (('training_step', 'training step'), ('inner_loop', 'inner episode-step'),
                      ('training_step_paper', 'training step at the size of the paper')):
    if name not in out:
      continue
    m = out[name]
    lines.append(f'{label}: {m["ms"]:.2f} ms, {giga * m["flops_per_second"]:.1f} GFLOP/s, '
                 f'{100 * m["of_mlp_matmul"]:.0f} % of the MLP\'s plain matmuls, '
                 f'{100 * m["of_best_matmul"]:.0f} % of the best (target 50 %)')
  w = out['writing']
  lines.append(f'writing together: {w["together_ms"]:.0f} ms an episode, alone {w["alone_ms"]:.0f} '
               f'ms, ratio {w["ratio"]:.2f} (target <= 1), {w["inner_steps"]} inner steps')
  lines += [f'sampling {name}: {m["ms_per_frame"]:.2f} ms a frame, {m["ratio"]:.2f} x base'
            + (' (target <= 3)' if name == 'all' else '') for name, m in out['sampling'].items()]
  lines.append(f'traces: {out["traces"]} (target 1 each)')
  return '\n'.join(lines)


if __name__ == '__main__':
  main(sys.argv[1:])
