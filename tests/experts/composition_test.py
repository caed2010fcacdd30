"""Tests of composition: rules by hand, and branches that run as one call."""

import dataclasses

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import small
from wmpoe.diffusion import analytic
from wmpoe.experts import composition
from wmpoe.experts import expert
from wmpoe.networks import lora

BASE = analytic.GaussianDenoiser(mean=jnp.float32(0.5), std=jnp.float32(0.3))
HIGH = analytic.GaussianDenoiser(mean=jnp.float32(1.0), std=jnp.float32(0.2))
LOW = analytic.GaussianDenoiser(mean=jnp.float32(-1.0), std=jnp.float32(0.9))


def _contrast(weight=2.0, **kwargs):
  return expert.Contrast(positive=HIGH, negative=LOW, weight=weight, **kwargs)


def _term(positive, negative, weight):
  return tuple(jnp.float32(x) for x in (positive, negative, weight))


@pytest.mark.parametrize(('rule', 'expected'), [
    ('shared_base', 10 + 2 * (3 - 1) + 0.5 * (4 - 6)),
    ('mean', (10 + (1 + 2 * 2) + (6 + 0.5 * -2)) / 3),
    ('literal_sum', 10 + (1 + 2 * 2) + (6 + 0.5 * -2)),
    ('naive_product', 10 + 3 + 4),
    ('tempering', 2 * (10 + 3 + 4) / 3),
])
def test_rules_by_hand(rule, expected):
  terms = [_term(3, 1, 2), _term(4, 6, 0.5)]
  np.testing.assert_allclose(composition.rule_by_name(rule)(jnp.float32(10), terms), expected)


@pytest.mark.parametrize(('rule', 'expected'), [
    ('shared_base', 1 + 2 * (3 - 1) + 0.5 * (4 - 6)),
    ('mean', ((1 + 2 * 2) + (6 + 0.5 * -2)) / 2),
    ('naive_product', 3 + 4),
])
def test_rules_without_a_base(rule, expected):
  terms = [_term(3, 1, 2), _term(4, 6, 0.5)]
  np.testing.assert_allclose(composition.rule_by_name(rule)(None, terms), expected)


@hypothesis.settings(max_examples=25)
@hypothesis.given(
    weights=st.lists(st.floats(-3, 5, width=32), min_size=1, max_size=4), with_base=st.booleans())
def test_law_4_total_weights(weights, with_base):
  """If everybody says 7 the composition says the total weight times 7."""
  seven = jnp.float32(7)
  terms = [(seven, seven, jnp.float32(w)) for w in weights]
  count = len(weights) + with_base
  totals = {
      'shared_base': 1, 'mean': 1, 'literal_sum': count, 'naive_product': count, 'tempering': 2}
  assert set(totals) == set(composition.RULES)
  assert all(totals[name] == 1 for name in composition.DEFAULT_RULES)
  for name, total in totals.items():
    got = composition.RULES[name](seven if with_base else None, terms)
    np.testing.assert_allclose(got, 7 * total, rtol=1e-5)


def test_weights_by_episode_and_by_level():
  x, logsnr = small.noisy(3, 2)
  estimate = lambda contrast: composition.compose(BASE, [contrast])(x, logsnr)
  by_hand = lambda w: BASE(x, logsnr) + w * (HIGH(x, logsnr) - LOW(x, logsnr))
  each = jnp.array([0.5, 1.0, 2.0])
  small.close(estimate(_contrast(each)), by_hand(each[:, None, None, None, None]))
  level = composition.Interval(-1.0, 2.0)
  inside = np.asarray((logsnr >= -1) & (logsnr <= 2))
  assert inside.any() and not inside.all()
  small.close(estimate(_contrast(2.0, level=level)), by_hand(2.0 * inside[..., None, None, None]))
  small.close(estimate(_contrast(each, level=level)),
              by_hand((each[:, None] * inside)[..., None, None, None]))


def test_an_empty_memory_has_no_weight():
  x, logsnr = small.noisy(2, 2)
  got = composition.compose(BASE, [_contrast(empty=jnp.array([True, False]))])(x, logsnr)
  whole = composition.compose(BASE, [_contrast()])(x, logsnr)
  small.same(got[0], BASE(x, logsnr)[0])
  small.same(got[1], whole[1])
  small.differ(got[0], whole[0])


def test_composition_is_closed():
  x, logsnr = small.noisy(2, 2)
  inner = composition.compose(BASE, [_contrast(0.5)])
  outer = composition.compose(inner, [_contrast(0.25)])
  small.close(outer(x, logsnr), composition.compose(BASE, [_contrast(0.75)])(x, logsnr))
  against_itself = composition.compose(
      inner, [expert.Contrast(positive=HIGH, negative=None, weight=1.0)])
  small.close(against_itself(x, logsnr), HIGH(x, logsnr))


def test_one_level_for_all_frames_is_broadcast():
  x, _ = small.noisy(2, 3)
  level = jnp.array([[-1.0], [2.0]])
  small.same(composition.compose(BASE, [_contrast()])(x, level),
             composition.compose(BASE, [_contrast()])(x, jnp.broadcast_to(level, (2, 3))))


@pytest.mark.parametrize(('make', 'message'), [
    (lambda: composition.rule_by_name('product'), r"'product'; expected one of shared_base, mean"),
    (lambda: composition.compose(None, []), 'Nothing to compose'),
    (lambda: composition.compose(BASE, _contrast()), 'wrap the single one in a list'),
    (lambda: composition.compose(None, [expert.Contrast(positive=HIGH, negative=None)]),
     'negative=None contrasts with the base, but base is None'),
])
def test_bad_arguments(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_nothing_but_a_base_is_the_base_itself():
  assert composition.compose(BASE, []) is BASE
  assert composition.compose(BASE, [], composition.mean) is BASE


class _Branches:
  """Network denoisers of every kind, and how many network calls they take together."""

  def __init__(self):
    experts = small.experts()
    model, weights = experts.base.model, experts.base.params
    query = small.query(2)
    bind = lambda **kwargs: expert.bind(model, weights, query, **kwargs)
    spec = small.SPEC
    shapes = jax.eval_shape(lambda k: lora.init(k, weights, spec), jax.random.key(0))
    adapters = jax.tree.map(
        lambda *x: jnp.stack(x), small.random_tree(shapes, 1), small.random_tree(shapes, 2))
    wider = lora.LoraSpec(rank=3)
    other = jax.eval_shape(lambda k: lora.init(k, weights, wider), jax.random.key(0))
    other = jax.tree.map(lambda s: jnp.ones((2, *s.shape)) / 50, other)
    merged = jax.vmap(lambda a: lora.merged(weights, a, spec))(adapters)
    mapped = experts.spatial
    cells = jnp.ones((2, 2, small.TOKENS, 4))
    self.all = {
        'base': bind(),
        'null': bind(null=True),
        'adapted': bind(lora=lora.scaled(adapters, spec)),
        'other': bind(lora=lora.scaled(jax.tree.map(lambda x: 2 * x, adapters), spec)),
        'merged': bind(lora=merged),
        'rank_3': bind(lora=other),
        'map': expert.bind(mapped.model.denoiser, mapped.params['denoiser'], query, cells=cells,
                           context_cells=cells),
        'no_map': expert.bind(mapped.model.denoiser, mapped.params['denoiser'], query),
        'other_weights': expert.bind(model, small.params(model, 9), query),
    }


@pytest.fixture(scope='module')
def branches():
  return jax.jit(lambda: _Branches().all)()


@pytest.fixture(scope='module')
def alone(branches):
  """What each of them says in a call of its own."""
  noisy = small.noisy(2, 2)
  run = jax.jit(lambda denoiser: denoiser(*noisy))
  return {name: run(denoiser) for name, denoiser in branches.items()}


@pytest.mark.parametrize(('names', 'calls'), [
    (['base', 'null'], 1),
    (['base', 'adapted', 'null'], 2),
    (['adapted', 'other', 'base'], 2),
    (['base', 'merged'], 2),
    (['base', 'merged', 'null', 'merged'], 2),
    (['adapted', 'rank_3', 'base'], 3),
    (['map', 'no_map'], 2),
    (['base', 'other_weights'], 2),
    (['base', 'base', 'base'], 1),
])
def test_branches_in_one_call_equal_separate_calls(branches, alone, names, calls, monkeypatch):
  members = [branches[name] for name in names]
  # Leaves that came out of one jit are distinct arrays: share the parameters again.
  shared = members[0].params if 'other_weights' not in names and 'map' not in names else None
  unique = {name: branches[name] for name in names}
  if shared is not None:
    unique = {k: dataclasses.replace(d, params=shared) for k, d in unique.items()}
  if 'map' in names:
    unique = {k: dataclasses.replace(d, params=unique['map'].params) for k, d in unique.items()}
  members = [unique[name] for name in names]
  x, logsnr = small.noisy(2, 2)
  count = []
  call = expert.NetworkDenoiser.__call__
  separate = [alone[name] for name in names]
  monkeypatch.setattr(
      expert.NetworkDenoiser, '__call__', lambda *args: (count.append(1), call(*args))[1])
  together = jax.jit(lambda *noisy: composition.evaluate(members, *noisy))(x, logsnr)
  assert len(count) == calls
  small.close(together, separate, atol=1e-4)
  for i, name in enumerate(names):  # no two different branches agree by accident
    for j in range(i):
      if names[j] != name:
        small.differ(separate[i], separate[j])


@pytest.mark.parametrize(('rule', 'negatives'), [
    (composition.naive_product, 0), (composition.Tempering(), 0), (composition.mean, 1)])
def test_baselines_that_no_rule_looks_at_do_not_run(rule, negatives):
  ran = []
  negative = lambda x, logsnr: (ran.append(1), LOW(x, logsnr))[1]
  contrast = expert.Contrast(positive=HIGH, negative=negative, weight=1.5)
  x, logsnr = small.noisy(2, 2)
  composition.compose(BASE, [contrast], rule)(x, logsnr)
  assert len(ran) == negatives


def test_other_denoisers_are_called_as_they_are(branches):
  x, logsnr = small.noisy(2, 2)
  got = composition.evaluate([BASE, branches['base'], HIGH, BASE], x, logsnr)
  small.same(got[0], BASE(x, logsnr))
  small.same(got[2], HIGH(x, logsnr))
  assert got[3] is got[0]


def test_a_weighted_mean_takes_shares_that_sum_to_one():
  rule = composition.WeightedMean((0.5, 0.2, 0.3))
  terms = [_term(3, 1, 2), _term(4, 6, 0.5)]
  np.testing.assert_allclose(rule(jnp.float32(10), terms), 0.5 * 10 + 0.2 * 5 + 0.3 * 5, rtol=1e-6)
  with pytest.raises(ValueError, match=r'sum to 1\.2; this rule needs a total weight of 1'):
    composition.WeightedMean((0.5, 0.7))
  with pytest.raises(ValueError, match=r'Got 3 shares for 2 estimates \(without a base\)'):
    rule(None, terms)


def test_branches_outside_their_interval_do_not_run():
  """Counted on the host: the default rule runs the base alone where no contrast has a weight."""
  ran = []

  def counted(x, logsnr):
    jax.debug.callback(lambda: ran.append(1))
    return HIGH(x, logsnr)

  contrast = expert.Contrast(
      positive=counted, negative=None, weight=1.5, level=composition.Interval(high=0.0))
  composed = composition.compose(BASE, [contrast])
  run = jax.jit(lambda x, level: composed(x, level))
  x = jnp.ones((2, 3, 1, 1, 1))
  outside = run(x, jnp.full((2, 3), 2.0))
  jax.effects_barrier()
  assert not ran
  np.testing.assert_array_equal(outside, jax.jit(BASE.__call__)(x, jnp.full((2, 3), 2.0)))
  mixed = jnp.array([[2.0, 2.0, 2.0], [2.0, -1.0, 2.0]])  # one frame of one episode is inside
  out = run(x, mixed)
  jax.effects_barrier()
  assert ran
  base = BASE(x, mixed)
  expected = base + 1.5 * (mixed <= 0)[..., None, None, None] * (HIGH(x, mixed) - base)
  np.testing.assert_allclose(out, expected, rtol=1e-5)
  always = composition.compose(BASE, [contrast, _contrast()])  # no interval: all run everywhere
  ran.clear()
  jax.jit(lambda x, level: always(x, level))(x, jnp.full((2, 3), 2.0))
  jax.effects_barrier()
  assert ran
