"""Time grids: the diffusion time of every frame at every step, as static numpy [S+1 T]."""

import numpy as np


def full_sequence(num_steps: int, frames: int) -> np.ndarray:
  """All frames together: diffusion times [S+1 T], from 1 to 0 in equal steps.

  Raises:
    ValueError: if a count is below one.
  """
  return pyramid(num_steps, frames, delay=0)


def pyramid(num_steps: int, frames: int, *, delay: int = 1) -> np.ndarray:
  """Staggered frames: each lags the one before by `delay` steps (arXiv 2407.01392).

  `t[k, f] = clip(1 - (k - f delay) / num_steps, 0, 1)`; a frame waits at 1, takes its
  `num_steps` steps and rests at 0.

  Args:
    num_steps: Steps of each frame.
    frames: Number of frames T.
    delay: Steps between the starts of neighbouring frames; 0 is `full_sequence`.

  Returns:
    Diffusion times [S+1 T], float32, with `S = num_steps + delay (T - 1)`.

  Raises:
    ValueError: if a count is below one or the delay negative.
  """
  if num_steps < 1 or frames < 1 or delay < 0:
    raise ValueError(
        f'A time grid needs num_steps >= 1, frames >= 1 and delay >= 0; got {num_steps}, '
        f'{frames} and {delay}.')
  step = np.arange(num_steps + delay * (frames - 1) + 1)[:, None]
  lag = delay * np.arange(frames)[None]
  return np.clip((num_steps - step + lag) / num_steps, 0, 1).astype(np.float32)


GRIDS = {'full': full_sequence, 'pyramid': pyramid}


def resolve(grid: str | np.ndarray, num_steps: int, frames: int) -> np.ndarray:
  """The times [S+1 T] that a name or an array stands for, checked.

  Raises:
    ValueError: if the name is unknown, or the array misshapen, outside [0, 1] or increasing.
  """
  if isinstance(grid, str):
    if grid not in GRIDS:
      raise ValueError(
          f'Unknown grid {grid!r}; expected one of {", ".join(GRIDS)} or an array [S+1 T].')
    return GRIDS[grid](num_steps, frames)
  times = np.asarray(grid, np.float32)
  if times.shape != (num_steps + 1, frames):
    raise ValueError(
        f'The grid has shape {times.shape}; expected (num_steps + 1, frames) = '
        f'{(num_steps + 1, frames)}. For pyramid(S, T, delay=d) pass num_steps = S + d (T - 1).')
  if times.min() < 0 or times.max() > 1 or (np.diff(times, axis=0) > 0).any():
    raise ValueError('A grid holds diffusion times in [0, 1] that never increase along axis 0.')
  return times
