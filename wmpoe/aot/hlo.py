"""What a compiled program will do on one device, read from its text (optimised HLO).

The compiler's own summary (`cost_analysis`) counts the body of a loop once and gives a negative
time where collectives overlap with computation. Here everything counts as often as it runs: the
walk starts at the entry and multiplies by the trip counts of loops. Of a conditional's branches the
slowest counts, but collectives count in all of them. What a fusion reads of an array that it only
slices is the slice. What several slices do together the text says as sends to the host and receives
from it.
"""

from collections.abc import Mapping
import dataclasses
import math
import re

COLLECTIVES = (
    'all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute',
    'ragged-all-to-all', 'collective-broadcast')
# Instructions that move nothing themselves: names for values, or calls whose insides are counted.
_FREE = (
    'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'conditional',
    'call', 'after-all', 'partition-id', 'replica-id', 'iota', 'opt-barrier', 'async-start',
    'async-done', 'async-update')
_WIDTHS = {'pred': 1, 's4': 0.5, 'u4': 0.5}
_SHAPE = re.compile(r'\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?')
_HEAD = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$')
_END = re.compile(r'^\}(, execution_thread=.*)?\s*$')  # what a kernel says of itself has lines, too
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = ')
_NAME = re.compile(r'%([\w.\-]+)')


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line: `name = result opcode(arguments), attributes`."""

  name: str
  result: str
  opcode: str
  arguments: str
  attributes: str

  @property
  def operands(self) -> list[str]:
    """Names of the instructions it takes."""
    return _NAME.findall(self.arguments)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
  """A collective of one device.

  Attributes:
    kind: One of `COLLECTIVES`.
    bytes: Of its result on one device; of a reduce-scatter, of what is reduced.
    group: Devices that take part.
    times: How often it runs.
    source: Where in the program it comes from.
    between: Whether the group is one of slices, joined by the data-center network.
  """

  kind: str
  bytes: float
  group: int
  times: int
  source: str
  between: bool = False

  @property
  def wire_bytes(self) -> float:
    """Bytes one device sends in all its runs, by ring algorithms.

    `(n-1)/n` of the array for gather, scatter and all-to-all, twice that for an all-reduce.
    """
    share = 1.0 if self.kind in ('collective-permute', 'collective-broadcast') else (
        (self.group - 1) / self.group)
    return self.times * self.bytes * share * (2 if self.kind == 'all-reduce' else 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """What one device does in a run of the program.

  Attributes:
    collectives: All of them.
    cycles: The compiler's estimates of all instructions added up; without collectives and custom
      kernels, of which it has none. 0 where the backend gives none.
    hbm_bytes: Read from and written to the device's memory (TPU: not on-chip buffers).
    kernels: Names of custom kernels.
    endless: Loops whose number of turns the text does not tell; counted once.
  """

  collectives: tuple[Collective, ...]
  cycles: int
  hbm_bytes: float
  kernels: tuple[str, ...]
  endless: int

  @property
  def wire_bytes(self) -> float:
    """Bytes one device sends in collectives inside its slice."""
    return sum(c.wire_bytes for c in self.collectives if not c.between)

  @property
  def network_bytes(self) -> float:
    """Bytes one device sends to other slices."""
    return sum(c.wire_bytes for c in self.collectives if c.between)

  def by_kind(self) -> dict[str, dict[str, float]]:
    """`{kind: {'count', 'bytes'}}`: runs and bytes sent by one device."""
    table: dict[str, dict[str, float]] = {}
    for c in self.collectives:
      kind = f'{c.kind} between slices' if c.between else c.kind
      row = table.setdefault(kind, {'count': 0, 'bytes': 0.0})
      row['count'] += c.times
      row['bytes'] += c.wire_bytes
    return table


def read(text: str, devices: int) -> Program:
  """Reads the text of a compiled program for so many devices.

  Raises:
    ValueError: if it has no entry computation.
  """
  computations, entry = _split(text)
  return _program(computations, entry, devices)


def loop_bodies(text: str, devices: int) -> list[Program]:
  """One turn of each loop, in the text's order: what a step of a scan does."""
  computations, _ = _split(text)
  bodies = re.findall(r' while\(.*?body=%?([\w.\-]+)', text)
  return [_program(computations, body, devices) for body in bodies]


def _program(computations: Mapping[str, list[Instruction]], start: str, devices: int) -> Program:
  walk = _Walk(computations, devices)
  cycles, moved = walk.cost(start, 1)
  return Program(
      collectives=tuple(walk.collectives), cycles=cycles, hbm_bytes=moved,
      kernels=tuple(sorted(walk.kernels)), endless=walk.endless)


def _split(text: str) -> tuple[dict[str, list[Instruction]], str]:
  """Computations by name, and the entry's."""
  computations: dict[str, list[Instruction]] = {}
  entry, current = '', None
  for line in text.splitlines():
    head = _HEAD.match(line)
    if head:
      current = computations.setdefault(head[2], [])
      entry = head[2] if head[1] else entry
    elif _END.match(line):
      current = None
    elif current is not None and (start := _INSTRUCTION.match(line)):
      current.append(_instruction(line, start))
  if not entry:
    raise ValueError('The text has no entry computation: expected `compiled.as_text()`.')
  return computations, entry


def _instruction(line: str, start: re.Match) -> Instruction:
  rest = line[start.end():]
  # A tuple's type has brackets of its own (in layouts, too): find the one that closes it.
  end = _closing(rest, 0) + 1 if rest.startswith('(') else rest.index(' ')
  result, rest = rest[:end], rest[end:].lstrip()
  opcode, _, _ = rest.partition('(')
  close = _closing(rest, len(opcode))
  return Instruction(start[1], result, opcode, rest[len(opcode) + 1:close], rest[close + 1:])


def _closing(text: str, opening: int) -> int:
  """Index of the bracket that closes the one at `opening`."""
  depth = 0
  for match in re.compile(r'[()]').finditer(text, opening):
    depth += 1 if match[0] == '(' else -1
    if not depth:
      return match.start()
  return len(text)


def _sizes(result: str, *, in_memory: bool = False) -> list[float]:
  """Bytes of each array of a type; with `in_memory` 0 for what lies on the chip, `S(1)` and up."""
  sizes = []
  for kind, dims, layout in _SHAPE.findall(result):
    width = _WIDTHS.get(kind)
    if width is None:
      digits = re.match(r'[a-z]+(\d+)', kind)
      width = int(digits[1]) / 8 if digits else 0
    outside = in_memory and 'S(' in layout
    sizes.append(0 if outside else width * math.prod(int(d) for d in dims.split(',') if d))
  return sizes


def _named(each: Instruction, attribute: str) -> str:
  """The computation that an attribute names."""
  found = re.search(rf'\b{attribute}=%?([\w.\-]+)', each.attributes)
  if not found:
    raise ValueError(f'{each.opcode} {each.name!r} names no {attribute}: unknown text format.')
  return found[1]


def _slices(attributes: str) -> int:
  """How many slices a transfer joins: `{1,2}x{0:3}` are two, of four devices each."""
  found = re.search(r'megascale_target="\{([\d,:]+)\}x', attributes)
  if not found:
    raise ValueError('A transfer between slices does not name them: unknown text format.')
  ends = [[int(n) for n in part.split(':')] for part in found[1].split(',')]
  return sum(end[-1] - end[0] + 1 for end in ends)


def _branches(each: Instruction) -> list[str]:
  listed = re.search(r'branch_computations=\{([^}]*)\}', each.attributes)
  return _NAME.findall(listed[1]) if listed else [
      _named(each, 'true_computation'), _named(each, 'false_computation')]


class _Walk:
  """Adds up what is reached from a computation."""

  def __init__(self, computations: Mapping[str, list[Instruction]], devices: int):
    self.computations, self.devices = computations, devices
    self.collectives: list[Collective] = []
    self.kernels: set[str] = set()
    self.endless = 0

  def cost(self, name: str, times: int) -> tuple[int, float]:
    """`(cycles, bytes)` of a computation that runs so often; notes collectives on the way."""
    cycles, moved = 0, 0.0
    begun: set[str] = set()
    types = {i.name: i.result for i in self.computations[name]}
    for each in self.computations[name]:
      found = re.search(r'"estimated_cycles":"(-?\d+)"', each.attributes)
      cycles += times * int(found[1]) if found else 0
      if each.opcode == 'while':
        turns = self._turns(each)
        inner = self.cost(_named(each, 'body'), times * turns)
      elif each.opcode == 'conditional':
        inner = max(self.cost(branch, times) for branch in _branches(each))
      elif each.opcode == 'call':
        inner = self.cost(_named(each, 'to_apply'), times)
      else:
        inner = 0, times * self._moved(each, types)
        self._note(each, times, each, name, begun)
      cycles, moved = cycles + inner[0], moved + inner[1]
    return cycles, moved

  def _note(
      self, each: Instruction, times: int, caller: Instruction, inside: str, begun: set[str],
  ) -> None:
    """Collects collectives and kernels, of fusions and asynchronous calls, too.

    `inside` is the computation it stands in, `caller` the instruction that runs it: itself, if it
    is in no fusion. `begun` are the collectives that the fusions of this computation have begun.
    """
    kind = each.opcode.removesuffix('-start')
    if kind in COLLECTIVES:
      # One that overlaps with computation stands in several fusions: one starts it, those go on
      # with it that compute meanwhile, one is its end. Others may have the same channel and shape.
      channel = re.search(r'channel_id=(\d+)', each.attributes)
      shapes = [shape[:2] for shape in _SHAPE.findall(each.result)]  # layouts differ
      name = f'{kind} {channel and channel[1]} {shapes}'
      goes_on = caller.name.startswith('async-collective-done') or inside.startswith(
          'async_collective_fusion')
      if goes_on and name in begun:
        return
      if caller is not each:
        begun.add(name)
      size = sum(_sizes(each.result))
      if each.opcode != kind and kind != 'all-reduce':  # (operands, results, contexts)
        size = sum(_sizes(each.result)[len(each.operands):2 * len(each.operands)])
      group = self._group(each.attributes)
      if kind == 'reduce-scatter':
        size *= group
      if kind == 'all-reduce' and 'all-reduce-scatter' in inside:  # how TPUs spell it
        kind = 'reduce-scatter'
      source = re.search(r'op_name="([^"]*)"', each.attributes)
      self.collectives.append(Collective(
          kind=kind, bytes=size, group=group, times=times, source=source[1] if source else ''))
    elif each.opcode == 'send' and (
        between := re.search(r'megascale_transfer_type="(\w+)"', each.attributes)):
      self.collectives.append(Collective(
          kind=between[1].lower().replace('_', '-'), bytes=_sizes(each.result)[0],
          group=_slices(each.attributes), times=times, source='', between=True))
    elif each.opcode == 'custom-call' and 'tpu_custom_call' in each.attributes:
      self.kernels.add(each.name)
    elif each.opcode in ('fusion', 'async-start'):
      called = _named(each, 'calls')
      for inner in self.computations.get(called, ()):
        self._note(inner, times, caller, called, begun)

  def _group(self, attributes: str) -> int:
    """Devices of one group, in any of the ways groups are written."""
    if listed := re.search(r'replica_groups=\{\{([\d,]+)\}', attributes):
      return listed[1].count(',') + 1
    if counted := re.search(r'replica_groups=\[\d+,(\d+)\]', attributes):
      return int(counted[1])
    if named := re.search(r'replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}', attributes):
      sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
      size = 1
      for axis, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2]):
        size *= int(part or sizes[axis])
      return size
    return self.devices

  def _turns(self, loop: Instruction) -> int:
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
      return int(known[1])
    # `i < n` with i from 0: the condition holds one whole number.
    condition = self.computations[_named(loop, 'condition')]
    inside = [i for c in condition if c.opcode == 'fusion'
              for i in self.computations[_named(c, 'calls')]]
    limits = {
        int(i.arguments) for i in (*condition, *inside)
        if i.opcode == 'constant' and i.arguments.isdigit() and i.arguments != '0'}
    if len(limits) == 1:
      return limits.pop()
    self.endless += 1
    return 1

  def _moved(self, each: Instruction, types: Mapping[str, str]) -> float:
    """Bytes an instruction reads from memory and writes to it."""
    opcode = each.opcode
    if opcode in _FREE or opcode.endswith('-done'):
      return 0.0
    size = lambda result: sum(_sizes(result, in_memory=True))
    operands = [types.get(o, '') for o in each.operands]
    if opcode == 'dynamic-slice':
      return 2 * size(each.result) if size(operands[0]) else size(each.result)
    if opcode == 'dynamic-update-slice':
      return 2 * size(operands[1]) if size(each.result) else size(operands[1])
    if opcode.endswith('-start'):  # (target, source, context): what of them is in memory
      return sum(_sizes(each.result, in_memory=True)[:2])
    if opcode != 'fusion':
      return size(each.result) + sum(map(size, operands))
    inside = self.computations[_named(each, 'calls')]
    return sum(_read(inside, i, size(o)) for i, o in enumerate(operands)) + _written(
        inside, size(each.result))


def _read(inside: list[Instruction], index: int, whole: float) -> float:
  """Bytes of its `index`-th operand that a fusion reads: all, or the slices it takes."""
  mine = next(
      (i for i in inside if i.opcode == 'parameter' and i.arguments == str(index)), None)
  if not whole or mine is None:
    return whole
  users = [i for i in inside if mine.name in i.operands]
  if users and all(i.opcode == 'dynamic-slice' and i.operands[0] == mine.name for i in users):
    return min(whole, sum(sum(_sizes(i.result)) for i in users))
  if users and all(
      i.opcode == 'dynamic-update-slice' and i.operands[0] == mine.name for i in users):
    return 0.0
  return whole


def _written(inside: list[Instruction], whole: float) -> float:
  """Bytes a fusion writes: its result, or the slices it updates in place."""
  types = {i.name: i.result for i in inside}
  updates = [i for i in inside if i.opcode == 'dynamic-update-slice']
  if not updates:
    return whole
  replaced = sum(sum(_sizes(i.result)) for i in updates)
  return max(0.0, whole - replaced) + sum(
      sum(_sizes(types.get(i.operands[1], ''))) for i in updates)
