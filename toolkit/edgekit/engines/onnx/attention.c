/* ONNX Runtime's com.microsoft.GroupQueryAttention by cpu/rows.c, for queries, keys and values in one input and a cache in float32.

   Why: ONNX Runtime's rounds a token alone and among others differently, so an answer would depend on what was cached. */

#include "interface.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include "../../cpu/rows.h"
#include <string.h>

enum { QKV, PAST_KEYS = 3, PAST_VALUES, LAST, TOTAL, COS, SIN, POSITIONS, INPUTS };
enum { Y, KEYS, VALUES, OUTPUTS };

typedef struct {
  int64_t heads, kv_heads, window, rotates;
  float scale;
  const api_t *api;
} kernel_t;

typedef struct {
  void *data;
  int64_t shape[4];
  size_t rank;
} tensor_t;

static status_t *refuse(const api_t *api, const char *why) { return create_status(FAIL, why); }

static status_t *create(const any_t *op, const api_t *api, const any_t *info, void **made) {
  (void) op;
  kernel_t found = {.api = api};
  TRY(attribute(info, "num_heads", &found.heads));
  TRY(attribute(info, "kv_num_heads", &found.kv_heads));
  TRY(attribute(info, "local_window_size", &found.window));
  TRY(attribute(info, "do_rotary", &found.rotates));
  TRY(float_attribute(info, "scale", &found.scale));
  if (!edgekit_rows_takes(found.heads, found.kv_heads, 1)) return refuse(api, "GroupQueryAttention: num_heads is no multiple of kv_num_heads");
  kernel_t *kernel = malloc(sizeof *kernel);
  if (!kernel) return refuse(api, "GroupQueryAttention: no memory");
  *kernel = found, *made = kernel;
  return NULL;
}

static status_t *describe(const api_t *api, const any_t *value, tensor_t *found) {
  any_t *info;
  TRY(type_and_shape(value, &info));
  status_t *status = rank_of(info, &found->rank);
  if (!status && found->rank > 4) status = refuse(api, "GroupQueryAttention: tensors of at most 4 dimensions");
  if (!status) status = shape_of(info, found->shape, found->rank);
  release_type_and_shape(info);
  return status ? status : tensor_data((any_t *) value, &found->data);
}

/* data: NULL where an input is left out. */
static status_t *read(const api_t *api, const any_t *context, size_t at, tensor_t *found) {
  size_t count;
  const any_t *value = NULL;
  found->data = NULL;
  TRY(given(context, &count));
  if (at < count) TRY(input(context, at, &value));
  return value ? describe(api, value, found) : NULL;
}

static status_t *write(const api_t *api, any_t *context, size_t at, const int64_t *shape, size_t rank, void **data) {
  any_t *value;
  TRY(output(context, at, shape, rank, &value));
  return tensor_data(value, data);
}

/* The tables have a row for every new token. */
static status_t *rotation(const api_t *api, const any_t *context, edgekit_rows_t *call) {
  tensor_t cos, sin, positions;
  TRY(read(api, context, COS, &cos));
  TRY(read(api, context, SIN, &sin));
  TRY(read(api, context, POSITIONS, &positions));
  if (!cos.data || !sin.data || cos.rank != 2 || sin.rank != 2 || memcmp(cos.shape, sin.shape, sizeof(int64_t) * 2) ||
      2 * cos.shape[1] > call->size)
    return refuse(api, "GroupQueryAttention: cos_cache and sin_cache do not fit the heads");
  call->cos = cos.data, call->sin = sin.data, call->half = cos.shape[1], call->rotations = positions.data;
  if (positions.data && (positions.rank != 2 || positions.shape[0] * positions.shape[1] != call->s))
    return refuse(api, "GroupQueryAttention: there are not as many position_ids as tokens");
  for (int64_t i = 0; i < call->s; i++) {
    int64_t row = call->rotations ? call->rotations[i] : call->position + i;
    if (row < 0 || row >= cos.shape[0]) return refuse(api, "GroupQueryAttention: a position is beyond cos_cache");
  }
  return NULL;
}

static status_t *prepare(const kernel_t *kernel, any_t *context, edgekit_rows_t *call) {
  const api_t *api = kernel->api;
  tensor_t qkv, keys, values, last;
  TRY(read(api, context, QKV, &qkv));
  TRY(read(api, context, PAST_KEYS, &keys));
  TRY(read(api, context, PAST_VALUES, &values));
  TRY(read(api, context, LAST, &last));
  if (!keys.data || !values.data || !last.data || qkv.rank != 3 || qkv.shape[0] != 1 || keys.rank != 4 || keys.shape[0] != 1 ||
      keys.shape[1] != kernel->kv_heads || values.rank != 4 || memcmp(keys.shape, values.shape, sizeof keys.shape))
    return refuse(api, "GroupQueryAttention: edgekit's kernel takes one sequence and a cache of keys and values");
  *call = (edgekit_rows_t){.heads = kernel->heads, .kv_heads = kernel->kv_heads, .scale = kernel->scale};
  call->window = kernel->window > 0 ? kernel->window : 0;
  call->s = qkv.shape[1], call->capacity = keys.shape[2], call->size = keys.shape[3], call->qkv = qkv.data;
  call->position = *(const int32_t *) last.data + 1 - call->s;
  if (!edgekit_rows_takes(call->heads, call->kv_heads, call->size) || qkv.shape[2] != (call->heads + 2 * call->kv_heads) * call->size)
    return refuse(api, "GroupQueryAttention: edgekit's kernel takes heads of up to 512, all in one input");
  if (call->position < 0 || call->position + call->s > call->capacity)
    return refuse(api, "GroupQueryAttention: the cache has no room for the new tokens");
  if (kernel->rotates) TRY(rotation(api, context, call));
  TRY(write(api, context, Y, (int64_t[]){1, call->s, call->heads * call->size}, 3, (void **) &call->y));
  TRY(write(api, context, KEYS, keys.shape, 4, (void **) &call->keys));
  TRY(write(api, context, VALUES, keys.shape, 4, (void **) &call->values));
  size_t bytes = sizeof(float) * (size_t) (keys.shape[1] * keys.shape[2] * keys.shape[3]);
  if (call->keys != keys.data) memcpy(call->keys, keys.data, bytes); /* edgekit's session binds one buffer for both */
  if (call->values != values.data) memcpy(call->values, values.data, bytes);
  return NULL;
}

static status_t *compute(void *made, any_t *context) {
  const kernel_t *kernel = made;
  edgekit_rows_t call;
  TRY(prepare(kernel, context, &call));
  return call.s ? edgekit_attend_rows(&call, parallel, &(threads_t){kernel->api, context}) : NULL;
}

static const char *name(const any_t *op) { return (void) op, "GroupQueryAttention"; }
static int input_type(const any_t *op, size_t i) { return (void) op, i == LAST || i == TOTAL ? INT32 : i == POSITIONS ? INT64 : FLOAT; }
static int output_type(const any_t *op, size_t i) { return (void) op, (void) i, FLOAT; }
static size_t inputs(const any_t *op) { return (void) op, INPUTS; }
static size_t outputs(const any_t *op) { return (void) op, OUTPUTS; }
static int needed(const any_t *op, size_t i) { return (void) op, i == QKV || (i >= PAST_KEYS && i <= TOTAL) ? REQUIRED : OPTIONAL; }

const operator_t EDGEKIT_ATTENTION = {
    .version = VERSION,
    .name = name,
    .provider = any_cpu,
    .input_type = input_type,
    .inputs = inputs,
    .output_type = output_type,
    .outputs = outputs,
    .destroy = free,
    .input_kind = needed,
    .output_kind = always,
    .memory_type = memory_type,
    .create = create,
    .compute = compute,
    .first_version = first_version,
    .last_version = last_version,
};
#endif
