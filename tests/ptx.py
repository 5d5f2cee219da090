"""Translates the PTX that nvcc makes of kernels to C++, which runs on the host in the kernels' place.

Every entry becomes a function of one thread: registers are its variables, and branches are jumps. What an instruction
means is said in the tables below and in tests/cpp/cuda_host/ptx.h. Whatever is in no table (a directive, an
instruction, a modifier, a type, a special register) is an error, and so is an operand of another width than its type.
"""

import re
from itertools import product
from typing import NamedTuple

SIGNED, UNSIGNED, BITS, FLOATS = "s16 s32 s64", "u16 u32 u64", "b16 b32 b64", "f32 f64"
INTEGERS = f"{SIGNED} {UNSIGNED}"
C_TYPES = {"pred": "bool", "f32": "float", "f64": "double"} | {
    f"{kind}{bits}": f"{'' if kind == 's' else 'u'}int{bits}_t" for kind in "sub" for bits in (8, 16, 32, 64)
}
WIDTHS = {type_: 1 if type_ == "pred" else int(type_[1:]) for type_ in C_TYPES}

# Instructions that compute a value: names; what T stands for in them; the types of the result and of the operands,
# where U is T without a sign and W is twice as wide as T; the value in C++.
COMPUTED = [
    ("add.T", INTEGERS, "U U U", "{0} + {1}"),
    ("sub.T", INTEGERS, "U U U", "{0} - {1}"),
    ("mul.lo.T", INTEGERS, "U U U", "uint64_t({0}) * {1}"),
    ("mul.wide.T", "s32 u16 u32", "W T T", "W({0}) * W({1})"),
    ("mul.hi.T", "s64", "T T T", "__int128({0}) * {1} >> 64"),
    ("mad.lo.T", "s32 u32", "U U U U", "{0} * {1} + {2}"),
    ("div.T", "s32 s64 u32 u64", "T T T", "quotient({0}, {1})"),
    ("rem.T", "s32 s64 u32 u64", "T T T", "remainder_of({0}, {1})"),
    ("neg.T", SIGNED, "U U", "0 - {0}"),
    ("min.T", INTEGERS, "T T T", "{0} < {1} ? {0} : {1}"),
    ("max.T", INTEGERS, "T T T", "{0} < {1} ? {1} : {0}"),
    ("and.T", f"{BITS} pred", "T T T", "{0} & {1}"),
    ("or.T", f"{BITS} pred", "T T T", "{0} | {1}"),
    ("xor.T", f"{BITS} pred", "T T T", "{0} ^ {1}"),
    ("not.T", BITS, "T T", "~{0}"),
    ("not.T", "pred", "T T", "!{0}"),
    ("shl.T", BITS, "T T u32", "shift_left({0}, {1})"),
    ("shr.T", INTEGERS, "T T u32", "shift_right({0}, {1})"),
    ("popc.T", "b32", "u32 T", "__builtin_popcount({0})"),
    ("brev.T", "b32", "T T", "reversed({0})"),
    ("bfind.shiftamt.T", "u32", "u32 T", "leading_zeros({0})"),
    ("bfi.T", "b32", "T T T u32 u32", "with_field({0}, {1}, {2}, {3})"),
    ("prmt.T", "b32", "T T T u32", "permuted({0}, {1}, {2})"),
    ("selp.T", f"{INTEGERS} {BITS} {FLOATS}", "T T T pred", "{2} ? {0} : {1}"),
    ("mov.T", f"{INTEGERS} {BITS} {FLOATS} pred", "T T", "{0}"),
    ("cvta.to.global.T cvta.global.T cvta.local.T", "u64", "T T", "{0}"),  # all of these are the host's addresses
    ("add.rn.T", FLOATS, "T T T", "{0} + {1}"),
    ("sub.rn.T", FLOATS, "T T T", "{0} - {1}"),
    ("mul.rn.T", FLOATS, "T T T", "{0} * {1}"),
    ("div.rn.T", FLOATS, "T T T", "{0} / {1}"),
    ("rcp.rn.T", FLOATS, "T T", "1 / {0}"),
    ("sqrt.rn.T", FLOATS, "T T", "std::sqrt({0})"),
    ("neg.T", FLOATS, "T T", "-{0}"),
    ("cvt.rn.f32.T", f"{INTEGERS} f64", "f32 T", "{0}"),
    ("cvt.rn.f64.T", INTEGERS, "f64 T", "{0}"),
    ("cvt.f64.T", "f32", "f64 T", "{0}"),
    ("cvt.rzi.s32.T", "f32", "s32 T", "towards_zero({0})"),
    ("cvt.rni.f32.T", "f32", "f32 T", "std::nearbyint({0})"),
    ("setp.eq.T", f"{INTEGERS} {BITS} {FLOATS}", "pred T T", "{0} == {1}"),
    ("setp.ne.T", f"{INTEGERS} {BITS}", "pred T T", "{0} != {1}"),
    ("setp.lt.T", f"{INTEGERS} {FLOATS}", "pred T T", "{0} < {1}"),
    ("setp.le.T", f"{INTEGERS} {FLOATS}", "pred T T", "{0} <= {1}"),
    ("setp.gt.T", f"{INTEGERS} {FLOATS}", "pred T T", "{0} > {1}"),
    ("setp.ge.T", f"{INTEGERS} {FLOATS}", "pred T T", "{0} >= {1}"),
    ("setp.ltu.T", FLOATS, "pred T T", "!({0} >= {1})"),  # with a u, true of NaN
    ("setp.leu.T", FLOATS, "pred T T", "!({0} > {1})"),
    ("setp.gtu.T", FLOATS, "pred T T", "!({0} <= {1})"),
    ("setp.geu.T", FLOATS, "pred T T", "!({0} < {1})"),
    *((f"cvt.{to}.T", " ".join(x for x in INTEGERS.split() if x != to), f"{to} T", "{0}") for to in INTEGERS.split()),
]
# Without operands: functions of the host.
_ALONE = {
    "cp.async.commit_group": "cp_async_commit",
    "fence.proxy.async.shared::cta": "fence_shared_matrices",
    "wgmma.fence.sync.aligned": "warpgroup_fence",
    "wgmma.commit_group.sync.aligned": "warpgroup_commit",
}
SPACES = ("global", "shared", "param", "local")
VECTORS = {"": 1, ".v2": 2, ".v4": 4}
ELEMENTS = [type_ for type_ in C_TYPES if type_ != "pred"]
PRODUCTS = {
    "mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32": ("s32", "mma_s8"),
    "mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32": ("s32", "mma_u8"),
}
# wgmma: rows of B, and its type.
WARPGROUP = {
    f"wgmma.mma_async.sync.aligned.m64n{rows}k32.s32.u8.{type_}": (rows, "true" if type_ == "s8" else "false")
    for rows, type_ in product((8, 16, 24, 32), ("s8", "u8"))
}
SPECIAL = {
    f"%{name}.{axis}": f"{place}.{axis}"
    for name, place in (("tid", "current->index"), ("ctaid", "block.index"), ("ntid", "block.threads"))
    for axis in "xyz"
} | {f"%nctaid.{axis}": f"block.grid.{axis}" for axis in "xyz"}
HINTS = re.compile(r'\.pragma "(nounroll|used_bytes_mask \d+)"')


class Unknown(ValueError):
    """What the translator does not know."""


class Rule(NamedTuple):
    result: str
    operands: list[str]
    value: str


class Access(NamedTuple):
    store: bool
    space: str
    elements: int
    type: str


def _rules():
    out = {}
    for names, types, signature, value in COMPUTED:
        for name, type_ in product(names.split(), types.split()):
            wide = f"{type_[0]}{2 * int(type_[1:])}" if "W" in signature else type_
            stand_for = {"T": type_, "U": type_.replace("s", "u"), "W": wide}
            result, *operands = (stand_for.get(x, x) for x in signature.split())
            opcode = name.replace("T", type_)
            assert opcode not in out, opcode
            out[opcode] = Rule(result, operands, value.replace("W", C_TYPES[wide]))
    return out


RULES = _rules()
ACCESSES = {
    f"{name}.{space}{vector}.{type_}": Access(name == "st", space, elements, type_)
    for name, space, (vector, elements), type_ in product(("ld", "st"), SPACES, VECTORS.items(), ELEMENTS)
}


def _split(text):
    """What commas separate outside of brackets."""
    parts = re.findall(r"(?:\{[^}]*\}|\[[^]]*\]|\([^)]*\)|[^,{[(])+", text)
    if ",".join(parts) != text:
        raise Unknown(f"operands {text!r}")
    return [part.strip() for part in parts]


def _wider(type_, than):
    """Whether both are types of integers, the first of more bits."""
    return WIDTHS[type_] > WIDTHS[than] and "f" not in type_ + than


def _identifier(symbol):
    return re.sub(r"\W", "_", symbol.lstrip("%"))


class _Function:
    """Translates the body of an entry, one statement after the other."""

    def __init__(self, module, symbols):
        self.module, self.symbols = module, symbols
        self.declared, self.used, self.variables, self.lines = {}, {}, {}, []
        self.shared_bytes, self.instructions = 0, 0
        self.has_dynamic = False

    # ---- Directives

    def statement(self, text):
        if not text.startswith("."):
            self.lines.append(self._instruction(text))
            self.instructions += 1
        elif found := re.fullmatch(r"\.reg \.(\w+) ([%\w<>, ]+)", text):
            if found[1] not in ("pred", "b16", "b32", "b64", "f32", "f64"):
                raise Unknown(f"registers of type {found[1]!r}")
            for name, number in re.findall(r"([%\w]+)(?:<(\d+)>)?", found[2]):
                self.declared[name] = found[1], int(number) if number else None
        elif found := re.fullmatch(r"\.shared \.align (\d+) \.b8 ([\w$]+)\[(\d+)\]", text):
            self.add_shared(found[2], int(found[3]), int(found[1]))
        elif found := re.fullmatch(r"\.local \.align (\d+) \.b8 ([\w$]+)\[(\d+)\]", text):
            name = _identifier(found[2])
            self.variables[name] = f"alignas({found[1]}) unsigned char {name}[{found[3]}];"
            self.symbols[found[2]] = "local", f"address_of({name})"
        elif found := re.fullmatch(r"\.param \.(b32|b64) (\w+)", text):  # of a call
            self.variables[found[2]] = f"{C_TYPES[found[1]]} {found[2]} = 0;"
            self.symbols[found[2]] = "param", f"address_of(&{found[2]})"
        elif not HINTS.fullmatch(text):
            raise Unknown(f"directive {text!r}")

    def add_shared(self, name, size, align):
        if align > 16:
            raise Unknown(f"shared memory aligned to {align} bytes")
        start = -(-self.shared_bytes // align) * align
        self.symbols[name] = "shared", str(start)
        self.shared_bytes = start + size

    # ---- Operands

    def _register(self, name):
        """The type of a register."""
        prefix, number = re.fullmatch(r"(.*?)(\d*)", name).groups()
        type_, count = self.declared.get(prefix, (None, None))
        if type_ is None or (count is None) != (number == "") or (number and int(number) >= count):
            raise Unknown(f"register {name!r}")
        self.used[name] = type_
        return type_

    def _read(self, operand, type_, narrowed=False):
        """The C++ of an operand, of this type; narrowed: of the low bits of a register."""
        c_type = C_TYPES[type_]
        if operand in SPECIAL and type_ == "u32":
            return SPECIAL[operand]
        if re.fullmatch(r"%\w+", operand):
            own = self._register(operand)
            if C_TYPES[own] == c_type:
                return _identifier(operand)
            if WIDTHS[own] == WIDTHS[type_] or (narrowed and _wider(own, type_)):
                convert = f"as<{c_type}>" if "f" in own + type_ else c_type
                return f"{convert}({_identifier(operand)})"
        elif found := re.fullmatch(r"0(f[0-9A-F]{8}|d[0-9A-F]{16})", operand, re.IGNORECASE):
            if 4 * len(found[1]) - 4 == WIDTHS[type_]:
                return f"as<{c_type}>({'uint64_t' if len(found[1]) > 9 else 'uint32_t'}(0x{found[1][1:]}u))"
        elif re.fullmatch(r"-?\d+", operand):
            value, bits = int(operand), WIDTHS[type_]
            if "f" not in type_ and -(2 ** (bits - 1)) <= value < 2**bits:
                return f"{c_type}({value % 2**bits}u)"
        elif operand in self.symbols and type_ in ("u32", "u64", "b64"):
            return f"{c_type}({self._symbol(operand, 'shared' if type_ == 'u32' else None)})"
        raise Unknown(f"operand {operand!r} of type {type_}")

    def _symbol(self, name, space):
        own, address = self.symbols.get(name, (None, None))
        if own is None or (space and own != space):
            raise Unknown(f"symbol {name!r} in {space or 'memory'}")
        self.has_dynamic |= address == "dynamic"
        return address

    def _write(self, operand, type_, value, widened=False):
        """The C++ of an assignment to a register; widened: which may be wider than the type."""
        own, c_type = self._register(operand), C_TYPES[type_]
        if WIDTHS[own] != WIDTHS[type_] and not (widened and _wider(own, type_)):
            raise Unknown(f"operand {operand!r} of type {type_}")
        if C_TYPES[own] != c_type:
            value = f"as<{C_TYPES[own]}>({c_type}({value}))" if "f" in own + type_ else f"{c_type}({value})"
        return f"{_identifier(operand)} = {value};"

    def _address(self, operand, space):
        """The C++ of the address in brackets."""
        found = re.fullmatch(r"\[(%?[\w$]+)(?:\+(-?\d+))?\]", operand)
        if not found:
            raise Unknown(f"address {operand!r}")
        if found[1].startswith("%"):
            own, offset = self._register(found[1]), int(found[2] or 0)
            if own != "b64" and (own, space) != ("b32", "shared"):
                raise Unknown(f"address {operand!r} in {space}")
            at = f"{C_TYPES[own]}({_identifier(found[1])} + {offset % 2 ** WIDTHS[own]}u)"
        else:
            at = f"({self._symbol(found[1], space)} + {int(found[2] or 0)})"
        return f"shared + {at}" if space == "shared" else at

    def _vector(self, operand, elements):
        parts = _split(operand[1:-1]) if operand.startswith("{") else [operand]
        if len(parts) != elements:
            raise Unknown(f"operand {operand!r} of {elements} elements")
        return parts

    # ---- Instructions

    def _instruction(self, text):
        found = re.fullmatch(r"(?:@(!?%p\d+) )?([\w.:]+) ?(.*)", text)
        if found is None:
            raise Unknown(f"statement {text!r}")
        guard, opcode, rest = found.groups()
        operands = _split(rest)
        if opcode in RULES and "{" not in rest:
            out = self._computed(opcode, operands)
        elif opcode in ("mov.b32", "mov.b64"):
            out = self._packed(int(opcode[-2:]), operands)
        elif opcode in ACCESSES:
            out = self._access(ACCESSES[opcode], operands)
        elif opcode in PRODUCTS:
            out = self._product(*PRODUCTS[opcode], operands)
        elif opcode in WARPGROUP:
            out = self._warpgroup_product(*WARPGROUP[opcode], operands)
        elif opcode in _OTHERS:
            out = _OTHERS[opcode](self, opcode, operands)
        else:
            raise Unknown(f"instruction {opcode!r}")
        if guard is None:
            return out
        condition = self._read(guard.lstrip("!"), "pred")
        return f"if ({'!' if guard.startswith('!') else ''}{condition}) {{ {out} }}"

    def _computed(self, opcode, operands):
        rule, narrowed = RULES[opcode], opcode.startswith("cvt.")
        if len(operands) != 1 + len(rule.operands):
            raise Unknown(f"{len(operands)} operands of {opcode}")
        values = [self._read(*x, narrowed) for x in zip(operands[1:], rule.operands, strict=True)]
        return self._write(operands[0], rule.result, rule.value.format(*values), narrowed)

    def _packed(self, bits, operands):
        """A register from its parts, or parts from their register."""
        to, of = operands
        if of.startswith("{"):
            parts = _split(of[1:-1])
            part = bits // len(parts)
            values = [f"uint64_t({self._read(x, f'u{part}')}) << {i * part}" for i, x in enumerate(parts)]
            return self._write(to, f"b{bits}", " | ".join(values))
        parts = _split(to[1:-1])
        part = bits // len(parts)
        whole = self._read(of, f"b{bits}")
        values = [f"{C_TYPES[f'u{part}']}(whole >> {i * part})" for i in range(len(parts))]
        writes = [self._write(x, f"u{part}", value) for x, value in zip(parts, values, strict=True)]
        return f"{{ const auto whole = {whole}; {' '.join(writes)} }}"

    def _access(self, access, operands):
        at, values = operands if access.store else reversed(operands)
        c_type, parts = C_TYPES[access.type], self._vector(values, access.elements)
        at_ = "at_shared" if access.store and access.space == "shared" else "at"
        pointer = f"{at_}<{c_type}, {access.elements}>({self._address(at, access.space)})"
        if access.store:
            lines = [f"memory[{i}] = {self._read(x, access.type, True)};" for i, x in enumerate(parts)]
        else:
            lines = [self._write(x, access.type, f"memory[{i}]", True) for i, x in enumerate(parts)]
        return f"{{ {c_type}* const memory = {pointer}; {' '.join(lines)} }}"

    def _product(self, type_, function, operands):
        d, a, b, c = (self._vector(x, n) for x, n in zip(operands, (4, 4, 2, 4), strict=True))
        sums = ", ".join(self._read(x, type_) for x in c)
        factors = (", ".join(self._read(x, "u32") for x in matrix) for matrix in (a, b))
        named = zip(("a[]", "b[]"), factors, strict=True)
        arrays = " ".join(f"const uint32_t {name} = {{{values}}};" for name, values in named)
        writes = [self._write(x, type_, f"d[{i}]") for i, x in enumerate(d)]
        return f"{{ {C_TYPES[type_]} d[] = {{{sums}}}; {arrays} {function}(d, a, b); {' '.join(writes)} }}"

    def _warpgroup_product(self, rows, with_sign, operands):
        d, a = (self._vector(x, n) for x, n in zip(operands[:2], (rows // 2, 4), strict=True))
        if others := [x for x in (*d, *a) if self._register(x) != "b32"]:
            raise Unknown(f"registers {others}")
        sums, factor = (", ".join(f"&{_identifier(x)}" for x in registers) for registers in (d, a))
        matrix, added = (self._read(x, type_) for x, type_ in zip(operands[2:], ("u64", "pred"), strict=True))
        arrays = f"uint32_t* const d[] = {{{sums}}}; const uint32_t* const a[] = {{{factor}}};"
        return f"{{ {arrays} begin_product<{with_sign}>(d, a, matrix_at(shared, {matrix}, {added}), {rows}); }}"

    def _branch(self, _, operands):
        (label,) = operands
        return f"goto {_identifier(label)};"

    def _return(self, _, operands):
        if operands:
            raise Unknown(f"ret {operands}")
        return "return;"

    def _trap(self, _, __):
        return 'die("__trap()");'

    def _barrier(self, _, operands):
        if operands != ["0"]:
            raise Unknown(f"barrier {operands}")
        return f'barrier("{self.module.name}", {self.module.line()});'

    def _shuffle(self, opcode, operands):
        source = {"idx": "kLane", "bfly": "kXor"}[opcode.split(".")[2]]
        to, value, lane, segment, mask = operands
        to, _, valid = to.partition("|")
        arguments = ", ".join(self._read(x, "u32") for x in (value, lane, segment, mask))
        out = self._write(to, "u32", f'exchanged<Source::{source}>("{opcode}", {arguments})')
        return f"{out} {self._write(valid, 'pred', 'true') if valid else ''}"

    def _vote(self, opcode, operands):
        to, predicate, mask = operands
        ballot = f'ballot("{opcode}", {self._read(mask, "u32")}, {self._read(predicate, "pred")})'
        if opcode == "vote.sync.any.pred":
            return self._write(to, "pred", f"{ballot} != 0")
        return self._write(to, "u32", ballot)

    def _copy(self, _, operands):
        to, of, size, read = operands
        if size != "16":
            raise Unknown(f"cp.async of {size} bytes")
        addresses = f"{self._address(to, 'shared')}, {self._address(of, 'global')}"
        return f"copy_16({addresses}, {self._read(read, 'u32')});"

    def _alone(self, opcode, operands):
        if operands:
            raise Unknown(f"{opcode} {operands}")
        return f"{_ALONE[opcode]}();"

    def _wait(self, opcode, operands):
        (groups,) = operands
        what = "products" if opcode.startswith("wgmma") else "copies"
        return f"wait_for_{what}({self._read(groups, 'u32')});"

    def _call(self, _, operands):
        if [x.replace(" ", "") for x in operands] != ["(retval0)", "vprintf", "(param0,param1)"]:
            raise Unknown(f"call {operands}")
        return "retval0 = print(param0, param1);"

    def text(self, name):
        if self.has_dynamic:
            self.shared_bytes = -(-self.shared_bytes // 16) * 16
        registers = [f"{C_TYPES[x]} {_identifier(name)} = unset<{C_TYPES[x]}>;" for name, x in self.used.items()]
        memory = "const uint64_t shared = address_of(block.dynamic_shared);"
        lines = [memory, f"constexpr uint64_t dynamic = {self.shared_bytes};", *self.variables.values(), *registers]
        return "\n".join([f"void {name}(const void* const* parameters) {{", *lines, *self.lines, "}"])


_OTHERS = {
    "bra": _Function._branch,
    "bra.uni": _Function._branch,
    "ret": _Function._return,
    "trap": _Function._trap,
    "bar.sync": _Function._barrier,
    "shfl.sync.idx.b32": _Function._shuffle,
    "shfl.sync.bfly.b32": _Function._shuffle,
    "vote.sync.any.pred": _Function._vote,
    "vote.sync.ballot.b32": _Function._vote,
    "cp.async.cg.shared.global": _Function._copy,
    "cp.async.wait_group": _Function._wait,
    "wgmma.wait_group.sync.aligned": _Function._wait,
    "call.uni": _Function._call,
    **dict.fromkeys(_ALONE, _Function._alone),
}


class Module:
    """A PTX file, translated: `cpp`; the symbols of its `entries`; the number of `instructions`."""

    def __init__(self, text, name, architecture):
        self.name, self.architecture = name, architecture
        self.symbols, self.shared, self.constants, self.functions, self.table = {}, [], [], [], []
        self.entries, self.instructions = [], 0
        self.text, self.at = re.sub(r"//[^\n]*", "", text), 0
        try:
            while self._skip() < len(self.text):
                self._item()
        except ValueError as error:  # also of another number of operands than is unpacked
            raise Unknown(f"{name}:{self.line()}: {error}") from None
        using = [f"using namespace tandem{x};" for x in ("", "::host", "::host::ptx")]
        inside = ["namespace {", *self.constants, *self.functions, *self.table, "}  // namespace"]
        self.cpp = "\n\n".join(['#include "ptx.h"', "\n".join(using), *inside, ""])

    def _skip(self):
        """Go on behind white space."""
        self.at = re.compile(r"\s*").match(self.text, self.at).end()
        return self.at

    def line(self):
        return self.text.count("\n", 0, self.at) + 1

    def _item(self):
        for pattern, take in _ITEMS.items():
            if found := re.compile(pattern).match(self.text, self.at):
                take(self, found)
                self.at = max(self.at, found.end())
                return
        raise Unknown(f"{self.text[self.at :].splitlines()[0]!r}")

    def _nothing(self, _):
        pass

    def _target(self, found):
        if found[1] != self.architecture:
            raise Unknown(f"target {found[1]}, expected {self.architecture}")

    def _dynamic(self, found):
        self.symbols[found[1]] = "shared", "dynamic"

    def _static(self, found):
        self.shared.append((found[2], int(found[3]), int(found[1])))

    def _constant(self, found):
        align, symbol, size, values = found.groups()
        self.constants.append(f"alignas({align}) const unsigned char {_identifier(symbol)}[{size}] = {{{values}}};")
        self.symbols[symbol] = "global", f"address_of({_identifier(symbol)})"

    def _entry(self, found):
        symbol, name = found[1], f"entry_{len(self.entries)}"
        function, sizes = _Function(self, dict(self.symbols)), []
        for parameter in map(str.strip, found[2].split(",") if found[2].strip() else []):
            of = re.fullmatch(r"\.param (?:\.align \d+ )?\.[bsuf](\d+) ([\w$]+)(?:\[(\d+)\])?", parameter)
            if of is None:
                raise Unknown(f"parameter {parameter!r}")
            function.symbols[of[2]] = "param", f"address_of(parameters[{len(sizes)}])"
            sizes.append(str(int(of[1]) // 8 * int(of[3] or 1)))
        limit = re.fullmatch(r"\s*(?:\.maxntid (\d+), 1, 1)?(\s*\.minnctapersm \d+)?\s*", found[3])
        if limit is None:
            raise Unknown(f"directives of an entry {found[3].strip()!r}")
        body = self.text[found.end() : self.text.index("\n}", found.end())]
        for variable in self.shared:
            if re.search(rf"(?<![\w$]){re.escape(variable[0])}(?![\w$])", body):
                function.add_shared(*variable)
        self.at = found.end()
        self._statements(function, found.end() + len(body))
        self.functions.append(function.text(name))
        arguments = [f'"{symbol}"', name, str(function.shared_bytes), limit[1] or "1024", f"{{{', '.join(sizes)}}}"]
        self.table.append(f"const Entry {name}_of_table({', '.join(arguments)});")
        self.entries.append(symbol)
        self.instructions += function.instructions

    def _statements(self, function, end):
        while self._skip() < end:
            if self.text[self.at] in "{}":  # the parameters of a call are in a scope of their own
                self.at += 1
            elif found := re.compile(r"([$\w]+):").match(self.text, self.at):
                function.lines.append(f"{_identifier(found[1])}:;")
                self.at = found.end()
            else:
                stop = self.text.index(";", self.at)
                function.statement(" ".join(self.text[self.at : stop].split()))
                self.at = stop + 1
        self.at = end + 2


_ITEMS = {
    r"\.version [\d.]+|\.address_size 64": Module._nothing,
    r"\.target (\w+)": Module._target,
    r"\.extern \.func\s+\(\.param \.b32 \w+\) vprintf\s*\((\s*\.param \.b64 \w+,?){2}\s*\)\s*;": Module._nothing,
    r"\.extern \.shared \.align 16 \.b8 ([\w$]+)\[\];": Module._dynamic,
    r"\.shared \.align (\d+) \.b8 ([\w$]+)\[(\d+)\];": Module._static,
    r"\.global \.align (\d+) \.b8 ([\w$]+)\[(\d+)\] = \{([\d, ]+)\};": Module._constant,
    r"(?:\.weak |\.visible )?\.entry ([\w$]+)\(([^)]*)\)([^{]*)\{": Module._entry,
}
