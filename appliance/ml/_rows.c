/* Products of few rows with weights as they are stored, which are read once for up to 8 rows.

   NF4, as bitsandbytes stores it: a byte holds two weights, the first in its upper half; a block of 64 weights of one
   output shares a scale. Weights are looked up in a table of 16 numbers in bf16. Other weights are bf16 themselves.
   Inputs are rounded to bf16, and sums are float32.

   A row's bits are its own: rows are multiplied side by side, never summed, and every sum has an order that the width
   of the input alone decides. It needs AVX-512 with bf16; `fits_rows` says whether the processor has it. Threads are
   torch's own (`import torch` first) and share out outputs. */

#include <string.h>

#include "_kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

enum { WEIGHTS = 64, BYTES = WEIGHTS / 2, STEP = 8, CHUNK = 16 };

#define INLINE static inline __attribute__((always_inline))
#define NARROW __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,prefer-vector-width=512")))

typedef struct {
    const Product *product;
    int64_t rows;
    const float *x;
    float *y;
    uint16_t *scratch; /* for each thread [STEP, inner] */
} Job;

/* A row in bf16. */
NARROW INLINE void narrow(const float *from, uint16_t *to, int64_t inner) {
    for (int64_t at = 0; at < inner; at += WEIGHTS / 2)
        _mm512_storeu_si512(
            to + at, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + at + 16), _mm512_loadu_ps(from + at)));
}

/* The same; of each 64 inputs those with even numbers first. */
NARROW INLINE void narrow_divided(const float *from, uint16_t *to, int64_t inner) {
    const __m512i even = _mm512_set_epi16(62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32, 30, 28, 26, 24,
                                          22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i odd = _mm512_add_epi16(even, _mm512_set1_epi16(1));
    for (int64_t at = 0; at < inner; at += WEIGHTS) {
        const __m512i low = (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + at + 16), _mm512_loadu_ps(from + at));
        const __m512i high = (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + at + 48), _mm512_loadu_ps(from + at + 32));
        _mm512_storeu_si512(to + at, _mm512_permutex2var_epi16(low, even, high));
        _mm512_storeu_si512(to + at + 32, _mm512_permutex2var_epi16(low, odd, high));
    }
}

/* y[row][output...] of `rows` rows, at most 8, and `outputs` outputs, at most 4: both are constants where it is called. */
NARROW INLINE void multiply_bf16(const Product *product, int64_t output, const uint16_t *x, float *y, int outputs,
                                 int rows) {
    const int64_t inner = product->inner;
    const uint16_t *weights = (const uint16_t *)product->weights + output * inner;
    float bias[4];
    __m512 sums[4][8];
    for (int out = 0; out < outputs; out++)
        bias[out] = product->bias ? product->bias[output + out] : 0;
    for (int out = 0; out < outputs; out++)
        for (int row = 0; row < rows; row++)
            sums[out][row] = _mm512_setzero_ps();
    for (int64_t at = 0; at < inner; at += WEIGHTS / 2) {
        __m512bh some[4];
        for (int out = 0; out < outputs; out++) {
            some[out] = (__m512bh)_mm512_loadu_si512(weights + out * inner + at);
            _mm_prefetch((const char *)(weights + out * inner + at) + 1024, _MM_HINT_T0);
        }
        for (int row = 0; row < rows; row++) {
            const __m512bh from = (__m512bh)_mm512_loadu_si512(x + row * inner + at);
            for (int out = 0; out < outputs; out++)
                sums[out][row] = _mm512_dpbf16_ps(sums[out][row], some[out], from);
        }
    }
    for (int out = 0; out < outputs; out++)
        for (int row = 0; row < rows; row++)
            y[row * product->outer + output + out] = _mm512_reduce_add_ps(sums[out][row]) + bias[out];
}

NARROW INLINE void multiply_nf4(const Product *product, int64_t output, const uint16_t *x, float *y, int outputs, int rows) {
    const int64_t inner = product->inner, blocks = inner / WEIGHTS;
    const __m512i table = _mm512_loadu_si512(product->table), nibble = _mm512_set1_epi16(15);
    float bias[4];
    __m512 sums[4][8];
    for (int out = 0; out < outputs; out++)
        bias[out] = product->bias ? product->bias[output + out] : 0;
    for (int out = 0; out < outputs; out++)
        for (int row = 0; row < rows; row++)
            sums[out][row] = _mm512_setzero_ps();
    const uint8_t *weights = product->weights + output * blocks * BYTES;
    const float *scales = product->scales + output * blocks;
    for (int64_t block = 0; block < blocks; block++) {
        __m512bh even[4], odd[4];
        __m512 scale[4];
        for (int out = 0; out < outputs; out++) {
            const uint8_t *at = weights + (out * blocks + block) * BYTES;
            const __m512i both = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)at));
            _mm_prefetch((const char *)at + 1024, _MM_HINT_T0);
            even[out] = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(both, 4), table);
            odd[out] = (__m512bh)_mm512_permutexvar_epi16(_mm512_and_si512(both, nibble), table);
            scale[out] = _mm512_set1_ps(scales[out * blocks + block]);
        }
        for (int row = 0; row < rows; row++) {
            const uint16_t *from = x + row * inner + block * WEIGHTS;
            const __m512bh first = (__m512bh)_mm512_loadu_si512(from), second = (__m512bh)_mm512_loadu_si512(from + 32);
            for (int out = 0; out < outputs; out++) {
                __m512 part = _mm512_dpbf16_ps(_mm512_setzero_ps(), even[out], first);
                part = _mm512_dpbf16_ps(part, odd[out], second);
                sums[out][row] = _mm512_fmadd_ps(part, scale[out], sums[out][row]);
            }
        }
    }
    for (int out = 0; out < outputs; out++)
        for (int row = 0; row < rows; row++)
            y[row * product->outer + output + out] = _mm512_reduce_add_ps(sums[out][row]) + bias[out];
}

#define SOME(multiply, outputs, rows)                                                                                  \
    for (; output + outputs <= last; output += outputs)                                                                \
        multiply(product, output, x, y, outputs, rows);                                                                \
    for (; output < last; output++)                                                                                    \
        multiply(product, output, x, y, 1, rows);                                                                      \
    break;

#define MULTIPLY_SOME(multiply)                                                                                        \
    NARROW static void multiply##_some(const Product *product, int64_t output, int64_t last, const uint16_t *x,        \
                                       float *y, int64_t rows) {                                                       \
        switch (rows) {                                                                                                \
        case 1: SOME(multiply, 4, 1)                                                                                   \
        case 2: SOME(multiply, 4, 2)                                                                                   \
        case 3: SOME(multiply, 2, 3)                                                                                   \
        case 4: SOME(multiply, 2, 4)                                                                                   \
        case 5: SOME(multiply, 2, 5)                                                                                   \
        case 6: SOME(multiply, 2, 6)                                                                                   \
        case 7: SOME(multiply, 2, 7)                                                                                   \
        default: SOME(multiply, 2, 8)                                                                                  \
        }                                                                                                              \
    }

MULTIPLY_SOME(multiply_nf4)
MULTIPLY_SOME(multiply_bf16)

NARROW void multiply_part(const Product *product, int64_t rows, const float *x, float *y, uint16_t *scratch,
                          int64_t thread, int64_t threads) {
    const int64_t inner = product->inner;
    const int64_t chunks = (product->outer + CHUNK - 1) / CHUNK, first = chunks * thread / threads * CHUNK;
    const int64_t end = chunks * (thread + 1) / threads * CHUNK, last = end < product->outer ? end : product->outer;
    for (int64_t row = 0; row < rows; row += STEP, x += STEP * inner, y += STEP * product->outer) {
        const int64_t some = rows - row < STEP ? rows - row : STEP;
        for (int64_t one = 0; one < some; one++)
            if (product->table)
                narrow_divided(x + one * inner, scratch + one * inner, inner);
            else
                narrow(x + one * inner, scratch + one * inner, inner);
        if (product->table)
            multiply_nf4_some(product, first, last, scratch, y, some);
        else
            multiply_bf16_some(product, first, last, scratch, y, some);
    }
}

static void share(void *data) {
    const Job *job = data;
    const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    uint16_t *scratch = job->scratch + thread * STEP * job->product->inner;
    multiply_part(job->product, job->rows, job->x, job->y, scratch, thread, threads);
}

/* y [rows, outer] = x [rows, inner] times the weights, and the bias, all float32. */
void multiply_rows(const Product *product, int64_t rows, const float *x, float *y, uint16_t *scratch) {
    Job job = {product, rows, x, y, scratch};
    GOMP_parallel(share, &job, 0, 0);
}

int fits_rows(void) { return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw"); }
#else
void multiply_rows(const void *product, int64_t rows, const float *x, float *y, uint16_t *scratch) {}
int fits_rows(void) { return 0; }
#endif
