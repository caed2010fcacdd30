"""Tests of building experts from descriptions, and of the packaged ones."""

import copy
import importlib.util
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmpoe import compositions
from wmpoe import packaged
from wmpoe import recipes
from wmpoe import zoo
from wmpoe.commands import common
from wmpoe.diffusion import samplers
from wmpoe.diffusion import schedules
from wmpoe.experts import composition
from wmpoe.networks import ssm

DESCRIPTION = {
    'expert': 'base',
    'env': {'name': 'cards', 'size': 16, 'grid': 2, 'symbols': 2, 'length': 20},
    'model': {
        'width': 16, 'depth': 1, 'heads': 2, 'patch': 8, 'mlp_ratio': 2, 'context': 2, 'target': 2,
        'attention': 'prefix', 'window': 0, 'full_every': 0, 'pose_kind': 'grid', 'map_dim': 0,
        'prediction': 'v', 'dtype': 'float32', 'remat': False,
        'schedule': {'name': 'linear_beta', 'beta_max': 10.0}},
    'encoder': {'features': 3, 'width': 8},
}
LONG_TERM = {
    'lora': {'rank': 2, 'alpha': 4.0, 'targets': ['query', 'place']},
    'writing': {
        'steps': 3, 'clips_per_step': 1, 'target': 2, 'capacity': 8,
        'objective': {'null_rate': 0.5}, 'optimizer': {'name': 'sgd', 'learning_rate': 0.1}},
    'baseline': 'null', 'reading': 'merged',
}
COMPOSE = {'rule': 'mean', 'weights': {'spatial': 2.0}, 'num_steps': 3, 'long_term': LONG_TERM,
           'sampler': {'name': 'ddpm', 'clip_x0': 1.0}}


def _described(kind, **changes):
  description = copy.deepcopy(DESCRIPTION) | {'expert': kind}
  if kind == 'spatial':
    description['model']['map_dim'] = 4
  for path, value in changes.items():
    section, name = path.split('__')
    description[section][name] = value
  return description


def _params(description):
  return jax.tree.map(lambda s: np.full(s.shape, 0.1, np.float32), zoo.shapes(description))


def _experts():
  return {kind: (_params(_described(kind)), _described(kind)) for kind in zoo.TRAINED}


def test_descriptions_become_what_they_say():
  model = zoo.model(_described('base', model__window=3, model__full_every=2))
  assert model.network.pattern.window == 3 and model.network.pattern.full_every == 2
  assert zoo.model(_described('base')).network.pattern.window is None
  assert model.network.frame_shape == (16, 16, 3)
  assert model.schedule == schedules.LinearBetaSchedule(beta_max=10.0)
  assert zoo.dimensions(DESCRIPTION['env']) == {'action_dim': 7, 'pose_dim': 2}
  assert zoo.spatial_model(_described('spatial')).locate.cells == 4
  assert recipes.lora_spec(LONG_TERM).targets == ('query', 'place')
  assert recipes.writing(LONG_TERM).steps == 3
  assert recipes.writing(LONG_TERM).objective.null_rate == 0.5
  assert recipes.sampler({'name': 'ddim', 'eta': 0.5}) == samplers.DDIM(eta=0.5)


@pytest.fixture(scope='module')
def maze_cards():
  spec = importlib.util.spec_from_file_location(
      'maze_config', pathlib.Path(__file__).parents[1] / 'configs' / 'memory_maze.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  cards = {name: common.plain(module.get_config(name)) for name in module.VARIANTS}
  return {name: card for name, card in cards.items() if 'model' in card}


def test_the_run_cards_of_the_maze_have_the_sizes_they_say(maze_cards):
  networks = {name: zoo.model(card).network for name, card in maze_cards.items()}
  assert {'cpu_base', 'cpu_forcing', 'cpu_absolute'} <= set(networks)
  size = lambda net: (net.width, net.depth, net.heads, net.patch, net.context)
  assert size(networks['base']) == (512, 12, 8, 2, 3)
  assert size(networks['short_term']) == (384, 12, 8, 4, 33)
  assert size(networks['spatial']) == (512, 12, 8, 4, 3)
  assert size(networks['full']) == size(networks['ssm']) == (512, 12, 8, 4, 200)
  for name, net in networks.items():
    card = maze_cards[name]
    paper = not name.startswith('cpu_')
    assert card['model']['target'] == (17 if paper else 8)
    assert (net.dtype == jnp.bfloat16) == net.remat == paper
    assert isinstance(net, ssm.SSM) == name.endswith('ssm')
    if 'full' in name:
      assert net.pattern.window is None
  assert maze_cards['cpu_forcing']['objective']['regime'] == 'diffusion_forcing'
  shapes = jax.tree.leaves(zoo.shapes(maze_cards['base_1b']))
  assert 1.0e9 < sum(math.prod(leaf.shape) for leaf in shapes) < 1.1e9


def test_a_world_out_of_descriptions():
  world = zoo.build(_experts(), COMPOSE)
  assert tuple(world.memories) == ('short_term', 'long_term', 'spatial')
  assert world.rule is composition.mean and world.num_steps == 3 and world.chunk == 2
  assert world.sampler == samplers.DDPM(clip_x0=1.0)
  assert world.memories['spatial'].weight == 2.0 and world.memories['short_term'].weight == 1.0
  long_term = world.memories['long_term']
  # The base's own weights, so that both run as one call.
  assert long_term.params is world.base.params and long_term.model == world.base.model
  assert (long_term.baseline, long_term.reading) == ('null', 'merged')
  assert np.any(long_term.lora_init['place']['a'])
  assert not np.any(long_term.lora_init['place']['b'])
  only = zoo.build({'base': _experts()['base']}, {**COMPOSE, 'long_term': None})
  assert not only.memories


def test_fewer_memories_have_weights_of_their_own_loaded_or_composed():
  compose = {**COMPOSE, 'fewer': {'long_term+spatial': {'spatial': 0.5}}}
  world, experts = zoo.build(_experts(), compose), _experts()
  assert world.memories['spatial'].weight == 2.0
  assert world.compose('base', 'spatial', 'long_term').memories['spatial'].weight == 0.5
  del experts['short_term']
  assert zoo.build(experts, compose).memories['spatial'].weight == 0.5
  packaged = lambda compose: zoo.load('cards', compose=compose).compose('base', 'spatial')
  assert packaged(None).memories['spatial'].weight == 1.5
  given = packaged({'weights': {'spatial': 3.0}})
  assert given.memories['spatial'].weight == 3.0, 'what is asked for is not overruled'


def test_a_place_field_is_solved_for_where_the_base_is_the_spatial_experts_network():
  world = zoo.load('memory_maze')
  memory, spatial = world.memories['long_term'], world.memories['spatial']
  assert memory.regression.rank == memory.spec.rank == 256 and not memory.writing.steps
  # One number of keys for all, so that base and long-term run as one call.
  assert memory.model == world.base.model == spatial.model.denoiser
  assert world.base.params['field'] is spatial.params['denoiser']['field']
  assert world.base.params['field'].shape[0] == memory.model.network.field == 256
  assert memory.regression.model == spatial.model
  settings = compositions.MEMORY_MAZE['long_term']
  env = packaged.card(packaged.find('memory_maze_spatial'))['config']['env']
  further = recipes.long_term(
      {**settings, 'regression': {**settings['regression'], 'steps': 7}}, world.base, spatial,
      **zoo.dimensions(env))
  assert further.regression is not None and further.writing.steps == 7
  # Without a reader, or where it is not asked for, the field is trained.
  for described, reader in ((settings, None), ({**settings, 'regression': {}}, spatial)):
    trained = recipes.long_term(described, world.base, reader, **zoo.dimensions(env))
    assert trained.regression is None and trained.writing.steps == 100


def test_short_term_memory_of_a_joint_network_is_a_ring_that_the_network_itself_reads():
  world = zoo.load('memory_maze')
  ring, spatial = world.memories['short_term'], world.memories['spatial']
  assert tuple(world.memories) == ('short_term', 'long_term', 'spatial')
  assert (ring.capacity, ring.baseline) == (33, 'base') and spatial.capacity == 256
  # The very weights of the base: branches of one network run as one call.
  assert ring.params is spatial.params and ring.model == spatial.model
  # Point maps of its own frames; what is imagined is none of them unless one asks for it.
  assert ring.points is spatial.points is not None and world.follows == ()
  other = zoo.load('memory_maze', compose={
      'short_term': {}, 'spatial': {'frames': 7}, 'follows': ['short_term']})
  assert other.follows == ('short_term',)
  assert tuple(other.memories) == ('long_term', 'spatial')
  assert other.memories['spatial'].capacity == 7


def test_baselines_and_levels_by_name():
  world = zoo.build(_experts(), {
      **COMPOSE, 'baselines': {'spatial': 'base', 'short_term': 'base'},
      'levels': {'spatial': {'high': -0.5}, 'long_term': {'low': -3.0, 'high': 1.0}}})
  assert world.memories['spatial'].baseline == world.memories['short_term'].baseline == 'base'
  assert dict(world.levels) == {
      'spatial': composition.Interval(high=-0.5),
      'long_term': composition.Interval(low=-3.0, high=1.0)}
  plain = zoo.build(_experts(), COMPOSE)
  assert (plain.memories['spatial'].baseline, plain.memories['short_term'].baseline) == (
      'own', 'null')
  assert plain.levels == ()


def test_equal_descriptions_make_models_of_one_structure():
  """So that what is loaded a second time runs the programs of the first."""
  first, second = (jax.tree.structure(zoo.load('cards')) for _ in range(2))
  assert first == second and hash(first) == hash(second)
  faster = {**LONG_TERM['writing']['optimizer'], 'learning_rate': 0.5}
  assert recipes.optimizer(faster) is not recipes.optimizer(LONG_TERM['writing']['optimizer'])


def test_a_rate_that_halves():
  gradient, start = jnp.ones(()), jnp.zeros(())
  optimizer = recipes.optimizer({'name': 'sgd', 'learning_rate': 0.5, 'halving_steps': 2})
  state, moves = optimizer.init(start), []
  for _ in range(4):
    update, state = optimizer.update(gradient, state, start)
    moves.append(float(update))
  np.testing.assert_allclose(moves, [-0.5, -0.5 / 1.5, -0.25, -0.2], rtol=1e-6)


@pytest.mark.parametrize(('make', 'message'), [
    (lambda: zoo.environment({'name': 'maze'}), "environment 'maze'; expected one of cards"),
    (lambda: recipes.sampler({'name': 'euler'}), "Unknown sampler 'euler'; expected one of ddim"),
    (lambda: recipes.optimizer({'name': 'adagrad', 'learning_rate': 1}),
     "Unknown optimizer 'adagrad'"),
    (lambda: zoo.model(_described('base', model__schedule={'name': 'sigmoid'})),
     "Unknown schedule 'sigmoid'; expected one of cosine, linear_beta"),
    (lambda: zoo.model(_described('base', model__attention='sparse')), "attention kind 'sparse'"),
    (lambda: recipes.lora_spec({'lora': {**LONG_TERM['lora'], 'rank': 0}}), 'LoRA rank 0'),
    (lambda: zoo.load('chess'), "No packaged world model is named 'chess'. There are: .*cards"),
    (lambda: zoo.build({'short_term': _experts()['short_term']}, COMPOSE),
     r"Got the experts \['short_term'\]; expected base and any of short_term, spatial"),
    (lambda: zoo.build({**_experts(), 'retrieval': _experts()['base']}, COMPOSE), 'retrieval'),
    (lambda: zoo.build(_experts(), {**COMPOSE, 'rule': 'sum'}), "Unknown composition rule 'sum'"),
    (lambda: zoo.build(_experts(), {**COMPOSE, 'baselines': {'spatial': 'null'}}),
     "Unknown baseline 'null'; expected one of own, base"),
    (lambda: zoo.build(_experts(), {**COMPOSE, 'fewer': {'spatial': {'long_term': 1.0}}}),
     r"compose.fewer gives 'spatial' the weights \{'long_term': 1.0\}; expected memories"),
    (lambda: zoo.build(_experts(), {**COMPOSE, 'fewer': {'spatail': {}}}), "gives 'spatail'"),
    (lambda: zoo.build({
        **_experts(), 'spatial': (None, _described('spatial', env__symbols=3))}, COMPOSE),
     "spatial was trained on .*'symbols': 3.*base on .*must share their environment"),
])
def test_bad_descriptions(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def _save(path, description, params):
  packaged.save(path, params, {
      **dict.fromkeys(packaged.CARD_FIELDS, 'none'), 'config': description})


@pytest.mark.parametrize('kind', zoo.TRAINED)
def test_a_file_is_loaded_by_its_card_alone(tmp_path, kind):
  description = _described(kind)
  _save(tmp_path / 'expert.npz', description, _params(description))
  params, card = zoo.load_expert(tmp_path / 'expert.npz')
  assert card['config'] == description
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, _params(description))


def test_a_file_that_does_not_fit_its_card_is_refused(tmp_path):
  wide = _params(_described('base', model__width=32))
  _save(tmp_path / 'misshapen.npz', _described('base'), wide)
  with pytest.raises(ValueError, match='misshapen: .*file .*32.* model .*16'):
    zoo.load_expert(tmp_path / 'misshapen.npz')
  lacking = {k: v for k, v in _params(_described('base')).items() if k != 'output'}
  _save(tmp_path / 'lacking.npz', _described('base'), lacking)
  with pytest.raises(ValueError, match='2 missing: output/'):
    zoo.load_expert(tmp_path / 'lacking.npz')


def test_no_such_file(tmp_path):
  with pytest.raises(FileNotFoundError):
    zoo.load_expert(tmp_path / 'none.npz')


def test_point_maps_are_those_an_expert_was_trained_with():
  env = {'name': 'memory_maze', 'size': 9, 'image': 64, 'border': 2, 'skip': 2, 'length': 600}
  described = {
      'env': env, 'autoencoder': 'memory_maze_autoencoder', 'points': {
          'depth': 'memory_maze_depth', 'count': 3, 'half_view': 0.6, 'pitch': 0.1, 'ahead': 0.0}}
  points = zoo.point_maps(described)
  assert points.count == 3 and points.camera.half_view == 0.6
  assert zoo.point_maps({**described, 'points': {}}) is None
  with pytest.raises(ValueError, match=r"points.depth='memory_maze_depth' holds the expert 'depth' "
                     r'with hash \w+...; expected the depth network .* trained with, 123...'):
    zoo.point_maps({**described, 'depth_sha256': '123'})
  with pytest.raises(ValueError, match="'memory_maze_odometry' holds the expert 'odometry'"):
    zoo.point_maps(
        {**described, 'points': {**described['points'], 'depth': 'memory_maze_odometry'}})
