"""Opens a local page where you steer through a world inside the model, with the arrow keys.

  python -m wmpoe play                                   Memory Cards
  python -m wmpoe play --config=configs/memory_maze.py   Memory Maze

You start awake, in a real episode that the memories watch. Asleep, everything you see is imagined:
the arrow keys steer through what the memories remember. Weights of experts, composition rule,
sampler and steps are set on the page; next to the dream runs another one without memory. Memories
and films are saved to --workdir, and nothing is written anywhere else. By default only this machine
can reach the page; open the link that is printed. Needs the extra `play`: pip install -e '.[play]'.
"""

from collections.abc import Callable, Mapping, Sequence
import secrets
import socket
import sys
from typing import Any

from absl import flags as absl_flags
import ml_collections

from wmpoe import compositions
from wmpoe import session as session_lib
from wmpoe import zoo
from wmpoe.commands import common
from wmpoe.data import bundled
from wmpoe.play import dreamer
from wmpoe.play import protocol
from wmpoe.play import server
from wmpoe.play import worlds
from wmpoe.session import memory_file

_REALITIES = ('recording', 'simulator')


def define(flags: absl_flags.FlagValues, argv: Sequence[str]) -> None:
  """Adds the flags of `play`."""
  common.define_config(flags, argv)
  absl_flags.DEFINE_string(
      'workdir', 'outputs/play', 'Folder to save memories and films to.', flag_values=flags)
  absl_flags.DEFINE_integer('port', 8760, 'Port; 0 picks a free one.', flag_values=flags)
  absl_flags.DEFINE_string(
      'host', '127.0.0.1', 'Address to listen on; by default only this machine can connect.',
      flag_values=flags)
  absl_flags.DEFINE_enum(
      'reality', 'recording', _REALITIES, 'Memory Maze: a bundled episode, or the simulator, which '
      'needs the extra `maze`.', flag_values=flags)
  absl_flags.DEFINE_integer(
      'episode', 0, 'Number of the board, bundled episode or maze, from 0.', flag_values=flags)
  absl_flags.DEFINE_integer(
      'watch', 0, 'Real frames to watch at the start.', flag_values=flags)
  absl_flags.DEFINE_integer(
      'chunk', 1, 'Frames imagined per decision.', flag_values=flags)
  absl_flags.DEFINE_string(
      'memory', '', 'Memory file of this world to start from.', flag_values=flags)
  absl_flags.DEFINE_list(
      'experts', None, 'Experts to compose, including base; by default all.',
      flag_values=flags)


def run(flags: absl_flags.FlagValues) -> None:
  """Serves the page until it is interrupted."""
  description = {'env': {'name': 'cards'}} if flags.config is None else common.plain(flags.config)
  folder, known = common.output_folder(flags.workdir), tuple(compositions.COMPOSED)
  if description['env']['name'] not in known:
    raise ValueError(
        f'--config is of {description["env"]["name"]}; you can only step into worlds whose experts '
        f'are packaged: {", ".join(known)}.')
  if not 1 <= flags.chunk <= 8:
    raise ValueError(f'--chunk={flags.chunk}: expected 1 to 8.')
  world = _world(description, flags)
  print('loading the experts', file=sys.stderr)
  session = _session(description, flags)

  def make(say: Callable[[str], None]) -> dreamer.Dreamer:
    made = dreamer.Dreamer(session, world, folder, say=say)
    made.apply(protocol.Command('chunk', {'value': flags.chunk}))
    if flags.watch:
      made.apply(protocol.Command('watch', {'frames': flags.watch}))
    return made

  token = secrets.token_urlsafe(16)
  app = server.make_app(server.Room(make), token)
  with socket.socket() as sock:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      sock.bind((flags.host, flags.port))
    except OSError as error:
      raise OSError(
          f'Cannot listen on {flags.host}:{flags.port} ({error.strerror}); choose another --port, '
          'or --port=0 for any free one.') from error
    print(f'open         http://{flags.host}:{sock.getsockname()[1]}/?token={token}\n'
          f'saves to     {folder}\nstop with    Ctrl-C', flush=True)
    server.make_server(app).run(sockets=[sock])
  print(f'\nmemories and films are in {folder}; inspect a memory: python -m wmpoe memory info FILE')


def _session(
    description: Mapping[str, Any], flags: absl_flags.FlagValues) -> session_lib.Session:
  """A new session, or the one of a memory file."""
  name = description['env']['name']
  usual = common.plain(ml_collections.ConfigDict(compositions.COMPOSED[name]))
  other = {k: v for k, v in description.get('compose', {}).items() if v != usual.get(k)}
  if flags.memory:
    session = _remembered(flags.memory, name, other)
  else:
    # Turning around in a dream, and back again, should show the same things.
    session = session_lib.Session.open(name, compose={'follows': ['short_term'], **other})
  if flags.experts is None:
    return session
  if 'base' not in flags.experts:
    raise ValueError(f'--experts={flags.experts} must include base.')
  return session.compose(*flags.experts)


def _remembered(path: str, world: str, changed: Mapping[str, Any]) -> session_lib.Session:
  """The session of a memory file, of the model that it says it belongs to."""
  if changed:
    raise ValueError(
        f'--memory={path} is composed as it was saved; leave out --config.compose.'
        f'{next(iter(changed))}, and change weights, rule and sampler on the page.')
  source = memory_file.card(path)['source']
  if source and source['world'] != world:
    raise ValueError(
        f"'{path}' remembers {source['world']}; expected a memory of {world}. Give the --config of "
        'its world.')
  session = session_lib.Session.load(path, None if source else world)
  if session.batch != 1:
    raise ValueError(f"'{path}' holds {session.batch} episodes; expected one.")
  return session


def _world(description: Mapping[str, Any], flags: absl_flags.FlagValues) -> worlds.World:
  """The world of a config.

  Raises:
    ValueError: for an episode that does not exist.
    ImportError: if the simulator is asked for and not installed.
  """
  env = zoo.environment(description['env'])
  if description['env']['name'] == 'cards':
    return worlds.CardsWorld(env, flags.episode)
  network, params, _ = zoo.load_odometry(description['protocol']['odometry'])
  planned = worlds.planned_by(network, params)
  if flags.reality == 'simulator':
    return worlds.MazeWorld(env, planned, simulator=worlds.simulated(env, flags.episode))
  found = bundled.episodes('memory_maze')
  if not 0 <= flags.episode < len(found):
    raise ValueError(f'--episode={flags.episode}: there are {len(found)}, numbered from 0.')
  return worlds.MazeWorld(env, planned, recorded=found[flags.episode])
