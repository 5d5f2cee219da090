#include "ops/product/packed_layout.h"

namespace tandem {

template <class E>
void check_packed(const char* op, const char* argument, const Tensor& packed, const Tensor& weight,
                  const ConvGeometry& g) {
  const Sizes expected = {packed_elements<E>(weight, g)};
  // On a CPU the instruction set may have changed since.
  const bool other = weight.is_cpu() && has_panels<E>(g) &&
                     (sizes_of(packed) == Sizes{packed_layout<E>(g).elements()} ||
                      sizes_of(packed) == Sizes{elements_with_panels<E>(g)});
  const bool fits = (sizes_of(packed) == expected || other) && packed.scalar_type() == packed_type<E>();
  TANDEM_CHECK(fits && packed.stride(0) == 1, op, argument, " must be what pack_weight returns for this weight, ",
               name_of(packed_type<E>()), " ", to_string(expected), ", contiguous, got ", name_of(packed.scalar_type()),
               " ", shape(packed));
}

template void check_packed<float>(const char*, const char*, const Tensor&, const Tensor&, const ConvGeometry&);
template void check_packed<double>(const char*, const char*, const Tensor&, const Tensor&, const ConvGeometry&);
template void check_packed<int8_t>(const char*, const char*, const Tensor&, const Tensor&, const ConvGeometry&);
template void check_packed<int16_t>(const char*, const char*, const Tensor&, const Tensor&, const ConvGeometry&);
template void check_packed<int32_t>(const char*, const char*, const Tensor&, const Tensor&, const ConvGeometry&);

}  // namespace tandem
