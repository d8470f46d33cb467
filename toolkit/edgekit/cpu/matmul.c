/* Products with INT4 and INT8 weights for x86-64 processors that have AVX2 and no VNNI, where engines' own kernels leave a third of the
   memory's bandwidth unused. Figures: bench/matmul.py, docs/performance.md.

   Inputs become int8 in the groups of the weights (scale = largest / 127), so a product is a sum of integers for each group, exact, times
   two scales; the zero points come in once a row, as scale * zero * (sum of the group's inputs). Weights are read where they lie, in file
   order: nothing is laid out anew when a model is loaded. Nibbles come in pairs, so of 64 inputs the even ones come first, then the odd ones.

   No sum can overflow: 4 bits: 15 * 127 * 2 from one maddubs, four of which are added in a group of 128: 15,240 < 2**15. 8 bits: codes are
   taken less 128, |code| * |input| <= 128 * 127, two of which are 32,512 < 2**15. */

#include "matmul.h"

const int edgekit_matmul_version = 1; /* of the interface, operator.py's VERSION */

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#include <immintrin.h>
#include <math.h>
#include <string.h>

#define AVX2 __attribute__((target("avx2,fma")))
#define INLINE static inline __attribute__((always_inline)) AVX2

enum {
  CHUNK = 64,  /* codes that are read at once */
  TILE = 32,   /* rows of inputs that share unpacked weights; of K = 8192 they fit a level 2 cache */
  STREAMS = 4, /* places where weights are read for a single row of inputs: 34 GB/s where one gives 28 and a plain sum 32 */
  AHEAD = 1024 /* bytes that are asked for ahead, without which a quarter of the bandwidth goes unused with one stream */
};

int edgekit_matmul_runs(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

int edgekit_matmul_has_vnni(void) {
  unsigned a, b, c, d;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) && c >> 11 & 1) return 1; /* AVX512_VNNI */
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1;         /* AVX-VNNI */
}

int edgekit_matmul_takes(int64_t bits, int64_t group) { return (bits == 4 || bits == 8) && (group == 32 || group == 64 || group == 128); }

static int64_t groups_of(const edgekit_weights_t *w) { return (w->k + w->group - 1) / w->group; }

/* A unit is what is multiplied at once: a group, or two of 32, the last of them maybe alone. */
static inline int64_t unit_size(int group) { return group < CHUNK ? CHUNK : group; }
static inline int64_t unit_groups(int group) { return unit_size(group) / group; }
static int64_t units_of(const edgekit_weights_t *w) { return (groups_of(w) + unit_groups(w->group) - 1) / unit_groups(w->group); }

size_t edgekit_codes_size(const edgekit_weights_t *w) { return (size_t) (w->n * groups_of(w) * w->group * w->bits / 8); }
size_t edgekit_zeros_size(const edgekit_weights_t *w) { return (size_t) (w->n * ((groups_of(w) * w->bits + 7) / 8)); }
size_t edgekit_scales_size(const edgekit_weights_t *w) { return (size_t) (w->n * groups_of(w)) * sizeof(float); }

/* Groups of a row of inputs are filled up with zeros to eights, the floats of a vector. */
static int64_t eights(int64_t groups) { return (groups + 7) / 8 * 8; }

size_t edgekit_inputs_size(int64_t m, const edgekit_weights_t *w) {
  return (size_t) (m * (units_of(w) * unit_size(w->group) + 2 * eights(groups_of(w)) * (int64_t) sizeof(float))) + 64;
}

edgekit_inputs_t edgekit_inputs(void *memory, int64_t m, const edgekit_weights_t *w) {
  int8_t *codes = (int8_t *) (((uintptr_t) memory + 63) & ~(uintptr_t) 63);
  int64_t groups = eights(groups_of(w));
  float *scales = (float *) (codes + m * units_of(w) * unit_size(w->group));
  return (edgekit_inputs_t){codes, scales, scales + m * groups, m, groups};
}

INLINE float total(__m256 v) {
  __m128 h = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  h = _mm_add_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)));
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

/* One group of x, filled up, at this place of its unit. */
INLINE void quantize_group(const float *x, int bits, int group, int8_t *unit, int64_t place, float *scale, float *sum) {
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF));
  __m256 top = _mm256_setzero_ps(), odd = top;
  for (int i = 0; i < group; i += 8) {
    __m256 v = _mm256_loadu_ps(x + i);
    top = _mm256_max_ps(top, _mm256_and_ps(v, magnitude));
    odd = _mm256_or_ps(odd, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  }
  __m128 h = _mm_max_ps(_mm256_castps256_ps128(top), _mm256_extractf128_ps(top, 1));
  h = _mm_max_ps(h, _mm_movehl_ps(h, h));
  float largest = _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)));
  /* Where an input is no number, so is every product. */
  *scale = _mm256_movemask_ps(odd) ? NAN : largest / 127;
  __m256i count = _mm256_setzero_si256();
  for (int i = 0; i < group; i += 32) {
    __m256i q = rounded(x + i, _mm256_set1_ps(largest > 0 ? 127 / largest : 0), &count);
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
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(count), _mm256_extracti128_si256(count, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
  *sum = *scale * (float) _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1)));
}

AVX2 void edgekit_quantize_inputs(const float *x, const edgekit_weights_t *w, const edgekit_inputs_t *a, int64_t first, int64_t last) {
  int64_t groups = groups_of(w), units = units_of(w), size = unit_size(w->group), taken = unit_groups(w->group);
  for (int64_t m = first; m < last; m++) {
    int64_t top = m / TILE * TILE, height = a->m - top < TILE ? a->m - top : TILE;
    int8_t *codes = a->codes + (top * units + m - top) * size;
    float *scales = a->scales + top * a->groups + (m - top) * taken, *sums = a->sums + m * a->groups;
    memset(sums, 0, sizeof(float) * (size_t) a->groups);
    memset(codes + (units - 1) * height * size, 0, (size_t) size);
    for (int64_t g = 0; g < groups; g++) {
      const float *from = x + m * w->k + g * w->group;
      float filled[128];
      if ((g + 1) * w->group > w->k) {
        memset(filled, 0, sizeof filled);
        from = memcpy(filled, from, sizeof(float) * (size_t) (w->k - g * w->group));
      }
      int64_t unit = g / taken * height, place = g % taken;
      quantize_group(from, w->bits, w->group, codes + unit * size, place * w->group, scales + unit * taken + place, sums + g);
    }
  }
}

/* A chunk of codes; the second half is left out where a row ends with a single group of 32. 4 bits: the even codes, and the odd ones. 8
   bits: the first 32 and the last 32, less 128. */
typedef struct {
  __m256i first, second;
} chunk_t;

INLINE chunk_t load_chunk(const uint8_t *at, int bits, int whole) {
  if (bits == 8) {
    const __m256i middle = _mm256_set1_epi8((char) 128);
    __m256i second = whole ? _mm256_loadu_si256((const __m256i *) (at + 32)) : middle;
    return (chunk_t){_mm256_xor_si256(_mm256_loadu_si256((const __m256i *) at), middle), _mm256_xor_si256(second, middle)};
  }
  const __m256i low = _mm256_set1_epi8(15);
  __m256i both = whole ? _mm256_loadu_si256((const __m256i *) at) : _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *) at));
  return (chunk_t){_mm256_and_si256(both, low), _mm256_and_si256(_mm256_srli_epi16(both, 4), low)};
}

INLINE __m256i load_codes(const int8_t *at) { return _mm256_load_si256((const __m256i *) at); }

INLINE __m256i signed_sums(__m256i w, __m256i x) {
  return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)), _mm256_set1_epi16(1));
}

typedef struct {
  chunk_t chunk[2];
} unit_t;

INLINE unit_t load_unit(const uint8_t *at, int bits, int group, int whole) {
  unit_t u;
  for (int i = 0; i < unit_size(group) / CHUNK; i++) u.chunk[i] = load_chunk(at + CHUNK * bits / 8 * i, bits, whole);
  return u;
}

/* The products of a unit, summed up to eight int32; of two groups the first has the lower four. */
INLINE __m256i unit_sums(const unit_t *u, const int8_t *x, int bits, int group) {
  __m256i sums = _mm256_setzero_si256();
  for (int i = 0; i < unit_size(group) / CHUNK; i++) {
    __m256i first = load_codes(x + i * CHUNK), second = load_codes(x + i * CHUNK + 32);
    chunk_t c = u->chunk[i];
    if (bits == 4) {
      sums = _mm256_add_epi16(sums, _mm256_add_epi16(_mm256_maddubs_epi16(c.first, first), _mm256_maddubs_epi16(c.second, second)));
    } else {
      first = signed_sums(c.first, first), second = signed_sums(c.second, second);
      if (group == 32) {
        __m256i low = _mm256_permute2x128_si256(first, second, 0x20), high = _mm256_permute2x128_si256(first, second, 0x31);
        return _mm256_add_epi32(low, high);
      }
      sums = _mm256_add_epi32(sums, _mm256_add_epi32(first, second));
    }
  }
  return bits == 4 ? _mm256_madd_epi16(sums, _mm256_set1_epi16(1)) : sums;
}

/* The scale of each lane of a unit's sums. */
INLINE __m256 lane_scales(const float *at, int group, int whole) {
  if (group > 32) return _mm256_broadcast_ss(at);
  __m128 two = whole ? _mm_castpd_ps(_mm_load_sd((const double *) at)) : _mm_load_ss(at);
  return _mm256_permutevar8x32_ps(_mm256_castps128_ps256(two), _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
}

/* scale * zero of every group of row n; 8 bits: of zero - 128. to: eights of groups, the rest of them zeros already. */
INLINE void offsets(const edgekit_weights_t *w, int64_t n, int bits, float *to) {
  int64_t groups = groups_of(w), g = 0;
  const float *scales = w->scales + n * groups;
  const uint8_t *zeros = w->zeros ? w->zeros + n * ((groups * bits + 7) / 8) : NULL;
  for (; zeros && g + 8 <= groups; g += 8) {
    __m256i z;
    if (bits == 8) {
      z = _mm256_sub_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *) (zeros + g))), _mm256_set1_epi32(128));
    } else {
      int32_t nibbles;
      memcpy(&nibbles, zeros + g / 2, 4);
      z = _mm256_srlv_epi32(_mm256_set1_epi32(nibbles), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
      z = _mm256_and_si256(z, _mm256_set1_epi32(15));
    }
    _mm256_storeu_ps(to + g, _mm256_mul_ps(_mm256_cvtepi32_ps(z), _mm256_loadu_ps(scales + g)));
  }
  for (; g < groups; g++) {
    int z = bits == 8 ? (zeros ? zeros[g] - 128 : 0) : zeros ? zeros[g / 2] >> 4 * (g & 1) & 15 : 8;
    to[g] = (float) z * scales[g];
  }
}

/* What the zero points take away from one product, and the bias. */
INLINE float finish(__m256 sum, const float *offset, const float *sums, int64_t groups, const float *bias) {
  for (int64_t g = 0; g < groups; g += 8) sum = _mm256_fnmadd_ps(_mm256_loadu_ps(offset + g), _mm256_loadu_ps(sums + g), sum);
  return total(sum) + (bias ? *bias : 0);
}

/* One row of inputs with rows n, n + apart, ... of weights, so many side by side. */
INLINE void beside(const edgekit_weights_t *w, const edgekit_inputs_t *a, const float *bias, float *y, int64_t n, int64_t apart, int rows,
                   int bits, int group) {
  const int64_t size = unit_size(group), step = size * bits / 8, taken = unit_groups(group), groups = groups_of(w);
  const int64_t row = groups * group * bits / 8;
  const uint8_t *codes = w->codes + n * row;
  const float *scales = w->scales + n * groups;
  const int8_t *x = a->codes;
  __m256 sum[STREAMS];
  for (int r = 0; r < rows; r++) sum[r] = _mm256_setzero_ps();
  for (int64_t g = 0; g < groups; g += taken, codes += step, x += size) {
    int whole = g + taken <= groups;
    __m256 input = lane_scales(a->scales + g, group, whole);
    for (int r = 0; r < rows; r++) {
      const uint8_t *at = codes + r * apart * row;
      for (int i = 0; i < step; i += 64) _mm_prefetch((const char *) at + AHEAD + i, _MM_HINT_T0);
      unit_t u = whole ? load_unit(at, bits, group, 1) : load_unit(at, bits, group, 0);
      __m256 scale = _mm256_mul_ps(lane_scales(scales + r * apart * groups + g, group, whole), input);
      sum[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(unit_sums(&u, x, bits, group)), scale, sum[r]);
    }
  }
  float offset[a->groups];
  memset(offset, 0, sizeof offset);
  for (int r = 0; r < rows; r++, n += apart) {
    offsets(w, n, bits, offset);
    y[n] = finish(sum[r], offset, a->sums, a->groups, bias ? bias + n : NULL);
  }
}

/* One row of inputs, limited by reading the weights: from several places at once, which memory delivers faster. */
INLINE void one_row(const edgekit_weights_t *w, const edgekit_inputs_t *a, const float *bias, float *y, int64_t first, int64_t last,
                    int bits, int group) {
  int64_t apart = (last - first) / STREAMS, n = first;
  for (; n < first + apart; n++) beside(w, a, bias, y, n, apart, STREAMS, bits, group);
  for (n = first + STREAMS * apart; n < last; n++) beside(w, a, bias, y, n, 0, 1, bits, group);
}

/* Rows top to top + height - 1 of inputs, at most TILE, with one or two rows of weights, which are unpacked once for all of them. */
INLINE void tile(const edgekit_weights_t *w, const edgekit_inputs_t *a, const float *bias, float *y, int64_t n, int rows, int64_t top,
                 int64_t height, int bits, int group) {
  const int64_t size = unit_size(group), step = size * bits / 8, taken = unit_groups(group), groups = groups_of(w),
                row = groups * group * bits / 8;
  const int8_t *x = a->codes + top * units_of(w) * size;
  const float *by = a->scales + top * a->groups;
  __m256 sum[TILE][2];
  for (int64_t m = 0; m < height; m++) sum[m][0] = sum[m][1] = _mm256_setzero_ps();
  for (int64_t g = 0; g < groups; g += taken) {
    int whole = g + taken <= groups;
    unit_t u[2];
    __m256 scale[2];
    for (int r = 0; r < rows; r++) {
      const uint8_t *codes = w->codes + (n + r) * row + g / taken * step;
      for (int i = 0; i < step; i += 64) _mm_prefetch((const char *) codes + AHEAD + i, _MM_HINT_T0);
      u[r] = whole ? load_unit(codes, bits, group, 1) : load_unit(codes, bits, group, 0);
      scale[r] = lane_scales(w->scales + (n + r) * groups + g, group, whole);
    }
    for (int64_t m = 0; m < height; m++, x += size, by += taken) {
      __m256 input = lane_scales(by, group, whole);
      for (int r = 0; r < rows; r++) {
        __m256 found = _mm256_cvtepi32_ps(unit_sums(&u[r], x, bits, group));
        sum[m][r] = _mm256_fmadd_ps(found, _mm256_mul_ps(scale[r], input), sum[m][r]);
      }
    }
  }
  float offset[a->groups];
  memset(offset, 0, sizeof offset);
  for (int r = 0; r < rows; r++) {
    offsets(w, n + r, bits, offset);
    for (int64_t m = 0; m < height; m++)
      y[(top + m) * w->n + n + r] = finish(sum[m][r], offset, a->sums + (top + m) * a->groups, a->groups, bias ? bias + n + r : NULL);
  }
}

INLINE void many_rows(const edgekit_weights_t *w, const edgekit_inputs_t *a, const float *bias, float *y, int64_t first, int64_t last,
                      int bits, int group) {
  for (int64_t top = 0; top < a->m; top += TILE) {
    int64_t height = a->m - top < TILE ? a->m - top : TILE, n = first;
    for (; n + 2 <= last; n += 2) tile(w, a, bias, y, n, 2, top, height, bits, group);
    if (n < last) tile(w, a, bias, y, n, 1, top, height, bits, group);
  }
}

#define FORM(bits, group)                                                                                                                  \
  case bits * 1000 + group:                                                                                                                \
    if (a->m == 1) one_row(w, a, bias, y, first, last, bits, group);                                                                       \
    else many_rows(w, a, bias, y, first, last, bits, group);                                                                               \
    break;

AVX2 void edgekit_matmul(const edgekit_weights_t *w, const edgekit_inputs_t *a, const float *bias, float *y, int64_t first, int64_t last) {
  switch (w->bits * 1000 + w->group) { /* constants wherever they are inlined */
    FORM(4, 32)
    FORM(4, 64)
    FORM(4, 128)
    FORM(8, 32)
    FORM(8, 64)
    FORM(8, 128)
  }
}
#else
int edgekit_matmul_runs(void) { return 0; }
#endif
