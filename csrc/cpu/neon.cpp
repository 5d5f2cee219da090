// The kernels for neon, with the intrinsics that every aarch64 processor has.
#define TANDEM_ISA neon
#define TANDEM_NEON
#include "cpu/table.inl.h"
