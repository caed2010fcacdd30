"""Tests of the training loop on a small denoiser; run as a script it is one job to be killed."""

import dataclasses
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time

from absl import app
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wmpoe
from wmpoe import multihost
from wmpoe import sharding
from wmpoe.training import checkpoints
from wmpoe.training import locks
from wmpoe.training import metrics_log
from wmpoe.training import state as state_lib
from wmpoe.training import trainer

CONFIG = trainer.TrainConfig(
  steps=30, batch_size=4, learning_rate=1e-2, warmup_steps=5, weight_decay=0.1, ema_decay=0.9,
  log_every=5, checkpoint_every=7, eval_every=10, keep=2, seed=3,
)  # fmt: skip


class Denoiser:
  """A two-layer denoiser of points on a circle: eps_hat = W2 gelu(W1 [x_t, sigma] + b1)."""

  def init(self, key):
    first, second = jax.random.split(key)
    return {
      'hidden': {'kernel': 0.5 * jax.random.normal(first, (3, 8)), 'bias': jnp.zeros(8)},
      'out': {'kernel': 0.1 * jax.random.normal(second, (8, 2))},
    }

  def loss(self, params, batch, key):
    noise_key, level_key = jax.random.split(key)
    x0 = batch['x']
    sigma = jax.random.uniform(level_key, (x0.shape[0], 1))
    eps = jax.random.normal(noise_key, x0.shape)
    x_t = jnp.sqrt(1 - sigma**2) * x0 + sigma * eps
    inputs = jnp.concatenate([x_t, sigma], axis=-1)
    hidden = jax.nn.gelu(inputs @ params['hidden']['kernel'] + params['hidden']['bias'])
    error = jnp.mean((hidden @ params['out']['kernel'] - eps) ** 2)
    return error, {'sigma': jnp.mean(sigma)}


class Pull:
  """Pulls one point to the data: what does not depend on the task compiles faster with it."""

  def init(self, key):
    del key
    return {'w': jnp.zeros(2)}

  def loss(self, params, batch, key):
    del key
    return jnp.mean((batch['x'] - params['w']) ** 2), {}


def circle(angle):
  return {'x': np.array([np.cos(angle), np.sin(angle)], np.float32)}


def make_batches():
  data = grain.MapDataset.range(100).seed(1).shuffle().map(circle).repeat()
  return iter(data.to_iter_dataset().batch(4))


def evaluate(ema, step):
  del step
  return {'first': float(jax.tree.leaves(ema)[0].ravel()[0])}


class Wrapped:
  """The batches, each passed through a function of its number in this session (1, 2, ...)."""

  def __init__(self, function):
    self._batches, self._function, self._number = make_batches(), function, 0

  def __next__(self):
    self._number += 1
    return self._function(next(self._batches), self._number)

  def get_state(self):
    return self._batches.get_state()

  def set_state(self, state):
    self._batches.set_state(state)


RUN = {'model': {'width': 8, 'depth': 1}, 'note': 'a'}


def run(workdir, *, config=CONFIG, task=None, batches=None, eval_fn=evaluate, **kwargs):
  kwargs = {'run_config': RUN, **kwargs}
  return trainer.train(
    task or Denoiser(), batches or make_batches(), workdir,
    config=config, eval_fn=eval_fn, **kwargs,
  )  # fmt: skip


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def rows(workdir):
  """The log without what depends on the clock."""
  return [
    {k: v for k, v in row.items() if k not in ('seconds', 'steps_per_second')}
    for row in metrics_log.read(workdir)
  ]


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
  return run(tmp_path_factory.mktemp('undisturbed'))


def assert_as_undisturbed(result, undisturbed):
  assert result.finished
  assert_same(result.state, undisturbed.state)
  assert rows(result.workdir) == rows(undisturbed.workdir)
  saved = checkpoints.load_params(result.workdir, 'params')[0]
  assert_same(saved, undisturbed.state.params)


def test_undisturbed_run_logs_every_row_once_and_learns(undisturbed):
  logged = rows(undisturbed.workdir)
  assert [r['step'] for r in logged if r['kind'] == 'train'] == list(range(5, 31, 5))
  assert [r['step'] for r in logged if r['kind'] == 'eval'] == [10, 20, 30]
  train_rows = [r for r in logged if r['kind'] == 'train']
  assert train_rows[-1]['examples'] == 120
  assert train_rows[-1]['loss'] < 0.9 * train_rows[0]['loss']
  kept = sorted(p.name for p in (undisturbed.workdir / checkpoints.FOLDER).iterdir())
  assert kept == ['28', '30']


def test_golden_first_step():
  config = dataclasses.replace(CONFIG, clip_norm=None, schedule='constant', warmup_steps=0)
  optimizer = state_lib.optimizer_of(config)
  params = Denoiser().init(jax.random.key(0))
  state = state_lib.create(params, optimizer)
  batch, key = next(make_batches()), jax.random.key(1)
  params = jax.tree.map(np.array, params)
  new, metrics = trainer.make_train_step(Denoiser(), config)(state, batch, key)
  golden = {
    'loss': 1.4808911, 'sigma': 0.3738080, 'grad_norm': 0.9112797, 'update_norm': 0.0697375,
    'learning_rate': 0.01,
  }  # fmt: skip
  assert metrics.keys() == golden.keys()
  for name, value in golden.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
  # The first moment starts at (1 - b1) of the gradient, b1 = 0.9.
  gradient = jax.tree.map(lambda m: m / 0.1, optax.tree.get(new.opt_state, 'mu'))
  # AdamW's first step by hand: both moments are unbiased to the gradient itself, so each entry
  # moves by lr sign(g), and matrices decay by lr * 0.1 of themselves on top.
  for path, decay in ((('hidden', 'kernel'), 0.1), (('hidden', 'bias'), 0.0)):
    p, g = params[path[0]][path[1]], np.asarray(gradient[path[0]][path[1]])
    expected = p - 0.01 * (g / (np.abs(g) + 1e-8) + decay * p)
    np.testing.assert_allclose(new.params[path[0]][path[1]], expected, rtol=1e-4, atol=1e-6)
    # The average's first decay is (1 + 0) / (10 + 0).
    average = 0.1 * p + 0.9 * np.asarray(new.params[path[0]][path[1]])
    np.testing.assert_allclose(new.ema[path[0]][path[1]], average, rtol=1e-5, atol=1e-6)
  assert new.step == 1 and new.step.dtype == jnp.int32


def test_stopped_by_signals_and_time_the_same_command_continues_bit_identically(
  tmp_path, undisturbed, monkeypatch, capfd
):
  def kill_at(step, number):
    def eval_fn(ema, at):
      if at == step:
        os.kill(os.getpid(), number)
      return evaluate(ema, at)

    return eval_fn

  before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
  first = run(tmp_path, eval_fn=kill_at(10, signal.SIGTERM))
  assert (first.reason, first.step) == ('signal', 10)
  said = capfd.readouterr().err
  assert 'stopped by SIGTERM at step 10/30' in said
  assert 'run the same command again to continue' in said

  now = [0.0]

  def tick(batch, number):
    now[0] = float(number)
    return batch

  with monkeypatch.context() as patched:
    patched.setattr(metrics_log, 'clock', lambda: now[0])
    limited = dataclasses.replace(CONFIG, max_seconds=3.0)
    second = run(tmp_path, config=limited, batches=Wrapped(tick))
  assert second.reason == 'time' and not second.finished
  # Inside a logging window and between two checkpoints, where most could be lost.
  assert second.step == 12
  assert checkpoints.load_params(tmp_path)[1]['step'] == second.step
  said = capfd.readouterr().err
  assert 'from step 10' in said and f'stopped at the time limit at step {second.step}/30' in said

  third = run(tmp_path, eval_fn=kill_at(20, signal.SIGINT))
  assert (third.reason, third.step) == ('signal', 20)
  assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
  assert_as_undisturbed(run(tmp_path), undisturbed)


def test_sigkill_at_a_random_moment_continues_bit_identically(tmp_path, undisturbed, capfd):
  environment = {**os.environ, 'PYTHONPATH': str(pathlib.Path(wmpoe.__file__).parents[1])}
  job = subprocess.Popen(
    [sys.executable, '-W', 'error::DeprecationWarning', __file__, str(tmp_path)],
    env=environment, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip
  log = tmp_path / metrics_log.FILENAME
  while job.poll() is None and not (log.exists() and log.stat().st_size):
    time.sleep(0.01)
  time.sleep(random.uniform(0.0, 0.6))
  job.kill()
  said = job.communicate()[1]
  assert job.returncode == -signal.SIGKILL, said
  assert (tmp_path / locks.LOCK).exists()  # The dead job's lock does not keep us out.
  folder = tmp_path / checkpoints.FOLDER
  there = [int(p.name) for p in folder.iterdir() if p.name.isdigit()] if folder.exists() else []
  capfd.readouterr()
  assert_as_undisturbed(run(tmp_path), undisturbed)
  said = capfd.readouterr().err
  assert f'from step {max(there)}' in said if there else 'continuing' not in said


def test_finished_run_is_left_as_it_is(undisturbed, capfd):
  logged = metrics_log.read(undisturbed.workdir)
  again = run(undisturbed.workdir, next_hint='make tea')
  assert metrics_log.read(undisturbed.workdir) == logged
  assert_as_undisturbed(again, undisturbed)
  assert 'finished all 30 steps' in (said := capfd.readouterr().err) and 'next: make tea' in said


class FlatAtZero(Denoiser):
  """Adds sqrt(sum |x|): finite everywhere, with a gradient that is not when the batch is 0."""

  def loss(self, params, batch, key):
    loss, metrics = super().loss(params, batch, key)
    reach = jnp.sum(jnp.square(params['out']['kernel'])) * jnp.sum(jnp.square(batch['x']))
    return loss + 1e-3 * jnp.sqrt(reach), metrics


@pytest.mark.parametrize(
  ('task', 'poison', 'names'),
  [(Denoiser(), np.nan, "'loss': nan"), (FlatAtZero(), 0.0, "'grad_norm': nan")],
)
def test_divergence_names_step_and_last_good_checkpoint(tmp_path, task, poison, names):
  # A checkpoint is due at step 14 itself: it must not be made.
  batches = Wrapped(lambda b, n: {'x': np.full_like(b['x'], poison)} if n == 14 else b)
  with pytest.raises(trainer.DivergedError) as caught:
    run(tmp_path, task=task, batches=batches)
  message = str(caught.value)
  assert 'diverged at step 14' in message and names in message
  assert str(tmp_path / checkpoints.FOLDER / '7') in message
  params, meta = checkpoints.load_params(tmp_path, 'params')
  assert meta['step'] == 7
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_end_of_data_keeps_what_was_trained(tmp_path):
  def end(batch, number):
    if number > 9:
      raise StopIteration
    return batch

  with pytest.raises(RuntimeError, match=r'ended after step 9 of 30.*repeat\(\).*checkpoints/9'):
    run(tmp_path, task=Pull(), batches=Wrapped(end))
  assert checkpoints.load_params(tmp_path)[1]['step'] == 9


def test_another_configuration_is_refused_with_the_keys(tmp_path):
  config = dataclasses.replace(CONFIG, steps=2)
  run(tmp_path, config=config, task=Pull())
  other = dataclasses.replace(config, learning_rate=0.5)
  wider = {'model': {'width': 9, 'depth': 1}, 'note': 'a'}
  with pytest.raises(ValueError, match='another configuration') as caught:
    run(tmp_path, config=other, task=Pull(), run_config=wider)
  message = str(caught.value)
  assert 'train.learning_rate: 0.01 there, 0.5 now' in message
  assert 'run.model.width: 8 there, 9 now' in message
  assert 'depth' not in message and 'train.seed' not in message
  longer = dataclasses.replace(config, steps=4, log_every=1, checkpoint_every=2, keep=1)
  noted = {**RUN, 'note': 'b'}
  result = run(tmp_path, config=longer, task=Pull(), run_config=noted, may_differ=('note',))
  assert result.step == 4


def test_a_pod_waits_until_the_folder_is_its_own(tmp_path, monkeypatch):
  order = []
  noting = lambda name, call: lambda *args: (order.append(name), call(*args))[1]
  for where, name in ((locks, 'lock'), (multihost, 'barrier'), (multihost, 'told')):
    monkeypatch.setattr(where, name, noting(name, getattr(where, name)))
  run(tmp_path / 'run', config=dataclasses.replace(CONFIG, steps=1), task=Pull())
  assert order[:3] == ['lock', 'barrier', 'told'], 'collectives do not wait as long as a lock may'


def test_folder_that_cannot_be_written_is_named(tmp_path):
  file = tmp_path / 'file'
  file.write_text('in the way')
  with pytest.raises(OSError, match=r'file/run cannot be written to.*choose another workdir'):
    run(file / 'run')


def test_misshapen_batch_is_refused(tmp_path):
  config = dataclasses.replace(CONFIG, batch_size=5)
  with pytest.raises(ValueError, match=r'leading axes \[\(4,\)\].*batch_size = 5'):
    run(tmp_path, config=config, task=Pull())


def test_a_mesh_that_spreads_experts_is_refused(tmp_path):
  mesh = jax.sharding.AbstractMesh((1, 1, 1, 2), sharding.AXES)
  with pytest.raises(ValueError, match=r'expert=2, but one expert is trained at a time.*data or f'):
    run(tmp_path, task=Pull(), mesh=mesh)


def test_the_best_checkpoint_is_one_that_was_evaluated(tmp_path):
  config = dataclasses.replace(
    CONFIG, steps=6, checkpoint_every=4, eval_every=1, keep=1, keep_best=1, best_metric='first')
  away = {2: -1.0}
  run(tmp_path, config=config, task=Pull(), eval_fn=lambda _, step: {'first': away.get(step, 1.0)})
  kept = sorted(p.name for p in (tmp_path / checkpoints.FOLDER).iterdir())
  assert kept == ['2', '6']


def test_iterator_without_position_is_refused(tmp_path):
  with pytest.raises(TypeError, match=r'list_iterator.*get_state\(\)'):
    run(tmp_path, batches=iter([{'x': np.zeros((4, 2))}]))


def test_donated_state_is_saved_as_it_was(tmp_path):
  seen = {}

  def eval_fn(ema, step):
    seen[step] = jax.tree.map(np.array, ema)
    return {}

  config = dataclasses.replace(CONFIG, steps=6, checkpoint_every=1, eval_every=1, keep=6)
  run(tmp_path, config=config, task=Pull(), eval_fn=eval_fn)
  for step in range(1, 7):
    assert_same(checkpoints.load_params(tmp_path, step=step)[0], seen[step])
  assert np.any(seen[1]['w'] != seen[2]['w'])


def test_runs_outside_the_main_thread(tmp_path):
  results = []
  config = dataclasses.replace(CONFIG, steps=2)
  thread = threading.Thread(
    target=lambda: results.append(run(tmp_path, config=config, task=Pull()))
  )
  thread.start()
  thread.join()
  assert results[0].finished


def main(argv):
  def slow(batch, number):
    time.sleep(0.03 if number > 5 else 0.0)
    return batch

  run(argv[1], batches=Wrapped(slow))


if __name__ == '__main__':
  app.run(main)
