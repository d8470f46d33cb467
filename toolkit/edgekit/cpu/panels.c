/* matmul.c's products of several rows of inputs: weights are laid out by panels, which many rows share. */

#include "inner.h"

#if defined(__x86_64__) && defined(__GNUC__)

enum {
  BLOCK = 32,   /* codes summed in 16 bits */
  QUADS = 8,    /* of a block: four inputs side by side, which one 32-bit lane multiplies and sums */
  BAND = 96,    /* rows of inputs that share weights laid out anew */
  DEPTH = 1024, /* codes of a row that are laid out at a time, with WIDE rows 16 KB: they stay in a level 1 cache */
  FEW = 12      /* rows of inputs for which half as many are laid out: memory, not arithmetic, is the limit */
};

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
    memcpy(&four, at + t * size + place(q, bits), 4);                                                                                      \
    __m256i input = _mm256_set1_epi32(four);                                                                                               \
    if (dots) first##t = dotted(first##t, first, input, bits, dots), second##t = dotted(second##t, second, input, bits, dots);             \
    else a##t = added(a##t, quads(first, input, bits), bits, q), b##t = added(b##t, quads(second, input, bits), bits, q);                       \
  }
#define WIDEN(t)                                                                                                                           \
  if (t < rows && !dots)                                                                                                                     \
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

/* The four products and the sum in one. Written out, since what is inlined into AVX2's functions may use AVX2's intrinsics alone. */
INLINE __m256i dotted(__m256i sum, __m256i w, __m256i x, int bits, int dots) {
  __m256i codes = bits == 4 ? w : _mm256_abs_epi8(w), input = bits == 4 ? x : _mm256_sign_epi8(x, w);
  if (dots == EDGEKIT_AVX512_VNNI) __asm__("vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(codes), "x"(input));
  else __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(codes), "x"(input));
  return sum;
}

INLINE void scaled(const panel_t *p, int64_t g, int from, __m256i sums, float scale, float count, float *y) {
  __m256 found = _mm256_fnmadd_ps(_mm256_loadu_ps(p->zeros[g] + from), _mm256_set1_ps(count), _mm256_cvtepi32_ps(sums));
  __m256 by = _mm256_mul_ps(_mm256_loadu_ps(p->scales[g] + from), _mm256_set1_ps(scale));
  _mm256_storeu_ps(y + from, _mm256_fmadd_ps(found, by, _mm256_loadu_ps(y + from)));
}

/* A panel with so many rows of inputs (at most TALL): what its groups give is added to sum. x, scales, counts: of its first group. */
INLINE void tile(const panel_t *p, const int8_t *x, const float *scales, const float *counts, float (*sum)[WIDE], int rows, int64_t groups,
                 int bits, int64_t size, int group, int dots) {
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

#define ROWS(rows, bits, size, dots)                                                                                                       \
  case rows: tile(p, x, scales, counts, sum, rows, groups, bits, size, group, dots); break;

#define TILES(bits, size, dots)                                                                                                            \
  AVX2 static void tiles_##bits##_##size##_##dots(const panel_t *p, const int8_t *x, const float *scales, const float *counts,             \
                                                  float (*sum)[WIDE], int64_t rows, int64_t groups, int group) {                           \
    switch (rows) { /* constants where they are inlined */                                                                                 \
      ROWS(1, bits, size, dots)                                                                                                            \
      ROWS(2, bits, size, dots)                                                                                                            \
      ROWS(3, bits, size, dots)                                                                                                            \
      ROWS(4, bits, size, dots)                                                                                                            \
      ROWS(5, bits, size, dots)                                                                                                            \
      ROWS(6, bits, size, dots)                                                                                                            \
    }                                                                                                                                      \
  }

#define FORMS(dots)                                                                                                                        \
  TILES(4, 64, dots)                                                                                                                       \
  TILES(4, 128, dots)                                                                                                                      \
  TILES(8, 64, dots)                                                                                                                       \
  TILES(8, 128, dots)

FORMS(EDGEKIT_AVX2)
FORMS(EDGEKIT_AVX512_VNNI)
FORMS(EDGEKIT_AVX_VNNI)

#define ALL(dots) {{tiles_4_64_##dots, tiles_4_128_##dots}, {tiles_8_64_##dots, tiles_8_128_##dots}}

static tiles_t *tiles_of(int bits, int64_t size) {
  static tiles_t *const all[][2][2] = {ALL(EDGEKIT_AVX2), ALL(EDGEKIT_AVX512_VNNI), ALL(EDGEKIT_AVX_VNNI)};
  static _Atomic int known; /* and one, since asking takes as long as a small product */
  int dots = known ? known - 1 : edgekit_matmul_dots();
  known = dots + 1;
  return all[dots][bits == 8][size == 128];
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

void edgekit_matmul_rows(const edgekit_weights_t *w, const edgekit_inputs_t *a, const float *bias, float *y, int64_t first, int64_t last) {
  int64_t height = BAND / tall(a->m) * tall(a->m); /* whole tiles */
  for (int64_t top = 0; top < a->m; top += height)
    for (int64_t n = first; n < last; n += WIDE)
      band(w, a, bias, y, n, n + WIDE < last ? n + WIDE : last, top, a->m - top < height ? a->m - top : height);
}
#endif
