// The kernels for avx512; the build sets the flags.
#define TANDEM_ISA avx512
#include "cpu/table.inl.h"
