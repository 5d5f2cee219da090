// Runs CUDA kernels on the host, without a device: a test includes a .cu file and calls its launch function. All of it
// is one header, since a test is one translation unit.
//
// A thread of a block is a fiber with a stack of its own, and runs until it waits for others or ends. Who runs next is
// up to the environment: TANDEM_HOST_ORDER=asc (the default: always the lowest thread that can run), desc, or rand with
// TANDEM_HOST_SEED=<number>; blocks run one after another, in the same manner of order. What the programming model
// forbids and a device would let pass ends the process with a message. Shared memory is filled with NaNs, or ones,
// before each block, and what cp.async copies arrives no sooner than at the wait for it, so that a result which needs
// luck is wrong here.
//
// Link with -Wl,-T,shared.ld, which gathers static shared memory. Built with -fsanitize=address,undefined, accesses
// outside of an array are found, of arrays in shared memory as well. Built with -fsanitize=thread, so are races: fibers
// are threads to ThreadSanitizer, and nothing orders them but the barriers of CUDA. A warp's lanes are no exception:
// without __syncwarp() they are not in step.
//
// With TANDEM_HOST_PTX, what nvcc made of a kernel runs in place of its source (ptx.h).
#pragma once

#if !defined(__x86_64__)
#error "kernels run on the host on x86-64 alone: switch_stacks() is written for it"
#endif
#if defined(__CUDACC__)
#error "this stands in for the device where nvcc does not compile"
#endif

#include <cuda_runtime_api.h>
#include <sys/mman.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

// ---- The language

#undef __constant__
#undef __device__
#undef __forceinline__
#undef __global__
#undef __host__
#undef __launch_bounds__
#undef __shared__
#define __constant__ static
#define __device__
#define __forceinline__ inline
#define __global__
#define __host__
#define __launch_bounds__(...)
// For static shared memory to be found and filled before each block, it is in a section of its own. GCC forgets the
// attribute that names a section where a variable belongs to a template, but not this one, which stands for .noinit.
#define __shared__ __attribute__((noinit)) static

#define threadIdx (::tandem::host::current->index)
#define blockIdx (::tandem::host::block.index)
#define blockDim (::tandem::host::block.threads)
#define gridDim (::tandem::host::block.grid)
#define warpSize 32

#define __syncthreads() ::tandem::host::barrier(__FILE__, __LINE__)
#define __trap() ::tandem::host::die("__trap()")

#if defined(TANDEM_HOST_PTX)
#define TANDEM_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  (static_cast<void>(stream),                                         \
   ::tandem::host::ptx::launch_entry<(kernel)>(#kernel, grid, block, shared_bytes, __VA_ARGS__))
#else
#define TANDEM_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  (static_cast<void>(stream), ::tandem::host::launch(#kernel, kernel, grid, block, shared_bytes, __VA_ARGS__))
#endif
#define TANDEM_ALLOW_SHARED(kernel, bytes) (static_cast<void>(bytes), cudaSuccess)
#define TANDEM_DYNAMIC_SHARED(T, name) T* const name = reinterpret_cast<T*>(::tandem::host::block.dynamic_shared)

// What the machinery itself reads and writes is nobody's business but its own: the sanitizers are to judge kernels.
// Functions that are inlined into kernels would be judged with them.
#define TANDEM_HOST_UNSEEN __attribute__((no_sanitize_thread, no_sanitize_address, noinline))

// The bounds of static shared memory, from shared.ld.
extern "C" char __start_tandem_shared[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_tandem_shared[] __attribute__((weak, visibility("hidden")));

// Saves the registers that a call preserves on the stack in use, its pointer in *save, and goes on where the other
// stack was left. Not swapcontext(), which asks the kernel for the signal mask each time.
extern "C" void tandem_host_switch_stacks(void** save, void* to);
asm(R"(
  .section .text.tandem_host_switch_stacks, "axG", @progbits, tandem_host_switch_stacks, comdat
  .weak tandem_host_switch_stacks
  .type tandem_host_switch_stacks, @function
tandem_host_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size tandem_host_switch_stacks, .-tandem_host_switch_stacks
  .text
)");

namespace tandem {

namespace host {

constexpr unsigned kWarp = 32, kMostThreads = 1024, kMostWarps = kMostThreads / kWarp;
constexpr size_t kMostShared = 227 * 1024;  // of a block, on the devices that have most
constexpr size_t kStackBytes = 256 * 1024, kPage = 4096;
constexpr unsigned kMostCopies = 128;  // of a thread, under way at once
constexpr int kPoison = 0xff;          // a NaN in every floating type, -1 in integers

// What ThreadSanitizer must not carry from a block to the next one exists twice, and blocks take turns.
constexpr unsigned kSets = 2;

enum class Order { kAscending, kDescending, kRandom };

struct Fiber {
  char* stack;
  void* stack_pointer;
  void* sanitizer_stack;         // AddressSanitizer's, while the fiber does not run
  void* sanitizer_fiber;         // ThreadSanitizer's
  char entering[8], leaving[8];  // their addresses stand for the lane's side of a __syncwarp()
};

struct Copy {
  char* to;
  const char* from;  // null: zeros
  unsigned group;
};

struct Write {
  const char* to;
  unsigned bytes;
};

struct Thread {
  uint3 index;
  unsigned number;
  Fiber* fiber;
  bool done;
  const char* waits_at;  // a file, or a warp operation, or null
  int line;
  unsigned copies, groups;  // cp.async: copies under way, groups committed
  Copy copy[kMostCopies];
  // wgmma: products under way, groups committed; whether registers are fenced; what was last written to shared memory
  // and is not.
  unsigned products, product_groups;
  bool registers_fenced;
  unsigned unfenced;
  Write last[kMostCopies];
};

struct Warp {
  void* payload[kWarp];  // what the lanes that wait in an operation brought there
  const char* operation[kWarp];
  unsigned mask[kWarp];
  unsigned arrived;   // lanes that wait in an operation
  unsigned absent;    // lanes that ended or never were
  unsigned ready;     // lanes that can run
  unsigned products;  // of its warpgroup, so far
};

// Plain arrays throughout: code of the standard library would be instrumented.
struct Block {
  uint3 grid, threads, index;
  const char* kernel;
  void (*body)(const void*);
  const void* closure;
  unsigned size;  // threads
  unsigned live;  // threads that have not ended
  unsigned set;   // of kSets
  char* dynamic_shared;
  // The barrier that threads wait at.
  const char* file;
  int line;
  unsigned arrived, phase;
  // Addresses that stand for what orders threads.
  char start[8], end[8], barrier[kSets][2][8];
  Order order;
  uint64_t random;
  Thread launcher;
  Fiber launcher_fiber;
  size_t launcher_stack_bytes;
  Warp warp[kMostWarps];
  Thread thread[kMostThreads];
  Fiber fiber[kSets][kMostThreads];
};

inline Block block{};
inline Thread* current = nullptr;  // null outside of launches
// A test of kernels that walk their work in strides of the grid: grids are no longer than this, unless it is 0.
inline unsigned most_blocks = 0;

// A happens-before edge for ThreadSanitizer, from all who released to who acquires.
TANDEM_HOST_UNSEEN inline void release(void* address) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(address);
#else
  static_cast<void>(address);
#endif
}

TANDEM_HOST_UNSEEN inline void acquire(void* address) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(address);
#else
  static_cast<void>(address);
#endif
}

[[noreturn]] TANDEM_HOST_UNSEEN inline void die(const char* message, const char* subject = nullptr) {
  fprintf(stderr, "cuda_host: %s%s%s\n", subject ? subject : "", subject ? ": " : "", message);
  if (current != nullptr) {
    fprintf(stderr, "  in %s, block (%u, %u, %u), thread (%u, %u, %u)\n", block.kernel, block.index.x, block.index.y,
            block.index.z, current->index.x, current->index.y, current->index.z);
    unsigned shown = 0;
    for (unsigned i = 0; i < block.size && shown < 8; ++i) {
      const Thread& thread = block.thread[i];
      if (thread.done || thread.waits_at == nullptr) continue;
      if (thread.line != 0) {
        fprintf(stderr, "  thread %u waits at %s:%d\n", i, thread.waits_at, thread.line);
      } else {
        fprintf(stderr, "  thread %u waits in %s\n", i, thread.waits_at);
      }
      ++shown;
    }
  }
  fflush(stdout);
  fflush(stderr);
  _Exit(3);
}

// ---- Who runs

// A number below `bound`. Xorshift: the state is never 0.
TANDEM_HOST_UNSEEN inline unsigned random_below(unsigned bound) {
  block.random ^= block.random << 13;
  block.random ^= block.random >> 7;
  block.random ^= block.random << 17;
  return static_cast<unsigned>((block.random >> 16) % bound);
}

TANDEM_HOST_UNSEEN inline void wake(Thread& thread) {
  thread.waits_at = nullptr;
  block.warp[thread.number / kWarp].ready |= 1u << thread.number % kWarp;
}

// Takes the thread that runs next from those that can; the launcher once all have ended.
TANDEM_HOST_UNSEEN inline Thread& next() {
  unsigned ready = 0;
  for (const Warp& warp : block.warp) ready += static_cast<unsigned>(__builtin_popcount(warp.ready));
  if (ready == 0) {
    if (block.live == 0) return block.launcher;
    die("deadlock: no thread can run (some wait at a barrier, others in a warp operation that not all lanes reach)");
  }
  unsigned skip = 0;
  if (block.order == Order::kDescending) skip = ready - 1;
  if (block.order == Order::kRandom) skip = random_below(ready);
  for (unsigned w = 0;; ++w) {
    Warp& warp = block.warp[w];
    const auto here = static_cast<unsigned>(__builtin_popcount(warp.ready));
    if (skip >= here) {
      skip -= here;
      continue;
    }
    unsigned left = warp.ready;
    while (skip-- > 0) left &= left - 1;
    const auto lane = static_cast<unsigned>(__builtin_ctz(left));
    warp.ready &= ~(1u << lane);
    return block.thread[w * kWarp + lane];
  }
}

TANDEM_HOST_UNSEEN inline void switch_to(Thread& to, bool for_good = false) {
  Fiber& from = *current->fiber;
  if (&to == current) return;
  current = &to;
#if defined(__SANITIZE_ADDRESS__)
  const bool outside = &to == &block.launcher;
  __sanitizer_start_switch_fiber(for_good ? nullptr : &from.sanitizer_stack, to.fiber->stack,
                                 outside ? block.launcher_stack_bytes : kStackBytes);
#else
  static_cast<void>(for_good);
#endif
#if defined(__SANITIZE_THREAD__)
  // That one ran before the other orders nothing: it is the harness's choice.
  __tsan_switch_to_fiber(to.fiber->sanitizer_fiber, __tsan_switch_to_fiber_no_sync);
#endif
  tandem_host_switch_stacks(&from.stack_pointer, to.fiber->stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.sanitizer_stack, nullptr, nullptr);
#endif
}

// ---- Barriers

// Products of a warpgroup are for all of its warps.
TANDEM_HOST_UNSEEN inline void check_warpgroups() {
  for (unsigned w = 0; w < kMostWarps; ++w) {
    if (block.warp[w].products != block.warp[w / 4 * 4].products) die("not all warps of a warpgroup", "wgmma");
  }
}

TANDEM_HOST_UNSEEN inline void open_barrier() {
  check_warpgroups();
  block.arrived = 0;
  block.file = nullptr;
  ++block.phase;
  for (unsigned i = 0; i < block.size; ++i) {
    if (!block.thread[i].done) wake(block.thread[i]);
  }
}

// Threads that have ended do not count, as on every device since compute capability 7.0.
TANDEM_HOST_UNSEEN inline void barrier(const char* file, int line) {
  char* const edge = block.barrier[block.set][block.phase % 2];
  current->waits_at = file;
  current->line = line;
  if (block.file == nullptr) {
    block.file = file;
    block.line = line;
  } else if (block.line != line || strcmp(block.file, file) != 0) {
    die("divergent barrier: threads of a block wait at different __syncthreads()");
  }
  release(edge);
  if (++block.arrived == block.live) open_barrier();
  switch_to(next());
  acquire(edge);
}

// ---- Warps

// Every lane that the mask names brings a payload; the last one to arrive exchanges what is in them for all.
template <class Payload>
TANDEM_HOST_UNSEEN void collective(unsigned mask, const char* operation, Payload& payload) {
  Warp& warp = block.warp[current->number / kWarp];
  Thread* const lanes = current - current->number % kWarp;
  const unsigned lane = current->number % kWarp;
  if ((mask >> lane & 1) == 0) die("the calling lane is not in its own mask", operation);
  if ((mask & warp.absent) != 0) die("the mask names a lane that has ended or does not exist", operation);
  warp.payload[lane] = &payload;
  warp.operation[lane] = operation;
  warp.mask[lane] = mask;
  warp.arrived |= 1u << lane;
  current->waits_at = operation;
  current->line = 0;
  if (Payload::kOrdersMemory) release(current->fiber->entering);
  if ((warp.arrived & mask) == mask) {
    Payload* payloads[kWarp] = {};
    for (unsigned i = 0; i < kWarp; ++i) {
      if ((mask >> i & 1) == 0) continue;
      if (warp.mask[i] != mask || strcmp(warp.operation[i], operation) != 0) {
        die("lanes of a mask do not agree on the mask or on the operation", operation);
      }
      payloads[i] = static_cast<Payload*>(warp.payload[i]);
      if (Payload::kOrdersMemory) acquire(lanes[i].fiber->entering);
    }
    Payload::exchange(payloads, mask);
    warp.arrived &= ~mask;
    for (unsigned i = 0; i < kWarp; ++i) {
      if ((mask >> i & 1) == 0) continue;
      if (Payload::kOrdersMemory) release(lanes[i].fiber->leaving);
      wake(lanes[i]);
    }
  }
  switch_to(next());
  if (Payload::kOrdersMemory) acquire(current->fiber->leaving);
}

struct SyncWarp {
  static constexpr bool kOrdersMemory = true;
  static void exchange(SyncWarp* const*, unsigned) {}
};

// Of the operations of warps, __syncwarp() alone orders accesses to memory.
struct Ballot {
  static constexpr bool kOrdersMemory = false;
  bool predicate;
  unsigned result;

  TANDEM_HOST_UNSEEN static void exchange(Ballot* const* lanes, unsigned mask) {
    unsigned votes = 0;
    for (unsigned i = 0; i < kWarp; ++i) {
      if ((mask >> i & 1) != 0 && lanes[i]->predicate) votes |= 1u << i;
    }
    for (unsigned i = 0; i < kWarp; ++i) {
      if ((mask >> i & 1) != 0) lanes[i]->result = votes;
    }
  }
};

enum class Source { kLane, kUp, kDown, kXor };

template <class T, Source kSource>
struct Shuffle {
  static constexpr bool kOrdersMemory = false;
  T value, result;
  unsigned argument, width;

  TANDEM_HOST_UNSEEN static void exchange(Shuffle* const* lanes, unsigned mask) {
    for (unsigned i = 0; i < kWarp; ++i) {
      if ((mask >> i & 1) == 0) continue;
      const unsigned argument = lanes[i]->argument, width = lanes[i]->width, first = i & ~(width - 1);
      unsigned from = i;  // where the source lies outside the segment, a lane keeps its own value
      if (kSource == Source::kLane) from = first + (argument & (width - 1));
      if (kSource == Source::kUp && i >= first + argument) from = i - argument;
      if (kSource == Source::kDown && i + argument < first + width) from = i + argument;
      if (kSource == Source::kXor && (i ^ argument) < first + width) from = i ^ argument;
      if ((mask >> from & 1) == 0) die("a lane reads from one that the mask does not name", "__shfl_sync");
      lanes[i]->result = lanes[from]->value;
    }
  }
};

TANDEM_HOST_UNSEEN inline unsigned ballot(const char* operation, unsigned mask, bool predicate) {
  Ballot payload{predicate, 0};
  collective(mask, operation, payload);
  return payload.result;
}

template <Source kSource, class T>
TANDEM_HOST_UNSEEN T shuffle(const char* operation, unsigned mask, T value, unsigned argument, int width) {
  if (width <= 0 || width > static_cast<int>(kWarp) || (width & (width - 1)) != 0) {
    die("the width is no power of two up to 32", operation);
  }
  Shuffle<T, kSource> payload{value, value, argument, static_cast<unsigned>(width)};
  collective(mask, operation, payload);
  return payload.result;
}

// Exact modulo 2^32.
template <bool kSigned>
struct IntegerMma {
  static constexpr bool kOrdersMemory = false;
  uint32_t a[4], b[2], d[4];

  TANDEM_HOST_UNSEEN static uint32_t element(uint32_t word, unsigned byte, bool with_sign) {
    const uint32_t x = word >> 8 * byte & 0xff;
    return with_sign && x >= 0x80 ? x - 0x100 : x;
  }

  TANDEM_HOST_UNSEEN static void exchange(IntegerMma* const* lanes, unsigned) {
    uint32_t a[16][32], b[32][8];
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      const unsigned group = lane / 4, four = lane % 4 * 4;
      for (unsigned byte = 0; byte < 4; ++byte) {
        for (unsigned i = 0; i < 4; ++i) {
          a[group + i % 2 * 8][four + byte + i / 2 * 16] = element(lanes[lane]->a[i], byte, kSigned);
        }
        for (unsigned i = 0; i < 2; ++i) b[four + byte + i * 16][group] = element(lanes[lane]->b[i], byte, false);
      }
    }
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      for (unsigned i = 0; i < 4; ++i) {
        const unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (unsigned k = 0; k < 32; ++k) lanes[lane]->d[i] += a[row][k] * b[k][column];
      }
    }
  }
};

// ---- cp.async

// These two are instrumented: they stand for the kernel's own accesses.
__attribute__((noinline)) inline void copy_begins(char* to, const char* from) {
  // Until it is waited for, the copy may land at any time: what was there can no longer be read.
  for (int i = 0; i < 16; ++i) {
    if (from != nullptr) static_cast<void>(static_cast<const volatile char*>(from)[i]);
    static_cast<volatile char*>(to)[i] = static_cast<char>(kPoison);
  }
}

__attribute__((noinline)) inline void copy_lands(char* to, const char* from) {
  for (int i = 0; i < 16; ++i) to[i] = from == nullptr ? char{0} : from[i];
}

TANDEM_HOST_UNSEEN inline void begin_copy(void* to, const void* from, bool valid) {
  Thread& thread = *current;
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16 != 0) {
    die("an address is no multiple of 16", "cp.async");
  }
  if (thread.copies == kMostCopies) die("more copies under way than kMostCopies", "cp.async");
  Copy& copy = thread.copy[thread.copies++];
  copy.to = static_cast<char*>(to);
  copy.from = valid ? static_cast<const char*>(from) : nullptr;
  copy.group = thread.groups;
  copy_begins(copy.to, copy.from);
}

// Written to shared memory, where tensor cores find it once it is fenced.
TANDEM_HOST_UNSEEN inline void note_write(const void* to, unsigned bytes) {
  current->last[current->unfenced++ % kMostCopies] = {static_cast<const char*>(to), bytes};
}

// Copies that were never committed belong to no group, and no wait is for them.
TANDEM_HOST_UNSEEN inline void wait_for_copies(unsigned groups_in_flight) {
  Thread& thread = *current;
  unsigned kept = 0;
  for (unsigned i = 0; i < thread.copies; ++i) {
    const Copy copy = thread.copy[i];
    if (copy.group + groups_in_flight < thread.groups) {
      copy_lands(copy.to, copy.from);
      note_write(copy.to, 16);
    } else {
      thread.copy[kept++] = copy;
    }
  }
  thread.copies = kept;
}

// ---- Launches

// The first thing on a fiber's stack. Never returns.
TANDEM_HOST_UNSEEN inline void run_thread() {
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom;
  size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  if (block.launcher_fiber.stack == nullptr) {  // the first fiber ever to run; it was the launcher that ran before
    block.launcher_fiber.stack = static_cast<char*>(const_cast<void*>(bottom));
    block.launcher_stack_bytes = bytes;
  }
#endif
  acquire(block.start);
  block.body(block.closure);
  release(block.end);
  Thread& thread = *current;
  Warp& warp = block.warp[thread.number / kWarp];
  const unsigned lane = thread.number % kWarp;
  if (thread.copies != 0) die("a thread ends with copies under way", "cp.async");
  if (thread.products != 0) die("a thread ends with products under way", "wgmma");
  for (unsigned i = 0; i < kWarp; ++i) {
    if ((warp.arrived >> i & 1) != 0 && (warp.mask[i] >> lane & 1) != 0) {
      die("the mask names a lane that has ended or does not exist", warp.operation[i]);
    }
  }
  thread.done = true;
  warp.absent |= 1u << lane;
  if (--block.live != 0 && block.arrived == block.live) open_barrier();
  switch_to(next(), true);
  die("an ended thread runs");
}

TANDEM_HOST_UNSEEN inline void* map_pages(void* at, size_t bytes) {
  const int fixed = at == nullptr ? 0 : MAP_FIXED;
  void* const pages =
      mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | fixed, -1, 0);
  if (pages == MAP_FAILED) die("out of memory");
  return pages;
}

// Kept from launch to launch; ThreadSanitizer takes long to make one.
TANDEM_HOST_UNSEEN inline Fiber& fiber_of(unsigned set, unsigned number) {
  Fiber& fiber = block.fiber[set][number];
  if (fiber.stack == nullptr) {
    fiber.stack = static_cast<char*>(map_pages(nullptr, kStackBytes));
    if (mprotect(fiber.stack, kPage, PROT_NONE) != 0) die("out of memory");
#if defined(__SANITIZE_THREAD__)
    fiber.sanitizer_fiber = __tsan_create_fiber(0);
#endif
  }
  return fiber;
}

TANDEM_HOST_UNSEEN inline void poison(char* begin, const char* end) {
  for (volatile char* at = begin; at != end; ++at) *at = static_cast<char>(kPoison);
}

// Blocks have the same shared memory one after another, which is no race. ThreadSanitizer forgets who accessed pages
// when they are mapped anew; to order the blocks instead would hide the races between them.
TANDEM_HOST_UNSEEN inline void forget_accesses(char* pages, size_t bytes) {
#if defined(__SANITIZE_THREAD__)
  if (bytes != 0) map_pages(pages, bytes);
#else
  static_cast<void>(pages);
  static_cast<void>(bytes);
#endif
}

TANDEM_HOST_UNSEEN inline void run_block(unsigned number, unsigned turn, size_t shared_bytes) {
  const uint3 grid = block.grid, threads = block.threads;
  block.index = {number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y};
  block.set = turn % kSets;
  block.live = block.size;
  block.arrived = 0;
  block.file = nullptr;

  forget_accesses(__start_tandem_shared, static_cast<size_t>(__stop_tandem_shared - __start_tandem_shared));
  poison(__start_tandem_shared, __stop_tandem_shared);
#if defined(__SANITIZE_THREAD__)
  static char* const pages = static_cast<char*>(map_pages(nullptr, kMostShared));
  forget_accesses(pages, shared_bytes);
  block.dynamic_shared = pages;
#else
  // The very size and no more alignment than is promised: AddressSanitizer watches what lies behind.
  void* memory = nullptr;
  if (posix_memalign(&memory, 16, shared_bytes == 0 ? 1 : shared_bytes) != 0) die("out of memory");
  block.dynamic_shared = static_cast<char*>(memory);
#endif
  poison(block.dynamic_shared, block.dynamic_shared + shared_bytes);

  for (Warp& warp : block.warp) warp.arrived = warp.ready = warp.absent = warp.products = 0;
  if (block.size % kWarp != 0) block.warp[block.size / kWarp].absent = ~0u << block.size % kWarp;
  for (unsigned i = 0; i < block.size; ++i) {
    Thread& thread = block.thread[i];
    thread.index = {i % threads.x, i / threads.x % threads.y, i / threads.x / threads.y};
    thread.number = i;
    thread.done = false;
    thread.copies = thread.groups = thread.products = thread.product_groups = thread.unfenced = 0;
    thread.registers_fenced = false;
    thread.fiber = &fiber_of(block.set, i);
    char* const top = thread.fiber->stack + kStackBytes;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(top - kPage, kPage);  // run_thread(), which never returns, left its frame there
#endif
    // As a call of run_thread() would find it: a return address on top, and what switch_stacks() pops below.
    void** stack = reinterpret_cast<void**>(top);
    *--stack = nullptr;
    *--stack = reinterpret_cast<void*>(&run_thread);
    for (int saved = 0; saved < 6; ++saved) *--stack = nullptr;
    thread.fiber->stack_pointer = stack;
    wake(thread);
  }
  release(block.start);
  switch_to(next());
  check_warpgroups();
#if !defined(__SANITIZE_THREAD__)
  free(block.dynamic_shared);
#endif
}

TANDEM_HOST_UNSEEN inline void read_environment() {
  const char* const order = getenv("TANDEM_HOST_ORDER");
  const char* const seed = getenv("TANDEM_HOST_SEED");
  if (order == nullptr || strcmp(order, "asc") == 0) {
    block.order = Order::kAscending;
  } else if (strcmp(order, "desc") == 0) {
    block.order = Order::kDescending;
  } else if (strcmp(order, "rand") == 0) {
    block.order = Order::kRandom;
  } else {
    die("TANDEM_HOST_ORDER must be asc, desc or rand");
  }
  // An odd multiple is a different number for every seed; one that is not 0 must come out.
  block.random = (seed == nullptr ? 0 : strtoull(seed, nullptr, 10)) * 0x9e3779b97f4a7c15 + 1;
  if (block.random == 0) block.random = 1;
}

TANDEM_HOST_UNSEEN inline void run_grid(size_t shared_bytes) {
  if (current != nullptr) die("a kernel launches a kernel");
  const uint3 grid = block.grid, threads = block.threads;
  const uint64_t size = uint64_t{threads.x} * threads.y * threads.z;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  if (size == 0 || size > kMostThreads || threads.z > 64 || blocks == 0 || grid.x > 0x7fffffffu || grid.y > 65535 ||
      grid.z > 65535 || shared_bytes > kMostShared) {
    die("no device could launch this", block.kernel);
  }
  if (blocks > 1u << 24) die("a grid of more blocks than is sensible here", block.kernel);
  if (__start_tandem_shared == nullptr) die("static shared memory has no bounds: link with -Wl,-T,shared.ld");
  read_environment();
  block.size = static_cast<unsigned>(size);
  block.launcher.fiber = &block.launcher_fiber;
#if defined(__SANITIZE_THREAD__)
  block.launcher_fiber.sanitizer_fiber = __tsan_get_current_fiber();
#endif
  current = &block.launcher;

  const auto count = static_cast<unsigned>(blocks);
  auto* const order = new unsigned[count];
  for (unsigned i = 0; i < count; ++i) order[i] = block.order == Order::kDescending ? count - 1 - i : i;
  for (unsigned i = count - 1; i > 0 && block.order == Order::kRandom; --i) {
    const unsigned with = random_below(i + 1), kept = order[i];
    order[i] = order[with];
    order[with] = kept;
  }
  for (unsigned i = 0; i < count; ++i) run_block(order[i], i, shared_bytes);
  acquire(block.end);
  delete[] order;
  current = nullptr;
}

template <class Body>
void call(const void* closure) {
  (*static_cast<const Body*>(closure))();
}

template <class Body>
void launch_body(const char* name, dim3 grid, dim3 threads, size_t shared_bytes, const Body& body) {
  block.kernel = name;
  if (most_blocks != 0 && grid.x > most_blocks) grid.x = most_blocks;
  block.grid = grid;
  block.threads = threads;
  block.body = &call<Body>;
  block.closure = &body;
  run_grid(shared_bytes);
}

template <class Kernel, class... Args>
void launch(const char* name, Kernel kernel, dim3 grid, dim3 threads, size_t shared_bytes, const Args&... args) {
  launch_body(name, grid, threads, shared_bytes, [&] { kernel(args...); });
}

// ---- Atomics

template <size_t kBytes>
struct Word;
template <>
struct Word<4> {
  using Type = uint32_t __attribute__((may_alias));
};
template <>
struct Word<8> {
  using Type = uint64_t __attribute__((may_alias));
};

// Instrumented: ThreadSanitizer tells them from plain accesses.
template <class T>
T atomic_add(T* address, T value) {
  using U = typename Word<sizeof(T)>::Type;
  U* const word = reinterpret_cast<U*>(address);
  U before = __atomic_load_n(word, __ATOMIC_RELAXED), after;
  T old;
  do {
    memcpy(&old, &before, sizeof(old));
    const T sum = old + value;
    memcpy(&after, &sum, sizeof(after));
  } while (!__atomic_compare_exchange_n(word, &before, after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}

// A parameter of this type takes no part in deducing T, as the overloads of CUDA convert what they are given.
template <class T>
struct Same {
  using Type = T;
};

}  // namespace host

// ---- What device.cuh has in PTX

template <bool kSigned>
void mma_m16n8k32(int (&d)[4], const uint4& a, unsigned b0, unsigned b1) {
  host::IntegerMma<kSigned> payload{{a.x, a.y, a.z, a.w}, {b0, b1}, {}};
  for (int i = 0; i < 4; ++i) payload.d[i] = static_cast<uint32_t>(d[i]);
  host::collective(~0u, kSigned ? "mma.m16n8k32, s8" : "mma.m16n8k32, u8", payload);
  for (int i = 0; i < 4; ++i) d[i] = static_cast<int>(payload.d[i]);
}

inline unsigned anew(unsigned x) { return x; }

inline void cp_async_16(void* shared, const void* global, bool valid) { host::begin_copy(shared, global, valid); }

TANDEM_HOST_UNSEEN inline void cp_async_commit() { ++host::current->groups; }

template <int kInFlight>
void cp_async_wait() {
  host::wait_for_copies(kInFlight);
}

}  // namespace tandem

// ---- Built-in functions

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return tandem::host::ballot("__ballot_sync", mask, predicate != 0);
}
inline int __any_sync(unsigned mask, int predicate) {
  return tandem::host::ballot("__any_sync", mask, predicate != 0) != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  return tandem::host::ballot("__all_sync", mask, predicate != 0) == mask;
}

inline void __syncwarp(unsigned mask = ~0u) {
  tandem::host::SyncWarp payload;
  tandem::host::collective(mask, "__syncwarp", payload);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = warpSize) {
  return tandem::host::shuffle<tandem::host::Source::kLane>("__shfl_sync", mask, value, static_cast<unsigned>(lane),
                                                            width);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  return tandem::host::shuffle<tandem::host::Source::kUp>("__shfl_up_sync", mask, value, delta, width);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  return tandem::host::shuffle<tandem::host::Source::kDown>("__shfl_down_sync", mask, value, delta, width);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = warpSize) {
  return tandem::host::shuffle<tandem::host::Source::kXor>("__shfl_xor_sync", mask, value, static_cast<unsigned>(lanes),
                                                           width);
}

template <class T>
T atomicAdd(T* address, typename tandem::host::Same<T>::Type value) {
  return tandem::host::atomic_add(address, value);
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }

// What a launch does wrong ends the process.
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

#if defined(TANDEM_HOST_PTX)
#include "ptx.h"
#endif
