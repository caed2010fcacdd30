"""Your own data: converts recordings, checks them, describes them, shows them.

  python -m wmpoe data convert --from=media --source=recordings --workdir=data/mine --size=64
  python -m wmpoe data validate --source=data/mine
  python -m wmpoe data stats    --source=data/mine
  python -m wmpoe data preview  --source=data/mine --workdir=outputs/preview

Converts from: media (a folder of videos, or of folders of images, each with a CSV or JSON table of
actions and poses), minari, lerobot, memory_maze. To record a Gymnasium environment while it runs,
use wmpoe.data.sources.rollouts.EpisodeRecorder. docs/own_data.md describes the format and the
tables, and guides you from frames to a world model.
"""

from collections.abc import Sequence
import json
import pathlib
import sys
from typing import Any

from absl import flags as absl_flags
import numpy as np

from wmpoe import whole_file
from wmpoe.commands import common
from wmpoe.data import inspection
from wmpoe.data.sources import conversion
from wmpoe.data.sources import lerobot
from wmpoe.data.sources import mazes
from wmpoe.data.sources import media
from wmpoe.data.sources import minari_dataset
from wmpoe.evaluation import animation
from wmpoe.evaluation import film

TOPICS = ('validate', 'convert', 'stats', 'preview')
KINDS = ('media', 'minari', 'lerobot', 'memory_maze')
# Which kinds a flag is for; those not named are for all.
_ONLY = {
    'frames': ('minari', 'lerobot'), 'poses': ('minari', 'lerobot'),
    'pose_kind': ('minari', 'lerobot'), 'actions': ('media',), 'action_at': ('media',),
    'fps': ('media',), 'size': ('media', 'minari', 'lerobot')}


def define(flags: absl_flags.FlagValues, argv: Sequence[str]) -> None:
  """Adds the flags of `data`."""
  del argv
  define = lambda kind, *args: getattr(absl_flags, f'DEFINE_{kind}')(*args, flag_values=flags)
  define('string', 'topic', '', f'One of {", ".join(TOPICS)}; given as a word: data stats.')
  define('string', 'source', None, 'Folder to read; for minari, also the name of a dataset.')
  define('string', 'workdir', None, 'Folder to write to (convert, preview, stats.json).')
  define('string', 'from', None, f'convert: one of {", ".join(KINDS)}.')
  define('list', 'size', None, 'convert: side of the frames in pixels, or HEIGHT,WIDTH; each '
         'picture is cropped to its middle and scaled. By default, pictures stay as they are.')
  define('integer', 'skip', 1, 'convert: steps per frame; a frame has the actions of all of them.')
  define('list', 'actions', [], 'convert, media: names of the discrete actions, in order.')
  define('string', 'action_at', None, "convert, media: 'frame' if row t is the action taken at "
         "frame t (the default), 'arrival' if it is the one that led to it.")
  define('list', 'action_scale', [],
         'convert: number to divide continuous actions by, or one number for each.')
  define('float', 'pose_scale', 1.0, 'convert: divide x and y by this, so that they are in cells.')
  define('string', 'unit', '', 'convert: name of the unit of length after scaling.')
  define('string', 'frames', None, 'convert, minari and lerobot: name of the camera.')
  define('string', 'poses', None, 'convert, minari and lerobot: name of the entry to use as poses.')
  define('string', 'pose_kind', None,
         'convert, minari and lerobot: kind of the poses: planar, grid or vector.')
  define('float', 'fps', None, 'convert, media: frames per second, if the files do not say.')
  define('string', 'environment', '', 'convert: name of the world.')
  define('integer', 'min_length', 2, 'convert: minimum number of frames per episode.')
  define('boolean', 'strict', False, 'convert: stop at the first bad episode.')
  define('boolean', 'overwrite', False, 'convert: delete the episodes in --workdir first.')
  define('integer', 'episodes', 8, 'preview: how many episodes to show.')
  define('integer', 'columns', 12, 'preview: how many frames to show of each.')


def run(flags: absl_flags.FlagValues) -> None:
  """Runs the topic."""
  if flags.topic not in TOPICS:
    raise ValueError(f'Give one of {", ".join(TOPICS)}: python -m wmpoe data '
                     f'{flags.topic or "TOPIC"} is none of them.')
  if not flags.source:
    raise ValueError('Give the folder to read, for instance --source=data/mine.')
  {'validate': _validate, 'convert': _convert, 'stats': _stats, 'preview': _preview}[
      flags.topic](flags)


def _convert(flags: absl_flags.FlagValues) -> None:
  kind = flags['from'].value
  if kind not in KINDS:
    raise ValueError(f'--from={kind}: expected one of {", ".join(KINDS)}.')
  for flag, kinds in _ONLY.items():
    if flags[flag].value and kind not in kinds:
      raise ValueError(f'--{flag} is for {", ".join(kinds)}; not for {kind}.')
  if not flags.workdir:
    raise ValueError('Give the folder to write to, for instance --workdir=data/mine.')
  options = conversion.Options(
      skip=flags.skip, action_scale=tuple(_floats(flags.action_scale, 'action_scale')),
      pose_scale=flags.pose_scale, unit=flags.unit, min_length=flags.min_length)
  source = _source(kind, flags)
  out = common.output_folder(flags.workdir)
  progress, bad, written, count = common.Progress(1), {}, 0, len(source.names)
  for step in conversion.convert(
      source, out, options=options, strict=flags.strict, overwrite=flags.overwrite):
    progress(f'converting into {out}', step.done / step.total)
    written += step.written
    if step.error:
      bad[source.names[step.done - 1]] = step.error
      progress.done()
      print(f'left out: {step.error}', file=sys.stderr)
  progress.done()
  report = conversion.finish(
      out, converted=count - len(bad), bad=bad, about={'from': kind, 'source': str(flags.source)})
  print(f'{count - len(bad)} of {count} episodes converted into {out} ({written} written now, '
        f'{len(bad)} bad); report: {report}')
  if len(bad) == count:
    raise ValueError(f'None of the {count} episodes could be converted; see above.')
  print(f'next: python -m wmpoe data stats --source={out}')


def _source(kind: str, flags: absl_flags.FlagValues) -> conversion.Source:
  """The reader of a kind, with the flags that are for it."""
  size, name = _size(flags.size), flags.environment
  if kind == 'memory_maze':
    return mazes.MazeSource(flags.source, environment=name)
  if kind == 'media':
    at = flags.action_at or 'frame'
    if at not in ('frame', 'arrival'):
      raise ValueError(f"--action_at={at}: expected 'frame' or 'arrival'.")
    return media.MediaSource(
        flags.source, size=size, actions=flags.actions, taken_at=at == 'frame', fps=flags.fps,
        environment=name)
  reader: Any = {'minari': minari_dataset.MinariSource, 'lerobot': lerobot.LeRobotSource}[kind]
  return reader(
      flags.source, frames=flags.frames or '', poses=flags.poses or '',
      pose_kind=flags.pose_kind or 'vector', size=size, environment=name)


def _floats(texts: Sequence[str], flag: str) -> list[float]:
  try:
    return [float(text) for text in texts]
  except ValueError:
    raise ValueError(f'--{flag}={",".join(texts)}: expected numbers.') from None


def _size(texts: Sequence[str] | None) -> tuple[int, int] | None:
  if not texts:
    return None
  good = [t.strip().isdecimal() and len(t) < 9 and 0 < int(t) <= 4096 for t in texts]
  if len(texts) > 2 or not all(good):
    raise ValueError(f'--size={",".join(texts)}: expected one side or HEIGHT,WIDTH in pixels.')
  return int(texts[0]), int(texts[-1])


def _look(flags: absl_flags.FlagValues, use: Any) -> tuple[Any, int, dict[str, str]]:
  """Calls `use(spaces)` to get a consumer, and feeds it the good episodes of the folder."""
  spaces, files, count = inspection.look(flags.source)
  take, bad = use(spaces), {}
  progress = common.Progress(1)
  for done, found in enumerate(files):
    progress(f'reading {flags.source}', (done + 1) / count)
    if found.item is None:
      bad[found.path.name] = found.error
      progress.done()
      print(f'bad: {found.error}', file=sys.stderr)
    else:
      take(found.item)
  progress.done()
  return spaces, count, bad


def _validate(flags: absl_flags.FlagValues) -> None:
  spaces, count, bad = _look(flags, lambda spaces: lambda item: None)
  if bad:
    raise ValueError(f'{len(bad)} of {count} episodes in {flags.source} are bad; see above. '
                     'Convert or record them again, or delete them.')
  print(f'{count} episodes of {spaces.environment} in {flags.source} are good: frames '
        f'{list(spaces.frame_shape)}, {spaces.action_dim} {spaces.actions.kind} actions, '
        f'{spaces.poses.kind} poses\nnext: python -m wmpoe data stats --source={flags.source}')


def _stats(flags: absl_flags.FlagValues) -> None:
  gathered: list[inspection.Statistics] = []

  def use(spaces):
    gathered.append(inspection.Statistics(spaces))
    return gathered[0].add

  spaces, count, bad = _look(flags, use)
  if len(bad) == count:
    raise ValueError(f'All {count} episodes in {flags.source} are bad; see above.')
  summary = gathered[0].summary()
  print(inspection.describe(spaces, summary))
  if bad:
    print(f'{common.counted(len(bad), "bad episode")} left out; see above')
  if flags.workdir:
    path = common.output_folder(flags.workdir) / 'stats.json'
    text = json.dumps({**summary, 'bad': bad}, indent=2).encode()
    whole_file.write(path, text)
    print(f'wrote {path}')
  print(f'next: python -m wmpoe data preview --source={flags.source}')


def _preview(flags: absl_flags.FlagValues) -> None:
  if flags.episodes < 1 or flags.columns < 1:
    raise ValueError(
        f'--episodes={flags.episodes} and --columns={flags.columns}: expected at least 1 each.')
  spaces, files, count = inspection.look(flags.source)
  rows: dict[str, np.ndarray] = {}
  films: dict[str, np.ndarray] = {}
  for found in files:
    if found.item is None:
      print(f'bad: {found.error}', file=sys.stderr)
      continue
    label, frames = found.path.stem, found.item.frames
    spread = np.linspace(0, len(frames) - 1, flags.columns).round().astype(int)
    rows[label], films[label] = frames[spread], frames
    if len(rows) == flags.episodes:
      break
  if not rows:
    raise ValueError(f'All {count} episodes in {flags.source} are bad; see above.')
  out = common.output_folder(flags.workdir or 'outputs/preview')
  scale = max(1, round(96 / max(spaces.frame)))
  sheet = film.contact_sheet(film.Strip(rows=rows), scale=scale)
  path = pathlib.Path(out) / 'preview.png'
  whole_file.write(path, film.png(sheet))
  shortest = min(min(map(len, films.values())), 120)
  moving = {label: frames[:shortest] for label, frames in list(films.items())[:4]}
  gif = animation.write_gif(
      out / 'preview.gif', film.Strip(rows=moving, title=spaces.environment),
      fps=min(max(spaces.fps or 8, 1), 20))
  print(f'wrote {path} ({len(rows)} of {count} episodes, {flags.columns} frames of each) and {gif}')
