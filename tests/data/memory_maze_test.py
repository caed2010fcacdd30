import pathlib

import numpy as np
import pytest

from wmpoe.data import memory_maze

# The simulator's own: steps 337 to 376 of validation episode 3, policy 'revisit'.
TINY = pathlib.Path(__file__).parent / 'tiny_maze.npz'
NOOP, FORWARD, LEFT, RIGHT, FORWARD_LEFT, FORWARD_RIGHT = range(6)


def _fields():
  with np.load(TINY) as archive:
    return dict(archive)


def _write(path, **changes):
  """The tiny episode with some fields changed, or left out where None."""
  fields = {name: value for name, value in (_fields() | changes).items() if value is not None}
  np.savez(path, **fields)
  return path


def _changed(name, index, value):
  array = _fields()[name].copy()
  array[index] = value
  return {name: array}


@pytest.fixture(scope='module')
def tiny():
  return memory_maze.load(TINY)


# ------------------------------------------------------------------------------------- reading


def test_reads_an_episode_as_it_is(tiny):
  assert (tiny.frames.shape, tiny.frames.dtype) == ((40, 64, 64, 3), np.uint8)
  assert (tiny.actions.shape, tiny.actions.dtype) == ((40, 6), np.float32)
  assert (tiny.poses.shape, tiny.poses.dtype) == ((40, 3), np.float32)
  assert (tiny.layout.shape, tiny.layout.dtype) == ((9, 9), np.uint8)
  assert tiny.targets_pos.shape == (3, 2)
  assert (tiny.length, tiny.source) == (40, 'tiny_maze.npz')
  assert not tiny.actions[0].any()
  np.testing.assert_array_equal(tiny.actions[1:].sum(axis=1), 1)


def test_depth_is_read_where_a_file_has_it(tmp_path, tiny):
  assert tiny.depth is None and memory_maze.subsample(tiny).depth is None
  depth = np.random.default_rng(0).uniform(0.1, 9.0, (40, 64, 64)).astype(np.float16)
  depth[:, :10] = np.inf
  kept = memory_maze.subsample(memory_maze.load(_write(tmp_path / 'e.npz', depth=depth)), 2)
  np.testing.assert_array_equal(kept.depth, depth[::2, 2:62, 2:62].astype(np.float32))


def test_fields_that_are_not_read_may_be_missing_or_more(tmp_path):
  path = _write(tmp_path / 'a.npz', reward=None, target_vec=None, terminal=np.zeros(40, bool))
  assert memory_maze.load(path).length == 40


@pytest.mark.parametrize(('changes', 'message'), [
    ({'agent_dir': None}, "not a Memory Maze episode, it has no 'agent_dir'; expected the fields"),
    ({'image': np.zeros((40, 64, 64), np.uint8)},
     r"'image' has shape \(40, 64, 64\); expected \[T H W 3\]"),
    ({'image': np.zeros((40, 64, 64, 4), np.uint8)}, r"'image' has shape .* expected \[T H W 3\]"),
    ({'image': np.zeros((40, 64, 64, 3), np.float32)}, "'image' is float32; expected uint8"),
    ({'image': np.zeros((0, 64, 64, 3), np.uint8)}, "'action' has 40 frames, 'image' has 0"),
    ({'action': np.zeros((40, 5), np.uint8)}, r"'action' has shape \(40, 5\); expected \[T 6\]"),
    ({'action': _fields()['action'][1:]}, "'action' has 39 frames, 'image' has 40"),
    (_changed('action', 7, 0), "'action' is not one-hot in 1 rows, first in row 7"),
    (_changed('action', (0, [1, 2]), 1), r"'action' is not one-hot .* in row 0: \[0, 1, 1, 0"),
    (_changed('action', (3, 2), 2), "'action' is not one-hot in 1 rows, first in row 3"),
    ({'agent_pos': _fields()['agent_pos'].astype(np.float64)}, "'agent_pos' is float64; expected"),
    (_changed('agent_pos', (5, 1), np.nan), "'agent_pos' holds NaN or infinity in 1 places, "
                                            'first in frame 5'),
    (_changed('agent_pos', 4, 9.5), r"'agent_pos' is \[9.5, 9.5\] in frame 4; expected cells"),
    ({'agent_pos': _fields()['agent_pos'][:, ::-1]}, "'agent_pos' is inside a wall"),
    (_changed('agent_dir', 5, np.inf), "'agent_dir' holds NaN or infinity in 2 places"),
    (_changed('agent_dir', 5, 0), "'agent_dir' has length 0 in frame 5"),
    (_changed('targets_pos', 2, np.nan), "'targets_pos' holds NaN or infinity in 6 places"),
    (_changed('targets_pos', 2, 1.5), "'targets_pos' changes at frame 2; expected one maze"),
    (_changed('maze_layout', (9, 0, 0), 7), "'maze_layout' changes at frame 9; expected one maze"),
    ({'depth': np.ones((40, 64, 64), np.float32)}, "'depth' is float32; expected float16"),
    ({'depth': np.ones((40, 60, 60), np.float16)}, "'depth' has 60 H, 'image' has 64"),
    ({'depth': np.zeros((40, 64, 64), np.float16)}, "'depth' holds NaN or numbers that are not"),
    ({'maze_layout': np.ones((40, 9, 8), np.uint8)}, "'maze_layout' has 8 N, 'maze_layout' has 9"),
])
def test_bad_fields_are_named(tmp_path, changes, message):
  path = _write(tmp_path / 'bad.npz', **changes)
  with pytest.raises(ValueError, match=message) as error:
    memory_maze.load(path)
  assert str(path) in str(error.value)


def test_a_file_without_frames(tmp_path):
  path = _write(tmp_path / 'bad.npz', **{n: _fields()[n][:0] for n in memory_maze.FIELDS})
  with pytest.raises(ValueError, match="'image' has no frames"):
    memory_maze.load(path)


def test_pickled_arrays_are_refused_unopened(tmp_path):
  class Trap:
    def __reduce__(self):
      return (pathlib.Path.touch, (tmp_path / 'sprung',))

  path = _write(tmp_path / 'bad.npz', agent_pos=np.array([Trap()], object))
  with pytest.raises(ValueError, match="'agent_pos' is a pickled array, which could run code"):
    memory_maze.load(path)
  assert not (tmp_path / 'sprung').exists()


def test_files_that_are_no_archive_or_not_whole(tmp_path):
  path, whole = tmp_path / 'bad.npz', TINY.read_bytes()
  for content in (b'', b'hello', whole[: len(whole) // 2]):
    path.write_bytes(content)
    with pytest.raises(ValueError, match='bad.npz: not a whole npz archive'):
      memory_maze.load(path)
  np.save(tmp_path / 'single.npy', np.zeros(3))
  with pytest.raises(ValueError, match='it holds a single array'):
    memory_maze.load(tmp_path / 'single.npy')
  with pytest.raises(FileNotFoundError):
    memory_maze.load(tmp_path / 'none.npz')


def test_damage_anywhere_in_the_file_is_a_value_error_or_harmless(tmp_path):
  path, whole = tmp_path / 'bad.npz', TINY.read_bytes()
  rng, refused = np.random.default_rng(0), 0
  for _ in range(60):
    content = bytearray(whole)
    for at in rng.integers(len(whole), size=8):
      content[at] ^= int(rng.integers(1, 256))
    path.write_bytes(content)
    try:
      memory_maze.load(path)
    except ValueError as error:
      refused += 1
      assert 'bad.npz' in str(error)
  assert refused > 50


# --------------------------------------------------------------------------------- conventions


def test_the_agent_is_always_in_a_free_cell_of_row_y_and_column_x(tiny):
  x, y = memory_maze.cells(tiny.poses).T
  assert tiny.layout[y, x].all()
  assert not tiny.layout[x, y].all()


def test_turning_left_raises_the_heading_and_forward_follows_it(tiny):
  action = tiny.actions.argmax(axis=1)
  ahead, left, turn = memory_maze.relative_pose(tiny.poses[1:], tiny.poses[:-1]).T
  action = action[1:]
  for actions, sign in (((LEFT, FORWARD_LEFT), 1), ((RIGHT, FORWARD_RIGHT), -1)):
    # There is a little momentum: the mean of each is far beyond it.
    assert (sign * turn[np.isin(action, actions)]).mean() > 0.25
  advancing = np.isin(action, (FORWARD, FORWARD_LEFT, FORWARD_RIGHT))
  assert 0.15 < ahead[advancing].mean() < 0.25
  assert ahead.max() < 0.26
  assert np.abs(turn[action == FORWARD]).mean() < 0.1
  assert np.abs(left).max() < 0.1


def test_targets_are_right_and_ahead_in_the_files(tiny):
  targets = np.concatenate([tiny.targets_pos, np.zeros((3, 1))], axis=1)
  ahead, left, _ = np.moveaxis(memory_maze.relative_pose(targets[None], tiny.poses[:, None]), -1, 0)
  np.testing.assert_allclose(_fields()['targets_vec'], np.stack([-left, ahead], -1), atol=1e-5)


def test_half_view_of_the_frame_with_and_without_border():
  assert memory_maze.half_view(border=0) == pytest.approx(np.deg2rad(40))
  assert np.rad2deg(2 * memory_maze.half_view()) == pytest.approx(76.4, abs=0.05)


# ----------------------------------------------------------------------------------- subsample


def test_the_border_is_two_pixels_of_one_colour_and_is_cropped(tiny):
  for ring in range(2):
    edge = tiny.frames[:, ring, ring:64 - ring]
    np.testing.assert_array_equal(edge, np.broadcast_to(tiny.frames[:, :1, 0], edge.shape))
  assert (tiny.frames[:, 2, 2:-2] != tiny.frames[:, :1, 0]).any()
  kept = memory_maze.subsample(tiny)
  np.testing.assert_array_equal(kept.frames, tiny.frames[::2, 2:62, 2:62])


def test_actions_between_kept_frames_are_concatenated_oldest_first(tiny):
  kept = memory_maze.subsample(tiny, 2)
  assert kept.actions.shape == (20, 12)
  assert not kept.actions[0].any()
  np.testing.assert_array_equal(kept.actions[1:, :6], tiny.actions[1:-1:2])
  np.testing.assert_array_equal(kept.actions[1:, 6:], tiny.actions[2::2])
  np.testing.assert_array_equal(kept.poses, tiny.poses[::2])
  third = memory_maze.subsample(tiny, 3)
  assert third.frames.shape[0] == 14
  np.testing.assert_array_equal(third.actions[1], tiny.actions[1:4].ravel())
  whole = memory_maze.subsample(tiny, 1, border=0)
  np.testing.assert_array_equal(whole.frames, tiny.frames)
  np.testing.assert_array_equal(whole.actions, tiny.actions)


def test_a_subsampled_episode_can_be_kept_in_the_projects_format(tiny, tmp_path):
  kept = memory_maze.subsample(tiny)
  kept.save(tmp_path / 'episode_00000.npz')
  again = type(kept).load(tmp_path / 'episode_00000.npz', action_dim=12, pose_dim=3)
  assert again.meta == {
      'environment': 'memory_maze', 'name': 'tiny_maze', 'source': 'tiny_maze.npz', 'skip': 2,
      'border': 2, 'layout': tiny.layout.tolist(), 'targets': tiny.targets_pos.tolist()}


@pytest.mark.parametrize(('changes', 'message'), [
    ({'skip': 0}, 'skip=0; expected at least 1'),
    ({'border': 32}, r'border=32 of frames \(64, 64\)'),
    ({'border': -1}, 'border=-1'),
])
def test_impossible_subsampling(tiny, changes, message):
  with pytest.raises(ValueError, match=message):
    memory_maze.subsample(tiny, **changes)


# -------------------------------------------------------------------------------------- folder


def test_a_folder_names_and_counts_what_is_bad(tmp_path):
  _write(tmp_path / '000000.npz')
  (tmp_path / '000001.npz').write_bytes(TINY.read_bytes()[:1000])
  _write(tmp_path / '000002.npz')
  (tmp_path / 'collection.json').write_text('{}')
  (tmp_path / '000003.npz').symlink_to('gone')
  source = memory_maze.MazeFolder(tmp_path)
  assert [path.name for path in source.paths] == ['000000.npz', '000002.npz']
  assert [path.name for path in source.bad] == ['000001.npz', '000003.npz']
  assert len(source) == 2
  assert source.frame_shape == (60, 60, 3)
  assert source[1].meta['source'] == '000002.npz'
  assert source.report().startswith('Episodes: 2, bad files left out: 2\n')
  assert '000001.npz: not a whole npz archive' in source.report()
  with pytest.raises(ValueError, match='000001.npz: not a whole'):
    memory_maze.MazeFolder(tmp_path, strict=True)


def test_files_of_different_resolution_are_refused(tmp_path):
  _write(tmp_path / 'a.npz')
  _write(tmp_path / 'b.npz', image=np.zeros((40, 32, 32, 3), np.uint8))
  with pytest.raises(ValueError, match=r"b.npz: field 'image' gives frames \(28, 28, 3\), .*a.npz"):
    memory_maze.MazeFolder([tmp_path / 'a.npz', tmp_path / 'b.npz'])


def test_folders_without_episodes(tmp_path):
  with pytest.raises(FileNotFoundError, match='none does not exist'):
    memory_maze.MazeFolder(tmp_path / 'none')
  with pytest.raises(FileNotFoundError, match=r'holds no \*.npz; collect episodes first'):
    memory_maze.MazeFolder(tmp_path)
  (tmp_path / 'a.npz').write_bytes(b'')
  with pytest.raises(ValueError, match='None of the 1 files is a Memory Maze episode; first: '):
    memory_maze.MazeFolder(tmp_path)


# --------------------------------------------------------------------------------------- poses


def test_relative_poses_by_hand():
  # Facing up the y axis at (1, 1): what lies at (1, 3) is two cells ahead, at (0, 1) one to the
  # left; facing back along x is a quarter turn to the left.
  anchor = np.array([1.0, 1.0, np.pi / 2])
  there = np.array([[1.0, 3.0, np.pi / 2], [0.0, 1.0, np.pi], [1.0, 1.0, -np.pi / 2]])
  np.testing.assert_allclose(
      memory_maze.relative_pose(there, anchor), [[2, 0, 0], [0, 1, np.pi / 2], [0, 0, np.pi]],
      atol=1e-12)


def test_relative_poses_do_not_depend_on_where_the_world_is_anchored(tiny):
  a, b, c = tiny.poses[3], tiny.poses[20], tiny.poses[33]
  direct = memory_maze.relative_pose(c, a)
  by_way_of_b = memory_maze.relative_pose(
      memory_maze.relative_pose(c, b), memory_maze.relative_pose(a, b))
  np.testing.assert_allclose(direct, by_way_of_b, atol=1e-5)


def test_wrap_keeps_pi_and_not_minus_pi():
  angles = np.array([np.pi, -np.pi, 3 * np.pi, 0.0, 2 * np.pi, -0.5])
  np.testing.assert_allclose(
      memory_maze.wrap(angles), [np.pi, np.pi, np.pi, 0, 0, -0.5], atol=1e-12)


def test_revisits_by_hand():
  poses = np.array([
      [0.5, 0.5, 0.0],
      [0.9, 0.1, 0.0],  # the same cell, but only one frame ago
      [1.5, 0.5, 0.0],
      [0.2, 0.2, 0.7],  # same cell, 40 degrees
      [0.2, 0.2, 0.9],  # same cell as frame 0, 52 degrees
      [1.2, 0.7, 2 * np.pi - 0.3],  # frame 2 again, across the wrap
      [2.5, 0.5, 0.0]])
  np.testing.assert_array_equal(
      memory_maze.revisits(poses, gap=2), [False, False, False, True, False, True, False])
  np.testing.assert_array_equal(
      memory_maze.revisits(poses, gap=1), [False, True, False, True, True, True, False])
  assert not memory_maze.revisits(poses, gap=4)[5]
  assert memory_maze.revisits(poses, gap=2, angle=1.0)[4]
  assert not memory_maze.revisits(poses, gap=100).any()
  with pytest.raises(ValueError, match='gap=0'):
    memory_maze.revisits(poses, gap=0)


def test_coverage_and_turn_rate_by_hand():
  layout = np.array([[1, 1], [0, 1]])
  poses = np.array([[0.5, 0.5, 3.0], [1.5, 0.5, -3.0], [1.2, 0.1, -3.0]])
  assert memory_maze.coverage(poses, layout) == pytest.approx(2 / 3)
  assert memory_maze.turn_rate(poses) == pytest.approx((2 * np.pi - 6) / 2)
  assert memory_maze.turn_rate(poses[:1]) == 0.0
