// What the operators and the compiled network share: numbers, oneDNN's primitives, kernels in their
// layouts, GroupNorm with ReLU, pooling, standardization.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include <omp.h>
#include <sys/mman.h>

#include "onednn.h"
#include "paddle/extension.h"

namespace {

// --- Numbers -------------------------------------------------------------------------------------

typedef uint16_t bf16;

inline float widen(float x) { return x; }
inline float widen(bf16 x) {
  uint32_t bits = uint32_t(x) << 16;
  float wide;
  std::memcpy(&wide, &bits, 4);
  return wide;
}

template <typename T>
inline T narrow(float x);
template <>
inline float narrow<float>(float x) { return x; }
template <>
inline bf16 narrow<bf16>(float x) {  // to the nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return x == x ? bf16(rounded) : bf16(0x7fc0);
}

// Sixteen numbers in one register, which are computed with together.
typedef float Sixteen __attribute__((vector_size(64)));

template <typename W>
inline W load(const float* x) {
  W wide;
  std::memcpy(&wide, x, sizeof(W));
  return wide;
}
template <typename W>
inline W load(const bf16* x);
template <>
inline float load<float>(const bf16* x) { return widen(*x); }
template <>
inline Sixteen load<Sixteen>(const bf16* x) {
  typedef bf16 Narrow __attribute__((vector_size(32)));
  typedef uint32_t Bits __attribute__((vector_size(64)));
  Narrow narrow;
  std::memcpy(&narrow, x, sizeof(Narrow));
  return Sixteen(__builtin_convertvector(narrow, Bits) << 16);
}

// Adds the numbers of a register to those in memory.
template <typename W>
inline void add_to(double* sums, const W& more) {
  float numbers[sizeof(W) / 4];
  std::memcpy(numbers, &more, sizeof(W));
  for (size_t k = 0; k < sizeof(W) / 4; ++k) sums[k] += numbers[k];
}

// Calls f(V, W, k) for V registers of type W at channel k, with as many as fit, until all are done.
template <typename F>
void over_channels(int64_t channels, F f) {
  std::integral_constant<int, 1> one;
  std::integral_constant<int, 4> four;
  int64_t k = 0;
  for (; k + 64 <= channels; k += 64) f(four, Sixteen(), k);
  for (; k + 16 <= channels; k += 16) f(one, Sixteen(), k);
  for (; k < channels; ++k) f(one, float(), k);
}

// Numbers for each thread of a parallel region, taken before it: inside, nothing may throw.
template <typename T>
class Rooms {
  int64_t count;
  std::vector<T> all;

 public:
  explicit Rooms(int64_t count) : count(count), all(count * omp_get_max_threads()) {}
  T* mine() { return all.data() + count * omp_get_thread_num(); }
};

// --- Standardization -----------------------------------------------------------------------------

const int64_t ROWS = 256;  // numbers whose float32 sums go into a float64 one

// The sum of f(k) over [0, size), in float32 for a piece and in float64 over these.
template <typename F>
inline double sum_of(int64_t size, F f) {
  double total = 0;
  for (int64_t begin = 0; begin < size; begin += ROWS) {
    float piece = 0;
    int64_t end = std::min(size, begin + ROWS);
#pragma omp simd reduction(+ : piece)
    for (int64_t k = begin; k < end; ++k) piece += f(k);
    total += piece;
  }
  return total;
}

// How the kernel of one output is standardized: (w - mean) / sqrt(variance + epsilon), where the
// epsilon is not negative; else it stays as it is.
struct Standard {
  float mean = 0, rest = 0, inverse = 1;  // the rest is that of rounding the mean

  Standard() = default;
  Standard(const float* w, int64_t size, float epsilon) {
    if (epsilon < 0) return;
    float middle = mean = sum_of(size, [=](int64_t k) { return w[k]; }) / size;
    rest = sum_of(size, [=](int64_t k) { return w[k] - middle; }) / size;
    double square = sum_of(size, [=](int64_t k) { return (w[k] - middle) * (w[k] - middle); });
    inverse = 1 / std::sqrt(square / size - double(rest) * rest + epsilon);
  }

  float of(float w) const { return (w - mean - rest) * inverse; }

  // Turns the gradient of the standardized kernel into that of w.
  void gradient(const float* w, int64_t size, float* g) const {
    Standard one = *this;
    float first = sum_of(size, [=](int64_t k) { return g[k]; }) / size;
    float second = sum_of(size, [=](int64_t k) { return g[k] * one.of(w[k]); }) / size;
#pragma omp simd
    for (int64_t k = 0; k < size; ++k) g[k] = one.inverse * (g[k] - first - one.of(w[k]) * second);
  }
};

// --- oneDNN --------------------------------------------------------------------------------------

void check(int status) {
  if (status == dnnl_out_of_memory) throw std::bad_alloc();
  if (status != dnnl_success) PD_THROW("oneDNN answers with status ", status);
}

dnnl_engine_t engine() {
  static dnnl_engine_t one = [] {
    dnnl_engine_t made;
    check(dnnl_engine_create(&made, dnnl_cpu, 0));
    return made;
  }();
  return one;
}

struct Layout {  // owns a description of memory
  dnnl_memory_desc_t handle = nullptr;
  Layout() = default;
  explicit Layout(const_dnnl_memory_desc_t other) { check(dnnl_memory_desc_clone(&handle, other)); }
  Layout(Layout&& other) { std::swap(handle, other.handle); }
  Layout& operator=(Layout&& other) { std::swap(handle, other.handle); return *this; }
  ~Layout() { if (handle) dnnl_memory_desc_destroy(handle); }
  size_t bytes() const { return dnnl_memory_desc_get_size(handle); }
};

Layout channels_last(int64_t n, int64_t c, int64_t h, int64_t w, int type) {
  Layout made;
  dnnl_dims_t dims = {n, c, h, w}, strides = {h * w * c, 1, w * c, c};
  check(dnnl_memory_desc_create_with_strides(&made.handle, 4, dims, type, strides));
  return made;
}

Layout any_kernel_layout(int64_t o, int64_t i, int64_t k, int type) {
  Layout made;
  dnnl_dims_t dims = {o, i, k, k};
  check(dnnl_memory_desc_create_with_tag(&made.handle, 4, dims, type, dnnl_format_tag_any));
  return made;
}

char* aligned(char* room) {  // to 64 bytes, in a room that has 64 to spare
  return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(room) + 63) & ~uintptr_t(63));
}

// Memory that lives on between calls; each caller has its own slot.
char* buffer(int slot, size_t bytes) {
  static thread_local std::array<std::vector<char>, 2> slots;
  auto& one = slots[slot];
  if (one.size() < bytes + 64) { one.clear(); one.shrink_to_fit(); one.resize(bytes + 64); }
  return aligned(one.data());
}

// Throws where there is no room for the machine code of a primitive: oneDNN would make one that has
// none, say that all is well, and crash when it is used.
void need_room_for_code() {
  const size_t bytes = 8 << 20;
  void* room = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (room == MAP_FAILED) throw std::bad_alloc();
  munmap(room, bytes);
}

struct Primitive {
  dnnl_primitive_t handle = nullptr;
  Layout scratchpad;
  ~Primitive() { if (handle) dnnl_primitive_destroy(handle); }

  explicit Primitive(dnnl_primitive_desc_t description)
      : scratchpad(dnnl_primitive_desc_query_md(description, dnnl_query_scratchpad_md, 0)) {
    need_room_for_code();
    check(dnnl_primitive_create(&handle, description));
  }

  struct Argument {
    int name;
    const Layout& layout;
    const void* data;
  };

  void run(std::vector<Argument> arguments) const {
    static thread_local dnnl_stream_t stream = [] {
      dnnl_stream_t made;
      check(dnnl_stream_create(&made, engine(), dnnl_stream_in_order));
      return made;
    }();
    if (size_t bytes = scratchpad.bytes())
      arguments.push_back({DNNL_ARG_SCRATCHPAD, scratchpad, buffer(0, bytes)});
    std::vector<dnnl_exec_arg_t> given;
    for (auto& one : arguments) {
      dnnl_memory_t memory;
      check(dnnl_memory_create(&memory, one.layout.handle, engine(), const_cast<void*>(one.data)));
      given.push_back({one.name, memory});
    }
    int status = dnnl_primitive_execute(handle, stream, given.size(), given.data());
    dnnl_stream_wait(stream);
    for (auto& one : given) dnnl_memory_destroy(one.memory);
    check(status);
  }
};

// A kernel in the blocked layout that a primitive asks for. The place of [o, i, h, w] in it is a sum
// of one number for o and one for (i, h, w), so two tables tell it. (oneDNN's own reordering takes
// three times as long.)
struct KernelLayout {
  Layout layout;
  std::vector<int64_t> outputs, inputs;
  bool padded = false, outputs_inmost = false;

  KernelLayout() = default;
  KernelLayout(dnnl_primitive_desc_t description, int what, int64_t o, int64_t i, int64_t k, int size)
      : layout(dnnl_primitive_desc_query_md(description, what, 0)) {
    int blocks;
    const dnnl_dims_t *strides, *sizes, *dims;
    check(dnnl_memory_desc_query(layout.handle, dnnl_query_inner_nblks_s32, &blocks));
    check(dnnl_memory_desc_query(layout.handle, dnnl_query_inner_blks, &sizes));
    check(dnnl_memory_desc_query(layout.handle, dnnl_query_inner_idxs, &dims));
    check(dnnl_memory_desc_query(layout.handle, dnnl_query_strides, &strides));
    auto offset = [&](int dim, int64_t place) {
      int64_t total = 0, stride = 1;
      for (int block = blocks - 1; block >= 0; --block) {
        if ((*dims)[block] == dim) {
          total += place % (*sizes)[block] * stride;
          place /= (*sizes)[block];
        }
        stride *= (*sizes)[block];
      }
      return total + place * (*strides)[dim];
    };
    for (int64_t place = 0; place < o; ++place) outputs.push_back(offset(0, place));
    for (int64_t place = 0; place < i; ++place)
      for (int64_t row = 0; row < k; ++row)
        for (int64_t column = 0; column < k; ++column)
          inputs.push_back(offset(1, place) + offset(2, row) + offset(3, column));
    outputs_inmost = o < 3 || i < 3 || outputs[2] - outputs[0] < inputs[2 * k * k] - inputs[0];
    padded = layout.bytes() > size_t(o * i * k * k * size);
  }

  static constexpr int64_t TILE = 32, WIDTH = 144;  // 144: of 3 x 3 pixels, 16 channels

  // Packs the kernel, standardized if the epsilon is not negative.
  template <typename T>
  void pack(const float* plain, float epsilon, T* packed) const {
    int64_t o = outputs.size(), size = inputs.size();
    if (padded) std::memset(packed, 0, layout.bytes());
#pragma omp parallel for
    for (int64_t first = 0; first < o; first += TILE) {
      int64_t height = std::min(TILE, o - first);
      Standard standards[TILE];
      for (int64_t k = 0; k < height; ++k)
        standards[k] = Standard(plain + (first + k) * size, size, epsilon);
      for (int64_t begin = 0; begin < size; begin += WIDTH) {
        T tile[TILE][WIDTH];  // in the nearest cache, where strides do no harm
        int64_t width = std::min(WIDTH, size - begin);
        for (int64_t k = 0; k < height; ++k) {
          const float* row = plain + (first + k) * size + begin;
          Standard standard = standards[k];
#pragma omp simd
          for (int64_t j = 0; j < width; ++j) tile[k][j] = narrow<T>(standard.of(row[j]));
        }
        const int64_t *at = outputs.data() + first, *along = inputs.data() + begin;
        if (outputs_inmost) {
          for (int64_t j = 0; j < width; ++j) {
            T* to = packed + along[j];
            for (int64_t k = 0; k < height; ++k) to[at[k]] = tile[k][j];
          }
        } else {
          for (int64_t k = 0; k < height; ++k) {
            T* to = packed + at[k];
            for (int64_t j = 0; j < width; ++j) to[along[j]] = tile[k][j];
          }
        }
      }
    }
  }

  // Unpacks the gradient of what `pack` packed, as that of the kernel ``w``. If it ``adds``, what
  // stands at ``plain`` is the gradient of the packed kernel so far.
  void unpack(const float* packed, const float* w, float epsilon, bool adds, float* plain) const {
    int64_t o = outputs.size(), size = inputs.size();
#pragma omp parallel for
    for (int64_t first = 0; first < o; first += TILE) {
      int64_t last = std::min(o, first + TILE);
      for (int64_t begin = 0; begin < size; begin += WIDTH)
        for (int64_t k = first; k < last; ++k)
          for (int64_t j = begin; j < std::min(size, begin + WIDTH); ++j) {
            float before = adds ? plain[k * size + j] : 0;
            plain[k * size + j] = before + packed[outputs[k] + inputs[j]];
          }
      for (int64_t k = first; epsilon >= 0 && k < last; ++k)
        Standard(w + k * size, size, epsilon).gradient(w + k * size, size, plain + k * size);
    }
  }
};

enum { NOTHING, RESIDUAL, IN_PLACE };  // what a convolution adds: to its result what stood there before

struct Geometry {
  int64_t n, h, w, i, o, k, stride, padding;
  int type, adding;
  int bytes() const { return type == dnnl_bf16 ? 2 : 4; }
  int64_t out_h() const { return (h + 2 * padding - k) / stride + 1; }
  int64_t out_w() const { return (w + 2 * padding - k) / stride + 1; }
  auto key() const { return std::array<int64_t, 10>{n, h, w, i, o, k, stride, padding, type, adding}; }
};

// What a convolution of one geometry needs: three primitives, those of the way back when asked for.
struct Convolution {
  Geometry g;
  Layout x, y;
  KernelLayout forward_kernel, data_kernel, kernel_gradient;
  std::unique_ptr<Primitive> forward, to_data, to_kernel;
  dnnl_primitive_attr_t attributes;
  dnnl_primitive_desc_t description;  // of forward: the others ask for it as a hint
  const dnnl_dims_t strides, dilates = {0, 0}, padding;

  explicit Convolution(const Geometry& geometry)
      : g(geometry),
        x(channels_last(g.n, g.i, g.h, g.w, g.type)),
        y(channels_last(g.n, g.o, g.out_h(), g.out_w(), g.type)),
        strides{g.stride, g.stride},
        padding{g.padding, g.padding} {
    dnnl_primitive_attr_t adding;
    for (auto* made : {&attributes, &adding}) {
      check(dnnl_primitive_attr_create(made));
      check(dnnl_primitive_attr_set_scratchpad_mode(*made, dnnl_scratchpad_mode_user));
    }
    if (g.adding) {
      dnnl_post_ops_t operations;
      check(dnnl_post_ops_create(&operations));
      if (g.adding == IN_PLACE)
        check(dnnl_post_ops_append_sum(operations, 1, 0, dnnl_undefined));
      else
        check(dnnl_post_ops_append_binary(operations, dnnl_binary_add, y.handle));
      check(dnnl_primitive_attr_set_post_ops(adding, operations));
      dnnl_post_ops_destroy(operations);
    }
    Layout any = any_kernel_layout(g.o, g.i, g.k, g.type);
    check(dnnl_convolution_forward_primitive_desc_create(
        &description, engine(), dnnl_forward_training, dnnl_convolution_direct, x.handle, any.handle,
        nullptr, y.handle, strides, dilates, padding, padding, adding));
    dnnl_primitive_attr_destroy(adding);
    forward_kernel = KernelLayout(description, dnnl_query_weights_md, g.o, g.i, g.k, g.bytes());
    forward.reset(new Primitive(description));
  }

  ~Convolution() {
    dnnl_primitive_desc_destroy(description);
    dnnl_primitive_attr_destroy(attributes);
  }

  void prepare_data_gradient() {
    if (to_data) return;
    Layout any = any_kernel_layout(g.o, g.i, g.k, g.type);
    dnnl_primitive_desc_t made;
    check(dnnl_convolution_backward_data_primitive_desc_create(
        &made, engine(), dnnl_convolution_direct, x.handle, any.handle, y.handle, strides, dilates,
        padding, padding, description, attributes));
    data_kernel = KernelLayout(made, dnnl_query_weights_md, g.o, g.i, g.k, g.bytes());
    to_data.reset(new Primitive(made));
    dnnl_primitive_desc_destroy(made);
  }

  void prepare_kernel_gradient() {
    if (to_kernel) return;
    Layout any = any_kernel_layout(g.o, g.i, g.k, dnnl_f32);
    dnnl_primitive_desc_t made;
    check(dnnl_convolution_backward_weights_primitive_desc_create(
        &made, engine(), dnnl_convolution_direct, x.handle, any.handle, nullptr, y.handle, strides,
        dilates, padding, padding, description, attributes));
    kernel_gradient = KernelLayout(made, dnnl_query_diff_weights_md, g.o, g.i, g.k, 4);
    to_kernel.reset(new Primitive(made));
    dnnl_primitive_desc_destroy(made);
  }

  void pack(const KernelLayout& to, const float* kernel, float epsilon, char* room) const {
    if (g.type == dnnl_bf16)
      to.pack(kernel, epsilon, reinterpret_cast<bf16*>(room));
    else
      to.pack(kernel, epsilon, reinterpret_cast<float*>(room));
  }

  const void* packed(const KernelLayout& to, const float* kernel, float epsilon) const {
    char* room = buffer(1, to.layout.bytes());
    pack(to, kernel, epsilon, room);
    return room;
  }
};

// --- GroupNorm and ReLU --------------------------------------------------------------------------

// How many pieces to cut each image's channels into, whole groups each: so many that all threads
// work, and that a piece stays in the cache of a core from its first reading to its last.
int64_t pieces(int64_t images, int64_t groups, int64_t bytes) {
  const int64_t near = 1 << 18;
  int64_t wanted = 1;
  while ((images * wanted < 4 || bytes > near * wanted) && wanted < groups / 4) wanted *= 2;
  return wanted;
}

// Sums of x and of its square over the pixels, of the channels of V registers, less a channel's first value:
// then nothing cancels where a mean is large.
template <int V, typename W, typename T>
void moments_of(const T* x, int64_t pixels, int64_t c, double* sums, double* squares) {
  const int width = sizeof(W) / 4;
  W first[V];
  for (int v = 0; v < V; ++v) first[v] = load<W>(x + width * v);
  std::fill(sums, sums + width * V, 0.0), std::fill(squares, squares + width * V, 0.0);
  for (int64_t begin = 0; begin < pixels; begin += ROWS) {
    W sum[V] = {}, square[V] = {};
    for (int64_t p = begin; p < std::min(pixels, begin + ROWS); ++p)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        W d = load<W>(x + p * c + width * v) - first[v];
        sum[v] += d;
        square[v] += d * d;
      }
    for (int v = 0; v < V; ++v)
      add_to(sums + width * v, sum[v]), add_to(squares + width * v, square[v]);
  }
  for (int k = 0; k < width * V; ++k) {  // to the mean, and the sum of squares around that
    double mean = sums[k] / pixels;
    squares[k] = std::max(0.0, squares[k] - sums[k] * mean);
    sums[k] = widen(x[k]) + mean;
  }
}

// The same of channels [from, to).
template <typename T>
void moments(
    const T* x, int64_t pixels, int64_t c, int64_t from, int64_t to, double* sums,
    double* squares) {
  over_channels(to - from, [&](auto tile, auto wide, int64_t k) {
    moments_of<tile, decltype(wide)>(x + from + k, pixels, c, sums + k, squares + k);
  });
}

// Writes also the mean and the inverse deviation of each group.
template <typename T>
void norm_relu_of(
    const T* whole_in, int64_t n, int64_t pixels, int64_t c, const float* scale, const float* bias,
    int groups, float epsilon, T* whole_out, float* means, float* inverses) {
  int64_t size = c / groups;
  int64_t cuts = pieces(n, groups, pixels * c * sizeof(T));
  Rooms<float> rooms(2 * c);
  Rooms<double> wide_rooms(2 * c);
#pragma omp parallel for collapse(2)
  for (int64_t image = 0; image < n; ++image)
    for (int64_t cut = 0; cut < cuts; ++cut) {
      const T* in = whole_in + image * pixels * c;
      T* out = whole_out + image * pixels * c;
      int64_t from = groups * cut / cuts * size, to = groups * (cut + 1) / cuts * size;
      double *sums = wide_rooms.mine(), *squares = sums + c;
      moments(in, pixels, c, from, to, sums, squares);
      float *factor = rooms.mine(), *shift = factor + c;
      for (int64_t g = from; g < to; g += size) {
        double mean = 0, square = 0;
        for (int64_t k = g - from; k < g - from + size; ++k) mean += sums[k] / size;
        for (int64_t k = g - from; k < g - from + size; ++k) {
          double off = sums[k] - mean;
          square += squares[k] + pixels * off * off;
        }
        double inverse = 1 / std::sqrt(square / (size * pixels) + epsilon);
        means[image * groups + g / size] = mean;
        inverses[image * groups + g / size] = inverse;
        for (int64_t k = g; k < g + size; ++k) {
          factor[k - from] = scale[k] * inverse;
          shift[k - from] = bias[k] - mean * scale[k] * inverse;
        }
      }
      for (int64_t p = 0; p < pixels; ++p) {
        const T* row = in + p * c + from;
        T* to_row = out + p * c + from;
#pragma omp simd
        for (int64_t k = 0; k < to - from; ++k)
          to_row[k] = narrow<T>(std::max(widen(row[k]) * factor[k] + shift[k], 0.f));  // keeps NaN
      }
    }
}

// --- Pooling -------------------------------------------------------------------------------------

// Maxima of 3 x 3 pixels at stride 2, with zeros around. ``which`` names the pixel of a window, or
// 9 for a zero: the first of equal ones, in the order of memory.
template <typename T>
void pool_of(const T* from, int64_t n, int64_t h, int64_t w, int64_t c, T* to, uint8_t* which) {
  int64_t out_h = (h - 1) / 2 + 1, out_w = (w - 1) / 2 + 1;
  Rooms<float> maxima(c);
  Rooms<int32_t> places(c);
#pragma omp parallel for collapse(2)
  for (int64_t image = 0; image < n; ++image)
    for (int64_t row = 0; row < out_h; ++row) {
      float* best = maxima.mine();
      int32_t* found = places.mine();
      for (int64_t column = 0; column < out_w; ++column) {
        bool edge = row == 0 || column == 0 || 2 * row == h - 1 || 2 * column == w - 1;
        std::fill(best, best + c, edge ? 0.f : -INFINITY);
        std::fill(found, found + c, 9);
        for (int place = 0; place < 9; ++place) {
          int64_t i = 2 * row - 1 + place / 3, j = 2 * column - 1 + place % 3;
          if (i < 0 || i >= h || j < 0 || j >= w) continue;
          const T* in = from + ((image * h + i) * w + j) * c;
#pragma omp simd
          for (int64_t k = 0; k < c; ++k) {
            float value = widen(in[k]);
            bool higher = value > best[k] || value != value;
            best[k] = higher ? value : best[k];
            found[k] = higher ? place : found[k];
          }
        }
        int64_t at = ((image * out_h + row) * out_w + column) * c;
        T* value = to + at;
        uint8_t* name = which + at;
#pragma omp simd
        for (int64_t k = 0; k < c; ++k) value[k] = narrow<T>(best[k]), name[k] = found[k];
      }
    }
}

}  // namespace
