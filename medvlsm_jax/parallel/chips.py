"""What an accelerator can do at best, from its vendor's data sheet: for utilisation in logs and for estimates.

TPUs: the tables "Key chip specifications" of docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e; those give the
interconnect of a chip over both directions, here it is one. The clock is the peak over the operations of a cycle: 4 x
128 x 128 multiply-adds in a v5e, 8 x 128 x 128 in a v5p, 4 x 256 x 256 in a v6e. The compiler's cycles agree: for a
matrix product of 4096 x 4096 it expects 97, 96 and 87 % of the peak.
GPUs: NVIDIA's data sheets of A100, H100 and H200 (SXM), without sparsity; the interconnect is NVLink, one direction.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
        name: as its vendor calls it.
        flops: dense bfloat16 operations a second.
        memory: bytes of HBM.
        bandwidth: of that memory, bytes a second.
        interconnect: bytes a second that it can send to other chips, over all its links together.
        clock: cycles a second of a TPU's cores; 0 where nothing is estimated.
        vector: operations a cycle of a TPU's vector units, four of 8 x 128 lanes a core.
        torus: axes along which TPUs are linked; 0 for a GPU.
        wraps_from: length from which an axis of a slice is closed to a ring.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    interconnect: float
    clock: float = 0
    vector: float = 0
    torus: int = 0
    wraps_from: int = 0


V4 = Chip("TPU v4", 275e12, 32e9, 1228e9, 300e9)
V5E = Chip("TPU v5e", 197e12, 16e9, 819e9, 200e9, clock=1.5e9, vector=4096, torus=2, wraps_from=16)
V5P = Chip("TPU v5p", 459e12, 95e9, 2765e9, 600e9, clock=1.75e9, vector=8192, torus=3, wraps_from=4)
V6E = Chip("TPU v6e", 918e12, 32e9, 1600e9, 400e9, clock=1.75e9, vector=4096, torus=2, wraps_from=16)
A100 = Chip("A100 80GB", 312e12, 80e9, 2039e9, 300e9)
H100 = Chip("H100 SXM", 989e12, 80e9, 3350e9, 450e9)
H200 = Chip("H200 SXM", 989e12, 141e9, 4800e9, 450e9)

CHIPS = {  # by the device_kind that jax reports
    "TPU v4": V4,
    "TPU v5 lite": V5E,
    "TPU v5e": V5E,
    "TPU v5": V5P,
    "TPU v5p": V5P,
    "TPU v6 lite": V6E,
    "TPU v6e": V6E,
    "NVIDIA A100-SXM4-80GB": A100,
    "NVIDIA H100 80GB HBM3": H100,
    "NVIDIA H200": H200,
}


def find_chip(device_kind: str) -> Chip | None:
    """The chip that jax calls `device_kind`; None where its peaks are not known, as a CPU's."""
    return CHIPS.get(device_kind)
