// The kernels for avx2; the build sets the flags.
#define TANDEM_ISA avx2
#include "cpu/table.inl.h"
