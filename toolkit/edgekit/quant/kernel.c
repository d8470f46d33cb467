/* quantize() of __init__.py in C: the same codes, scales and zero points, bit for bit, several times as fast.

   NumPy's steps (rtn.py, search.py, exact.py) are the definition and the fallback where no compiler was at hand; the tests compare the
   two with ==. So every operation here is the same IEEE one in the same order, sums included: compile with -ffp-contract=off and
   without -ffast-math. The loops run over whole groups, whose size is a constant wherever they are inlined, so compilers vectorize them. */

#include <stdint.h>
#include <string.h>

#define MOST 128 /* weights in a group */
#define INLINE static inline __attribute__((always_inline))
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

typedef struct {
  int bits, search;
  float levels, largest;
} grid_t;
typedef struct {
  float w[MOST], lo, hi;
} group_t;
typedef struct {
  float scale, zero;
} found_t;

const int edgekit_kernel_version = 3; /* native.py's VERSION */
static const float SMALLEST = 0x1p-14f;
static const double TRIALS[] = {13.55, 14.4, 15.5, 16.3, 17.5};

INLINE uint32_t bits_of(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return u;
}
INLINE float float_of(uint32_t u) {
  float x;
  memcpy(&x, &u, 4);
  return x;
}
INLINE float larger(float a, float b) { return a > b ? a : b; }
INLINE float smaller(float a, float b) { return a < b ? a : b; }

/* To the nearest integer, halves to even, for |x| < 2**22: where 2**23 + 2**22 is added, a float's last bit is worth 1. */
INLINE float round_even(float x) { return (x + 0x1.8p23f) - 0x1.8p23f; }

INLINE float round_scale(float x, int bits) {
  uint32_t u = bits_of(x);
  if (bits == 4) return float_of((u + 0x10000u) & 0xFFFE0000u);   /* 7 bits, halves up */
  return float_of((u + 0xFFFu + ((u >> 13) & 1u)) & 0xFFFFE000u); /* float16, halves to even */
}

/* The lower half of the values is added to the upper half until one is left, as in rtn.column_sums. */
INLINE void fold(float *v, int half) {
  for (int i = 0; i < half; i++) v[i] += v[i + half];
}

INLINE float tree_sum(float *v, int size) {
  if (size >= 128) fold(v, 64);
  if (size >= 64) fold(v, 32);
  fold(v, 16);
  fold(v, 8);
  float a = v[0] + v[4], b = v[1] + v[5], c = v[2] + v[6], d = v[3] + v[7];
  return (a + c) + (b + d);
}

INLINE float code(float w, float scale, found_t f, float levels) {
  return smaller(larger(round_even(w / scale), -f.zero), levels - f.zero);
}

INLINE float squared_error(const group_t *g, int size, found_t f, float levels) {
  float e[MOST];
  for (int i = 0; i < size; i++) {
    float d = g->w[i] - code(g->w[i], f.scale, f, levels) * f.scale;
    e[i] = d * d;
  }
  return tree_sum(e, size);
}

INLINE found_t min_max(const group_t *g, const grid_t *grid) {
  float scale = round_scale(larger((g->hi - g->lo) / grid->levels, SMALLEST), grid->bits);
  return (found_t){scale, round_even(-g->lo / scale)};
}

INLINE found_t search(const group_t *g, int size, const grid_t *grid, found_t plain) {
  float span = g->hi - g->lo, best_gain = -1;
  found_t best = plain;
  for (unsigned t = 0; t < sizeof TRIALS / sizeof *TRIALS; t++) {
    float scale = larger(span / (float) TRIALS[t], SMALLEST), inverse = 1 / scale;
    float zero = round_even(-g->lo / scale - (float) ((TRIALS[t] - 15) / 2));
    zero = smaller(larger(zero, 0), grid->levels);
    float dots[MOST], squares[MOST], low = -zero, high = grid->levels - zero;
    for (int i = 0; i < size; i++) {
      float r = smaller(larger(round_even(g->w[i] * inverse), low), high);
      dots[i] = g->w[i] * r;
      squares[i] = r * r;
    }
    float dot = tree_sum(dots, size), square = larger(tree_sum(squares, size), 1);
    float fitted = dot / square, gain = dot * fitted;
    if (gain > best_gain) {
      best_gain = gain;
      best = (found_t){fitted, zero};
    }
  }
  best.scale = smaller(round_scale(larger(best.scale, SMALLEST), grid->bits), grid->largest);
  float limit = squared_error(g, size, plain, grid->levels) * (float) (1 - 0x1p-16);
  return squared_error(g, size, best, grid->levels) < limit ? best : plain;
}

/* Whether a scale of the grid gives every weight back; sets f if so. */
INLINE int adopt(const group_t *g, int size, const grid_t *grid, float levels, float scale, found_t *f) {
  if (!(scale >= SMALLEST && scale <= grid->largest && g->hi - g->lo <= levels * scale)) return 0;
  if (round_scale(scale, grid->bits) != scale) return 0;
  int wrong = 0;
  for (int i = 0; i < size; i++) wrong |= round_even(g->w[i] / scale) * scale != g->w[i];
  if (wrong) return 0;
  *f = (found_t){scale, -g->lo / scale};
  return 1;
}

INLINE void reproduce(const group_t *g, int size, const grid_t *grid, found_t *f) {
  float top = larger(g->hi, -g->lo), inverse = 360360.0f / larger(top, SMALLEST);
  int may = top >= SMALLEST;
  for (int i = 0; i < 4 && may; i++) {
    float ratio = g->w[i] * inverse, off = ratio - round_even(ratio);
    may = (off < 0 ? -off : off) < 0.1f;
  }
  for (int n = 1; may && n <= 15; n++)
    if (adopt(g, size, grid, 15, top / (float) n, f)) break;
  if (grid->bits == 8) {
    float span = g->hi - g->lo;
    if (!adopt(g, size, grid, grid->levels, span / grid->levels, f) && !adopt(g, size, grid, grid->levels, span / (grid->levels - 1), f))
      adopt(g, size, grid, grid->levels, SMALLEST, f);
  }
}

INLINE void widen(group_t *g, int size, const uint16_t *from) {
  for (int i = 0; i < size; i++) g->w[i] = float_of((uint32_t) from[i] << 16);
}

/* A group of ``have`` weights; the last of a row is filled up with 0. */
INLINE void load(group_t *g, int size, const void *from, int64_t have, int bfloat16) {
  if (have == size && bfloat16) {
    widen(g, size, from);
  } else if (bfloat16) {
    uint16_t narrow[MOST] = {0};
    memcpy(narrow, from, 2 * have);
    widen(g, size, narrow);
  } else {
    memset(g->w, 0, 4 * size);
    memcpy(g->w, from, 4 * have);
  }
}

INLINE void narrow_bounds(float *lo, float *hi, int half) {
  for (int i = 0; i < half; i++) {
    lo[i] = smaller(lo[i], lo[i + half]);
    hi[i] = larger(hi[i], hi[i + half]);
  }
}

/* 0 unless a value is not finite. 0 always lies between the bounds. */
INLINE int bounds(group_t *g, int size) {
  float lo[MOST], hi[MOST];
  int infinite = 0;
  for (int i = 0; i < size; i++) {
    infinite |= (bits_of(g->w[i]) & 0x7F800000u) == 0x7F800000u;
    lo[i] = smaller(g->w[i], 0);
    hi[i] = larger(g->w[i], 0);
  }
  if (size >= 128) narrow_bounds(lo, hi, 64);
  if (size >= 64) narrow_bounds(lo, hi, 32);
  narrow_bounds(lo, hi, 16);
  narrow_bounds(lo, hi, 8);
  g->lo = smaller(smaller(smaller(lo[0], lo[4]), smaller(lo[1], lo[5])), smaller(smaller(lo[2], lo[6]), smaller(lo[3], lo[7])));
  g->hi = larger(larger(larger(hi[0], hi[4]), larger(hi[1], hi[5])), larger(larger(hi[2], hi[6]), larger(hi[3], hi[7])));
  return infinite;
}

INLINE void put_codes(const group_t *g, int size, const grid_t *grid, found_t f, uint8_t *out) {
  uint8_t q[MOST];
  for (int i = 0; i < size; i++) q[i] = (uint8_t) (int) (code(g->w[i], f.scale, f, grid->levels) + f.zero);
  if (grid->bits == 8) memcpy(out, q, size);
  else
    for (int i = 0; i < size / 2; i++) {
      uint16_t pair; /* on a little-endian processor: 0h 0l -> hl */
      memcpy(&pair, q + 2 * i, 2);
      out[i] = (uint8_t) (pair | pair >> 4);
    }
}

INLINE int quantize(const void *weight, int bfloat16, int64_t n, int64_t k, const grid_t *grid, int size, uint8_t *codes, uint16_t *scales,
                    uint8_t *zeros) {
  int64_t groups = (k + size - 1) / size, width = bfloat16 ? 2 : 4;
  for (int64_t row = 0; row < n; row++)
    for (int64_t i = 0; i < groups; i++) {
      group_t g;
      int64_t at = i * size, have = k - at < size ? k - at : size;
      load(&g, size, (const char *) weight + (row * k + at) * width, have, bfloat16);
      if (bounds(&g, size)) return 1;
      found_t f = min_max(&g, grid);
      if (!(f.scale <= grid->largest)) return 1;
      if (grid->search) f = search(&g, size, grid, f);
      reproduce(&g, size, grid, &f);
      put_codes(&g, size, grid, f, codes);
      codes += size * grid->bits / 8;
      *scales++ = (uint16_t) ((bits_of(f.scale) >> 13) - (112u << 10)); /* float16, exactly: normal and positive */
      *zeros++ = (uint8_t) f.zero;
    }
  return 0;
}

/* weight: n rows of k, float32 or the bits of bfloat16. Returns 0, or 1 where a value is not finite or too large for the grid. */
CLONES int edgekit_quantize(const void *weight, int bfloat16, int64_t n, int64_t k, int bits, int group, int search, uint8_t *codes,
                            uint16_t *scales, uint8_t *zeros) {
  grid_t grid = {bits, search && bits == 4, bits == 4 ? 15.0f : 255.0f, bits == 4 ? 4352.0f : 256.75f};
  switch (group) {
  case 32: return quantize(weight, bfloat16, n, k, &grid, 32, codes, scales, zeros);
  case 64: return quantize(weight, bfloat16, n, k, &grid, 64, codes, scales, zeros);
  default: return quantize(weight, bfloat16, n, k, &grid, 128, codes, scales, zeros);
  }
}

/* The two of columns.py. Rows are settled one by one: n of b columns, each array with its distance from row to row. */
CLONES int edgekit_compensate(int64_t n, int64_t b, float *w, int64_t ws, const float *scale, int64_t ss, const float *zero, int64_t zs,
                              const float *upper, int64_t us, float *codes, int64_t cs) {
  for (int64_t row = 0; row < n; row++, w += ws, scale += ss, zero += zs, codes += cs)
    for (int64_t i = 0; i < b; i++) {
      const float *u = upper + i * us;
      float r = code(w[i], scale[i], (found_t){scale[i], zero[i]}, 15), e = (w[i] - r * scale[i]) / u[i];
      codes[i] = r;
      for (int64_t j = i + 1; j < b; j++) w[j] -= e * u[j];
    }
  return 0;
}

CLONES int edgekit_descend(int64_t n, int64_t b, const float *scale, int64_t ss, const float *zero, int64_t zs, const float *h, int64_t hs,
                           float *codes, int64_t cs, float *pull, int64_t ps) {
  for (int64_t row = 0; row < n; row++, scale += ss, zero += zs, codes += cs, pull += ps)
    for (int64_t i = 0; i < b; i++) {
      const float *own = h + i * hs;
      float r = code(codes[i] * scale[i] + pull[i] / own[i], scale[i], (found_t){scale[i], zero[i]}, 15);
      float step = (codes[i] - r) * scale[i];
      if (step == 0) continue;
      codes[i] = r;
      for (int64_t j = 0; j < b; j++) pull[j] += step * own[j];
    }
  return 0;
}
