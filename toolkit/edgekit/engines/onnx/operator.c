/* ONNX Runtime's com.microsoft.MatMulNBits by cpu/matmul.c: a library for SessionOptions.register_custom_ops_library.

   A custom operator of a known name takes the place of ONNX Runtime's own, so the same model.onnx runs with either. Weights have to be
   constants, which ONNX Runtime maps from the file and hands out as they are. attention.c has the other operator. */

#include "interface.h"

#if defined(__x86_64__) && defined(__GNUC__)

enum { X, CODES, SCALES, ZEROS, ORDER, BIAS, INPUTS };

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
static int input_type(const any_t *op, size_t i) { return (void) op, i == CODES || i == ZEROS ? UINT8 : i == ORDER ? INT32 : FLOAT; }
static int output_type(const any_t *op, size_t i) { return (void) op, (void) i, FLOAT; }
static size_t inputs(const any_t *op) { return (void) op, INPUTS; }
static size_t one(const any_t *op) { return (void) op, 1; }
static int needed(const any_t *op, size_t i) { return (void) op, i < ZEROS ? REQUIRED : OPTIONAL; }

static const operator_t OPERATOR = {
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

static _Thread_local int attends;

/* Whether attention is ours as well in what this thread opens next. */
void edgekit_operator_attends(int wanted) { attends = wanted; }

/* ONNX Runtime looks this name up. Domains live as long as the process: sessions refer to them. */
status_t *RegisterCustomOps(any_t *options, const base_t *base) {
  static any_t *domains[2];
  const api_t *api = base->get_api(VERSION);
  any_t **domain = &domains[attends];
  if (!*domain) {
    any_t *made;
    TRY(create_domain("com.microsoft", &made));
    TRY(add_to_domain(made, &OPERATOR));
    if (attends) TRY(add_to_domain(made, &EDGEKIT_ATTENTION));
    *domain = made;
  }
  return add_domain(options, *domain);
}
#endif
