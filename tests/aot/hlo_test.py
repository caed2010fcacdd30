# ruff: noqa: E501
"""Tests of what is read from a compiled program's text, whose answers are known by hand."""

import pytest

from wmpoe.aot import hlo

# Ten turns of: gather a weight, multiply; in front of it an all-reduce that a fusion carries twice.
LOOP = """\
HloModule jit_f, is_scheduled=true, num_partitions=8

%fused_product (p.0: bf16[256,1024], p.1: bf16[1024,1024]) -> bf16[256,1024] {
  %p.0 = bf16[256,1024]{1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = bf16[1024,1024]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %conv = bf16[256,1024]{1,0} convolution(%p.0, %p.1), dim_labels=bf_io->bf
}

%fused_slice (p.2: bf16[10,1024,128], p.3: s32[]) -> bf16[1024,128] {
  %p.2 = bf16[10,1024,128]{2,1,0} parameter(0)
  %p.3 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice = bf16[1024,128]{1,0:S(1)} dynamic-slice(%p.2, %p.3, %zero, %zero)
}

%async_collective_fusion.1 (p.4: f32[64]) -> f32[64] {
  %p.4 = f32[64]{0} parameter(0)
  ROOT %reduced = f32[64]{0} all-reduce(%p.4), channel_id=7, replica_groups=[4,2]<=[8], to_apply=%add
}

%async_collective_fusion.2 (p.5: f32[64]) -> f32[64] {
  %p.5 = f32[64]{0} parameter(0)
  ROOT %reduced.2 = f32[64]{0} all-reduce(%p.5), channel_id=7, replica_groups=[4,2]<=[8], to_apply=%add
}

%body (state: (s32[], bf16[256,1024], bf16[10,1024,128])) -> (s32[], bf16[256,1024], bf16[10,1024,128]) {
  %state = (s32[], bf16[256,1024]{1,0:T(8,128)(2,1)}, bf16[10,1024,128]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = bf16[256,1024]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %w = bf16[10,1024,128]{2,1,0} get-tuple-element(%state), index=2
  %one = bf16[1024,128]{1,0:S(1)} fusion(%w, %i), kind=kLoop, calls=%fused_slice, backend_config={"estimated_cycles":"100"}
  %all = bf16[1024,1024]{1,0:S(1)} all-gather(%one), channel_id=3, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}, dimensions={1}, metadata={op_name="jit(f)/gather"}
  %y = bf16[256,1024]{1,0} fusion(%x, %all), kind=kOutput, calls=%fused_product, backend_config={"estimated_cycles":"900"}
  ROOT %next = (s32[], bf16[256,1024]{1,0}, bf16[10,1024,128]{2,1,0}) tuple(%i, %y, %w)
}

%condition (state.1: (s32[], bf16[256,1024], bf16[10,1024,128])) -> pred[] {
  %state.1 = (s32[], bf16[256,1024]{1,0}, bf16[10,1024,128]{2,1,0}) parameter(0)
  %limit = s32[] constant(10)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  ROOT %less = pred[] compare(%i.1, %limit), direction=LT
}

ENTRY %main (a: bf16[256,1024], b: bf16[10,1024,128], c: f32[64]) -> bf16[256,1024] {
  %a = bf16[256,1024]{1,0} parameter(0)
  %b = bf16[10,1024,128]{2,1,0} parameter(1)
  %c = f32[64]{0} parameter(2)
  %start = f32[64]{0} fusion(%c), kind=kCustom, calls=%async_collective_fusion.1
  %done = f32[64]{0} fusion(%start), kind=kCustom, calls=%async_collective_fusion.2
  %begin = (s32[], bf16[256,1024]{1,0}, bf16[10,1024,128]{2,1,0}) tuple(%c, %a, %b)
  %loop = (s32[], bf16[256,1024]{1,0}, bf16[10,1024,128]{2,1,0}) while(%begin), condition=%condition, body=%body
  ROOT %out = bf16[256,1024]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_loops_count_as_often_as_they_turn_and_a_channel_once():
  program = hlo.read(LOOP, 8)
  gather, reduce = sorted(program.collectives, key=lambda c: c.kind)
  assert (gather.kind, gather.times, gather.group, gather.bytes) == (
      'all-gather', 10, 8, 1024 * 1024 * 2)
  assert gather.source == 'jit(f)/gather'
  assert (reduce.kind, reduce.times, reduce.group, reduce.bytes) == ('all-reduce', 1, 2, 256)
  assert program.cycles == 10 * 1000
  assert program.endless == 0
  assert program.by_kind() == {
      'all-gather': {'count': 10, 'bytes': 10 * 2**21 * 7 / 8},
      'all-reduce': {'count': 1, 'bytes': 2 * 256 / 2}}
  assert program.wire_bytes == 10 * 2**21 * 7 / 8 + 256


def test_memory_traffic_is_what_leaves_the_chip():
  # A turn reads a slice of the weights and reads and writes x; gathered weights stay on the chip.
  turn = 1024 * 128 * 2 + 2 * 256 * 1024 * 2
  [body] = hlo.loop_bodies(LOOP, 8)
  assert body.hbm_bytes == turn + 4  # and the index
  assert [c.kind for c in body.collectives] == ['all-gather']


# Of two slices of four: every turn of three adds up what each slice has, through its hosts.
SLICES = """\
%body (s: (s32[], f32[256,128])) -> (s32[], f32[256,128]) {
  %s = (s32[], f32[256,128]{1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[256,128]{1,0:T(8,128)} get-tuple-element(%s), index=1
  %token = token[] after-all(), frontend_attributes={MegascaleRendezvousKeyName="all-reduce.1_0"}
  %send = (f32[256,128]{1,0:T(8,128)}, u32[], token[]) send(%x, %token), channel_id=3, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (f32[256,128]{1,0:T(8,128)}, u32[], token[]) recv(%token), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %send-done = token[] send-done(%send), channel_id=3, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  %recv-done = (f32[256,128]{1,0:T(8,128)}, token[]) recv-done(%recv), channel_id=2, is_host_transfer=true
  %sum = f32[256,128]{1,0:T(8,128)} get-tuple-element(%recv-done), index=0
  ROOT %next = (s32[], f32[256,128]{1,0:T(8,128)}) tuple(%i, %sum)
}

%condition (s.1: (s32[], f32[256,128])) -> pred[] {
  %s.1 = (s32[], f32[256,128]{1,0:T(8,128)}) parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main (a: f32[256,128]) -> f32[256,128] {
  %a = f32[256,128]{1,0:T(8,128)} parameter(0)
  %begin = (s32[], f32[256,128]{1,0}) tuple(%a, %a)
  %loop = (s32[], f32[256,128]{1,0}) while(%begin), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %out = f32[256,128]{1,0} get-tuple-element(%loop), index=1
}
"""


@pytest.mark.parametrize(('slices', 'count'), [('{1,2}', 2), ('{1:4}', 4)])
def test_what_slices_send_one_another_is_kept_apart(slices, count):
  program = hlo.read(SLICES.replace('{1,2}', slices), 8)
  [sent] = program.collectives
  assert (sent.kind, sent.times, sent.group, sent.between) == ('all-reduce', 3, count, True)
  assert program.wire_bytes == 0
  assert program.network_bytes == 3 * 2 * 256 * 128 * 4 * (count - 1) / count
  assert [*program.by_kind()] == ['all-reduce between slices']


def test_a_transfer_that_does_not_name_its_slices_is_refused():
  with pytest.raises(ValueError, match='between slices does not name them'):
    hlo.read(SLICES.replace('_xla_megascale_target="{1,2}x{0:3}",', ''), 8)


def test_a_loop_of_unknown_length_is_told():
  program = hlo.read(LOOP.replace('constant(10)', 'parameter(1)'), 8)
  assert program.endless == 1
  assert program.cycles == 1000


def test_known_lengths_come_first():
  known = 'body=%body, backend_config={"known_trip_count":{"n":"3"}}'
  assert hlo.read(LOOP.replace('body=%body', known), 8).cycles == 3000


@pytest.mark.parametrize(('line', 'kind', 'sent'), [
    ('%r = f32[128]{0} reduce-scatter(%c), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, '
     'dimensions={0}, to_apply=%add', 'reduce-scatter', 3 * 512),
    ('%r = (f32[64]{0}, f32[64]{0}, u32[]) collective-permute-start(%c), channel_id=1, '
     'source_target_pairs={{0,1}}', 'collective-permute', 256),
    ('%r = (f32[64]{0}, f32[512]{0}) all-gather-start(%c), channel_id=1, replica_groups={}, '
     'dimensions={0}', 'all-gather', 7 * 256),
    ('%r = (f32[64]{0}, bf16[2,2]{1,0}) all-reduce(%c, %a), channel_id=1, '
     'replica_groups=[1,8]<=[8], to_apply=%add', 'all-reduce', 2 * (256 + 8) * 7 / 8),
    ('%r = f32[64]{0} all-to-all(%c), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}',
     'all-to-all', 256 * 3 / 4),
])
def test_what_each_kind_sends(line, kind, sent):
  text = LOOP.replace('  %begin', f'  {line}\n  %begin')
  table = hlo.read(text, 8).by_kind()
  before = hlo.read(LOOP, 8).by_kind()
  extra = table[kind]['bytes'] - before.get(kind, {'bytes': 0})['bytes']
  assert extra == sent


# As TPUs write it: twice the same gather under one channel, each in three fusions; two that wait.
OVERLAPPED = """\
%add (l: f32[], r: f32[]) -> f32[] {
  %l = f32[] parameter(0)
  %r = f32[] parameter(1)
  ROOT %sum = f32[] add(%l, %r)
}
""" + ''.join(f"""
%{name}.{n} (p.{name}.{n}: bf16[8]) -> bf16[64] {{
  %p.{name}.{n} = bf16[8]{{0}} parameter(0)
  ROOT %gather.{name}.{n} = bf16[64]{{0{memory}}} all-gather(%p.{name}.{n}), channel_id=1, replica_groups=[1,8]<=[8], dimensions={{0}}
}}
""" for n in (1, 2) for name, memory in (
    ('fused_start', ''), ('async_collective_fusion', ':S(1)'), ('fused_done', ''))) + """
ENTRY %main (a: bf16[8], c: f32[64]) -> f32[64] {
  %a = bf16[8]{0} parameter(0)
  %c = f32[64]{0} parameter(1)
  %async-collective-start = bf16[64]{0} fusion(%a), kind=kCustom, calls=%fused_start.1
  %fusion.1 = bf16[64]{0} fusion(%a), kind=kCustom, calls=%async_collective_fusion.1
  %async-collective-done = bf16[64]{0} fusion(%a), kind=kCustom, calls=%fused_done.1
  %async-collective-start.1 = bf16[64]{0} fusion(%a), kind=kCustom, calls=%fused_start.2
  %fusion.2 = bf16[64]{0} fusion(%a), kind=kCustom, calls=%async_collective_fusion.2
  %async-collective-done.1 = bf16[64]{0} fusion(%a), kind=kCustom, calls=%fused_done.2
  %one = f32[64]{0} all-reduce(%c), channel_id=1, replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %two = f32[64]{0} all-reduce(%one), channel_id=1, replica_groups=[1,8]<=[8], to_apply=%add
}
"""


def test_equal_collectives_of_one_channel_are_all_counted_and_their_parts_once():
  assert {kind: row['count'] for kind, row in hlo.read(OVERLAPPED, 8).by_kind().items()} == {
      'all-gather': 2, 'all-reduce': 2}


def test_custom_kernels_are_named():
  line = '%k = f32[64]{0} custom-call(%c), custom_call_target="tpu_custom_call"'
  assert hlo.read(LOOP.replace('  %begin', f'  {line}\n  %begin'), 8).kernels == ('k',)


def test_text_without_an_entry_is_refused():
  with pytest.raises(ValueError, match=r'no entry computation: expected `compiled.as_text\(\)`'):
    hlo.read('HloModule nothing', 1)


def test_what_a_kernel_says_of_itself_does_not_end_a_computation():
  text = """\
ENTRY %main (a: f32[64]) -> f32[64] {
  %a = f32[64]{0} parameter(0)
  %k = f32[64]{0} custom-call(%a), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
 "xprof_metadata":"{}"
}}, metadata={op_name="jit(f)/kernel"}
  ROOT %sum = f32[64]{0} all-reduce(%k), channel_id=1, replica_groups={{0,1}}, to_apply=%add
}
"""
  program = hlo.read(text, 2)
  assert program.kernels == ('k',)
  assert program.by_kind() == {'all-reduce': {'count': 1, 'bytes': 256.0}}


def test_combined_collectives_with_one_channel_are_all_counted():
  text = """\
%combined.1 (p.1: f32[8]) -> f32[8] {
  %p.1 = f32[8]{0} parameter(0)
  ROOT %r.1 = f32[8]{0} all-reduce(%p.1), channel_id=1, replica_groups={{0,1}}, to_apply=%add
}

%async_collective_fusion.1 (p.2: f32[8]) -> f32[8] {
  %p.2 = f32[8]{0} parameter(0)
  ROOT %r.2 = f32[8]{0:S(1)} all-reduce(%p.2), channel_id=1, replica_groups={{0,1}}, to_apply=%add
}

%combined.2 (p.3: f32[16]) -> f32[16] {
  %p.3 = f32[16]{0} parameter(0)
  ROOT %r.3 = f32[16]{0} all-reduce(%p.3), channel_id=1, replica_groups={{0,1}}, to_apply=%add
}

%other (p.4: f32[8]) -> f32[8] {
  %p.4 = f32[8]{0} parameter(0)
  ROOT %k = f32[8]{0} fusion(%p.4), kind=kCustom, calls=%combined.1
}

ENTRY %main (a: f32[8], b: f32[16]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %b = f32[16]{0} parameter(1)
  %i = f32[8]{0} fusion(%a), kind=kCustom, calls=%combined.1
  %j = f32[8]{0} fusion(%i), kind=kCustom, calls=%async_collective_fusion.1
  %l = f32[16]{0} fusion(%b), kind=kCustom, calls=%combined.2
  ROOT %m = f32[8]{0} call(%j), to_apply=%other
}
"""
  # The first is one with what goes on with it; another of 16; one in another computation.
  assert hlo.read(text, 2).by_kind() == {'all-reduce': {'count': 3, 'bytes': 32.0 + 64.0 + 32.0}}
