/* What is used here of ONNX Runtime's C interface, declared here as its packages bring no header. The table of functions and the
   operator's fields only ever grow at their end (onnxruntime_c_api.h, "OrtApi" and "OrtCustomOp", version 18). */

#pragma once
#include "../../cpu/matmul.h"
#include <stdlib.h>

#define VERSION 18

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
enum { FLOAT = 1, UINT8 = 2, INT32 = 6, INT64 = 7 };
enum { REQUIRED = 0, OPTIONAL = 1 };
enum { FAIL = 1 };

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
#define float_attribute CALL(85, const any_t *, const char *, float *)
#define attribute CALL(86, const any_t *, const char *, int64_t *)
#define input CALL(90, const any_t *, size_t, const any_t **)
#define given CALL(88, const any_t *, size_t *)
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
  const api_t *api;
  any_t *context;
} threads_t;

static inline void *parallel(void *threads, edgekit_part_t *part, size_t parts, void *data) {
  const threads_t *on = threads;
  const api_t *api = on->api;
  return parallel_for(on->context, part, parts, 0, data);
}

typedef struct {
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
} operator_t;

/* Of both operators alike. */
static inline const char *any_cpu(const any_t *op) { return (void) op, NULL; }
static inline int always(const any_t *op, size_t i) { return (void) op, (void) i, REQUIRED; }
static inline int memory_type(const any_t *op, size_t i) { return (void) op, (void) i, 0; }
static inline int first_version(const any_t *op) { return (void) op, 1; }
static inline int last_version(const any_t *op) { return (void) op, INT32_MAX; }

extern const operator_t EDGEKIT_ATTENTION; /* attention.c */
