/* One token more for each row of a batch through all layers of a decoder, in one call: what between its products would
   be calls of a library for a few thousand numbers each.

   It covers the table of architectures (`ml/layers/architecture.py`) with layers and adapters as _rows.c and _lora.c
   read them, and needs the same processor as _rows.c. `ml/inference/stepping.py` has the same arithmetic in torch.

   A layer is a sequence of phases. Threads share out a phase's rows, heads or outputs, and wait for each other before
   the next. A row's bits are its own: no sum goes over two rows, and each has an order that widths and the row's own
   length alone decide. */

#include <math.h>
#include <stdlib.h>

#include "_kernels.h"

int kernels_version(void) { return VERSION; }

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

enum { LANES = 16, PART = 64 };

#define WIDE __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,prefer-vector-width=512")))
#define INLINE WIDE static inline __attribute__((always_inline))

/* Layers that read one input. */
typedef struct {
    Product product;
    Group group;
} Part;

/* Norms are weights, or none; cosine and sine [rows, turned] are none in a layer without positions. */
typedef struct {
    Part reading, writing, widening, narrowing;
    const float *before, *behind, *before_mlp, *behind_mlp, *query_norm, *key_norm;
    const float *cosine, *sine;
    float *keys, *values; /* [blocks, key heads, block, size] */
    int64_t turned;       /* an even number, at most `size` */
    int64_t window;       /* keys that a query sees, its own among them */
} Layer;

typedef struct {
    int64_t layers, hidden, heads, key_heads, size; /* of the heads key_heads is a divisor */
    int64_t block;          /* tokens in a block of the cache */
    int64_t heads_together; /* whether one norm goes over all heads of a token */
    int64_t gelu;           /* the activation: gelu by tanh, not silu */
    double epsilon, scaling, softcap, multiplier; /* no softcap: 0 */
} Model;

typedef struct {
    int64_t rows;
    float *x;                 /* [rows, hidden], changed in place */
    const int64_t *lengths;   /* tokens that each row holds before this one */
    const int64_t *blocks;    /* [rows, most]: a row's blocks in order */
    int64_t most;
    const float *query_scale; /* [rows], or none */
    const Pair *pairs;
    int64_t count;
} Rows;

/* What stands between two phases, [rows, ...], and what is a thread's own. */
typedef struct {
    const Model *model;
    const Layer *layers;
    const Rows *rows;
    float *normal, *made, *seen, *own;
    int64_t each; /* numbers of a thread's own */
} Step;

typedef struct {
    int64_t thread, threads;
    float *own;
} Place;

INLINE __mmask16 mask(int64_t left) { return left < LANES ? (__mmask16)((1 << left) - 1) : (__mmask16)-1; }

INLINE __m512 load(const float *at, int64_t left) { return _mm512_maskz_loadu_ps(mask(left), at); }

INLINE void store(float *at, int64_t left, __m512 some) { _mm512_mask_storeu_ps(at, mask(left), some); }

/* e^x = 2^n e^r, with r at most ln 2 / 2 from 0: its Taylor series is exact to float32 with seven terms. Beyond 104 it is
   0 or infinite. */
INLINE __m512 raise_e(__m512 x) {
    x = _mm512_min_ps(_mm512_set1_ps(104), _mm512_max_ps(_mm512_set1_ps(-104), x)); /* in this order NaN stays */
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
    const __m512 rest = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    const __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), rest);
    static const float terms[] = {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 0.5f, 1, 1};
    __m512 sum = _mm512_set1_ps(1.f / 5040);
    for (int term = 0; term < 7; term++)
        sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(terms[term]));
    return _mm512_scalef_ps(sum, n);
}

/* 1 - 2 / (e^2x + 1) */
INLINE __m512 tanh_of(__m512 x) {
    const __m512 one = _mm512_set1_ps(1), power = raise_e(_mm512_add_ps(x, x));
    return _mm512_sub_ps(one, _mm512_div_ps(_mm512_set1_ps(2), _mm512_add_ps(power, one)));
}

INLINE __m512 silu(__m512 x) {
    const __m512 power = raise_e(_mm512_sub_ps(_mm512_setzero_ps(), x));
    return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1), power));
}

INLINE __m512 gelu(__m512 x) {
    const __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
    const __m512 inner = _mm512_fmadd_ps(cube, _mm512_set1_ps(0.044715f), x);
    const __m512 turned = tanh_of(_mm512_mul_ps(inner, _mm512_set1_ps(0.797884561f)));
    return _mm512_mul_ps(_mm512_mul_ps(x, _mm512_set1_ps(0.5f)), _mm512_add_ps(turned, _mm512_set1_ps(1)));
}

INLINE float dot(const float *some, const float *other, int64_t count) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t at = 0; at < count; at += LANES)
        sum = _mm512_fmadd_ps(load(some + at, count - at), load(other + at, count - at), sum);
    return _mm512_reduce_add_ps(sum);
}

/* RMSNorm's factor of `count` numbers, of which `from` are the first. */
INLINE float find_scale(const float *from, int64_t count, double epsilon) {
    return 1 / sqrtf(dot(from, from, count) / count + (float)epsilon);
}

INLINE void scale_by(const float *from, float *to, int64_t count, float scale, const float *weight) {
    for (int64_t at = 0; at < count; at += LANES) {
        const __m512 some = _mm512_mul_ps(load(from + at, count - at), _mm512_set1_ps(scale));
        store(to + at, count - at, _mm512_mul_ps(some, load(weight + at, count - at)));
    }
}

/* Rows normalised, or as they are. */
INLINE void normalise(const Step *step, const float *weight, const float *from, float *to, Place place) {
    const int64_t hidden = step->model->hidden;
    for (int64_t row = place.thread; row < step->rows->rows; row += place.threads) {
        const float *x = from + row * hidden;
        if (weight)
            scale_by(x, to + row * hidden, hidden, find_scale(x, hidden, step->model->epsilon), weight);
        else
            for (int64_t at = 0; at < hidden; at++)
                to[row * hidden + at] = x[at];
    }
}

/* made = the layers' products with x, and what adapters add: two phases. */
INLINE void project(const Step *step, const Part *part, const float *x, Place place) {
    const Rows *rows = step->rows;
    multiply_part(&part->product, rows->rows, x, step->made, (uint16_t *)place.own, place.thread, place.threads);
    if (rows->count) {
        lora_down(rows->pairs, rows->count, &part->group, x, place.thread, place.threads);
        GOMP_barrier();
        lora_up(rows->pairs, rows->count, &part->group, step->made, place.thread, place.threads);
    }
    GOMP_barrier();
}

/* x += a half's product, normalised where a norm stands behind it. */
INLINE void add(const Step *step, const float *weight, Place place) {
    const Model *model = step->model;
    if (weight)
        normalise(step, weight, step->made, step->made, place);
    for (int64_t row = place.thread; row < step->rows->rows; row += place.threads) {
        float *x = step->rows->x + row * model->hidden;
        const float *made = step->made + row * model->hidden;
        for (int64_t at = 0; at < model->hidden; at += LANES) {
            const int64_t left = model->hidden - at;
            const __m512 some = _mm512_mul_ps(load(made + at, left), _mm512_set1_ps((float)model->multiplier));
            store(x + at, left, _mm512_add_ps(load(x + at, left), some));
        }
    }
}

/* One head normalised and turned to its position; `all` are the `heads` that it is one of. */
INLINE void turn(const Step *step, const Layer *layer, int64_t row, const float *all, int64_t heads, int64_t head,
                 const float *weight, float *to) {
    const Model *model = step->model;
    const int64_t size = model->size, half = layer->turned / 2;
    const float *from = all + head * size;
    if (weight && model->heads_together)
        scale_by(from, to, size, find_scale(all, heads * size, model->epsilon), weight + head * size);
    else if (weight)
        scale_by(from, to, size, find_scale(from, size, model->epsilon), weight);
    else
        for (int64_t at = 0; at < size; at++)
            to[at] = from[at];
    if (!layer->cosine)
        return;
    const float *cosine = layer->cosine + row * layer->turned, *sine = layer->sine + row * layer->turned;
    for (int64_t at = 0; at < half; at++) {
        const float first = to[at], second = to[at + half];
        to[at] = first * cosine[at] - second * sine[at];
        to[at + half] = second * cosine[at + half] + first * sine[at + half];
    }
}

INLINE float limit_score(const Model *model, float score) {
    score *= (float)model->scaling;
    return model->softcap ? (float)model->softcap * tanhf(score / (float)model->softcap) : score;
}

INLINE float *find_held(const Step *step, float *layer, int64_t row, int64_t token, int64_t group) {
    const Model *model = step->model;
    const int64_t block = step->rows->blocks[row * step->rows->most + token / model->block];
    return layer + ((block * model->key_heads + group) * model->block + token % model->block) * model->size;
}

/* e to each score less the largest, in place; their sum. What fills up the last vector is 0. */
INLINE float weigh(float *scores, int64_t count) {
    const __m512 least = _mm512_set1_ps(-INFINITY);
    __m512 best = least, sum = _mm512_setzero_ps();
    for (int64_t at = 0; at < count; at += LANES)
        best = _mm512_max_ps(best, _mm512_mask_loadu_ps(least, mask(count - at), scores + at));
    const __m512 largest = _mm512_set1_ps(_mm512_reduce_max_ps(best));
    for (int64_t at = 0; at < count; at += LANES) {
        const __mmask16 some = mask(count - at);
        const __m512 weight = raise_e(_mm512_sub_ps(load(scores + at, count - at), largest));
        _mm512_mask_storeu_ps(scores + at, some, weight);
        sum = _mm512_mask_add_ps(sum, some, sum, weight);
    }
    return _mm512_reduce_add_ps(sum);
}

/* The token behind the last of the block in which `token` is. */
INLINE int64_t find_stop(const Step *step, int64_t token, int64_t length) {
    const int64_t stop = (token / step->model->block + 1) * step->model->block;
    return stop < length ? stop : length;
}

INLINE void add_weighted(__m512 sums[PART / LANES], const float *value, int64_t left, float weight) {
    for (int part = 0; part < PART / LANES; part++)
        if (part * LANES < left) {
            const __m512 some = load(value + part * LANES, left - part * LANES);
            sums[part] = _mm512_fmadd_ps(_mm512_set1_ps(weight), some, sums[part]);
        }
}

/* One head of one row over the keys that the row holds and its own, which it puts into the cache for what comes. */
INLINE void attend(const Step *step, const Layer *layer, int64_t row, int64_t head, Place place) {
    const Model *model = step->model;
    const int64_t size = model->size, shared = model->heads / model->key_heads, group = head / shared;
    const int64_t length = step->rows->lengths[row], skipped = length + 1 - layer->window;
    const int64_t first = skipped > 0 ? skipped : 0;
    const float *queries = step->made + row * layer->reading.product.outer;
    const float *keys = queries + model->heads * size, *value = keys + (model->key_heads + group) * size;
    float *query = place.own, *key = query + size, *scores = key + size;
    float *to = step->seen + (row * model->heads + head) * size;
    turn(step, layer, row, queries, model->heads, head, layer->query_norm, query);
    turn(step, layer, row, keys, model->key_heads, group, layer->key_norm, key);
    if (step->rows->query_scale && layer->cosine)
        for (int64_t at = 0; at < size; at++)
            query[at] *= step->rows->query_scale[row];
    for (int64_t token = first; token < length;) {
        const float *held = find_held(step, layer->keys, row, token, group);
        for (const int64_t stop = find_stop(step, token, length); token < stop; token++, held += size)
            scores[token - first] = limit_score(model, dot(query, held, size));
    }
    scores[length - first] = limit_score(model, dot(query, key, size));
    const float total = weigh(scores, length + 1 - first);
    for (int64_t at = 0; at < size; at += PART) {
        const int64_t left = size - at;
        __m512 sums[PART / LANES] = {_mm512_setzero_ps()};
        for (int64_t token = first; token < length;) {
            const float *held = find_held(step, layer->values, row, token, group) + at;
            for (const int64_t stop = find_stop(step, token, length); token < stop; token++, held += size)
                add_weighted(sums, held, left, scores[token - first]);
        }
        add_weighted(sums, value + at, left, scores[length - first]);
        for (int part = 0; part < PART / LANES; part++)
            if (part * LANES < left)
                store(to + at + part * LANES, left - part * LANES, _mm512_div_ps(sums[part], _mm512_set1_ps(total)));
    }
    if (head % shared)
        return;
    float *const kept_key = find_held(step, layer->keys, row, length, group);
    float *const kept_value = find_held(step, layer->values, row, length, group);
    for (int64_t at = 0; at < size; at++) {
        kept_key[at] = key[at];
        kept_value[at] = value[at];
    }
}

/* The activation of the gate times what goes beside it, from made to seen: vectors are shared out. */
INLINE void gate(const Step *step, const Layer *layer, Place place) {
    const int64_t inner = layer->narrowing.product.inner, vectors = (inner + LANES - 1) / LANES;
    for (int64_t job = step->rows->rows * vectors * place.thread / place.threads;
         job < step->rows->rows * vectors * (place.thread + 1) / place.threads; job++) {
        const int64_t row = job / vectors, at = job % vectors * LANES, left = inner - at;
        const float *wide = step->made + row * 2 * inner + at;
        const __m512 from = load(wide, left), passed = step->model->gelu ? gelu(from) : silu(from);
        store(step->seen + row * inner + at, left, _mm512_mul_ps(passed, load(wide + inner, left)));
    }
}

INLINE void read_layer(const Step *step, const Layer *layer, Place place) {
    const Model *model = step->model;
    normalise(step, layer->before, step->rows->x, step->normal, place);
    GOMP_barrier();
    project(step, &layer->reading, step->normal, place);
    const int64_t jobs = step->rows->rows * model->heads;
    for (int64_t job = jobs * place.thread / place.threads; job < jobs * (place.thread + 1) / place.threads; job++)
        attend(step, layer, job / model->heads, job % model->heads, place);
    GOMP_barrier();
    project(step, &layer->writing, step->seen, place);
    add(step, layer->behind, place);
    normalise(step, layer->before_mlp, step->rows->x, step->normal, place);
    GOMP_barrier();
    project(step, &layer->widening, step->normal, place);
    gate(step, layer, place);
    GOMP_barrier();
    project(step, &layer->narrowing, step->seen, place);
    add(step, layer->behind_mlp, place);
}

WIDE static void share(void *data) {
    const Step *step = data;
    Place place = {omp_get_thread_num(), omp_get_num_threads(), 0};
    place.own = step->own + place.thread * step->each;
    for (int64_t layer = 0; layer < step->model->layers; layer++)
        read_layer(step, step->layers + layer, place);
}

INLINE int64_t larger(int64_t some, int64_t other) { return some > other ? some : other; }

/* Numbers in whole lines of the cache. */
INLINE int64_t fill_lines(int64_t count) { return (count + LANES - 1) / LANES * LANES; }

/* What the layers make of the rows, in `rows->x`; 0, or -1 where there is no memory for what stands in between. */
WIDE int read_layers(const Model *model, const Layer *layers, const Rows *rows, int64_t threads) {
    Step step = {model, layers, rows, 0, 0, 0, 0, 0};
    int64_t inner = 0, outer = 0, longest = 0, narrow = 0;
    for (const Layer *layer = layers; layer < layers + model->layers; layer++) {
        const Part *parts[] = {&layer->reading, &layer->writing, &layer->widening, &layer->narrowing};
        for (int part = 0; part < 4; part++) {
            inner = larger(inner, parts[part]->product.inner);
            outer = larger(outer, parts[part]->product.outer);
            narrow = larger(narrow, find_room(&parts[part]->product, rows->rows));
        }
    }
    for (int64_t row = 0; row < rows->rows; row++)
        longest = larger(longest, rows->lengths[row] + 1);
    /* What a product needs in bf16, or a query, a key and the scores of a row; then a line that no other thread writes. */
    step.each = fill_lines(larger(narrow / 2, 2 * model->size + longest)) + LANES;
    const int64_t between = rows->rows * (model->hidden + outer + inner);
    float *room = aligned_alloc(64, (threads * step.each + fill_lines(between)) * sizeof(float));
    if (!room)
        return -1;
    step.own = room;
    step.normal = step.own + threads * step.each;
    step.made = step.normal + rows->rows * model->hidden;
    step.seen = step.made + rows->rows * outer;
    GOMP_parallel(share, &step, (unsigned)threads, 0);
    free(room);
    return 0;
}
#else
int read_layers(const void *model, const void *layers, const void *rows, int64_t threads) { return -1; }
#endif
