import jax
import numpy as np
import pytest

from wmpoe.data import memory_maze
from wmpoe.networks import poses

HALF = np.deg2rad(40.0)

_features = jax.jit(poses.features)
_turn_grid = jax.jit(poses.turn_grid, static_argnums=1, static_argnames=('half_view', 'pitch'))
_coded = jax.jit(lambda code, pose, anchor: code(pose, anchor), static_argnums=0)


def test_relative_agrees_with_the_data_side():
  rng = np.random.default_rng(0)
  pose, anchor = rng.uniform(-4, 4, (2, 20, 3)).astype(np.float32)
  expected = memory_maze.relative_pose(pose, anchor)
  np.testing.assert_allclose(poses.relative(pose, anchor), expected, atol=1e-5)


def test_features_do_not_jump_where_the_turn_wraps():
  below = _features(np.array([0.3, -0.2, np.pi - 1e-4]))
  above = _features(np.array([0.3, -0.2, -np.pi + 1e-4]))
  assert below.shape == (poses.FEATURES,)
  np.testing.assert_allclose(below, above, atol=1e-2)


def test_absolute_poses_tell_places_and_headings_apart_whatever_the_anchor():
  code = poses.AbsolutePose(scale=9.0)
  pose = np.array([[[1.0, 8.0, 0.3], [8.0, 1.0, 0.3], [1.0, 8.0, 0.3 + np.pi]]], np.float32)
  coded = np.asarray(_coded(code, pose, pose[:, 0]))
  assert coded.shape == (1, 3, code.dim)
  np.testing.assert_array_equal(coded, _coded(code, pose, pose[:, 1]))
  for i, j in ((0, 1), (0, 2), (1, 2)):
    assert np.abs(coded[0, i] - coded[0, j]).max() > 0.1
  turned = pose + np.array([0, 0, 2 * np.pi], np.float32)
  np.testing.assert_allclose(_coded(code, turned, pose[:, 0]), coded, atol=1e-5)


def test_code_does_not_change_with_the_world_but_its_field_does():
  rng = np.random.default_rng(1)
  clip = rng.uniform(-2, 2, (1, 5, 3)).astype(np.float32)
  turn, shift = 0.7, np.array([3.0, -1.0])
  rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
  moved = np.concatenate([clip[..., :2] @ rotation + shift, clip[..., 2:] + turn], -1)
  moved = moved.astype(np.float32)
  code = poses.RelativePose(field=8)
  here, there = (np.asarray(_coded(code, x, x[:, 2])) for x in (clip, moved))
  assert here.shape == (1, 5, code.dim)
  np.testing.assert_allclose(
      here[..., :poses.FEATURES], there[..., :poses.FEATURES], atol=1e-4)
  assert np.abs(here[..., poses.FEATURES:] - there[..., poses.FEATURES:]).max() > 0.05


def test_field_kernel_falls_off_with_distance_and_angle():
  code = poses.RelativePose(field=2048, length=1.0)
  at = lambda *pose: np.asarray(
      _coded(code, np.float32([[pose]]), np.zeros((1, 3), np.float32)))[0, 0, poses.FEATURES:]
  here = at(2.0, 1.0, 0.3)
  np.testing.assert_allclose(here @ here, 1.0, atol=0.1)
  np.testing.assert_allclose(here @ at(2.0, 1.5, 0.3), np.exp(-0.125), atol=0.1)
  assert abs(here @ at(5.0, 1.0, 0.3)) < 0.1
  assert here @ at(2.0, 1.0, 0.5) > here @ at(2.0, 1.0, 1.2)


def test_no_turn_is_the_identity():
  where, inside = _turn_grid(np.float32(0), (8, 8), half_view=HALF, pitch=0.2)
  rows, columns = np.meshgrid(np.arange(8), np.arange(8), indexing='ij')
  np.testing.assert_allclose(where, np.stack([rows, columns], -1), atol=1e-4)
  assert np.all(inside)
  picture = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32)
  np.testing.assert_allclose(jax.jit(poses.sample_grid)(picture, where[None]), picture, atol=1e-4)


@pytest.mark.parametrize('sample', [poses._sample_by_gather, poses._sample_by_product])
def test_samples_lie_between_their_neighbours_and_stop_at_the_edge(sample, monkeypatch):
  """Both ways, whatever this machine would take, on a plane: there bilinear samples are exact."""
  plane = lambda row, column: np.stack([2.0 * row - column, row + 3.0 * column], axis=-1)
  rows, columns = np.mgrid[:5, :7]
  pictures = np.stack([plane(rows, columns), 10 + plane(rows, columns)]).astype(np.float32)
  where = np.random.default_rng(1).uniform(-2, 9, (2, 6, 4, 2)).astype(np.float32)
  monkeypatch.setattr(
      jax.lax, 'platform_dependent', lambda *args, cpu, default: sample(*args))
  inside = np.clip(where, 0, [4, 6])
  expected = plane(inside[..., 0], inside[..., 1]) + np.array([0, 10]).reshape(2, 1, 1, 1)
  found = jax.jit(lambda *x: poses.sample_grid(*x))(pictures, where)  # traced anew for each way
  np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize('turn', [0.3, -0.5])
@pytest.mark.parametrize('pitch', [0.0, 0.1])
def test_a_point_is_found_where_the_pinhole_puts_it(turn, pitch):
  """A point projected by hand, with axis vectors, into both cameras."""
  size, focal = 64, 32 / np.tan(HALF)

  def project(heading, point):
    cos, sin = np.cos(heading), np.sin(heading)
    forward = np.array([cos * np.cos(pitch), sin * np.cos(pitch), -np.sin(pitch)])
    right = np.array([sin, -cos, 0.0])
    down = -np.cross(right, forward)
    depth = point @ forward
    return np.array([31.5 + focal * (point @ down) / depth, 31.5 + focal * (point @ right) / depth])

  point = np.array([5.0 * np.cos(turn / 2), 5.0 * np.sin(turn / 2), 0.8])
  where, inside = _turn_grid(np.float32(turn), (size, size), half_view=HALF, pitch=pitch)
  where, at = np.asarray(where), project(turn, point)
  row, column = np.round(at).astype(int)
  slope = where[row + 1, column + 1] - where[row, column]
  fine = where[row, column] + (at - np.array([row, column])) * slope
  np.testing.assert_allclose(fine, project(0.0, point), atol=0.15)
  assert inside[row, column]


def test_what_was_behind_is_not_inside():
  _, inside = _turn_grid(np.float32([np.pi, 2.0]), (8, 8), half_view=HALF)
  assert not np.any(inside)
