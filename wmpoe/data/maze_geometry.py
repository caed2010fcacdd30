"""How far everything in a Memory Maze frame is, from its layout: what a depth network is taught.

A maze is a floor, walls of one height on the cells of a grid and a sky; rays are followed to the
first of them. The objects on the floor are left out. NumPy only.
"""

import numpy as np

from wmpoe.data import memory_maze


def inverse_depth(layout: np.ndarray, poses: np.ndarray, side: int, half_view: float) -> np.ndarray:
  """One over the distance along the optical axis, in cells, of every pixel; 0 for the sky.

  Args:
    layout: [N M], 1 where free; row y, column x. What lies around it is wall.
    poses: x, y, heading [T 3] of the agent; the camera sits as `memory_maze` says.
    side: Pixels of a side.
    half_view: Half the field of view, radians.

  Returns:
    float32 [T side side].
  """
  centres = ((np.arange(side) + 0.5) / side * 2 - 1) * np.tan(half_view)
  down, right = (x.ravel() for x in np.meshgrid(centres, centres, indexing='ij'))
  cos, sin = np.cos(memory_maze.CAMERA_PITCH), np.sin(memory_maze.CAMERA_PITCH)
  # Rays of length 1 along the optical axis, as (ahead, left, up) of a level camera.
  ahead, left, up = cos - sin * down, -right, -sin - cos * down
  heading = np.stack([np.cos(poses[:, 2]), np.sin(poses[:, 2])])[..., None]  # [2 T 1]
  origin = poses[:, :2].T[..., None] + memory_maze.CAMERA_AHEAD * heading
  ray = np.stack([heading[0] * ahead - heading[1] * left, heading[1] * ahead + heading[0] * left])
  sizes = np.shape(layout)[::-1]
  solid = np.pad(np.asarray(layout) == 0, 1, constant_values=True)
  with np.errstate(divide='ignore', invalid='ignore'):
    nearest = np.where(up < 0, -memory_maze.CAMERA_HEIGHT / up, np.inf)  # the floor
    nearest = np.broadcast_to(nearest, ray.shape[1:])
    for axis in range(2):
      for line in range(sizes[axis] + 1):  # walls begin on lines between cells
        far = (line - origin[axis]) / ray[axis]
        cell = [np.where(ray[axis] > 0, line, line - 1)] * 2
        cell[1 - axis] = np.floor(np.nan_to_num(origin[1 - axis] + far * ray[1 - axis]))
        x, y = (np.clip(c + 1, 0, n + 1).astype(int) for c, n in zip(cell, sizes, strict=True))
        height = memory_maze.CAMERA_HEIGHT + far * up
        hit = (far > 1e-4) & solid[y, x] & (height >= -1e-3) & (height <= memory_maze.WALL_HEIGHT)
        nearest = np.where(hit & (far < nearest), far, nearest)
  return (1 / nearest).astype(np.float32).reshape(len(poses), side, side)
