"""Inspects memory files, which `Session.save` writes, and makes new ones from them.

python -m wmpoe memory info FILE                      shows its contents, model and origin
python -m wmpoe memory diff FILE FILE                 shows how two memories differ
python -m wmpoe memory merge FILE FILE --how=average  merges two memories of the same place
python -m wmpoe memory fork FILE --branch=1           makes a copy that dreams differently
python -m wmpoe memory forget FILE --frames=10:30     removes a span of observed frames

merge and forget load the packaged model the memory belongs to, or yours with --experts and
--autoencoder. `--how=rewrite` and forget need files that were saved with their history, from which
they write all memories again.
"""

from collections.abc import Callable, Mapping, Sequence
import itertools
import pathlib
import time
from typing import Any

from absl import flags as absl_flags

from wmpoe import whole_file
from wmpoe import world_model
from wmpoe import zoo
from wmpoe.commands import common
from wmpoe.session import edits
from wmpoe.session import live
from wmpoe.session import memory_file
from wmpoe.session import memory_folder

_FILES = {'info': 1, 'diff': 2, 'merge': 2, 'fork': 1, 'forget': 1}


def define(flags: absl_flags.FlagValues, argv: Sequence[str]) -> None:
  """Adds the flags of `memory`."""
  del argv
  absl_flags.DEFINE_string('topic', 'info', f'One of {", ".join(_FILES)}.', flag_values=flags)
  absl_flags.DEFINE_list('files', [], 'The memory files.', flag_values=flags)
  absl_flags.DEFINE_string(
      'out', '', 'File to write; by default a new file in --workdir, named after the topic.',
      flag_values=flags)
  absl_flags.DEFINE_boolean(
      'overwrite', False, 'Let --out replace an existing file.', flag_values=flags)
  absl_flags.DEFINE_string('workdir', 'outputs/memory', 'Folder to write to.', flag_values=flags)
  absl_flags.DEFINE_enum(
      'how', 'rewrite', edits.HOW, 'How merge combines memories that were written into weights.',
      flag_values=flags)
  absl_flags.DEFINE_integer(
      'branch', 1, 'Any number; forks with different numbers dream differently.',
      flag_values=flags)
  absl_flags.DEFINE_string(
      'experts', '', 'Files of your own experts, if the memory belongs to them: '
      'name=file,name=file, where name is base, short_term or spatial.', flag_values=flags)
  absl_flags.DEFINE_string(
      'autoencoder', '', 'File of their autoencoder, if they work in latents.', flag_values=flags)
  absl_flags.DEFINE_string(
      'frames', '', 'Span to forget, A:B, counted from the first frame observed.',
      flag_values=flags)


def run(flags: absl_flags.FlagValues) -> None:
  """Runs the topic."""
  what, files = flags.topic, flags.files
  if what not in _FILES:
    raise ValueError(f'memory {what!r}: expected one of {", ".join(_FILES)}.')
  if len(files) != _FILES[what]:
    raise ValueError(
        f'memory {what} got {common.counted(len(files), "file")}; expected {_FILES[what]}: '
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
    FileExistsError: if the named file exists and may not be replaced.
  """
  if not flags.out:
    folder = common.output_folder(flags.workdir)
    return whole_file.free(folder, (
        f'{what}{"" if i == 1 else f"_{i}"}.npz' for i in itertools.count(1)))
  if pathlib.Path(flags.out).exists() and not flags.overwrite:
    raise FileExistsError(
        f"--out='{flags.out}' already exists: name another file, or add --overwrite.")
  return pathlib.Path(flags.out)


def _info(path: str) -> str:
  leaves: Mapping[str, Any]
  if memory_folder.is_one(path):
    leaves, card = memory_folder.shapes(path), memory_file.card(path)
    size = 'a folder'
  else:
    leaves, card = memory_file.read(path)
    size = f'{pathlib.Path(path).stat().st_size / 1e6:.2f} MB, sha256 {card["sha256"]}'
  composed = card['composition']
  world = 'a model of your own' if card['source'] is None else card['source']['world']
  weights = ', '.join(f'{name} {weight:g}' if isinstance(weight, float) else f'{name} per episode'
                      for name, weight in composed['weights'].items())
  with_history = ('with its history: can be read, written to, merged by rewriting, made to forget'
                  if card['history'] else 'without its history: can be read, not written to')
  lines = [
      f'{path}  ({size})',
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
    said = 'only in one, or shapes differ' if change is None else (
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
  print(f'made the memories of {common.counted(made.batch, "episode")}, {made.observed[0]} frames '
        f'each, in {time.monotonic() - begun:.1f} s: {made.lineage[-1]}')
  return made
