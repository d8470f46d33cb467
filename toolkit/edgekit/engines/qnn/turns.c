/* Makes a process repeat itself: loaded before all else (LD_PRELOAD) into the one that compiles. Linux on x86-64, glibc.

Qualcomm's compiler shares work among threads and goes through tables in the order of addresses, so what it makes depends on who came
first and on where malloc put things. Here
  - one thread runs at a time. It goes on until it has to wait; then the next that can run does, in the order in which they were made.
    What waits is never the system's primitive but this file's own list, so the system decides nothing;
  - memory of that compiler's own libraries lies in an arena that begins at a fixed address and is given out by their requests alone.
    What Python or ONNX Runtime allocated before (paths, environment) moves nothing there (arena.c);
  - clocks count how often they were asked, so that no time limit depends on the machine; and there are two processors.
A thread that spins without yielding for something another one does would spin for ever; where all wait, the process is aborted. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* compiler.py looks for it in the file: another one whenever the order or the addresses change. */
const char edgekit_turns[] = "edgekit turns 1";

#define REAL(name) ((__typeof__(&name)) real(&real_##name, #name))
static void *real_pthread_create, *real_pthread_join, *real_pthread_mutex_trylock, *real_pthread_mutex_unlock, *real_sem_trywait,
    *real_sem_post, *real_sysconf, *real_pthread_rwlock_tryrdlock, *real_pthread_rwlock_trywrlock, *real_pthread_rwlock_unlock;

static void *real(void **place, const char *name) {
  if (!*place) *place = dlsym(RTLD_NEXT, name);
  return *place;
}

__attribute__((constructor)) static void alone(void) { unsetenv("LD_PRELOAD"); /* not for programs that this one starts */ }

/* Turns. All of this is read and written by the one thread that runs. */

enum { READY, WAITING, OVER };
#define MOST 4096 /* threads in the life of the process */
#define ROUNDS 4  /* in which a thread's end runs destructors (PTHREAD_DESTRUCTOR_ITERATIONS) */

struct thread {
  int index, state, timed, expired, rounds;
  const void *what;    /* it waits for */
  unsigned long since; /* the how manieth wait */
  pthread_t id;
  void *(*start)(void *);
  void *argument;
  atomic_int turn;
};
static struct thread threads[MOST];
static int count, waiting;
static unsigned long waits;
static pthread_key_t last;
static __thread struct thread *self;

static long direct(long number, const long *a) {
  long result;
  register long r10 __asm__("r10") = a[3];
  register long r8 __asm__("r8") = a[4];
  register long r9 __asm__("r9") = a[5];
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return result;
}

static void futex(atomic_int *word, int what, int value) { direct(SYS_futex, (const long[6]){(long) word, what, value, 0, 0, 0}); }

static void leave(void *argument);

static struct thread *me(void) {
  if (!self) {
    if (count) {
      dprintf(2, "edgekit turns: a thread that nothing here started\n");
      abort();
    }
    pthread_key_create(&last, leave);
    self = &threads[count++];
    self->id = pthread_self();
  }
  return self;
}

static void await_turn(struct thread *t) {
  while (!atomic_load(&t->turn)) futex(&t->turn, FUTEX_WAIT_PRIVATE, 0);
  atomic_store(&t->turn, 0);
}

/* Whose turn it is after t's: the next that can run; where none can, the one that waited longest of those that wait for some time only. */
static struct thread *successor(const struct thread *t) {
  struct thread *first = 0;
  for (int i = 1; i <= count; i++) {
    struct thread *other = &threads[(t->index + i) % count];
    if (other->state == READY) return other;
    if (other->state == WAITING && other->timed && (!first || other->since < first->since)) first = other;
  }
  if (!first) {
    dprintf(2, "edgekit turns: all threads wait for each other\n");
    abort();
  }
  first->state = READY;
  first->expired = 1;
  waiting--;
  return first;
}

static void pass(struct thread *t) {
  struct thread *other = successor(t);
  int over = t->state == OVER;
  if (other == t) return;
  atomic_store(&other->turn, 1);
  futex(&other->turn, FUTEX_WAKE_PRIVATE, 1);
  if (!over) await_turn(t);
}

/* Until someone wakes those who wait for `what`; 1 where, with `timed`, time ran out: nobody else could run. */
static int wait_for(const void *what, int timed) {
  struct thread *t = me();
  t->state = WAITING;
  t->what = what;
  t->timed = timed;
  t->expired = 0;
  t->since = ++waits;
  waiting++;
  pass(t);
  return t->expired;
}

/* Those who wait for `what`, at most so many, in the order in which they came. */
static int wake(const void *what, int most) {
  int woken = 0;
  while (waiting && woken < most) {
    struct thread *first = 0;
    for (int i = 0; i < count; i++) {
      struct thread *t = &threads[i];
      if (t->state == WAITING && t->what == what && (!first || t->since < first->since)) first = t;
    }
    if (!first) break;
    first->state = READY;
    waiting--;
    woken++;
  }
  return woken;
}

static void *run(void *argument) {
  struct thread *t = self = argument;
  await_turn(t);
  pthread_setspecific(last, t);
  return t->start(t->argument);
}

/* A thread's end. Destructors of its other variables run before: this one puts itself off to the last round. */
static void leave(void *argument) {
  struct thread *t = argument;
  if (++t->rounds < ROUNDS) {
    pthread_setspecific(last, t);
    return;
  }
  t->state = OVER;
  wake(t, MOST);
  pass(t);
}

int pthread_create(pthread_t *id, const pthread_attr_t *attributes, void *(*start)(void *), void *argument) {
  me();
  if (count == MOST) return EAGAIN;
  struct thread *t = &threads[count];
  t->index = count++;
  t->start = start;
  t->argument = argument;
  int code = REAL(pthread_create)(id, attributes, run, t);
  if (code) t->state = OVER;
  else t->id = *id;
  return code;
}

int pthread_join(pthread_t id, void **result) {
  me();
  for (int i = count - 1; i >= 0; i--)
    if (pthread_equal(threads[i].id, id)) {
      while (threads[i].state != OVER) wait_for(&threads[i], 0);
      threads[i].id = 0;
      break;
    }
  return REAL(pthread_join)(id, result);
}

int pthread_mutex_lock(pthread_mutex_t *mutex) {
  int code;
  while ((code = REAL(pthread_mutex_trylock)(mutex)) == EBUSY) wait_for(mutex, 0);
  return code;
}

int pthread_mutex_unlock(pthread_mutex_t *mutex) {
  int code = REAL(pthread_mutex_unlock)(mutex);
  wake(mutex, MOST);
  return code;
}

static int cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex, int timed) {
  me();
  pthread_mutex_unlock(mutex);
  int expired = wait_for(cond, timed);
  pthread_mutex_lock(mutex);
  return expired ? ETIMEDOUT : 0;
}

int pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex) { return cond_wait(cond, mutex, 0); }

int pthread_cond_signal(pthread_cond_t *cond) {
  wake(cond, 1);
  return 0;
}

int pthread_cond_broadcast(pthread_cond_t *cond) {
  wake(cond, MOST);
  return 0;
}

int pthread_rwlock_rdlock(pthread_rwlock_t *lock) {
  int code;
  while ((code = REAL(pthread_rwlock_tryrdlock)(lock)) == EBUSY) wait_for(lock, 0);
  return code;
}

int pthread_rwlock_wrlock(pthread_rwlock_t *lock) {
  int code;
  while ((code = REAL(pthread_rwlock_trywrlock)(lock)) == EBUSY) wait_for(lock, 0);
  return code;
}

int pthread_rwlock_unlock(pthread_rwlock_t *lock) {
  int code = REAL(pthread_rwlock_unlock)(lock);
  wake(lock, MOST);
  return code;
}

/* In glibc's own numbers, so that both may see one `once`: 1 while it runs, 2 done. */
int pthread_once(pthread_once_t *once, void (*work)(void)) {
  while (*once == 1) wait_for(once, 0);
  if (*once == 0) {
    *once = 1;
    work();
    *once = 2;
    wake(once, MOST);
  }
  return 0;
}

static int sem_take(sem_t *sem, int timed) {
  while (REAL(sem_trywait)(sem)) {
    if (errno != EAGAIN) return -1;
    if (wait_for(sem, timed)) {
      errno = ETIMEDOUT;
      return -1;
    }
  }
  return 0;
}

int sem_wait(sem_t *sem) { return sem_take(sem, 0); }

int sem_post(sem_t *sem) {
  int code = REAL(sem_post)(sem);
  wake(sem, 1);
  return code;
}

/* C++'s atomic waits come this way. */
long syscall(long number, ...) {
  long a[6];
  va_list list;
  va_start(list, number);
  for (int i = 0; i < 6; i++) a[i] = va_arg(list, long);
  va_end(list);
  int kind = number == SYS_futex ? (int) a[1] & FUTEX_CMD_MASK : -1;
  if (kind == FUTEX_WAKE || kind == FUTEX_WAKE_BITSET) return wake((void *) a[0], (int) a[2]);
  if (kind == FUTEX_WAIT || kind == FUTEX_WAIT_BITSET) {
    int moved = *(volatile int *) a[0] != (int) a[2];
    if (moved || wait_for((void *) a[0], a[3] != 0)) {
      errno = moved ? EAGAIN : ETIMEDOUT;
      return -1;
    }
    return 0;
  }
  long result = direct(number, a);
  if (result < 0 && result > -4096) {
    errno = (int) -result;
    return -1;
  }
  return result;
}

/* Clocks: nanoseconds that are counted; whoever sleeps or waits in vain gets to the end of it. */

#define SECOND 1000000000l
#define BEGINNING (1700000000 * SECOND)
#define TICK 100
static int64_t now = BEGINNING;

static int64_t tick(void) { return now += TICK; }

static void reach(const struct timespec *when) {
  int64_t at = when->tv_sec * SECOND + when->tv_nsec;
  if (at > now) now = at;
}

static int sleep_for(int64_t nanoseconds) {
  now += nanoseconds;
  pass(me());
  return 0;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
  (void) clock;
  int64_t at = tick();
  *time = (struct timespec){at / SECOND, at % SECOND};
  return 0;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
  (void) zone;
  int64_t at = tick();
  *time = (struct timeval){at / SECOND, at % SECOND / 1000};
  return 0;
}

time_t time(time_t *place) {
  time_t at = tick() / SECOND;
  if (place) *place = at;
  return at;
}

clock_t clock(void) { return (tick() - BEGINNING) / (SECOND / CLOCKS_PER_SEC); }

int sched_yield(void) { return sleep_for(0); }

int usleep(useconds_t time) { return sleep_for(time * 1000l); }

int nanosleep(const struct timespec *time, struct timespec *left) {
  (void) left;
  return sleep_for(time->tv_sec * SECOND + time->tv_nsec);
}

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *time, struct timespec *left) {
  (void) clock;
  if (!(flags & TIMER_ABSTIME)) return nanosleep(time, left);
  reach(time);
  return sleep_for(0);
}

int pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex, const struct timespec *until) {
  int code = cond_wait(cond, mutex, 1);
  if (code) reach(until);
  return code;
}

int pthread_cond_clockwait(pthread_cond_t *cond, pthread_mutex_t *mutex, clockid_t clock, const struct timespec *until) {
  (void) clock;
  return pthread_cond_timedwait(cond, mutex, until);
}

int pthread_mutex_timedlock(pthread_mutex_t *mutex, const struct timespec *until) {
  int code;
  while ((code = REAL(pthread_mutex_trylock)(mutex)) == EBUSY)
    if (wait_for(mutex, 1)) {
      reach(until);
      return ETIMEDOUT;
    }
  return code;
}

int pthread_mutex_clocklock(pthread_mutex_t *mutex, clockid_t clock, const struct timespec *until) {
  (void) clock;
  return pthread_mutex_timedlock(mutex, until);
}

int sem_timedwait(sem_t *sem, const struct timespec *until) {
  int code = sem_take(sem, 1);
  if (code) reach(until);
  return code;
}

int sem_clockwait(sem_t *sem, clockid_t clock, const struct timespec *until) {
  (void) clock;
  return sem_timedwait(sem, until);
}

long sysconf(int name) { return name == _SC_NPROCESSORS_ONLN || name == _SC_NPROCESSORS_CONF ? 2 : REAL(sysconf)(name); }
