"""What a Memory Maze world model is told of its world: sizes, frame skip, border."""

import dataclasses

ACTIONS = 6  # one-hot of the simulator's actions


@dataclasses.dataclass(frozen=True)
class MazeConfig:
  """Memory Maze (arXiv 2210.13383) as frames for a world model.

  Attributes:
    size: Side of the maze in cells: 9, 11, 13 or 15.
    image: Side of the rendered frames in pixels.
    border: Pixels cropped on every side: the frame in the colour of the object to be found, which
      is no part of the world.
    skip: Simulator steps per frame; the actions of all of them are the condition of a frame.
    length: Simulator steps of an episode.

  Raises:
    ValueError: for a size there is no maze of, or numbers that leave nothing.
  """

  size: int = 9
  image: int = 64
  border: int = 2
  skip: int = 2
  length: int = 600

  def __post_init__(self):
    if self.size not in (9, 11, 13, 15):
      raise ValueError(f'MazeConfig.size={self.size}; there are mazes of 9, 11, 13 and 15 cells.')
    if self.skip < 1 or self.border < 0 or self.image <= 2 * self.border or self.length < 1:
      raise ValueError(
          f'{self}: expected skip and length of at least 1, and an image wider than its borders.')

  @property
  def frame_shape(self) -> tuple[int, int, int]:
    """(H, W, 3) of a frame without its border."""
    side = self.image - 2 * self.border
    return side, side, 3

  @property
  def action_dim(self) -> int:
    """A: one-hot actions of all skipped steps, oldest first."""
    return ACTIONS * self.skip

  @property
  def pose_dim(self) -> int:
    """P: x, y in cells, heading in radians."""
    return 3
