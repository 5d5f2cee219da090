"""What nvcc makes of the CUDA kernels, run on the host in place of their source."""

import re
import subprocess

import pytest

import host_programs
from digests import check_elsewhere, every_network
from elsewhere import CUDA_ENGINES, Programs
from exact import nightly
from host_programs import FROM_PTX, ROOT, TESTS, PtxHost, sources_of
from product_calls import check_calls, product_calls, value_calls
from ptx import RULES, WIDTHS, Module, Unknown

SOURCES = sorted((ROOT / "csrc").glob("ops/*/*.cu"))
CALLS_AT_ONCE = 300  # a process may not take forever
PROGRAMS = [name for name in FROM_PTX if name in TESTS]


@pytest.fixture(scope="session")
def ptx_host(shared_folder):
    """f(architecture): its programs."""
    if reason := host_programs.obstacle() or (not host_programs.nvcc() and host_programs.NO_NVCC):
        pytest.skip(reason)
    made = {}

    def f(architecture):
        if architecture not in made:
            made[architecture] = PtxHost(shared_folder / "ptx", architecture)
        return made[architecture]

    yield f
    for each in made.values():
        each.pool.shutdown(cancel_futures=True)


@pytest.fixture
def host_with_bug(ptx_host, tmp_path):
    """f(header, old, new): programs for sm_90, with one thing in a header changed."""

    def f(header, old, new):
        text = (ROOT / "csrc/cuda" / header).read_text()
        assert old in text
        (tmp_path / "cuda").mkdir()
        (tmp_path / "cuda" / header).write_text(text.replace(old, new, 1))
        return PtxHost(tmp_path / "programs", "sm_90", tmp_path)

    return f


def assert_passes(host, name, variant, *arguments):
    result = host.run(name, variant, *arguments, order="rand")
    assert (result.returncode, result.stderr) == (0, ""), result.stdout + result.stderr


# ---- The translator

HEAD = ".version 9.0\n.target sm_90\n.address_size 64\n"
BODY = """
.entry kernel(.param .u64 kernel_param_0)
{
.reg .pred %p<3>;
.reg .b16 %rs<4>;
.reg .b32 %r<8>;
.reg .b64 %rd<4>;
.reg .f32 %f<4>;
STATEMENT
ret;
}
"""


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("add.sat.s32 %r1, %r2, %r3;", "instruction 'add.sat.s32'"),
        ("add.f32 %f1, %f2, %f3;", "instruction 'add.f32'"),
        ("add.rz.f32 %f1, %f2, %f3;", "instruction 'add.rz.f32'"),
        ("add.rn.ftz.f32 %f1, %f2, %f3;", "instruction 'add.rn.ftz.f32'"),
        ("fma.rn.f32 %f1, %f2, %f3, %f1;", "instruction 'fma.rn.f32'"),
        ("shl.b8 %rs1, %rs2, %r1;", "instruction 'shl.b8'"),
        ("ld.global.nc.u32 %r1, [%rd1];", "instruction 'ld.global.nc.u32'"),
        ("ld.u32 %r1, [%rd1];", "instruction 'ld.u32'"),
        ("ld.global.v8.u32 %r1, [%rd1];", "instruction 'ld.global.v8.u32'"),
        ("atom.global.add.u32 %r1, [%rd1], %r2;", "instruction 'atom.global.add.u32'"),
        ("setp.lt.and.s32 %p1, %r1, %r2, %p2;", "instruction 'setp.lt.and.s32'"),
        ("setp.lt.u32 %p1|%p2, %r1, %r2;", "%p1|%p2"),
        ("shfl.sync.up.b32 %r1, %r2, %r3, %r4, %r5;", "instruction 'shfl.sync.up.b32'"),
        ("vote.sync.all.pred %p1, %p2, %r1;", "instruction 'vote.sync.all.pred'"),
        ("add.s32 %r1, {%r2, %r3;", "operands '%r1, {%r2, %r3'"),
        ("%r1 = %r2;", "statement '%r1 = %r2'"),
        ("vote.sync.any.pred %p1, %p2;", "values to unpack"),
        ("membar.gl;", "instruction 'membar.gl'"),
        ("bar.sync 1;", "barrier ['1']"),
        ("bar.sync 0, 64;", "barrier ['0', '64']"),
        ("cp.async.ca.shared.global [%r1], [%rd1], 16, %r2;", "instruction 'cp.async.ca.shared.global'"),
        ("cp.async.cg.shared.global [%r1], [%rd1], 8, %r2;", "cp.async of 8 bytes"),
        ("fence.proxy.async.global;", "instruction 'fence.proxy.async.global'"),
        ("wgmma.fence.sync.aligned 1;", "wgmma.fence.sync.aligned ['1']"),
        ("wgmma.mma_async.sync.aligned.m64n8k32.s32.s8.s8 %r1, %r2, %rd1, %p1;", "m64n8k32.s32.s8.s8"),
        (
            "wgmma.mma_async.sync.aligned.m64n8k32.s32.u8.s8 {%r1, %r2, %r3, %rd1}, {%r1, %r2, %r3, %r4}, %rd1, %p1;",
            "registers ['%rd1']",
        ),
        ("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 %r1, %r2, %r3, %r4;", "s32.s8.s8.s32"),
        ("call.uni (retval0), malloc, (param0);", "call"),
        ("mov.u32 %r1, %laneid;", "'%laneid'"),
        ("mov.u32 %r1, %clock;", "'%clock'"),
        ("mov.u32 %r1, %tid.w;", "'%tid.w'"),
        ("mov.u64 %rd1, %tid.x;", "'%tid.x'"),
        ("mov.u32 %r1, table;", "operand 'table'"),
        ("mov.u32 %r1, 4294967296;", "operand '4294967296' of type u32"),
        ("mov.f32 %f1, 1;", "operand '1' of type f32"),
        ("mov.u32 %r1, %rd1;", "operand '%rd1' of type u32"),
        ("mov.u64 %rd1, %r1;", "operand '%r1' of type u64"),
        ("add.s32 %rd1, %r1, %r2;", "operand '%rd1' of type u32"),
        ("add.s32 %r1, %r2;", "2 operands of add.s32"),
        ("add.s32 %r1, %r2, %r8;", "register '%r8'"),
        ("add.s32 %r1, %r2, %x1;", "register '%x1'"),
        ("ld.global.u32 %r1, [%r2];", "address '[%r2]' in global"),
        ("ld.shared.u32 %r1, [kernel_param_0];", "symbol 'kernel_param_0' in shared"),
        ("ld.global.v2.u32 {%r1, %r2, %r3}, [%rd1];", "of 2 elements"),
        (".reg .b128 %q<2>;", "registers of type 'b128'"),
        (".const .align 4 .b8 table[4];", "directive '.const .align 4 .b8 table[4]'"),
        ('.pragma "enable_smem_spilling";', "directive"),
    ],
)
def test_unknown_is_an_error(statement, message):
    assert Module(HEAD + BODY.replace("STATEMENT", ""), "a.ptx", "sm_90").entries == ["kernel"]
    with pytest.raises(Unknown, match=rf"^a\.ptx:12: .*{re.escape(message)}"):
        Module(HEAD + BODY.replace("STATEMENT", statement), "a.ptx", "sm_90")


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (".const .align 4 .b8 table[4] = {1, 2, 3, 4};", "'.const"),
        (".global .align 4 .u32 counter;", "'.global"),
        (".func helper() { ret; }", "'.func"),
        (".entry kernel() .reqntid 32, 1, 1 { ret; }", "'.reqntid 32, 1, 1'"),
        (".entry kernel(.param .texref image) { ret; }", "parameter '.param .texref image'"),
        (".target sm_80", "target sm_80, expected sm_90"),
    ],
)
def test_unknown_in_a_file_is_an_error(item, message):
    with pytest.raises(Unknown, match=rf"^a\.ptx:4: .*{re.escape(message)}"):
        Module(HEAD + item, "a.ptx", "sm_90")


# ---- Instructions

NAN, THREE, LARGE = "0f7FC00000", "0f40400000", "0f5F000000"
# What the PTX ISA says: bits of results, in Python's integers.
VALUES = [
    ("add.s32", "2147483647, 1", 0x80000000),
    ("sub.u16", "0, 1", 0xFFFF),
    ("mul.lo.s16", "-300, 300", -90000 & 0xFFFF),
    ("mul.lo.s64", "4294967296, 4294967297", 1 << 32),
    ("mul.wide.s32", "-2, 3", -6 & 2**64 - 1),
    ("mul.wide.u32", "4294967295, 4294967295", (2**32 - 1) ** 2),
    ("mul.wide.u16", "65535, 65535", 65535**2),
    ("mul.hi.s64", "-1, 2", 2**64 - 1),
    ("mad.lo.s32", "65536, 65537, -1", 65535),
    ("div.s32", "-7, 2", -3 & 0xFFFFFFFF),
    ("rem.s32", "-7, 2", -1 & 0xFFFFFFFF),
    ("div.u32", "4294967289, 2", 0xFFFFFFF9 // 2),
    ("rem.s64", "-9223372036854775808, -1", 0),
    ("neg.s32", "-2147483648", 0x80000000),
    ("min.s64", "-1, 1", 2**64 - 1),
    ("max.u32", "4294967295, 1", 0xFFFFFFFF),
    ("not.b16", "255", 0xFF00),
    ("shl.b32", "1, 31", 0x80000000),
    ("shl.b32", "1, 32", 0),
    ("shl.b16", "511, 8", 0xFF00),
    ("shr.s32", "-8, 1", -4 & 0xFFFFFFFF),
    ("shr.s32", "-8, 40", 0xFFFFFFFF),
    ("shr.u64", "-1, 64", 0),
    ("popc.b32", "255", 8),
    ("brev.b32", "6", 0x60000000),
    ("bfind.shiftamt.u32", "1", 31),
    ("bfind.shiftamt.u32", "0", 0xFFFFFFFF),
    ("bfi.b32", "255, 0, 4, 3", 0x70),
    ("bfi.b32", "0, -1, 30, 8", 0x3FFFFFFF),
    ("prmt.b32", "1144201745, -2003195205, 29986", 0x88AA3333),
    ("prmt.b32", "33023, 0, 12712", 0x008000FF),
    ("cvt.u32.u64", "8589934593", 1),
    ("cvt.s64.s32", "-1", 2**64 - 1),
    ("cvt.u64.u32", "-1", 2**32 - 1),
    ("cvt.rzi.s32.f32", "0fBFE66666", -1 & 0xFFFFFFFF),
    ("cvt.rzi.s32.f32", LARGE, 0x7FFFFFFF),
    ("cvt.rzi.s32.f32", "0fDF000000", 0x80000000),
    ("cvt.rzi.s32.f32", NAN, 0),
    ("cvt.rni.f32.f32", "0f3FC00000", 0x40000000),
    ("cvt.rni.f32.f32", "0fC0200000", 0xC0000000),
    ("cvt.rn.f32.s64", "16777217", 0x4B800000),
    ("cvt.rn.f32.u32", "-1", 0x4F800000),
    ("cvt.rn.f64.s32", "-1", 0xBFF0000000000000),
    ("add.rn.f32", "0f3F800000, 0f33800000", 0x3F800000),
    ("div.rn.f32", f"0f3F800000, {THREE}", 0x3EAAAAAB),
    ("rcp.rn.f32", THREE, 0x3EAAAAAB),
    ("sqrt.rn.f32", THREE, 0x3FDDB3D7),
    ("neg.f32", "0f00000000", 0x80000000),
    ("setp.lt.s32", "-1, 1", 1),
    ("setp.lt.u32", "-1, 1", 0),
    ("setp.eq.f32", f"{NAN}, {NAN}", 0),
    ("setp.ge.f32", f"{NAN}, {THREE}", 0),
    ("setp.leu.f32", f"{NAN}, {THREE}", 1),
    ("setp.gtu.f32", f"{NAN}, {THREE}", 1),
    ("setp.gtu.f32", f"{THREE}, {THREE}", 0),
    ("selp.b32", "5, 6, 0", 6),
    ("mov.b32", "{1, 2}", 0x20001),
    ("mov.b64", "{1, -1}", 0xFFFFFFFF00000001),
]
# Entries with a fault each, and what is said of it.
FAULTS = {
    "misaligned": ("st.global.u32 [%rd1+2], %r1;", "PTX: a misaligned address"),
    "division": ("mov.u32 %r1, 0; div.s32 %r2, %r1, %r1; st.global.u32 [%rd1], %r2;", "PTX: division by 0"),
    "trap": ("trap;", "__trap()"),
    "divergent": (
        "mov.u32 %r1, %tid.x; setp.eq.s32 %p1, %r1, 0; @%p1 bra one; bar.sync 0; bra two; one: bar.sync 0; two:",
        "divergent barrier",
    ),
    "segment": ("shfl.sync.idx.b32 %r1|%p1, %r2, 0, 7, -1;", "shfl.sync.idx.b32: a segment other than the warp"),
    "read": ("cp.async.cg.shared.global [%r1], [%rd1], 16, 8;", "cp.async: neither none nor all of the bytes"),
    "copy": ("mov.u32 %r1, 0; cp.async.cg.shared.global [%r1], [%rd1], 16, 16;", "cp.async: a thread ends with"),
    "threads": ("", "more threads than its launch bounds"),
    "sizes": ("", "disagree about the sizes of parameters"),
    "missing": ("", "nvcc made no entry of this kernel"),
}
KERNELS = ["values", *FAULTS]
REGISTERS = {16: "%rs1", 32: "%r1", 64: "%rd2"}


def entry(name, statements, parameter="u64"):
    mangled = f"_Z{len(name) + 7}{name}_kernelPm"
    head = f".entry {mangled}(.param .{parameter} at) .maxntid 32, 1, 1"
    registers = ".reg .pred %p<2>; .reg .b16 %rs<2>; .reg .b32 %r<3>; .reg .b64 %rd<3>; .reg .f32 %f<2>;"
    registers += " .reg .f64 %fd<2>;"
    first = "ld.param.u64 %rd1, [at];" if parameter == "u64" else ""
    return "\n".join([head, "{", registers, first, statements, "ret;", "}", ""])


def values_entry():
    """Stores the results, 8 bytes each."""
    lines = []
    for i, (opcode, operands, _) in enumerate(VALUES):
        type_ = RULES[opcode].result
        register = {"pred": "%p1", "f32": "%f1", "f64": "%fd1"}.get(type_) or REGISTERS[WIDTHS[type_]]
        lines.append(f"{opcode} {register}, {operands};")
        if type_ == "pred":
            lines.append("selp.u32 %r1, 1, 0, %p1;")
            type_, register = "u32", "%r1"
        lines.append(f"st.global.{type_} [%rd1+{8 * i}], {register};")
    return entry("values", "\n".join(lines))


PROGRAM = """
#include <inttypes.h>

#include "cuda_host.h"

DECLARED
int main(int, char** argv) {
  const size_t results = strtoul(argv[2], nullptr, 10);
  auto* const out = static_cast<uint64_t*>(calloc(results, sizeof(uint64_t)));
  const unsigned threads = strcmp(argv[1], "threads") == 0 ? 33 : strcmp(argv[1], "values") == 0 ? 1 : 32;
  LAUNCHES
  for (size_t i = 0; i < results; ++i) printf("%" PRIu64 "\\n", out[i]);
  free(out);
}
"""


@pytest.fixture(scope="session")
def made_by_hand(ptx_host, tmp_path_factory):
    """f(kernel, variant, results): runs an entry of this file."""
    folder = tmp_path_factory.mktemp("by_hand")
    entries = [entry(name, text, "u32" if name == "sizes" else "u64") for name, (text, _) in FAULTS.items()]
    text = HEAD + values_entry() + "".join(x for x in entries if "missing" not in x).replace("; ", ";\n")
    source = folder / "by_hand.cpp"
    launch = 'if (strcmp(argv[1], "{0}") == 0) TANDEM_LAUNCH({0}_kernel, 1, threads, 16, nullptr, out);'
    declared = "".join(f"void {name}_kernel(uint64_t*);\n" for name in KERNELS)
    launches = "\n  ".join(launch.format(name) for name in KERNELS)
    source.write_text(PROGRAM.replace("DECLARED", declared).replace("LAUNCHES", launches))
    host = PtxHost(folder / "programs", "sm_90")

    def f(kernel, variant, results):
        objects = host.object(source, variant, "-DTANDEM_HOST_PTX"), host.translated(text, "by_hand", variant)
        command = [host.linked("by_hand", variant, *objects), kernel, str(results)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return f


def test_values_of_instructions(made_by_hand):
    result = made_by_hand("values", "plain", len(VALUES))
    got = dict(zip(VALUES, map(int, result.stdout.split()), strict=True))
    assert {case: bits for case, bits in got.items() if bits != case[2]} == {}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_found(made_by_hand, name):
    result = made_by_hand(name, "plain", 2)
    assert result.returncode == 3, result.stdout + result.stderr
    assert FAULTS[name][1] in result.stderr


@pytest.mark.nightly
def test_access_out_of_bounds_is_found(made_by_hand):
    assert "ERROR: AddressSanitizer" in made_by_hand("values", "asan", len(VALUES) - 1).stderr
    assert made_by_hand("values", "asan", len(VALUES)).stderr == ""


# ---- All kernels


def test_programs_run_every_kernel():
    assert set(SOURCES) <= {source for name in FROM_PTX for source in sources_of(name)}
    assert set(TESTS) - set(PROGRAMS) == {"launch_error_test"}  # which launches nothing


@pytest.mark.parametrize("name", ["integer_fragments_test", "warpgroup_fragments_test", "max_pool_spikes_test"])
def test_small_programs(ptx_host, name):
    host = ptx_host("sm_90")
    assert_passes(host, name, "plain")
    assert host.launched("plain") >= set().union(*map(host.entries, sources_of(name)))


@pytest.mark.nightly
@pytest.mark.parametrize(("architecture", "variant"), [("sm_80", "plain"), ("sm_90", "plain"), ("sm_90", "asan")])
def test_every_entry(ptx_host, tmp_path, architecture, variant):
    """Every program finds nothing wrong, and no entry is left out."""
    host = ptx_host(architecture)
    for name in PROGRAMS:
        assert_passes(host, name, variant)
    calls = product_calls() + value_calls()
    for i in range(0, len(calls), CALLS_AT_ONCE):
        check_calls(host, calls[i : i + CALLS_AT_ONCE], tmp_path, variant, "rand")
    entries = set().union(*map(host.entries, SOURCES))
    assert len(entries) >= 200
    assert entries - host.launched(variant) == set()


@pytest.mark.nightly
@pytest.mark.parametrize("engine", CUDA_ENGINES.values(), ids=CUDA_ENGINES)
@every_network
def test_trained_networks(ptx_host, tmp_path, name, engine):
    pytest.importorskip("safetensors")

    def run(*command):
        result = ptx_host("sm_90").run(command[0], "plain", *command[1:], order="rand")
        assert (result.returncode, result.stdout, result.stderr) == (0, "1 calls\n", "")

    check_elsewhere(name, Programs(tmp_path, run, engine))


# ---- Faults that the source on the host does not have: there, other functions stand for PTX

INTEGER, COPIES = ("device.cuh", "integer_fragments_test"), ("device.cuh", "copies_test")
WARPGROUP = ("warpgroup.cuh", "warpgroup_fragments_test")
STRIDES = "by_rows / 16) << 32 | static_cast<uint64_t>(by_depth / 16) << 16"
BUGS = {
    "registers of A": (INTEGER, '"r"(a.x), "r"(a.y)', '"r"(a.y), "r"(a.x)'),
    "registers of B": (INTEGER, '"r"(b0), "r"(b1)', '"r"(b1), "r"(b0)'),
    "registers of sums": (INTEGER, "{%0,%1,%2,%3};", "{%0,%1,%3,%2};"),
    "sign of integers": (INTEGER, "s32.s8.u8.s32", "s32.u8.u8.s32"),
    "groups in flight": (COPIES, '"n"(kInFlight)', '"n"(kInFlight + 1)'),
    "bytes of a copy": (COPIES, "valid ? 16 : 0", "16"),
    "no group": (COPIES, "cp.async.commit_group;", ""),
    "warpgroup: registers of A": (WARPGROUP, '"r"(a[0]), "r"(a[1])', '"r"(a[1]), "r"(a[0])'),
    "warpgroup: registers of sums": (WARPGROUP, "%0,%1,%2,%3", "%0,%2,%1,%3"),
    "warpgroup: sign of integers": (WARPGROUP, "m64n32k32.s32.u8.s8", "m64n32k32.s32.u8.u8"),
    "warpgroup: strides": (
        WARPGROUP,
        STRIDES,
        STRIDES.replace("rows", "_").replace("depth", "rows").replace("_ ", "depth "),
    ),
    "warpgroup: groups in flight": (WARPGROUP, '"n"(kInFlight)', '"n"(kInFlight + 1)'),
    "warpgroup: no group": (WARPGROUP, "wgmma.commit_group.sync.aligned;", ""),
    "warpgroup: no fence of registers": (WARPGROUP, "wgmma.fence.sync.aligned;", ""),
    "warpgroup: no fence of matrices": (WARPGROUP, "fence.proxy.async.shared::cta;", ""),
}


@pytest.mark.parametrize("bug", [bug if bug == "registers of B" else nightly(bug) for bug in BUGS])
def test_bug_in_ptx_is_found(host_with_bug, bug):
    (header, program), old, new = BUGS[bug]
    result = host_with_bug(header, old, new).run(program, "plain")
    assert result.returncode != 0, result.stdout + result.stderr
