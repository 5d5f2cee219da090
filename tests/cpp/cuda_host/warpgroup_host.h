// What cuda/warpgroup.cuh has in PTX, for the host: products of a warpgroup on the tensor cores of sm_90a.
//
// A product's sums are there when it has been waited for, and no sooner. Until then its matrix in shared memory may not
// change. Products without warpgroup_fence() since the last wait, beside writes to shared memory that nobody fenced,
// and of some warps of a warpgroup alone end the process with a message.
#pragma once

#include "cuda_host.h"

namespace tandem {

struct SharedMatrix {
  const char* at;
  unsigned by_depth, by_rows;

  SharedMatrix ahead(unsigned bytes) const { return {at + bytes, by_depth, by_rows}; }
};

namespace host {

constexpr unsigned kMostProducts = 64;  // of a thread, under way at once

struct Product {
  const uint32_t* a[4];
  uint32_t a_before[4];
  uint32_t* sums[16];
  uint32_t added[16];
  unsigned count;  // of sums
  unsigned group;
  SharedMatrix matrix;
  unsigned rows, seen;  // of the matrix, and a hash of its bytes
};

inline Product products[kMostThreads][kMostProducts];

// Instrumented: tensor cores read shared memory.
__attribute__((noinline)) inline unsigned hash_of(const SharedMatrix& matrix, unsigned rows) {
  unsigned out = 1;
  for (unsigned row = 0; row < rows; ++row) {
    for (unsigned k = 0; k < 32; ++k) {
      const char* const byte = matrix.at + row / 8 * matrix.by_rows + k / 16 * matrix.by_depth + row % 8 * 16 + k % 16;
      out = out * 31 + static_cast<uint8_t>(*static_cast<const volatile char*>(byte));
    }
  }
  return out;
}

// A warp has 16 of the 64 rows of A, and so of D.
template <bool kSigned>
struct WarpgroupMma {
  static constexpr bool kOrdersMemory = false;
  uint32_t a[4];
  SharedMatrix b;
  unsigned rows;
  uint32_t added[16];

  TANDEM_HOST_UNSEEN static void exchange(WarpgroupMma* const* lanes, unsigned) {
    const SharedMatrix& b = lanes[0]->b;
    const unsigned rows = lanes[0]->rows;
    uint32_t a[16][32], all[32][32];
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      const WarpgroupMma& own = *lanes[lane];
      if (own.b.at != b.at || own.b.by_depth != b.by_depth || own.b.by_rows != b.by_rows || own.rows != rows) {
        die("lanes do not agree on the matrix", "wgmma");
      }
      for (unsigned i = 0; i < 16; ++i) {
        a[lane / 4 + i / 4 % 2 * 8][lane % 4 * 4 + i % 4 + i / 8 * 16] =
            IntegerMma<false>::element(own.a[i / 4], i % 4, false);
      }
    }
    for (unsigned row = 0; row < rows; ++row) {
      for (unsigned k = 0; k < 32; ++k) {
        const char byte = b.at[row / 8 * b.by_rows + k / 16 * b.by_depth + row % 8 * 16 + k % 16];
        all[row][k] = IntegerMma<kSigned>::element(static_cast<uint8_t>(byte), 0, kSigned);
      }
    }
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      for (unsigned i = 0; i < rows / 2; ++i) {
        const unsigned row = lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        uint32_t sum = 0;
        for (unsigned k = 0; k < 32; ++k) sum += a[row][k] * all[column][k];
        lanes[lane]->added[i] = sum;
      }
    }
  }
};

// sums: rows / 2 of them. They and A are registers.
template <bool kSigned>
TANDEM_HOST_UNSEEN void begin_product(uint32_t* const* sums, const uint32_t* const (&a)[4], const SharedMatrix& b,
                                      unsigned rows) {
  Thread& thread = *current;
  if (block.size % (4 * kWarp) != 0) die("a block has warps that are no whole warpgroup", "wgmma");
  if (!thread.registers_fenced) die("no wgmma.fence since registers were last written", "wgmma");
  if (reinterpret_cast<uintptr_t>(b.at) % 16 != 0) die("a matrix at an address that is no multiple of 16", "wgmma");
  const char* const end = b.at + (rows / 8 - 1) * b.by_rows + b.by_depth + 128;
  for (unsigned i = 0; i < block.size; ++i) {
    const Thread& other = block.thread[i];
    for (unsigned j = 0; j < other.unfenced && j < kMostCopies; ++j) {
      const Write& write = other.last[j];
      if (write.to < end && write.to + write.bytes > b.at) die("shared memory without fence.proxy.async", "wgmma");
    }
  }
  WarpgroupMma<kSigned> payload{{*a[0], *a[1], *a[2], *a[3]}, b, rows, {}};
  collective(~0u, kSigned ? "wgmma, s8" : "wgmma, u8", payload);
  if (thread.products == kMostProducts) die("more products under way than kMostProducts", "wgmma");
  Product& product = products[thread.number][thread.products++];
  product = {{}, {}, {}, {}, rows / 2, thread.product_groups, b, rows, 0};
  for (unsigned i = 0; i < 4; ++i) product.a[i] = a[i], product.a_before[i] = *a[i];
  for (unsigned i = 0; i < product.count; ++i) product.sums[i] = sums[i], product.added[i] = payload.added[i];
  if (thread.number % kWarp == 0) product.seen = hash_of(b, rows), ++block.warp[thread.number / kWarp].products;
}

TANDEM_HOST_UNSEEN inline void wait_for_products(unsigned groups_in_flight) {
  Thread& thread = *current;
  ballot("wgmma.wait_group", ~0u, true);
  unsigned kept = 0;
  for (unsigned i = 0; i < thread.products; ++i) {
    const Product product = products[thread.number][i];
    if (product.group + groups_in_flight >= thread.product_groups) {
      products[thread.number][kept++] = product;
      continue;
    }
    if (thread.number % kWarp == 0 && product.seen != hash_of(product.matrix, product.rows)) {
      die("shared memory that a product reads has changed", "wgmma");
    }
    for (unsigned j = 0; j < 4; ++j) {
      if (*product.a[j] != product.a_before[j]) die("registers that a product reads have changed", "wgmma");
    }
    for (unsigned j = 0; j < product.count; ++j) *product.sums[j] += product.added[j];
  }
  thread.products = kept;
  thread.registers_fenced = false;
}

}  // namespace host

inline SharedMatrix shared_matrix(const void* at, unsigned by_depth, unsigned by_rows) {
  return {static_cast<const char*>(at), by_depth, by_rows};
}

inline void store_to_matrix(unsigned* to, unsigned part) {
  host::note_write(to, sizeof(part));
  *to = part;
}

TANDEM_HOST_UNSEEN inline void fence_shared_matrices() { host::current->unfenced = 0; }
TANDEM_HOST_UNSEEN inline void warpgroup_fence() { host::current->registers_fenced = true; }
TANDEM_HOST_UNSEEN inline void warpgroup_commit() { ++host::current->product_groups; }

template <int kInFlight>
void warpgroup_wait() {
  host::wait_for_products(kInFlight);
}

// Not inlined: sums are in memory, where waiting writes them.
__attribute__((noinline)) inline int anew(int x) { return x; }

// a: the registers, until the wait.
template <int kFirst, int kRows, bool kSigned>
void wgmma_m64k32(int (&d)[16], const unsigned (&a)[4], SharedMatrix b) {
  uint32_t* sums[kRows / 2];
  for (int i = 0; i < kRows / 2; ++i) sums[i] = reinterpret_cast<uint32_t*>(&d[kFirst + i]);
  const uint32_t* const registers[] = {&a[0], &a[1], &a[2], &a[3]};
  host::begin_product<kSigned>(sums, registers, b, kRows);
}

}  // namespace tandem
