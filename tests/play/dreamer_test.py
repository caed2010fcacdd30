"""Awake and asleep, step by step, in a tiny world; no server and no thread."""

import dataclasses

import numpy as np
import pytest

from tests import small
from tests.commands import conftest as commands
from tests.play import conftest
from wmpoe import session
from wmpoe.play import dreamer
from wmpoe.play import protocol
from wmpoe.play import worlds


@pytest.fixture
def one(make):
  """A dreamer that has looked around a little and fallen asleep."""
  made = make()
  for key in ('space', 'right', 'space'):
    _do(made, 'tap', key=key)
    made.advance()
  _do(made, 'mode', name='dream')
  return made


def _do(made, what, **args):
  return made.apply(protocol.Command(what, args))


def _dream(made, key='down'):
  _do(made, 'tap', key=key)
  events = made.advance()
  assert not made.wants_step()
  return events[-1]


def test_awake_it_remembers_what_it_sees(make):
  made = make()
  before = made.status()['observed']
  _do(made, 'tap', key='space')
  header, pictures = made.advance()[0]
  assert set(pictures) == {'reality'} and header['observed'] == before + 1
  spatial, recent = made._session.state.memories['spatial'], made._session.state.recent
  _do(made, 'remember', on=False)
  _do(made, 'tap', key='right')
  made.advance()
  np.testing.assert_array_equal(made._session.state.memories['spatial'].features, spatial.features)
  assert made.status()['observed'] == before + 1
  assert np.any(made._session.state.recent.frames != recent.frames)


def test_asleep_it_imagines_beside_the_dream_without_memory_and_the_truth(one):
  assert _dream(one, 'space')[0]['fps'] == 0  # it compiled, which is not told as its rate
  header, pictures = _dream(one)
  assert set(pictures) == {'dream', 'bare', 'truth'}
  assert pictures['dream'].shape == (16, 16, 3) and pictures['dream'].dtype == np.uint8
  assert np.any(pictures['dream'] != pictures['bare'])
  assert header['pose'] == [1.0, 1.0] and header['fps'] > 0 and header['read_ms'] > 0
  np.testing.assert_array_equal(pictures['truth'], one.world.nearest(one._place))


def test_experts_that_are_off_weigh_nothing_and_nothing_compiles_again(one):
  from wmpoe.session import live
  _dream(one)
  programs = live._imagine._cache_size()
  _do(one, 'weight', expert='spatial', value=3.0)
  _dream(one)
  _do(one, 'expert', expert='spatial', on=False)
  _, pictures = _dream(one)
  assert live._imagine._cache_size() == programs
  assert float(one.settings.compose(one._session.model).memories['spatial'].weight) == 0.0
  assert np.any(pictures['dream'] != 0)


def test_the_overlay_shows_where_an_expert_pulls(one):
  _do(one, 'overlay', on=True)
  _, pictures = _dream(one)
  heat = pictures['drew:spatial']
  assert heat.shape == (16, 16) and heat.dtype == np.uint8 and heat.max() > 0
  _do(one, 'expert', expert='spatial', on=False)
  assert _dream(one)[1]['drew:spatial'].max() == 0


def test_rewinding_and_dreaming_again_is_the_same_dream(one):
  first = [_dream(one, key)[1]['dream'] for key in ('down', 'left')]
  _do(one, 'rewind', frames=2)
  again = [_dream(one, key)[1]['dream'] for key in ('down', 'left')]
  np.testing.assert_array_equal(first, again)
  assert len(one.hello()['path']) == 2


def test_a_long_way_is_not_kept_for_ever(make, monkeypatch):
  monkeypatch.setattr(dreamer, '_PATH', 3)
  made = make()
  for mode in ('real', 'dream'):
    _do(made, 'mode', name=mode)
    for key in ('right', 'left') * 3:
      _do(made, 'tap', key=key)
      made.advance()
  told = made.hello()
  assert len(told['walked']) == len(told['path']) == 3
  assert told['path'][-1] == told['pose']
  _do(made, 'rewind', frames=1)
  assert len(made.hello()['path']) == 3 and len(made._mark().path) == 3


def test_who_forgets_all_forgets_forks(one):
  _do(one, 'fork')
  assert one.status()['branches'] == 1
  _do(one, 'forget')
  assert one.status()['branches'] == 0 and one.status()['observed'] == 0


def test_a_fork_can_be_returned_to(one):
  _dream(one)
  _do(one, 'fork')
  known = one._session.state
  other = _dream(one)[1]['dream']
  header, _ = _do(one, 'branch', index=0)[0]
  assert header['branches'] == 1 and len(header['path']) == 1
  assert one._session.state is known
  assert np.any(_dream(one)[1]['dream'] != other)  # a fork dreams of its own


def test_waking_up_goes_back_to_where_reality_stands(one):
  pose = one.world.now().place.pose.tolist()
  _dream(one)
  header, pictures = _do(one, 'mode', name='real')[0]
  assert header['pose'] == pose and header['path'] == []
  np.testing.assert_array_equal(pictures['reality'], one.world.now().frame)


def test_memories_and_films_are_written_to_the_folder_alone(one, tmp_path):
  _do(one, 'record', on=True)
  _dream(one)
  _dream(one)
  pytest.importorskip('PIL')
  pytest.importorskip('imageio_ffmpeg')
  _do(one, 'weight', expert=next(iter(one.settings.weights)), value=0.25)
  _do(one, 'steps', value=3)
  notes = [_do(one, 'record', on=False), _do(one, 'save'), _do(one, 'save')]
  names = ['film_001.gif', 'film_001.mp4', 'memory_001.npz', 'memory_002.npz']
  assert [header['text'].rpartition('/')[2] for events in notes for header, _ in events] == names
  assert sorted(p.name for p in tmp_path.rglob('*') if p.is_file()) == names
  loaded = session.Session.load(tmp_path / 'out' / 'memory_001.npz', conftest.opened())
  assert loaded.imagined.tolist() == [2]
  # As it was composed on the page when it was saved.
  name = next(iter(loaded.model.memories))
  assert (float(loaded.model.memories[name].weight), loaded.model.num_steps) == (0.25, 3)
  assert dataclasses.asdict(one.settings)['mode'] == 'dream'


def test_time_runs_stands_still_and_goes_one_step(one):
  assert not one.wants_step()
  _do(one, 'run', on=True)
  assert one.wants_step()
  _do(one, 'pause', on=True)
  assert not one.wants_step()
  _do(one, 'step')
  assert one.wants_step()
  one.advance()
  assert not one.wants_step() and len(one.hello()['path']) == 1
  _do(one, 'pause', on=False)
  assert one.wants_step()
  _do(one, 'run', on=False)
  assert not one.wants_step()


@pytest.mark.parametrize(('what', 'args'), [
    ('rule', {'name': 'mean'}), ('sampler', {'name': 'heun'}), ('steps', {'value': 5})])
def test_how_it_dreams_can_be_set(one, what, args):
  first = _dream(one)[1]['dream']
  _do(one, 'rewind', frames=1)
  usual = one.settings
  _do(one, what, **args)
  assert np.any(_dream(one)[1]['dream'] != first)
  _do(one, 'rewind', frames=1)
  one.settings = usual
  np.testing.assert_array_equal(_dream(one)[1]['dream'], first)


def test_weights_are_written_and_all_is_forgotten_on_demand(tmp_path):
  model = commands.Tiny().world('long_term', 'spatial')
  made = dreamer.Dreamer(
      session.Session.open(model), worlds.CardsWorld(conftest.ENV, 0), tmp_path, say=str)
  for key in ('space', 'right', 'space', 'down', 'space', 'left', 'space', 'up'):
    _do(made, 'tap', key=key)
    made.advance()
  memory = lambda: made._session.state.memories['long_term']
  assert int(memory().step[0]) == 0 and made._unwritten == made.status()['observed'] > 0
  _do(made, 'write')
  assert int(memory().step[0]) == model.memories['long_term'].writing.steps
  assert made._unwritten == 0
  _do(made, 'forget')
  assert int(memory().step[0]) == 0 and made.status()['observed'] == 0
  small.same(made._session.state.memories, model.init(1).memories)


def test_reality_is_watched_and_followed(one, monkeypatch):
  _do(one, 'mode', name='real')
  before = one.status()['observed']
  _do(one, 'watch', frames=3)
  while one.wants_step():
    one.advance()
  assert one.status()['observed'] == before + 3
  walk = worlds.CardsWorld(conftest.ENV, 0)
  ahead = [walk.live((key,)) for key in ('right', 'down')]
  monkeypatch.setattr(type(one.world), 'can_follow', True)
  monkeypatch.setattr(one.world, 'ahead', lambda n: ahead[n - 1] if n <= 2 else None)
  _do(one, 'mode', name='dream')
  _do(one, 'follow', on=True)
  _do(one, 'run', on=True)
  for moment in ahead:
    header, pictures = one.advance()[-1]
    assert header['pose'] == moment.place.pose.tolist()
    np.testing.assert_array_equal(pictures['truth'], moment.frame)
  with pytest.raises(ValueError, match='The recording has ended'):
    one.advance()
  assert not one.wants_step() and not one.settings.follow


@pytest.mark.parametrize(('what', 'args', 'message'), [
    ('rewind', {'frames': 1}, 'cannot be rewound any further'),
    ('branch', {'index': 0}, 'There are 0 forks'),
    ('watch', {'frames': 5}, 'wake up first'),
    ('follow', {'on': True}, 'not recorded'),
])
def test_what_cannot_be_done_now_says_why(one, what, args, message):
  with pytest.raises(ValueError, match=message):
    _do(one, what, **args)
