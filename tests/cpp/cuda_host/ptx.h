// What the instructions of PTX do, for the C++ that tests/ptx.py makes of what nvcc makes of kernels, and how a launch
// finds its entry. With TANDEM_HOST_PTX, TANDEM_LAUNCH runs entries instead of the kernels of the source.
//
// Shared memory is one array, as on a device: static variables first. Registers hold kUnset until they are written.
#pragma once

#include <cxxabi.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>
#include <string>
#include <tuple>
#include <type_traits>
#include <typeinfo>
#include <vector>

#include "cuda_host.h"
#include "warpgroup_host.h"

namespace tandem {

namespace host {

namespace ptx {

// ---- Entries

struct Entry {
  Entry(const char* symbol_, void (*run_)(const void* const*), size_t shared_bytes_, unsigned threads_,
        std::initializer_list<size_t> parameters_);

  const char* symbol;
  void (*run)(const void* const* parameters);
  size_t shared_bytes;             // static
  unsigned threads;                // of a block, at most
  std::vector<size_t> parameters;  // their bytes
};

inline std::vector<const Entry*>& entries() {
  static std::vector<const Entry*> all;
  return all;
}

inline Entry::Entry(const char* symbol_, void (*run_)(const void* const*), size_t shared_bytes_, unsigned threads_,
                    std::initializer_list<size_t> parameters_)
    : symbol(symbol_), run(run_), shared_bytes(shared_bytes_), threads(threads_), parameters(parameters_) {
  entries().push_back(this);
}

inline std::string demangled(const char* symbol) {
  int status = 0;
  const std::unique_ptr<char, decltype(&std::free)> name(abi::__cxa_demangle(symbol, nullptr, nullptr, &status),
                                                         &std::free);
  if (status != 0) die("not a mangled name", symbol);
  return name.get();
}

// Its name has the name of a kernel in it.
template <auto kKernel>
struct Kernel {};

// Whether a symbol is that of the kernel in the name of a Kernel: in demangled names all anonymous namespaces are
// alike. The kernel of a template has its signature there, another one does not.
inline bool names(const std::string& kernel, const char* symbol) {
  const std::string name = demangled(symbol), start = "tandem::host::ptx::Kernel<&";
  if (kernel == start + "(" + name + ")>") return true;
  const std::string without_signature = kernel.substr(start.size(), kernel.size() - start.size() - 1);
  return name.rfind(without_signature + "(", 0) == 0;
}

// The entry of a kernel. Writes its symbol to the file TANDEM_HOST_LAUNCHED; every kernel asks once.
inline const Entry& entry_of(const char* type) {
  const std::string kernel = demangled(type);
  for (const Entry* const entry : entries()) {
    if (!names(kernel, entry->symbol)) continue;
    if (const char* const path = std::getenv("TANDEM_HOST_LAUNCHED")) {
      FILE* const file = std::fopen(path, "a");
      if (file == nullptr) die("cannot be written", path);
      std::fprintf(file, "%s\n", entry->symbol);
      std::fclose(file);
    }
    return *entry;
  }
  die("nvcc made no entry of this kernel", kernel.c_str());
}

// Every parameter has memory of its own and no more of it than its type: a sanitizer sees a read of what lies behind.
template <class... Parameters, class... Args>
void run(const Entry& entry, void (**)(Parameters...), const char* name, dim3 grid, dim3 threads, size_t shared_bytes,
         const Args&... args) {
  const std::tuple<std::unique_ptr<Parameters>...> copies(std::make_unique<Parameters>(args)...);
  const auto addresses =
      std::apply([](const auto&... copy) { return std::vector<const void*>{copy.get()...}; }, copies);
  if (entry.parameters != std::vector<size_t>{sizeof(Parameters)...}) {
    die("the host and nvcc disagree about the sizes of parameters", name);
  }
  if (uint64_t{threads.x} * threads.y * threads.z > entry.threads) die("more threads than its launch bounds", name);
  launch_body(name, grid, threads, entry.shared_bytes + shared_bytes, [&] { entry.run(addresses.data()); });
}

template <auto kKernel, class... Args>
void launch_entry(const char* name, dim3 grid, dim3 threads, size_t shared_bytes, const Args&... args) {
  static const Entry& entry = entry_of(typeid(Kernel<kKernel>).name());
  std::remove_const_t<decltype(kKernel)>* const type = nullptr;
  run(entry, type, name, grid, threads, shared_bytes, args...);
}

// ---- Registers and memory

template <class To, class From>
To as(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To out;
  __builtin_memcpy(&out, &x, sizeof(out));
  return out;
}

// What a register holds before it is written: nothing that a result should depend on.
template <class T>
constexpr T unset =
    std::is_floating_point_v<T> ? std::numeric_limits<T>::quiet_NaN() : static_cast<T>(0x5a5a5a5a5a5a5a5a);
template <>
constexpr bool unset<bool> = false;

template <class T>
uint64_t address_of(const T* pointer) {
  return reinterpret_cast<uintptr_t>(pointer);
}

// Elements that one instruction reads or writes.
template <class T, unsigned kElements>
T* at(uint64_t address) {
  if (address % (sizeof(T) * kElements) != 0) die("a misaligned address", "PTX");
  return reinterpret_cast<T*>(address);
}

// The same of shared memory that is written.
template <class T, unsigned kElements>
T* at_shared(uint64_t address) {
  T* const out = at<T, kElements>(address);
  note_write(out, sizeof(T) * kElements);
  return out;
}

// ---- Instructions

template <class T>
T quotient(T a, T b) {
  if (b == 0) die("division by 0", "PTX");
  return std::is_signed_v<T> && b == static_cast<T>(-1) ? static_cast<T>(0 - std::make_unsigned_t<T>(a)) : a / b;
}

template <class T>
T remainder_of(T a, T b) {
  if (b == 0) die("division by 0", "PTX");
  return std::is_signed_v<T> && b == static_cast<T>(-1) ? T{0} : a % b;
}

// Beyond the width, shifts leave nothing but the sign.
template <class T>
T shift_left(T x, uint32_t n) {
  return n < 8 * sizeof(T) ? static_cast<T>(static_cast<uint64_t>(x) << n) : T{0};
}

template <class T>
T shift_right(T x, uint32_t n) {
  return n < 8 * sizeof(T) ? static_cast<T>(x >> n) : static_cast<T>(x < 0 ? -1 : 0);
}

inline uint32_t reversed(uint32_t x) {
  x = (x >> 1 & 0x55555555) | (x & 0x55555555) << 1;
  x = (x >> 2 & 0x33333333) | (x & 0x33333333) << 2;
  x = (x >> 4 & 0x0f0f0f0f) | (x & 0x0f0f0f0f) << 4;
  return __builtin_bswap32(x);
}

// bfind.shiftamt: how far the highest one is from the highest bit.
inline uint32_t leading_zeros(uint32_t x) { return x == 0 ? ~0u : static_cast<uint32_t>(__builtin_clz(x)); }

// bfi: y with so many low bits of x from a place on. Of both numbers, a device takes the low byte.
inline uint32_t with_field(uint32_t x, uint32_t y, uint32_t place, uint32_t bits) {
  place &= 255, bits &= 255;
  const uint32_t mask = shift_left(bits < 32 ? (1u << bits) - 1 : ~0u, place);
  return (y & ~mask) | (shift_left(x, place) & mask);
}

// prmt: four of the eight bytes of x and y, or copies of their signs.
inline uint32_t permuted(uint32_t x, uint32_t y, uint32_t selector) {
  const uint64_t bytes = uint64_t{y} << 32 | x;
  uint32_t out = 0;
  for (unsigned i = 0; i < 4; ++i) {
    const uint32_t choice = selector >> 4 * i & 15;
    const auto byte = static_cast<uint8_t>(bytes >> 8 * (choice & 7));
    out |= uint32_t{choice < 8 ? byte : static_cast<uint8_t>(byte >= 0x80 ? 0xff : 0)} << 8 * i;
  }
  return out;
}

// cvt.rzi: what lies outside becomes the nearest integer there is, and a NaN 0.
inline int32_t towards_zero(float x) {
  if (std::isnan(x)) return 0;
  if (x >= 0x1p31f) return INT32_MAX;
  return x <= -0x1p31f ? INT32_MIN : static_cast<int32_t>(x);
}

// shfl between all lanes of a warp: other segments are not known here.
template <Source kSource>
uint32_t exchanged(const char* operation, uint32_t value, uint32_t lane, uint32_t segment, uint32_t mask) {
  if (segment != kWarp - 1) die("a segment other than the warp", operation);
  return shuffle<kSource>(operation, mask, value, lane, kWarp);
}

inline void mma_s8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma_m16n8k32<true>(d, {a[0], a[1], a[2], a[3]}, b[0], b[1]);
}
inline void mma_u8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma_m16n8k32<false>(d, {a[0], a[1], a[2], a[3]}, b[0], b[1]);
}

// cp.async: so many bytes are read, and zeros follow.
inline void copy_16(uint64_t to, uint64_t from, uint32_t bytes) {
  if (bytes != 0 && bytes != 16) die("neither none nor all of the bytes are read", "cp.async");
  cp_async_16(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes != 0);
}

// wgmma: the matrix of a descriptor (PTX ISA, "Matrix Descriptor Format"), whose product is added.
inline SharedMatrix matrix_at(uint64_t shared, uint64_t descriptor, bool added) {
  const auto bytes = [&](int bit) { return static_cast<unsigned>(descriptor >> bit & 0x3fff) * 16; };
  if ((descriptor & ~(uint64_t{0x3fff} << 32 | uint64_t{0x3fff} << 16 | 0x3fff)) != 0)
    die("a swizzled matrix", "wgmma");
  if (!added) die("a product that is not added", "wgmma");
  return {reinterpret_cast<const char*>(shared + bytes(0)), bytes(16), bytes(32)};
}

// Arguments lie in memory, each at a multiple of its size. Kernels print doubles alone.
inline uint32_t print(uint64_t format, uint64_t arguments) {
  const auto* text = reinterpret_cast<const char*>(format);
  const auto* values = reinterpret_cast<const double*>(arguments);
  for (; *text != 0; ++text) {
    if (*text != '%') {
      std::putchar(*text);
    } else if (*++text == 'g') {
      std::printf("%g", *values++);
    } else {
      die("a conversion other than %g", "vprintf");
    }
  }
  return 0;
}

}  // namespace ptx

}  // namespace host

}  // namespace tandem
