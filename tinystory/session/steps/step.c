/* Compute a few tokens of a model on the CPU: `model.Transformer` with a cache, in the Llama and GPT-2 families.
   `setup.py` builds this file once for each level of processors, and `compiled_step.py` calls it.

   The code uses the vector types of GCC and Clang, so the same source serves AVX-512, AVX2, SSE2 and NEON. It runs in
   one thread, allocates no memory, and computes in float32. Only weights may have other formats:
   - A matrix whose values are all exact in bfloat16 is kept in bfloat16. Then a token reads half as many bytes, and no
     result changes.
   - The integers of an int8 matrix are multiplied as floats, and each row of the result is multiplied by its scale.

   Shapes: n tokens, C d_model, H query heads, K key/value heads, D d_head, F inner width, V vocab_size. */

#include <math.h>
#include <stdint.h>
#include <string.h>

/* The names that others call end in the level, since one library has the functions of all levels. */
#ifndef LEVEL
#define LEVEL plain
#endif
#define JOINED(name, level) name##_##level
#define WITH_LEVEL(name, level) JOINED(name, level)
#define EXPORTED(name) WITH_LEVEL(name, LEVEL)

#if defined(__AVX512F__)
enum { LANES = 16, MOST_TOKENS = 4 };
#elif defined(__AVX__)
enum { LANES = 8, MOST_TOKENS = 2 }; /* 16 registers hold the sums of two tokens, but not of four */
#else
enum { LANES = 4, MOST_TOKENS = 4 };
#endif

enum { VECTORS = 4, PANEL = VECTORS * LANES }; /* a panel is the rows of a matrix that are multiplied together */

typedef float floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))

enum kind { FLOAT32, BFLOAT16, INT8 };

struct matrix {
    const int32_t *panels; /* as `step_pack` writes them */
    const float *scale;    /* one for each row of an int8 matrix, padded to whole panels; else null */
    const float *bias;     /* one for each row, padded in the same way; or null */
    int64_t kind, n_out, n_in;
};

struct norm {
    const float *weight, *bias; /* RMSNorm if the bias is null, else LayerNorm */
};

struct layer {
    struct norm attn_norm, ff_norm;
    struct matrix qkv, o, up, down; /* `up` is gate and up joined if there is a gate */
};

enum activation { SILU, GELU_TANH, GELU };

struct model {
    int64_t d_model, n_layer, n_head, n_kv_head, d_head, d_ff, gated, activation;
    float eps;
    const float *embed, *positions; /* (V, C); (S, C) or null */
    struct norm norm;
    struct matrix head;
    const struct layer *layers;
};

struct cache {
    float *const *keys, *const *values; /* one array for each layer: (rows, K, S, D) with the strides below */
    int64_t row_stride, head_stride;
    const float *cos, *sin; /* (S, D), the first half of sin negated; null without rotary positions */
};

/* ---- matrices ---------------------------------------------------------------------------------------------------- */

/* Return the number of vectors, of 32-bit words, that hold one column of a panel. */
INLINE int64_t vectors_of(enum kind kind) { return kind == FLOAT32 ? 4 : kind == BFLOAT16 ? 2 : 1; }

int64_t EXPORTED(step_panel_rows)(void) { return PANEL; }

/* Return element `at` of a matrix as the bits that a word of a panel keeps of it, at the place of its vector. */
INLINE uint32_t bits_of(enum kind kind, const void *rows, int64_t at, int64_t vector) {
    if (kind == INT8) return (uint32_t)((const uint8_t *)rows)[at] << (vector * 8);
    uint32_t word = ((const uint32_t *)rows)[at];
    return kind == FLOAT32 ? word : word >> 16 << (vector % 2 * 16);
}

/* Write one panel of n rows, which begin at `rows`. */
INLINE void pack_panel(enum kind kind, int64_t n, const void *rows, int64_t n_in, uint32_t *panel) {
    int64_t words = vectors_of(kind) * LANES, per_word = VECTORS / vectors_of(kind);
    memset(panel, 0, n_in * words * sizeof *panel);
    for (int64_t i = 0; i < n; i++) {
        int64_t vector = i / LANES;
        uint32_t *target = panel + vector / per_word * LANES + i % LANES;
        for (int64_t column = 0; column < n_in; column++)
            target[column * words] |= bits_of(kind, rows, i * n_in + column, vector);
    }
}

/* Write a matrix, (n_out, n_in) floats or int8, as panels of PANEL rows, column by column. Rows that are missing in the
   last panel are 0. A word holds one float, two bfloat16 or four int8; the values of a word are of rows LANES apart. */
void EXPORTED(step_pack)(const void *rows, int64_t kind, int64_t n_out, int64_t n_in, uint32_t *panels) {
    const char *row = rows;
    for (int64_t start = 0; start < n_out; start += PANEL) {
        int64_t n = n_out - start < PANEL ? n_out - start : PANEL;
        if (kind == FLOAT32) pack_panel(FLOAT32, n, row, n_in, panels);
        else if (kind == BFLOAT16) pack_panel(BFLOAT16, n, row, n_in, panels);
        else pack_panel(INT8, n, row, n_in, panels);
        panels += n_in * vectors_of(kind) * LANES;
        row += n * n_in * (kind == INT8 ? 1 : 4);
    }
}

/* Convert one column of a panel, which begins at `word`, into floats. */
INLINE void unpack(enum kind kind, const int32_t *word, floats columns[VECTORS]) {
    const ints *words = (const ints *)word;
    if (kind == FLOAT32)
        for (int i = 0; i < VECTORS; i++) columns[i] = (floats)words[i];
    else if (kind == BFLOAT16)
        for (int i = 0; i < VECTORS; i += 2) {
            columns[i] = (floats)(words[i / 2] << 16);
            columns[i + 1] = (floats)(words[i / 2] & (int32_t)0xffff0000);
        }
    else
        for (int i = 0; i < VECTORS; i++) columns[i] = __builtin_convertvector(words[0] << (24 - 8 * i) >> 24, floats);
}

/* Multiply a panel by n tokens; x is (n_in, n). Callers pass constants as `kind` and `n`, so loops are unrolled. */
INLINE void multiply(
    enum kind kind, int n, const int32_t *panel, const float *scale, const float *bias, int64_t n_in, const float *x,
    float *out, int64_t out_stride) {
    floats sums[MOST_TOKENS][VECTORS], columns[VECTORS];
    for (int token = 0; token < n; token++)
        for (int i = 0; i < VECTORS; i++) sums[token][i] = (floats){0};
    for (int64_t column = 0; column < n_in; column++, panel += vectors_of(kind) * LANES, x += n) {
        unpack(kind, panel, columns);
        for (int token = 0; token < n; token++)
            for (int i = 0; i < VECTORS; i++) sums[token][i] += columns[i] * x[token];
    }
    for (int token = 0; token < n; token++)
        for (int i = 0; i < VECTORS; i++) {
            if (kind == INT8) sums[token][i] *= *(const floats *)(scale + i * LANES);
            if (bias) sums[token][i] += *(const floats *)(bias + i * LANES);
            *(floats *)(out + token * out_stride + i * LANES) = sums[token][i];
        }
}

/* Return how many of the tokens that are left are multiplied together: MOST_TOKENS, 2 or 1. */
INLINE int64_t together(int64_t n_left) { return n_left >= MOST_TOKENS ? MOST_TOKENS : n_left >= 2 ? 2 : 1; }

INLINE void product_of(
    enum kind kind, const struct matrix *m, int64_t n, const float *x, float *out, int64_t out_stride) {
    int64_t panel_words = m->n_in * vectors_of(kind) * LANES;
    for (int64_t start = 0; start < m->n_out; start += PANEL) {
        const int32_t *panel = m->panels + start / PANEL * panel_words;
        const float *scale = m->scale ? m->scale + start : 0, *bias = m->bias ? m->bias + start : 0;
        for (int64_t token = 0, width; token < n; token += width) {
            const float *tile = x + token * m->n_in;
            float *place = out + token * out_stride + start;
            width = together(n - token);
            if (width == MOST_TOKENS) multiply(kind, MOST_TOKENS, panel, scale, bias, m->n_in, tile, place, out_stride);
            else if (width == 2) multiply(kind, 2, panel, scale, bias, m->n_in, tile, place, out_stride);
            else multiply(kind, 1, panel, scale, bias, m->n_in, tile, place, out_stride);
        }
    }
}

/* Multiply a matrix by n tokens: (n, n_in) in rows of x_stride -> (n, n_out) in rows of out_stride. The last panel is
   written whole, so out_stride must be a multiple of PANEL. `tiles` is memory for (n, n_in) floats. */
static void product(
    const struct matrix *m, int64_t n, const float *x, int64_t x_stride, float *tiles, float *out, int64_t out_stride) {
    for (int64_t token = 0, width; token < n; token += width) { /* interleave the tokens of one group */
        width = together(n - token);
        float *tile = tiles + token * m->n_in;
        for (int64_t i = 0; i < m->n_in; i++)
            for (int64_t t = 0; t < width; t++) tile[i * width + t] = x[(token + t) * x_stride + i];
    }
    if (m->kind == FLOAT32) product_of(FLOAT32, m, n, tiles, out, out_stride);
    else if (m->kind == BFLOAT16) product_of(BFLOAT16, m, n, tiles, out, out_stride);
    else product_of(INT8, m, n, tiles, out, out_stride);
}

/* ---- the rest of a layer ----------------------------------------------------------------------------------------- */

static float dot(const float *a, const float *b, int64_t n) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* Return e^x, with an error of at most 2 units in the last place; x is first limited to -87 .. 88. A NaN whose lowest
   bits are 0 stays NaN. The range is reduced with Cody and Waite's ln 2 in two parts; the polynomial is the one of
   Cephes' expf (Moshier 1984). */
INLINE floats exponential(floats x) {
    const floats lowest = (floats){0} - 87.0f, highest = (floats){0} + 88.0f;
    ints low = x < lowest, high = x > highest;
    floats t = (floats)(((ints)x & ~(low | high)) | ((ints)lowest & low) | ((ints)highest & high));
    floats rounded = t * 1.44269504f + 12582912.0f; /* adding 1.5 * 2^23 rounds to an integer */
    floats k = rounded - 12582912.0f;
    floats r = t - k * 0.693359375f + k * 2.12194440e-4f;
    floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return (floats)((ints)p + ((ints)rounded << 23));
}

static void normalize(const float *x, struct norm norm, int64_t n, float eps, float *out) {
    if (!norm.bias) {
        float scale = 1 / sqrtf(dot(x, x, n) / n + eps);
        for (int64_t i = 0; i < n; i++) out[i] = x[i] * (norm.weight[i] * scale);
        return;
    }
    float mean = 0, variance = 0;
#pragma omp simd reduction(+ : mean)
    for (int64_t i = 0; i < n; i++) mean += x[i];
    mean /= n;
#pragma omp simd reduction(+ : variance)
    for (int64_t i = 0; i < n; i++) variance += (x[i] - mean) * (x[i] - mean);
    float scale = 1 / sqrtf(variance / n + eps);
    for (int64_t i = 0; i < n; i++) out[i] = (x[i] - mean) * scale * norm.weight[i] + norm.bias[i];
}

INLINE floats activated(enum activation kind, floats x) {
    if (kind == SILU) return x / (1.0f + exponential(-x));
    if (kind == GELU_TANH) /* tanh, written as a logistic function */
        return x / (1.0f + exponential((x + x * x * x * 0.044715f) * -1.5957691216f)); /* -2 sqrt(2 / pi) */
    for (int i = 0; i < LANES; i++) x[i] *= 0.5f + 0.5f * erff(x[i] * 0.7071067812f);
    return x;
}

/* Apply the rotary embedding to one head of d numbers; as in Hugging Face, pairs are (x[i], x[i + d/2]). */
static void rotate(float *x, const float *cos, const float *sin, int64_t d) {
    for (int64_t i = 0, j = d / 2; j < d; i++, j++) {
        float first = x[i], second = x[j];
        x[i] = first * cos[i] + second * sin[i];
        x[j] = second * cos[j] + first * sin[j];
    }
}

/* Compute attention of one query of d numbers over n keys and values. `scores` is memory for n floats and one vector
   more, since the last vector may be partly used. */
static void attend(
    const float *q, const float *keys, const float *values, int64_t n, int64_t d, float *scores, float *out) {
    float most = -INFINITY, scale = 1 / sqrtf(d), sum = 0;
    for (int64_t i = 0; i < n; i++) {
        scores[i] = dot(keys + i * d, q, d);
        if (scores[i] > most) most = scores[i];
    }
    for (int64_t i = 0; i < n; i += LANES) {
        floats *some = (floats *)(scores + i);
        *some = exponential((*some - most) * scale);
    }
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += scores[i];
    int64_t start = 0;
    for (; start + PANEL <= d; start += PANEL) {
        floats mixed[VECTORS] = {{0}};
        for (int64_t i = 0; i < n; i++)
            for (int v = 0; v < VECTORS; v++)
                mixed[v] += scores[i] * *(const floats *)(values + i * d + start + v * LANES);
        for (int v = 0; v < VECTORS; v++) *(floats *)(out + start + v * LANES) = mixed[v] / sum;
    }
    for (; start < d; start++) {
        float mixed = 0;
        for (int64_t i = 0; i < n; i++) mixed += scores[i] * values[i * d + start];
        out[start] = mixed / sum;
    }
}

/* ---- the model --------------------------------------------------------------------------------------------------- */

static int64_t padded(int64_t n) { return (n + PANEL - 1) / PANEL * PANEL; }

/* The parts of the memory that the caller lends for one call. */
struct scratch {
    float *normed, *qkv, *mixed, *inner, *activated, *tiles, *scores;
    int64_t c, heads, f; /* padded widths of rows: C; (H + 2 K) D; the inner layer */
};

static struct scratch divide(const struct model *m, int64_t n, float *memory) {
    struct scratch s;
    int64_t widest = m->n_head * m->d_head;
    widest = widest > m->d_model ? widest : m->d_model;
    widest = widest > m->d_ff ? widest : m->d_ff;
    s.c = padded(m->d_model);
    s.heads = padded((m->n_head + 2 * m->n_kv_head) * m->d_head);
    s.f = padded(m->gated ? 2 * m->d_ff : m->d_ff);
    s.normed = memory;
    s.qkv = s.normed + n * s.c;
    s.mixed = s.qkv + n * s.heads;
    s.inner = s.mixed + n * s.heads;
    s.activated = s.inner + n * s.f;
    s.tiles = s.activated + n * s.f;
    s.scores = s.tiles + n * widest;
    return s;
}

/* Return how many floats of memory a call with n tokens needs. */
int64_t EXPORTED(step_scratch)(const struct model *m, int64_t n, int64_t capacity) {
    float *nowhere = 0;
    return divide(m, n, nowhere).scores - nowhere + padded(capacity) + PANEL;
}

static void attention(
    const struct model *m, const struct layer *layer, const struct cache *cache, float *keys, float *values, int64_t n,
    const int64_t *rows, const int64_t *positions, struct scratch s) {
    int64_t d = m->d_head, n_head = m->n_head, n_kv_head = m->n_kv_head;
    product(&layer->qkv, n, s.normed, s.c, s.tiles, s.qkv, s.heads);
    for (int64_t token = 0; token < n; token++) { /* keys and values first: later tokens see them */
        float *q = s.qkv + token * s.heads, *k = q + n_head * d, *v = k + n_kv_head * d;
        int64_t at = positions[token] * d, place = rows[token] * cache->row_stride + at;
        for (int64_t head = 0; cache->cos && head < n_head + n_kv_head; head++)
            rotate(q + head * d, cache->cos + at, cache->sin + at, d);
        for (int64_t head = 0; head < n_kv_head; head++, place += cache->head_stride) {
            memcpy(keys + place, k + head * d, d * sizeof(float));
            memcpy(values + place, v + head * d, d * sizeof(float));
        }
    }
    for (int64_t token = 0; token < n; token++)
        for (int64_t head = 0; head < n_head; head++) {
            int64_t place = rows[token] * cache->row_stride + head / (n_head / n_kv_head) * cache->head_stride;
            int64_t at = token * s.heads + head * d;
            attend(s.qkv + at, keys + place, values + place, positions[token] + 1, d, s.scores, s.mixed + at);
        }
    product(&layer->o, n, s.mixed, s.heads, s.tiles, s.normed, s.c);
}

static void feed_forward(const struct model *m, const struct layer *layer, int64_t n, struct scratch s) {
    product(&layer->up, n, s.normed, s.c, s.tiles, s.inner, s.f);
    for (int64_t token = 0; token < n; token++) {
        const float *first = s.inner + token * s.f, *second = first + m->d_ff;
        float *out = s.activated + token * s.f;
        for (int64_t i = 0; i < m->d_ff; i += LANES) { /* the last vector may pass the end, into padding */
            floats x = activated(m->activation, *(const floats *)(first + i));
            if (m->gated) x *= *(const floats *)(second + i);
            *(floats *)(out + i) = x;
        }
    }
    product(&layer->down, n, s.activated, s.f, s.tiles, s.normed, s.c);
}

/* Normalize the activations of n tokens, (n, C), and write them into rows of `stride`. */
static void normalize_all(
    const struct model *m, struct norm norm, int64_t n, const float *x, float *out, int64_t stride) {
    for (int64_t token = 0; token < n; token++)
        normalize(x + token * m->d_model, norm, m->d_model, m->eps, out + token * stride);
}

static void add(const struct model *m, int64_t n, const float *term, int64_t stride, float *x) {
    for (int64_t token = 0; token < n; token++)
        for (int64_t i = 0; i < m->d_model; i++) x[token * m->d_model + i] += term[token * stride + i];
}

/* Feed n tokens to rows of the cache, and write the normed last hidden states (n, C) into x. Tokens of one row must be
   in the order of their positions. */
void EXPORTED(step_hidden)(
    const struct model *m, const struct cache *cache, int64_t n, const int64_t *token_ids, const int64_t *rows,
    const int64_t *positions, float *memory, float *x) {
    struct scratch s = divide(m, n, memory);
    int64_t c = m->d_model;
    for (int64_t token = 0; token < n; token++) {
        memcpy(x + token * c, m->embed + token_ids[token] * c, c * sizeof *x);
        if (m->positions) add(m, 1, m->positions + positions[token] * c, c, x + token * c);
    }
    for (int64_t i = 0; i < m->n_layer; i++) {
        const struct layer *layer = m->layers + i;
        normalize_all(m, layer->attn_norm, n, x, s.normed, s.c);
        attention(m, layer, cache, cache->keys[i], cache->values[i], n, rows, positions, s);
        add(m, n, s.normed, s.c, x);
        normalize_all(m, layer->ff_norm, n, x, s.normed, s.c);
        feed_forward(m, layer, n, s);
        add(m, n, s.normed, s.c, x);
    }
    normalize_all(m, m->norm, n, x, x, c);
}

/* Compute logits from hidden states: (n, C) -> (n, V), in rows that are padded to whole panels. */
void EXPORTED(step_logits)(const struct model *m, int64_t n, const float *hidden, float *memory, float *logits) {
    product(&m->head, n, hidden, m->d_model, memory, logits, padded(m->head.n_out));
}
