from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

class BuildInfo(TypedDict):
    version: str
    torch_built_against: str
    torch_stable_abi: str
    compiler: str
    cpu_isas_compiled: list[str]
    cpu_isas_runnable: list[str]
    cpu_isa: str
    cuda_toolkit: str | None
    cuda_architectures: list[str]
    cuda_not_built_because: str | None
    cuda_driver: str | None

__version__: str
library_path: str

def build_info() -> BuildInfo: ...
def cpu_isa() -> str: ...
def set_cpu_isa(name: str) -> None: ...
def fingerprint(memory: list[tuple[int, int]]) -> int: ...
def prefer_huge_pages(address: int, bytes: int) -> None: ...
def integrate_and_fire(
    current: NDArray[np.float32] | NDArray[np.float64], neuron: int, parameters: Sequence[float]
) -> NDArray[np.uint8]: ...
