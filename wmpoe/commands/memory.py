"""Looks into memory files, which `Session.save` writes, and makes new ones out of them.

python -m wmpoe memory info FILE                      what it holds, of which model, from where
python -m wmpoe memory diff FILE FILE                 what differs between two
python -m wmpoe memory merge FILE FILE --how=average  one memory out of two of the same place
python -m wmpoe memory fork FILE --branch=1           a copy that dreams of its own
python -m wmpoe memory forget FILE --frames=10:30     without a span of the frames observed

merge and forget load the packaged model the memory is for, or with --experts and --autoencoder
yours. `--how=rewrite` and forget need files that were saved with their history; they write all
memories anew from it.
"""

from collections.abc import Callable, Sequence
import itertools
import pathlib
import time

from absl import flags as absl_flags

from wmpoe import whole_file
from wmpoe import world_model
from wmpoe import zoo
from wmpoe.commands import common
from wmpoe.session import edits
from wmpoe.session import live
from wmpoe.session import memory_file

_FILES = {'info': 1, 'diff': 2, 'merge': 2, 'fork': 1, 'forget': 1}


def define(flags: absl_flags.FlagValues, argv: Sequence[str]) -> None:
  """Adds the flags of `memory`."""
  del argv
  absl_flags.DEFINE_string('topic', 'info', f'One of {", ".join(_FILES)}.', flag_values=flags)
  absl_flags.DEFINE_list('files', [], 'The memory files.', flag_values=flags)
  absl_flags.DEFINE_string(
      'out', '', 'File to write; by default named after what is done, in --workdir, with a number '
      'if there is one already.', flag_values=flags)
  absl_flags.DEFINE_boolean(
      'overwrite', False, 'Whether --out may replace a file.', flag_values=flags)
  absl_flags.DEFINE_string('workdir', 'outputs/memory', 'Folder to write to.', flag_values=flags)
  absl_flags.DEFINE_enum(
      'how', 'rewrite', edits.HOW, 'How merge combines what was written into weights.',
      flag_values=flags)
  absl_flags.DEFINE_integer('branch', 1, 'Number of the fork, any.', flag_values=flags)
  absl_flags.DEFINE_string(
      'experts', '', 'Files of the experts the memory is for, if yours: name=file,name=file with '
      'names base, short_term, spatial.', flag_values=flags)
  absl_flags.DEFINE_string(
      'autoencoder', '', 'File of their latent space, if they have one.', flag_values=flags)
  absl_flags.DEFINE_string(
      'frames', '', 'Span to forget, A:B, counted from the first frame observed.',
      flag_values=flags)


def run(flags: absl_flags.FlagValues) -> None:
  """Does what the topic says."""
  what, files = flags.topic, flags.files
  if what not in _FILES:
    raise ValueError(f'memory {what!r}: expected one of {", ".join(_FILES)}.')
  if len(files) != _FILES[what]:
    raise ValueError(
        f'memory {what} got {len(files)} files; expected {_FILES[what]}: '
        f'python -m wmpoe memory {what}{" FILE" * _FILES[what]}.')
  if what == 'info':
    print(_info(files[0]))
    print(f'\ntry next:    python -m wmpoe memory fork {files[0]} --branch=1')
  elif what == 'diff':
    print(_diff(*files))
  else:
    out = _destination(what, flags)
    {'merge': _merge, 'fork': _fork, 'forget': _forget}[what](files, out, flags)
    print(f'wrote {out} ({out.stat().st_size / 1e6:.2f} MB)')
    print(f'look at it:  python -m wmpoe memory diff {files[0]} {out}')


def _destination(what: str, flags: absl_flags.FlagValues) -> pathlib.Path:
  """The file to write.

  Raises:
    FileExistsError: if the one that was named is there, and may not be replaced.
  """
  if not flags.out:
    folder = common.output_folder(flags.workdir)
    return whole_file.free(folder, (
        f'{what}{"" if i == 1 else f"_{i}"}.npz' for i in itertools.count(1)))
  if pathlib.Path(flags.out).exists() and not flags.overwrite:
    raise FileExistsError(f"--out='{flags.out}' is there already: name another, or --overwrite.")
  return pathlib.Path(flags.out)


def _info(path: str) -> str:
  leaves, card = memory_file.read(path)
  composed = card['composition']
  world = 'a model given by hand' if card['source'] is None else card['source']['world']
  weights = ', '.join(f'{name} {weight:g}' if isinstance(weight, float) else f'{name} by episode'
                      for name, weight in composed['weights'].items())
  with_history = ('with its history: can be written on, merged anew, made to forget'
                  if card['history'] else 'without its history: can be read, not written on')
  lines = [
      f'{path}  ({pathlib.Path(path).stat().st_size / 1e6:.2f} MB, sha256 {card["sha256"]})',
      f'  world      {world}; written by wmpoe {card["wmpoe"]}, {card["created"]}',
      f'  episodes   {card["episodes"]}; frames observed {_counts(card["observed"])}, imagined '
      f'{_counts(card["imagined"])}',
      f'  memory     {with_history}',
      f'  composed   {" + ".join(composed["experts"])} by {composed["rule"]}; weights {weights}',
      f'  sampled    {composed["sampler"]}, {composed["num_steps"]} steps, chunks of '
      f'{composed["chunk"]}',
      f'  from       {" > ".join(card["lineage"]) or "an open session"}',
      '  weights    ' + ', '.join(f'{n} {digest[:12]}' for n, digest in card['parts'].items()),
      '  holds']
  lines += [f'    {part:<22} {size / 1e3:>9.1f} kB' for part, size in edits.sizes(leaves).items()]
  return '\n'.join(lines)


def _counts(counts: list[int]) -> str:
  return str(counts[0]) if len({*counts}) == 1 else f'{min(counts)} to {max(counts)}'


def _diff(first: str, second: str) -> str:
  found = edits.diff(first, second)
  lines = [f'{first} against {second}', '  cards']
  lines += [f'    {name:<12} {one}  |  {other}' for name, (one, other) in found['card'].items()]
  lines += ['    the same'] * (not found['card'])
  lines += ['  state, relative difference']
  for part, change in found['state'].items():
    said = 'only in one, or of another shape' if change is None else (
        'the same' if change == 0 else f'{change:.3g}')
    lines.append(f'    {part:<22} {said}')
  return '\n'.join(lines)


def _merge(files: Sequence[str], out: pathlib.Path, flags: absl_flags.FlagValues) -> None:
  first = live.Session.load(files[0], _model(flags))
  second = live.Session.load(files[1], first)
  merged = _timed(lambda: edits.merge(first, second, how=flags.how))
  merged.save(out, history=flags.how == 'rewrite')


def _fork(files: Sequence[str], out: pathlib.Path, flags: absl_flags.FlagValues) -> None:
  memory_file.fork(files[0], out, flags.branch)


def _forget(files: Sequence[str], out: pathlib.Path, flags: absl_flags.FlagValues) -> None:
  start, colon, stop = flags.frames.partition(':')
  if not (colon and start.isdigit() and stop.isdigit()):
    raise ValueError(f'--frames={flags.frames!r}: expected a span such as --frames=10:30.')
  session = live.Session.load(files[0], _model(flags))
  _timed(lambda: edits.forget(session, int(start), int(stop))).save(out, history=True)


def _model(flags: absl_flags.FlagValues) -> world_model.WorldModel | None:
  if not flags.experts:
    return None
  return zoo.load_files(common.experts_of(flags.experts, ''), autoencoder=flags.autoencoder)


def _timed(make: Callable[[], live.Session]) -> live.Session:
  begun = time.monotonic()
  made = make()
  print(f'memories of {made.batch} episodes, {made.observed[0]} frames each, made in '
        f'{time.monotonic() - begun:.1f} s')
  return made
