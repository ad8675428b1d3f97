"""The kernels without a GPU: in Triton's interpreter on the CPU, and compiled ahead of time for four kinds of GPU."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
triton_passes = pytest.importorskip("superpose.core.triton_passes")
ROOT = Path(__file__).parents[2]
TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
KERNELS = {
    f"{kernel.__name__} {dtype}{' bias cap' if more else ''}": (kernel, dtype, more)
    for kernel in (triton_passes._read, triton_passes._write)
    for dtype, more in (("bf16", False), ("bf16", True), ("fp32", False))
}


def in_a_process(*arguments, interpret):
    """Triton reads what it is to do when it is imported, which other tests' packages may have done."""
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    environment = {**os.environ, "TRITON_INTERPRET": str(int(interpret)), "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )


def test_in_the_interpreter_they_are_what_they_should_be():
    tests = Path(__file__).with_name("triton_interpreted.py")
    done = in_a_process("-m", "pytest", tests, "-n", "0", "-p", "no:cacheprovider", interpret=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("target", TARGETS)
def test_compiled_for_a_gpu_nothing_spills_and_memory_is_read_in_vectors(target):
    """Within 64 registers four programs of 256 threads and more are on a multiprocessor of 65,536."""
    done = in_a_process(__file__, target, interpret=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == KERNELS.keys()
    for name, used in found.items():
        assert used["spilled"] == 0, (name, used)
        assert used["registers"] <= 64, (name, used)
        assert used["shared_bytes"] <= 2048, (name, used)
        # The block of a row's logits: 16 bytes a thread and load.
        entry_bytes = 4 if "fp32" in name else 2
        threads = triton_passes.NUM_WARPS * TARGETS[target][2]
        assert used["vector_loads"] >= triton_passes.BLOCK * entry_bytes // threads // 16, (name, used)


def compiled(kernel, dtype, more, target):
    """A kernel as it is launched for V 128,256 and bags of 8, for a GPU that need not be there: what it uses."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {"HAS_BIAS": more, "HAS_CAP": more, "TARGETS": 8, "BLOCK": triton_passes.BLOCK}
    if "VECTOR" in kernel.arg_names:
        constants["VECTOR"] = 4 if dtype == "fp32" else 8
    types = {"logits": f"*{dtype}", "bias": f"*{dtype}", "places": "*i64", "softcap": "fp32"}
    types |= dict.fromkeys(("row_stride", "vocab_size", "bag_size", "blocks"), "i32")
    types |= dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "*fp32") for name in kernel.arg_names}
    # What a launch finds out of pointers and sizes: that 16 divides them.
    aligned = [name for name, kind in signature.items() if kind[0] == "*"] + ["row_stride", "vocab_size"]
    divisible = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(kernel, signature, constants, divisible)
    built = triton.compile(source, target=GPUTarget(*target), options={"num_warps": triton_passes.NUM_WARPS})
    if target[0] == "hip":
        text = built.asm["amdgcn"]
        numbers = {name: int(number) for name, number in re.findall(r"\.(\w+):\s+(\d+)$", text, re.MULTILINE)}
        return {
            "registers": numbers["vgpr_count"],
            "spilled": numbers["vgpr_spill_count"] + numbers["sgpr_spill_count"],
            "shared_bytes": built.metadata.shared,
            "vector_loads": len(re.findall("(?:global|buffer)_load_dwordx4", text)),
        }
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(built.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        said = subprocess.run([tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True)
    numbers = {name: int(number) for name, number in re.findall(r"(\w+):(\d+)", said.stdout)}
    return {
        "registers": numbers["REG"],
        "spilled": numbers["STACK"] + numbers["LOCAL"],
        "shared_bytes": max(numbers["SHARED"], built.metadata.shared),
        "vector_loads": len(re.findall(r"ld\.global\S*\.v4\.b32", built.asm["ptx"])),
    }


if __name__ == "__main__":
    target = TARGETS[sys.argv[1]]
    print(json.dumps({name: compiled(*kernel, target) for name, kernel in KERNELS.items()}))
