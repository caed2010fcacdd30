import dataclasses
import types

import jax
import numpy as np
import pytest

from tests.experts import point_maps_test
from wmpoe.data import episode
from wmpoe.data import memory_maze
from wmpoe.evaluation import arms
from wmpoe.evaluation import maze
from wmpoe.evaluation import maze_arms


def make(poses, name='e'):
  poses = np.asarray(poses, np.float32)
  count = len(poses)
  shades = np.broadcast_to(np.arange(count)[:, None, None, None], (count, 4, 4, 3))
  return episode.Episode(
      frames=shades.astype(np.uint8), actions=np.zeros((count, 2), np.float32), poses=poses,
      meta={'name': name})


@pytest.fixture
def task(monkeypatch):
  monkeypatch.setattr(maze, 'REVISIT_GAP', 5)
  # Two cells at first, then back to the first cell looking the same way, the other way, and a
  # third cell.
  poses = [(0.5, 0.5, 0.0)] * 4 + [(1.5, 0.5, 0.0)] * 4 + [
      (0.4, 0.6, 0.5), (0.5, 0.5, 3.0), (2.5, 0.5, 0.0), (1.5, 0.5, 0.1)]
  episodes = [make(poses, 'first'), make(poses[::-1][4:] + poses[:4], 'second')]
  latents = [item.frames[..., :1] / 255.0 for item in episodes]
  return maze.problem(episodes, latents, history=8, starts=(8,), length=4)


def test_seen_long_ago_and_never_by_hand(task):
  assert task.revisited[0].tolist() == [True, False, False, True]
  assert task.unseen[0].tolist() == [False, True, True, False]
  assert task.truth[0, :, 0, 0, 0].tolist() == [8, 9, 10, 11]
  assert task.encoded.frames.shape == (2, 12, 4, 4, 1)


def test_in_the_window_is_what_the_short_term_expert_has_seen_and_the_base_has_not():
  poses = [(0.5, 0.5, 0.0)] * 4 + [(1.5, 0.5, 0.0)] * 2 + [(2.5, 0.5, 0.0)] * 2 + [
      (0.5, 0.5, 0.0), (1.5, 0.5, 0.0), (2.5, 0.5, 0.0), (9.5, 0.5, 0.0)]
  made = lambda window: maze.problem(
      [make(poses)], [make(poses).frames], history=8, starts=(8,), length=4,
      windows=(2, window)).in_window[0].tolist()
  assert made(8) == [True, True, False, False], 'the last two frames are in both contexts'
  assert made(4) == [False, True, False, False], 'the first place is out of the window'
  assert made(2) == [False] * 4


def test_what_was_seen_a_moment_ago_is_neither():
  poses = [(0.5, 0.5, 0.0)] * 12
  made = maze.problem([make(poses)], [make(poses).frames], history=8, starts=(8,), length=4)
  assert not made.revisited.any() and not made.unseen.any()


def test_nothing_is_long_ago_in_a_short_history():
  """Fewer frames than the gap lie before the place: the bound must not count from the end."""
  poses = [(0.5, 0.5, 0.0)] * (maze.REVISIT_GAP + 4)
  start = maze.REVISIT_GAP - 4
  made = maze.problem([make(poses)], [make(poses).frames], history=start, starts=(start,), length=8)
  assert made.revisited[0].tolist() == [False] * 4 + [True] * 4, 'at least 50 frames ago'
  np.testing.assert_array_equal(
      made.revisited[0], memory_maze.revisits(np.array(poses), gap=maze.REVISIT_GAP)[start:])


def test_copies_by_hand(task):
  copied = maze.copies(task)
  shade = lambda name: copied[name][0, :, 0, 0, 0].tolist()
  assert shade('copy_last') == [7, 7, 7, 7]
  assert shade('copy_mean') == [4, 4, 4, 4]  # 3.5, rounded to even
  nearest = shade('copy_pose')
  assert nearest[0] < 4 and 4 <= nearest[3] < 8


class Ruler:
  """Matches pictures that say where they were taken: pose in units of .1 in the first pixel."""

  def apply(self, variables, first, second, method):
    assert method == 'match'
    return variables['params'] * (second - first)[:, 0, 0], None


def test_following_is_one_for_what_moves_as_told_and_zero_for_what_stands():
  ahead, turn = np.array([.1, .2] * 4), np.array([.2, 0.0, -.3, .1] * 2)
  heading = np.cumsum(turn)
  step = ahead[:, None] * np.stack([np.cos(heading - turn), np.sin(heading - turn)], axis=1)
  item = make(np.concatenate([np.cumsum(step, axis=0), heading[:, None]], axis=1))
  read = np.cumsum(np.stack([ahead, 0 * ahead, turn], axis=1), axis=0)  # what `Ruler` reads
  picture = np.broadcast_to(read[:, None, None], (8, 4, 4, 3)).astype(np.float32)
  task = maze.problem([item], [picture], history=4, starts=(4, 6), length=2)
  slopes = lambda frames, gain=1.0: [
      value[0] for value, _ in maze.following(
          task, frames, Ruler(), np.float32(gain), lambda x: x).values()]
  np.testing.assert_allclose(slopes(picture[None, 4:]), 1.0, atol=1e-5)
  np.testing.assert_allclose(slopes(picture[None, 4:], gain=0.5), 0.5, atol=1e-5)
  np.testing.assert_allclose(slopes(picture[None, [3, 3, 5, 5]]), 0.0, atol=1e-5)
  walked = read[[3, 3, 5, 5]] + np.array([1.0, 2.0, 1.0, 2.0])[:, None] * [0.15, 0.0, 0.0]
  walks_on = np.broadcast_to(walked[:, None, None], (4, 4, 4, 3)).astype(np.float32)
  np.testing.assert_allclose(slopes(walks_on[None]), 0.0, atol=1e-5)


def test_maps_say_where_the_arm_was_better(task):
  scores = {'base': np.zeros((1, 2, 4)), 'all': np.array([[[1.0, -1.0, 0.0, 2.0]] * 2])}
  first, second = maze.maps(task, scores, 'psnr', arm='all', layouts=[[[1, 0]], None])
  assert {first['title'], second['title']} == {'Episode first', 'Episode second'}
  first = first if first['title'] == 'Episode first' else second
  assert [dot['gain'] for dot in first['asked']] == [1.0, -1.0, 0.0, 2.0]
  assert [dot['seen'] for dot in first['asked']] == ['revisited', 'unseen', 'unseen', 'revisited']
  assert first['path'][4] == [1.5, 0.5] and len(first['path']) == 8
  fewer_is_better = maze.maps(task, scores, 'lpips_vgg', arm='all', layouts=[[[1, 0]], None])
  assert [dot['gain'] for dot in fewer_is_better[0]['asked']][0] == -1.0


def test_a_turned_copy_moves_things_the_other_way():
  poses = [(0.5, 0.5, 0.0)] * 4 + [(0.5, 0.5, 0.2), (0.5, 0.5, -0.2)]
  item = make(poses)
  frames = np.zeros((6, 30, 30, 3), np.uint8)
  frames[:, :, 15] = 255  # a thing right ahead
  item = dataclasses.replace(item, frames=frames)
  made = maze.problem([item], [frames], history=4, starts=(4,), length=2)
  left, right = maze.copies(made)['copy_turned'][0, :, 15, :, 0].argmax(axis=-1)
  assert left > 17 and right < 13, 'turned to the left, it is seen on the right'


def test_a_warped_copy_shows_what_was_seen_and_otherwise_something_else():
  """From the pose of a picture its pixels lie where they lay."""
  poses = [(0.5, 0.5, 0.0)] * 4 + [(0.5, 0.5, 0.0), (0.5, 0.5, np.pi)]
  frames = np.random.default_rng(0).integers(0, 256, (6, 14, 14, 3)).astype(np.uint8)
  frames[:4] = frames[0]
  item = dataclasses.replace(make(poses), frames=frames)
  points = point_maps_test.make_points()
  points = points.replace(params=jax.tree.map(np.zeros_like, points.params))  # one depth for all
  latents = np.asarray(jax.jit(points.latents.encode)(frames))
  made = maze.problem([item], [latents], history=4, starts=(4,), length=2)
  other = np.full((1, 2, 14, 14, 3), 7, np.uint8)
  same, behind = maze.warped_copy(made, points, other)[0]
  assert (same == frames[0]).all(axis=-1).mean() > 0.9
  np.testing.assert_array_equal(behind, other[0, 0])


def test_true_depth_is_given_to_the_arm_that_asks_for_it_alone(task):
  depth = np.ones((2, 12, 4, 4), np.float32)
  known = dataclasses.replace(task, encoded=dataclasses.replace(task.encoded, depth=depth))
  assert known.part(0, 8).depth is None and known.future(0).depth is None
  assert known.part(2, 8, depth='true').depth.shape == (2, 6, 4, 4)
  standard = maze_arms.standard_arms(('spatial',))
  memories = {'spatial': types.SimpleNamespace(points=object())}
  made = maze_arms.further_arms(standard, memories, odometry=True, depth=True)
  assert made['spatial_depth'] == arms.Arm(memories=('spatial',), depth='true')
  assert maze_arms.otherwise(made) == {
      ('odometry', 'network'): {'spatial'}, ('true', 'true'): {'spatial'}}
  nowhere = maze_arms.further_arms(
      standard, {'spatial': types.SimpleNamespace(points=None)}, odometry=False, depth=True)
  assert 'spatial_depth' not in nowhere


def test_arms_are_all_subsets():
  made = maze_arms.standard_arms(('short_term', 'long_term', 'spatial'))
  assert len(made) == 8 and list(made)[-1] == 'all'
  assert made['short_term+spatial'] == arms.Arm(memories=('short_term', 'spatial'))
  assert list(maze_arms.standard_arms(('spatial',))) == ['base', 'spatial']


def test_summaries_are_means_over_the_right_frames(task):
  scores = np.zeros((1, 2, 4))
  scores[0, 0] = [10, 20, 30, 40]
  scores[0, 1] = 50
  measured = maze_arms.Measured(scores={'psnr': scores}, frames=task.truth)
  base = maze_arms.Measured(scores={'psnr': scores - 5}, frames=task.truth)
  out = maze_arms.summarize(measured, base, task, split=True)
  assert out['psnr']['mean'] == pytest.approx(37.5)
  revisited = scores[0][task.revisited].mean()
  assert out['psnr_revisited']['mean'] == pytest.approx(revisited)
  assert out['psnr_unseen']['mean'] == pytest.approx(scores[0][task.unseen].mean())
  assert out['psnr_minus_base']['mean'] == pytest.approx(5.0)
  assert 'psnr_minus_base' not in maze_arms.summarize(base, base, task, split=False)
  assert 'psnr_revisited' not in maze_arms.summarize(base, base, task, split=False)


def test_strips_show_truth_and_arms(task):
  shown = dict.fromkeys(('base', 'spatial'), task.truth)
  strips = maze.strips(task, shown, count=1)
  assert len(strips) == 1 and list(strips[0].rows) == ['truth', 'base', 'spatial']


def test_impossible_problems_and_unknown_metrics_are_refused():
  poses = [(0.5, 0.5, 0.0)] * 12
  with pytest.raises(ValueError, match='expected places after it'):
    maze.problem([make(poses)], [make(poses).frames], history=8, starts=(6,), length=4)
  with pytest.raises(ValueError, match='The episodes e have fewer than the 14 frames'):
    maze.problem([make(poses)], [make(poses).frames], history=8, starts=(10,), length=4)
  with pytest.raises(ValueError, match='expected some of psnr'):
    maze_arms.measures(['fid'])
