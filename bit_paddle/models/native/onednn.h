// The part of oneDNN's C interface that primitives.h and network.h call. Paddle ships the library (3.2 to 3.6)
// but not its headers, and those on the package index bring eleven packages with them, a second
// OpenMP among these. Names and numbers are those of version 3.6, which 3.2 shares; each build is
// checked by what it computes.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {
typedef struct dnnl_engine *dnnl_engine_t;
typedef struct dnnl_stream *dnnl_stream_t;
typedef struct dnnl_memory *dnnl_memory_t;
typedef struct dnnl_memory_desc *dnnl_memory_desc_t;
typedef const struct dnnl_memory_desc *const_dnnl_memory_desc_t;
typedef struct dnnl_primitive *dnnl_primitive_t;
typedef struct dnnl_primitive_desc *dnnl_primitive_desc_t;
typedef struct dnnl_primitive_attr *dnnl_primitive_attr_t;
typedef struct dnnl_post_ops *dnnl_post_ops_t;
typedef int64_t dnnl_dims_t[12];
typedef struct {
  int arg;
  dnnl_memory_t memory;
} dnnl_exec_arg_t;

enum { dnnl_success = 0, dnnl_out_of_memory = 1 };            // dnnl_status_t
enum { dnnl_undefined = 0, dnnl_bf16 = 2, dnnl_f32 = 3 };                         // dnnl_data_type_t
enum { dnnl_format_tag_any = 1 };                             // dnnl_format_tag_t
enum { dnnl_cpu = 1 };                                        // dnnl_engine_kind_t
enum { dnnl_stream_in_order = 1 };                            // dnnl_stream_flags_t
enum { dnnl_forward_training = 64 };                          // dnnl_prop_kind_t
enum { dnnl_convolution_direct = 1, dnnl_binary_add = 0x1fff0 };   // dnnl_alg_kind_t
enum { dnnl_scratchpad_mode_user = 1 };                       // dnnl_scratchpad_mode_t
enum {                                                        // dnnl_query_t
  dnnl_query_strides = 14,
  dnnl_query_weights_md = 131,
  dnnl_query_diff_weights_md = 132,
  dnnl_query_scratchpad_md = 136,
  dnnl_query_inner_nblks_s32 = 263,
  dnnl_query_inner_blks = 264,
  dnnl_query_inner_idxs = 265
};
enum {  // arguments of an execution
  DNNL_ARG_SRC = 1,
  DNNL_ARG_SRC_1 = 2,
  DNNL_ARG_DST = 17,
  DNNL_ARG_WEIGHTS = 33,
  DNNL_ARG_SCRATCHPAD = 80,
  DNNL_ARG_DIFF_SRC = 129,
  DNNL_ARG_DIFF_DST = 145,
  DNNL_ARG_DIFF_WEIGHTS = 161,
  DNNL_ARG_POST_OP_0 = 32768
};

int dnnl_engine_create(dnnl_engine_t *, int kind, size_t index);
int dnnl_stream_create(dnnl_stream_t *, dnnl_engine_t, unsigned flags);
int dnnl_stream_wait(dnnl_stream_t);
int dnnl_memory_desc_create_with_strides(
    dnnl_memory_desc_t *, int ndims, const dnnl_dims_t dims, int type, const dnnl_dims_t strides);
int dnnl_memory_desc_create_with_tag(
    dnnl_memory_desc_t *, int ndims, const dnnl_dims_t dims, int type, int tag);
int dnnl_memory_desc_destroy(dnnl_memory_desc_t);
int dnnl_memory_desc_clone(dnnl_memory_desc_t *, const_dnnl_memory_desc_t);
int dnnl_memory_desc_query(const_dnnl_memory_desc_t, int what, void *result);
int dnnl_memory_desc_equal(const_dnnl_memory_desc_t, const_dnnl_memory_desc_t);
size_t dnnl_memory_desc_get_size(const_dnnl_memory_desc_t);
int dnnl_memory_create(dnnl_memory_t *, const_dnnl_memory_desc_t, dnnl_engine_t, void *handle);
int dnnl_memory_destroy(dnnl_memory_t);
int dnnl_post_ops_create(dnnl_post_ops_t *);
int dnnl_post_ops_append_sum(dnnl_post_ops_t, float scale, int32_t zero_point, int type);
int dnnl_post_ops_append_binary(dnnl_post_ops_t, int alg, const_dnnl_memory_desc_t);
int dnnl_post_ops_destroy(dnnl_post_ops_t);
int dnnl_primitive_attr_create(dnnl_primitive_attr_t *);
int dnnl_primitive_attr_set_scratchpad_mode(dnnl_primitive_attr_t, int mode);
int dnnl_primitive_attr_set_post_ops(dnnl_primitive_attr_t, const struct dnnl_post_ops *);
int dnnl_primitive_attr_destroy(dnnl_primitive_attr_t);
int dnnl_convolution_forward_primitive_desc_create(
    dnnl_primitive_desc_t *, dnnl_engine_t, int prop, int alg, const_dnnl_memory_desc_t src,
    const_dnnl_memory_desc_t weights, const_dnnl_memory_desc_t bias, const_dnnl_memory_desc_t dst,
    const dnnl_dims_t strides, const dnnl_dims_t dilates, const dnnl_dims_t padding_l,
    const dnnl_dims_t padding_r, dnnl_primitive_attr_t);
int dnnl_convolution_backward_data_primitive_desc_create(
    dnnl_primitive_desc_t *, dnnl_engine_t, int alg, const_dnnl_memory_desc_t diff_src,
    const_dnnl_memory_desc_t weights, const_dnnl_memory_desc_t diff_dst, const dnnl_dims_t strides,
    const dnnl_dims_t dilates, const dnnl_dims_t padding_l, const dnnl_dims_t padding_r,
    dnnl_primitive_desc_t hint, dnnl_primitive_attr_t);
int dnnl_convolution_backward_weights_primitive_desc_create(
    dnnl_primitive_desc_t *, dnnl_engine_t, int alg, const_dnnl_memory_desc_t src,
    const_dnnl_memory_desc_t diff_weights, const_dnnl_memory_desc_t diff_bias,
    const_dnnl_memory_desc_t diff_dst, const dnnl_dims_t strides, const dnnl_dims_t dilates,
    const dnnl_dims_t padding_l, const dnnl_dims_t padding_r, dnnl_primitive_desc_t hint,
    dnnl_primitive_attr_t);
int dnnl_reorder_primitive_desc_create(
    dnnl_primitive_desc_t *, const_dnnl_memory_desc_t src, dnnl_engine_t,
    const_dnnl_memory_desc_t dst, dnnl_engine_t, dnnl_primitive_attr_t);
const_dnnl_memory_desc_t dnnl_primitive_desc_query_md(dnnl_primitive_desc_t, int what, int index);
int dnnl_primitive_desc_destroy(dnnl_primitive_desc_t);
int dnnl_primitive_create(dnnl_primitive_t *, dnnl_primitive_desc_t);
int dnnl_primitive_destroy(dnnl_primitive_t);
int dnnl_primitive_execute(dnnl_primitive_t, dnnl_stream_t, int nargs, const dnnl_exec_arg_t *);
}
