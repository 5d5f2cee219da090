"""Compile a frozen network ahead of time, for programs without Python.

python examples/cpp/export.py NET.safetensors NET.pt2 1 28 28
"""

import argparse

import torch
from torch.export import Dim

from tandem_cuda import FrozenNetwork


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("network", help="what FrozenNetwork.save wrote")
    parser.add_argument("package", help="what to write; its name ends in .pt2")
    parser.add_argument("size", type=int, nargs="+", help="of one sample: channels, height and width of an image")
    arguments = parser.parse_args()
    network = FrozenNetwork.load(arguments.network)
    batch = {0: Dim("batch")}  # the first dimension may have any size
    exported = torch.export.export(network, (torch.rand(2, *arguments.size),), dynamic_shapes=(batch,))
    torch._inductor.aoti_compile_and_package(exported, package_path=arguments.package)


if __name__ == "__main__":
    main()
