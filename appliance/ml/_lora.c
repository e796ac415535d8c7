/* What LoRA adapters add to the rows of a batch, on the CPU: each weight is read once for every two rows that use it.

   A row's bits are its own: two rows are multiplied side by side, never summed, a row alone is multiplied beside a copy
   of itself, and every sum has an order that rank and widths alone decide. Threads share out pairs of rows and layers;
   they are torch's own, whose OpenMP must have been loaded before (`import torch`).

   Weights lie as they are read, in bf16 or float32 (`ml/lora.py` packs them): for each BLOCK of ranks A as
   [rank / RANKS, in / LANES, RANKS, LANES] and B as [out / COLUMNS, rank, COLUMNS], filled up with zeros. */

#include <stdint.h>
#include <string.h>

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

/* libgomp's entry, which other OpenMPs offer too: the function runs in every thread. */
extern void GOMP_parallel(void (*function)(void *), void *data, unsigned threads, unsigned flags);
extern int omp_get_thread_num(void);
extern int omp_get_num_threads(void);

/* One adapter and one or two rows that use it; packed by Python as "PPqqqd". */
typedef struct {
    const char *weights;
    const int64_t *places; /* by layer, in bytes from `weights`; -1 where the adapter has nothing */
    int64_t rank;          /* a multiple of RANKS */
    int64_t rows[2];       /* the second is -1 where there is one row */
    double scale;
} Pair;

/* Layers that read one input; packed by Python as "qqqq" and a "q" for each size. */
typedef struct {
    int64_t first;   /* the number of the first layer, which `places` goes by */
    int64_t inner;   /* the width of their input */
    int64_t narrow;  /* whether weights are bf16, not float32 */
    int64_t layers;
    int64_t sizes[]; /* outputs of each */
} Group;

typedef struct {
    const Pair *pairs;
    int64_t count;
    const Group *group;
    int64_t outer; /* all outputs of the group */
    const float *x;
    float *y;
} Work;

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

/* low[row] = scale * A x[row] for `ranks` ranks; the place behind A. */
INLINE const char *go_down(const char *at, const float *const x[2], float low[2][BLOCK], int64_t ranks, int64_t inner,
                           float scale, int narrow) {
    const int64_t step = LANES * (narrow ? 2 : 4);
    for (int64_t rank = 0; rank < ranks; rank += RANKS) {
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
                low[row][rank + one] = add_up(sums[row][one]) * scale;
    }
    return at;
}

/* y[row] += B low[row]; the place behind B. */
INLINE const char *go_up(const char *at, float low[2][BLOCK], float *const y[2], int64_t ranks, int64_t out,
                         int narrow) {
    const int64_t step = LANES * (narrow ? 2 : 4);
    for (int64_t column = 0; column < out; column += COLUMNS) {
        const size_t bytes = (out - column < COLUMNS ? out - column : COLUMNS) * sizeof(float);
        floats sums[2][2] = {{{0}}};
        for (int row = 0; row < 2; row++)
            memcpy(sums[row], y[row] + column, bytes);
        for (int64_t rank = 0; rank < ranks; rank++, at += 2 * step)
            for (int half = 0; half < 2; half++) {
                const floats weights = load(at + half * step, narrow);
                for (int row = 0; row < 2; row++)
                    sums[row][half] += weights * low[row][rank];
            }
        for (int row = 0; row < 2; row++)
            memcpy(y[row] + column, sums[row], bytes);
    }
    return at;
}

INLINE void add_pair(const Work *work, const Pair *pair, int64_t place, int64_t column, int64_t out, int narrow) {
    const char *at = pair->weights + place;
    const int64_t inner = work->group->inner, row = pair->rows[0], other = pair->rows[1] < 0 ? row : pair->rows[1];
    const float *const x[2] = {work->x + row * inner, work->x + other * inner};
    float *const y[2] = {work->y + row * work->outer + column, work->y + other * work->outer + column};
    for (int64_t rank = 0; rank < pair->rank; rank += BLOCK) {
        const int64_t ranks = pair->rank - rank < BLOCK ? pair->rank - rank : BLOCK;
        float low[2][BLOCK];
        at = go_down(at, x, low, ranks, inner, (float)pair->scale, narrow);
        at = go_up(at, low, y, ranks, out, narrow);
    }
}

/* What one thread does: each layer of each pair is one thread's alone. */
FOR_EVERY_PROCESSOR static void share(void *data) {
    const Work *work = data;
    const Group *group = work->group;
    const int64_t threads = omp_get_num_threads();
    for (int64_t job = omp_get_thread_num(); job < work->count * group->layers; job += threads) {
        const Pair *pair = work->pairs + job / group->layers;
        const int64_t layer = job % group->layers, place = pair->places[group->first + layer];
        int64_t column = 0;
        if (place < 0)
            continue;
        for (int64_t before = 0; before < layer; before++)
            column += group->sizes[before];
        if (group->narrow)
            add_pair(work, pair, place, column, group->sizes[layer], 1);
        else
            add_pair(work, pair, place, column, group->sizes[layer], 0);
    }
}

/* y [rows, all outputs] += what the pairs' adapters make of x [rows, inner], both float32. */
void add_lora(const Pair *pairs, int64_t count, const Group *group, const float *x, float *y) {
    Work work = {pairs, count, group, 0, x, y};
    for (int64_t layer = 0; layer < group->layers; layer++)
        work.outer += group->sizes[layer];
    GOMP_parallel(share, &work, 0, 0);
}
