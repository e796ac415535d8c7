/* What the kernels take, and the parts of them that run in one thread of many. Every structure is packed by Python. */

#include <stdint.h>

/* Raised with every change of what Python packs or calls; `ml/quantised/kernels.py` asks for it. */
enum { VERSION = 5, PARTS = 3 };

/* Layers that read one input, behind one another (`ml/quantised/product.py`). Without a table the weights are bf16,
   [outer, inner]. */
typedef struct {
    int64_t inner;          /* a multiple of 64, of bf16 weights of 32 */
    int64_t outer;          /* all outputs */
    const uint16_t *table;  /* 32 bf16 numbers: the 16 of NF4, twice */
    const uint8_t *weights; /* [outer, inner / 2] */
    const float *scales;    /* [outer, inner / 64] */
    const float *bias;      /* [outer], or none */
} Product;

/* The same layers, as adapters see them (`ml/lora/kernel.py`). */
typedef struct {
    int64_t first;        /* the number of the first layer, which `places` goes by */
    int64_t inner;        /* the width of their input */
    int64_t narrow;       /* whether weights are bf16, not float32 */
    int64_t layers;       /* PARTS at most */
    int64_t sizes[PARTS]; /* outputs of each */
} Group;

/* One adapter and one or two rows that use it. */
typedef struct {
    const char *weights;
    const int64_t *places; /* by layer, in bytes from `weights`; -1 where the adapter has nothing */
    int64_t rank;          /* a multiple of 4 */
    int64_t rows[2];       /* the second is -1 where there is one row */
    double scale;
    float *low; /* room for scale * A x: [PARTS, 2, rank] */
} Pair;

/* libgomp's entries, which other OpenMPs offer too: a function runs in every thread, and threads wait for each
   other. */
extern void GOMP_parallel(void (*function)(void *), void *data, unsigned threads, unsigned flags);
extern void GOMP_barrier(void);
extern int omp_get_thread_num(void);
extern int omp_get_num_threads(void);

/* Of each function below, what one of `threads` threads does. */
#define HIDDEN __attribute__((visibility("hidden")))

/* y [rows, outer] = x [rows, inner] times the weights, and the bias; scratch: of this thread's own, as many numbers as
   `find_room` says, on 64 bytes. */
HIDDEN void multiply_part(const Product *product, int64_t rows, const float *x, float *y, uint16_t *scratch,
                          int64_t thread, int64_t threads);
/* A multiple of 32. */
int64_t find_room(const Product *product, int64_t rows);
/* low = scale * A x of every pair. */
HIDDEN void lora_down(const Pair *pairs, int64_t count, const Group *group, const float *x, int64_t thread,
                      int64_t threads);
/* y [rows, all outputs] += B low of every pair, once all threads have gone down. */
HIDDEN void lora_up(const Pair *pairs, int64_t count, const Group *group, float *y, int64_t thread, int64_t threads);
