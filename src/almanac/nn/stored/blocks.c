/* Matrix products with packed weights: y[r][o] = sum_k x[r][k] * w[o][k], w expanded block by block in the L1 cache.
 *
 * Activations stay float32 and the sum of one output runs over k in one fixed order, whatever the number of rows:
 * a sequence gets the same bits alone and in company. Written with GCC/Clang vector extensions, so that the same text
 * serves every processor; the block layouts are those of the GGUF format. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#define LANES 16
#define TILE 4 /* weight rows expanded at a time */
#define CHUNK 64 /* rows of x that stay in the second-level cache while the weights pass by */
typedef float lanes __attribute__((vector_size(LANES * 4)));
typedef float lanes_u __attribute__((vector_size(LANES * 4), aligned(4)));
typedef uint8_t bytes __attribute__((vector_size(LANES)));
typedef int8_t chars __attribute__((vector_size(LANES)));
typedef uint8_t bytes_u __attribute__((vector_size(LANES), aligned(1)));

/* sixteen codes at a time */
static inline bytes codes_at(const uint8_t *p) { return (bytes) * (const bytes_u *)p; }
#ifdef __AVX512F__ /* compilers take the portable form apart into single conversions */
static inline lanes unsigned_codes(bytes q) { return (lanes)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32((__m128i)q)); }
static inline lanes signed_codes(bytes q) { return (lanes)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)q)); }
#elif defined(__AVX2__)
typedef union {
    __m256 half[2];
    lanes whole;
} halves;
static inline lanes unsigned_codes(bytes q) {
    const __m128i low = (__m128i)q, high = _mm_srli_si128(low, 8);
    const halves h = {{_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(low)), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(high))}};
    return h.whole;
}
static inline lanes signed_codes(bytes q) {
    const __m128i low = (__m128i)q, high = _mm_srli_si128(low, 8);
    const halves h = {{_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(low)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high))}};
    return h.whole;
}
#else
static inline lanes unsigned_codes(bytes q) { return __builtin_convertvector(q, lanes); }
static inline lanes signed_codes(bytes q) { return __builtin_convertvector((chars)q, lanes); }
#endif
static inline void put(float *p, lanes v) { *(lanes_u *)p = v; }

static inline float half_at(const uint8_t *p) {
    _Float16 h;
    memcpy(&h, p, 2);
    return (float)h;
}

static void expand_f32(const uint8_t *b, float *out, long n) { memcpy(out, b, n * sizeof(float)); }

static void expand_f16(const uint8_t *b, float *out, long n) {
    for (long i = 0; i < n; i++) out[i] = half_at(b + 2 * i);
}

static void expand_bf16(const uint8_t *b, float *out, long n) {
    for (long i = 0; i < n; i++) {
        uint32_t bits = ((uint32_t)b[2 * i] | (uint32_t)b[2 * i + 1] << 8) << 16;
        memcpy(out + i, &bits, 4);
    }
}

static void expand_q4_0(const uint8_t *b, float *out, long n) {
    for (; n > 0; n -= 32, b += 18, out += 32) {
        const float d = half_at(b);
        const bytes q = codes_at(b + 2);
        put(out, d * (unsigned_codes(q & 15) - 8.0f));
        put(out + 16, d * (unsigned_codes(q >> 4) - 8.0f));
    }
}

static void expand_q4_1(const uint8_t *b, float *out, long n) {
    for (; n > 0; n -= 32, b += 20, out += 32) {
        const float d = half_at(b), m = half_at(b + 2);
        const bytes q = codes_at(b + 4);
        put(out, d * unsigned_codes(q & 15) + m);
        put(out + 16, d * unsigned_codes(q >> 4) + m);
    }
}

static inline void expand_five(const uint8_t *high, const uint8_t *q, float d, float m, float *out) {
    uint32_t bits;
    memcpy(&bits, high, 4);
    for (int j = 0; j < 16; j++) {
        out[j] = d * (float)(int)((q[j] & 15) | ((bits >> j) & 1) << 4) + m;
        out[j + 16] = d * (float)(int)((q[j] >> 4) | ((bits >> (j + 16)) & 1) << 4) + m;
    }
}

static void expand_q5_0(const uint8_t *b, float *out, long n) {
    for (; n > 0; n -= 32, b += 22, out += 32) {
        const float d = half_at(b);
        expand_five(b + 2, b + 6, d, -16.0f * d, out);
    }
}

static void expand_q5_1(const uint8_t *b, float *out, long n) {
    for (; n > 0; n -= 32, b += 24, out += 32) expand_five(b + 4, b + 8, half_at(b), half_at(b + 2), out);
}

static void expand_q8_0(const uint8_t *b, float *out, long n) {
    for (; n > 0; n -= 32, b += 34, out += 32) {
        const float d = half_at(b);
        put(out, d * signed_codes(codes_at(b + 2)));
        put(out + 16, d * signed_codes(codes_at(b + 18)));
    }
}

/* six-bit scale and minimum of group j of a Q4_K or Q5_K block */
static inline void scale_and_min(int j, const uint8_t *s, float *scale, float *min) {
    if (j < 4) {
        *scale = s[j] & 63;
        *min = s[j + 4] & 63;
    } else {
        *scale = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
        *min = (s[j + 4] >> 4) | (s[j] >> 6) << 4;
    }
}

static void expand_q4_k(const uint8_t *b, float *out, long n) {
    for (; n > 0; n -= 256, b += 144) {
        const float d = half_at(b), dmin = half_at(b + 2);
        const uint8_t *q = b + 16;
        for (int g = 0; g < 8; g += 2, q += 32, out += 64) {
            float s0, m0, s1, m1;
            scale_and_min(g, b + 4, &s0, &m0);
            scale_and_min(g + 1, b + 4, &s1, &m1);
            s0 *= d, s1 *= d, m0 *= dmin, m1 *= dmin;
            for (int j = 0; j < 32; j += 16) {
                const bytes c = codes_at(q + j);
                put(out + j, s0 * unsigned_codes(c & 15) - m0);
                put(out + j + 32, s1 * unsigned_codes(c >> 4) - m1);
            }
        }
    }
}

static void expand_q5_k(const uint8_t *b, float *out, long n) {
    for (; n > 0; n -= 256, b += 176) {
        const float d = half_at(b), dmin = half_at(b + 2);
        const uint8_t *h = b + 16, *q = b + 48;
        for (int g = 0; g < 8; g += 2, q += 32, out += 64) {
            float s0, m0, s1, m1;
            scale_and_min(g, b + 4, &s0, &m0);
            scale_and_min(g + 1, b + 4, &s1, &m1);
            s0 *= d, s1 *= d, m0 *= dmin, m1 *= dmin;
            for (int j = 0; j < 32; j += 16) {
                const bytes c = codes_at(q + j), high = codes_at(h + j) >> g;
                put(out + j, s0 * unsigned_codes((c & 15) | (high & 1) << 4) - m0);
                put(out + j + 32, s1 * unsigned_codes((c >> 4) | ((high >> 1) & 1) << 4) - m1);
            }
        }
    }
}

static void expand_q6_k(const uint8_t *b, float *out, long n) {
    for (; n > 0; n -= 256, b += 210) {
        const float d = half_at(b + 208);
        for (int half = 0; half < 2; half++, out += 128) {
            const uint8_t *l = b + 64 * half, *h = b + 128 + 32 * half;
            const int8_t *s = (const int8_t *)(b + 192 + 8 * half);
            for (int g = 0; g < 2; g++) {
                const bytes a = codes_at(l + 16 * g), c = codes_at(l + 32 + 16 * g), high = codes_at(h + 16 * g);
                put(out + 16 * g, d * s[g] * (unsigned_codes((a & 15) | (high & 3) << 4) - 32.0f));
                put(out + 16 * g + 32, d * s[g + 2] * (unsigned_codes((c & 15) | ((high >> 2) & 3) << 4) - 32.0f));
                put(out + 16 * g + 64, d * s[g + 4] * (unsigned_codes((a >> 4) | ((high >> 4) & 3) << 4) - 32.0f));
                put(out + 16 * g + 96, d * s[g + 6] * (unsigned_codes((c >> 4) | (high >> 6) << 4) - 32.0f));
            }
        }
    }
}

/* a float32 scale per row in front of int8 codes */
static void expand_i8(const uint8_t *b, float *out, long n) {
    float d;
    memcpy(&d, b, 4);
    long i = 0;
    for (; i + LANES <= n; i += LANES) put(out + i, d * signed_codes(codes_at(b + 4 + i)));
    for (; i < n; i++) out[i] = d * (float)(int8_t)b[4 + i];
}

typedef void (*expander)(const uint8_t *, float *, long);

static expander expander_of(int format) { /* numbers are GGUF's, int8 rows are ours */
    switch (format) {
        case 0: return expand_f32;
        case 1: return expand_f16;
        case 2: return expand_q4_0;
        case 3: return expand_q4_1;
        case 6: return expand_q5_0;
        case 7: return expand_q5_1;
        case 8: return expand_q8_0;
        case 12: return expand_q4_k;
        case 13: return expand_q5_k;
        case 14: return expand_q6_k;
        case 30: return expand_bf16;
        case 1000: return expand_i8;
    }
    return 0;
}

static inline float total(lanes v) {
    typedef float eight __attribute__((vector_size(32)));
    typedef float four __attribute__((vector_size(16)));
    const eight e = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                    __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
    const four f = __builtin_shufflevector(e, e, 0, 1, 2, 3) + __builtin_shufflevector(e, e, 4, 5, 6, 7);
    return (f[0] + f[2]) + (f[1] + f[3]);
}

static inline lanes load(const float *p) { return (lanes) * (const lanes_u *)p; }

/* w [TILE][n] expanded, four rows of x [4][n]; y rows are `stride` apart */
static void dot_four(const float *w, const float *x, long n, float *y, long stride, long count) {
    lanes sums[TILE][4] = {{{0}}};
    for (long k = 0; k < n; k += LANES) {
        const lanes x0 = load(x + k), x1 = load(x + n + k), x2 = load(x + 2 * n + k), x3 = load(x + 3 * n + k);
        for (int i = 0; i < TILE; i++) {
            const lanes v = load(w + i * n + k);
            sums[i][0] += v * x0;
            sums[i][1] += v * x1;
            sums[i][2] += v * x2;
            sums[i][3] += v * x3;
        }
    }
    for (long i = 0; i < count; i++)
        for (int r = 0; r < 4; r++) y[r * stride + i] = total(sums[i][r]);
}

static void dot_single(const float *w, const float *x, long n, float *y, long count) {
    lanes a0 = {0}, a1 = {0}, a2 = {0}, a3 = {0};
    for (long k = 0; k < n; k += LANES) {
        const lanes u = load(x + k);
        a0 += load(w + k) * u;
        a1 += load(w + n + k) * u;
        a2 += load(w + 2 * n + k) * u;
        a3 += load(w + 3 * n + k) * u;
    }
    const float a[TILE] = {total(a0), total(a1), total(a2), total(a3)};
    for (long i = 0; i < count; i++) y[i] = a[i];
}

/* x float32 [rows][padded], zero from n to padded (a multiple of LANES); w [out][row_bytes]; y float32 [rows][out].
 * Returns 0, or 1 for an unknown format, 2 for lack of memory. */
int almanac_linear(const float *x, long rows, long n, long padded, const uint8_t *w, long row_bytes, long out, float *y,
                   int format, int threads) {
    const expander expand = expander_of(format);
    if (!expand) return 1;
    int failed = 0;
    const long tiles = (out + TILE - 1) / TILE;
    (void)threads;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        float *buffer = aligned_alloc(64, TILE * padded * sizeof(float));
        if (!buffer) {
#pragma omp atomic write
            failed = 2;
        } else {
            memset(buffer, 0, TILE * padded * sizeof(float));
        }
        for (long start = 0; start < rows; start += CHUNK) {
            const long stop = start + CHUNK < rows ? start + CHUNK : rows;
#pragma omp for schedule(static)
            for (long tile = 0; tile < tiles; tile++) {
                if (!buffer) continue;
                const long first = tile * TILE, count = out - first < TILE ? out - first : TILE;
                for (long i = 0; i < count; i++) expand(w + (first + i) * row_bytes, buffer + i * padded, n);
                long r = start;
                for (; r + 3 < stop; r += 4) dot_four(buffer, x + r * padded, padded, y + r * out + first, out, count);
                for (; r < stop; r++) dot_single(buffer, x + r * padded, padded, y + r * out + first, count);
            }
        }
        free(buffer);
    }
    return failed;
}

/* w [out][row_bytes] -> y float32 [out][n] */
int almanac_expand(const uint8_t *w, long row_bytes, long out, long n, float *y, int format, int threads) {
    const expander expand = expander_of(format);
    if (!expand) return 1;
    (void)threads;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (long o = 0; o < out; o++) expand(w + o * row_bytes, y + o * n, n);
    return 0;
}
