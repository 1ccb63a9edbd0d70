// The whole network for inference: kernels standardized and packed once, activations in a few rooms,
// images taken through the early stages in groups whose activations stay in the cache.
#pragma once

#include <list>
#include <map>
#include <mutex>

#include "primitives.h"

namespace {

// Aligned memory that is not cleared.
class Room {
  std::unique_ptr<char[]> owned;
  char* begin = nullptr;
  size_t size = 0;

 public:
  char* of(size_t bytes) {
    if (bytes > size) {
      owned.reset();
      owned.reset(new char[bytes + 64]);
      begin = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(owned.get()) + 63) & ~uintptr_t(63));
      size = bytes;
    }
    return begin;
  }
  char* get() const { return begin; }
  void release() { owned.reset(), size = 0; }
};

// A standardized kernel in the layouts that primitives have asked for: as a rule one for all sizes.
class PackedKernel {
  struct Held {
    Layout layout;
    Room room;
  };
  std::list<Held> held;

  char* add(const Layout& layout) {
    held.push_back({Layout(layout.handle), Room()});
    return held.back().room.of(layout.bytes());
  }

 public:
  void fill(const Convolution& one, const float* kernel, float epsilon) {
    one.pack(one.forward_kernel, kernel, epsilon, add(one.forward_kernel.layout));
  }

  const void* in(const Layout& layout) {
    for (auto& one : held)
      if (dnnl_memory_desc_equal(one.layout.handle, layout.handle)) return one.room.get();
    const Held& first = held.front();
    char* room = add(layout);
    dnnl_primitive_desc_t description;
    check(dnnl_reorder_primitive_desc_create(
        &description, first.layout.handle, engine(), layout.handle, engine(), nullptr));
    {
      Primitive reorder(description);
      dnnl_primitive_desc_destroy(description);
      reorder.run({{DNNL_ARG_SRC, first.layout, first.room.get()}, {DNNL_ARG_DST, layout, room}});
    }
    return room;
  }
};

struct Norm {
  std::vector<float> scale, bias;
};

struct Step {  // a convolution of the network
  int64_t i, o, k, stride;
  PackedKernel kernel;
};

struct Unit {
  Norm a, b, c;
  std::unique_ptr<Step> projection;
  Step to_middle, across, to_end;
};

const int64_t NEAR = 8 << 20;  // bytes of activations that stay in the cache

template <typename T>
class Network {
  static constexpr int type = sizeof(T) == 2 ? dnnl_bf16 : dnnl_f32;
  int groups;
  float epsilon;
  Step root;
  std::vector<std::vector<Unit>> stages;
  Norm last;
  std::map<std::array<int64_t, 10>, std::unique_ptr<Convolution>> convolutions;
  Room images, spread, middle, next, ends[2];
  std::vector<float> means, inverses;
  std::vector<uint8_t> which;

  Convolution& convolution(const Step& step, int64_t n, int64_t h, int64_t w, int adding) {
    Geometry g = {n, h, w, step.i, step.o, step.k, step.stride, step.k / 2, type, adding};
    auto& one = convolutions[g.key()];
    if (!one) one.reset(new Convolution(g));
    return *one;
  }

  void run(Step& step, const T* x, int64_t n, int64_t h, int64_t w, T* y, int adding = NOTHING) {
    auto& one = convolution(step, n, h, w, adding);
    one.forward->run(
        {{DNNL_ARG_SRC, one.x, x},
         {DNNL_ARG_WEIGHTS, one.forward_kernel.layout, step.kernel.in(one.forward_kernel.layout)},
         {DNNL_ARG_DST, one.y, y}});
  }

  void activate(const Norm& norm, const T* x, int64_t n, int64_t pixels, T* y) {
    means.resize(n * groups), inverses.resize(n * groups);
    norm_relu_of(
        x, n, pixels, norm.scale.size(), norm.scale.data(), norm.bias.data(), groups, epsilon, y,
        means.data(), inverses.data());
  }

  // From x [n, h, w] to y; both may be one if the unit has no projection.
  void run(Unit& unit, const T* x, int64_t n, int64_t h, int64_t w, T* y) {
    int64_t stride = unit.across.stride, out_h = (h - 1) / stride + 1, out_w = (w - 1) / stride + 1;
    T* activated = room(spread, n * h * w * unit.to_middle.i);
    activate(unit.a, x, n, h * w, activated);
    if (unit.projection) run(*unit.projection, activated, n, h, w, y);
    T* first = room(middle, n * h * w * unit.to_middle.o);
    run(unit.to_middle, activated, n, h, w, first);
    activate(unit.b, first, n, h * w, first);
    T* second = room(next, n * out_h * out_w * unit.across.o);
    run(unit.across, first, n, h, w, second);
    activate(unit.c, second, n, out_h * out_w, second);
    run(unit.to_end, second, n, out_h, out_w, y, IN_PLACE);
  }

  static T* room(Room& room, int64_t count) {
    return reinterpret_cast<T*>(room.of(count * sizeof(T)));
  }

  // Images [n, 3, h, w] to [n, h / 4, w / 4, c].
  void run_root(const float* x, int64_t n, int64_t h, int64_t w, T* y) {
    T* turned = room(images, n * h * w * 3);
#pragma omp parallel for
    for (int64_t row = 0; row < n * h; ++row) {
      const float* from = x + row / h * 3 * h * w + row % h * w;
      T* to = turned + row * w * 3;
      for (int64_t k = 0; k < w; ++k)
        for (int64_t channel = 0; channel < 3; ++channel)
          to[3 * k + channel] = narrow<T>(from[channel * h * w + k]);
    }
    int64_t half_h = (h - 1) / 2 + 1, half_w = (w - 1) / 2 + 1, count = n * half_h * half_w * root.o;
    T* wide = room(spread, count);
    run(root, turned, n, h, w, wide);
    which.resize(count / 2 + root.o * n * (half_h + half_w));
    pool_of(wide, n, half_h, half_w, root.o, y, which.data());
  }

 public:
  std::mutex busy;
  std::vector<int64_t> channels;  // of each stage

  Network(
      const std::vector<paddle::Tensor>& parameters, const std::vector<int>& units, int64_t n, int64_t h,
      int64_t w, int groups, float epsilon, float standardization_epsilon)
      : groups(groups), epsilon(epsilon) {
    size_t at = 0;
    auto norm = [&](Norm& made) {
      for (auto* values : {&made.scale, &made.bias}) {
        const paddle::Tensor& one = parameters.at(at++);
        values->assign(one.data<float>(), one.data<float>() + one.numel());
      }
    };
    auto step = [&](Step& made, int64_t stride, int64_t n, int64_t h, int64_t w, int adding) {
      const paddle::Tensor& one = parameters.at(at++);
      auto s = one.shape();
      made.o = s[0], made.i = s[1], made.k = s[2], made.stride = stride;
      auto& first = convolution(made, n, h, w, adding);
      made.kernel.fill(first, one.data<float>(), standardization_epsilon);
    };
    step(root, 2, n, h, w, NOTHING);
    for (int turn = 0; turn < 2; ++turn) h = (h - 1) / 2 + 1, w = (w - 1) / 2 + 1;
    for (size_t stage = 0; stage < units.size(); ++stage) {
      stages.emplace_back(units[stage]);
      for (auto& unit : stages.back()) {
        bool first = &unit == &stages.back().front();
        int64_t stride = first && stage ? 2 : 1;
        norm(unit.a);
        if (first) {
          unit.projection.reset(new Step());
          step(*unit.projection, stride, n, h, w, NOTHING);
        }
        step(unit.to_middle, 1, n, h, w, NOTHING);
        norm(unit.b);
        step(unit.across, stride, n, h, w, NOTHING);
        h = (h - 1) / stride + 1, w = (w - 1) / stride + 1;
        norm(unit.c);
        step(unit.to_end, 1, n, h, w, IN_PLACE);
      }
    }
    norm(last);
    for (auto& stage : stages) channels.push_back(stage.front().to_end.o);
  }

  // From images x [n, 3, h, w]: into results[k] the output of stage k, where asked for; into y the
  // last one, activated.
  void run(const float* x, int64_t n, int64_t h, int64_t w, T* const* results, T* y) {
    const T* before = nullptr;
    int64_t in_h = (h + 3) / 4, in_w = (w + 3) / 4;
    for (size_t stage = 0; stage < stages.size(); ++stage) {
      auto& units = stages[stage];
      int64_t stride = units.front().across.stride, in_c = units.front().to_middle.i,
              out_h = (in_h - 1) / stride + 1, out_w = (in_w - 1) / stride + 1,
              out_c = units.front().to_end.o, in_size = in_h * in_w * in_c,
              out_size = out_h * out_w * out_c;
      T* after = results && results[stage] ? results[stage] : room(ends[stage % 2], n * out_size);
      int64_t bytes = (2 * out_size + in_size) * sizeof(T);
      int64_t parts = stage < 2 ? std::min(n, (n * bytes - 1) / NEAR + 1) : 1;
      for (int64_t part = 0; part < parts; ++part) {
        int64_t from = n * part / parts, count = n * (part + 1) / parts - from;
        const T* in = before + from * in_size;
        if (!stage) {
          T* made = room(ends[1], count * in_size);
          run_root(x + from * 3 * h * w, count, h, w, made);
          in = made;
        }
        T* out = after + from * out_size;
        run(units.front(), in, count, in_h, in_w, out);
        for (size_t unit = 1; unit < units.size(); ++unit)
          run(units[unit], out, count, out_h, out_w, out);
      }
      before = after, in_h = out_h, in_w = out_w;
    }
    if (y) activate(last, before, n, in_h * in_w, y);
    for (Room* one : {&images, &spread, &middle, &next, &ends[0], &ends[1]}) one->release();
  }
};

}  // namespace
