// Operators of BiT on a CPU. Activations are [N, H, W, C], float32 or bfloat16; kernels
// [O, I, H, W], statistics and the gradients of parameters are float32. Work is cut by image or by
// output channel and sums are made in a fixed order, so results do not depend on the threads; but
// for the gradients of kernels, whose sums oneDNN cuts by the number of threads.

#include <algorithm>
#include <atomic>
#include <cstring>
#include <list>
#include <tuple>
#include <utility>
#include <vector>

#include "network.h"
#include "primitives.h"

namespace {

using paddle::Tensor;

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

// --- Convolution ---------------------------------------------------------------------------------

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
  int type = is_half(x) ? dnnl_bf16 : dnnl_f32, adding = residual ? RESIDUAL : NOTHING;
  return {s[0], s[1], s[2], s[3], k[0], k[2], stride, k[2] / 2, type, adding};
}

// Whether other passes use the same kernel: none, some after this one, or only some before it.
enum { ALONE, EARLY, LAST };

// What they share: kernels in the layouts of primitives, and the sums of the gradients so far, of
// standardized kernels, in the plain layout. Both are found by the address of the kernel's numbers.
struct Shared {
  std::map<std::tuple<const float*, decltype(Geometry().key()), bool>, Tensor> packed;
  std::map<const float*, Tensor> sums;
  int64_t bytes = 0;
};

Shared& shared() {
  static thread_local Shared one;
  return one;
}

const int64_t MOST_PACKED = 512 << 20;  // bytes of packed kernels to keep

// The kernel in a layout of ``one``; ``way_back`` tells the layouts apart.
const void* packed(
    Convolution& one, bool way_back, const Tensor& kernel, float epsilon, int share) {
  const KernelLayout& to = way_back ? one.data_kernel : one.forward_kernel;
  const float* plain = read<float>(kernel);
  if (share == ALONE) return one.packed(to, plain, epsilon);
  auto key = std::make_tuple(plain, one.g.key(), way_back);
  auto found = shared().packed.find(key);
  if (found == shared().packed.end()) {
    int64_t bytes = to.layout.bytes() + 64;
    if (share == LAST || shared().bytes + bytes > MOST_PACKED) return one.packed(to, plain, epsilon);
    Tensor room = empty({bytes}, paddle::DataType::UINT8, kernel);
    one.pack(to, plain, epsilon, aligned(write<char>(room)));
    shared().bytes += bytes;
    found = shared().packed.emplace(key, room).first;
  }
  return aligned(write<char>(found->second));
}

Tensor convolve_with(
    const Tensor& x, const Tensor& kernel, const Tensor* residual, int stride, float epsilon,
    int share) {
  auto& one = convolution(geometry(x, kernel, stride, residual));
  Tensor y = empty({one.g.n, one.g.out_h(), one.g.out_w(), one.g.o}, x.dtype(), x);
  bool alike = !residual || (residual->shape() == y.shape() && residual->dtype() == y.dtype());
  require(alike, "need a residual like the result");
  std::vector<Primitive::Argument> arguments = {
      {DNNL_ARG_SRC, one.x, x.data()},
      {DNNL_ARG_WEIGHTS, one.forward_kernel.layout, packed(one, false, kernel, epsilon, share)},
      {DNNL_ARG_DST, one.y, y.data()}};
  if (residual)
    arguments.push_back({DNNL_ARG_POST_OP_0 | DNNL_ARG_SRC_1, one.y, residual->data()});
  one.forward->run(arguments);
  return y;
}

Tensor data_gradient(
    Convolution& one, const Tensor& x, const Tensor& kernel, const Tensor& dy, float epsilon,
    int share) {
  one.prepare_data_gradient();
  Tensor dx = empty(x.shape(), x.dtype(), x);
  one.to_data->run(
      {{DNNL_ARG_DIFF_DST, one.y, dy.data()},
       {DNNL_ARG_WEIGHTS, one.data_kernel.layout, packed(one, true, kernel, epsilon, share)},
       {DNNL_ARG_DIFF_SRC, one.x, dx.data()}});
  return dx;
}

// Of an early pass the gradient goes into the sum. Paddle does not use the result then, because the
// kernel was given without need of a gradient.
Tensor kernel_gradient(
    Convolution& one, const Tensor& x, const Tensor& kernel, const Tensor& dy, float epsilon,
    int share) {
  one.prepare_kernel_gradient();
  const float* plain = read<float>(kernel);
  char* room = buffer(1, one.kernel_gradient.layout.bytes());
  one.to_kernel->run({{DNNL_ARG_SRC, one.x, x.data()},
                      {DNNL_ARG_DIFF_DST, one.y, dy.data()},
                      {DNNL_ARG_DIFF_WEIGHTS, one.kernel_gradient.layout, room}});
  auto earlier = share == ALONE ? shared().sums.end() : shared().sums.find(plain);
  bool adds = earlier != shared().sums.end();
  Tensor dw = adds ? earlier->second : empty(kernel.shape(), kernel.dtype(), kernel);
  one.kernel_gradient.unpack(
      reinterpret_cast<float*>(room), plain, share == EARLY ? -1 : epsilon, adds, write<float>(dw));
  if (share == EARLY) {
    shared().sums.emplace(plain, dw);
    return kernel;
  }
  if (adds) shared().sums.erase(earlier);
  return dw;
}

std::vector<Tensor> convolve(
    const Tensor& x, const Tensor& kernel, int stride, float epsilon, int share) {
  return {convolve_with(x, kernel, nullptr, stride, epsilon, share)};
}

std::vector<Tensor> convolve_backward(
    const Tensor& x, const Tensor& kernel, const Tensor& dy, int stride, float epsilon, int share) {
  auto& one = convolution(geometry(x, kernel, stride, false));
  return {data_gradient(one, x, kernel, dy, epsilon, share),
          kernel_gradient(one, x, kernel, dy, epsilon, share)};
}

// The same for images, which need no gradient.
std::vector<Tensor> convolve_images(
    const Tensor& x, const Tensor& kernel, int stride, float epsilon) {
  return convolve(x, kernel, stride, epsilon, ALONE);
}

std::vector<Tensor> convolve_images_backward(
    const Tensor& x, const Tensor& kernel, const Tensor& dy, int stride, float epsilon) {
  auto& one = convolution(geometry(x, kernel, stride, false));
  return {kernel_gradient(one, x, kernel, dy, epsilon, ALONE)};
}

std::vector<Tensor> convolve_add(
    const Tensor& x, const Tensor& kernel, const Tensor& residual, int stride, float epsilon,
    int share) {
  return {convolve_with(x, kernel, &residual, stride, epsilon, share)};
}

std::vector<Tensor> convolve_add_backward(
    const Tensor& x, const Tensor& kernel, const Tensor& dy, int stride, float epsilon, int share) {
  auto& one = convolution(geometry(x, kernel, stride, true));
  return {data_gradient(one, x, kernel, dy, epsilon, share),
          kernel_gradient(one, x, kernel, dy, epsilon, share), dy};
}

// --- GroupNorm and ReLU --------------------------------------------------------------------------

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
  auto run = [&](auto* from, auto* to) {
    norm_relu_of(
        from, x.shape()[0], x.shape()[1] * x.shape()[2], c, read<float>(scale), read<float>(bias),
        groups, epsilon, to, write<float>(means), write<float>(inverses));
  };
  if (is_half(x))
    run(read<bf16>(x), write<bf16>(y));
  else
    run(read<float>(x), write<float>(y));
  return {y, means, inverses};
}

// Sums over the pixels of dz, the gradient before ReLU, and of dz (x - mean), of the channels of V
// registers.
template <int V, typename W, typename T>
void gradient_sums(
    const T* x, const T* dy, int64_t pixels, int64_t c, const float* factors, const float* shifts,
    const float* means, double* sums, double* products) {
  const int width = sizeof(W) / 4;
  W factor[V], shift[V], mean[V];
  for (int v = 0; v < V; ++v) {
    factor[v] = load<W>(factors + width * v), shift[v] = load<W>(shifts + width * v);
    mean[v] = load<W>(means + width * v);
  }
  std::fill(sums, sums + width * V, 0.0), std::fill(products, products + width * V, 0.0);
  for (int64_t begin = 0; begin < pixels; begin += ROWS) {
    W sum[V] = {}, product[V] = {};
    for (int64_t p = begin; p < std::min(pixels, begin + ROWS); ++p)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        W value = load<W>(x + p * c + width * v), up = load<W>(dy + p * c + width * v);
        W dz = value * factor[v] + shift[v] <= 0 ? W{} : up;
        sum[v] += dz;
        product[v] += dz * (value - mean[v]);
      }
    for (int v = 0; v < V; ++v)
      add_to(sums + width * v, sum[v]), add_to(products + width * v, product[v]);
  }
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
  int64_t cuts = pieces(n, groups, 2 * pixels * c * sizeof(T));
  const T *whole_in = read<T>(x), *whole_above = read<T>(dy);
  const T* whole_beside = beside ? read<T>(*beside) : nullptr;
  T* whole_out = write<T>(dx);
  Rooms<float> rooms(5 * c);
#pragma omp parallel for collapse(2)
  for (int64_t image = 0; image < n; ++image)
    for (int64_t cut = 0; cut < cuts; ++cut) {
      const T* in = whole_in + image * pixels * c;
      const T* above = whole_above + image * pixels * c;
      T* out = whole_out + image * pixels * c;
      int64_t from = groups * cut / cuts * size, to = groups * (cut + 1) / cuts * size, width = to - from;
      float *factor = rooms.mine(), *shift = factor + width, *mean = shift + width,
            *slope = mean + width, *constant = slope + width;
      for (int64_t k = 0; k < width; ++k) {
        int64_t g = image * groups + (from + k) / size;
        mean[k] = means[g];
        factor[k] = scale[from + k] * inverses[g];
        shift[k] = bias[from + k] - means[g] * factor[k];
      }
      double *dbias_here = dbias + image * c + from, *dscale_here = dscale + image * c + from;
      over_channels(width, [&](auto tile, auto wide, int64_t k) {
        gradient_sums<tile, decltype(wide)>(
            in + from + k, above + from + k, pixels, c, factor + k, shift + k, mean + k,
            dbias_here + k, dscale_here + k);
      });
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

std::vector<Tensor> pool(const Tensor& x) {
  require_activations(x);
  auto s = x.shape();
  std::vector<int64_t> shape = {s[0], (s[1] - 1) / 2 + 1, (s[2] - 1) / 2 + 1, s[3]};
  Tensor y = empty(shape, x.dtype(), x), which = empty(shape, paddle::DataType::UINT8, x);
  auto run = [&](auto* from, auto* to) {
    pool_of(from, s[0], s[1], s[2], s[3], to, write<uint8_t>(which));
  };
  if (is_half(x))
    run(read<bf16>(x), write<bf16>(y));
  else
    run(read<float>(x), write<float>(y));
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

// --- The optimizer's step ------------------------------------------------------------------------

// The sum of each tensor.
std::vector<Tensor> sums(const std::vector<Tensor>& tensors) {
  require(!tensors.empty(), "need tensors");
  Tensor made = empty({int64_t(tensors.size())}, paddle::DataType::FLOAT32, tensors[0]);
  for (size_t place = 0; place < tensors.size(); ++place) {
    require_float32(tensors[place], tensors[place].shape().size());
    const float* x = read<float>(tensors[place]);
    int64_t size = tensors[place].numel(), piece = 1 << 16;
    double total = 0;
#pragma omp parallel for reduction(+ : total)
    for (int64_t begin = 0; begin < size; begin += piece)
      total += sum_of(std::min(piece, size - begin), [=](int64_t k) { return x[begin + k]; });
    write<float>(made)[place] = total;
  }
  return {made};
}

#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")  // rounds each product, as Paddle's single operations do

// v = momentum v + g + decay w; w = w - lr v; in place.
void momentum_step_of(
    float* w, float* v, const float* g, int64_t size, float lr, float momentum, float decay) {
#pragma omp parallel for simd
  for (int64_t k = 0; k < size; ++k) {
    float velocity = v[k] * momentum + g[k];
    if (decay != 0) velocity += w[k] * decay;
    v[k] = velocity;
    w[k] -= velocity * lr;
  }
}

#pragma GCC pop_options

void momentum_step(
    Tensor& parameter, Tensor& velocity, const Tensor& gradient, float lr, float momentum,
    float decay) {
  for (const Tensor* one : {&std::as_const(parameter), &std::as_const(velocity), &gradient}) {
    require_float32(*one, parameter.shape().size());
    require(one->numel() == parameter.numel(), "need as many numbers in each");
  }
  momentum_step_of(
      write<float>(parameter), write<float>(velocity), read<float>(gradient), parameter.numel(), lr,
      momentum, decay);
}

// --- The whole network, for inference ------------------------------------------------------------

// The networks that live, by their numbers. A number is given once.
template <typename T>
struct Networks {
  static inline std::mutex busy;
  static inline std::map<int64_t, std::shared_ptr<Network<T>>> all;

  static std::shared_ptr<Network<T>> find(int64_t number) {
    std::lock_guard<std::mutex> alone(busy);
    auto found = all.find(number);
    return found == all.end() ? nullptr : found->second;
  }
};

std::atomic<int64_t> numbers_given{0};

// The number of a new network of these parameters: in the order of the data, each norm before the
// convolution that follows it, the projection of a stage before the other convolutions of its unit.
// ``images``: of the size that is expected.
std::vector<Tensor> prepare(
    const Tensor& images, const std::vector<Tensor>& parameters, const std::vector<int>& units,
    bool half, int groups, float epsilon, float standardization_epsilon) {
  for (auto& one : parameters) require_float32(one, one.shape().size());
  auto s = images.shape();
  int64_t number = ++numbers_given;
  auto make = [&](auto zero) {
    using Kind = Networks<decltype(zero)>;
    auto made = std::make_shared<Network<decltype(zero)>>(
        parameters, units, s[0], s[2], s[3], groups, epsilon, standardization_epsilon);
    std::lock_guard<std::mutex> alone(Kind::busy);
    Kind::all[number] = made;
  };
  half ? make(bf16()) : make(float());
  Tensor found = empty({1}, paddle::DataType::INT64, images);
  *write<int64_t>(found) = number;
  return {found};
}

// The outputs of all stages, and the last one activated.
template <typename T>
std::vector<Tensor> infer_with(
    Network<T>& network, const Tensor& x, paddle::DataType type, bool with_stages) {
  require(x.is_cpu() && x.dtype() == paddle::DataType::FLOAT32 && x.shape().size() == 4 &&
          x.shape()[1] == 3, "need images [N, 3, H, W] in float32");
  auto s = x.shape();
  std::vector<Tensor> made;
  std::vector<T*> results;
  int64_t h = (s[2] + 3) / 4, w = (s[3] + 3) / 4;
  for (size_t stage = 0; stage < network.channels.size(); ++stage) {
    if (stage) h = (h + 1) / 2, w = (w + 1) / 2;
    std::vector<int64_t> shape = {s[0], h, w, network.channels[stage]};
    if (with_stages) {
      made.push_back(empty(shape, type, x));
      results.push_back(write<T>(made.back()));
    }
    if (stage + 1 == network.channels.size()) made.push_back(empty(shape, type, x));
  }
  std::lock_guard<std::mutex> alone(network.busy);
  network.run(
      read<float>(x), s[0], s[2], s[3], with_stages ? results.data() : nullptr,
      write<T>(made.back()));
  return made;
}

std::vector<Tensor> infer_all(const Tensor& x, int64_t number, bool with_stages) {
  if (auto network = Networks<float>::find(number))
    return infer_with(*network, x, paddle::DataType::FLOAT32, with_stages);
  auto network = Networks<bf16>::find(number);
  require(bool(network), "need the number of a network");
  return infer_with(*network, x, paddle::DataType::BFLOAT16, with_stages);
}

std::vector<Tensor> infer(const Tensor& x, int64_t number) { return infer_all(x, number, false); }

std::vector<Tensor> infer_stages(const Tensor& x, int64_t number) {
  return infer_all(x, number, true);
}

// What Paddle calls: a bad_alloc would end the process there.
template <typename Function, Function function>
struct Guarded;
template <typename Result, typename... Inputs, Result (*function)(Inputs...)>
struct Guarded<Result (*)(Inputs...), function> {
  static Result run(Inputs... inputs) {
    try {
      return function(inputs...);
    } catch (const std::bad_alloc&) {
      PD_THROW("out of memory");
    }
  }
};

using convolve_guarded = Guarded<decltype(&convolve), &convolve>;
using convolve_backward_guarded = Guarded<decltype(&convolve_backward), &convolve_backward>;
using convolve_images_guarded = Guarded<decltype(&convolve_images), &convolve_images>;
using convolve_images_backward_guarded = Guarded<decltype(&convolve_images_backward), &convolve_images_backward>;
using convolve_add_guarded = Guarded<decltype(&convolve_add), &convolve_add>;
using convolve_add_backward_guarded = Guarded<decltype(&convolve_add_backward), &convolve_add_backward>;
using norm_relu_guarded = Guarded<decltype(&norm_relu), &norm_relu>;
using norm_relu_backward_guarded = Guarded<decltype(&norm_relu_backward), &norm_relu_backward>;
using norm_relu_beside_guarded = Guarded<decltype(&norm_relu_beside), &norm_relu_beside>;
using norm_relu_beside_backward_guarded = Guarded<decltype(&norm_relu_beside_backward), &norm_relu_beside_backward>;
using norm_relu_twice_guarded = Guarded<decltype(&norm_relu_twice), &norm_relu_twice>;
using norm_relu_twice_backward_guarded = Guarded<decltype(&norm_relu_twice_backward), &norm_relu_twice_backward>;
using pool_guarded = Guarded<decltype(&pool), &pool>;
using sums_guarded = Guarded<decltype(&sums), &sums>;
using momentum_step_guarded = Guarded<decltype(&momentum_step), &momentum_step>;
using prepare_guarded = Guarded<decltype(&prepare), &prepare>;
using infer_guarded = Guarded<decltype(&infer), &infer>;
using infer_stages_guarded = Guarded<decltype(&infer_stages), &infer_stages>;
using pool_backward_guarded = Guarded<decltype(&pool_backward), &pool_backward>;

}  // namespace

PD_BUILD_OP(bit_convolve)
    .Inputs({"X", "Kernel"})
    .Outputs({"Y"})
    .Attrs({"stride: int", "epsilon: float", "share: int"})
    .SetKernelFn(PD_KERNEL(convolve_guarded::run));
PD_BUILD_GRAD_OP(bit_convolve)
    .Inputs({"X", "Kernel", paddle::Grad("Y")})
    .Outputs({paddle::Grad("X"), paddle::Grad("Kernel")})
    .Attrs({"stride: int", "epsilon: float", "share: int"})
    .SetKernelFn(PD_KERNEL(convolve_backward_guarded::run));

PD_BUILD_OP(bit_convolve_images)
    .Inputs({"X", "Kernel"})
    .Outputs({"Y"})
    .Attrs({"stride: int", "epsilon: float"})
    .SetKernelFn(PD_KERNEL(convolve_images_guarded::run));
PD_BUILD_GRAD_OP(bit_convolve_images)
    .Inputs({"X", "Kernel", paddle::Grad("Y")})
    .Outputs({paddle::Grad("Kernel")})
    .Attrs({"stride: int", "epsilon: float"})
    .SetKernelFn(PD_KERNEL(convolve_images_backward_guarded::run));

PD_BUILD_OP(bit_convolve_add)
    .Inputs({"X", "Kernel", "Residual"})
    .Outputs({"Y"})
    .Attrs({"stride: int", "epsilon: float", "share: int"})
    .SetKernelFn(PD_KERNEL(convolve_add_guarded::run));
PD_BUILD_GRAD_OP(bit_convolve_add)
    .Inputs({"X", "Kernel", paddle::Grad("Y")})
    .Outputs({paddle::Grad("X"), paddle::Grad("Kernel"), paddle::Grad("Residual")})
    .Attrs({"stride: int", "epsilon: float", "share: int"})
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

PD_BUILD_OP(bit_pool).Inputs({"X"}).Outputs({"Y", "Which"}).SetKernelFn(PD_KERNEL(pool_guarded::run));
PD_BUILD_GRAD_OP(bit_pool)
    .Inputs({"X", "Which", paddle::Grad("Y")})
    .Outputs({paddle::Grad("X")})
    .SetKernelFn(PD_KERNEL(pool_backward_guarded::run));

PD_BUILD_OP(bit_sums)
    .Inputs({paddle::Vec("Tensors")})
    .Outputs({"Sums"})
    .SetKernelFn(PD_KERNEL(sums_guarded::run));

PD_BUILD_OP(bit_momentum_step)
    .Inputs({"Parameter", "Velocity", "Gradient"})
    .Outputs({"ParameterOut", "VelocityOut"})
    .Attrs({"lr: float", "momentum: float", "decay: float"})
    .SetInplaceMap({{"Parameter", "ParameterOut"}, {"Velocity", "VelocityOut"}})
    .SetKernelFn(PD_KERNEL(momentum_step_guarded::run));

PD_BUILD_OP(bit_prepare)
    .Inputs({"X", paddle::Vec("Parameters")})
    .Outputs({"Number"})
    .Attrs({"units: std::vector<int>", "half: bool", "groups: int", "epsilon: float",
            "standardization_epsilon: float"})
    .SetKernelFn(PD_KERNEL(prepare_guarded::run));

PD_BUILD_OP(bit_infer)
    .Inputs({"X"})
    .Outputs({"Y"})
    .Attrs({"number: int64_t"})
    .SetKernelFn(PD_KERNEL(infer_guarded::run));

PD_BUILD_OP(bit_infer_stages)
    .Inputs({"X"})
    .Outputs({"Stage1", "Stage2", "Stage3", "Stage4", "Y"})
    .Attrs({"number: int64_t"})
    .SetKernelFn(PD_KERNEL(infer_stages_guarded::run));

// Called without Paddle, when a network is no longer used.
extern "C" void bit_release(int64_t number) {
  auto from = [&](auto zero) {
    using Kind = Networks<decltype(zero)>;
    std::lock_guard<std::mutex> alone(Kind::busy);
    Kind::all.erase(number);
  };
  from(bf16()), from(float());
}

// Called without Paddle, when the passes that share kernels have ended.
extern "C" void bit_forget_shared() { shared() = Shared(); }
