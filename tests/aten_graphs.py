"""Graphs of spiking layers and ATen calls, as convert makes them."""

import torch
from torch import fx, nn


class Function(nn.Module):
    def __init__(self, f, of=None):
        super().__init__()
        self.f, self.of = f, of

    def forward(self, *inputs):
        return self.f(*inputs) if self.of is None else self.f(self.of, *inputs)


class Spliced:
    """A graph to which layers and exported functions are added, one after the other."""

    def __init__(self, inputs=1):
        self.root, self.graph = nn.Module(), fx.Graph()
        self.inputs = [self.graph.placeholder(f"x{i}" if inputs > 1 else "x") for i in range(inputs)]

    def layer(self, name, module, *nodes):
        self.root.add_module(name, module)
        return self.graph.call_module(name, nodes)

    def layers(self, node, **modules):
        for name, module in modules.items():
            node = self.layer(name, module, node)
        return node

    def aten(self, f, nodes, examples, of=None):
        """Add the ATen calls of a function of tensors; ``of``: a module, the function's first argument."""
        batch = torch.export.Dim("batch")
        exported = torch.export.export(
            Function(f, of).eval(), tuple(examples), strict=False, dynamic_shapes=(tuple({0: batch} for _ in examples),)
        )
        values, given = {}, iter(nodes)
        signature = exported.graph_signature
        tensors = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        tensors |= signature.inputs_to_lifted_tensor_constants
        states = {**dict(exported.named_parameters()), **dict(exported.named_buffers()), **exported.constants}
        for node in exported.graph.nodes:
            if node.op == "placeholder" and node.name in tensors:
                name = f"constant_{len(self.root._buffers)}"
                self.root.register_buffer(name, states[tensors[node.name]].detach())
                values[node] = self.graph.get_attr(name)
            elif node.op == "placeholder":
                values[node] = next(given)
            elif node.op == "output":
                results = fx.map_arg(node.args[0], values.__getitem__)
            else:
                values[node] = self.graph.node_copy(node, values.__getitem__)
        return torch.utils._pytree.tree_unflatten(results, exported.call_spec.out_spec)

    def returning(self, output):
        self.graph.output(output)
        return fx.GraphModule(self.root, self.graph).eval()
