"""Parses the text of a compiled program (optimised HLO), as far as is needed to count its work.

XLA's own `cost_analysis` counts the body of a loop once, however often it runs. Here every computation has the number
of its executions.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32, "s64": 64, "u64": 64,
    "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128, "token": 0,
}  # fmt: skip

_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = ")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = {
    "while": ("condition", "body"),
    "fusion": ("calls",),
    "call": ("to_apply",),
    "async-start": ("calls",),
    "conditional": ("branch_computations", "true_computation", "false_computation"),
}


class Shape(NamedTuple):
    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool = True  # false where the layout names another memory space, such as the vector memory of a TPU

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        # Types of 8 bits come in many variants (f8e4m3fn, …), all of one byte.
        return math.ceil(self.elements * BITS.get(self.dtype, 8) / 8)


class Instruction(NamedTuple):
    name: str
    opcode: str
    shapes: tuple[Shape, ...]  # of the result; several where it is a tuple
    operands: tuple[str, ...]
    attributes: str  # the text after the operands
    literal: str  # the text between the parentheses

    @property
    def source(self) -> str:
        """The path of the Python functions and modules that it was compiled from; empty where the text names none."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


class Computation(NamedTuple):
    name: str
    instructions: Mapping[str, Instruction]
    root: str


class Program(NamedTuple):
    computations: Mapping[str, Computation]
    entry: str

    def executions(self) -> dict[str, int]:
        """How often each computation runs in one run of the program; all branches of a conditional count.

        The bodies of fusions are included. What a reduction or a sort calls for each element is not.

        Raises:
          ValueError: the text does not give the number of rounds of a loop.
        """
        counts: dict[str, int] = {}

        def visit(name: str, times: int) -> None:
            counts[name] = counts.get(name, 0) + times
            for instruction in self.computations[name].instructions.values():
                callees = called(instruction)
                rounds = self._rounds(instruction, name) if instruction.opcode == "while" else 1
                for callee in callees:
                    visit(callee, times * rounds)

        visit(self.entry, 1)
        return counts

    def _rounds(self, loop: Instruction, caller: str) -> int:
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
        if known:
            return int(known[1])
        # A `lax.scan` whose number XLA has not noted: while counter < limit, and the counter goes up by one.
        condition = self.computations[_attribute(loop, "condition")[0]]
        test = condition.instructions[condition.root]
        if test.opcode == "compare" and "direction=LT" in test.attributes:
            counter, limit = (_through_copies(condition.instructions, operand) for operand in test.operands)
            if counter.opcode == "get-tuple-element" and limit.opcode == "constant":
                place = int(matched(r"index=(\d+)", counter.attributes)[1])
                return int(limit.literal) - self._first_value(loop, caller, place)
        raise ValueError(f"the number of rounds of the loop {loop.name} is not known")

    def _first_value(self, loop: Instruction, caller: str, place: int) -> int:
        instructions = self.computations[caller].instructions
        carried = instructions[loop.operands[0]]
        first = _through_copies(instructions, carried.operands[place]) if carried.opcode == "tuple" else None
        return int(first.literal) if first is not None and first.opcode == "constant" else 0


def read(text: str) -> Program:
    """The program of `compiled.as_text()`."""
    computations, entry = {}, ""
    instructions: dict[str, Instruction] = {}
    name, root = "", ""
    for line in text.splitlines():
        line = re.sub(r"/\*.*?\*/", "", line)
        header = _COMPUTATION.match(line)
        if header:
            name, instructions, root = header[2], {}, ""
            entry = name if header[1] else entry
        elif line == "}" and name:
            computations[name] = Computation(name, instructions, root)
            name = ""
        elif name and (start := _INSTRUCTION.match(line)):
            instruction = _instruction(start[1], line[start.end() :])
            instructions[instruction.name] = instruction
            root = instruction.name if line.lstrip().startswith("ROOT ") else root
    if not entry:
        raise ValueError("the text holds no entry computation")
    return Program(computations, entry)


def window_dimensions(attributes: str) -> Iterator[dict[str, tuple[int, ...]]]:
    """For each spatial dimension of a convolution: size, stride, pad (low, high), dilations, reversal."""
    window = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(field.split("=") for field in window[1].split()) if window and window[1] else {}
    parts = {name: value.split("x") for name, value in fields.items()}
    for place in range(len(parts.get("size", ()))):
        yield {name: tuple(int(number) for number in values[place].split("_")) for name, values in parts.items()}


def matched(pattern: str, text: str) -> re.Match[str]:
    """The first match.

    Raises:
      ValueError: there is none, so the compiler writes a form that is not known here.
    """
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"the compiled program has {text[:200]!r}, where {pattern!r} was expected")
    return match


def _instruction(name: str, rest: str) -> Instruction:
    end = _closing(rest, 0) + 1 if rest.startswith("(") else matched(r"^[^\s{]+(\{[^}]*\})?", rest).end()
    result, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    close = _closing(rest, len(opcode))
    literal = rest[len(opcode) + 1 : close]
    return Instruction(name, opcode, _shapes(result), tuple(_NAME.findall(literal)), rest[close + 1 :], literal)


def _closing(text: str, opening: int) -> int:
    depth = 0
    for place in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    raise ValueError(f"a parenthesis is not closed in {text[:80]!r}")


def _shapes(text: str) -> tuple[Shape, ...]:
    # A layout reads {1,0:T(8,128)(2,1)S(1)}: order, tiles, memory space.
    return tuple(
        Shape(
            dtype=match[1],
            dims=tuple(int(dim.lstrip("<=")) for dim in match[2].split(",") if dim),
            in_hbm="S(" not in (match[3] or ""),
        )
        for match in _SHAPE.finditer(text)
    )


def _attribute(instruction: Instruction, name: str) -> tuple[str, ...]:
    found = re.search(rf"\b{name}=(\{{[^}}]*\}}|%[\w.\-]+)", instruction.attributes)
    return tuple(_NAME.findall(found[1])) if found else ()


def called(instruction: Instruction) -> tuple[str, ...]:
    names = _CALLED.get(instruction.opcode, ())
    return tuple(callee for name in names for callee in _attribute(instruction, name))


def _through_copies(instructions: Mapping[str, Instruction], name: str) -> Instruction:
    instruction = instructions[name]
    while instruction.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
        instruction = instructions[instruction.operands[0]]
    return instruction
