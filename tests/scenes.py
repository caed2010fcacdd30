"""A painted floor under a sky, and the camera that sees it: what geometry is tested on."""

import jax
import numpy as np

from wmpoe.networks import warping

CAMERA = warping.Camera(half_view=0.7, pitch=0.1, ahead=0.1)
SIZE = 24

_points = jax.jit(CAMERA.points)


def flat_room(poses, height=0.5, far=3.0):
  """Inverse depth of a floor at -height under a sky, seen from poses [S 3]."""
  camera = np.asarray(_points(np.zeros((SIZE, SIZE)), np.zeros(3)))  # rays
  up = np.broadcast_to(camera[..., 2], (len(poses), SIZE, SIZE))
  return np.where(up < -height / far, -up / height, 0.0).astype(np.float32)


def painted(poses, depth):
  """Pictures of a world whose colour is a smooth function of where a point lies."""
  points = np.asarray(_points(depth, poses))
  direction = points[..., :3] / np.linalg.norm(points[..., :3], axis=-1, keepdims=True)
  place = np.where(
      points[..., 3:] > 0, points[..., :3] / np.maximum(points[..., 3:], 1e-6), 9 * direction)
  return np.round(127 + 100 * np.sin(0.7 * place)).astype(np.uint8)
