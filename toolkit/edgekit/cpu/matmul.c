/* Products with INT4 and INT8 weights for x86-64 processors that have AVX2 and no VNNI, where engines' own kernels leave a third of the
   memory's bandwidth unused. Figures: bench/matmul.py, docs/performance.md.

   Inputs become int8 in the groups of the weights (scale = largest / 127), so a group's part of a product is a sum of integers, less zero
   point times the sum of the group's inputs, times two scales. What is summed in a group is exact, and groups are summed in order: so a
   product is the same bit for bit, whether its row of inputs comes alone or among others. Weights are read where they lie, in file order:
   nothing is laid out anew when a model is loaded. Nibbles come in pairs, so of 64 inputs the even ones come first, then the odd ones.

   No sum can overflow. 4 bits: 15 * 127 * 2 from one maddubs, eight of which are 30,480 < 2**15. 8 bits: codes are taken less 128,
   |code| * |input| <= 128 * 127, two of which are 32,512 < 2**15. A group's sum less zero points is below 2**23, so a float holds it. */

#include "matmul.h"

const int edgekit_matmul_version = 3; /* of the interface, products.py's VERSION */

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#include <immintrin.h>
#include <math.h>
#include <string.h>

#define AVX2 __attribute__((target("avx2,fma")))
#define INLINE static inline __attribute__((always_inline)) AVX2

enum {
  CHUNK = 64,   /* codes that are read at once */
  BLOCK = 32,   /* codes summed in 16 bits */
  QUADS = 8,    /* of a block: four inputs side by side, which one 32-bit lane multiplies and sums */
  TALL = 6,     /* rows of inputs multiplied at once: with two vectors of rows of weights, 12 of the 16 registers are sums */
  WIDE = 16,    /* rows of weights laid out together */
  BAND = 96,    /* rows of inputs that share weights laid out anew */
  DEPTH = 1024, /* codes of a row that are laid out at a time, with WIDE rows 16 KB: they stay in a level 1 cache */
  FEW = 12,     /* rows of inputs for which half as many are laid out: memory, not arithmetic, is the limit */
  STREAMS = 4,  /* places where weights are read for a single row of inputs: 34 GB/s where one gives 28 and a plain sum 32 */
  AHEAD = 1024  /* bytes that are asked for ahead, without which a quarter of the bandwidth goes unused with one stream */
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

/* Rows of inputs that lie together, of m: as many as are multiplied at once, and about as many in the last. */
static int64_t tall(int64_t m) {
  int64_t tiles = (m + TALL - 1) / TALL;
  return tiles ? (m + tiles - 1) / tiles : TALL;
}

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
  __m128 h = _mm_max_ps(_mm256_castps256_ps128(top), _mm256_extractf128_ps(top, 1));
  h = _mm_max_ps(h, _mm_movehl_ps(h, h));
  float largest = _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)));
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

INLINE __m256i load(const void *at) { return _mm256_loadu_si256((const __m256i *) at); }

/* The sums of four products each, of codes and inputs. 8 bits: codes less 128. */
INLINE __m256i quads(__m256i w, __m256i x, int bits) {
  return bits == 4 ? _mm256_maddubs_epi16(w, x) : _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
}

INLINE __m256i widened(__m256i sums) { return _mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }

/* Zero points of 8 groups (4 bits) or 4 (8 bits) of row n, the first lowest. */
INLINE uint32_t zeros_of(const edgekit_weights_t *w, int64_t n, int64_t g, int bits) {
  uint32_t word = bits == 4 ? 0x88888888 : 0x80808080;
  int64_t row = (groups_of(w) * bits + 7) / 8, at = g * bits / 8;
  if (!w->zeros) return word;
  if (row - at >= 4) memcpy(&word, w->zeros + n * row + at, 4);
  for (int64_t i = 0; row - at < 4 && i < row - at; i++) ((uint8_t *) &word)[i] = w->zeros[n * row + at + i];
  return word;
}

/* A single row of inputs. ------------------------------------------------------------------------------------------------------------ */

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

/* Several rows of inputs. ------------------------------------------------------------------------------------------------------------ */

/* WIDE rows of weights, up to DEPTH codes of each: a vector has four codes of each of eight rows. */
typedef struct {
  _Alignas(64) __m256i codes[DEPTH / BLOCK][QUADS][WIDE / 8];
  float scales[DEPTH / 32][WIDE], zeros[DEPTH / 32][WIDE];
} panel_t;

/* Eight vectors of eight 32-bit values. */
INLINE void transpose(__m256i v[8]) {
  __m256i a[8], b[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) a[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]), a[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    int from = i / 2 * 4 + i % 2, to = i / 2 * 4 + i % 2 * 2;
    b[to] = _mm256_unpacklo_epi64(a[from], a[from + 2]), b[to + 1] = _mm256_unpackhi_epi64(a[from], a[from + 2]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++)
    v[i] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x20), v[i + 4] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x31);
}

/* Scales and zero points of groups g to end - 1 of eight rows. */
INLINE void lay_out_groups(float (*scales)[WIDE], float (*zeros)[WIDE], const edgekit_weights_t *w, const int64_t rows[8], int64_t g,
                           int64_t end, int bits) {
  const int64_t groups = groups_of(w);
  for (int r = 0; r < 8; r++)
    for (int64_t i = g; i < end; i++) scales[i - g][r] = w->scales[rows[r] * groups + i];
  for (int64_t at = g; at < end; at += 32 / bits) {
    uint32_t words[8];
    for (int r = 0; r < 8; r++) words[r] = zeros_of(w, rows[r], at, bits);
    __m256i left = load(words);
    for (int64_t i = at; i < end && i < at + 32 / bits; i++, left = _mm256_srli_epi32(left, bits)) {
      __m256i zero = _mm256_and_si256(left, _mm256_set1_epi32((1 << bits) - 1));
      if (bits == 8) zero = _mm256_sub_epi32(zero, _mm256_set1_epi32(128));
      _mm256_storeu_ps(zeros[i - g], _mm256_cvtepi32_ps(zero));
    }
  }
}

/* 32 bytes of eight rows; whole: of the second half nothing is in the file otherwise. ahead: where to what memory is asked for. */
INLINE void lay_out_codes(__m256i (*to)[QUADS][WIDE / 8], const uint8_t *const rows[8], int64_t at, int64_t ahead, int bits,
                          int whole) {
  const __m256i low = _mm256_set1_epi8(15), middle = _mm256_set1_epi8((char) 128);
  __m256i v[8];
#pragma GCC unroll 8
  for (int r = 0; r < 8; r++) {
    v[r] = whole ? load(rows[r] + at) : _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *) (rows[r] + at)));
    if (at % 64 == 0) _mm_prefetch((const char *) rows[r] + at + ahead, _MM_HINT_T0);
  }
  transpose(v);
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    if (bits == 8) {
      to[at / BLOCK][i][0] = _mm256_xor_si256(v[i], middle);
      continue;
    }
    to[at * 2 / BLOCK + i / 4][i % 4][0] = _mm256_and_si256(v[i], low);
    to[at * 2 / BLOCK + i / 4][i % 4 + 4][0] = _mm256_and_si256(_mm256_srli_epi16(v[i], 4), low);
  }
}

/* From a row's group g to what is laid out after groups g to end - 1: in the same row, or in that of the next panel. */
INLINE int64_t next_of(const edgekit_weights_t *w, int64_t g, int64_t end) {
  int64_t groups = groups_of(w), bytes = w->group * w->bits / 8;
  return (end < groups ? end - g : WIDE * groups - g) * bytes;
}

/* Rows n to last - 1 of weights, at most WIDE (the last one in place of those that are missing), groups g to end - 1. ask: for what is laid
   out next, on the way. */
INLINE void lay_out(panel_t *to, const edgekit_weights_t *w, int64_t n, int64_t last, int64_t g, int64_t end, int ask, int bits) {
  const int64_t row = groups_of(w) * w->group * bits / 8, begin = g * w->group * bits / 8, bytes = (end - g) * w->group * bits / 8;
  const int64_t ahead = ask ? next_of(w, g, end) : 0;
  for (int v = 0; v < WIDE / 8; v++) {
    int64_t rows[8], at = 0;
    const uint8_t *from[8];
    for (int r = 0; r < 8; r++) {
      rows[r] = n + 8 * v + r < last ? n + 8 * v + r : last - 1;
      from[r] = w->codes + rows[r] * row + begin;
    }
    lay_out_groups((float(*)[WIDE]) &to->scales[0][8 * v], (float(*)[WIDE]) &to->zeros[0][8 * v], w, rows, g, end, bits);
    __m256i(*codes)[QUADS][WIDE / 8] = (__m256i(*)[QUADS][WIDE / 8]) &to->codes[0][0][v];
    for (; at + 32 <= bytes; at += 32) lay_out_codes(codes, from, at, ahead, bits, 1);
    if (at < bytes) lay_out_codes(codes, from, at, ahead, bits, 0);
  }
}

AVX2 static void lay_out_4(panel_t *to, const edgekit_weights_t *w, int64_t n, int64_t last, int64_t g, int64_t end, int ask) {
  lay_out(to, w, n, last, g, end, ask, 4);
}

AVX2 static void lay_out_8(panel_t *to, const edgekit_weights_t *w, int64_t n, int64_t last, int64_t g, int64_t end, int ask) {
  lay_out(to, w, n, last, g, end, ask, 8);
}

/* Where four inputs of a block lie, from its first on. */
INLINE int place(int quad, int bits) { return bits == 8 ? 4 * quad : 32 * (quad / 4) + 4 * (quad % 4); }

/* Sums are variables of their own, not arrays: these the compiler keeps in registers. */
#define EACH(what) what(0) what(1) what(2) what(3) what(4) what(5)
#define DECLARE(t) __m256i a##t = zero, b##t = zero, first##t = zero, second##t = zero;
#define MULTIPLY(t)                                                                                                                        \
  if (t < rows) {                                                                                                                          \
    int32_t four;                                                                                                                          \
    memcpy(&four, at + t * size + place(q, bits), 4);                                                                               \
    __m256i input = _mm256_set1_epi32(four);                                                                                               \
    a##t = added(a##t, quads(first, input, bits), bits, q), b##t = added(b##t, quads(second, input, bits), bits, q);                       \
  }
#define WIDEN(t)                                                                                                                           \
  if (t < rows)                                                                                                                            \
    first##t = _mm256_add_epi32(first##t, bits == 8 ? a##t : widened(a##t)),                                                               \
    second##t = _mm256_add_epi32(second##t, bits == 8 ? b##t : widened(b##t));
#define SCALE(t)                                                                                                                           \
  if (t < rows) {                                                                                                                          \
    int64_t of = (g / taken * rows + t) * taken + g % taken;                                                                               \
    scaled(p, g, 0, first##t, scales[of], counts[of], sum[t]);                                                                             \
    scaled(p, g, 8, second##t, scales[of], counts[of], sum[t]);                                                                            \
  }

/* 8 bits: in 32 bits at once, since two products may fill 16. The order of the source is kept: GCC would multiply all and add them later. */
INLINE __m256i added(__m256i sum, __m256i four, int bits, int after) {
  if (bits == 8) four = widened(four);
  sum = after == 0 ? four : bits == 8 ? _mm256_add_epi32(sum, four) : _mm256_add_epi16(sum, four);
  __asm__("" : "+x"(sum));
  return sum;
}

INLINE void scaled(const panel_t *p, int64_t g, int from, __m256i sums, float scale, float count, float *y) {
  __m256 found = _mm256_fnmadd_ps(_mm256_loadu_ps(p->zeros[g] + from), _mm256_set1_ps(count), _mm256_cvtepi32_ps(sums));
  __m256 by = _mm256_mul_ps(_mm256_loadu_ps(p->scales[g] + from), _mm256_set1_ps(scale));
  _mm256_storeu_ps(y + from, _mm256_fmadd_ps(found, by, _mm256_loadu_ps(y + from)));
}

/* A panel with so many rows of inputs (at most TALL): what its groups give is added to sum. x, scales, counts: of its first group. */
INLINE void tile(const panel_t *p, const int8_t *x, const float *scales, const float *counts, float (*sum)[WIDE], int rows, int64_t groups,
                 int bits, int64_t size, int group) {
  const int64_t taken = size / group;
  const __m256i zero = _mm256_setzero_si256();
  for (int64_t g = 0; g < groups; g++) {
    EACH(DECLARE)
    for (int64_t block = g * group / BLOCK; block < (g + 1) * group / BLOCK; block++) {
      int64_t column = block * BLOCK;
      const int8_t *at = x + column / size * size * rows + column % size / CHUNK * CHUNK + column % CHUNK * bits / 8;
#pragma GCC unroll 8
      for (int q = 0; q < QUADS; q++) {
        __m256i first = p->codes[block][q][0], second = p->codes[block][q][1];
        EACH(MULTIPLY)
      }
      EACH(WIDEN)
    }
    EACH(SCALE)
  }
}

typedef void tiles_t(const panel_t *, const int8_t *, const float *, const float *, float (*)[WIDE], int64_t rows, int64_t groups, int group);

#define ROWS(rows, bits, size)                                                                                                             \
  case rows: tile(p, x, scales, counts, sum, rows, groups, bits, size, group); break;

#define TILES(bits, size)                                                                                                                  \
  AVX2 static void tiles_##bits##_##size(const panel_t *p, const int8_t *x, const float *scales, const float *counts, float (*sum)[WIDE],  \
                                         int64_t rows, int64_t groups, int group) {                                                        \
    switch (rows) { /* constants where they are inlined */                                                                                 \
      ROWS(1, bits, size)                                                                                                                  \
      ROWS(2, bits, size)                                                                                                                  \
      ROWS(3, bits, size)                                                                                                                  \
      ROWS(4, bits, size)                                                                                                                  \
      ROWS(5, bits, size)                                                                                                                  \
      ROWS(6, bits, size)                                                                                                                  \
    }                                                                                                                                      \
  }

TILES(4, 64)
TILES(4, 128)
TILES(8, 64)
TILES(8, 128)

static tiles_t *tiles_of(int bits, int64_t size) {
  if (bits == 4) return size == 64 ? tiles_4_64 : tiles_4_128;
  return size == 64 ? tiles_8_64 : tiles_8_128;
}

/* Asks for one of so many parts of what is laid out next: all at once would be more than a core has in flight. */
INLINE void ask_ahead(const edgekit_weights_t *w, int64_t n, int64_t g, int64_t end, int64_t depth, int64_t part, int64_t parts) {
  const int64_t row = groups_of(w) * w->group * w->bits / 8;
  const uint8_t *next = w->codes + n * row + g * w->group * w->bits / 8 + next_of(w, g, end);
  for (int64_t r = WIDE * part / parts; r < WIDE * (part + 1) / parts; r++)
    for (int64_t at = 0; at < depth * w->bits / 8; at += 64) _mm_prefetch((const char *) next + r * row + at, _MM_HINT_T0);
}

/* Rows top to top + height - 1 of inputs, at most BAND, with rows n to last - 1 of weights, at most WIDE. */
AVX2 static void band(const edgekit_weights_t *w, const edgekit_inputs_t *a, const float *bias, float *y, int64_t n, int64_t last,
                      int64_t top, int64_t height) {
  const int64_t groups = groups_of(w), units = units_of(w), size = unit_size(w->group), taken = unit_groups(w->group), most = tall(a->m);
  const int64_t parts = (height + most - 1) / most, depth = a->m > FEW ? DEPTH : DEPTH / 2;
  tiles_t *tiles = tiles_of(w->bits, size);
  float sum[BAND][WIDE];
  panel_t panel;
  memset(sum, 0, sizeof sum[0] * (size_t) height);
  for (int64_t g = 0; g < groups; g += depth / w->group) {
    int64_t end = g + depth / w->group < groups ? g + depth / w->group : groups;
    (w->bits == 4 ? lay_out_4 : lay_out_8)(&panel, w, n, last, g, end, parts == 1);
    for (int64_t m = top; m < top + height; m += most) {
      int64_t rows = a->m - m < most ? a->m - m : most, unit = m * units + g / taken * rows;
      const float *scales = a->scales + unit * taken, *counts = a->counts + unit * taken;
      if (parts > 1) ask_ahead(w, n, g, end, depth, (m - top) / most, parts);
      tiles(&panel, a->codes + unit * size, scales, counts, sum + m - top, rows, end - g, w->group);
    }
  }
  float more[WIDE] = {0};
  if (bias) memcpy(more, bias + n, sizeof(float) * (size_t) (last - n));
  for (int64_t m = 0; m < height; m++) {
    for (int i = 0; i < WIDE; i++) sum[m][i] += more[i];
    float *to = y + (top + m) * w->n + n;
    if (last - n == WIDE) memcpy(to, sum[m], sizeof sum[m]);
    else memcpy(to, sum[m], sizeof(float) * (size_t) (last - n));
  }
}

static void many_rows(const edgekit_weights_t *w, const edgekit_inputs_t *a, const float *bias, float *y, int64_t first, int64_t last) {
  int64_t height = BAND / tall(a->m) * tall(a->m); /* whole tiles */
  for (int64_t top = 0; top < a->m; top += height)
    for (int64_t n = first; n < last; n += WIDE)
      band(w, a, bias, y, n, n + WIDE < last ? n + WIDE : last, top, a->m - top < height ? a->m - top : height);
}

#define FORM(bits, group)                                                                                                                  \
  case bits * 1000 + group: one_row(w, a, bias, y, first, last, bits, group); break;

AVX2 void edgekit_matmul(const edgekit_weights_t *w, const edgekit_inputs_t *a, const float *bias, float *y, int64_t first, int64_t last) {
  if (a->m > 1) {
    many_rows(w, a, bias, y, first, last);
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

/* On several threads. ---------------------------------------------------------------------------------------------------------------- */

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
