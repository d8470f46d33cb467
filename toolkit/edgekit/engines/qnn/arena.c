/* The part of turns.c that is memory: blocks of the compiler's own libraries lie in an arena that begins at a fixed address, and their
places follow from its requests alone; what Python, ONNX Runtime and others ask for is glibc's.

The arena is a two-level segregated fit (TLSF: Masmano, Ripoll, Crespo, Real, ECRTS 2004): blocks lie one behind the other from ARENA on,
neighbours that are free are one block, and the smallest list whose blocks are all large enough gives the next one. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);
void __libc_free(void *);

#define ARENA ((char *) 0x200000000000)
#define LIMIT (1ul << 40)
#define GROWTH (1ul << 22)
#define RETURNED (1ul << 19) /* from this size on what is freed goes back to the system */
#define PAGE 4096ul
#define HEAD 16ul
#define LEAST 16ul

struct block {
  struct block *before;          /* where it lies */
  size_t size;                   /* behind these two, multiples of 16; + 1 while it is free */
  struct block *next, *previous; /* in its list, while it is free */
};
static struct block *lists[40][16];
static uint64_t rows;
static uint32_t columns[40];
static struct block *top;                   /* behind the last one, of size 0 */
static atomic_flag busy = ATOMIC_FLAG_INIT; /* a detached thread's very end is nobody's turn */

static size_t size_of(const struct block *b) { return b->size & ~1ul; }
static struct block *behind(struct block *b) { return (struct block *) ((char *) b + HEAD + size_of(b)); }

/* Which list: sizes below 256 by sixteenths of that, others by sixteenths of a power of two. */
static void place_of(size_t size, int *row, int *column) {
  int power = size < 256 ? 8 : 63 - __builtin_clzl(size);
  *row = size < 256 ? 0 : power - 7;
  *column = (int) (size >> (power - 4)) & 15;
}

static void list(struct block *b) {
  int row, column;
  place_of(size_of(b), &row, &column);
  struct block **head = &lists[row][column];
  b->size |= 1;
  b->previous = 0;
  b->next = *head;
  if (*head) (*head)->previous = b;
  *head = b;
  rows |= 1ul << row;
  columns[row] |= 1u << column;
}

static void unlist(struct block *b) {
  int row, column;
  place_of(size_of(b), &row, &column);
  if (b->next) b->next->previous = b->previous;
  if (b->previous) b->previous->next = b->next;
  else if (!(lists[row][column] = b->next) && !(columns[row] &= ~(1u << column))) rows &= ~(1ul << row);
  b->size &= ~1ul;
}

static void release(struct block *b) {
  struct block *other = behind(b);
  if (other->size & 1) {
    unlist(other);
    b->size += HEAD + other->size;
  }
  if (b->before && b->before->size & 1) {
    other = b->before;
    unlist(other);
    other->size += HEAD + b->size;
    b = other;
  }
  behind(b)->before = b;
  list(b);
}

/* What is more than `size` becomes a block of its own. */
static void cut(struct block *b, size_t size) {
  if (b->size < size + HEAD + LEAST) return;
  struct block *rest = (struct block *) ((char *) b + HEAD + size);
  rest->before = b;
  rest->size = b->size - size - HEAD;
  b->size = size;
  behind(rest)->before = rest;
  release(rest);
}

static int grow(size_t size) {
  static char *limit;
  if (!limit) {
    if (mmap(ARENA, LIMIT, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0) != ARENA) {
      dprintf(2, "edgekit turns: no place for the arena\n");
      abort();
    }
    limit = ARENA;
  }
  size = (size + 2 * HEAD + GROWTH - 1) & ~(GROWTH - 1);
  if (size > (size_t) (ARENA + LIMIT - limit) || mprotect(limit, size, PROT_READ | PROT_WRITE)) return 0;
  struct block *b = top ? top : (struct block *) limit;
  limit += size;
  b->size = limit - (char *) b - 2 * HEAD;
  top = behind(b);
  top->size = 0;
  release(b);
  return 1;
}

static struct block *take(size_t size) {
  if (size > LIMIT) return 0;
  size = size < LEAST ? LEAST : (size + 15) & ~15ul;
  int row, column;
  place_of(size < 256 ? size : size + (1ul << (63 - __builtin_clzl(size) - 4)) - 1, &row, &column);
  for (;;) {
    uint32_t fits = columns[row] & (~0u << column);
    uint64_t larger = rows & (~0ul << (row + 1));
    if (fits || larger) {
      if (!fits) fits = columns[row = __builtin_ctzl(larger)];
      struct block *b = lists[row][__builtin_ctz(fits)];
      unlist(b);
      cut(b, size);
      return b;
    }
    if (!grow(size + size / 16)) return 0;
  }
}

static void lock(void) { while (atomic_flag_test_and_set(&busy)); }

static void *get(size_t size) {
  lock();
  struct block *b = take(size);
  atomic_flag_clear(&busy);
  if (!b) errno = ENOMEM;
  return b ? (char *) b + HEAD : 0;
}

static void *get_aligned(size_t to, size_t size) {
  if (to <= 16) return get(size);
  lock();
  struct block *b = size + to > size ? take(size + to + HEAD + LEAST) : 0;
  if (b) {
    uintptr_t from = (uintptr_t) b + HEAD, at = (from + to - 1) & ~(to - 1);
    if (at != from && at - from < HEAD + LEAST) at += to;
    if (at != from) {
      struct block *later = (struct block *) (at - HEAD);
      later->before = b;
      later->size = b->size - (at - from);
      b->size = at - from - HEAD;
      behind(later)->before = later;
      release(b);
      b = later;
    }
    cut(b, size < LEAST ? LEAST : (size + 15) & ~15ul);
  }
  atomic_flag_clear(&busy);
  if (!b) errno = ENOMEM;
  return b ? (char *) b + HEAD : 0;
}

static struct block *block_of(void *memory) { return (struct block *) ((char *) memory - HEAD); }

static void give_back(void *memory) {
  struct block *b = block_of(memory);
  if (b->size >= RETURNED) {
    uintptr_t from = ((uintptr_t) memory + PAGE - 1) & ~(PAGE - 1);
    madvise((void *) from, ((uintptr_t) memory + b->size - from) & ~(PAGE - 1), MADV_DONTNEED);
  }
  lock();
  release(b);
  atomic_flag_clear(&busy);
}

static int in_arena(const void *memory) { return (const char *) memory >= ARENA && (const char *) memory < ARENA + LIMIT; }

/* Whose memory it is: by the library that asks. */

#define LIBRARIES 512
static struct library {
  uintptr_t low, high;
  int compilers;
} libraries[LIBRARIES];
static int known;

/* libc++ is what the compiler comes with; all else here uses libstdc++. */
static int is_compilers(const char *path) {
  const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
  return !strncmp(name, "libQnn", 6) || !strncmp(name, "libHtp", 6) || !strncmp(name, "libc++", 6);
}

static int learn(const void *caller) {
  Dl_info info;
  if (!dladdr(caller, &info) || !info.dli_fname || !info.dli_fbase) return 0;
  const ElfW(Ehdr) *head = info.dli_fbase;
  const ElfW(Phdr) *segment = (const void *) ((const char *) info.dli_fbase + head->e_phoff);
  uintptr_t from = head->e_type == ET_EXEC ? 0 : (uintptr_t) info.dli_fbase, high = 0;
  for (int i = 0; i < head->e_phnum; i++)
    if (segment[i].p_type == PT_LOAD && from + segment[i].p_vaddr + segment[i].p_memsz > high)
      high = from + segment[i].p_vaddr + segment[i].p_memsz;
  struct library found = {(uintptr_t) info.dli_fbase, high, is_compilers(info.dli_fname)};
  if (known < LIBRARIES) libraries[known++] = found;
  return found.compilers;
}

static int ours(const void *caller) {
  static int latest;
  uintptr_t at = (uintptr_t) caller;
  if (at >= libraries[latest].low && at < libraries[latest].high) return libraries[latest].compilers;
  for (int i = 0; i < known; i++)
    if (at >= libraries[i].low && at < libraries[i].high) {
      latest = i;
      return libraries[i].compilers;
    }
  return learn(caller);
}
#define OURS ours(__builtin_return_address(0))

void *malloc(size_t size) { return OURS ? get(size) : __libc_malloc(size); }

void free(void *memory) {
  if (in_arena(memory)) give_back(memory);
  else __libc_free(memory);
}

void *calloc(size_t n, size_t size) {
  size_t total;
  if (!OURS) return __libc_calloc(n, size);
  if (__builtin_mul_overflow(n, size, &total)) {
    errno = ENOMEM;
    return 0;
  }
  void *block = get(total);
  return block ? memset(block, 0, total) : 0;
}

void *realloc(void *memory, size_t size) {
  if (memory ? !in_arena(memory) : !OURS) return __libc_realloc(memory, size);
  if (!memory) return get(size);
  size_t had = block_of(memory)->size;
  if (size <= had && size >= had / 2) return memory;
  void *other = get(size);
  if (!other) return 0;
  memcpy(other, memory, had < size ? had : size);
  give_back(memory);
  return other;
}

void *memalign(size_t to, size_t size) { return OURS ? get_aligned(to, size) : __libc_memalign(to, size); }

void *aligned_alloc(size_t to, size_t size) { return OURS ? get_aligned(to, size) : __libc_memalign(to, size); }

int posix_memalign(void **place, size_t to, size_t size) {
  void *block = OURS ? get_aligned(to, size) : __libc_memalign(to, size);
  if (!block) return ENOMEM;
  *place = block;
  return 0;
}

size_t malloc_usable_size(void *memory) {
  static size_t (*real)(void *);
  if (in_arena(memory)) return block_of(memory)->size;
  if (!real) real = (size_t (*)(void *)) dlsym(RTLD_NEXT, "malloc_usable_size");
  return real(memory);
}

/* C++'s new, under its names in the ABI: asked of malloc by libstdc++ the compiler's requests would be nobody's. */
static void *cpp(void *block, const char *name, size_t size, size_t to) {
  if (block) return block;
  void *library = dlopen("libstdc++.so.6", RTLD_LAZY); /* throws as C++ wants it */
  void *(*fail)(size_t, size_t) = library ? (void *(*)(size_t, size_t) ) dlsym(library, name) : 0;
  if (!fail) abort();
  return fail(size, to);
}

#define PLAIN(name)                                                                                                                        \
  void *name(size_t size) { return cpp(OURS ? get(size) : __libc_malloc(size ? size : 1), #name, size, 0); }
#define ALIGNED(name)                                                                                                                      \
  void *name(size_t size, size_t to) { return cpp(OURS ? get_aligned(to, size) : __libc_memalign(to, size), #name, size, to); }
#define PLAIN_OR_NULL(name)                                                                                                                \
  void *name(size_t size, const void *tag) {                                                                                               \
    (void) tag;                                                                                                                            \
    return OURS ? get(size) : __libc_malloc(size ? size : 1);                                                                              \
  }
#define ALIGNED_OR_NULL(name)                                                                                                              \
  void *name(size_t size, size_t to, const void *tag) {                                                                                    \
    (void) tag;                                                                                                                            \
    return OURS ? get_aligned(to, size) : __libc_memalign(to, size);                                                                       \
  }

PLAIN(_Znwm)
PLAIN(_Znam)
ALIGNED(_ZnwmSt11align_val_t)
ALIGNED(_ZnamSt11align_val_t)
PLAIN_OR_NULL(_ZnwmRKSt9nothrow_t)
PLAIN_OR_NULL(_ZnamRKSt9nothrow_t)
ALIGNED_OR_NULL(_ZnwmSt11align_val_tRKSt9nothrow_t)
ALIGNED_OR_NULL(_ZnamSt11align_val_tRKSt9nothrow_t)
