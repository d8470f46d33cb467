/* ONNX Runtime's com.microsoft.MatMulNBits by cpu/matmul.c: a library for SessionOptions.register_custom_ops_library.

   A custom operator of a known name takes the place of ONNX Runtime's own, so the same model.onnx runs with either. Weights have to be
   constants, which ONNX Runtime maps from the file and hands out as they are.

   Of ONNX Runtime's C interface what is used here is declared here, as its packages bring no header. The table of functions and the
   operator's fields only ever grow at their end (onnxruntime_c_api.h, "OrtApi" and "OrtCustomOp", version 18). */

#include "../../cpu/matmul.h"
#include <stdlib.h>

#define VERSION 18

#if defined(__x86_64__) && defined(__GNUC__)

typedef void status_t; /* NULL: went well */
typedef void any_t;
typedef void (*entry_t)(void);
typedef struct {
  entry_t entry[275];
} api_t;
typedef struct {
  const api_t *(*get_api)(uint32_t version);
  const char *(*version)(void);
} base_t;
enum { FLOAT = 1, UINT8 = 2, INT32 = 6 };
enum { REQUIRED = 0, OPTIONAL = 1 };
enum { FAIL = 1 };
enum { X, CODES, SCALES, ZEROS, ORDER, BIAS, INPUTS };

#define CALL(index, ...) ((status_t * (*)(__VA_ARGS__)) api->entry[index])
#define create_status ((status_t * (*)(int, const char *) ) api->entry[0])
#define create_domain CALL(26, const char *, any_t **)
#define add_to_domain CALL(27, any_t *, const any_t *)
#define add_domain CALL(28, any_t *, any_t *)
#define tensor_data CALL(51, any_t *, void **)
#define rank_of CALL(61, const any_t *, size_t *)
#define shape_of CALL(62, const any_t *, int64_t *, size_t)
#define elements_of CALL(64, const any_t *, size_t *)
#define type_and_shape CALL(65, const any_t *, any_t **)
#define attribute CALL(86, const any_t *, const char *, int64_t *)
#define input CALL(90, const any_t *, size_t, const any_t **)
#define output CALL(91, any_t *, size_t, const int64_t *, size_t, any_t **)
#define release_type_and_shape ((void (*)(any_t *)) api->entry[99])
#define input_count CALL(230, const any_t *, size_t *)
#define constant_input CALL(249, const any_t *, size_t, int *, const any_t **)
#define parallel_for CALL(274, const any_t *, void (*)(void *, size_t), size_t, size_t, void *)

#define TRY(call)                                                                                                                          \
  do {                                                                                                                                     \
    status_t *status = (call);                                                                                                             \
    if (status) return status;                                                                                                             \
  } while (0)

typedef struct {
  edgekit_weights_t weights;
  const float *bias;
  const api_t *api;
} kernel_t;

static status_t *count_elements(const api_t *api, const any_t *value, size_t *count) {
  any_t *info;
  TRY(type_and_shape(value, &info));
  status_t *status = elements_of(info, count);
  release_type_and_shape(info);
  return status;
}

/* The constant at an input and that it has size bytes; NULL in found where an optional one is left out. */
static status_t *constant(const api_t *api, const any_t *info, size_t at, size_t bytes, size_t itemsize, const void **found) {
  size_t inputs, count = 0;
  int is_constant = 0;
  const any_t *value = NULL;
  *found = NULL;
  TRY(input_count(info, &inputs));
  if (at >= inputs) return NULL;
  TRY(constant_input(info, at, &is_constant, &value));
  if (!value) return at < ZEROS ? create_status(FAIL, "MatMulNBits: edgekit's kernel takes constant weights only") : NULL;
  TRY(count_elements(api, value, &count));
  if (count * itemsize != bytes)
    return create_status(FAIL, "MatMulNBits: codes, scales, zero points or bias are not of the size that K, N, bits and block_size give");
  return tensor_data((any_t *) value, (void **) found);
}

static status_t *read_kernel(const api_t *api, const any_t *info, kernel_t *kernel) {
  edgekit_weights_t *w = &kernel->weights;
  int64_t bits, group;
  TRY(attribute(info, "K", &w->k));
  TRY(attribute(info, "N", &w->n));
  TRY(attribute(info, "bits", &bits));
  TRY(attribute(info, "block_size", &group));
  if (!edgekit_matmul_takes(bits, group) || w->k < 1 || w->n < 1 || w->k > 1 << 20 || w->n > 1 << 24)
    return create_status(FAIL, "MatMulNBits: edgekit's kernel takes 4 and 8 bits in groups of 32, 64 and 128");
  w->bits = (int) bits, w->group = (int) group;
  const void *order;
  TRY(constant(api, info, CODES, edgekit_codes_size(w), 1, (const void **) &w->codes));
  TRY(constant(api, info, SCALES, edgekit_scales_size(w), sizeof(float), (const void **) &w->scales));
  TRY(constant(api, info, ZEROS, edgekit_zeros_size(w), 1, (const void **) &w->zeros));
  TRY(constant(api, info, ORDER, 0, 1, &order));
  return constant(api, info, BIAS, (size_t) w->n * sizeof(float), sizeof(float), (const void **) &kernel->bias);
}

static status_t *create(const any_t *op, const api_t *api, const any_t *info, void **made) {
  (void) op;
  kernel_t *kernel = calloc(1, sizeof *kernel);
  if (!kernel) return create_status(FAIL, "MatMulNBits: no memory");
  kernel->api = api;
  status_t *status = read_kernel(api, info, kernel);
  if (status) free(kernel);
  else *made = kernel;
  return status;
}

static status_t *shapes(const api_t *api, any_t *context, const kernel_t *kernel, const any_t *x, size_t *count, any_t **y) {
  enum { DIMENSIONS = 8 };
  int64_t shape[DIMENSIONS];
  size_t rank;
  any_t *info;
  TRY(type_and_shape(x, &info));
  status_t *status = rank_of(info, &rank);
  if (!status && (rank < 1 || rank > DIMENSIONS)) status = create_status(FAIL, "MatMulNBits: inputs of 1 to 8 dimensions");
  if (!status) status = shape_of(info, shape, rank);
  if (!status) status = elements_of(info, count);
  release_type_and_shape(info);
  if (status) return status;
  if (shape[rank - 1] != kernel->weights.k) return create_status(FAIL, "MatMulNBits: the last dimension of the inputs is not K");
  shape[rank - 1] = kernel->weights.n;
  return output(context, 0, shape, rank, y);
}

typedef struct {
  const api_t *api;
  any_t *context;
} threads_t;

static void *parallel(void *threads, edgekit_part_t *part, size_t parts, void *data) {
  const threads_t *on = threads;
  const api_t *api = on->api;
  return parallel_for(on->context, part, parts, 0, data);
}

static status_t *compute(void *made, any_t *context) {
  const kernel_t *kernel = made;
  const api_t *api = kernel->api;
  const any_t *x;
  any_t *y;
  void *from, *to;
  size_t count;
  TRY(input(context, X, &x));
  TRY(shapes(api, context, kernel, x, &count, &y));
  TRY(tensor_data((any_t *) x, &from));
  TRY(tensor_data(y, &to));
  int64_t m = (int64_t) count / kernel->weights.k;
  if (m == 0) return NULL;
  void *memory = malloc(edgekit_inputs_size(m, &kernel->weights));
  if (!memory) return create_status(FAIL, "MatMulNBits: no memory");
  status_t *status = edgekit_product(&kernel->weights, kernel->bias, from, to, m, memory, parallel, &(threads_t){api, context});
  free(memory);
  return status;
}

static const char *name(const any_t *op) { return (void) op, "MatMulNBits"; }
static const char *any_cpu(const any_t *op) { return (void) op, NULL; }
static int input_type(const any_t *op, size_t i) { return (void) op, i == CODES || i == ZEROS ? UINT8 : i == ORDER ? INT32 : FLOAT; }
static int output_type(const any_t *op, size_t i) { return (void) op, (void) i, FLOAT; }
static size_t inputs(const any_t *op) { return (void) op, INPUTS; }
static size_t one(const any_t *op) { return (void) op, 1; }
static int needed(const any_t *op, size_t i) { return (void) op, i < ZEROS ? REQUIRED : OPTIONAL; }
static int always(const any_t *op, size_t i) { return (void) op, (void) i, REQUIRED; }
static int memory_type(const any_t *op, size_t i) { return (void) op, (void) i, 0; }
static int first_version(const any_t *op) { return (void) op, 1; }
static int last_version(const any_t *op) { return (void) op, INT32_MAX; }

static const struct {
  uint32_t version;
  entry_t create_old;
  const char *(*name)(const any_t *), *(*provider)(const any_t *);
  int (*input_type)(const any_t *, size_t);
  size_t (*inputs)(const any_t *);
  int (*output_type)(const any_t *, size_t);
  size_t (*outputs)(const any_t *);
  entry_t compute_old;
  void (*destroy)(void *);
  int (*input_kind)(const any_t *, size_t), (*output_kind)(const any_t *, size_t), (*memory_type)(const any_t *, size_t);
  entry_t variadic[4];
  status_t *(*create)(const any_t *, const api_t *, const any_t *, void **);
  status_t *(*compute)(void *, any_t *);
  entry_t infer_shape;
  int (*first_version)(const any_t *), (*last_version)(const any_t *);
  entry_t aliases[4];
} OPERATOR = {
    .version = VERSION,
    .name = name,
    .provider = any_cpu,
    .input_type = input_type,
    .inputs = inputs,
    .output_type = output_type,
    .outputs = one,
    .destroy = free,
    .input_kind = needed,
    .output_kind = always,
    .memory_type = memory_type,
    .create = create,
    .compute = compute,
    .first_version = first_version,
    .last_version = last_version,
};

/* ONNX Runtime looks this name up. The domain lives as long as the process: sessions refer to it. */
status_t *RegisterCustomOps(any_t *options, const base_t *base) {
  static any_t *domain;
  const api_t *api = base->get_api(VERSION);
  if (!domain) {
    any_t *made;
    TRY(create_domain("com.microsoft", &made));
    TRY(add_to_domain(made, &OPERATOR));
    domain = made;
  }
  return add_domain(options, domain);
}
#endif
