// The kernels for avx512vbmi2; the build sets the flags.
#define TANDEM_ISA avx512vbmi2
#include "cpu/table.inl.h"
