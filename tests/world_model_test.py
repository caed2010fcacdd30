"""Tests of the world model: streaming episodes in a batch, on small real networks."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import small
from wmpoe.experts import composition
from wmpoe.experts import expert

WORLD = small.world()
NAMES = ('base', 'short_term', 'long_term', 'spatial')
SUBSETS = [
    names for size in range(1, 5) for names in itertools.combinations(NAMES, size)]
KEYS = jax.random.split(jax.random.key(4), 2)

_observe = jax.jit(lambda state, seen, key: WORLD.observe(state, seen, key))
_imagine = jax.jit(WORLD.imagine)
_says = jax.jit(lambda world, state, query: world.denoiser(state, query)(*small.noisy(2, 2)))


@pytest.fixture(scope='module')
def seen():
  """Two episodes of which five frames were observed."""
  return _observe(small.init(WORLD, 2), small.observation(2, 5), KEYS)


@pytest.fixture(scope='module')
def dreamt(seen):
  """Four frames imagined after them, in two chunks: `(state, frames)`."""
  return _imagine(seen, *small.conditions(2, 4, seed=7), KEYS)


@pytest.fixture(scope='module')
def parts(seen):
  """The estimates of every expert for one query: `(query, {name: (positive, negative)})`."""
  noisy = small.noisy(2, 2)

  @jax.jit
  def run(state, query):
    base = WORLD.base.read(query)
    query = dataclasses.replace(query, base=base)
    out = {'base': base(*noisy)}
    for name, memory in WORLD.memories.items():
      contrast = memory.read(state.memories[name], query)
      negative = out['base'] if contrast.negative is None else contrast.negative(*noisy)
      out[name] = contrast.positive(*noisy), negative
    return out

  query = small.query(2, recent=seen.recent)
  return query, run(seen, query)


@pytest.fixture(scope='module')
def composed(seen, parts):
  """What every subset says to that query: in one program, which shares what they have in common."""
  run = jax.jit(lambda state, query: [
      WORLD.compose(*names).denoiser(state, query)(*small.noisy(2, 2)) for names in SUBSETS])
  return dict(zip(SUBSETS, run(seen, parts[0]), strict=True))


def test_observing_fills_recent_frames_and_every_memory(seen):
  whole = small.observation(2, 5)
  small.same(seen.recent.frames, whole.frames[:, 3:])
  small.same(seen.memories['short_term'].frames, whole.frames[:, 1:])
  np.testing.assert_array_equal(seen.memories['long_term'].step, [2, 2])
  np.testing.assert_array_equal(seen.memories['long_term'].history.length, [5, 5])
  assert np.all(seen.memories['spatial'].seen > 0)
  for leaf in jax.tree.leaves(seen):
    assert leaf.shape[0] == 2


def test_imagined_frames_are_recent_and_followed_by_the_short_term_alone(seen, dreamt):
  state, frames = dreamt
  assert frames.shape == (2, 4, *small.FRAME) and frames.dtype == np.uint8
  assert np.unique(frames).size > 50
  small.same(state.recent.frames, frames[:, 2:])
  small.same(state.memories['short_term'].frames, frames)
  actions, poses = small.conditions(2, 4, seed=7)
  small.same(state.recent.actions, actions[:, 2:])
  small.same(state.recent.poses, poses[:, 2:])
  for name in ('long_term', 'spatial'):
    small.same(state.memories[name], seen.memories[name])


def test_forks_do_not_touch_one_another(seen, dreamt):
  before = jax.tree.map(np.array, seen)
  _imagine(seen, *small.conditions(2, 4, seed=8), KEYS)
  small.same(seen, before)
  again = _imagine(seen, *small.conditions(2, 4, seed=7), KEYS)
  small.same(again, dreamt)


def test_what_the_dream_depends_on(seen, dreamt):
  actions, poses = small.conditions(2, 4, seed=7)
  other = {
      'late actions': (seen, actions.at[1, 3].set(1 - actions[1, 3]), poses, KEYS),
      'memory': (_observe(small.init(WORLD, 2), small.observation(2, 5, seed=3), KEYS), actions,
                 poses, KEYS),
      'key': (seen, actions, poses, KEYS[::-1]),
  }
  for name, arguments in other.items():
    _, frames = _imagine(*arguments)
    assert np.any(frames != dreamt[1]), name
    if name == 'late actions':  # neither the chunk before nor the other episode knows
      small.same(frames[:, :2], dreamt[1][:, :2])
      small.same(frames[0], dreamt[1][0])


def test_an_episode_dreams_the_same_in_any_batch(seen, dreamt):
  actions, poses = small.conditions(2, 4, seed=7)
  one = jax.tree.map(lambda x: x[1:], (seen, actions, poses, KEYS))
  _, frames = _imagine(*one)
  apart = np.abs(frames[0].astype(int) - dreamt[1][1].astype(int))
  assert apart.max() <= 1, 'up to rounding to whole grey levels'


def test_one_key_stands_for_one_per_episode(seen):
  key = jax.random.key(9)
  small.same(_imagine(seen, *small.conditions(2, 2), key)[1],
             _imagine(seen, *small.conditions(2, 2), jax.random.split(key, 2))[1])


@pytest.mark.parametrize('names', SUBSETS, ids='+'.join)
def test_every_subset_composes(names, parts, composed):
  world, (_, known) = WORLD.compose(*names), parts
  assert set(world.memories) == set(names) - {'base'}
  # Without base the first memory's own baseline is the anchor.
  memories = [name for name in NAMES if name in names and name != 'base']
  expected = known['base'] if 'base' in names else known[memories[0]][1]
  for name in memories:
    expected = expected + (known[name][0] - known[name][1])
  np.testing.assert_allclose(composed[names], expected, atol=1e-3)


def test_memories_are_composed_in_the_order_they_are_named_also_as_an_argument_of_jit(seen, parts):
  query, known = parts
  shares = composition.WeightedMean((0.5, 0.4, 0.1))
  for first, second in (('spatial', 'long_term'), ('long_term', 'spatial')):
    world = WORLD.compose('base', first, second, rule=shares)
    expected = sum(
        share * estimate for share, estimate in zip(
            shares.shares, (known['base'], known[first][0], known[second][0]), strict=True))
    small.close(_says(world, seen, query), expected, atol=1e-3)
  # Without a base the first one's own baseline is the anchor.
  memories = {**WORLD.memories, 'long_term': WORLD.memories['long_term'].replace(baseline='null')}
  world = dataclasses.replace(WORLD, memories=memories)
  anchored = [_says(world.compose(*names), seen, query) for names in (
      ('spatial', 'short_term'), ('short_term', 'spatial'))]
  (near, null), (mapped, blank) = known['short_term'], known['spatial']
  evidence = near - null + mapped - blank
  small.close(anchored[0], blank + evidence, atol=1e-3)
  small.close(anchored[1], null + evidence, atol=1e-3)


def test_branches_of_the_same_parameters_share_a_call_where_the_model_is_an_argument(
    seen, parts, monkeypatch):
  query, _ = parts
  nulled = WORLD.memories['long_term'].replace(baseline='null')
  world = dataclasses.replace(WORLD, memories={'long_term': nulled})
  calls = []
  run = expert.NetworkDenoiser.__call__
  monkeypatch.setattr(
      expert.NetworkDenoiser, '__call__',
      lambda self, *noisy: (calls.append(len(noisy[0])), run(self, *noisy))[1])
  says = lambda world: world.denoiser(seen, query)(*small.noisy(2, 2))
  jax.eval_shape(says, world)
  assert sorted(calls) == [2, 4], 'two episodes; base and its null together, adapters apart'


def test_new_numbers_compile_nothing_whatever_type_they_have():
  number = jax.jit(lambda world: world.memories['spatial'].weight)
  for weight in (1.0, 2, np.float32(0.5), np.float64(0.25)):
    assert number(WORLD.compose('base', 'spatial', weights={'spatial': weight})) == float(weight)
  for weights in ([1, 2], np.array([0.5, 1.0]), jnp.array([2.0, 3.0])):
    small.same(number(WORLD.compose('base', 'spatial', weights={'spatial': weights})),
               np.asarray(weights, np.float32))
  assert number._cache_size() == 2  # a number, and one for each episode


def test_fewer_memories_may_have_weights_of_their_own():
  world = dataclasses.replace(WORLD, fewer=(
      (('short_term',), (('short_term', 1.5),)), (('long_term', 'spatial'), (('spatial', 0.25),))))
  weights = lambda *names, of=world, **given: {
      n: float(m.weight) for n, m in of.compose(*names, **given).memories.items()}
  own = {name: float(memory.weight) for name, memory in WORLD.memories.items()}
  assert weights('base', *own) == own
  assert weights('base', 'short_term') == {'short_term': 1.5}
  assert weights('base', 'short_term', weights={'short_term': 3.0}) == {'short_term': 3.0}
  pair = weights('base', 'spatial', 'long_term')
  assert pair == {'spatial': 0.25, 'long_term': own['long_term']}, 'in any order'
  assert weights('base', 'short_term', 'spatial') == {n: own[n] for n in ('short_term', 'spatial')}
  # Only where memories are left out: a weight that was chosen stays.
  alone = world.compose('base', 'short_term', weights={'short_term': 3.0})
  assert weights('base', 'short_term', of=alone) == {'short_term': 3.0}


def test_keys_of_the_old_kind_are_named(seen):
  old = jax.random.PRNGKey(0)
  for use in (lambda: WORLD.observe(small.init(WORLD, 2), small.observation(2, 5), old),
              lambda: WORLD.imagine(seen, *small.conditions(2, 2), old)):
    with pytest.raises(ValueError, match=r'array of uint32.* expected one of jax.random.key'):
      use()


@pytest.fixture(scope='module')
def shallow():
  """The world on networks of one block: it is traced for every subset, for shapes alone."""
  experts = small.experts(depth=1)
  return small.world(
      base=experts.base, memories={name: getattr(experts, name) for name in NAMES[1:]},
      num_steps=1)


@pytest.mark.parametrize('names', SUBSETS, ids='+'.join)
def test_every_subset_imagines(names, shallow):
  world = shallow.compose(*names)
  state = jax.eval_shape(lambda: small.init(world, 2))
  after, frames = jax.eval_shape(world.imagine, state, *small.conditions(2, 4), KEYS)
  assert frames.shape == (2, 4, *small.FRAME)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
      lambda x: (x.shape, x.dtype), state)


def test_weights_and_rules(seen, parts):
  query, known = parts
  world = WORLD.compose(
      'base', 'short_term', 'spatial', rule='mean',
      weights={'short_term': 2.0, 'spatial': jnp.array([0.5, 3.0])})
  got = jax.jit(lambda s, q: world.denoiser(s, q)(*small.noisy(2, 2)))(seen, query)
  (near, null), (mapped, blank) = known['short_term'], known['spatial']
  each = np.array([0.5, 3.0])[:, None, None, None, None]
  expected = (known['base'] + null + 2 * (near - null) + blank + each * (mapped - blank)) / 3
  small.close(got, expected, atol=1e-3)
  assert WORLD.compose('base', rule=composition.naive_product).rule is composition.naive_product
  assert WORLD.compose('base').rule is composition.shared_base


def test_a_pyramid_and_a_full_attention_base_imagine():
  """Both choices change the program, not the contract."""
  full = small.model(kind='full')
  base = dataclasses.replace(WORLD.base, model=full)
  world = small.world(base=base, memories={}, grid='pyramid')
  state = small.init(world, 1)
  state, frames = jax.jit(world.imagine)(state, *small.conditions(1, 2), jax.random.key(0))
  assert frames.shape == (1, 2, *small.FRAME)
  small.same(state.recent.frames, frames)


@pytest.mark.parametrize(('arguments', 'options', 'message'), [
    (('base', 'longterm'), {}, r"\['base', 'longterm'\].*choice of base, short_term, long_term"),
    ((), {}, 'expected a non-empty choice of base'),
    (('base',), {'weights': {'spatial': 1.0}}, "weight is given for 'spatial', which is not among"),
    (('base', 'spatial'), {'weights': {'space': 1.0}}, r"weights for \['space'\]"),
    (('base',), {'weights': {'base': 2.0}}, "weight is given for 'base'"),
    (('base',), {'rule': 'sum'}, "Unknown composition rule 'sum'"),
    (('base', 'spatial'), {'weights': {'spatial': '1'}}, "weight of 'spatial' is '1'; exp"),
    (('base', 'spatial'), {'weights': {'spatial': jnp.nan}}, "weight of 'spatial' is nan"),
    (('base', 'spatial'), {'weights': {'spatial': jnp.array([1., jnp.inf])}}, 'or one per episode'),
])
def test_compositions_that_cannot_be(arguments, options, message):
  with pytest.raises(ValueError, match=message):
    WORLD.compose(*arguments, **options)



@pytest.mark.parametrize(('make', 'message'), [
    (lambda o: o.replace(frames=o.frames.astype('float32')),
     r'frames are float32 with values from .* expected uint8'),
    (lambda o: o.replace(frames=o.frames / 255 * jnp.nan), 'NaN or infinity'),
    (lambda o: o.replace(actions=o.actions[..., :2]), 'actions have 2 dimensions.*made for 3'),
    (lambda o: o.replace(poses=jnp.zeros((2, 3, 5))), 'poses have 5 dimensions.*made for 2'),
    (lambda o: o.replace(poses=o.poses.at[1, 2, 0].set(jnp.nan)), r'poses hold NaN.*\(1, 2, 0\)'),
    (lambda o: o.replace(frames=o.frames[:, :, :8]), 'made for'),
    (lambda o: o.replace(actions=o.actions[:, 1:]), 'lengths disagree'),
    (lambda o: jax.tree.map(lambda x: x[0], o), 'add the batch axis'),
])
def test_observations_that_do_not_fit(make, message):
  with pytest.raises(ValueError, match=message):
    WORLD.observe(small.init(WORLD, 2), make(small.observation(2, 3)), KEYS)


def test_more_frames_than_the_history_holds():
  with pytest.raises(ValueError, match='Cannot write 9 frames at once.*capacity 8'):
    WORLD.observe(small.init(WORLD, 2), small.observation(2, 9), KEYS)


@pytest.mark.parametrize(('frames', 'dims', 'message'), [
    (3, (3, 2), 'imagine got 3 actions; expected a multiple of the chunk, 2'),
    (0, (3, 2), 'imagine got 0 actions'),
    (2, (4, 2), 'actions have dimension 4; this model was built for 3'),
    (2, (3, 3), 'poses have dimension 3; this model was built for 2'),
])
def test_dreams_that_do_not_fit(frames, dims, message):
  with pytest.raises(ValueError, match=message):
    WORLD.imagine(small.init(WORLD, 2), *(jnp.zeros((2, frames, d)) for d in dims), KEYS)


def test_dreams_need_a_pose_for_every_action():
  with pytest.raises(ValueError, match=r'actions \(2, 2, 3\) and poses \(2, 4, 2\); expected as m'):
    WORLD.imagine(small.init(WORLD, 2), jnp.zeros((2, 2, 3)), jnp.zeros((2, 4, 2)), KEYS)


def test_a_memory_with_a_context_longer_than_what_is_kept():
  with pytest.raises(ValueError, match='last 3 frames of a window of 2'):
    expert.bind(small.model(context=3), {}, small.query(2))


def test_levels_switch_an_expert_by_log_snr(seen, parts):
  query, known = parts
  x, logsnr = small.noisy(2, 2)
  for interval, share in (
      (composition.Interval(-1e3, 1e3), 1.0), (composition.Interval(1e3), 0.0),
      (lambda logsnr: jnp.zeros_like(logsnr), 0.0)):  # any function will do
    world = WORLD.compose('base', 'spatial', levels={'spatial': interval})
    got = jax.jit(lambda s, q, world=world: world.denoiser(s, q)(x, logsnr))(seen, query)
    mapped, blank = known['spatial']
    weight = WORLD.memories['spatial'].weight
    small.close(got, known['base'] + share * weight * (mapped - blank), atol=1e-3)
  with pytest.raises(ValueError, match=r"levels for \['space'\]"):
    WORLD.compose('base', levels={'space': composition.Interval()})


def test_reset_starts_only_the_episodes_that_are_done(seen):
  state = WORLD.reset(seen, np.array([True, False]))
  fresh = small.init(WORLD, 2)
  first = lambda tree: jax.tree.map(lambda leaf: leaf[0], tree)
  second = lambda tree: jax.tree.map(lambda leaf: leaf[1], tree)
  small.same(first(state), first(fresh))
  small.same(second(state), second(seen))
