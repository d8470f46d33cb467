/* Products with INT4 and INT8 weights for x86-64 processors that have AVX2. Engines' own kernels leave a third of the memory's bandwidth
   unused where there is no VNNI, and round a row alone and among others differently. Figures: bench/matmul.py, docs/performance.md.

   Inputs become int8 in the groups of the weights (scale = largest / 127), so a group's part of a product is a sum of integers, less zero
   point times the sum of the group's inputs, times two scales. What is summed in a group is exact, and groups are summed in order: so a
   product is the same bit for bit, whether its row of inputs comes alone or among others. Weights are read where they lie, in file order:
   nothing is laid out anew when a model is loaded. Nibbles come in pairs, so of 64 inputs the even ones come first, then the odd ones.

   No sum can overflow. 4 bits: 15 * 127 * 2 from one maddubs, eight of which are 30,480 < 2**15. 8 bits: codes are taken less 128,
   |code| * |input| <= 128 * 127, two of which are 32,512 < 2**15. A group's sum less zero points is below 2**23, so a float holds it. */

#include "inner.h"

const int edgekit_matmul_version = 4; /* of the interface, products.py's VERSION */

#if defined(__x86_64__) && defined(__GNUC__)
#include "floats.h"
#include <cpuid.h>
#include <math.h>
#include <stdlib.h>

enum {
  STREAMS = 4, /* places where weights are read for a single row of inputs: 34 GB/s where one gives 28 and a plain sum 32 */
  AHEAD = 1024 /* bytes that are asked for ahead, without which a quarter of the bandwidth goes unused with one stream */
};

int edgekit_matmul_runs(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

int edgekit_matmul_dots(void) {
  unsigned a, b, c, d;
  const char *most = getenv("EDGEKIT_CPU");
  if (most && !strcmp(most, "avx2")) return EDGEKIT_AVX2;
  if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl")) return EDGEKIT_AVX512_VNNI;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1 ? EDGEKIT_AVX_VNNI : EDGEKIT_AVX2;
}

int edgekit_matmul_takes(int64_t bits, int64_t group) { return (bits == 4 || bits == 8) && (group == 32 || group == 64 || group == 128); }

size_t edgekit_codes_size(const edgekit_weights_t *w) { return (size_t) (w->n * groups_of(w) * w->group * w->bits / 8); }
size_t edgekit_zeros_size(const edgekit_weights_t *w) { return (size_t) (w->n * ((groups_of(w) * w->bits + 7) / 8)); }
size_t edgekit_scales_size(const edgekit_weights_t *w) { return (size_t) (w->n * groups_of(w)) * sizeof(float); }

size_t edgekit_inputs_size(int64_t m, const edgekit_weights_t *w) {
  return (size_t) (m * units_of(w) * (unit_size(w->group) + 2 * unit_groups(w->group) * (int64_t) sizeof(float))) + 64;
}

edgekit_inputs_t edgekit_inputs(void *memory, int64_t m, const edgekit_weights_t *w) {
  int8_t *codes = (int8_t *) (((uintptr_t) memory + 63) & ~(uintptr_t) 63);
  float *scales = (float *) (codes + m * units_of(w) * unit_size(w->group));
  return (edgekit_inputs_t){codes, scales, scales + m * units_of(w) * unit_groups(w->group), m};
}

/* 32 int8 of four times 8 floats, to the nearest, halves to even, in order; their sums are added to sum. */
INLINE __m256i rounded(const float *x, __m256 inverse, __m256i *sum) {
  __m256i q[4];
  for (int i = 0; i < 4; i++) {
    q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), inverse));
    *sum = _mm256_add_epi32(*sum, q[i]);
  }
  __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
  return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/* One group of x, filled up, at this place of its unit; count: the sum of its codes. */
INLINE void quantize_group(const float *x, int bits, int group, int8_t *unit, int64_t place, float *scale, float *count) {
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF));
  __m256 top = _mm256_setzero_ps(), odd = top;
  for (int i = 0; i < group; i += 8) {
    __m256 v = _mm256_loadu_ps(x + i);
    top = _mm256_max_ps(top, _mm256_and_ps(v, magnitude));
    odd = _mm256_or_ps(odd, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  }
  float largest = largest_of(top);
  /* Where an input is no finite number, no product is one. */
  *scale = _mm256_movemask_ps(odd) || !isfinite(largest) ? NAN : largest / 127;
  __m256i sum = _mm256_setzero_si256();
  for (int i = 0; i < group; i += 32) {
    __m256i q = rounded(x + i, _mm256_set1_ps(largest > 0 ? 127 / largest : 0), &sum);
    int8_t *to = unit + (place + i) / CHUNK * CHUNK;
    int64_t within = (place + i) % CHUNK;
    if (bits == 8) {
      _mm256_store_si256((__m256i *) (to + within), q);
      continue;
    }
    const __m256i apart =
        _mm256_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15, 0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    q = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(q, apart), 0xD8);
    _mm_store_si128((__m128i *) (to + within / 2), _mm256_castsi256_si128(q));
    _mm_store_si128((__m128i *) (to + within / 2 + 32), _mm256_extracti128_si256(q, 1));
  }
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
  *count = (float) _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1)));
}

AVX2 void edgekit_quantize_inputs(const float *x, const edgekit_weights_t *w, const edgekit_inputs_t *a, int64_t first, int64_t last) {
  int64_t groups = groups_of(w), units = units_of(w), size = unit_size(w->group), taken = unit_groups(w->group), most = tall(a->m);
  for (int64_t m = first; m < last; m++) {
    int64_t top = m / most * most, height = a->m - top < most ? a->m - top : most, from = top * units + m - top;
    memset(a->codes + (from + (units - 1) * height) * size, 0, (size_t) size);
    for (int64_t g = 0; g < groups; g++) {
      const float *at = x + m * w->k + g * w->group;
      float filled[128];
      if ((g + 1) * w->group > w->k) {
        memset(filled, 0, sizeof filled);
        at = memcpy(filled, at, sizeof(float) * (size_t) (w->k - g * w->group));
      }
      int64_t unit = from + g / taken * height, place = g % taken, group = unit * taken + place;
      quantize_group(at, w->bits, w->group, a->codes + unit * size, place * w->group, a->scales + group, a->counts + group);
    }
  }
}

/* The products of a unit, summed up to eight int32; of two groups the first has the lower four. whole: the unit has all its codes in the
   file, which the last one has not where a row ends with a single group of 32. */
INLINE __m256i unit_sums(const uint8_t *at, const int8_t *x, int bits, int group, int whole) {
  const __m256i low = _mm256_set1_epi8(15), middle = _mm256_set1_epi8((char) 128);
  __m256i sums = _mm256_setzero_si256();
  for (int i = 0; i < unit_size(group); i += CHUNK, at += CHUNK * bits / 8, x += CHUNK) {
    if (bits == 4) {
      __m256i both = whole ? load(at) : _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *) at));
      __m256i even = quads(_mm256_and_si256(both, low), load(x), 4);
      __m256i odd = quads(_mm256_and_si256(_mm256_srli_epi16(both, 4), low), load(x + 32), 4);
      sums = _mm256_add_epi16(sums, _mm256_add_epi16(even, odd));
      continue;
    }
    __m256i first = widened(quads(_mm256_xor_si256(load(at), middle), load(x), 8));
    __m256i second = whole ? widened(quads(_mm256_xor_si256(load(at + 32), middle), load(x + 32), 8)) : _mm256_setzero_si256();
    if (group == 32) {
      __m256i lower = _mm256_permute2x128_si256(first, second, 0x20), upper = _mm256_permute2x128_si256(first, second, 0x31);
      return _mm256_add_epi32(lower, upper);
    }
    sums = _mm256_add_epi32(sums, _mm256_add_epi32(first, second));
  }
  return bits == 4 ? widened(sums) : sums;
}

/* One group of four rows of weights: (sums - zeros * count) * scales, added to y. The next group's zero points come lowest then. */
INLINE __m128 grouped(__m128i sums, const float *scales, int64_t apart, __m128i *zeros, float scale, float count, int bits, __m128 y) {
  __m128i zero = _mm_and_si128(*zeros, _mm_set1_epi32((1 << bits) - 1));
  if (bits == 8) zero = _mm_sub_epi32(zero, _mm_set1_epi32(128));
  *zeros = _mm_srli_epi32(*zeros, bits);
  __m128 found = _mm_fnmadd_ps(_mm_cvtepi32_ps(zero), _mm_set1_ps(count), _mm_cvtepi32_ps(sums));
  __m128 by = _mm_setr_ps(scales[0], scales[apart], scales[2 * apart], scales[3 * apart]);
  return _mm_fmadd_ps(found, _mm_mul_ps(by, _mm_set1_ps(scale)), y);
}

/* Rows n, n + apart, ... of weights, so many side by side, at most four. */
INLINE void beside(const edgekit_weights_t *w, const edgekit_inputs_t *a, const float *bias, float *y, int64_t n, int64_t apart, int rows,
                   int bits, int group) {
  const int64_t size = unit_size(group), step = size * bits / 8, taken = unit_groups(group), groups = groups_of(w);
  const int64_t row = groups * group * bits / 8, next = rows > 1 ? apart : 0;
  const uint8_t *codes = w->codes + n * row;
  const float *scales = w->scales + n * groups;
  const int8_t *x = a->codes;
  __m128i zeros = _mm_setzero_si128();
  __m128 sum = _mm_setzero_ps();
  for (int64_t g = 0; g < groups; g += taken, codes += step, x += size) {
    if (g % (32 / bits) == 0)
      zeros = _mm_setr_epi32((int) zeros_of(w, n, g, bits), (int) zeros_of(w, n + next, g, bits), (int) zeros_of(w, n + 2 * next, g, bits),
                             (int) zeros_of(w, n + 3 * next, g, bits));
    int whole = g + taken <= groups;
    __m256i four[STREAMS];
    for (int r = 0; r < STREAMS; r++) {
      const uint8_t *at = codes + r * next * row;
      for (int i = 0; i < step; i += 64) _mm_prefetch((const char *) at + AHEAD + i, _MM_HINT_T0);
      four[r] = whole ? unit_sums(at, x, bits, group, 1) : unit_sums(at, x, bits, group, 0);
    }
    __m256i sums = _mm256_hadd_epi32(_mm256_hadd_epi32(four[0], four[1]), _mm256_hadd_epi32(four[2], four[3]));
    __m128i lower = _mm256_castsi256_si128(sums), upper = _mm256_extracti128_si256(sums, 1);
    if (taken == 1) lower = _mm_add_epi32(lower, upper);
    sum = grouped(lower, scales + g, next * groups, &zeros, a->scales[g], a->counts[g], bits, sum);
    if (taken == 2 && whole) sum = grouped(upper, scales + g + 1, next * groups, &zeros, a->scales[g + 1], a->counts[g + 1], bits, sum);
  }
  float found[STREAMS];
  _mm_storeu_ps(found, sum);
  for (int r = 0; r < rows; r++) y[n + r * apart] = found[r] + (bias ? bias[n + r * apart] : 0);
}

/* Limited by reading the weights: from several places at once, which memory delivers faster. */
INLINE void one_row(const edgekit_weights_t *w, const edgekit_inputs_t *a, const float *bias, float *y, int64_t first, int64_t last,
                    int bits, int group) {
  int64_t apart = (last - first) / STREAMS, n = first;
  for (; n < first + apart; n++) beside(w, a, bias, y, n, apart, STREAMS, bits, group);
  for (n = first + STREAMS * apart; n < last; n++) beside(w, a, bias, y, n, 0, 1, bits, group);
}

#define FORM(bits, group)                                                                                                                  \
  case bits * 1000 + group: one_row(w, a, bias, y, first, last, bits, group); break;

AVX2 void edgekit_matmul(const edgekit_weights_t *w, const edgekit_inputs_t *a, const float *bias, float *y, int64_t first, int64_t last) {
  if (a->m > 1) {
    edgekit_matmul_rows(w, a, bias, y, first, last);
    return;
  }
  switch (w->bits * 1000 + w->group) { /* constants wherever they are inlined */
    FORM(4, 32)
    FORM(4, 64)
    FORM(4, 128)
    FORM(8, 32)
    FORM(8, 64)
    FORM(8, 128)
  }
}

typedef struct {
  const edgekit_weights_t *weights;
  edgekit_inputs_t inputs;
  const float *bias, *x;
  float *y;
  size_t parts;
} work_t;

enum {
  ROWS_A_PART = 4, /* of inputs, quantized at a time */
  LEAST = 1 << 17, /* multiplications of a part of a product: some 4 us, several times what handing it to a thread costs */
  PARTS = 128      /* of a product, at most; threads end closer to each other than with 32, which takes 3 % more */
};

static void quantize_part(void *data, size_t part) {
  work_t *work = data;
  int64_t first = (int64_t) part * ROWS_A_PART, last = first + ROWS_A_PART < work->inputs.m ? first + ROWS_A_PART : work->inputs.m;
  edgekit_quantize_inputs(work->x, work->weights, &work->inputs, first, last);
}

static size_t panels_of(const edgekit_weights_t *w) { return ((size_t) w->n + WIDE - 1) / WIDE; }

static void multiply_part(void *data, size_t part) {
  work_t *work = data;
  size_t n = (size_t) work->weights->n, panels = panels_of(work->weights);
  size_t first = panels * part / work->parts * WIDE, last = panels * (part + 1) / work->parts * WIDE;
  edgekit_matmul(work->weights, &work->inputs, work->bias, work->y, (int64_t) first, (int64_t) (last < n ? last : n));
}

void *edgekit_product(const edgekit_weights_t *w, const float *bias, const float *x, float *y, int64_t m, void *memory,
                      edgekit_parallel_t *parallel, void *context) {
  work_t work = {w, edgekit_inputs(memory, m, w), bias, x, y, (size_t) w->n * (size_t) w->k * (size_t) m / LEAST};
  if (m < 2 * ROWS_A_PART) {
    edgekit_quantize_inputs(x, w, &work.inputs, 0, m);
  } else {
    void *failed = parallel(context, quantize_part, ((size_t) m + ROWS_A_PART - 1) / ROWS_A_PART, &work);
    if (failed) return failed;
  }
  if (work.parts > PARTS) work.parts = PARTS;
  if (work.parts > panels_of(w)) work.parts = panels_of(w);
  if (work.parts > 1) return parallel(context, multiply_part, work.parts, &work);
  work.parts = 1;
  multiply_part(&work, 0);
  return NULL;
}
#else
int edgekit_matmul_runs(void) { return 0; }
#endif
