// The kernels for scalar; the build sets the flags.
#define TANDEM_ISA scalar
#include "cpu/table.inl.h"
