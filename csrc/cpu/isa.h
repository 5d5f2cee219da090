// Instruction sets: what was compiled, what this processor runs, what is in use. Torch-free.
#pragma once

#include <string>
#include <vector>

namespace tandem {

struct Kernels;

std::vector<std::string> compiled_isas();
// Those of the compiled ones that this processor has, in ascending order, capped by TANDEM_CPU_ISA.
std::vector<std::string> runnable_isas();
std::string active_isa();
// Throws std::invalid_argument for a name that is not runnable.
void set_active_isa(const std::string& name);

const Kernels& kernels();

}  // namespace tandem
