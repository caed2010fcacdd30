"""What a step of ViZDoom's depth buffer is, measured against the walls it tells of.

  python benchmarks/vizdoom_depth.py      needs vizdoom; prints the line that docs/own_data.md uses

Rays are cast along the horizon of `my_way_home` through all walls of the map (`sectors`), and the
distance along the optical axis is fitted by a line in the buffer's byte.
"""

import os
import tempfile
from typing import Any

import gymnasium  # noqa: TID253 - a script
import numpy as np
import vizdoom
from vizdoom import gymnasium_wrapper  # noqa: F401 - registers the environments

_WIDTH, _HORIZON, _FOCAL = 320, 120, 160.0  # pixels; 90 degrees wide


def frames(count: int = 240) -> Any:
  """Pose (x, y, radians) and depth buffer of frames of a random walk, and the map's walls [N 4]."""
  env = gymnasium.make('VizdoomMyWayHome-v1', frame_skip=6)
  game = env.unwrapped.game  # type: ignore[attr-defined]
  game.close()
  game.set_depth_buffer_enabled(True)
  game.set_sectors_info_enabled(True)
  game.init()
  names = (vizdoom.GameVariable.POSITION_X, vizdoom.GameVariable.POSITION_Y,
           vizdoom.GameVariable.ANGLE)
  rng, walls = np.random.default_rng(0), np.zeros((0, 4))
  seen: list[tuple[np.ndarray, float, np.ndarray]] = []
  while len(seen) < count:
    if len(seen) % 40 == 0:
      game.set_seed(len(seen))
      game.new_episode()
    state = game.get_state()
    x, y, degrees = (game.get_game_variable(name) for name in names)
    seen.append((np.array([x, y]), np.deg2rad(degrees), state.depth_buffer.astype(float)))
    walls = np.array([(line.x1, line.y1, line.x2, line.y2) for sector in state.sectors
                      for line in sector.lines if line.is_blocking])
    action = [0] * game.get_available_buttons_size()
    action[rng.integers(len(action))] = 1
    game.make_action(action, 8)
  env.close()
  return seen, walls


def distance(where: np.ndarray, heading: float, right: float, walls: np.ndarray) -> float:
  """Along the optical axis to the first wall of a ray, `right` of the axis at distance 1."""
  ahead = np.array([np.cos(heading), np.sin(heading)])
  ray = ahead + right * np.array([ahead[1], -ahead[0]])
  start, along = walls[:, :2] - where, walls[:, 2:] - walls[:, :2]
  cross = lambda a, b: a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
  with np.errstate(all='ignore'):
    far, at = cross(start, along) / cross(ray, along), cross(start, ray) / cross(ray, along)
  met = far[(far > 0) & (at >= 0) & (at <= 1)]
  return float(met.min()) if met.size else np.nan


def main() -> None:
  """Measures and prints."""
  with tempfile.TemporaryDirectory() as folder:  # ViZDoom leaves a file of its own where it runs
    os.chdir(folder)
    seen, walls = frames()
    os.chdir('/')
  columns = np.arange(0, _WIDTH, 8)
  true = np.array([[distance(where, heading, (c + 0.5 - _WIDTH / 2) / _FOCAL, walls)
                    for c in columns] for where, heading, _ in seen])
  told = np.stack([buffer[_HORIZON, columns] for *_, buffer in seen])
  for least in (10, 5, 2):
    far = (told > least) & np.isfinite(true)
    step, offset = np.polyfit(told[far], true[far], 1)
    error = np.abs(true[far] - step * told[far] - offset) / true[far]
    print(f'walls of more than {least} steps, {far.sum()} pixels: {step:.2f} map units a step and '
          f'{offset:.1f}; median error {np.median(error):.1%}')


if __name__ == '__main__':
  main()
