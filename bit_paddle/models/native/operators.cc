// Operators of BiT on a CPU. Activations are [N, H, W, C], float32 or bfloat16; kernels
// [O, I, H, W], statistics and the gradients of parameters are float32. Work is cut by image or by
// output channel and sums are made in a fixed order, so results do not depend on the threads; but
// for the gradients of kernels, whose sums oneDNN cuts by the number of threads.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <list>
#include <map>
#include <memory>
#include <vector>

#include <omp.h>
#include <sys/mman.h>

#include "onednn.h"
#include "paddle/extension.h"

namespace {

using paddle::Tensor;

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

template <typename T>
const T* read(const Tensor& x) { return reinterpret_cast<const T*>(x.data()); }
template <typename T>
T* write(Tensor& x) { return reinterpret_cast<T*>(x.data()); }

bool is_half(const Tensor& x) { return x.dtype() == paddle::DataType::BFLOAT16; }

Tensor empty(const std::vector<int64_t>& shape, paddle::DataType type, const Tensor& beside) {
  return paddle::empty(shape, type, beside.place());
}

void require(bool holds, const char* what) {
  if (!holds) PD_THROW("compiled operators of bit_paddle: ", what);
}

void require_activations(const Tensor& x) {
  bool known = x.dtype() == paddle::DataType::FLOAT32 || is_half(x);
  require(x.is_cpu() && known && x.shape().size() == 4, "need [N, H, W, C] in float32 or bfloat16");
}

void require_float32(const Tensor& x, size_t dimensions) {
  bool right = x.dtype() == paddle::DataType::FLOAT32 && x.shape().size() == dimensions;
  require(x.is_cpu() && right, "need parameters in float32");
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

// --- Convolution ---------------------------------------------------------------------------------

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

// Memory that lives on between calls; each caller has its own slot.
char* buffer(int slot, size_t bytes) {
  static thread_local std::array<std::vector<char>, 2> slots;
  auto& one = slots[slot];
  if (one.size() < bytes + 64) { one.clear(); one.shrink_to_fit(); one.resize(bytes + 64); }
  return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(one.data()) + 63) & ~uintptr_t(63));
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

  template <typename T>
  void pack(const float* plain, T* packed) const {
    int64_t o = outputs.size(), size = inputs.size();
    if (padded) std::memset(packed, 0, layout.bytes());
#pragma omp parallel for
    for (int64_t first = 0; first < o; first += TILE)
      for (int64_t begin = 0; begin < size; begin += WIDTH) {
        T tile[TILE][WIDTH];  // in the nearest cache, where strides do no harm
        int64_t height = std::min(TILE, o - first), width = std::min(WIDTH, size - begin);
        for (int64_t k = 0; k < height; ++k) {
          const float* row = plain + (first + k) * size + begin;
#pragma omp simd
          for (int64_t j = 0; j < width; ++j) tile[k][j] = narrow<T>(row[j]);
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

  void unpack(const float* packed, float* plain) const {
    int64_t o = outputs.size(), size = inputs.size();
#pragma omp parallel for
    for (int64_t first = 0; first < o; first += TILE)
      for (int64_t begin = 0; begin < size; begin += WIDTH)
        for (int64_t k = first; k < std::min(o, first + TILE); ++k)
          for (int64_t j = begin; j < std::min(size, begin + WIDTH); ++j)
            plain[k * size + j] = packed[outputs[k] + inputs[j]];
  }
};

struct Geometry {
  int64_t n, h, w, i, o, k, stride, padding;
  int type, residual;
  int bytes() const { return type == dnnl_bf16 ? 2 : 4; }
  int64_t out_h() const { return (h + 2 * padding - k) / stride + 1; }
  int64_t out_w() const { return (w + 2 * padding - k) / stride + 1; }
  auto key() const { return std::array<int64_t, 10>{n, h, w, i, o, k, stride, padding, type, residual}; }
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
    if (g.residual) {
      dnnl_post_ops_t operations;
      check(dnnl_post_ops_create(&operations));
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

  const void* packed(const KernelLayout& to, const Tensor& kernel) const {
    char* room = buffer(1, to.layout.bytes());
    if (g.type == dnnl_bf16)
      to.pack(read<float>(kernel), reinterpret_cast<bf16*>(room));
    else
      to.pack(read<float>(kernel), reinterpret_cast<float*>(room));
    return room;
  }
};

// The convolutions met last. A network has some dozens; sizes that vary must not fill the memory.
Convolution& convolution(const Geometry& geometry) {
  static thread_local std::list<std::unique_ptr<Convolution>> kept;
  const size_t bound = 256;
  auto key = geometry.key();
  for (auto one = kept.begin(); one != kept.end(); ++one)
    if ((*one)->g.key() == key) {
      kept.splice(kept.begin(), kept, one);
      return *kept.front();
    }
  kept.emplace_front(new Convolution(geometry));
  if (kept.size() > bound) kept.pop_back();
  return *kept.front();
}

Geometry geometry(const Tensor& x, const Tensor& kernel, int stride, bool residual) {
  require_activations(x);
  require_float32(kernel, 4);
  auto s = x.shape(), k = kernel.shape();
  require(s[3] == k[1] && k[2] == k[3], "need a square kernel of as many channels");
  int type = is_half(x) ? dnnl_bf16 : dnnl_f32;
  return {s[0], s[1], s[2], s[3], k[0], k[2], stride, k[2] / 2, type, residual};
}

Tensor convolve_with(const Tensor& x, const Tensor& kernel, const Tensor* residual, int stride) {
  auto& one = convolution(geometry(x, kernel, stride, residual));
  Tensor y = empty({one.g.n, one.g.out_h(), one.g.out_w(), one.g.o}, x.dtype(), x);
  bool alike = !residual || (residual->shape() == y.shape() && residual->dtype() == y.dtype());
  require(alike, "need a residual like the result");
  std::vector<Primitive::Argument> arguments = {
      {DNNL_ARG_SRC, one.x, x.data()},
      {DNNL_ARG_WEIGHTS, one.forward_kernel.layout, one.packed(one.forward_kernel, kernel)},
      {DNNL_ARG_DST, one.y, y.data()}};
  if (residual)
    arguments.push_back({DNNL_ARG_POST_OP_0 | DNNL_ARG_SRC_1, one.y, residual->data()});
  one.forward->run(arguments);
  return y;
}

Tensor data_gradient(Convolution& one, const Tensor& x, const Tensor& kernel, const Tensor& dy) {
  one.prepare_data_gradient();
  Tensor dx = empty(x.shape(), x.dtype(), x);
  one.to_data->run(
      {{DNNL_ARG_DIFF_DST, one.y, dy.data()},
       {DNNL_ARG_WEIGHTS, one.data_kernel.layout, one.packed(one.data_kernel, kernel)},
       {DNNL_ARG_DIFF_SRC, one.x, dx.data()}});
  return dx;
}

Tensor kernel_gradient(Convolution& one, const Tensor& x, const Tensor& kernel, const Tensor& dy) {
  one.prepare_kernel_gradient();
  Tensor dw = empty(kernel.shape(), kernel.dtype(), kernel);
  char* room = buffer(1, one.kernel_gradient.layout.bytes());
  one.to_kernel->run({{DNNL_ARG_SRC, one.x, x.data()},
                      {DNNL_ARG_DIFF_DST, one.y, dy.data()},
                      {DNNL_ARG_DIFF_WEIGHTS, one.kernel_gradient.layout, room}});
  one.kernel_gradient.unpack(reinterpret_cast<float*>(room), write<float>(dw));
  return dw;
}

std::vector<Tensor> convolve(const Tensor& x, const Tensor& kernel, int stride) {
  return {convolve_with(x, kernel, nullptr, stride)};
}

std::vector<Tensor> convolve_backward(
    const Tensor& x, const Tensor& kernel, const Tensor& dy, int stride) {
  auto& one = convolution(geometry(x, kernel, stride, false));
  return {data_gradient(one, x, kernel, dy), kernel_gradient(one, x, kernel, dy)};
}

// The same for images, which need no gradient.
std::vector<Tensor> convolve_images_backward(
    const Tensor& x, const Tensor& kernel, const Tensor& dy, int stride) {
  return {kernel_gradient(convolution(geometry(x, kernel, stride, false)), x, kernel, dy)};
}

std::vector<Tensor> convolve_add(
    const Tensor& x, const Tensor& kernel, const Tensor& residual, int stride) {
  return {convolve_with(x, kernel, &residual, stride)};
}

std::vector<Tensor> convolve_add_backward(
    const Tensor& x, const Tensor& kernel, const Tensor& dy, int stride) {
  auto& one = convolution(geometry(x, kernel, stride, true));
  return {data_gradient(one, x, kernel, dy), kernel_gradient(one, x, kernel, dy), dy};
}

// --- GroupNorm and ReLU --------------------------------------------------------------------------

// How many pieces to cut each image's channels into, whole groups each, so that all threads work.
int pieces(int64_t images, int64_t groups) {
  int64_t wanted = 1;
  while (images * wanted < 4 && wanted < groups / 4) wanted *= 2;
  return wanted;
}

const int64_t ROWS = 256;  // pixels whose float32 sums go into a float64 one

// Sums of x and of its square over the pixels, of channels [from, to), less a channel's first value:
// then nothing cancels where a mean is large.
template <typename T>
void moments(
    const T* x, int64_t pixels, int64_t c, int64_t from, int64_t to, float* room, double* sums,
    double* squares) {
  int64_t width = to - from;
  float *first = room, *sum = first + width, *square = sum + width;
  for (int64_t k = 0; k < width; ++k) first[k] = widen(x[from + k]), sums[k] = squares[k] = 0;
  for (int64_t begin = 0; begin < pixels; begin += ROWS) {
    std::fill(sum, sum + 2 * width, 0.f);
    for (int64_t p = begin; p < std::min(pixels, begin + ROWS); ++p) {
      const T* row = x + p * c + from;
#pragma omp simd
      for (int64_t k = 0; k < width; ++k) {
        float d = widen(row[k]) - first[k];
        sum[k] += d;
        square[k] += d * d;
      }
    }
    for (int64_t k = 0; k < width; ++k) sums[k] += sum[k], squares[k] += square[k];
  }
  for (int64_t k = 0; k < width; ++k) {  // to the mean, and the sum of squares around that
    double mean = sums[k] / pixels;
    squares[k] = std::max(0.0, squares[k] - sums[k] * mean);
    sums[k] = first[k] + mean;
  }
}

template <typename T>
void norm_relu_of(
    const Tensor& x, const float* scale, const float* bias, int groups, float epsilon, Tensor& y,
    float* means, float* inverses) {
  auto s = x.shape();
  int64_t n = s[0], pixels = s[1] * s[2], c = s[3], size = c / groups;
  int cuts = pieces(n, groups);
  const T* whole_in = read<T>(x);
  T* whole_out = write<T>(y);
  Rooms<float> rooms(3 * c);
  Rooms<double> wide_rooms(2 * c);
#pragma omp parallel for collapse(2)
  for (int64_t image = 0; image < n; ++image)
    for (int cut = 0; cut < cuts; ++cut) {
      const T* in = whole_in + image * pixels * c;
      T* out = whole_out + image * pixels * c;
      int64_t from = groups * cut / cuts * size, to = groups * (cut + 1) / cuts * size;
      double *sums = wide_rooms.mine(), *squares = sums + c;
      moments(in, pixels, c, from, to, rooms.mine(), sums, squares);
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

std::vector<Tensor> norm_relu(
    const Tensor& x, const Tensor& scale, const Tensor& bias, int groups, float epsilon) {
  require_activations(x);
  require_float32(scale, 1);
  require_float32(bias, 1);
  int64_t c = x.shape()[3];
  bool fits = c % groups == 0 && scale.numel() == c && bias.numel() == c;
  require(fits, "need channels that the groups divide, and as many scales and biases");
  Tensor y = empty(x.shape(), x.dtype(), x);
  Tensor means = empty({x.shape()[0], groups}, paddle::DataType::FLOAT32, x);
  Tensor inverses = empty({x.shape()[0], groups}, paddle::DataType::FLOAT32, x);
  auto run = is_half(x) ? norm_relu_of<bf16> : norm_relu_of<float>;
  run(x, read<float>(scale), read<float>(bias), groups, epsilon, y, write<float>(means),
      write<float>(inverses));
  return {y, means, inverses};
}

// With z = scale * (x - mean) * inverse + bias and y = max(0, z): dz = dy where z > 0, and over a
// group of m numbers dx = inverse * (scale dz - mean(scale dz) - xhat mean(scale dz xhat)).
template <typename T>
void norm_relu_gradient_of(
    const Tensor& x, const float* scale, const float* bias, const Tensor& saved_means,
    const Tensor& saved_inverses, const Tensor& dy, const Tensor* beside, Tensor& dx,
    double* dscale, double* dbias) {
  const float *means = read<float>(saved_means), *inverses = read<float>(saved_inverses);
  auto s = x.shape();
  int64_t n = s[0], pixels = s[1] * s[2], c = s[3];
  int groups = saved_means.shape()[1];
  int64_t size = c / groups;
  int cuts = pieces(n, groups);
  const T *whole_in = read<T>(x), *whole_above = read<T>(dy);
  const T* whole_beside = beside ? read<T>(*beside) : nullptr;
  T* whole_out = write<T>(dx);
  Rooms<float> rooms(6 * c);
#pragma omp parallel for collapse(2)
  for (int64_t image = 0; image < n; ++image)
    for (int cut = 0; cut < cuts; ++cut) {
      const T* in = whole_in + image * pixels * c;
      const T* above = whole_above + image * pixels * c;
      T* out = whole_out + image * pixels * c;
      int64_t from = groups * cut / cuts * size, to = groups * (cut + 1) / cuts * size, width = to - from;
      float *factor = rooms.mine(), *shift = factor + width, *mean = shift + width,
            *sum = mean + width, *product = sum + width, *constant = product + width;
      for (int64_t k = 0; k < width; ++k) {
        int64_t g = image * groups + (from + k) / size;
        mean[k] = means[g];
        factor[k] = scale[from + k] * inverses[g];
        shift[k] = bias[from + k] - means[g] * factor[k];
      }
      double *dbias_here = dbias + image * c + from, *dscale_here = dscale + image * c + from;
      std::fill(dbias_here, dbias_here + width, 0.0);
      std::fill(dscale_here, dscale_here + width, 0.0);
      for (int64_t begin = 0; begin < pixels; begin += ROWS) {
        std::fill(sum, sum + 2 * width, 0.f);
        for (int64_t p = begin; p < std::min(pixels, begin + ROWS); ++p) {
          const T *row = in + p * c + from, *above_row = above + p * c + from;
#pragma omp simd
          for (int64_t k = 0; k < width; ++k) {
            float value = widen(row[k]), up = widen(above_row[k]);
            float dz = value * factor[k] + shift[k] <= 0 ? 0.f : up;
            sum[k] += dz;
            product[k] += dz * (value - mean[k]);
          }
        }
        for (int64_t k = 0; k < width; ++k) dbias_here[k] += sum[k], dscale_here[k] += product[k];
      }
      float *slope = sum;
      for (int64_t g = 0; g < width; g += size) {
        double inverse = inverses[image * groups + (from + g) / size], first = 0, second = 0;
        for (int64_t k = g; k < g + size; ++k) {
          dscale_here[k] *= inverse;
          first += scale[from + k] * dbias_here[k];
          second += scale[from + k] * dscale_here[k];
        }
        first /= size * pixels, second /= size * pixels;
        for (int64_t k = g; k < g + size; ++k) {
          slope[k] = -inverse * inverse * second;
          constant[k] = -inverse * first + mean[k] * inverse * inverse * second;
        }
      }
      for (int64_t p = 0; p < pixels; ++p) {
        const T *row = in + p * c + from, *above_row = above + p * c + from;
        const T* more = beside ? whole_beside + (image * pixels + p) * c + from : nullptr;
        T* to_row = out + p * c + from;
#pragma omp simd
        for (int64_t k = 0; k < width; ++k) {
          float value = widen(row[k]), up = widen(above_row[k]);
          float dz = value * factor[k] + shift[k] <= 0 ? 0.f : up;
          float down = dz * factor[k] + value * slope[k] + constant[k];
          to_row[k] = narrow<T>(beside ? down + widen(more[k]) : down);
        }
      }
    }
}

// The gradients by x, scale and bias, of which the first is added to that ``beside``.
std::vector<Tensor> norm_relu_gradients(
    const Tensor& x, const Tensor& scale, const Tensor& bias, const Tensor& means,
    const Tensor& inverses, const Tensor& dy, const Tensor* beside, Tensor dx) {
  int64_t n = x.shape()[0], c = x.shape()[3];
  std::vector<double> dscales(n * c), dbiases(n * c);
  auto run = is_half(x) ? norm_relu_gradient_of<bf16> : norm_relu_gradient_of<float>;
  run(x, read<float>(scale), read<float>(bias), means, inverses, dy, beside, dx, dscales.data(),
      dbiases.data());
  Tensor dscale = empty({c}, scale.dtype(), scale), dbias = empty({c}, scale.dtype(), scale);
  for (int64_t k = 0; k < c; ++k) {
    double first = 0, second = 0;
    for (int64_t image = 0; image < n; ++image)
      first += dscales[image * c + k], second += dbiases[image * c + k];
    write<float>(dscale)[k] = first, write<float>(dbias)[k] = second;
  }
  return {dx, dscale, dbias};
}

std::vector<Tensor> norm_relu_backward(
    const Tensor& x, const Tensor& scale, const Tensor& bias, const Tensor& means,
    const Tensor& inverses, const Tensor& dy) {
  Tensor dx = empty(x.shape(), x.dtype(), x);
  return norm_relu_gradients(x, scale, bias, means, inverses, dy, nullptr, dx);
}

// With x itself as a second output: what comes back for it is added as the gradient is written.
std::vector<Tensor> norm_relu_beside(
    const Tensor& x, const Tensor& scale, const Tensor& bias, int groups, float epsilon) {
  auto made = norm_relu(x, scale, bias, groups, epsilon);
  return {made[0], Tensor(x.impl()), made[1], made[2]};
}

Tensor zeros_like(const Tensor& x) {
  Tensor made = empty(x.shape(), x.dtype(), x);
  std::memset(made.data(), 0, x.numel() * sizeof(float));
  return made;
}

std::vector<Tensor> norm_relu_beside_backward(
    const Tensor& x, const Tensor& scale, const Tensor& bias, const Tensor& means,
    const Tensor& inverses, const Tensor& dy, const Tensor& beside) {
  Tensor dx = empty(x.shape(), x.dtype(), x);
  if (!dy.defined()) return {beside, zeros_like(scale), zeros_like(bias)};
  const Tensor* more = beside.defined() ? &beside : nullptr;
  return norm_relu_gradients(x, scale, bias, means, inverses, dy, more, dx);
}

// With the result twice, for two users: what comes back is added up by all threads.
std::vector<Tensor> norm_relu_twice(
    const Tensor& x, const Tensor& scale, const Tensor& bias, int groups, float epsilon) {
  auto made = norm_relu(x, scale, bias, groups, epsilon);
  return {made[0], Tensor(made[0].impl()), made[1], made[2]};
}

template <typename T>
void add_of(const Tensor& a, const Tensor& b, Tensor& sum) {
  const T *first = read<T>(a), *second = read<T>(b);
  T* to = write<T>(sum);
#pragma omp parallel for simd
  for (int64_t k = 0; k < a.numel(); ++k) to[k] = narrow<T>(widen(first[k]) + widen(second[k]));
}

std::vector<Tensor> norm_relu_twice_backward(
    const Tensor& x, const Tensor& scale, const Tensor& bias, const Tensor& means,
    const Tensor& inverses, const Tensor& dy, const Tensor& dy2) {
  Tensor dx = empty(x.shape(), x.dtype(), x);
  if (!dy.defined() || !dy2.defined())
    return norm_relu_gradients(
        x, scale, bias, means, inverses, dy.defined() ? dy : dy2, nullptr, dx);
  (is_half(x) ? add_of<bf16> : add_of<float>)(dy, dy2, dx);
  return norm_relu_gradients(x, scale, bias, means, inverses, dx, nullptr, dx);
}

// --- Pooling -------------------------------------------------------------------------------------

// Maxima of 3 x 3 pixels at stride 2, with zeros around. ``which`` names the pixel of a window, or
// 9 for a zero: the first of equal ones, in the order of memory.
template <typename T>
void pool_of(const Tensor& x, Tensor& y, uint8_t* which) {
  auto s = x.shape(), t = y.shape();
  int64_t n = s[0], h = s[1], w = s[2], c = s[3], out_h = t[1], out_w = t[2];
  const T* from = read<T>(x);
  T* to = write<T>(y);
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

std::vector<Tensor> pool(const Tensor& x) {
  require_activations(x);
  auto s = x.shape();
  std::vector<int64_t> shape = {s[0], (s[1] - 1) / 2 + 1, (s[2] - 1) / 2 + 1, s[3]};
  Tensor y = empty(shape, x.dtype(), x), which = empty(shape, paddle::DataType::UINT8, x);
  (is_half(x) ? pool_of<bf16> : pool_of<float>)(x, y, write<uint8_t>(which));
  return {y, which};
}

template <typename T>
void pool_gradient_of(const Tensor& dy, const uint8_t* which, Tensor& dx) {
  auto s = dx.shape(), t = dy.shape();
  int64_t n = s[0], h = s[1], w = s[2], c = s[3], out_h = t[1], out_w = t[2];
  const T* above = read<T>(dy);
  T* below = write<T>(dx);
  Rooms<float> sums(c);
#pragma omp parallel for collapse(2)
  for (int64_t image = 0; image < n; ++image)
    for (int64_t i = 0; i < h; ++i) {
      float* sum = sums.mine();
      for (int64_t j = 0; j < w; ++j) {
        std::fill(sum, sum + c, 0.f);
        for (int64_t row = i / 2; row <= std::min(out_h - 1, (i + 1) / 2); ++row)
          for (int64_t column = j / 2; column <= std::min(out_w - 1, (j + 1) / 2); ++column) {
            int place = (i - 2 * row + 1) * 3 + j - 2 * column + 1;
            int64_t at = ((image * out_h + row) * out_w + column) * c;
            const T* from = above + at;
            const uint8_t* name = which + at;
#pragma omp simd
            for (int64_t k = 0; k < c; ++k) sum[k] += name[k] == place ? widen(from[k]) : 0.f;
          }
        T* to = below + ((image * h + i) * w + j) * c;
#pragma omp simd
        for (int64_t k = 0; k < c; ++k) to[k] = narrow<T>(sum[k]);
      }
    }
}

std::vector<Tensor> pool_backward(const Tensor& x, const Tensor& which, const Tensor& dy) {
  Tensor dx = empty(x.shape(), x.dtype(), x);
  (is_half(x) ? pool_gradient_of<bf16> : pool_gradient_of<float>)(dy, read<uint8_t>(which), dx);
  return {dx};
}

// --- Standardization -----------------------------------------------------------------------------

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

std::vector<Tensor> standardize(const Tensor& weight, float epsilon) {
  require_float32(weight, 4);
  auto s = weight.shape();
  int64_t o = s[0], size = s[1] * s[2] * s[3];
  Tensor out = empty(s, weight.dtype(), weight);
  Tensor inverses = empty({o}, weight.dtype(), weight);
  const float* from = read<float>(weight);
  float *to = write<float>(out), *inverse_of = write<float>(inverses);
#pragma omp parallel for
  for (int64_t k = 0; k < o; ++k) {
    const float* in = from + k * size;
    float* row = to + k * size;
    float mean = sum_of(size, [=](int64_t j) { return in[j]; }) / size;
    float rest = sum_of(size, [=](int64_t j) { return in[j] - mean; }) / size;  // of rounding it
    double square = sum_of(size, [=](int64_t j) { return (in[j] - mean) * (in[j] - mean); });
    float inverse = 1 / std::sqrt(square / size - double(rest) * rest + epsilon);
    inverse_of[k] = inverse;
#pragma omp simd
    for (int64_t j = 0; j < size; ++j) row[j] = (in[j] - mean - rest) * inverse;
  }
  return {out, inverses};
}

std::vector<Tensor> standardize_backward(
    const Tensor& standardized, const Tensor& inverses, const Tensor& gradient) {
  auto s = standardized.shape();
  int64_t o = s[0], size = s[1] * s[2] * s[3];
  Tensor out = empty(s, gradient.dtype(), gradient);
  const float *kernel = read<float>(standardized), *above = read<float>(gradient);
  const float* inverse_of = read<float>(inverses);
  float* to = write<float>(out);
#pragma omp parallel for
  for (int64_t k = 0; k < o; ++k) {
    const float *w = kernel + k * size, *g = above + k * size;
    float* row = to + k * size;
    float inverse = inverse_of[k];
    float first = sum_of(size, [=](int64_t j) { return g[j]; }) / size;
    float second = sum_of(size, [=](int64_t j) { return g[j] * w[j]; }) / size;
#pragma omp simd
    for (int64_t j = 0; j < size; ++j) row[j] = inverse * (g[j] - first - w[j] * second);
  }
  return {out};
}

// What Paddle calls: a bad_alloc would end the process there.
template <typename Function, Function function>
struct Guarded;
template <typename... Inputs, std::vector<Tensor> (*function)(Inputs...)>
struct Guarded<std::vector<Tensor> (*)(Inputs...), function> {
  static std::vector<Tensor> run(Inputs... inputs) {
    try {
      return function(inputs...);
    } catch (const std::bad_alloc&) {
      PD_THROW("out of memory");
    }
  }
};

using convolve_guarded = Guarded<decltype(&convolve), &convolve>;
using convolve_backward_guarded = Guarded<decltype(&convolve_backward), &convolve_backward>;
using convolve_images_backward_guarded = Guarded<decltype(&convolve_images_backward), &convolve_images_backward>;
using convolve_add_guarded = Guarded<decltype(&convolve_add), &convolve_add>;
using convolve_add_backward_guarded = Guarded<decltype(&convolve_add_backward), &convolve_add_backward>;
using norm_relu_guarded = Guarded<decltype(&norm_relu), &norm_relu>;
using norm_relu_backward_guarded = Guarded<decltype(&norm_relu_backward), &norm_relu_backward>;
using norm_relu_beside_guarded = Guarded<decltype(&norm_relu_beside), &norm_relu_beside>;
using norm_relu_beside_backward_guarded = Guarded<decltype(&norm_relu_beside_backward), &norm_relu_beside_backward>;
using norm_relu_twice_guarded = Guarded<decltype(&norm_relu_twice), &norm_relu_twice>;
using norm_relu_twice_backward_guarded = Guarded<decltype(&norm_relu_twice_backward), &norm_relu_twice_backward>;
using standardize_guarded = Guarded<decltype(&standardize), &standardize>;
using standardize_backward_guarded = Guarded<decltype(&standardize_backward), &standardize_backward>;
using pool_guarded = Guarded<decltype(&pool), &pool>;
using pool_backward_guarded = Guarded<decltype(&pool_backward), &pool_backward>;

}  // namespace

PD_BUILD_OP(bit_convolve)
    .Inputs({"X", "Kernel"})
    .Outputs({"Y"})
    .Attrs({"stride: int"})
    .SetKernelFn(PD_KERNEL(convolve_guarded::run));
PD_BUILD_GRAD_OP(bit_convolve)
    .Inputs({"X", "Kernel", paddle::Grad("Y")})
    .Outputs({paddle::Grad("X"), paddle::Grad("Kernel")})
    .Attrs({"stride: int"})
    .SetKernelFn(PD_KERNEL(convolve_backward_guarded::run));

PD_BUILD_OP(bit_convolve_images)
    .Inputs({"X", "Kernel"})
    .Outputs({"Y"})
    .Attrs({"stride: int"})
    .SetKernelFn(PD_KERNEL(convolve_guarded::run));
PD_BUILD_GRAD_OP(bit_convolve_images)
    .Inputs({"X", "Kernel", paddle::Grad("Y")})
    .Outputs({paddle::Grad("Kernel")})
    .Attrs({"stride: int"})
    .SetKernelFn(PD_KERNEL(convolve_images_backward_guarded::run));

PD_BUILD_OP(bit_convolve_add)
    .Inputs({"X", "Kernel", "Residual"})
    .Outputs({"Y"})
    .Attrs({"stride: int"})
    .SetKernelFn(PD_KERNEL(convolve_add_guarded::run));
PD_BUILD_GRAD_OP(bit_convolve_add)
    .Inputs({"X", "Kernel", paddle::Grad("Y")})
    .Outputs({paddle::Grad("X"), paddle::Grad("Kernel"), paddle::Grad("Residual")})
    .Attrs({"stride: int"})
    .SetKernelFn(PD_KERNEL(convolve_add_backward_guarded::run));

PD_BUILD_OP(bit_norm_relu)
    .Inputs({"X", "Scale", "Bias"})
    .Outputs({"Y", "Means", "Inverses"})
    .Attrs({"groups: int", "epsilon: float"})
    .SetKernelFn(PD_KERNEL(norm_relu_guarded::run));
PD_BUILD_GRAD_OP(bit_norm_relu)
    .Inputs({"X", "Scale", "Bias", "Means", "Inverses", paddle::Grad("Y")})
    .Outputs({paddle::Grad("X"), paddle::Grad("Scale"), paddle::Grad("Bias")})
    .SetKernelFn(PD_KERNEL(norm_relu_backward_guarded::run));

PD_BUILD_OP(bit_norm_relu_beside)
    .Inputs({"X", "Scale", "Bias"})
    .Outputs({"Y", "Beside", "Means", "Inverses"})
    .Attrs({"groups: int", "epsilon: float"})
    .SetKernelFn(PD_KERNEL(norm_relu_beside_guarded::run));
PD_BUILD_GRAD_OP(bit_norm_relu_beside)
    .Inputs({"X", "Scale", "Bias", "Means", "Inverses", paddle::Grad("Y"), paddle::Grad("Beside")})
    .Outputs({paddle::Grad("X"), paddle::Grad("Scale"), paddle::Grad("Bias")})
    .SetKernelFn(PD_KERNEL(norm_relu_beside_backward_guarded::run));

PD_BUILD_OP(bit_norm_relu_twice)
    .Inputs({"X", "Scale", "Bias"})
    .Outputs({"Y", "Twin", "Means", "Inverses"})
    .Attrs({"groups: int", "epsilon: float"})
    .SetKernelFn(PD_KERNEL(norm_relu_twice_guarded::run));
PD_BUILD_GRAD_OP(bit_norm_relu_twice)
    .Inputs({"X", "Scale", "Bias", "Means", "Inverses", paddle::Grad("Y"), paddle::Grad("Twin")})
    .Outputs({paddle::Grad("X"), paddle::Grad("Scale"), paddle::Grad("Bias")})
    .SetKernelFn(PD_KERNEL(norm_relu_twice_backward_guarded::run));

PD_BUILD_OP(bit_standardize)
    .Inputs({"Weight"})
    .Outputs({"Standardized", "Inverses"})
    .Attrs({"epsilon: float"})
    .SetKernelFn(PD_KERNEL(standardize_guarded::run));
PD_BUILD_GRAD_OP(bit_standardize)
    .Inputs({"Standardized", "Inverses", paddle::Grad("Standardized")})
    .Outputs({paddle::Grad("Weight")})
    .SetKernelFn(PD_KERNEL(standardize_backward_guarded::run));

PD_BUILD_OP(bit_pool).Inputs({"X"}).Outputs({"Y", "Which"}).SetKernelFn(PD_KERNEL(pool_guarded::run));
PD_BUILD_GRAD_OP(bit_pool)
    .Inputs({"X", "Which", paddle::Grad("Y")})
    .Outputs({paddle::Grad("X")})
    .SetKernelFn(PD_KERNEL(pool_backward_guarded::run));
