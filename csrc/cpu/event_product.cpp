#include "cpu/event_product.h"

#include <memory>
#include <new>
#include <vector>

#include "cpu/isa.h"
#include "cpu/kernels/kernels.h"
#include "cpu/parallel.h"

namespace tandem {

namespace {

template <class T>
struct AlignedBuffer {
  explicit AlignedBuffer(int64_t n)
      : data(static_cast<T*>(::operator new(static_cast<size_t>(n) * sizeof(T), std::align_val_t{64}))) {}
  ~AlignedBuffer() { ::operator delete(data, std::align_val_t{64}); }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;
  AlignedBuffer(AlignedBuffer&&) = delete;
  AlignedBuffer& operator=(AlignedBuffer&&) = delete;
  T* data;
};

// How the features of a group fall into chunks of at most kUnitRows rows of weights.
struct Chunking {
  int64_t units_per_group;  // units of a pixel and group
  int64_t unit_channels;    // channels of a pixel's unit
  int64_t taps_per_chunk;   // more than 1: narrow layers join several taps
  int64_t chunk_rows, chunks;

  explicit Chunking(const ConvGeometry& g) {
    const int64_t channels = g.group_in();
    units_per_group = (channels + kUnitRows - 1) / kUnitRows;
    unit_channels = (channels + units_per_group - 1) / units_per_group;
    taps_per_chunk = std::min(g.taps(), std::max<int64_t>(1, kUnitRows / channels));
    chunk_rows = joins() ? taps_per_chunk * channels : unit_channels;
    chunks = joins() ? (g.taps() + taps_per_chunk - 1) / taps_per_chunk : g.taps() * units_per_group;
  }

  bool joins() const { return taps_per_chunk > 1; }
};

// weight [O, C/groups, kH, kW] (any strides) -> [groups, blocks, chunks, chunk_rows, block]: features in the order
// (tap, channel), zero where there is no output channel.
template <class T>
void pack_weight(const Tensor& weight, const ConvGeometry& g, const Chunking& chunking, int64_t block, T* packed) {
  const T* w = static_cast<const T*>(weight.const_data_ptr());
  const bool linear = weight.dim() == 2;
  const int64_t stride_o = weight.stride(0), stride_c = weight.stride(1);
  const int64_t stride_h = linear ? 0 : weight.stride(2), stride_w = linear ? 0 : weight.stride(3);
  const int64_t outputs = g.group_out(), channels = g.group_in(), blocks = (outputs + block - 1) / block;
  const int64_t rows = chunking.chunk_rows, chunk_size = rows * block;
  // Position of a feature among the packed rows.
  const auto place = [&](int64_t tap, int64_t channel) {
    if (chunking.joins()) {
      return tap / chunking.taps_per_chunk * rows + tap % chunking.taps_per_chunk * channels + channel;
    }
    return (tap * chunking.units_per_group + channel / rows) * rows + channel % rows;
  };
  // One task: some channels of one block, all taps; a source row [kH, kW] is short and stays in cache.
  constexpr int64_t kChannels = 16, kOutputs = 8;
  const int64_t slices = (channels + kChannels - 1) / kChannels;
  parallel_ranges(g.groups * blocks * slices, 4, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t slice = task % slices, b = task / slices % blocks, group = task / slices / blocks;
      const int64_t first = group * outputs + b * block, valid = std::min(block, outputs - b * block);
      T* out = packed + (group * blocks + b) * chunking.chunks * chunk_size;
      // Few output channels at a time: rows a power of two apart would evict each other from the L1 cache.
      for (int64_t o = 0; o < block; o += kOutputs) {
        for (int64_t c = slice * kChannels; c < std::min(channels, (slice + 1) * kChannels); ++c) {
          for (int64_t tap = 0; tap < g.taps(); ++tap) {
            const T* from =
                w + (first + o) * stride_o + c * stride_c + tap / g.kernel_w * stride_h + tap % g.kernel_w * stride_w;
            T* row = out + place(tap, c) * block + o;
            for (int64_t j = 0; j < kOutputs; ++j) row[j] = o + j < valid ? from[j * stride_o] : T(0);
          }
        }
      }
    }
  });
}

// Output pixels per tile: few enough that the accumulators stay well inside an L2 cache and that every thread gets
// several tiles, many enough that a chunk of weights, once in L1, is used often.
int64_t tile_rows(const ConvGeometry& g, int64_t row_bytes, int64_t tasks_per_tile) {
  constexpr int64_t kScratchBytes = int64_t{384} * 1024, kLeast = 4, kMost = kTileRows;
  const int64_t rows = std::clamp(kScratchBytes / row_bytes, kLeast, kMost);
  const int64_t wanted_tiles = (int64_t{4} * torch::stable::get_num_threads() + tasks_per_tile - 1) / tasks_per_tile;
  const int64_t fair = (g.pixels_out() + wanted_tiles - 1) / std::max<int64_t>(1, wanted_tiles);
  return std::clamp(std::min(rows, fair), int64_t{1}, kMost);
}

// Lists and visits of one pass take at most this many bytes for their worst case (every input spiking at every step),
// unless one output row of one sample in one plane alone needs more; only what is written is backed by memory.
constexpr int64_t kPassBytes = int64_t{32} << 20;

// Some planes of some samples, or one plane of some rows of one sample: an event-driven product runs pass by pass, so
// that its scratch memory grows neither with N nor with T nor with the image.
template <class T>
struct Pass {
  const Chunking* chunking;
  ConvGeometry geometry;  // batch: the samples of this pass
  const uint8_t* bits;    // of the first plane and sample
  int64_t bits_stride, planes;
  const T* weight;  // packed
  int64_t blocks, packed_block, tile_rows;
  EventTileArgs<T> args;  // steps, neuron and outputs of this pass at channel 0
};

template <class T>
void run_pass(const Pass<T>& pass) {
  const ConvGeometry& g = pass.geometry;
  const Chunking& chunking = *pass.chunking;
  const Kernels& k = kernels();
  const int64_t pixels = pass.planes * g.pixels_in(), per_pixel = g.groups * chunking.units_per_group;
  const AlignedBuffer<uint8_t> lists(pixels * pixel_bytes(per_pixel, chunking.unit_channels));
  const AlignedBuffer<uint32_t> units(pixels * per_pixel);
  UnitArgs unit_args = {};
  unit_args.bits = pass.bits;
  unit_args.bits_stride = pass.bits_stride;
  unit_args.pixels_in = g.pixels_in();
  unit_args.groups = g.groups;
  unit_args.group_channels = g.group_in();
  unit_args.unit_channels = chunking.unit_channels;
  unit_args.per_group = chunking.units_per_group;
  unit_args.lists = lists.data;
  unit_args.units = units.data;
  parallel_ranges(pixels, std::max<int64_t>(1, 4096 / g.in_channels),
                  [&](int64_t begin, int64_t end) { k.build_units(unit_args, begin, end); });

  const int64_t rows = pass.tile_rows, tiles = (g.pixels_out() + rows - 1) / rows;
  const int64_t all_tiles = pass.planes * g.groups * tiles;
  VisitArgs visit_args = {};
  visit_args.geometry = &g;
  visit_args.lists = lists.data;
  visit_args.units = units.data;
  visit_args.units_per_group = chunking.units_per_group;
  visit_args.taps_per_chunk = chunking.taps_per_chunk;
  visit_args.chunks = chunking.chunks;
  visit_args.steps = pass.args.steps;
  visit_args.tile_rows = rows;
  visit_args.tiles = tiles;
  visit_args.sorted = pass.blocks >= 3;  // sorting costs about as much as it saves in two sweeps
  visit_args.joined_per_tile =
      chunking.joins() ? rows * chunking.chunks * unit_bytes(chunking.chunk_rows) + kListSlack : 0;
  const AlignedBuffer<uint8_t> joined(all_tiles * visit_args.joined_per_tile);
  visit_args.joined = joined.data;
  visit_args.visits_per_tile = rows * kStepsPerPlane * chunking.chunks + 1;
  const AlignedBuffer<Visit> visits(all_tiles * visit_args.visits_per_tile);
  visit_args.visits = visits.data;
  const AlignedBuffer<uint32_t> ends(all_tiles * chunking.chunks);
  visit_args.ends = ends.data;
  parallel_tasks(all_tiles, [&](const auto& next) {
    for (int64_t task = next(); task >= 0; task = next()) {
      k.build_visits(visit_args, task / tiles / g.groups, task / tiles % g.groups, task % tiles);
    }
  });

  EventTileArgs<T> args = pass.args;
  args.geometry = &g;
  args.lists = chunking.joins() ? joined.data : lists.data;
  args.visits = visits.data;
  args.visits_per_tile = visit_args.visits_per_tile;
  args.ends = ends.data;
  args.chunks = chunking.chunks;
  args.chunk_rows = chunking.chunk_rows;
  args.tiles = tiles;
  args.row_stride = g.out_channels;
  // Tiles innermost: neighbouring tasks share a block of weights.
  parallel_tasks(g.groups * pass.blocks * tiles, [&](const auto& next) {
    const AlignedBuffer<uint8_t> scratch(event_scratch_bytes<T>(rows, args.block));
    for (int64_t task = next(); task >= 0; task = next()) {
      const int64_t b = task / tiles % pass.blocks, group = task / tiles / pass.blocks;
      const int64_t channel = group * g.group_out() + b * args.block;
      EventTileArgs<T> tile = args;
      tile.weight = pass.weight + (group * pass.blocks + b) * pass.packed_block;
      tile.valid = std::min(args.block, g.group_out() - b * args.block);
      tile.group = group;
      tile.tile = task % tiles;
      tile.row_begin = tile.tile * rows;
      tile.row_end = std::min(g.pixels_out(), tile.row_begin + rows);
      if (tile.bias) tile.bias += channel;
      if (tile.initial) tile.initial += channel;
      if (tile.bits) tile.bits += channel;
      if (tile.sum) tile.sum += channel;
      if (tile.potential) tile.potential += channel;
      tile.scratch = scratch.data;
      k.typed<T>().event_tile(tile);
    }
  });
}

// planes: [plane_count, pixels_in, C]; args carries steps, neuron and outputs of the whole product.
template <class T>
void run(const char* op, const ProductPlan& plan, const uint8_t* planes, int64_t plane_count, EventTileArgs<T> args) {
  const ConvGeometry& g = plan.geometry;
  if (g.pixels_out() == 0) return;
  const Chunking chunking(g);
  args.block = block_size<T>(g.group_out());
  const int64_t blocks = (g.group_out() + args.block - 1) / args.block;
  const int64_t packed_block = chunking.chunks * chunking.chunk_rows * args.block;
  const AlignedBuffer<T> packed(g.groups * blocks * packed_block);
  pack_weight(plan.weight, g, chunking, args.block, packed.data);
  const int64_t rows = tile_rows(g, event_scratch_bytes<T>(1, args.block), g.groups * blocks);

  // Worst-case bytes of `n` output rows of one sample in one plane.
  const auto bytes_of = [&](int64_t n) {
    const int64_t in_rows = std::min(g.height, (n - 1) * g.stride_h + (g.kernel_h - 1) * g.dilation_h + 1);
    const int64_t lists = g.width * pixel_bytes(g.groups * chunking.units_per_group, chunking.unit_channels);
    const int64_t joined = chunking.joins() ? chunking.chunks * unit_bytes(chunking.chunk_rows) : 0;
    const int64_t visits = kStepsPerPlane * chunking.chunks * static_cast<int64_t>(sizeof(Visit));
    return in_rows * lists + n * g.out_width * g.groups * (joined + visits) + 1;
  };
  const int64_t sample_bytes = bytes_of(g.out_height);
  const bool whole = sample_bytes <= kPassBytes;
  const int64_t pass_rows = whole ? g.out_height : std::max<int64_t>(1, g.out_height / (sample_bytes / kPassBytes + 1));
  const int64_t pass_planes = whole ? std::min(kPassBytes / sample_bytes, plane_count) : 1;
  const int64_t pass_samples = whole ? std::clamp<int64_t>(kPassBytes / (sample_bytes * pass_planes), 1, g.batch) : 1;
  // Lists are addressed by 32 bits.
  check(pass_samples * pass_planes * bytes_of(pass_rows) < int64_t{1} << 32, op,
        "one row of the input is too large: the lists of its spikes could take more than 4 GiB");

  // Where the time steps do not fit one pass, the potential (and the sum, where it is wanted) carries on.
  const bool carries = pass_planes < plane_count;
  const int64_t row_size = g.out_width * g.out_channels;
  const AlignedBuffer<T> carried(carries && !args.potential ? pass_samples * pass_rows * row_size : 0);
  for (int64_t n = 0; n < g.batch; n += pass_samples) {
    for (int64_t oh = 0; oh < g.out_height; oh += pass_rows) {
      ConvGeometry band = g;  // these samples; output rows oh.. and the input rows that they see
      band.batch = std::min(pass_samples, g.batch - n);
      const int64_t first = (n * g.out_height + oh) * row_size;
      int64_t top = 0;
      if (!whole) {
        band.out_height = std::min(pass_rows, g.out_height - oh);
        const int64_t see = oh * g.stride_h - g.padding_h;
        const int64_t end = see + (band.out_height - 1) * g.stride_h + (g.kernel_h - 1) * g.dilation_h + 1;
        top = std::clamp<int64_t>(see, 0, g.height);
        band.height = std::clamp<int64_t>(end, top, g.height) - top;
        band.padding_h = top - see;
      }
      for (int64_t p = 0; p < plane_count; p += pass_planes) {
        Pass<T> pass = {};
        pass.chunking = &chunking;
        pass.geometry = band;
        pass.bits = planes + ((p * g.batch + n) * g.height + top) * g.width * g.in_channels;
        pass.bits_stride = g.pixels_in() * g.in_channels;
        pass.planes = std::min(pass_planes, plane_count - p);
        pass.weight = packed.data;
        pass.blocks = blocks;
        pass.packed_block = packed_block;
        pass.tile_rows = rows;
        pass.args = args;
        EventTileArgs<T>& a = pass.args;
        a.first_plane = p;
        a.steps = std::min(args.steps - p * kStepsPerPlane, pass.planes * kStepsPerPlane);
        if (a.bits) a.bits += p * a.bits_stride + first;
        if (a.initial) a.initial += first;
        if (a.sum) a.sum += first;
        if (a.potential) a.potential += first;
        if (carries) {
          if (!a.potential) a.potential = carried.data;
          if (p > 0) a.initial = a.potential;
          a.add_sum = a.sum && p > 0;
        }
        run_pass(pass);
      }
    }
  }
}

template <class T>
T* output(const Tensor& tensor) {
  return tensor.numel() ? static_cast<T*>(tensor.mutable_data_ptr()) : nullptr;
}

}  // namespace

void run_spiking_product(const char* op, const ProductPlan& plan, int64_t time_steps, double threshold, double leak) {
  dispatch_floating(op, plan.weight.scalar_type(), [&](auto type) {
    using T = decltype(type);
    EventTileArgs<T> args = {};
    args.steps = time_steps;
    args.bias = data_or_null<T>(plan.bias);
    args.initial = data_or_null<T>(plan.initial);
    args.bits = output<uint8_t>(plan.out_bits);
    args.bits_stride = plan.geometry.pixels_out() * plan.geometry.out_channels;
    args.sum = output<T>(plan.out_sum);
    args.potential = output<T>(plan.out_potential);
    args.neuron = neuron_parameters<T>(op, threshold, leak);
    run<T>(op, plan, static_cast<const uint8_t*>(plan.bits.const_data_ptr()), plan.bits.size(0), args);
  });
}

void run_count_product(const char* op, const ProductPlan& plan) {
  const int64_t planes = plan.bits.size(0), inputs = plan.geometry.pixels_in() * plan.geometry.in_channels;
  if (plan.out_sum.numel() == 0) return;
  int64_t digits = 3;  // binary digits of the largest possible count, 8 * planes
  while (planes >> (digits - 3)) ++digits;
  const int64_t byte_planes = planes_for(digits);
  const AlignedBuffer<uint8_t> counts(byte_planes * inputs);
  const uint8_t* bits = static_cast<const uint8_t*>(plan.bits.const_data_ptr());
  parallel_ranges(inputs, 16384, [&](int64_t begin, int64_t end) {
    kernels().count_bytes(bits, planes, inputs, begin, end, counts.data, byte_planes);
  });
  dispatch_floating(op, plan.weight.scalar_type(), [&](auto type) {
    using T = decltype(type);
    EventTileArgs<T> args = {};
    args.steps = digits;
    args.bias = data_or_null<T>(plan.bias);
    args.sum = output<T>(plan.out_sum);
    run<T>(op, plan, counts.data, byte_planes, args);
  });
}

}  // namespace tandem
