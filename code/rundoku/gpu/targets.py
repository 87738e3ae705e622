"""The four targets that every kernel is compiled for, and the cards whose speed records are held against.

Limits per multiprocessor: CUDA C++ Programming Guide, "Compute Capabilities" (technical specifications), and for gfx942 the AMD CDNA 3
instruction set guide and LLVM's AMDGPU target. Peaks: the vendors' data sheets, dense (no structured sparsity), at boost clock.
"""

from dataclasses import dataclass

KIB = 1024
SCHEDULERS = 4  # of a multiprocessor (AMD: SIMDs of a compute unit), each with its own register file, on all four targets alike
LANE_REGISTERS = 512  # 32-bit registers that a scheduler's file has for each of its lanes: 65,536 / 4 / 32 on NVIDIA, 512 VGPRs on AMD
GRANULE = 8  # a thread's registers are handed out in steps of this


@dataclass(frozen=True)
class Target:
    """A GPU architecture as the compiler sees it."""

    name: str
    backend: str  # triton's: "cuda" or "hip"
    arch: int | str
    warp: int  # threads of a warp (AMD: wavefront)
    shared_block: int  # bytes of shared memory (LDS) that one block may ask for
    shared_unit: int  # bytes of shared memory of a multiprocessor (AMD: compute unit)
    shared_reserved: int  # bytes that the system takes of it for each block
    warps: int  # resident warps of a multiprocessor, at most
    blocks: int  # resident blocks of a multiprocessor, at most
    tensor_core: tuple[str, ...]  # its matrix instructions, newest first, as they stand in the assembly

    def occupancy(self, registers: int, shared: int, num_warps: int) -> float:
        """Return the resident warps as a share of the most there can be, for a block's registers per thread, bytes and warps."""
        if shared > self.shared_block:
            return 0.0
        per_thread = -(-max(registers, 1) // GRANULE) * GRANULE
        by_registers = LANE_REGISTERS // per_thread * SCHEDULERS // num_warps
        by_shared = self.shared_unit // max(shared + self.shared_reserved, 1)
        return min(by_registers, by_shared, self.blocks, self.warps // num_warps) * num_warps / self.warps


TARGETS = {
    "sm_80": Target("sm_80", "cuda", 80, 32, 163 * KIB, 164 * KIB, KIB, warps=64, blocks=32, tensor_core=("mma.sync",)),
    "sm_90": Target("sm_90", "cuda", 90, 32, 227 * KIB, 228 * KIB, KIB, warps=64, blocks=32, tensor_core=("wgmma.mma_async", "mma.sync")),
    "sm_100": Target("sm_100", "cuda", 100, 32, 227 * KIB, 228 * KIB, KIB, warps=64, blocks=32, tensor_core=("tcgen05.mma", "mma.sync")),
    "gfx942": Target("gfx942", "hip", "gfx942", 64, 64 * KIB, 64 * KIB, 0, warps=32, blocks=16, tensor_core=("v_mfma",)),
}


@dataclass(frozen=True)
class Card:
    """What a card can do at most: the two roofs of its roofline."""

    half: float  # FLOP/s in float16 and bfloat16, on the matrix units
    single: float  # FLOP/s in float32, on the plain units: not TF32
    bandwidth: float  # bytes/s
    source: str

    @property
    def flops(self) -> dict[str, float]:
        """Return the peak FLOP/s by dtype."""
        return {"float16": self.half, "bfloat16": self.half, "float32": self.single}


CARDS = {  # by the device name that the driver reports
    "NVIDIA A100-SXM4-80GB": Card(312e12, 19.5e12, 2.039e12, "NVIDIA A100 80GB data sheet (SXM)"),
    "NVIDIA H100 80GB HBM3": Card(989e12, 67e12, 3.35e12, "NVIDIA H100 data sheet (SXM)"),
    "NVIDIA H200": Card(989e12, 67e12, 4.8e12, "NVIDIA H200 data sheet (SXM)"),
    "NVIDIA B200": Card(2.25e15, 75e12, 8e12, "NVIDIA HGX B200 data sheet"),
    "AMD Instinct MI300X": Card(1.3074e15, 163.4e12, 5.3e12, "AMD Instinct MI300X data sheet"),
}

CARD_OF = {  # the card whose peaks stand for a target where none is at hand
    "sm_80": "NVIDIA A100-SXM4-80GB", "sm_90": "NVIDIA H100 80GB HBM3", "sm_100": "NVIDIA B200", "gfx942": "AMD Instinct MI300X",
}  # fmt: skip
