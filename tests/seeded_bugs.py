"""One-line faults, each with a test that must find it: a test of the tests.

``python -m tests.seeded_bugs`` (``make seeded-bugs``) makes each fault in a copy of the repository and runs its test
there, which must fail. Before, it runs all tests without a fault: they must pass. ``--language python`` takes minutes;
``--language c++`` builds the library anew for each fault, with the scalar kernels alone. ``--only TEXT`` takes the
faults whose file or description contains the text.
"""

import argparse
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Bug(NamedTuple):
    """A fault, by the text that it changes: once in the file."""

    what: str
    file: str
    old: str
    new: str
    test: str
    """The arguments of pytest, relative to tests/."""

    @property
    def language(self):
        return "python" if self.file.endswith(".py") else "c++"

    @property
    def path(self):
        return ("tandem_cuda/" if self.language == "python" else "csrc/") + self.file

    def __str__(self):
        return f"{self.path}: {self.what}"


BUGS = [
    # --- Python: layers ---
    Bug("bias not divided by T", "nn/drive.py",
        "return bias if bias is None or steps == 1 else divided(bias, steps)", "return bias",
        "test_joins.py::test_one_layer_as_two_branches"),
    Bug("currents multiplied by thresholds", "nn/drive.py",
        "whole.times(1 / ", "whole.times(1 * ",
        "test_calibration.py::test_levels_of_layers_and_channels_can_be_mixed"),
    Bug("eps over the factor, not its square", "nn/coupling.py",
        "norm.eps / self.factor**2", "norm.eps / self.factor",
        "test_more_layers.py::test_training"),
    Bug("variance without what parts differ by", "nn/all_processes.py",
        "(variances + (means - whole).square()) * counts", "variances * counts",
        "test_tandem_norm_count.py::test_statistics_of_all"),
    Bug("sums of one process's part of the batch", "nn/all_processes.py",
        "torch.distributed.all_reduce(sums, group=ctx.group)", "pass",
        "test_tandem_norm_count.py::test_a_layer_with_half_of_a_batch"),
    Bug("shift behind batch norm not in learned units", "nn/coupling.py",
        "gamma, beta = gamma * self.scale, beta * self.scale", "gamma = gamma * self.scale",
        "test_learn_threshold.py::test_layers_are_those_of_the_reference"),
    Bug("batch norm of the negative neurons", "nn/drive.py",
        "positive = v.movedim(features, -1)[..., ::2]", "positive = v.movedim(features, -1)[..., 1::2]",
        "test_convert_layers.py::test_networks"),
    Bug("bound of the gradient without the factor in v", "nn/coupling.py",
        "neuron.upper(steps, scale)", "neuron.upper(steps)",
        "test_layer_training.py::test_clip"),
    Bug("value of the ANN not taken off", "nn/coupling.py",
        "+ (ann - ann.detach())", "+ ann",
        "test_pooling_layers.py::test_pooling"),
    Bug("weight of a spike lost in training", "nn/coupling.py",
        "amplitude, radix = neuron.amplitude_at(steps), neuron.radix", "amplitude, radix = 1.0, neuron.radix",
        "test_convert_layers.py::test_networks"),
    Bug("bias of radix neurons spread over the steps", "neuron/radix_if.py",
        "return 1\n", "return steps\n",
        "test_radix_layers.py::test_layers"),
    Bug("statistics of the batch forgotten", "nn/tandem.py",
        "return v.couple(v.fire(synapses.features))\n        with torch.no_grad():\n            now = drive.of",
        "pass\n        with torch.no_grad():\n            now = drive.of",
        "test_radix_layers.py::test_training"),
    Bug("range of radix neurons that grows with T", "neuron/radix_if.py",
        "math.ldexp(self.level, -steps)", "math.ldexp(self.level, -4)",
        "test_radix_if.py::test_every_t_has_the_same_range"),
    Bug("counts of radix spikes read for values", "nn/synapses.py",
        "if x.code.radix:", "if False:",
        "test_radix_layers.py::test_layers"),
    Bug("radix corrections shrink like thresholds of counts", "convert/network.py",
        "2.0 ** (before - time_steps) if neuron.radix else", "before / time_steps if neuron.radix else",
        "test_radix_networks.py::test_corrections_shrink"),
    Bug("negative neurons of a real value driven by the value", "nn/neurons.py",
        "return interleaved(x, -x, dim)", "return interleaved(x, x, dim)",
        "test_neurons_layer.py::test_as_the_reference"),
    Bug("real values divided by thresholds along the wrong dimension", "nn/neurons.py",
        "x / (self.thresholds if dim == -1 else self.thresholds.view(-1, *[1] * (x.dim() - 2)))", "x / self.thresholds",
        "test_neurons_layer.py::test_thresholds_of_channels"),
    Bug("weight of an identity's spikes forgotten", "nn/add.py",
        "parts.append(value_of(x))", "parts.append(x.value)",
        "test_joins.py::test_joins"),
    Bug("bias of a join not in learned units", "nn/add.py",
        "bias=None if bias is None else bias * scale", "bias=bias",
        "test_learn_threshold.py::test_joins"),
    Bug("divisor without the padding behind the image", "nn/average_pool.py",
        "stop = min(start + kernel, size + padding)", "stop = min(start + kernel, size)",
        "test_pooling_layers.py::test_pooling"),
    Bug("adaptive windows end too early", "nn/average_pool.py",
        "(i * size // n, -(-(i + 1) * size // n))", "(i * size // n, (i + 1) * size // n)",
        "test_pooling_layers.py::test_pooling"),
    Bug("gradient of a pooling not divided by its threshold", "nn/average_pool.py",
        "return mean / self.threshold", "return mean",
        "test_pooling_layers.py::test_pooling_has_the_gradient_of_torch"),
    Bug("sides of a window added up", "nn/average_pool.py",
        "override or r * c", "override or r + c",
        "test_pooling_layers.py::test_pooling"),
    Bug("slices of a kernel in the opposite order", "nn/convolution.py",
        "for at in range(0, self._extent(0), dilation)", "for at in range(self._extent(0) - 1, -1, -dilation)",
        "test_more_layers.py::test_convolutions"),
    Bug("counts of pooled slices not carried to the next chunk", "nn/pool3d.py",
        "((state[0].flatten(0, 1),), state[1:])", "((state[0].flatten(0, 1),), None)",
        "test_every_layer.py::test_frozen"),
    Bug("weights kept for another T", "nn/weight_cache.py",
        "self.state == state and self.settings == settings", "self.state == state",
        "test_layer_changes.py::test_time_steps_take_turns"),
    Bug("weights kept though their memory changed", "nn/weight_cache.py",
        "return _C.fingerprint(memory), _versions(tensors)", "return 0, _versions(tensors)",
        "test_weight_cache.py::test_changes_behind_autograd"),
    Bug("rounded weights one below the range", "nn/quantiser.py",
        ".clamp_(-self.largest, self.largest)", ".clamp_(-self.largest - 1, self.largest)",
        "test_quantisation.py::test_scale_is_the_best_of_those_tried"),
    # --- Python: neurons ---
    Bug("leak after the reset", "neuron/lif.py",
        "u = (self.leak * u - self.threshold * (u >= self.threshold).to(x.dtype)) + x",
        "u = self.leak * (u - self.threshold * (u >= self.threshold).to(x.dtype)) + x",
        "test_reference_rates.py"),
    Bug("saturation of another leak", "neuron/lif.py",
        "return self.threshold * (2 - self.leak)", "return self.threshold * (1 + self.leak)",
        "test_neuron.py::test_saturation"),
    Bug("rate of a neuron that forgets everything", "neuron/lif.py",
        "    threshold_current = threshold * (1 - leak)", "    threshold_current = threshold * leak",
        "test_reference_rates.py"),
    Bug("time constant of the leak, not of what it leaves", "neuron/lif.py",
        '"tau": dt / (1 - self.leak)', '"tau": dt / self.leak',
        "test_neuron.py::test_nir"),
    Bug("slope of a saturating rate not squared", "neuron/if_.py",
        "(steps * self.threshold))).square()", "(steps * self.threshold)))",
        "test_neuron.py::test_slope_is_the_derivative_of_the_activation"),
    Bug("refractory steps count below zero", "neuron/if_.py",
        "(left - 1).clamp(min=0)", "(left - 1)",
        "test_neuron.py -k step_is_that"),
    Bug("no spike at the threshold itself", "neuron/if_.py",
        "return (u >= self.threshold).to(x.dtype), (u,)", "return (u > self.threshold).to(x.dtype), (u,)",
        "test_joins.py::test_joins"),
    # --- Python: operators ---
    Bug("currents of one sample with the strides of a view, on CUDA", "ops/step_product.py",
        "return sums.view(time_steps, bits.shape[1], *sums.shape[1:]).movedim(-1, 1 + channel_dim)",
        "return product.unflatten(0, (time_steps, bits.shape[1]))",
        "test_cuda_operators.py::test_small_batches"),
    Bug("gradient of values as that of the level", "ops/tandem_count.py",
        "IF(neuron.threshold_at(time_steps))", "IF(neuron.level)",
        "test_radix_spikes.py::test_tandem_count"),
    Bug("a current of one time step for all of them", "ops/integrate_and_fire.py",
        '1 if mode == "once" else time_steps', "1",
        "test_radix_spikes.py::test_integrate_and_fire"),
    Bug("gradient of a bias of one step", "ops/product_gradient.py",
        "bias * ctx.time_steps", "bias",
        "test_more_layers.py::test_convolutions"),
    Bug("gradient multiplied by what it should be divided by", "ops/product_gradient.py",
        "unit / scale).view(shape)", "unit * scale).view(shape)",
        "test_product_gradients.py::test_gradients_of_scaled_products"),
    Bug("weights behind integers get no gradient", "ops/product_gradient.py",
        "needs[2] or needs[at]", "needs[2]",
        "test_product_gradients.py::test_gradients_of_scaled_products"),
    Bug("gradient of the variance without the normal value", "ops/tandem_norm_count.py",
        "- normal * along.mean(others, keepdim=True)", "- along.mean(others, keepdim=True)",
        "test_tandem_norm_count.py::test_gradient_of_the_gradient"),
    Bug("biased running variance under vmap", "ops/update_statistics.py",
        "momentum * count / (count - 1)", "momentum",
        "test_update_statistics.py::test_ensembles"),
    Bug("gradient of the variance without its 2", "ops/fold_norm.py",
        "-of_g * g / (2 * variance)", "-of_g * g / variance",
        "test_fold_norm.py::test_gradients"),
    Bug("gradient of the bias of all steps", "ops/fold_norm.py",
        "grad_bias / ctx.time_steps", "grad_bias",
        "test_fold_norm.py::test_gradients"),
    # --- Python: conversion, files, data ---
    Bug("percentile one too low", "convert/calibrate.py",
        "math.ceil(self.percentile / 100 * values.shape[1])", "int(self.percentile / 100 * (values.shape[1] - 1))",
        "test_calibration.py::test_percentiles_of_channels"),
    Bug("level of least error without the initial potential", "convert/calibrate.py",
        "count = (values / threshold + self.initial).floor_()", "count = (values / threshold).floor_()",
        "test_calibration.py::test_levels_have_the_least_error"),
    Bug("correction with the wrong sign", "convert/corrections.py",
        "correction = correction + mean - ", "correction = correction - mean + ",
        "test_calibration.py::test_corrections_match_means_and_leave_the_ann_alone"),
    Bug("a layer without an activation computed on real values before the last one", "convert/conversion.py",
        "of_weights = isinstance(x, Current) and any(branch.layer is not None for branch in x.branches)",
        "of_weights = False",
        "test_spike_train.py::test_layers_without_a_relu_give_pairs"),
    Bug("states of samples that have stopped stay", "freeze/stream.py",
        "tuple(x[samples] for x in carried)", "tuple(x[: len(samples)] for x in carried)",
        "test_anytime.py::test_each_sample_stops_at_its_first_sure_look"),
    Bug("events at the start of a step in the step before", "events.py",
        'side="right") - 1', 'side="left") - 1',
        "test_events.py::test_reference"),
    Bug("steps of the next plane at the wrong bits", "spike_train.py",
        "following << (8 - shift)", "following << shift",
        "test_freeze.py::test_chunks_of_time_are_the_whole"),
    Bug("detached spikes keep the graph of their count", "spike_train.py",
        "value = None if self._value is None else self._value.detach()", "value = self._value",
        "test_spike_train.py"),
    Bug("average over the rows of a window alone", "exchange/nir_nodes.py",
        "share = 1 / math.prod(kernel)", "share = 1 / kernel[0]",
        "test_exchange_graphs.py::test_layers"),
    Bug("padding on one side alone", "exchange/nir_nodes.py",
        "n + 2 * p - d * (k - 1) - 1", "n + p - d * (k - 1) - 1",
        "test_exchange_graphs.py::test_layers"),
    Bug("factors of channels lost by a flattening", "exchange/nir_export.py",
        "value=out, scale=scale)", "value=out, scale=None)",
        "test_exchange_graphs.py::test_factors_of_channels"),
    Bug("sums of windows taken for means", "exchange/nir_export.py",
        "gain = x.gain if mean else out.amplitude", "gain = x.gain",
        "test_exchange_graphs.py::test_layers"),
    Bug("pairs flattened as if they lay apart", "exchange/nir_export.py",
        "if start == 0 and getattr", "if start > 0 and getattr",
        "test_exchange_errors.py::test_pairs_are_not_flattened"),
    Bug("the bias of one branch alone", "exchange/nir_export.py",
        "functools.reduce(torch.add, biases)", "biases[0]",
        "test_exchange_graphs.py::test_residual_network"),
    Bug("a layer's changed constant not noticed", "nn/prepared.py",
        "(tensor is not None and tensor._version != version)", "tensor is False",
        "test_prepared.py::test_constants_that_have_changed"),
    Bug("the kind of an input not compared", "nn/prepared.py",
        "_kind(x, self._by_size) != kind", "_kind(x, self._by_size) is None",
        "test_prepared.py::test_other_kinds_of_trains"),
    Bug("a layer's changed attribute not noticed", "nn/prepared.py",
        "not all(map(is_, get(attributes), values))", "False",
        "test_prepared.py::test_changed_attributes"),
    Bug("pixels of another mode run as those before", "nn/prepared.py",
        "return value.is_cpu, x.mode, value.dtype", "return value.is_cpu, value.dtype",
        "test_prepared.py::test_other_encodings"),
    Bug("branches of a sum broadcast", "nn/summands.py",
        "if a.shape != b.shape:", "if False:",
        "test_prepared.py::test_branches_that_do_not_agree"),
    # --- C++ ---
    Bug("pixels beside their place in the zeros around an image", "ops/ordered_product/cpu_kernels.h",
        "before = g.padding_w * g.in_channels", "before = g.padding_h * g.in_channels",
        "test_operators.py::test_is_the_reference_on_every_path -k ordered"),
    Bug("spikes of another branch weighed by other channels", "ops/radix_spikes/cpu_fire.h",
        "const int64_t channel = (neuron + i) % channels", "const int64_t channel = i % channels",
        "test_joins.py::test_threads_share_neurons_that_another_branch_joins"),
    Bug("initial potential not in thresholds", "neuron/if.h",
        "return initial * threshold;", "return initial;",
        "test_integrate_and_fire.py::test_matches_reference"),
    Bug("bias that batch norm cancels missing in the running mean", "ops/batch_norm/channel.h",
        "mean * by.part_mean", "scaled * by.part_mean",
        "test_update_statistics.py::test_is_the_reference"),
    Bug("spikes decided by the leaked potential", "neuron/lif.h",
        "N::subtract_spiked(leak * state[0], state[0], threshold)",
        "N::subtract_spiked(leak * state[0], leak * state[0], threshold)",
        "test_integrate_and_fire.py::test_matches_reference"),
    Bug("refractory periods end a step early", "neuron/refractory.h",
        "lower = before - N::of(1)", "lower = before - N::of(2)",
        "test_integrate_and_fire.py::test_matches_reference"),
    Bug("a plane too many for whole planes", "core/bit_planes.h",
        "(time_steps + kStepsPerPlane - 1) / kStepsPerPlane", "(time_steps + kStepsPerPlane) / kStepsPerPlane",
        "test_pack_spikes.py::test_matches_reference"),
    Bug("the first bit past T allowed", "core/bit_planes.h",
        "0xff << used", "0xfe << used",
        "test_past_end.py::test_refused"),
    Bug("half weights of half their size", "core/narrow_float.h",
        "(112u << 23)", "(111u << 23)",
        "test_pack_weight.py::test_every_16_bit_float"),
    Bug("bias not divided by T", "ops/batch_norm/channel.h",
        "centred + a.beta[c]) / a.time_steps;", "centred + a.beta[c]);",
        "test_fold_norm.py::test_every_choice_of_arguments"),
    Bug("eps forgotten", "ops/batch_norm/channel.h",
        "static_cast<double>(a.running_var[c] + a.eps)", "static_cast<double>(a.running_var[c])",
        "test_fold_norm.py::test_is_batch_norm_in_eval_mode"),
    Bug("variance times the unit, not its square", "ops/batch_norm/channel.h",
        "a.var[c] * a.unit[c] * a.unit[c]", "a.var[c] * a.unit[c]",
        "test_update_statistics.py::test_is_the_reference"),
    Bug("gate closed at its upper bound", "ops/tandem_count/tandem_count_backward.inl.h",
        "(v <= limit)", "(v < limit)",
        "test_tandem_count.py::test_borders test_tandem_count.py::test_backward_of_every_number"),
    Bug("gradient of gamma as that of beta", "ops/tandem_count/tandem_norm_count.inl.h",
        "along += g * normal;", "along += g;",
        "test_tandem_norm_count.py::test_gradient_is_that_of_batch_norm"),
    Bug("gradient through the variance with the wrong sign", "ops/tandem_count/tandem_norm_count.inl.h",
        "(g - mean - normal * along)", "(g - mean + normal * along)",
        "test_tandem_norm_count.py::test_gradient_is_that_of_batch_norm"),
    Bug("bytes of eight spikes counted as none", "ops/spike_train/bit_planes.inl.h",
        "(v + (v >> 4)) & 0x0F)", "(v + (v >> 4)) & 0x07)",
        "test_spike_count.py::test_every_byte"),
    Bug("time steps of a plane backwards", "ops/spike_train/bit_planes.inl.h",
        "1 << (t % kStepsPerPlane)", "0x80 >> (t % kStepsPerPlane)",
        "test_unpack_spikes.py::test_matches_reference_and_inverts_pack"),
    Bug("dilated windows begin in the padding", "ops/max_pool/max_pool_spikes.inl.h",
        "(dilation - 1 - start) / dilation", "-start / dilation",
        "test_max_pool_spikes.py::test_matches_reference"),
    Bug("rows of a dilated window side by side", "ops/max_pool/max_pool_spikes.inl.h",
        "g.dilation_h * g.width * g.in_channels", "g.width * g.in_channels",
        "test_max_pool_spikes.py::test_matches_reference"),
    Bug("largest weight among those above zero", "ops/quantise_weight/quantise_weight.inl.h",
        "std::max(most, bits & 0x7fffffff)", "std::max(most, bits)",
        "test_operators.py::test_is_the_reference_on_every_path -k quantise"),
    Bug("weights of a depthwise kernel turned by a quarter", "ops/product/cpu_depthwise.cpp",
        "tap / g.kernel_w * view.stride_h + tap % g.kernel_w * view.stride_w",
        "tap % g.kernel_w * view.stride_h + tap / g.kernel_w * view.stride_w",
        "test_depthwise.py::test_padding_beyond_the_image"),
    Bug("ones of radix spikes counted where their value is meant", "ops/product/cpu_dense.cpp",
        "if (plan.radix) {", "if (false) {",
        "test_products.py::test_values"),
    Bug("the same of depthwise products", "ops/product/cpu_depthwise.cpp",
        "args.values = plan.radix > 0", "args.values = false",
        "test_depthwise.py::test_sizes"),
    Bug("16 bits for sums of radix spikes that need 17", "ops/product/cpu_depthwise.cpp",
        "std::numeric_limits<int16_t>::max())", "2 * std::numeric_limits<int16_t>::max())",
        "test_depthwise.py::test_int8_values_at_the_limit_of_16_bits"),
    Bug("the first of a pair of inputs read twice", "ops/product/depthwise.inl.h",
        "numbers >> 8", "numbers",
        "test_depthwise.py::test_pairs_of_inputs"),
    Bug("the largest radix value one too large", "ops/radix_spikes/cpu_kernels.h",
        "static_cast<float>((1 << neurons.time_steps) - 1)", "static_cast<float>(1 << neurons.time_steps)",
        "test_radix_spikes.py::test_at_every_threshold"),
    Bug("values of radix spikes taken for no larger than counts", "ops/product/plan.h",
        "radix ? (int64_t{1} << radix) - 1 :", "radix ? kStepsPerPlane :",
        "test_depthwise.py::test_int8_values_at_the_limit_of_16_bits"),
    Bug("radix spikes in the order of time", "ops/radix_spikes/radix_spikes.inl.h",
        "broadcast(threshold), bit)", "broadcast(threshold), a.time_steps - 1 - bit)",
        "test_radix_spikes.py::test_every_spike_is_where_it_belongs"),
    Bug("NaN spells the largest number", "ops/radix_spikes/radix_spikes.inl.h",
        "return negative_nan<T>(u);", "return u;",
        "test_radix_spikes.py::test_at_every_threshold"),
    Bug("values of two planes", "ops/tandem_count/plan.cpp",
        "if (radix) check_radix_steps", "if (radix && time_steps < 1) check_radix_steps",
        "test_hostile.py -k tandem_count-radix"),
    Bug("impulses last for all steps", "ops/neuron_loop/integrate_and_fire.inl.h",
        "a.mode == CurrentMode::kConstant ? x :", "a.mode != CurrentMode::kSeries ? x :",
        "test_integrate_and_fire.py::test_matches_reference"),
]  # fmt: skip


def arguments(tests):
    """What pytest takes for the tests of a bug: node ids, then ``-k EXPRESSION``."""
    nodes, _, chosen = tests.partition(" -k ")
    return [f"tests/{node}" for node in nodes.split()] + (["-k", chosen] if chosen else [])


def check(bug, root=ROOT):
    """Why a bug cannot be made, or None."""
    found = (root / bug.path).read_text().count(bug.old)
    return None if found == 1 else f"{bug}: the text to change must occur once, got {found} times: {bug.old!r}"


class Copy:
    """A copy of the repository, with a library that is loaded from it."""

    def __init__(self, folder, language):
        self.root = folder / "repository"
        names = ("tandem_cuda", "tests", "csrc", "examples", "CMakeLists.txt", "pyproject.toml")
        for name in names:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, self.root / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
            else:
                shutil.copy(ROOT / name, self.root)
        self.builds = language == "c++"
        if not self.builds:
            for library in (ROOT / "tandem_cuda").glob("*.so"):
                (self.root / "tandem_cuda" / library.name).symlink_to(library)

    def build(self):
        """Compile the scalar kernels; returns whether that worked."""
        from tests.fuzz.sanitize import tool

        folder = self.root / "build"
        if not (folder / "build.ninja").exists():
            configure = ["-G", "Ninja", "-S", self.root, "-B", folder, f"-DPython_EXECUTABLE={sys.executable}"]
            configure += [f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", "-DTANDEM_CPU_ISAS="]
            # A variable that a bug leaves unused is none of its errors.
            configure += ["-DCMAKE_CXX_FLAGS_RELEASE=-O0 -DNDEBUG", "-DCMAKE_COMPILE_WARNING_AS_ERROR=OFF"]
            environment = {**os.environ, "TANDEM_CUDA": "OFF"}
            subprocess.run([tool("cmake"), *configure], check=True, env=environment, stdout=subprocess.DEVNULL)
        built = subprocess.run([tool("cmake"), "--build", folder], stdout=subprocess.DEVNULL, check=False)
        for library in folder.glob("*.so"):
            shutil.copy(library, self.root / "tandem_cuda")
        return built.returncode == 0

    def passes(self, tests):
        """Whether tests pass here: None if none ran, as where their file cannot be imported.

        In a child of this process, which need not load torch again.
        """
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            code = 3  # pytest's, of an internal error
            try:
                code = self._run(tests)
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        return {0: True, 1: False}.get(os.waitstatus_to_exitcode(status))

    def _run(self, tests):
        """Run tests in a new process; returns pytest's exit code."""
        import pytest

        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        os.chdir(self.root)
        for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
            del sys.modules[name]
        sys.path[0] = str(self.root)
        os.environ["PYTHONPATH"] = str(self.root)  # of programs that tests run
        sys.dont_write_bytecode = True  # files change within the second that bytecode notes
        quick = "not slow and not nightly and not gpu"
        return int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", quick, *tests]))

    def finds(self, bug):
        """What happens where the bug is made: "found", or what is wrong."""
        path = self.root / bug.path
        right = path.read_text()
        path.write_text(right.replace(bug.old, bug.new))
        try:
            if self.builds and not self.build():
                return "does not compile"
            return {True: "NOT FOUND", False: "found", None: "no test ran"}[self.passes(arguments(bug.test))]
        finally:
            path.write_text(right)


def run(bugs, language):
    """Make each bug in a copy and run its test. Returns lines on what is wrong."""
    for module in ("hypothesis", "pytest", "torch._dynamo"):  # which every test loads
        importlib.import_module(module)
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder), language)
        if copy.builds and not copy.build():
            return ["the library cannot be built"]
        every = dict.fromkeys(bug.test for bug in bugs)
        wrong += [f"without a bug, this must pass: {tests}" for tests in every if not copy.passes(arguments(tests))]
        for bug in bugs:
            start = time.monotonic()
            result = copy.finds(bug)
            print(f"{time.monotonic() - start:6.0f} s  {result}: {bug}", flush=True)
            if result != "found":
                wrong.append(f"{result}: {bug}")
    return wrong


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.seeded_bugs", description=__doc__)
    parser.add_argument("--language", choices=["python", "c++"], help="of the files; default both")
    parser.add_argument("--only", default="", help="a text in their file or description")
    parser.add_argument("--list", action="store_true", help="print them instead")
    chosen = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive")  # read when torch is loaded
    bugs = [bug for bug in BUGS if chosen.language in (None, bug.language) and chosen.only in str(bug)]
    if chosen.list:
        print(*bugs, sep="\n")
        return 0
    wrong = [reason for bug in bugs if (reason := check(bug))]
    for language in ("python", "c++"):
        wrong += run(of, language) if (of := [bug for bug in bugs if bug.language == language]) and not wrong else []
    print(*wrong, sep="\n")
    print(f"{len(bugs)} bugs, {len(wrong)} failures")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
