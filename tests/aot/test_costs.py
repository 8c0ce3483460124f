import jax
import jax.numpy as jnp
import numpy as np
import pytest
from communication import gathered_features
from jax.sharding import NamedSharding, PartitionSpec

from mvlm_jax.aot.costs import bytes_by_kind, collectives, matrix_flops, operations, traffic_by_kind
from mvlm_jax.aot.hlo import read
from mvlm_jax.training.mesh import make_mesh


def program(*lines, before=""):
    return read("\n".join(["HloModule m", "", before, "ENTRY %e () -> f32[] {", *(f"  {line}" for line in lines), "}"]))


def product(x, y):
    return matrix_flops(read(jax.jit(jnp.matmul).lower(jnp.zeros(x), jnp.zeros(y)).compile().as_text()))


def test_a_product_counts_each_multiply_add_as_two():
    assert product((3, 5), (5, 7)) == 2 * 3 * 5 * 7
    assert product((4, 3, 5), (4, 5, 7)) == 4 * 2 * 3 * 5 * 7


def convolution(*, left, right, out, attributes):
    return matrix_flops(
        program(
            f"%l = bf16[{left}]{{1,0}} parameter(0)",
            f"%r = bf16[{right}]{{1,0}} parameter(1)",
            f"ROOT %c = f32[{out}]{{1,0:T(8,128)}} convolution(%l, %r), {attributes}",
        )
    )


def test_a_product_written_as_a_convolution_counts_the_same():
    # [64, 40, 768] @ [768, 12, 64], and a product of 64 x 12 pairs of [40, 64]: as TPU programs have them.
    attributes = "window={size=1x12 pad=0_0x11_11 rhs_reversal=0x1}, dim_labels=0bf1_i1o0->0b1f"
    found = convolution(left="64,40,768,1", right="768,12,64,1", out="64,40,12,64", attributes=attributes)
    assert found == 2 * 64 * 40 * 768 * 12 * 64
    attributes = "window={size=64x12 stride=63x11 lhs_dilate=64x12}, dim_labels=0b1f_0o1i->01bf"
    found = convolution(left="64,40,12,64", right="64,30,12,64", out="64,12,40,30", attributes=attributes)
    assert found == 2 * 64 * 12 * 40 * 30 * 64


def test_an_ordinary_convolution_counts_no_product_with_its_padding():
    # Three taps over four elements: the first and the last output meet two elements each.
    attributes = "window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f"
    assert convolution(left="2,4,5", right="3,5,6", out="2,4,6", attributes=attributes) == 2 * 2 * 5 * 6 * (
        2 + 3 + 3 + 2
    )


def test_a_product_inside_a_library_call_is_an_error():
    hidden = program('%c = f32[2,2]{1,0} custom-call(), custom_call_target="__onednn$matmul"')
    with pytest.raises(ValueError, match="onednn"):
        matrix_flops(hidden)


ADD = "%add (a: f32[], b: f32[]) -> f32[] {\n  %a = f32[] parameter(0)\n  %b = f32[] parameter(1)\n  ROOT %s = f32[] add(%a, %b)\n}\n"  # noqa: E501


def test_collectives_are_counted_by_the_whole_arrays():
    found = collectives(
        program(
            "%p = f32[10]{0} parameter(0)",
            "%q = bf16[4,6]{1,0} parameter(1)",
            "%ar = (f32[10]{0}, bf16[4,6]{1,0}) all-reduce(%p, %q), replica_groups={{0,1,2,3}}, to_apply=%add",
            "%ag = f32[40]{0} all-gather(%p), channel_id=2, replica_groups=[2,4]<=[8], dimensions={0}",
            "%rs = f32[5]{0} reduce-scatter(%p), replica_groups=mesh['x'=4,'y'=2] {'y'}, dimensions={0}, to_apply=%add",
            "%cp = bf16[4,6]{1,0} collective-permute(%q), source_target_pairs={{0,1},{1,0}}",
            "%aa = f32[10]{0} all-to-all(%p), replica_groups={{0,1}}, dimensions={0}",
            before=ADD,
        )
    )
    assert bytes_by_kind(found) == {
        "all-reduce": 40 + 48,
        "all-gather": 160,
        "reduce-scatter": 40,
        "collective-permute": 48,
        "all-to-all": 40,
    }
    assert {one.kind: one.group for one in found if one.kind != "collective-permute"} == {
        "all-reduce": 4, "all-gather": 4, "reduce-scatter": 2, "all-to-all": 2,
    }  # fmt: skip
    # A ring sends every byte of an all-reduce twice, less what a chip keeps.
    assert {one.kind: one.traffic for one in found} == {
        "all-reduce": 88 * 2 * 3 / 4, "all-gather": 160 * 3 / 4, "reduce-scatter": 20, "collective-permute": 48,
        "all-to-all": 20,
    }  # fmt: skip


def test_a_collective_in_two_parts_counts_once():
    found = collectives(
        program(
            "%p = f32[10]{0} parameter(0)",
            "%s = (f32[10]{0}, f32[40]{0}) all-gather-start(%p), replica_groups={{0,1,2,3}}, dimensions={0}",
            "%d = f32[40]{0} all-gather-done(%s)",
            "%ps = (f32[10]{0}, f32[10]{0}, u32[], u32[]) collective-permute-start(%p), source_target_pairs={{0,1}}",
            "%pd = f32[10]{0} collective-permute-done(%ps)",
        )
    )
    assert bytes_by_kind(found) == {"all-gather": 160, "collective-permute": 40}


def test_a_collective_spread_over_fusions_counts_once():
    spread = (
        'channel_id=7, replica_groups={{0,1}}, dimensions={0}, backend_config={"async_collective_fusion_config":{}}'
    )
    part = "%{0} (p.{0}: f32[10]) -> f32[20] {{\n  %p.{0} = f32[10]{{0}} parameter(0)\n  ROOT %g.{0} = f32[20]{{0}} all-gather(%p.{0}), SPREAD\n}}\n"  # noqa: E501
    before = (part.format("one") + part.format("two")).replace("SPREAD", spread)
    found = collectives(
        program(
            "%p = f32[10]{0} parameter(0)",
            "%a = f32[20]{0} fusion(%p), kind=kCustom, calls=%one",
            "%b = f32[20]{0} fusion(%p), kind=kCustom, calls=%two",
            before=before,
        )
    )
    assert bytes_by_kind(found) == {"all-gather": 80}


def test_of_a_slice_only_the_slice_is_read():
    body = (
        "%body (p: f32[12,100], i: s32[]) -> f32[1,100] {\n  %p = f32[12,100]{1,0} parameter(0)\n"
        "  %i = s32[] parameter(1)\n"
        "  %z = s32[] constant(0)\n"
        "  ROOT %d = f32[1,100]{1,0} dynamic-slice(%p, %i, %z), dynamic_slice_sizes={1,100}\n}\n"
    )
    [operation] = operations(
        program(
            "%stack = f32[12,100]{1,0} parameter(0)",
            "%i = s32[]{:S(2)} parameter(1)",
            "%slice = f32[1,100]{1,0} fusion(%stack, %i), kind=kLoop, calls=%body",
            before=body,
        )
    )
    assert operation.bytes == 400 + 400


FETCHED = """%body (carry: (s32[], f32[100])) -> (s32[], f32[100]) {
  %carry = (s32[], f32[100]{0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %x = f32[100]{0} get-tuple-element(%carry), index=1
  %s = ((f32[100]{0}), f32[10]{0:S(1)}, s32[]) slice-start(%x), slice={[0:10]}
  %part = f32[10]{0:S(1)} slice-done(%s)
  %c = (f32[10]{0:S(1)}, f32[10]{0}, u32[]) copy-start(%y)
  %again = f32[10]{0:S(1)} copy-done(%c)
  %buffer = f32[100]{0} custom-call(), custom_call_target="AllocateBuffer"
  %y = f32[10]{0} negate(%part)
  ROOT %next = (s32[], f32[100]{0}) tuple(%i, %x)
}

%test (t: (s32[], f32[100])) -> pred[] {
  %t = (s32[], f32[100]{0}) parameter(0)
  ROOT %p = pred[] constant(false)
}
"""


def test_what_is_fetched_ahead_counts_once_and_as_often_as_the_loop_runs():
    moved = program(
        "%init = (s32[], f32[100]{0}) parameter(0)",
        "%w = (s32[], f32[100]{0}) while(%init), condition=%test, body=%body, "
        'backend_config={"known_trip_count":{"n":"3"}}',
        before=FETCHED,
    )
    # Ten numbers into the vector memory; their negatives out of it; these into it again.
    assert traffic_by_kind(moved) == {
        "matrix products": 0, "attention": 0, "copies": 3 * (40 + 40), "element-wise": 3 * 40, "collectives": 0,
    }  # fmt: skip


def test_traffic_is_told_apart_by_what_an_operation_does_and_for_what():
    bodies = "\n".join(
        f"%{name} (p.{name}: f32[10,10]) -> f32[10,10] {{\n  %p.{name} = f32[10,10]{{1,0}} parameter(0)\n"
        f"  ROOT %r.{name} = f32[10,10]{{1,0}} {line}\n}}\n"
        for name, line in {
            "product": "dot(%p.product, %p.product), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
            "scores": "dot(%p.scores, %p.scores), lhs_contracting_dims={1}, rhs_contracting_dims={0}, "
            'metadata={op_name="jit(step)/transpose(jvp(attention))/attend/dot_general"}',
            "moves": "transpose(%p.moves), dimensions={1,0}",
            "sum": "add(%p.sum, %p.sum)",
        }.items()
    )
    found = program(
        "%p = f32[10,10]{1,0} parameter(0)",
        *(f"%f.{name} = f32[10,10]{{1,0}} fusion(%p), kind=kLoop, calls=%{name}" for name in ("product", "scores")),
        *(f"%f.{name} = f32[10,10]{{1,0}} fusion(%p), kind=kLoop, calls=%{name}" for name in ("moves", "sum")),
        '%k = f32[10,10]{1,0} custom-call(%p, %p), custom_call_target="tpu_custom_call", '
        'metadata={op_name="jit(step)/attention/attend/pallas_call"}, '
        'backend_config={"custom_call_config":{"cost_estimate":{"flops":"700","bytes_accessed":"1"}}}',
        "%r = f32[10,10]{1,0} all-reduce(%p), replica_groups={{0,1}}, to_apply=%add",
        before=bodies + ADD,
    )
    assert traffic_by_kind(found) == {
        "matrix products": 800, "attention": 800 + 1200, "copies": 800, "element-wise": 800, "collectives": 800,
    }  # fmt: skip
    assert matrix_flops(found) == 2 * 2000 + 700


def test_features_are_told_from_weights_and_embeddings():
    def gathered(shape):
        line = f"%g = f32[{shape}]{{0}} all-gather(%p), replica_groups={{{{0,1}}}}, dimensions={{0}}"
        found = collectives(program("%p = f32[2]{0} parameter(0)", line))
        return list(gathered_features(found, batch_size=64, lengths=(37, 16), width=128))

    for features in ("64,37,128", "64,2,16,128", "64,37,2,64", "24,16,512", "2368,128", "192,128"):
        assert gathered(features), features
    for other in ("1,37,128", "128,512", "64,256", "2,128,2,64", "1003,128", "512,128", "192,256", "64,37", "2,64,128"):
        assert not gathered(other), other


@pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices")
def test_the_collectives_of_a_real_program():
    mesh = make_mesh(data=4, fsdp=2, tensor=1)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())
    x = jax.ShapeDtypeStruct((16, 32), np.float32, sharding=rows)
    compiled = jax.jit(lambda x: x.sum(axis=0), out_shardings=whole).lower(x).compile()
    [found] = collectives(read(compiled.as_text()))
    assert (found.kind, found.bytes, found.group) == ("all-reduce", 32 * 4, 4)
