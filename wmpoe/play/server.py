"""The page's server: a dreamer in its own thread, one client that steers, a few that watch.

Everything is bounded: connections, the size of a message, waiting commands, and what waits for a
slow client (the oldest frames are dropped). A client gets answers in words, never a traceback.
Where nobody is connected, nothing runs on.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
import contextlib
import dataclasses
import json
import pathlib
import queue
import secrets
import threading
import traceback
from typing import Any

import numpy as np

from wmpoe.play import dreamer as dreamer_lib
from wmpoe.play import protocol

STATIC = pathlib.Path(__file__).parent / 'static'
MAX_CLIENTS, MAX_WAITING, MAX_FRAMES = 8, 64, 8
_PATIENCE = 60.0  # seconds
_HEADERS = {
    'Cache-Control': 'no-store', 'Referrer-Policy': 'no-referrer', 'X-Frame-Options': 'DENY',
    'X-Content-Type-Options': 'nosniff',
    'Content-Security-Policy': "default-src 'self'; connect-src 'self' ws:; img-src 'self' data:"}
_INSTALL = "The page needs a web server: pip install 'wmpoe[play]' (from a checkout: '.[play]')."


def encode(header: dict[str, Any], pictures: dict[str, np.ndarray]) -> bytes:
  """One binary message: length of the header (4 bytes, big-endian), header as JSON, raw pixels."""
  planes = [{'name': name, 'shape': list(picture.shape)} for name, picture in pictures.items()]
  text = json.dumps({**header, 'planes': planes}).encode()
  return b''.join([
      len(text).to_bytes(4, 'big'), text, *(np.ascontiguousarray(p).tobytes()
                                            for p in pictures.values())])


@dataclasses.dataclass(eq=False)
class Client:
  """One connection; the outbox, of messages and whether they are frames, is bounded."""

  outbox: deque[tuple[bytes, bool]] = dataclasses.field(
      default_factory=lambda: deque(maxlen=MAX_WAITING))
  ready: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)

  def send(self, message: bytes, *, frame: bool = False) -> None:
    """Queues a message; a frame takes the place of the oldest one if `MAX_FRAMES` wait."""
    waiting = [entry for entry in self.outbox if entry[1]]
    if frame and len(waiting) >= MAX_FRAMES:
      self.outbox.remove(waiting[0])
    self.outbox.append((message, frame))
    self.ready.set()


class Room:
  """The dreamer's thread and its clients."""

  def __init__(self, make: Callable[[Callable[[str], None]], dreamer_lib.Dreamer]):
    """Starts nothing yet.

    Args:
      make: Makes the dreamer, in its thread; it gets a function that announces what takes a while.
    """
    self._make = make
    self._inbox: queue.Queue[protocol.Command | None] = queue.Queue(MAX_WAITING)
    self._loop: asyncio.AbstractEventLoop | None = None
    self._over, self._left = threading.Event(), threading.Event()
    self._thread = threading.Thread(target=self._run, name='dreamer', daemon=True)
    self.clients: set[Client] = set()
    self.writer: Client | None = None
    self.known: dict[str, Any] = {}
    self._hello: dict[str, Any] = {'kind': 'wait', 'text': 'loading the experts'}
    self._last: dict[str, np.ndarray] = {}

  def start(self) -> None:
    """Starts the thread; call it in the running event loop."""
    self._loop = asyncio.get_running_loop()
    self._thread.start()

  def stop(self) -> None:
    """Ends the thread after its current task: a compiler must not be running when Python exits."""
    self._over.set()
    with contextlib.suppress(queue.Full):
      self._inbox.put_nowait(None)  # wakes it up; where the queue is full it is awake
    self._thread.join(_PATIENCE)

  def join(self, client: Client) -> None:
    """Adds a client; the first one writes, the others watch."""
    self.clients.add(client)
    self.writer = self.writer or client
    client.send(encode({**self._hello, 'role': self._role(client)}, self._last))

  def leave(self, client: Client) -> None:
    """Removes a client; a writer's place becomes free, and its keys are released."""
    self.clients.discard(client)
    if self.writer is client:
      self.writer = None
      self._left.set()
      self.ask(protocol.Command('keys', {'held': ()}))  # wakes the dreamer, if it waits
      self._tell({'kind': 'free'})

  def hear(self, client: Client, text: Any) -> None:
    """Handles one message of a client; answers with what is wrong with it."""
    try:
      if not self.known:
        raise ValueError('The experts are still loading.')
      command = protocol.parse(text, self.known)
      if command.do == 'claim':
        if self.writer is None:
          self.writer = client
        client.send(encode({'kind': 'role', 'role': self._role(client)}, {}))
        return
      if client is not self.writer:
        raise ValueError('Only the page that was opened first steers; this one watches.')
      if not self.ask(command):
        raise ValueError('Too many commands at once: some were dropped.')
    except ValueError as error:
      client.send(encode({'kind': 'error', 'text': str(error)}, {}))

  def ask(self, command: protocol.Command) -> bool:
    """Queues a command; False if too many are waiting."""
    try:
      self._inbox.put_nowait(command)
    except queue.Full:
      return False
    return True

  def _role(self, client: Client) -> str:
    return 'writer' if client is self.writer else 'viewer'

  # ------------------------------------------------------------------------ in the dreamer's thread

  def _run(self) -> None:
    try:
      dreamer = self._make(lambda text: self._publish([({'kind': 'wait', 'text': text}, {})]))
    except Exception as error:
      traceback.print_exc()
      self._hello = {'kind': 'error', 'text': f'The experts could not be loaded: {error}'}
      self._publish([(self._hello, {})])  # and to whoever comes later
      return
    self.known = dreamer.known
    self._publish([(dreamer.hello(), {'reality': dreamer.world.now().frame})])
    while not self._over.is_set():
      if self._left.is_set() and self._inbox.empty():  # after all that the writer has asked for
        self._left.clear()
        dreamer.apply(protocol.Command('keys', {'held': ()}))
        if not self.clients:
          dreamer.apply(protocol.Command('run', {'on': False}))
      try:
        command = self._inbox.get(block=not dreamer.wants_step())
      except queue.Empty:
        command = None
      else:
        if command is None:
          break
      try:
        events = dreamer.advance() if command is None else dreamer.apply(command)
      except (ValueError, OSError, ImportError) as error:
        events = [({'kind': 'error', 'text': str(error)}, {}),
                  ({'kind': 'status', **dreamer.status()}, {})]
      except Exception:  # a bug: told to whoever started the server, not to the page
        traceback.print_exc()
        events = [({'kind': 'error', 'text': 'Something went wrong; see the terminal.'}, {})]
      self._hello = dreamer.hello()
      self._publish(events)

  def _publish(self, events: list[dreamer_lib.Event]) -> None:
    for header, pictures in events:
      if pictures:
        self._last = pictures
      if header['kind'] == 'hello':
        self._hello = header
      assert self._loop is not None
      with contextlib.suppress(RuntimeError):  # the loop has ended: nobody is listening
        self._loop.call_soon_threadsafe(self._tell, header, pictures)

  def _tell(self, header: dict[str, Any], pictures: dict[str, np.ndarray] | None = None) -> None:
    for client in self.clients:
      role = {'role': self._role(client)} if header['kind'] == 'hello' else {}
      client.send(
          encode({**header, **role}, pictures or {}), frame=header['kind'] == 'frame')


def make_app(room: Room, token: str) -> Any:
  """The Starlette application: the page, its files, and the live connection.

  Raises:
    ImportError: if the extra `play` is not installed.
  """
  try:
    from starlette import applications
    from starlette import responses
    from starlette import routing
    from starlette import staticfiles
    from starlette import websockets
  except ImportError as error:
    raise ImportError(_INSTALL) from error

  def welcome(connection: Any) -> bool:
    given = connection.query_params.get('token', '')
    return secrets.compare_digest(given.encode('utf-8', 'replace'), token.encode())

  async def page(request: Any) -> Any:
    if not welcome(request):
      return responses.PlainTextResponse(
          'This is not the link that was printed: open the whole address, including the token.\n',
          status_code=403, headers=_HEADERS)
    return responses.HTMLResponse((STATIC / 'index.html').read_text('utf-8'), headers=_HEADERS)

  async def live(socket: Any) -> None:
    origin, host = socket.headers.get('origin'), socket.headers.get('host', '')
    if not welcome(socket) or (origin is not None and origin.partition('://')[2] != host):
      await socket.close(4403)  # before it is accepted: the browser sees a refusal
      return
    if len(room.clients) >= MAX_CLIENTS:
      await socket.close(4429)
      return
    await socket.accept()
    client = Client()
    room.join(client)

    async def talk() -> None:
      with contextlib.suppress(websockets.WebSocketDisconnect, RuntimeError):  # it has gone
        while True:
          await client.ready.wait()
          client.ready.clear()
          while client.outbox:
            await socket.send_bytes(client.outbox.popleft()[0])

    talking = asyncio.create_task(talk())
    try:
      while True:
        message = await socket.receive()
        if message['type'] == 'websocket.disconnect':
          break
        text = message.get('text')
        if text is not None and len(text) > protocol.MAX_BYTES:
          await socket.close(1009, 'message too big')
          break
        room.hear(client, text)
    except (websockets.WebSocketDisconnect, RuntimeError):
      pass  # gone while something was being sent
    finally:
      talking.cancel()
      room.leave(client)

  @contextlib.asynccontextmanager
  async def lifespan(app: Any) -> AsyncIterator[None]:
    del app
    room.start()
    yield
    await asyncio.to_thread(room.stop)

  return applications.Starlette(lifespan=lifespan, routes=[
      routing.Route('/', page), routing.WebSocketRoute('/live', live),
      routing.Mount('/static', staticfiles.StaticFiles(directory=STATIC))])


def make_server(app: Any) -> Any:
  """The uvicorn server of the application; `run(sockets=[sock])` serves until it is interrupted.

  Raises:
    ImportError: if the extra `play` is not installed.
  """
  try:
    import uvicorn
    import websockets  # noqa: F401  without it uvicorn would refuse every live connection
  except ImportError as error:
    raise ImportError(_INSTALL) from error
  return uvicorn.Server(uvicorn.Config(
      app, log_level='warning', ws_max_size=4 * protocol.MAX_BYTES, ws_max_queue=MAX_WAITING,
      ws='websockets-sansio', timeout_graceful_shutdown=2, server_header=False))
