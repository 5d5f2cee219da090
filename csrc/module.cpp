// tandem_cuda._C, all that knows Python: it loads the operator library, whose static objects register the operators
// with torch, says what that was built with and what runs here, and shows the neuron step to NumPy. No torch header
// here: this file uses pip's pybind11, not the copy that torch bundles.
#include <dlfcn.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "interface.h"
#include "neuron/models.h"

namespace py = pybind11;

namespace {

const TandemCuda& library() {
  static const TandemCuda& loaded = *tandem_cuda_interface();
  return loaded;
}

// Throws what the library says of a call that failed.
template <class T>
T checked(T result) {
  if (!result) throw py::value_error(library().error());
  return result;
}

// The file that the operators come from.
std::string library_path() {
  Dl_info info;
  return dladdr(&library(), &info) ? info.dli_fname : "";
}

py::object list_of(const char* names) { return py::str(names).attr("split")(); }

py::dict build_info() {
  py::dict info;
  info["version"] = library().version;
  info["torch_built_against"] = library().torch_built_against;
  info["torch_stable_abi"] = library().torch_stable_abi;
  info["compiler"] = library().compiler;
  info["cpu_isas_compiled"] = list_of(checked(library().cpu_isas_compiled()));
  info["cpu_isas_runnable"] = list_of(checked(library().cpu_isas_runnable()));
  info["cpu_isa"] = checked(library().cpu_isa());
  info["cuda_toolkit"] = library().cuda_toolkit;  // null becomes None
  info["cuda_architectures"] = list_of(library().cuda_architectures);
  info["cuda_not_built_because"] = library().cuda_not_built_because;
  info["cuda_driver"] = library().cuda_driver();
  return info;
}

template <class... Args>
std::string joined(const Args&... args) {
  std::ostringstream text;
  (text << ... << args);
  return text.str();
}

// Checks the parameters of a neuron model, as the operators do, which need torch for it.
tandem::Neuron checked_neuron(int kind, const std::vector<double>& parameters) {
  if (kind < 0 || kind >= tandem::kModelCount) {
    throw py::value_error(
        joined("integrate_and_fire: neuron must be from 0 to ", tandem::kModelCount - 1, ", got ", kind));
  }
  tandem::Neuron neuron = {};
  neuron.kind = kind;
  tandem::visit_model<tandem::Scalar<double>>(neuron, [&](const auto& model) {
    if (static_cast<int>(parameters.size()) != model.kParameterCount) {
      throw py::value_error(joined("integrate_and_fire: parameters of ", model.kName, " must be ",
                                   model.kParameterCount, " numbers, got ", parameters.size()));
    }
    for (int i = 0; i < model.kParameterCount; ++i) {
      const tandem::Parameter& parameter = model.kParameters[i];
      if (!parameter.holds(parameters[i])) {
        throw py::value_error(
            joined("integrate_and_fire: ", parameter.name, " must be ", parameter.rule, ", got ", parameters[i]));
      }
      neuron.parameters[i] = parameters[i];
    }
  });
  return neuron;
}

// current: [T, n] -> spikes [T, n] of 0 and 1, neuron by neuron: nothing shared with the kernels but the step.
template <class T>
py::array_t<uint8_t> simulate(const py::array_t<T, py::array::c_style>& current, const tandem::Neuron& neuron) {
  const py::ssize_t steps = current.shape(0);
  const py::ssize_t neurons = current.shape(1);
  py::array_t<uint8_t> spikes({steps, neurons});
  const auto x = current.template unchecked<2>();
  auto s = spikes.template mutable_unchecked<2>();
  tandem::visit_model<tandem::Scalar<T>>(neuron, [&](const auto& model) {
    for (py::ssize_t i = 0; i < neurons; ++i) {
      T state[std::decay_t<decltype(model)>::kStates];
      for (int v = 0; v < model.kStates; ++v) state[v] = model.start(v);
      for (py::ssize_t t = 0; t < steps; ++t) s(t, i) = model.step(state, x(t, i)) >= model.threshold;
    }
  });
  return spikes;
}

py::array_t<uint8_t> integrate_and_fire(const py::array& current, int kind, const std::vector<double>& parameters) {
  if (current.ndim() != 2) {
    throw py::value_error(joined("integrate_and_fire: current must have 2 dimensions [T, n], got ", current.ndim()));
  }
  const tandem::Neuron neuron = checked_neuron(kind, parameters);
  if (py::isinstance<py::array_t<float>>(current)) return simulate<float>(current, neuron);
  if (py::isinstance<py::array_t<double>>(current)) return simulate<double>(current, neuron);
  throw py::type_error(joined("integrate_and_fire: current must be float32 or float64, got ",
                              py::str(current.dtype()).cast<std::string>()));
}

// memory: (address, bytes) of tensors on the CPU.
uint64_t fingerprint(const std::vector<std::pair<uintptr_t, size_t>>& memory) {
  uint64_t hash = 0;
  for (const auto& [address, bytes] : memory) {
    // NOLINTNEXTLINE(performance-no-int-to-ptr): what Tensor.data_ptr() returns
    hash = library().fingerprint(reinterpret_cast<const void*>(address), bytes, hash);
  }
  return hash;
}

void prefer_huge_pages(uintptr_t address, size_t bytes) {
  // NOLINTNEXTLINE(performance-no-int-to-ptr): what Tensor.data_ptr() returns
  library().prefer_huge_pages(reinterpret_cast<void*>(address), bytes);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  if (library().version != std::string(TANDEM_VERSION)) {
    throw py::import_error(joined(library_path(), " is of version ", library().version, ", ",
                                  "the Python module of version ", TANDEM_VERSION));
  }
  if (library().size != sizeof(TandemCuda)) {
    throw py::import_error(joined(library_path(), " is of another build of version ", TANDEM_VERSION,
                                  " than the Python module: its interface has ", library().size, " bytes, not ",
                                  sizeof(TandemCuda)));
  }
  m.doc() = "What Python needs of the operator library. Importing it registers the operators torch.ops.tandem_cuda.";
  m.attr("__version__") = TANDEM_VERSION;
  m.attr("library_path") = library_path();
  m.def("build_info", &build_info, "What was compiled, with what, and which instruction set is in use.");
  m.def(
      "cpu_isa", [] { return checked(library().cpu_isa()); },
      "The instruction set that the CPU kernels use, one of build_info()['cpu_isas_runnable']. ValueError if "
      "TANDEM_CPU_ISA is none of those compiled.");
  m.def(
      "set_cpu_isa", [](const std::string& name) { checked(library().set_cpu_isa(name.c_str())); }, py::arg("name"),
      "Use the CPU kernels of this instruction set from now on. ValueError for one that cannot run here.");
  m.def("fingerprint", &fingerprint, py::arg("memory"),
        "A hash of the memory at [(address, bytes), ...]: of all of it up to 4 MiB each, of 16 KiB of samples beyond.");
  m.def("prefer_huge_pages", &prefer_huge_pages, py::arg("address"), py::arg("bytes"),
        "Ask the system to back memory that has not been written to by pages of 2 MiB.");
  m.def("integrate_and_fire", &integrate_and_fire, py::arg("current"), py::arg("neuron"), py::arg("parameters"),
        "The neuron loop on a NumPy array [T, n] of float32 or float64, for debugging without torch: spikes [T, n], "
        "uint8. neuron and parameters: as in the operators.");
}
