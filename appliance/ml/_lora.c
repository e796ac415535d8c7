/* What LoRA adapters add to the rows of a batch, on the CPU: each weight is read once for every two rows that use it.

   A row's bits are its own: two rows are multiplied side by side, never summed, a row alone is multiplied beside a copy
   of itself, and every sum has an order that rank and widths alone decide. Threads share out ranks on the way down and
   outputs on the way up; they are torch's own, whose OpenMP must have been loaded before (`import torch`).

   Weights lie as they are read, in bf16 or float32 (`ml/lora.py` packs them): for each BLOCK of ranks A as
   [rank / RANKS, in / LANES, RANKS, LANES] and B as [out / COLUMNS, rank, COLUMNS], filled up with zeros. */

#include <string.h>

#include "_kernels.h"

enum { LANES = 16, RANKS = 4, COLUMNS = 32, BLOCK = 64 };

typedef float floats __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t halves __attribute__((vector_size(32), aligned(2), may_alias));
typedef uint32_t words __attribute__((vector_size(64)));

#define INLINE static inline __attribute__((always_inline))

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EVERY_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EVERY_PROCESSOR
#endif

INLINE floats load(const char *at, int narrow) {
    if (narrow)
        return (floats)(__builtin_convertvector(*(const halves *)at, words) << 16);
    return *(const floats *)at;
}

INLINE floats load_some(const float *at, int64_t count) {
    floats found = {0};
    memcpy(&found, at, count * sizeof(float));
    return found;
}

INLINE float add_up(floats some) {
    float sums[LANES];
    memcpy(sums, &some, sizeof(sums));
    for (int width = LANES / 2; width; width /= 2)
        for (int lane = 0; lane < width; lane++)
            sums[lane] += sums[lane + width];
    return sums[0];
}

INLINE int64_t round_up(int64_t number, int64_t step) { return (number + step - 1) / step * step; }

/* Where A of the ranks from `rank` on begins, a multiple of BLOCK, for a layer of `out` outputs. */
INLINE const char *find_block(const Pair *pair, int64_t place, int64_t rank, int64_t inner, int64_t out, int narrow) {
    return pair->weights + place + rank * (round_up(inner, LANES) + round_up(out, COLUMNS)) * (narrow ? 2 : 4);
}

/* low[row] = scale * A x[row] for RANKS ranks. */
INLINE void go_down(const char *at, const float *const x[2], float *const low[2], int64_t inner, float scale,
                    int narrow) {
    const int64_t step = LANES * (narrow ? 2 : 4);
    floats sums[2][RANKS] = {{{0}}};
    for (int64_t column = 0; column < inner; column += LANES) {
        const int64_t left = inner - column;
        const floats some = left < LANES ? load_some(x[0] + column, left) : *(const floats *)(x[0] + column);
        const floats other = left < LANES ? load_some(x[1] + column, left) : *(const floats *)(x[1] + column);
        for (int one = 0; one < RANKS; one++, at += step) {
            const floats weights = load(at, narrow);
            sums[0][one] += weights * some;
            sums[1][one] += weights * other;
        }
    }
    for (int row = 0; row < 2; row++)
        for (int one = 0; one < RANKS; one++)
            low[row][one] = add_up(sums[row][one]) * scale;
}

/* y[row] += B low[row] for `count` outputs, COLUMNS at most, and `ranks` ranks. */
INLINE void go_up(const char *at, const float *const low[2], float *const y[2], int64_t ranks, int64_t count,
                  int narrow) {
    const int64_t step = LANES * (narrow ? 2 : 4);
    const size_t bytes = count * sizeof(float);
    floats sums[2][2] = {{{0}}};
    for (int row = 0; row < 2; row++)
        memcpy(sums[row], y[row], bytes);
    for (int64_t rank = 0; rank < ranks; rank++, at += 2 * step)
        for (int half = 0; half < 2; half++) {
            const floats weights = load(at + half * step, narrow);
            for (int row = 0; row < 2; row++)
                sums[row][half] += weights * low[row][rank];
        }
    for (int row = 0; row < 2; row++)
        memcpy(y[row], sums[row], bytes);
}

/* A row alone is its own neighbour. */
INLINE int64_t find_row(const Pair *pair, int place) { return pair->rows[pair->rows[1] < 0 ? 0 : place]; }

INLINE void down(const Pair *pairs, int64_t count, const Group *group, const float *from, int64_t thread,
                 int64_t threads, int narrow) {
    const int64_t inner = group->inner, bytes = round_up(inner, LANES) * (narrow ? 2 : 4);
    int64_t job = 0;
    for (const Pair *pair = pairs; pair < pairs + count; pair++)
        for (int64_t layer = 0; layer < group->layers; layer++) {
            const int64_t place = pair->places[group->first + layer], out = group->sizes[layer];
            const float *const x[2] = {from + find_row(pair, 0) * inner, from + find_row(pair, 1) * inner};
            for (int64_t rank = 0; place >= 0 && rank < pair->rank; rank += RANKS, job++) {
                if (job % threads != thread)
                    continue;
                float *const row = pair->low + layer * 2 * pair->rank + rank, *const low[2] = {row, row + pair->rank};
                const char *at = find_block(pair, place, rank / BLOCK * BLOCK, inner, out, narrow);
                go_down(at + rank % BLOCK * bytes, x, low, inner, (float)pair->scale, narrow);
            }
        }
}

INLINE void up(const Pair *pairs, int64_t count, const Group *group, float *to, int64_t thread, int64_t threads,
               int narrow) {
    int64_t outer = 0, before = 0;
    for (int64_t layer = 0; layer < group->layers; layer++)
        outer += group->sizes[layer];
    for (int64_t layer = 0; layer < group->layers; before += group->sizes[layer++]) {
        const int64_t out = group->sizes[layer], blocks = round_up(out, COLUMNS) / COLUMNS;
        for (const Pair *pair = pairs; pair < pairs + count; pair++) {
            const int64_t place = pair->places[group->first + layer];
            for (int64_t rank = 0; place >= 0 && rank < pair->rank; rank += BLOCK) {
                const int64_t ranks = pair->rank - rank < BLOCK ? pair->rank - rank : BLOCK;
                const float *const row = pair->low + layer * 2 * pair->rank + rank;
                const float *const low[2] = {row, row + pair->rank};
                const int64_t size = narrow ? 2 : 4;
                const char *at = find_block(pair, place, rank, group->inner, out, narrow);
                at += ranks * round_up(group->inner, LANES) * size;
                for (int64_t block = blocks * thread / threads; block < blocks * (thread + 1) / threads; block++) {
                    const int64_t column = block * COLUMNS, left = out - column;
                    float *const y[2] = {to + find_row(pair, 0) * outer + before + column,
                                         to + find_row(pair, 1) * outer + before + column};
                    go_up(at + column * ranks * size, low, y, ranks, left < COLUMNS ? left : COLUMNS, narrow);
                }
            }
        }
    }
}

FOR_EVERY_PROCESSOR void lora_down(const Pair *pairs, int64_t count, const Group *group, const float *x, int64_t thread,
                                   int64_t threads) {
    if (group->narrow)
        down(pairs, count, group, x, thread, threads, 1);
    else
        down(pairs, count, group, x, thread, threads, 0);
}

FOR_EVERY_PROCESSOR void lora_up(const Pair *pairs, int64_t count, const Group *group, float *y, int64_t thread,
                                 int64_t threads) {
    if (group->narrow)
        up(pairs, count, group, y, thread, threads, 1);
    else
        up(pairs, count, group, y, thread, threads, 0);
}

typedef struct {
    const Pair *pairs;
    int64_t count;
    const Group *group;
    const float *x;
    float *y;
} Work;

static void share(void *data) {
    const Work *work = data;
    const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    lora_down(work->pairs, work->count, work->group, work->x, thread, threads);
    GOMP_barrier();
    lora_up(work->pairs, work->count, work->group, work->y, thread, threads);
}

/* y [rows, all outputs] += what the pairs' adapters make of x [rows, inner], both float32. */
void add_lora(const Pair *pairs, int64_t count, const Group *group, const float *x, float *y) {
    Work work = {pairs, count, group, x, y};
    GOMP_parallel(share, &work, 0, 0);
}
