"""The ten laws of the house, one by one, on small real networks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import small
from wmpoe.data import cards
from wmpoe.data import pipeline
from wmpoe.diffusion import analytic
from wmpoe.diffusion import predictions
from wmpoe.diffusion import samplers
from wmpoe.experts import composition
from wmpoe.experts import expert
from wmpoe.experts import objective
from wmpoe.training import tasks
from wmpoe.training import trainer

WORLD = small.world()
BASE = WORLD.compose('base')
KEYS = jax.random.split(jax.random.key(4), 2)
CONDITIONS = small.conditions(2, 4, seed=7)

_observe = jax.jit(WORLD.observe)
_imagine = jax.jit(WORLD.imagine)


@pytest.fixture(scope='module')
def written():
  return _observe(small.init(WORLD, 2), small.observation(2, 5), KEYS)


@pytest.fixture(scope='module')
def dreamt_by_base(written):
  """What the base alone dreams, with no context and after the observed frames."""
  imagine = jax.jit(BASE.imagine)
  after = small.init(BASE, 2).replace(recent=written.recent)
  return imagine(small.init(BASE, 2), *CONDITIONS, KEYS)[1], imagine(after, *CONDITIONS, KEYS)[1]


@functools.partial(jax.jit, static_argnames='rule')
def _estimate(base, contrasts, rule=composition.shared_base):
  """A composed estimate for one pair of episodes."""
  return composition.compose(base, contrasts, rule)(*small.noisy(2, 2))


@pytest.fixture(scope='module')
def bound():
  """Denoisers of real networks: base, and `(positive, negative)` of a short-term memory."""
  experts = small.experts()

  @jax.jit
  def run(query):
    state = experts.short_term.write(
        small.init(experts.short_term, 2), small.observation(2, 4), jax.random.key(0))
    contrast = experts.short_term.read(state, query)
    return experts.base.read(query), contrast.positive, contrast.negative

  return run(small.query(2))


@pytest.mark.parametrize('name', ['short_term', 'long_term', 'spatial'])
def test_law_1_an_empty_memory_is_the_base_bit_for_bit_through_compose(name):
  x, logsnr = small.noisy(2, 2)
  memory, query = WORLD.memories[name], small.query(2)

  def both(query):
    base = WORLD.base.read(query)
    contrast = memory.read(small.init(memory, 2), dataclasses.replace(query, base=base))
    return composition.compose(base, [contrast])(x, logsnr)

  alone = jax.jit(lambda query: WORLD.base.read(query)(x, logsnr))
  small.same(jax.jit(both)(query), alone(query))


def test_law_1_through_imagine_from_the_start_and_with_a_context(written, dreamt_by_base):
  # The short-term memory follows what is imagined: from the second chunk on it is not empty.
  world = dataclasses.replace(WORLD, follows=())
  imagine = jax.jit(world.imagine)
  nothing, context = dreamt_by_base
  small.same(imagine(small.init(world, 2), *CONDITIONS, KEYS)[1], nothing)
  after = small.init(world, 2).replace(recent=written.recent)
  small.same(imagine(after, *CONDITIONS, KEYS)[1], context)
  assert np.any(nothing != context)
  remembered = written.replace(recent=written.recent)
  assert np.any(imagine(remembered, *CONDITIONS, KEYS)[1] != context)


def test_law_2_one_contrast_is_classifier_free_guidance(bound):
  _, positive, negative = bound
  x, logsnr = small.noisy(2, 2)
  estimate = jax.jit(lambda d: d(x, logsnr))
  conditional, unconditional = estimate(positive), estimate(negative)
  for weight in (0.0, 1.0, 2.5):
    guided = (1 - weight) * unconditional + weight * conditional
    contrast = expert.Contrast(positive=positive, negative=negative, weight=weight)
    small.close(_estimate(None, [contrast]), guided, atol=1e-4)
    small.close(_estimate(negative, [contrast]), guided, atol=1e-4)
    small.close(_estimate(None, [contrast], composition.mean), guided, atol=1e-4)
  small.differ(conditional, unconditional)


def test_law_3_zero_weight_an_equal_pair_and_any_order(bound):
  base, positive, negative = bound
  x, logsnr = small.noisy(2, 2)
  alone = jax.jit(base.__call__)(x, logsnr)
  pair = lambda p, n, w: expert.Contrast(positive=p, negative=n, weight=w)
  small.same(_estimate(base, [pair(positive, negative, 0.0)]), alone)
  small.same(_estimate(base, [pair(positive, positive, 5.0)]), alone)
  first, second = pair(positive, negative, 0.5), pair(negative, None, 2.0)
  for rule in composition.RULES.values():
    small.close(_estimate(base, [first, second], rule), _estimate(base, [second, first], rule),
                atol=1e-4)
  small.differ(_estimate(base, [first, second]), alone)


@pytest.mark.parametrize('rule', composition.DEFAULT_RULES)
def test_law_4_total_weight_one_whatever_is_composed(bound, rule):
  base, positive, negative = bound
  x, logsnr = small.noisy(2, 2)
  estimates = jax.jit(lambda: [d(x, logsnr) for d in (base, positive, negative)])()
  rule = composition.RULES[rule]
  combine = lambda b, p, n: rule(b, [(p, n, jnp.float32(1.7)), (n, b, jnp.float32(0.4))])
  expected = combine(*estimates)
  one = jnp.ones(())
  np.testing.assert_allclose(combine(one, one, one), 1.0, rtol=1e-6)
  for name, back in (
      ('x0', predictions.eps_from_x0), ('v', predictions.eps_from_v),
      ('score', predictions.eps_from_score)):
    there = getattr(predictions, f'{name}_from_eps')
    spoken = [there(x, eps, logsnr) for eps in estimates]
    small.close(back(x, combine(*spoken), logsnr), expected, atol=1e-3)


def test_law_5_null_changes_only_context_frames_in_every_chunk_and_row():
  model, query = small.model(), small.query(3)
  weights = small.params(model)
  given = {}

  class Spy(type(model.codec)):
    """The codec, nothing else: makes another model, so that nothing is cached."""

  model = dataclasses.replace(model, codec=Spy())
  bind = jax.jit(lambda q, null: expert.bind(model, weights, q, null=null), static_argnums=1)
  for chunk in range(2):
    q = dataclasses.replace(query, key=jax.vmap(jax.random.fold_in, (0, None))(query.key, chunk))
    plain, null = bind(q, False), bind(q, True)
    small.same((null.actions, null.poses, null.params), (plain.actions, plain.poses, plain.params))
    assert null.past.keys[0].shape == plain.past.keys[0].shape
    for row in range(3):
      for layer in range(2):
        small.differ(null.past.keys[layer][row], plain.past.keys[layer][row])
    # What the null draws is fixed over the denoising steps, new in every chunk, own in every row.
    small.same(bind(q, True).past, null.past)
    given[chunk] = np.asarray(null.past.values[0])
  assert np.all(np.abs(given[0] - given[1]).max(axis=(1, 2, 3)) > 1e-3)
  small.differ(given[0][0], given[0][1])


def test_law_6_reset_gives_init(written, dreamt_by_base):
  fresh = small.init(WORLD, 2)
  small.same(small.init(WORLD, 2), fresh)
  assert jax.tree.structure(fresh) == jax.tree.structure(written)
  # A reset episode beside one that goes on: rows are all there is to an episode.
  mixed = jax.tree.map(
      lambda new, old: jnp.concatenate([new[:1].astype(old.dtype), old[1:]]), fresh, written)
  frames = _imagine(mixed, *CONDITIONS, KEYS)[1]
  small.same(frames[0, :2], dreamt_by_base[0][0, :2])
  small.same(frames[1], _imagine(written, *CONDITIONS, KEYS)[1][1])
  again = _observe(fresh, small.observation(2, 5), KEYS)
  small.same(again, written)


def test_law_7_a_batch_is_its_episodes_one_at_a_time(written):
  observe = jax.jit(WORLD.observe)
  for row in range(2):
    one = observe(
        small.init(WORLD, 1), jax.tree.map(lambda x, r=row: x[r:r + 1], small.observation(2, 5)),
        KEYS[row:row + 1])
    small.close(one, jax.tree.map(lambda x, r=row: x[r:r + 1], written), atol=2e-4)
  lora = written.memories['long_term'].lora['block_0']['query']['b']
  small.differ(lora[0], lora[1])


def test_law_8_no_retrace(written):
  traces = []
  rule_calls = []

  def rule(base, terms):
    rule_calls.append(1)
    return composition.shared_base(base, terms)

  world = dataclasses.replace(
      WORLD, rule=rule, memories={k: WORLD.memories[k] for k in ('short_term', 'spatial')})

  @jax.jit
  def episode(world, state, seen, actions, poses, keys):
    traces.append(1)
    return world.imagine(world.observe(state, seen, keys), actions, poses, keys)

  state, _ = episode(world, small.init(world, 2), small.observation(2, 2), *CONDITIONS, KEYS)
  per_chunk = len(rule_calls)
  # Growing memories, another episode, other keys, other weights, other parameters.
  state, _ = episode(world, state, small.observation(2, 2, seed=1), *CONDITIONS, KEYS)
  episode(world, small.init(world, 2), small.observation(2, 2, seed=2), *CONDITIONS, KEYS[::-1])
  episode(world.compose('base', 'short_term', 'spatial', weights={'spatial': 0.3}),
          state, small.observation(2, 2), *CONDITIONS, KEYS)
  other = jax.tree.map(lambda x: x * 0.9, world.base)
  episode(dataclasses.replace(world, base=other), state, small.observation(2, 2), *CONDITIONS, KEYS)
  assert len(traces) == 1
  # One chunk or many is one program: the scan's body is traced as often for four as for two.
  jax.eval_shape(world.imagine, state, *small.conditions(2, 8), KEYS)
  assert len(rule_calls) == 2 * per_chunk


def test_law_8_growing_histories_are_one_program():
  traces = []

  @jax.jit
  def write(state, seen):
    traces.append(1)
    return WORLD.memories['long_term'].append(state, seen)

  state = WORLD.memories['long_term'].init(2)
  for seed in range(6):  # over the capacity, too
    state = write(state, small.observation(2, 3, seed=seed))
  assert len(traces) == 1
  np.testing.assert_array_equal(state.history.length, [8, 8])


def test_law_9_a_composition_of_gaussians_is_sampled_to_its_moments():
  """Equal spreads: the shared base moves the mean by the contrast and keeps the spread.

  eps is affine in the mean, so `base + w (positive - negative)` is the exact denoiser of
  `N(m + w (m+ - m-), s^2)`. tests/diffusion/samplers_test.py has the denoisers alone.
  """
  gaussian = lambda mean: analytic.GaussianDenoiser(mean=jnp.float32(mean), std=jnp.float32(0.4))
  composed = composition.compose(gaussian(0.5), [
      expert.Contrast(positive=gaussian(0.3), negative=gaussian(-0.2), weight=1.5),
      expert.Contrast(positive=gaussian(0.1), negative=None, weight=0.5)])
  x = jax.jit(lambda key: samplers.sample(
      composed, samplers.DDIM(), key, (64, 2, 8, 8, 1), 60, schedule=small.SCHEDULE))(
          jax.random.key(0))
  np.testing.assert_allclose(np.mean(x), 0.5 + 1.5 * 0.5 + 0.5 * (0.1 - 0.5), atol=0.02)
  np.testing.assert_allclose(np.std(x), 0.4, rtol=0.05)


ENV = cards.CardsConfig(size=16, grid=2, symbols=2, length=20)


def test_law_10_save_restore_continue_is_bit_identical(tmp_path):
  model = small.model(depth=1)
  task = tasks.DenoisingTask(
      model=model, objective=objective.Objective(), action_dim=cards.NUM_ACTIONS, pose_dim=2)
  config = trainer.TrainConfig(
      steps=4, batch_size=2, warmup_steps=2, schedule='constant', log_every=1, checkpoint_every=2)
  batches = lambda: iter(pipeline.make_pipeline(
      cards.CardsSource(config=ENV, size=8), transform=cards.RandomClip(ENV, 2, 2), batch_size=2,
      seed=0))
  whole, first, second = batches(), batches(), batches()
  straight = trainer.train(task, whole, tmp_path / 'whole', config=config)
  trainer.train(
      task, first, tmp_path / 'halves', config=dataclasses.replace(config, steps=2))
  resumed = trainer.train(task, second, tmp_path / 'halves', config=config)
  assert resumed.step == straight.step == 4
  small.same(resumed.state, straight.state)
  small.same(next(second), next(whole))  # the data goes on where it was
  small.differ(straight.state.params['output']['kernel'], 0.0)
