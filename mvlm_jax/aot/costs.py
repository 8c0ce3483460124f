"""What one step of a compiled program costs each chip: matrix products, HBM traffic and communication."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from mvlm_jax.aot.hlo import Computation, Instruction, Program, Shape, called, matched, window_dimensions

# Operations that move no data themselves: they only rename it, or their work is counted elsewhere.
_FREE = frozenset({
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "async-start", "async-update", "partition-id", "replica-id", "opt-barrier",
})  # fmt: skip
_PARTS = ("dynamic-slice", "slice", "gather")
# Operations that change where numbers lie, not what they are; a change of type moves them, too.
_MOVES = frozenset({
    "copy", "transpose", "reshape", "slice", "dynamic-slice", "dynamic-update-slice", "concatenate", "pad",
    "broadcast", "reverse", "convert", "bitcast-convert", "iota",
})  # fmt: skip
_ATTENTION = re.compile(r"\battend\b")  # the scope of `models.attention`
KINDS = ("matrix products", "attention", "copies", "element-wise", "collectives")
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")


class Collective(NamedTuple):
    """One collective operation and how often a step runs it."""

    kind: str
    shapes: tuple[Shape, ...]  # of the whole arrays: the results of a gather, the operands of all others
    group: int  # chips that exchange
    times: int
    source: str  # the operation of the model from which it was compiled

    @property
    def bytes(self) -> int:
        return self.times * sum(shape.bytes for shape in self.shapes)

    @property
    def traffic(self) -> float:
        """Bytes that a chip sends, by the ring algorithms."""
        rest = (self.group - 1) / self.group
        return self.bytes * {"all-reduce": 2 * rest, "collective-permute": 1.0, "collective-broadcast": 1.0}.get(
            self.kind, rest
        )


class Operation(NamedTuple):
    """One instruction, a fusion counted as one, and how often a step runs it."""

    times: int
    flops: int  # of its dots, convolutions and kernels, a multiply-add counted as two
    bytes: int  # read from and written to HBM
    kind: str  # one of KINDS


def operations(program: Program) -> list[Operation]:
    """The instructions that a step runs on one chip, without communication."""
    counts = program.executions()
    fused = {
        callee
        for name in counts
        for instruction in program.computations[name].instructions.values()
        if instruction.opcode == "fusion"
        for callee in called(instruction)
    }
    return [
        Operation(
            times,
            _flops(instruction, computation, program),
            _bytes(instruction, computation, program),
            _kind(instruction, program),
        )
        for name, times in counts.items()
        if name not in fused and (computation := program.computations[name])
        for instruction in computation.instructions.values()
        if not _is_free(instruction) and instruction.opcode.removesuffix("-start") not in COLLECTIVES
    ]


def traffic_by_kind(program: Program) -> dict[str, int]:
    """Bytes that one chip reads from and writes to HBM in a step, for each of KINDS.

    A fusion is a matrix product where it holds one, and a copy where it only moves numbers. All that
    `models.attention.attend` computes is attention. Collectives are counted by the arrays that they read and write.
    """
    totals = dict.fromkeys(KINDS, 0)
    for operation in operations(program):
        totals[operation.kind] += operation.times * operation.bytes
    totals["collectives"] = sum(2 * each.bytes for each in collectives(program))
    return totals


def matrix_flops(program: Program) -> float:
    """FLOPs of all dots, convolutions and kernels on one chip, each counted as often as it runs.

    Raises:
      ValueError: a matrix product is hidden in a library call, or the program cannot be parsed.
    """
    return float(sum(operation.times * operation.flops for operation in operations(program)))


def collectives(program: Program) -> list[Collective]:
    """Every collective between at least two chips. One that is split into a start and a done counts once."""
    collected: dict[str, Collective] = {}
    for name, times in program.executions().items():
        computation = program.computations[name]
        for instruction in computation.instructions.values():
            kind = instruction.opcode.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            # A TPU program may spread one collective over several fusions, each with a copy on the same channel.
            channel = re.search(r"channel_id=(\d+)", instruction.attributes)
            key = f"{name}/{instruction.name}"
            if channel and "async_collective_fusion_config" in instruction.attributes:
                key = f"channel {channel[1]}"
            collected[key] = _collective(kind, instruction, computation, program, times)
    return [collective for collective in collected.values() if collective.group > 1]


def bytes_by_kind(collectives: list[Collective]) -> dict[str, int]:
    """Bytes of the whole arrays that the collectives of one chip reduce, gather or move in a step, for each kind."""
    kinds = sorted({each.kind for each in collectives})
    return {kind: sum(each.bytes for each in collectives if each.kind == kind) for kind in kinds}


def _kind(instruction: Instruction, program: Program) -> str:
    inside = [instruction]
    if instruction.opcode == "fusion":
        inside = [each for name in called(instruction) for each in program.computations[name].instructions.values()]
    products = [each for each in inside if each.opcode in ("dot", "convolution")]
    # A product is of the attention or of a dense layer, whatever else was fused with it.
    if any(_ATTENTION.search(each.source) for each in products or [instruction]):
        return "attention"
    if products:
        return "matrix products"
    moves = all(_is_free(each) or each.opcode.removesuffix("-start") in _MOVES for each in inside)
    return "copies" if moves else "element-wise"


def _is_free(instruction: Instruction) -> bool:
    # What an operation in two parts moves is counted at its start. A buffer that is allocated is not written.
    allocates = 'custom_call_target="AllocateBuffer"' in instruction.attributes
    return instruction.opcode in _FREE or instruction.opcode.endswith("-done") or allocates


def _flops(instruction: Instruction, computation: Computation, program: Program) -> int:
    if instruction.opcode == "dot":
        return _dot(instruction, computation)
    if instruction.opcode == "convolution":
        return _convolution(instruction, computation)
    if instruction.opcode == "custom-call":
        target = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
        if target and re.search(r"matmul|gemm|\$conv", target[1].lower()):
            raise ValueError(f"the matrix product {instruction.name} is hidden in a call of {target[1].lower()}")
        # What the author of a Pallas kernel says of it.
        stated = re.search(r'"cost_estimate":\{"flops":"?(\d+)', instruction.attributes)
        return int(stated[1]) if stated else 0
    if instruction.opcode != "fusion":
        return 0
    bodies = [program.computations[name] for name in called(instruction)]
    return sum(_flops(inner, body, program) for body in bodies for inner in body.instructions.values())


def _bytes(instruction: Instruction, computation: Computation, program: Program) -> int:
    """Of a slice or an update of a larger array, only the part that is read or written counts."""
    operands = [_shape(name, computation) for name in instruction.operands]
    if instruction.opcode == "fusion":
        body = program.computations[called(instruction)[0]]
        read = sum(_read(place, operand, body) for place, operand in enumerate(operands))
        return read + sum(_written(body, instruction.shapes))
    opcode, written = instruction.opcode.removesuffix("-start"), instruction.shapes
    if opcode == "copy":
        written = written[:1]
    elif opcode != instruction.opcode:
        written = written[len(operands) : len(operands) + 1]  # in front of it the operands, behind it the state
    if opcode in _PARTS:
        return written[0].bytes * operands[0].in_hbm + _hbm(written[0])
    if opcode == "dynamic-update-slice":
        return _hbm(operands[1]) + operands[1].bytes * operands[0].in_hbm
    return sum(map(_hbm, operands)) + sum(map(_hbm, written))


def _read(place: int, operand: Shape, body: Computation) -> int:
    """Bytes that a fusion reads of its operand."""
    whole, inside = _hbm(operand), body.instructions.values()
    parameter = next((each.name for each in inside if each.opcode == "parameter" and each.literal == str(place)), None)
    touched = 0
    for user in (each for each in inside if parameter in each.operands):
        if user.operands[0] != parameter or user.opcode not in (*_PARTS, "dynamic-update-slice"):
            return whole
        touched += user.shapes[0].bytes if user.opcode in _PARTS else 0
    return min(whole, touched)


def _written(body: Computation, results: tuple[Shape, ...]) -> Iterator[int]:
    """Bytes that a fusion writes of each of its results."""
    root = body.instructions[body.root]
    names = root.operands if root.opcode == "tuple" else (root.name,)
    for name, result in zip(names, results):
        made = body.instructions[name]
        while made.opcode in ("bitcast", "copy") and made.operands[0] in body.instructions:
            made = body.instructions[made.operands[0]]
        if made.opcode == "dynamic-update-slice" and _hbm(result):
            yield _shape(made.operands[1], body).bytes
        else:
            yield _hbm(result)


def _hbm(shape: Shape) -> int:
    return shape.bytes if shape.in_hbm else 0


def _dot(dot: Instruction, computation: Computation) -> int:
    left = _shape(dot.operands[0], computation)
    contracted = matched(r"lhs_contracting_dims=\{([\d,]*)\}", dot.attributes)[1]
    return 2 * dot.shapes[0].elements * math.prod(left.dims[int(place)] for place in contracted.split(",") if place)


def _convolution(convolution: Instruction, computation: Computation) -> int:
    """Products with padding, or with the holes of a dilated input, do not count.

    TPU programs write a batched product as a convolution in which everything but the diagonal is such a hole.
    """
    left, right = (_shape(name, computation) for name in convolution.operands[:2])
    labels = matched(r"dim_labels=(\w+)_(\w+)->(\w+)", convolution.attributes)
    inputs, kernel, outputs = (dict(zip(label, shape.dims)) for label, shape in zip(
        labels.groups(), (left, right, convolution.shapes[0])
    ))  # fmt: skip
    pairs = math.prod(
        _meetings(inputs[place], outputs[place], window)
        for place, window in zip(map(str, range(9)), window_dimensions(convolution.attributes))
    )
    groups = {
        name: int(found[1]) if (found := re.search(rf"{name}=(\d+)", convolution.attributes)) else 1
        for name in ("batch_group_count", "feature_group_count")
    }
    batch = inputs["b"] // groups["batch_group_count"]
    # The kernel has the input features of one feature group only.
    return 2 * pairs * batch * kernel["i"] * kernel["o"]


def _meetings(size: int, out: int, window: dict[str, tuple[int, ...]]) -> int:
    """The number of (output, kernel) positions of a dimension at which the kernel meets an element of the input."""
    stride, low = window.get("stride", (1,))[0], window.get("pad", (0, 0))[0]
    spread, reach = window.get("lhs_dilate", (1,))[0], window.get("rhs_dilate", (1,))[0]
    reached = (position * stride - low + tap * reach for position in range(out) for tap in range(window["size"][0]))
    return sum(at % spread == 0 and 0 <= at // spread < size for at in reached)


def _collective(
    kind: str, instruction: Instruction, computation: Computation, program: Program, times: int
) -> Collective:
    operands = tuple(_shape(name, computation) for name in instruction.operands)
    results = instruction.shapes[-len(operands) :]
    group = _group(instruction, operands, results)
    # The fusion all-reduce-scatter of TPU programs keeps only a part of what it reduces.
    if kind == "all-reduce" and "all-reduce-scatter" in computation.name:
        kind = "reduce-scatter"
    shapes = results if kind in ("all-gather", "collective-broadcast") else operands
    return Collective(kind, shapes, group, times, instruction.source or instruction.name)


def _group(instruction: Instruction, operands: tuple[Shape, ...], results: tuple[Shape, ...]) -> int:
    """Chips in one of the instruction's groups, in any of the notations of HLO."""
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", instruction.attributes)
    if listed:
        return len(listed[1].split(","))
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]", instruction.attributes)
    if iota:
        return int(iota[1])
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", instruction.attributes)
    if mesh:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", mesh[2]))
    largest = max(operands + results, key=lambda shape: shape.bytes).bytes
    return max(2, largest // max(1, min(operands + results, key=lambda shape: shape.bytes).bytes))


def _shape(name: str, computation: Computation) -> Shape:
    return computation.instructions[name].shapes[0]
