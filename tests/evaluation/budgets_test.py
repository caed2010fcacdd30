"""What training took is counted once, and not guessed."""

import pytest

from wmpoe import zoo
from wmpoe.evaluation import arms
from wmpoe.evaluation import budgets

DEPTH = {'points': {'depth': 'depth'}, 'expert': 'spatial', 'model': {}, 'env': {}}
CARDS = {
    'first': {'config': {'init_from': ''}, 'train_flops': 1e12, 'train_seconds': 60.0},
    'base': {'config': {'init_from': 'first'}, 'train_flops': 2e12, 'train_seconds': 120.0},
    'spatial': {'config': {**DEPTH, 'init_from': 'base', 'train': {'learn': 'refiner'}},
                'train_flops': 4e12, 'train_seconds': 240.0},
    'depth': {'config': {}, 'train_flops': 8e12},  # seconds are not said
    'fork': {'config': {'init_from': 'spatial', 'expert': 'full', 'model': {}, 'env': {}},
             'train_flops': 32e12, 'train_seconds': 1.0},
    'lost': {'config': {'init_from': 'gone'}, 'train_flops': 16e12, 'train_seconds': 1.0},
}


class Model:
  """A network of one layer, that reads no memory."""

  def init(self, key):
    return {'block': {'layer': 0.0}}


@pytest.fixture(autouse=True)
def cards(monkeypatch):
  monkeypatch.setattr(zoo, 'model', lambda description: Model())
  monkeypatch.setattr(zoo, 'dimensions', lambda env: {})
  def card(path):
    if path not in CARDS:
      raise FileNotFoundError(path)
    return CARDS[path]
  monkeypatch.setattr(zoo, 'card', card)


def tflop(*used):
  return budgets.metrics(used, 3).get('train_tflop', {}).get('mean')


def test_every_run_counts_once():
  assert list(budgets.runs('spatial')) == ['depth', 'spatial', 'base', 'first']
  assert tflop(budgets.runs('base')) == 3
  assert tflop(budgets.runs('base'), budgets.runs('spatial'), budgets.runs('spatial')) == 15
  found = budgets.metrics([budgets.runs('base')], 3)
  assert found['train_minutes'] == {'mean': 3.0, 'low': 3.0, 'high': 3.0, 'n': 3}


def test_what_taught_only_what_is_not_used_does_not_count(monkeypatch):
  # The refiner, and the depth that it needs, serve the memory alone.
  assert list(budgets.runs('spatial', alone=True)) == ['base', 'first']
  assert list(budgets.runs('fork')) == ['fork', 'base', 'first']
  # A pattern is of a whole path, in the tree of the run that it was given to.
  of = {name: dict(card, config=dict(card['config'])) for name, card in CARDS.items()}
  for learn, counts in ('block/layer$', True), ('^denoiser/block', True), ('^block', False):
    of['spatial']['config']['train'] = {'learn': learn}
    monkeypatch.setattr(zoo, 'card', of.__getitem__)
    assert ('spatial' in budgets.runs('fork')) is counts, learn


def test_what_is_not_known_is_not_guessed():
  assert set(budgets.metrics([budgets.runs('spatial')], 3)) == {'train_tflop'}
  assert budgets.metrics([budgets.runs('lost')], 3) == {}
  assert budgets.metrics([], 3) == {}
  with pytest.raises(FileNotFoundError):
    budgets.runs('gone')


def test_an_arm_has_the_runs_of_all_it_uses():
  training = budgets.of_model({'base': 'base', 'spatial': 'spatial'}, ['long_term', 'spatial'],
                              odometry='first')
  of = lambda **given: budgets.of_arm(arms.Arm(**given), training, 3)['train_tflop']['mean']
  assert of() == of(memories=('long_term',)) == 3 and of(memories=('spatial',)) == 15
  assert set(training) == {'base', 'long_term', 'spatial', 'odometry'}
  joint = budgets.of_model({'spatial': 'spatial'}, ['short_term'])
  assert joint['short_term'] == budgets.runs('spatial')
  assert joint['base'] == budgets.runs('spatial', alone=True)
  assert budgets.of_arm(arms.Arm(), {}, 3) == {}
