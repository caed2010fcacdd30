import dataclasses

import numpy as np
import pytest

from wmpoe.data import clips
from wmpoe.data import episode


def make(length=20):
  steps = np.arange(length, dtype=np.float32)
  return episode.Episode(
      frames=np.broadcast_to(steps[:, None, None, None], (length, 2, 2, 1)).astype(np.float16),
      actions=np.stack([steps, -steps], 1), poses=np.stack([steps] * 3, 1))


def test_clip_and_history_do_not_overlap():
  transform = clips.RandomClip(context=3, target=4, history=6, gap=2)
  for seed in range(50):
    out = transform(make(), np.random.default_rng(seed))
    assert out['frames'].shape == (7, 2, 2, 1) and out['frames'].dtype == np.float16
    times = out['poses'][:, 0]
    assert out['valid'][3:].all()
    first = times[3] - 3
    np.testing.assert_array_equal(times[out['valid']], (first + np.arange(7))[out['valid']])
    past = out['history_poses'][out['history_valid'], 0]
    assert len(set(past)) == len(past) == 6
    assert ((past < first - 2) | (past >= first + 7 + 2)).all()


def test_all_targets_are_drawn_and_the_start_is_padded():
  transform = clips.RandomClip(context=3, target=4)
  drawn = [transform(make(), np.random.default_rng(s)) for s in range(300)]
  starts = {int(out['poses'][3, 0]) for out in drawn}
  assert starts == set(range(17))
  early = next(out for out in drawn if out['poses'][3, 0] == 1)
  assert early['valid'].tolist() == [False, False, True, True, True, True, True]
  assert not early['actions'][:2].any()
  assert not any(name.startswith('history') for name in early)


def test_history_of_a_short_episode_is_padded():
  out = clips.RandomClip(context=1, target=2, history=30)(make(8), np.random.default_rng(0))
  assert out['history_frames'].shape[0] == 30
  assert 4 <= out['history_valid'].sum() <= 6


def test_what_more_is_known_of_frames_comes_with_history_and_frame():
  item = dataclasses.replace(make(20), more={'far': np.arange(20.0)})
  out = clips.RandomClip(context=1, target=2, history=30)(item, np.random.default_rng(0))
  there = out['history_valid']
  np.testing.assert_array_equal(out['history_far'][there], out['history_poses'][there, 0])
  assert not out['history_far'][~there].any() and 'far' not in out
  frame = clips.RandomFrame()(item, np.random.default_rng(1))
  assert frame['far'] == frame['frames'].max()


def test_random_frame_draws_every_frame():
  seen = {float(clips.RandomFrame()(make(5), np.random.default_rng(s))['frames'].max())
          for s in range(60)}
  assert seen == {0.0, 1.0, 2.0, 3.0, 4.0}


def test_impossible_requests_are_refused():
  with pytest.raises(ValueError, match='target=0.*expected target >= 1'):
    clips.RandomClip(context=1, target=0)
  with pytest.raises(ValueError, match='has 3 frames, a clip 4 targets'):
    clips.RandomClip(context=1, target=4)(make(3), np.random.default_rng(0))
  with pytest.raises(ValueError, match='no episodes'):
    clips.EpisodeSource([])
