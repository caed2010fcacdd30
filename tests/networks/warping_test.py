import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import scenes
from wmpoe.networks import poses as poses_lib
from wmpoe.networks import warping

CAMERA, SIZE = scenes.CAMERA, scenes.SIZE

render = jax.jit(
    lambda *args, count=4: warping.render(CAMERA, *args, count=count, coarse=8),
    static_argnames='count')


def test_points_come_back_to_their_pixels():
  poses = np.float32([[1.0, 2.0, 0.4], [0.0, -1.0, -2.0]])
  inverse_depth = np.abs(np.random.default_rng(0).normal(size=(2, 5, 7))).astype(np.float32) + 0.1
  where, depth, inside = jax.jit(lambda inverse, poses: CAMERA.project(
      CAMERA.points(inverse, poses), poses))(inverse_depth, poses)
  np.testing.assert_allclose(depth, inverse_depth, rtol=1e-4)
  centres = np.stack(np.meshgrid(
      (np.arange(5) + 0.5) / 5, (np.arange(7) + 0.5) / 7, indexing='ij'), axis=-1)
  np.testing.assert_allclose(where, np.stack([centres] * 2), atol=1e-4)
  assert inside.all()


def test_a_turned_camera_sees_the_sky_as_turned_pictures_do():
  camera = warping.Camera(half_view=0.7, pitch=0.1)
  turn, sky = 0.3, np.zeros((6, 6), np.float32)
  there, inside = jax.jit(lambda: poses_lib.turn_grid(
      jnp.float32(turn), (6, 6), half_view=0.7, pitch=0.1))()
  where, _, within = jax.jit(lambda: camera.project(
      camera.points(sky, jnp.array([0.0, 0.0, turn])), jnp.zeros(3)))()
  there, inside, where, within = map(np.asarray, (there, inside, where, within))
  np.testing.assert_allclose((where * 6 - 0.5)[within], there[within], atol=1e-4)
  assert (inside | ~within).all()


def test_the_view_of_a_picture_is_the_picture():
  poses = np.array([[0.0, 0.0, 0.2], [0.5, 0.0, 0.2]], np.float32)
  depth = scenes.flat_room(poses)
  pictures = scenes.painted(poses, depth)
  view, seen = render(pictures, depth, poses, jnp.ones(2, bool), poses[0])
  assert seen.mean() > 0.97
  np.testing.assert_allclose(view[seen], pictures[0][seen], atol=1.0)


def test_a_moved_camera_sees_the_world_from_there():
  poses = np.array([[0.0, 0.0, 0.0], [0.4, 0.3, -0.3], [-0.5, 0.0, 0.2]], np.float32)
  depth = scenes.flat_room(poses)
  pictures, asked = scenes.painted(poses, depth), np.array([0.2, 0.1, 0.1], np.float32)
  truth = scenes.painted(asked[None], scenes.flat_room(asked[None]))[0]
  view, seen = render(pictures, depth, poses, jnp.ones(3, bool), asked)
  assert seen.mean() > 0.9
  error = lambda x: np.abs(np.asarray(x, np.float32) - truth)[np.asarray(seen)].mean()
  assert error(view) < 2.0 < 0.4 * error(pictures[0])


def test_what_stands_before_a_point_hides_it():
  near, far = jnp.full((SIZE, SIZE), 1.0), jnp.full((SIZE, SIZE), 0.25)
  poses, asked = jnp.array([[0.0, 0.0, 0.0], [0.0, 0.02, 0.0]]), jnp.zeros(3)
  pictures = jnp.stack([jnp.full((SIZE, SIZE, 3), 200), jnp.full((SIZE, SIZE, 3), 50)])
  both = jnp.ones(2, bool)
  view, seen = render(pictures.astype(jnp.uint8), jnp.stack([near, far]), poses, both, asked)
  assert seen.mean() > 0.9
  np.testing.assert_allclose(view[seen], 200.0)


def test_nothing_shines_through_the_gaps_of_a_wall_that_comes_nearer():
  """From half the distance a wall's points lie two pixels apart; the sky lies in all others."""
  wall, sky = jnp.full((SIZE, SIZE), 0.5), jnp.zeros((SIZE, SIZE))
  poses, asked = jnp.array([[0.0, 0.0, 0.0], [1.0, 0.1, 0.0]]), jnp.array([1.0, 0.0, 0.0])
  pictures = jnp.stack([jnp.full((SIZE, SIZE, 3), 200), jnp.full((SIZE, SIZE, 3), 50)])
  view, seen = render(
      pictures.astype(jnp.uint8), jnp.stack([wall, sky]), poses, jnp.ones(2, bool), asked)
  assert (seen & (view[..., 0] == 200)).mean() > 0.95


def test_pictures_that_do_not_exist_and_places_never_seen_stay_open():
  poses = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, np.pi]], np.float32)
  depth = scenes.flat_room(poses)
  pictures = scenes.painted(poses, depth)
  asked = np.array([0.0, 0.0, np.pi], np.float32)
  _, seen = render(pictures, depth, poses, jnp.array([True, False]), asked)
  assert not seen.any()
  _, seen = render(pictures, depth, poses, jnp.zeros(2, bool), poses[0])
  assert not seen.any()


def test_a_picture_that_does_not_exist_or_comes_second_hides_nothing():
  near, far = jnp.full((SIZE, SIZE), 1.0), jnp.full((SIZE, SIZE), 0.25)
  pictures = jnp.stack([jnp.full((SIZE, SIZE, 3), 200), jnp.full((SIZE, SIZE, 3), 50)])
  view, seen = render(
      pictures.astype(jnp.uint8), jnp.stack([far, near]), jnp.zeros((2, 3)),
      jnp.array([True, False]), jnp.zeros(3))
  assert seen.mean() > 0.9
  np.testing.assert_allclose(view[seen], 200.0)
  view, seen = render(
      pictures.astype(jnp.uint8), jnp.stack([far, near]), jnp.zeros((2, 3)), jnp.ones(2, bool),
      jnp.zeros(3), jnp.array([False, True]))
  np.testing.assert_allclose(view[seen], 200.0)


def test_a_picture_that_comes_second_shows_what_no_other_does():
  depth, poses = jnp.zeros((2, SIZE, SIZE)), jnp.array([[0.0, 0.0, 0.6], [0.0, 0.0, 0.0]])
  pictures = jnp.stack([jnp.full((SIZE, SIZE, 3), 200), jnp.full((SIZE, SIZE, 3), 50)])
  show = lambda second: render(
      pictures.astype(jnp.uint8), depth, poses, jnp.ones(2, bool), jnp.zeros(3), second)
  view, seen = show(jnp.array([False, True]))
  assert seen.mean() > 0.97
  assert 0.3 < (view > 199.0).mean() < 0.8 and set(np.unique(np.round(view[seen]))) == {50, 200}
  view, seen = show(jnp.zeros(2, bool))
  np.testing.assert_allclose(view[seen], 50.0)


def test_pictures_are_chosen_for_what_they_add():
  """Two nearly the same and nearer ones do not keep out the one that shows the rest."""
  poses = np.array([[0.0, 0.0, 0.6], [0.01, 0.0, 0.6], [0.0, 0.0, -0.7]], np.float32)
  depth = scenes.flat_room(poses)
  pictures, asked = scenes.painted(poses, depth), np.zeros(3, np.float32)
  _, seen = render(pictures, depth, poses, jnp.ones(3, bool), asked, count=2)
  _, one = render(pictures, depth, poses, jnp.ones(3, bool), asked, count=1)
  assert seen.mean() > 0.9 > 0.75 > one.mean()


def test_a_view_of_half_a_turn_is_refused():
  with pytest.raises(ValueError, match=r'half_view=1\.6; expected radians between 0 and pi / 2'):
    warping.Camera(half_view=1.6)
