"""Programs small enough to be counted by eye, written as XLA writes them."""

import jax
import jax.numpy as jnp
import pytest

from mvlm_jax.aot.hlo import Shape, read

LOOP = """HloModule loop, is_scheduled=true

%inner (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0)
  ROOT %n = f32[2]{0} negate(%p)
}

%body (carry: (s32[], f32[2])) -> (s32[], f32[2]) {
  %carry = (s32[], f32[2]{0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %x = f32[2]{0} get-tuple-element(%carry), index=1
  %y = f32[2]{0} fusion(%x), kind=kLoop, calls=%inner
  ROOT %next = (s32[], f32[2]{0}) tuple(%i, %y)
}

%test (carry.1: (s32[], f32[2])) -> pred[] {
  %carry.1 = (s32[], f32[2]{0}) parameter(0)
  %limit = s32[]{:T(128)} constant(12)
  %i.1 = s32[] get-tuple-element(%carry.1), index=0
  ROOT %lt = pred[] compare(%i.1, %limit), direction=LT, metadata={op_name="while/cond/lt"}
}

ENTRY %main (a: f32[2]) -> f32[2] {
  %a = f32[2]{0} parameter(0)
  %zero = s32[] constant(START)
  %start = s32[] copy(%zero)
  %init = (s32[], f32[2]{0}, /*index=2*/f32[2]{0}) tuple(%start, %a, %a)
  %while = (s32[], f32[2]{0}, /*index=2*/f32[2]{0}) while(%init), condition=%test, body=%bodyNOTED
  ROOT %out = f32[2]{0} get-tuple-element(%while), index=1
}
"""


def loop(*, start=0, noted=""):
    return read(LOOP.replace("START", str(start)).replace("NOTED", noted))


@pytest.mark.parametrize(("start", "rounds"), [(0, 12), (2, 10)])
def test_a_loop_runs_as_often_as_its_condition_lets_it(start, rounds):
    counts = loop(start=start).executions()
    assert (counts["main"], counts["body"], counts["inner"]) == (1, rounds, rounds)


def test_a_noted_number_of_rounds_comes_first():
    counts = loop(noted=', backend_config={"known_trip_count":{"n":"5"}}').executions()
    assert counts["inner"] == 5


def test_a_loop_that_cannot_be_told_is_an_error():
    with pytest.raises(ValueError, match="rounds of the loop while"):
        read(LOOP.replace("direction=LT", "direction=NE").replace("START", "0").replace("NOTED", "")).executions()


def test_shapes_names_and_operands_are_read():
    program = read(
        "HloModule m\n\nENTRY %e (a: bf16[3,4]) -> (f32[], bf16[3,4]) {\n"
        "  %a = bf16[3,4]{1,0:T(8,128)(2,1)S(1)} parameter(0)\n"
        "  %c = f32[] constant(0.5)\n"
        '  ROOT %t.1 = (f32[], /*index=1*/bf16[3,4]{1,0:T(8,128)(2,1)}) tuple(%c, %a), metadata={op_name="a(b)"}\n'
        "}\n"
    )
    entry = program.computations["e"]
    assert entry.root == "t.1"
    assert entry.instructions["a"].shapes == (Shape("bf16", (3, 4), in_hbm=False),)
    root = entry.instructions["t.1"]
    assert (root.opcode, root.operands) == ("tuple", ("c", "a"))
    assert root.shapes == (Shape("f32", ()), Shape("bf16", (3, 4)))
    assert [shape.bytes for shape in root.shapes] == [4, 24]


def test_nested_scans_of_a_real_program_multiply():
    def step(x):
        inner = lambda x, _: (jnp.sin(x @ x), None)
        outer = lambda x, _: (jax.lax.scan(inner, x, length=3)[0] @ x, None)
        return jax.lax.scan(outer, x, length=5)[0]

    program = read(jax.jit(step).lower(jnp.zeros((8, 8))).compile().as_text())
    products = sum(
        times * sum(i.opcode == "dot" for i in program.computations[name].instructions.values())
        for name, times in program.executions().items()
    )
    assert products == 5 * 3 + 5


def test_a_text_without_a_program_is_an_error():
    with pytest.raises(ValueError, match="no entry"):
        read("HloModule empty\n")
