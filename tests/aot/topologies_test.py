"""Tests of the names of TPU slices and of what is said where the compiler is missing."""

import sys

import pytest

from wmpoe.aot import topologies


def test_slices_reach_from_four_to_512_chips():
  sizes = {topologies.find(name).chips for name in topologies.names()}
  assert min(sizes) == 4
  assert max(sizes) == 512
  assert topologies.find('v5p:4x4x4').chips == 64
  assert {name.partition(':')[0] for name in topologies.names()} == {'v4', 'v5e', 'v5p', 'v6e'}


def test_several_slices_are_one_topology():
  two = topologies.find('2xv5e:4x4')
  assert (two.name, two.chips, two.slices) == ('2xv5e:4x4', 32, 2)
  assert topologies.find('1xv5e:4x4') == topologies.find('v5e:4x4')
  with pytest.raises(ValueError, match='2xv4:2x2x2: what the network between slices of v4 carries'):
    topologies.find('2xv4:2x2x2')


@pytest.mark.parametrize('name', ['0xv5e:4x4', 'v5e:3x3', 'v9:4x4', 'v5e', ''])
def test_unknown_slices_are_answered_with_those_there_are(name):
  with pytest.raises(ValueError, match=rf"Unknown topology '{name}'; expected.*\n.*v4:2x2x1") as e:
    topologies.find(name)
  assert 'v5e:16x16' in str(e.value)
  assert 'v6e:2x2' in str(e.value)


def test_a_missing_compiler_names_the_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, 'libtpu', None)
  with pytest.raises(ImportError, match=r"libtpu.*pip install -e '\.\[tpu\]'"):
    topologies.devices(topologies.find('v5e:2x2'))


def test_what_a_program_would_need_is_read_from_the_refusal():
  error = RuntimeError(
      'RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory '
      'required for HLO temporaries (23.20G) exceeds available HBM (15.75G).')
  assert topologies.needed_memory(error) == pytest.approx(23.2 * 2**30)
  used = RuntimeError('RESOURCE_EXHAUSTED: Ran out of memory in space hbm. Used 20.50G of 15G')
  assert topologies.needed_memory(used) == pytest.approx(20.5 * 2**30)
  assert topologies.needed_memory(RuntimeError('INTERNAL: 3.5G')) is None
