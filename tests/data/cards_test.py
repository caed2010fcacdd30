"""Tests of Memory Cards with pixels: rendering, sources, clips."""

import json

import numpy as np
import pytest

from wmpoe.data import cards
from wmpoe.data import episode

CONFIG = cards.CardsConfig()


@pytest.mark.parametrize('size', [32, 48])
def test_every_tile_of_every_frame_is_its_template(size):
  config = cards.CardsConfig(size=size)
  sim = cards.simulate(2, config, 'validation')
  frames = cards.render(sim, config)
  assert frames.shape == (250, size, size, 3)
  assert frames.dtype == np.uint8
  tile, plain, under = config.tile, cards.templates(config), cards.templates(config, cursor=True)
  for frame in range(0, 250, 7):
    for row in range(4):
      for column in range(4):
        shown = sim.visible[frame, 4 * row + column]
        symbol = sim.cards[4 * row + column] if shown else 8
        expected = (under if (row, column) == tuple(sim.cursor[frame]) else plain)[symbol]
        part = frames[frame, row * tile : (row + 1) * tile, column * tile : (column + 1) * tile]
        np.testing.assert_array_equal(part, expected)


def test_a_part_renders_as_in_the_whole():
  sim = cards.simulate(1, CONFIG)
  np.testing.assert_array_equal(cards.render(sim, CONFIG, 20, 30), cards.render(sim, CONFIG)[20:30])
  actions, poses = cards.conditions(sim, 20, 30)
  np.testing.assert_array_equal(actions.argmax(1), sim.actions[20:30])
  np.testing.assert_array_equal(actions.sum(1), 1)
  np.testing.assert_array_equal(poses, sim.cursor[20:30])
  assert actions.dtype == poses.dtype == np.float32


def test_sprites_are_the_plain_templates():
  np.testing.assert_array_equal(cards.sprites(CONFIG), cards.templates(CONFIG))
  assert cards.sprites(CONFIG).shape == (9, 8, 8, 3)


def test_context_before_the_second_reveal_shows_no_card():
  sim = cards.script_episode(0, CONFIG)
  covered = cards.render(sim, CONFIG, 0, 1)[0]
  for frame in cards.render(sim, CONFIG, cards.HISTORY - 9, cards.HISTORY):
    np.testing.assert_array_equal(frame, covered)
  assert (cards.render(sim, CONFIG, cards.HISTORY, cards.HISTORY + 1)[0] != covered).any()


def test_to_episode_is_valid_and_says_where_it_comes_from():
  sim = cards.simulate(4, CONFIG, 'test', 'script')
  whole = cards.to_episode(sim, CONFIG)
  episode.validate(
      whole, action_dim=7, pose_dim=2, frame_shape=(32, 32, 3), min_length=250
  )
  assert whole.meta['seed'] == 99
  assert whole.meta['cards'] == sim.cards.tolist()
  assert json.loads(json.dumps(whole.meta)) == whole.meta


def test_source_gives_trajectories_or_episodes_within_its_size():
  source = cards.CardsSource(CONFIG, 'validation', size=3)
  assert len(source) == 3
  assert isinstance(source[2], cards.EpisodeArrays)
  full = cards.CardsSource(CONFIG, 'validation', size=3, full=True)[2]
  np.testing.assert_array_equal(full.frames, cards.render(source[2], CONFIG))
  for index in (3, -1):
    with pytest.raises(IndexError, match=f'Episode {index} of 3'):
      source[index]


def test_clip_is_a_window_of_the_episode():
  sim = cards.simulate(1, CONFIG)
  clip = cards.RandomClip(CONFIG, context=3, target=7)
  out = clip.window(sim, 40, 50)
  np.testing.assert_array_equal(out['frames'], cards.render(sim, CONFIG, 40, 50))
  np.testing.assert_array_equal(out['actions'].argmax(1), sim.actions[40:50])
  np.testing.assert_array_equal(out['poses'], sim.cursor[40:50])
  assert out['valid'].all()


@pytest.mark.parametrize('start, pad', [(-2, 2), (-10, 10), (-30, 10)])
def test_frames_before_the_first_are_zeros_and_not_valid(start, pad):
  sim = cards.simulate(1, CONFIG)
  out = cards.RandomClip(CONFIG, context=3, target=7).window(sim, start, start + 10)
  assert out['valid'].tolist() == [False] * pad + [True] * (10 - pad)
  for name in ('frames', 'actions', 'poses'):
    assert len(out[name]) == 10
    assert not out[name][:pad].any()
  np.testing.assert_array_equal(out['frames'][pad:], cards.render(sim, CONFIG, 0, 10 - pad))


def test_clip_starts_cover_the_episode_and_shapes_stay():
  config = cards.CardsConfig(length=12)
  sim = cards.simulate(1, config)
  clip = cards.RandomClip(config, context=3, target=4, history=6)
  rng, pads = np.random.default_rng(0), []
  ends = set()
  for _ in range(200):
    out = clip(sim, rng)
    assert out['frames'].shape == (7, 32, 32, 3)
    assert out['history_frames'].shape == (6, 32, 32, 3)
    assert out['valid'][3:].all()  # Targets lie in the episode.
    pads.append(int((~out['history_valid']).sum()))
    match = (cards.render(sim, config) == out['frames'][-1]).all((1, 2, 3))
    ends.add(int(np.flatnonzero(match)[-1]))
  assert set(pads) == {6, 5, 4, 3, 2, 1, 0}  # First targets 0, 1, ..., 5 and later.
  assert 11 in ends  # The last frame is a target too.
  share = np.mean(np.array(pads) == 6)
  assert 0.04 < share < 0.2  # One start in nine.


def test_history_ends_where_the_targets_begin():
  sim = cards.simulate(1, CONFIG)
  clip = cards.RandomClip(CONFIG, context=3, target=7, history=20)
  out = clip(sim, np.random.default_rng(3))
  for name in ('frames', 'actions', 'poses', 'valid'):
    np.testing.assert_array_equal(out[f'history_{name}'][-3:], out[name][:3])


def test_events_bias_puts_a_known_card_into_the_targets():
  sim = cards.script_episode(1, CONFIG, 'train')
  again = set(sim.events[sim.events[:, 2] >= 0, 0].tolist())

  class Spy(cards.RandomClip):
    def window(self, sim, start, stop):
      return {'start': np.array(stop - self.target)}

  rng = np.random.default_rng(0)
  for bias, expected in ((1.0, 1.0), (0.0, None)):
    clip = Spy(CONFIG, context=3, target=3, events_bias=bias)
    starts = [int(clip(sim, rng)['start']) for _ in range(100)]
    share = np.mean([any(start <= frame < start + 3 for frame in again) for start in starts])
    assert (share == expected) if expected else (share < 0.9)
    assert min(starts) >= 0
    assert max(starts) <= 247


def test_events_bias_keeps_all_targets_in_the_episode():
  config = cards.CardsConfig(length=103)  # The last card appears in the last frame.
  sim = cards.script_episode(1, config)
  clip = cards.RandomClip(config, context=0, target=40, events_bias=1.0)
  rng = np.random.default_rng(0)
  assert {len(clip(sim, rng)['frames']) for _ in range(30)} == {40}


def test_events_bias_is_harmless_where_nothing_was_seen():
  config = cards.CardsConfig(length=8)
  sim = cards.simulate(0, config, 'train', 'script')
  assert not (sim.events[:, 2] >= 0).any()
  out = cards.RandomClip(config, 1, 2, events_bias=1.0)(sim, np.random.default_rng(0))
  assert out['frames'].shape[0] == 3


def test_impossible_clips_are_refused():
  with pytest.raises(ValueError, match='target is 300 but episodes have 250 frames'):
    cards.RandomClip(CONFIG, context=3, target=300)
  with pytest.raises(ValueError, match='expected context >= 0, target >= 1'):
    cards.RandomClip(CONFIG, context=3, target=0)


def test_collect_writes_the_split_and_resumes(tmp_path):
  config = cards.CardsConfig(length=8)
  settings = {'kind': 'script', 'split': 'test', 'config': config}
  first = list(cards.collect(tmp_path, episodes=2, **settings))
  assert [(p.done, p.total, p.written) for p in first] == [(1, 2, True), (2, 2, True)]
  more = list(cards.collect(tmp_path, episodes=3, **settings))
  assert [p.written for p in more] == [False, False, True]
  loaded = episode.Episode.load(more[2].path, action_dim=7)
  sim = cards.simulate(2, config, 'test', 'script')
  np.testing.assert_array_equal(loaded.frames, cards.render(sim, config))
  spaces = json.loads((tmp_path / 'spaces.json').read_text())
  assert spaces['actions'] == {
      'kind': 'discrete', 'dim': 7, 'names': list(cards.ACTIONS), 'repeat': 1}
  assert spaces['config']['length'] == 8


def test_collect_refuses_a_wrong_split_before_it_touches_the_disk(tmp_path):
  with pytest.raises(ValueError, match="Unknown split 'dev'"):
    cards.collect(tmp_path / 'new', episodes=1, split='dev')
  assert not (tmp_path / 'new').exists()
