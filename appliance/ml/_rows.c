/* Products of few rows with weights as they are stored, which are read once for up to 8 rows; with AMX, in NF4, of any.

   NF4, as bitsandbytes stores it: a byte holds two weights, the first in its upper half; a block of 64 weights of one
   output shares a scale. Weights are looked up in a table of 16 numbers in bf16. Other weights are bf16 themselves.
   Inputs are rounded to bf16, and sums are float32.

   A row's bits are its own: rows are multiplied side by side, never summed, and every sum has an order that the width
   of the input alone decides. It needs AVX-512 with bf16; `fits_rows` says whether the processor has it. Where it has AMX
   too, all products go by tiles, so that bits are the same on it for any number of rows. Threads are torch's own
   (`import torch` first) and share out outputs. */

#define _DEFAULT_SOURCE /* syscall */
#include <string.h>

#include "_kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { WEIGHTS = 64, BYTES = WEIGHTS / 2, STEP = 8, CHUNK = 16, TALL = 16 };

#define INLINE static inline __attribute__((always_inline))
#define NARROW __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,prefer-vector-width=512")))

typedef struct {
    const Product *product;
    int64_t rows;
    const float *x;
    float *y;
    uint16_t *scratch; /* for each thread as much as `find_room` says */
} Job;

/* A row in bf16. */
NARROW INLINE void narrow(const float *from, uint16_t *to, int64_t inner) {
    for (int64_t at = 0; at < inner; at += WEIGHTS / 2)
        _mm512_storeu_si512(
            to + at, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + at + 16), _mm512_loadu_ps(from + at)));
}

/* 64 inputs in bf16: those with even numbers, and the others. */
NARROW INLINE void divide(const float *from, __m512i *evens, __m512i *odds) {
    const __m512i even = _mm512_set_epi16(62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32, 30, 28, 26, 24,
                                          22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i odd = _mm512_add_epi16(even, _mm512_set1_epi16(1));
    const __m512i low = (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + 16), _mm512_loadu_ps(from));
    const __m512i high = (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + 48), _mm512_loadu_ps(from + 32));
    *evens = _mm512_permutex2var_epi16(low, even, high);
    *odds = _mm512_permutex2var_epi16(low, odd, high);
}

/* The same of a row, block by block. */
NARROW INLINE void narrow_divided(const float *from, uint16_t *to, int64_t inner) {
    for (int64_t at = 0; at < inner; at += WEIGHTS) {
        __m512i evens, odds;
        divide(from + at, &evens, &odds);
        _mm512_storeu_si512(to + at, evens);
        _mm512_storeu_si512(to + at + 32, odds);
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

/* Tiles. One has 16 lines of 64 bytes: 32 inputs' weights of 16 outputs, or the sums of 16 outputs for up to 16 rows, or
   16 pairs of inputs of the rows, side by side. A line's sums are added pair by pair, whatever the number of rows. */

#define TILED                                                                                                          \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16,prefer-vector-width=512")))
#define TILED_INLINE TILED static inline __attribute__((always_inline))

/* What was written is in memory from here on: compilers do not know that tiles are read from it. */
#define WRITTEN __asm__ volatile("" ::: "memory")

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t columns[16]; /* bytes */
    uint8_t rows[16];
} Shapes;

static int tiles; /* whether they are used */

/* Sums are in the tiles 0 to 3, weights in 4 and 5, inputs in 6 and 7. */
TILED_INLINE void configure(int64_t rows) {
    Shapes shapes = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        shapes.rows[tile] = TALL;
        shapes.columns[tile] = tile == 4 || tile == 5 ? 64 : 4 * rows;
    }
    __asm__ volatile("" ::"r"(&shapes) : "memory"); /* as WRITTEN, and of the shapes too */
    _tile_loadconfig(&shapes);
}

/* Rows in bf16: [inner / 2, rows] pairs. */
TILED_INLINE void pair_up(const Product *product, int64_t rows, const float *x, uint32_t *to) {
    const int64_t inner = product->inner, width = product->table ? WEIGHTS : WEIGHTS / 2;
    for (int64_t row = 0; row < rows; row++, x += inner)
        for (int64_t at = 0; at < inner; at += width) {
            uint32_t pairs[WEIGHTS / 2];
            if (product->table)
                narrow_divided(x + at, (uint16_t *)pairs, width);
            else
                narrow(x + at, (uint16_t *)pairs, width);
            for (int64_t pair = 0; pair < width / 2; pair++)
                to[(at / 2 + pair) * rows + row] = pairs[pair];
        }
}

/* 16 lines of 16 numbers the other way round. */
TILED_INLINE void turn(__m512i *lines) {
    __m512i some[TALL];
    for (int line = 0; line < TALL; line += 2) {
        some[line] = _mm512_unpacklo_epi32(lines[line], lines[line + 1]);
        some[line + 1] = _mm512_unpackhi_epi32(lines[line], lines[line + 1]);
    }
    for (int line = 0; line < TALL; line += 4)
        for (int half = 0; half < 2; half++) {
            lines[line + 2 * half] = _mm512_unpacklo_epi64(some[line + half], some[line + half + 2]);
            lines[line + 2 * half + 1] = _mm512_unpackhi_epi64(some[line + half], some[line + half + 2]);
        }
    for (int line = 0; line < 4; line++) {
        some[line] = _mm512_shuffle_i32x4(lines[line], lines[line + 4], 0x88);
        some[line + 4] = _mm512_shuffle_i32x4(lines[line], lines[line + 4], 0xdd);
        some[line + 8] = _mm512_shuffle_i32x4(lines[line + 8], lines[line + 12], 0x88);
        some[line + 12] = _mm512_shuffle_i32x4(lines[line + 8], lines[line + 12], 0xdd);
    }
    for (int line = 0; line < 4; line++) {
        lines[line] = _mm512_shuffle_i32x4(some[line], some[line + 8], 0x88);
        lines[line + 8] = _mm512_shuffle_i32x4(some[line], some[line + 8], 0xdd);
        lines[line + 4] = _mm512_shuffle_i32x4(some[line + 4], some[line + 12], 0x88);
        lines[line + 12] = _mm512_shuffle_i32x4(some[line + 4], some[line + 12], 0xdd);
    }
}

/* Rows as pairs for weights in NF4, 16 after 16: [inner / 2, 16] each, the last filled up with zeros. */
TILED_INLINE void pair_up_all(int64_t inner, int64_t rows, const float *x, uint32_t *to) {
    for (int64_t row = 0; row < rows; row += TALL, x += TALL * inner)
        for (int64_t at = 0; at < inner; at += WEIGHTS, to += WEIGHTS / 2 * TALL) {
            __m512i evens[TALL], odds[TALL];
            for (int one = 0; one < TALL; one++)
                if (row + one < rows)
                    divide(x + one * inner + at, evens + one, odds + one);
                else
                    evens[one] = odds[one] = _mm512_setzero_si512();
            turn(evens);
            turn(odds);
            for (int pair = 0; pair < TALL; pair++) {
                _mm512_store_si512(to + pair * TALL, evens[pair]);
                _mm512_store_si512(to + (TALL + pair) * TALL, odds[pair]);
            }
        }
}

/* y of 16 outputs, of which the first `outputs` are there. */
TILED_INLINE void give(const Product *product, int64_t output, int64_t outputs, const float sums[TALL][TALL], float *y,
                       int64_t rows) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t out = 0; out < outputs; out++)
            y[row * product->outer + output + out] = sums[out][row] + (product->bias ? product->bias[output + out] : 0);
}

/* A block of each output as bf16 numbers, those of even inputs first. */
TILED_INLINE void decode(const Product *product, int64_t output, int outputs, int64_t block, uint16_t (*to)[WEIGHTS]) {
    const int64_t line = product->inner / WEIGHTS * BYTES;
    const uint8_t *at = product->weights + output * line + block * BYTES;
    const __m512i table = _mm512_loadu_si512(product->table), nibble = _mm512_set1_epi16(15);
    for (int out = 0; out < outputs; out++, at += line) {
        const __m512i both = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)at));
        _mm_prefetch((const char *)at + TALL * line, _MM_HINT_T0);
        _mm512_store_si512(to[out], _mm512_permutexvar_epi16(_mm512_srli_epi16(both, 4), table));
        _mm512_store_si512(to[out] + 32, _mm512_permutexvar_epi16(_mm512_and_si512(both, nibble), table));
    }
}

TILED_INLINE void add_block(const float *scales, int64_t blocks, int outputs, float (*part)[TALL], __m512 *sums) {
    for (int out = 0; out < outputs; out++)
        sums[out] = _mm512_fmadd_ps(_mm512_load_ps(part[out]), _mm512_set1_ps(scales[out * blocks]), sums[out]);
}

/* The sums of a block of 16 outputs for 16 rows; its weights and inputs in bf16. */
TILED_INLINE void multiply_block(const uint16_t (*weights)[WEIGHTS], const uint32_t *x, int64_t rows, float (*part)[TALL]) {
    _tile_zero(0);
    _tile_loadd(4, weights, 2 * WEIGHTS);
    _tile_loadd(6, x, 4 * rows);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, weights[0] + 32, 2 * WEIGHTS);
    _tile_loadd(7, x + WEIGHTS / 4 * rows, 4 * rows);
    _tile_dpbf16ps(0, 5, 7);
    _tile_stored(0, part, 64);
}

/* 16 outputs of up to 16 rows. A block is decoded two blocks before it is multiplied, and its sums are scaled two blocks
   after that: each step then finds in memory what it reads. */
TILED_INLINE void tile_nf4(const Product *product, int64_t output, int outputs, const uint32_t *x, float *y, int64_t rows) {
    const int64_t blocks = product->inner / WEIGHTS;
    const float *scales = product->scales + output * blocks;
    _Alignas(64) uint16_t decoded[4][TALL][WEIGHTS];
    _Alignas(64) float parts[4][TALL][TALL] = {{{0}}};
    __m512 sums[TALL];
    for (int out = 0; out < TALL; out++)
        sums[out] = _mm512_setzero_ps();
    decode(product, output, outputs, 0, decoded[0]);
    if (blocks > 1)
        decode(product, output, outputs, 1, decoded[1]);
    for (int64_t block = 0; block < blocks; block++, x += WEIGHTS / 2 * rows) {
        WRITTEN;
        multiply_block((const uint16_t(*)[WEIGHTS])decoded[block % 4], x, rows, parts[block % 4]);
        if (block + 2 < blocks)
            decode(product, output, outputs, block + 2, decoded[(block + 2) % 4]);
        if (block > 1)
            add_block(scales + block - 2, blocks, outputs, parts[(block - 2) % 4], sums);
    }
    for (int64_t block = blocks > 1 ? blocks - 2 : 0; block < blocks; block++)
        add_block(scales + block, blocks, outputs, parts[block % 4], sums);
    for (int out = 0; out < TALL; out++)
        _mm512_store_ps(parts[0][out], sums[out]);
    give(product, output, outputs, (const float(*)[TALL])parts[0], y, rows);
}

/* 16 outputs of more rows, the same sums: their weights are decoded once, into `decoded` [blocks, 16, 64]. */
TILED_INLINE void tile_nf4_all(const Product *product, int64_t output, int outputs, const uint32_t *x, float *y,
                               int64_t rows, uint16_t (*decoded)[TALL][WEIGHTS]) {
    const int64_t blocks = product->inner / WEIGHTS;
    const float *scales = product->scales + output * blocks;
    _Alignas(64) float parts[4][TALL][TALL] = {{{0}}};
    for (int64_t block = 0; block < blocks; block++)
        decode(product, output, outputs, block, decoded[block]);
    WRITTEN;
    for (int64_t row = 0; row < rows; row += TALL, y += TALL * product->outer) {
        __m512 sums[TALL];
        for (int out = 0; out < TALL; out++)
            sums[out] = _mm512_setzero_ps();
        for (int64_t block = 0; block < blocks; block++, x += WEIGHTS / 2 * TALL) {
            multiply_block((const uint16_t(*)[WEIGHTS])decoded[block], x, TALL, parts[block % 4]);
            if (block > 1)
                add_block(scales + block - 2, blocks, outputs, parts[(block - 2) % 4], sums);
        }
        for (int64_t block = blocks > 1 ? blocks - 2 : 0; block < blocks; block++)
            add_block(scales + block, blocks, outputs, parts[block % 4], sums);
        turn((__m512i *)sums);
        const __mmask16 own = outputs < TALL ? (__mmask16)((1 << outputs) - 1) : (__mmask16)-1;
        const __m512 bias = product->bias ? _mm512_maskz_loadu_ps(own, product->bias + output) : _mm512_setzero_ps();
        for (int64_t one = 0; one < TALL && row + one < rows; one++)
            _mm512_mask_storeu_ps(y + one * product->outer + output, own, _mm512_add_ps(sums[one], bias));
    }
}

/* 64 outputs. */
TILED_INLINE void tile_bf16_four(const Product *product, int64_t output, const uint32_t *x, float *y, int64_t rows) {
    const int64_t inner = product->inner, line = TALL * inner;
    const uint16_t *weights = (const uint16_t *)product->weights + output * inner;
    _Alignas(64) float sums[4][TALL][TALL];
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t at = 0; at < inner; at += WEIGHTS / 2, weights += WEIGHTS / 2) {
        _tile_loadd(6, x + at / 2 * rows, 4 * rows);
        _tile_loadd(4, weights, 2 * inner);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, weights + line, 2 * inner);
        _tile_dpbf16ps(1, 5, 6);
        _tile_loadd(4, weights + 2 * line, 2 * inner);
        _tile_dpbf16ps(2, 4, 6);
        _tile_loadd(5, weights + 3 * line, 2 * inner);
        _tile_dpbf16ps(3, 5, 6);
    }
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
    for (int four = 0; four < 4; four++)
        give(product, output + four * TALL, TALL, (const float(*)[TALL])sums[four], y, rows);
}

/* Up to 16 outputs. */
TILED_INLINE void tile_bf16(const Product *product, int64_t output, int64_t outputs, const uint32_t *x, float *y,
                            int64_t rows) {
    const int64_t inner = product->inner;
    const uint16_t *weights = (const uint16_t *)product->weights + output * inner;
    _Alignas(64) uint16_t some[TALL][WEIGHTS / 2] = {{0}};
    _Alignas(64) float sums[TALL][TALL];
    _tile_zero(0);
    for (int64_t at = 0; at < inner; at += WEIGHTS / 2) {
        for (int64_t out = 0; out < outputs; out++)
            memcpy(some[out], weights + out * inner + at, sizeof(some[out]));
        WRITTEN;
        _tile_loadd(6, x + at / 2 * rows, 4 * rows);
        _tile_loadd(4, some, 64);
        _tile_dpbf16ps(0, 4, 6);
    }
    _tile_stored(0, sums, 64);
    give(product, output, outputs, (const float(*)[TALL])sums, y, rows);
}

/* Outputs from `output` to before `last` of up to 16 rows. */
TILED static void multiply_tiles(const Product *product, int64_t output, int64_t last, int64_t rows, const float *x,
                                 float *y, uint32_t *scratch) {
    pair_up(product, rows, x, scratch);
    configure(rows);
    if (product->table) {
        for (; output + TALL <= last; output += TALL)
            tile_nf4(product, output, TALL, scratch, y, rows);
        if (output < last)
            tile_nf4(product, output, (int)(last - output), scratch, y, rows);
    } else {
        for (; output + 4 * TALL <= last; output += 4 * TALL)
            tile_bf16_four(product, output, scratch, y, rows);
        for (; output < last; output += TALL)
            tile_bf16(product, output, last - output < TALL ? last - output : TALL, scratch, y, rows);
    }
    _tile_release();
}

/* The same of more rows with weights in NF4; `scratch` has room for the rows, in whole sixteens, and for 16 more. */
TILED static void multiply_tiles_all(const Product *product, int64_t output, int64_t last, int64_t rows, const float *x,
                                     float *y, uint32_t *scratch) {
    const int64_t inner = product->inner;
    uint16_t *decoded = (uint16_t *)scratch + (rows + TALL - 1) / TALL * TALL * inner;
    pair_up_all(inner, rows, x, scratch);
    configure(TALL);
    for (; output < last; output += TALL)
        tile_nf4_all(product, output, last - output < TALL ? (int)(last - output) : TALL, scratch, y, rows,
                     (uint16_t(*)[TALL][WEIGHTS])decoded);
    _tile_release();
}

/* Whether tiles are used from now on, where they are `wanted`: Linux gives their registers to who asks for them. */
int use_tiles(int wanted) {
    const long request = 0x1023, tile_data = 18; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
    const int has = __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16");
    return tiles = wanted && has && syscall(SYS_arch_prctl, request, tile_data) == 0;
}

/* The rows in bf16, 16 at a time; or all of them, in whole sixteens, and behind them the weights of 16 outputs. */
int64_t find_room(const Product *product, int64_t rows) {
    const int64_t all = tiles && product->table && rows > TALL;
    return (all ? (rows + TALL - 1) / TALL * TALL + TALL : TALL) * product->inner;
}

NARROW void multiply_part(const Product *product, int64_t rows, const float *x, float *y, uint16_t *scratch,
                          int64_t thread, int64_t threads) {
    const int64_t inner = product->inner;
    const int64_t chunks = (product->outer + CHUNK - 1) / CHUNK, first = chunks * thread / threads * CHUNK;
    const int64_t end = chunks * (thread + 1) / threads * CHUNK, last = end < product->outer ? end : product->outer;
    if (tiles && product->table && rows > TALL) {
        multiply_tiles_all(product, first, last, rows, x, y, (uint32_t *)scratch);
        return;
    }
    if (tiles) {
        for (int64_t row = 0; row < rows; row += TALL, x += TALL * inner, y += TALL * product->outer)
            multiply_tiles(product, first, last, rows - row < TALL ? rows - row : TALL, x, y, (uint32_t *)scratch);
        return;
    }
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
    uint16_t *scratch = job->scratch + thread * find_room(job->product, job->rows);
    multiply_part(job->product, job->rows, job->x, job->y, scratch, thread, threads);
}

/* y [rows, outer] = x [rows, inner] times the weights, and the bias, all float32; by at most `threads` threads, for each of
   which scratch has what `find_room` says. */
void multiply_rows(const Product *product, int64_t rows, const float *x, float *y, uint16_t *scratch, int64_t threads) {
    Job job = {product, rows, x, y, scratch};
    GOMP_parallel(share, &job, (unsigned)threads, 0);
}

int fits_rows(void) { return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw"); }
#else
void multiply_rows(const Product *product, int64_t rows, const float *x, float *y, uint16_t *scratch, int64_t threads) {}
int64_t find_room(const Product *product, int64_t rows) { return 0; }
int fits_rows(void) { return 0; }
int use_tiles(int wanted) { return 0; }
#endif
