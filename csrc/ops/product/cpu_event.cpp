#include "ops/product/cpu_event.h"

#include <algorithm>
#include <vector>

#include "cpu/aligned_buffer.h"
#include "cpu/parallel.h"
#include "ops/product/cpu_event_kernels.h"
#include "ops/product/cpu_pack_weight.h"
#include "ops/product/cpu_tiles.h"
#include "ops/spike_train/cpu_kernels.h"

namespace tandem {

namespace {

constexpr double kSparse = 0.15;

// Whether lists are made for each window, for each block of output channels anew (window_lists.inl.h): where all
// weights of a block stay in the inner caches, and blocks are few, that costs less than visits do. Narrower layers
// would fill their words badly. Measured: docs/performance_notes.md.
template <class E>
bool lists_windows(const ConvGeometry& g, const PackedLayout& layout) {
  constexpr int64_t kBytes = int64_t{112} << 10, kBlocks = sizeof(E) == 1 ? 2 : 1;
  const int64_t bytes = layout.block_elements() * static_cast<int64_t>(sizeof(E));
  return g.group_in() >= 32 && layout.blocks <= kBlocks && bytes <= kBytes;
}

// How the features of a group fall into chunks of at most kChunkRows rows of weights.
struct Chunking {
  bool windows;             // there are no chunks, nor visits
  int64_t units_per_group;  // units of a pixel and group
  int64_t unit_channels;    // channels of a pixel's unit
  int64_t taps_per_chunk;   // more than 1: narrow layers join several taps
  int64_t units_per_chunk;
  std::vector<uint32_t> begin;  // of each chunk and the end of the last, in rows

  // density: how many of the spikes that there could be there are.
  Chunking(const ConvGeometry& g, bool lists_windows, double density) : windows(lists_windows) {
    const int64_t channels = g.group_in(), taps = g.taps();
    units_per_group = (channels + kUnitRows - 1) / kUnitRows;
    unit_channels = (channels + units_per_group - 1) / units_per_group;
    taps_per_chunk = 2 * channels <= kUnitRows ? std::min(taps, kChunkRows / channels) : 1;
    // Many rows are better few at a time, so that they stay in the L1 cache: measured, docs/performance.md.
    units_per_chunk = density < kSparse ? kChunkUnits : 1;
    if (joins()) {  // as even as may be
      const int64_t parts = (taps + taps_per_chunk - 1) / taps_per_chunk;
      taps_per_chunk = (taps + parts - 1) / parts;
      for (int64_t tap = 0; tap < taps; tap += taps_per_chunk) begin.push_back(tap * channels);
    } else {
      for (int64_t unit = 0; unit < taps * units_per_group; unit += units_per_chunk) {
        begin.push_back(unit / units_per_group * channels + unit % units_per_group * unit_channels);
      }
    }
    begin.push_back(g.features());
  }

  bool joins() const { return taps_per_chunk > 1; }
  int64_t chunks() const { return static_cast<int64_t>(begin.size()) - 1; }
  // Room for the visits of a tile of `rows` output pixels.
  int64_t tile_bytes(int64_t rows) const {
    int64_t bytes = 0;
    for (int64_t c = 0; c < chunks(); ++c) bytes += visits_bytes(rows, begin[c + 1] - begin[c]);
    return (bytes + 7) / 8 * 8;
  }
};

// Lists and visits of one pass take at most this many bytes for their worst case (every input spiking at every step),
// unless one output row of one sample in one plane alone needs more; only what is written is backed by memory.
constexpr int64_t kPassBytes = int64_t{64} << 20;

// Some planes of some samples, or one plane of some rows of one sample: an event-driven product runs pass by pass, so
// that its scratch memory grows neither with N nor with T nor with the image.
template <class E, class T>
struct Pass {
  const char* op;
  const Chunking* chunking;
  ConvGeometry geometry;  // batch: the samples of this pass
  const uint8_t* bits;    // of the first plane and sample
  int64_t bits_stride, planes;
  const E* weight;  // packed
  PackedLayout layout;
  int64_t tile_rows;
  EventTileArgs<E, T> args;  // steps, neuron and outputs of this pass at channel 0
};

// Long for its arguments alone: three stages, each of which is a call.
template <class E, class T>
void run_pass(const Pass<E, T>& pass) {
  const ConvGeometry& g = pass.geometry;
  const Chunking& chunking = *pass.chunking;
  const EventKernels& k = kernels<EventKernels>();
  if (chunking.windows) {
    EventTileArgs<E, T> args = pass.args;
    args.source.spikes = pass.bits;
    args.source.spikes_stride = pass.bits_stride;
    run_tiles(pass.op, g, pass.layout, pass.weight, pass.layout.block, pass.tile_rows, args);
    return;
  }
  const int64_t pixels = pass.planes * g.pixels_in(), per_pixel = g.groups * chunking.units_per_group;
  const bool joins = chunking.joins();
  const AlignedBuffer<uint8_t> lists(pass.op, joins ? 0 : pixels * pixel_bytes(per_pixel, chunking.unit_channels));
  const AlignedBuffer<uint32_t> units(pass.op, joins ? 0 : pixels * per_pixel);
  UnitArgs unit_args = {};
  unit_args.bits = pass.bits;
  unit_args.bits_stride = pass.bits_stride;
  unit_args.pixels_in = g.pixels_in();
  unit_args.groups = g.groups;
  unit_args.group_channels = g.group_in();
  unit_args.unit_channels = chunking.unit_channels;
  unit_args.per_group = chunking.units_per_group;
  unit_args.steps = pass.args.steps;
  unit_args.lists = lists.data;
  unit_args.units = units.data;
  parallel_ranges(joins ? 0 : pixels, std::max<int64_t>(1, 4096 / g.in_channels),
                  [&](int64_t begin, int64_t end) { k.build_units(unit_args, begin, end); });

  const int64_t rows = pass.tile_rows, tiles = (g.pixels_out() + rows - 1) / rows;
  const int64_t all_tiles = pass.planes * g.groups * tiles;
  VisitArgs visit_args = {};
  visit_args.geometry = &g;
  visit_args.taps_per_chunk = chunking.taps_per_chunk;
  visit_args.units_per_chunk = chunking.units_per_chunk;
  visit_args.chunks = chunking.chunks();
  visit_args.lists = lists.data;
  visit_args.units = units.data;
  visit_args.units_per_group = chunking.units_per_group;
  visit_args.unit_channels = chunking.unit_channels;
  visit_args.bits = pass.bits;
  visit_args.bits_stride = pass.bits_stride;
  visit_args.bits_end = pass.bits + (pass.planes - 1) * pass.bits_stride + g.pixels_in() * g.in_channels;
  visit_args.steps = pass.args.steps;
  visit_args.tile_rows = rows;
  visit_args.tiles = tiles;
  visit_args.narrow_sums = std::is_same_v<E, int8_t>;
  visit_args.visits_per_tile = chunking.tile_bytes(std::min(rows, g.pixels_out()));
  const AlignedBuffer<uint8_t> visits(pass.op, all_tiles * visit_args.visits_per_tile);
  visit_args.visits = visits.data;
  const AlignedBuffer<uint8_t> widened(pass.op, all_tiles);
  visit_args.widened = widened.data;
  parallel_tasks(pass.planes * g.groups, tiles, [&](const auto& next) {
    const AlignedBuffer<uint8_t> scratch(pass.op, joins ? kVisitScratch : 0);
    VisitArgs tile = visit_args;
    tile.scratch = scratch.data;
    for (int64_t task = next(); task >= 0; task = next()) {
      k.build_visits(tile, task / tiles / g.groups, task / tiles % g.groups, task % tiles);
    }
  });

  EventTileArgs<E, T> args = pass.args;
  args.source.visits = visits.data;
  args.source.visits_per_tile = visit_args.visits_per_tile;
  args.source.widened = widened.data;
  args.source.chunks = chunking.chunks();
  args.source.chunk_begin = chunking.begin.data();
  run_tiles(pass.op, g, pass.layout, pass.weight, pass.layout.block, rows, args);
}

// packed: weights in order; planes: [plane_count, pixels_in, C]; args carries steps, neuron, bias, scale and outputs of
// the whole product, of which it computes some samples.
template <class E, class T>
void run(const char* op, const ConvGeometry& g, Samples samples, const E* packed, const uint8_t* planes,
         int64_t plane_count, double density, EventTileArgs<E, T> args) {
  if (samples.count() * g.out_height * g.out_width == 0) return;
  const PackedLayout layout = packed_layout<E>(g);
  const Chunking chunking(g, lists_windows<E>(g, layout), density);
  ConvGeometry of_samples = g;
  of_samples.batch = samples.count();
  const int64_t rows = tile_rows(of_samples, event_scratch_bytes<E, T>(1, layout.block, states_of(args.sink.neuron)),
                                 g.groups * layout.blocks);

  // Worst-case bytes of `n` output rows of one sample in one plane: of the lists of what they see, and of the visits.
  const auto list_bytes = [&](int64_t n) {
    const int64_t in_rows = std::min(g.height, (n - 1) * g.stride_h + (g.kernel_h - 1) * g.dilation_h + 1);
    const int64_t pixel = chunking.joins() || chunking.windows
                              ? 0
                              : pixel_bytes(g.groups * chunking.units_per_group, chunking.unit_channels);
    return in_rows * g.width * pixel;
  };
  const int64_t pixel_visits = chunking.windows ? 0 : (chunking.tile_bytes(rows) + rows - 1) / rows;
  const auto bytes_of = [&](int64_t n) { return list_bytes(n) + n * g.out_width * g.groups * pixel_visits + 1; };
  const int64_t sample_bytes = bytes_of(g.out_height);
  // Exact counts of integers do not fit `sum`, in which several passes would carry them.
  const int64_t least_planes = std::is_integral_v<E> && !args.sink.bits && !args.sink.currents ? plane_count : 1;
  const int64_t least_bytes = sample_bytes * least_planes;
  const bool whole = least_bytes <= kPassBytes;
  const int64_t pass_rows = whole ? g.out_height : std::max<int64_t>(1, g.out_height / (least_bytes / kPassBytes + 1));
  const int64_t pass_planes = whole ? std::min(kPassBytes / sample_bytes, plane_count) : least_planes;
  const int64_t pass_samples =
      whole ? std::clamp<int64_t>(kPassBytes / (sample_bytes * pass_planes), 1, samples.count()) : 1;
  // Lists are addressed by 32 bits.
  TANDEM_CHECK(pass_samples * pass_planes * list_bytes(pass_rows) < int64_t{1} << 32, op,
               "one row of the input is too large: the lists of its spikes could take more than 4 GiB");

  // Where the time steps do not fit one pass, the state (and the sum, where it is wanted) carries on.
  const bool carries = pass_planes < plane_count && !args.sink.currents;
  const int64_t row_size = g.out_width * g.out_channels;
  const int64_t pass_neurons = pass_samples * pass_rows * row_size;
  const AlignedBuffer<T> carried(op, carries && !args.sink.state ? states_of(args.sink.neuron) * pass_neurons : 0);
  for (int64_t n = samples.first; n < samples.last; n += pass_samples) {
    for (int64_t oh = 0; oh < g.out_height; oh += pass_rows) {
      ConvGeometry band = g;  // these samples; output rows oh.. and the input rows that they see
      band.batch = std::min(pass_samples, samples.last - n);
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
        Pass<E, T> pass = {};
        pass.op = op;
        pass.chunking = &chunking;
        pass.geometry = band;
        pass.bits = planes + ((p * g.batch + n) * g.height + top) * g.width * g.in_channels;
        pass.bits_stride = g.pixels_in() * g.in_channels;
        pass.planes = std::min(pass_planes, plane_count - p);
        pass.weight = packed;
        pass.layout = layout;
        pass.tile_rows = rows;
        pass.args = args;
        EventTileArgs<E, T>& a = pass.args;
        a.steps = std::min(args.steps - p * kStepsPerPlane, pass.planes * kStepsPerPlane);
        EventSink<T>& sink = a.sink = args.sink.at(p, first);
        if (carries) {
          if (!sink.state) sink.state = {carried.data, pass_neurons};
          if (p > 0) sink.initial = read_only(sink.state);
          sink.add_sum = sink.sum && p > 0;
        }
        run_pass(pass);
      }
    }
  }
}

template <class E, class T>
void run(const char* op, const ProductPlan& plan, Samples samples, const uint8_t* planes, int64_t plane_count,
         double density, EventTileArgs<E, T> args) {
  const ConvGeometry& g = plan.geometry;
  args.sink.scale = data_or_null<T>(plan.scale);
  args.sink.bias = data_or_null<T>(plan.bias);
  if (plan.packed) {
    check_packed<E>(op, "packed", *plan.packed, plan.weight, g);
    run(op, g, samples, static_cast<const E*>(plan.packed->const_data_ptr()), planes, plane_count, density, args);
  } else {
    const AlignedBuffer<E> packed(op, packed_layout<E>(g).elements());
    pack_weight(op, plan.weight, g, packed.data);
    run(op, g, samples, packed.data, planes, plane_count, density, args);
  }
}

}  // namespace

void run_spiking_events(const char* op, const ProductPlan& plan, Samples samples, int64_t time_steps, double density) {
  dispatch_packed(plan.weight.scalar_type(), [&](auto element, auto type) {
    using T = decltype(type);
    EventTileArgs<decltype(element), T> args = {};
    args.steps = time_steps;
    args.sink = spiking_sink<T>(plan);
    run(op, plan, samples, static_cast<const uint8_t*>(plan.bits.const_data_ptr()), plan.bits.size(0), density, args);
  });
}

void run_step_events(const char* op, const ProductPlan& plan, int64_t time_steps, double density) {
  dispatch_packed(plan.weight.scalar_type(), [&](auto element, auto type) {
    using T = decltype(type);
    EventTileArgs<decltype(element), T> args = {};
    args.steps = time_steps;
    args.sink.currents = output<T>(plan.out_sum);
    args.sink.currents_stride = plan.geometry.pixels_out() * plan.geometry.out_channels;
    const Samples all = {0, plan.geometry.batch};
    run(op, plan, all, static_cast<const uint8_t*>(plan.bits.const_data_ptr()), plan.bits.size(0), density, args);
  });
}

namespace {

// Binary digits of the largest possible count, 8 * planes.
int64_t digits_for(int64_t planes) {
  int64_t digits = 3;
  while (planes >> (digits - 3)) ++digits;
  return digits;
}

}  // namespace

BinaryCounts::BinaryCounts(const char* op, const ProductPlan& plan)
    : digits(plan.radix ? plan.radix : digits_for(plan.bits.size(0))),
      planes(planes_for(digits)),
      counted(op, plan.radix ? 0 : planes * plan.geometry.pixels_in() * plan.geometry.in_channels),
      bytes(counted.data) {
  const auto* bits = static_cast<const uint8_t*>(plan.bits.const_data_ptr());
  if (plan.radix) {
    bytes = bits;
    return;
  }
  const int64_t inputs = plan.geometry.pixels_in() * plan.geometry.in_channels;
  parallel_ranges(inputs, 16384, [&](int64_t begin, int64_t end) {
    kernels<SpikeTrainKernels>().count_bytes(bits, plan.bits.size(0), inputs, begin, end, counted.data, planes);
  });
}

void run_count_events(const char* op, const ProductPlan& plan, Samples samples, const BinaryCounts& counts,
                      double density) {
  dispatch_integers(plan.weight.scalar_type(), [&](auto element) {
    EventTileArgs<decltype(element), float> args = {};
    args.steps = counts.digits;
    args.sink.sum = output<float>(plan.out_sum);
    run(op, plan, samples, counts.bytes, counts.planes, density, args);
  });
}

}  // namespace tandem
