import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmpoe.training import state


@pytest.mark.parametrize(('step', 'decay'), [(0, 1 / 10), (8, 9 / 18), (10**6, 0.99)])
def test_ema_decay_warms_up(step, decay):
  new = state.update_ema(
    {'w': jnp.zeros(())}, {'w': jnp.ones(())}, step=jnp.int32(step), decay=0.99
  )
  np.testing.assert_allclose(new['w'], 1 - decay, rtol=1e-5)


def test_created_average_is_a_copy():
  # The trainer donates the state: a buffer shared by two leaves would be donated twice.
  params = {'w': jnp.arange(3.0)}
  optimizer = state.make_optimizer(learning_rate=1.0, warmup_steps=0, total_steps=1)
  made = state.create(params, optimizer)
  assert made.step == 0 and made.step.dtype == jnp.int32
  np.testing.assert_array_equal(made.ema['w'], params['w'])
  assert made.ema['w'].unsafe_buffer_pointer() != made.params['w'].unsafe_buffer_pointer()


def test_cosine_learning_rate_by_hand():
  rate = state.learning_rate_schedule(learning_rate=2.0, warmup_steps=4, total_steps=12)
  values = [float(rate(step)) for step in (0, 1, 3, 4, 8, 12, 20)]
  np.testing.assert_allclose(values, [0.5, 1.0, 2.0, 2.0, 1.0, 0.0, 0.0], atol=1e-6)


def test_constant_learning_rate_without_warmup():
  rate = state.learning_rate_schedule(
    learning_rate=2.0, warmup_steps=0, total_steps=3, schedule='constant'
  )
  assert [float(rate(step)) for step in (0, 2, 50)] == [2.0, 2.0, 2.0]


def test_unknown_schedule_is_refused():
  with pytest.raises(ValueError, match=r"schedule 'linear': expected 'cosine' or 'constant'"):
    state.make_optimizer(learning_rate=1.0, warmup_steps=0, total_steps=1, schedule='linear')


def test_weight_decay_spares_vectors_biases_and_norms():
  params = {
    'mlp': {'kernel': jnp.ones((2, 3)), 'bias': jnp.ones((5, 3))},
    'LayerNorm_0': {'weight': jnp.ones((5, 3))},
    'gain': jnp.ones(3),
    'stack': {'scale': jnp.ones((5, 3))},
  }
  optimizer = state.make_optimizer(
    learning_rate=1.0, warmup_steps=0, total_steps=9, weight_decay=0.25
  )
  updates, _ = optimizer.update(
    jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
  )
  moved = {
    jax.tree_util.keystr(path): float(leaf.mean())
    for path, leaf in jax.tree_util.tree_leaves_with_path(updates)
  }
  assert moved.pop("['mlp']['kernel']") == -0.25
  assert set(moved.values()) == {0.0} and len(moved) == 4


def test_gradient_is_clipped():
  params = {'w': jnp.zeros(2)}
  first_moments = []
  for clip_norm in (None, 0.5):
    optimizer = state.make_optimizer(
      learning_rate=1.0, warmup_steps=0, total_steps=9, clip_norm=clip_norm, b1=0.0
    )
    _, opt_state = optimizer.update({'w': jnp.array([3.0, 4.0])}, optimizer.init(params), params)
    first_moments.append(next(x for x in jax.tree.leaves(opt_state) if x.shape == (2,)))
  np.testing.assert_allclose(first_moments[0], [3.0, 4.0], rtol=1e-6)
  np.testing.assert_allclose(first_moments[1], [0.3, 0.4], rtol=1e-6)


@pytest.mark.parametrize(
  ('option', 'expected'),
  [
    ({'steps': 0}, 'steps = 0: expected at least 1'),
    ({'learning_rate': 0.0}, 'learning_rate = 0.0: expected more than 0'),
    ({'ema_decay': 1.0}, r'ema_decay = 1.0: expected in \[0, 1\)'),
    ({'schedule': 'linear'}, "schedule = 'linear': expected 'cosine' or 'constant'"),
    ({'max_seconds': 0}, 'max_seconds = 0: expected more than 0, or None'),
    ({'warmup_steps': -1}, 'warmup_steps = -1: expected at least 0'),
    ({'accumulate': 0}, 'accumulate = 0: expected at least 1'),
    ({'keep_best': -1}, 'keep_best = -1: expected at least 0'),
  ],
)
def test_options_out_of_range_are_refused(option, expected):
  with pytest.raises(ValueError, match=expected):
    state.TrainConfig(**{'steps': 1, **option})


@pytest.mark.parametrize(
  ('metrics', 'message'),
  [
    ({'loss': 0.0}, r"\['loss'\] have names that the trainer uses"),
    ({'error': jnp.zeros(3)}, r"'error': \(3,\)} have axes: expected scalars"),
  ],
)
def test_metrics_that_cannot_be_logged_are_refused(metrics, message):
  class Task:
    def init(self, key):
      return {'w': jnp.zeros(())}

    def loss(self, params, batch, key):
      return params['w'] ** 2, metrics

  config = state.TrainConfig(steps=1)
  task = Task()
  made = state.create(task.init(None), state.optimizer_of(config))
  with pytest.raises(ValueError, match=message):
    state.make_train_step(task, config)(made, {}, jax.random.key(0))


def test_a_batch_in_parts_gives_the_same_update_with_keys_of_their_own():
  class Task:
    def init(self, key):
      return {'w': jnp.zeros(2)}

    def loss(self, params, batch, key):
      return jnp.mean((batch - params['w']) ** 2), {'draw': jax.random.normal(key)}

  batch, key, results = jnp.arange(12.0).reshape(6, 2), jax.random.key(0), {}
  for parts in (1, 3):
    config = state.TrainConfig(steps=5, accumulate=parts, clip_norm=None, warmup_steps=0)
    made = state.create(Task().init(None), state.optimizer_of(config))
    results[parts] = state.make_train_step(Task(), config)(made, batch, key)
  (whole, first), (parted, second) = results[1], results[3]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole.opt_state, parted.opt_state)
  np.testing.assert_allclose(second['loss'], first['loss'], rtol=1e-6)
  step_key = jax.random.fold_in(key, 0)
  draws = [jax.random.normal(jax.random.fold_in(step_key, part)) for part in range(3)]
  np.testing.assert_allclose(second['draw'], np.mean(draws), rtol=1e-5)


class Pair:
  """Two weights, both of which the loss would move, and weight decay, too."""

  def init(self, key):
    return {'body': {'w': jnp.ones((2, 2))}, 'head': {'w': jnp.ones((2, 2))}}

  def loss(self, params, batch, key):
    return jnp.sum((params['body']['w'] * params['head']['w'] - batch) ** 2), {}


@pytest.mark.parametrize('parts', [1, 2])
def test_what_is_not_to_learn_stays_and_costs_no_optimiser_state(parts):
  config = state.TrainConfig(
    steps=5, learn='^head/', warmup_steps=0, weight_decay=0.1, clip_norm=1e-3, accumulate=parts)
  optimizer, task = state.optimizer_of(config), Pair()
  made = state.create(task.init(None), optimizer)
  moments = [leaf for leaf in jax.tree.leaves(made.opt_state) if leaf.ndim == 2]
  assert len(moments) == 2, "Adam's two, of the head alone"
  moved, metrics = state.make_train_step(task, config)(
    made, jnp.zeros((2, 2, 2)), jax.random.key(0))
  for tree in (moved.params, moved.ema):
    np.testing.assert_array_equal(tree['body']['w'], 1.0)
    assert np.all(tree['head']['w'] != 1.0)
  # The head's gradient alone: 2 at each of four weights, for each of a batch of two.
  np.testing.assert_allclose(metrics['grad_norm'], 8.0 / parts)


def test_a_pattern_that_nothing_matches():
  with pytest.raises(ValueError, match=r"learn='tail' matches the path of no .* body/w, head/w"):
    state.learns(Pair().init(None), 'tail')
