/* model: an integer network, written by probq.

   model_run(input, output) computes one example; it needs no other memory than the static arrays below.
   Include this file in one C or C++ file only. It is not reentrant.

   model sha256   92b9d88ea75648fd336cd3a00d451a8c5f94781b6023e2a37318be8ddac1e6da
   output unit    1 / 8 = 2^-3 (real output = integer * unit)
   input          shape [4], integers of 1/64 each, -127 .. 127
   output         shape [2]
   memory         192 bytes of scratch, 39 bytes of constants */
#if defined(PROBQ_MODEL_H) && !defined(PROBQ_MODEL_H_92B9D88EA75648FD)
#error "two models are named model; write one of them under another name: write(model, path, name=...)"
#elif !defined(PROBQ_MODEL_H)
#define PROBQ_MODEL_H
#define PROBQ_MODEL_H_92B9D88EA75648FD
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__cplusplus)
#define MODEL_RESTRICT __restrict
extern "C" {
#else
#define MODEL_RESTRICT restrict
#endif

#define model_INPUT_SIZE 4
#define model_OUTPUT_SIZE 2

/* One function for each step, compiled without a look at the others: it stays quick, and GCC 12, where it knows two
   places in one pool, may take a step for one without effect and drop it. */
#if defined(__has_attribute)
#if __has_attribute(noipa)
#define MODEL_STEP static __attribute__((noipa)) void
#endif
#endif
#if defined(__GNUC__) && !defined(MODEL_STEP)
#define MODEL_STEP static __attribute__((noinline)) void
#elif !defined(MODEL_STEP)
#define MODEL_STEP static void
#endif
#if defined(__GNUC__)
#define MODEL_POOL __attribute__((aligned(64))) static
#else
#define MODEL_POOL static
#endif

/* Rounding relies on an arithmetic right shift of negative numbers. */
typedef char model_shift_is_arithmetic[((-5) >> 1) == -3 ? 1 : -1];

static const uint8_t model_data0[7] = {
13,9,14,14,11,0,0
};

static const int8_t model_data1[5] = {
40,-64,-117,73,119
};

static const uint8_t model_data2[4] = {
4,2,2,2
};

static const uint8_t model_data3[4] = {
3,2,2,2
};

static const uint8_t model_data4[6] = {
6,16,19,25,0,0
};

static const uint8_t model_data5[4] = {
6,3,1,2
};

static const uint8_t model_data6[5] = {
89,168,0,0,0
};

static const int8_t model_data7[2] = {
-1,-2
};

static const uint8_t model_data8[2] = {
2,1
};

MODEL_POOL uint8_t model_pool8[192];

static inline void model_unpack1_int8_t(const uint8_t *MODEL_RESTRICT from, int8_t *MODEL_RESTRICT to, int32_t groups, int32_t start, int32_t step)
{
    for (int32_t g = 0; g < groups; g++, from += 1, to += 8) {
        to[0] = (int8_t)(start + step * (int32_t)(((uint32_t)from[0]) >> 0 & 1u));
        to[1] = (int8_t)(start + step * (int32_t)(((uint32_t)from[0]) >> 1 & 1u));
        to[2] = (int8_t)(start + step * (int32_t)(((uint32_t)from[0]) >> 2 & 1u));
        to[3] = (int8_t)(start + step * (int32_t)(((uint32_t)from[0]) >> 3 & 1u));
        to[4] = (int8_t)(start + step * (int32_t)(((uint32_t)from[0]) >> 4 & 1u));
        to[5] = (int8_t)(start + step * (int32_t)(((uint32_t)from[0]) >> 5 & 1u));
        to[6] = (int8_t)(start + step * (int32_t)(((uint32_t)from[0]) >> 6 & 1u));
        to[7] = (int8_t)(start + step * (int32_t)(((uint32_t)from[0]) >> 7 & 1u));
    }
}

static inline void model_dots_int8_t(const int8_t *MODEL_RESTRICT a, int32_t step, const int8_t *MODEL_RESTRICT w, int32_t n, int32_t count,
                        int32_t *MODEL_RESTRICT sums)
{
    int32_t k = 0;
#if 0 && defined(__AVX512VNNI__) && defined(__AVX512BW__)
    const __mmask64 rest = n % 64 ? UINT64_MAX >> (64 - n % 64) : 0;
    const int8_t *b = a + (count - 1) * step; /* the last window */
    __m512i s0 = _mm512_setzero_si512(), s1 = s0, s2 = s0, s3 = s0;
    if (count == 1) {
        for (; k + 64 <= n; k += 64)
            s3 = _mm512_dpbusd_epi32(s3, _mm512_loadu_si512((const void *)(b + k)),
                                     _mm512_loadu_si512((const void *)(w + k)));
    } else {
        for (; k + 64 <= n; k += 64) {
            const __m512i v = _mm512_loadu_si512((const void *)(w + k));
            s0 = _mm512_dpbusd_epi32(s0, _mm512_loadu_si512((const void *)(a + k)), v);
            s1 = _mm512_dpbusd_epi32(s1, _mm512_loadu_si512((const void *)(a + step + k)), v);
            s2 = _mm512_dpbusd_epi32(s2, _mm512_loadu_si512((const void *)(a + 2 * step + k)), v);
            s3 = _mm512_dpbusd_epi32(s3, _mm512_loadu_si512((const void *)(b + k)), v);
        }
    }
    if (rest) {
        const __m512i v = _mm512_maskz_loadu_epi8(rest, (const void *)(w + k));
        if (count == 4) {
            s0 = _mm512_dpbusd_epi32(s0, _mm512_maskz_loadu_epi8(rest, (const void *)(a + k)), v);
            s1 = _mm512_dpbusd_epi32(s1, _mm512_maskz_loadu_epi8(rest, (const void *)(a + step + k)), v);
            s2 = _mm512_dpbusd_epi32(s2, _mm512_maskz_loadu_epi8(rest, (const void *)(a + 2 * step + k)), v);
        }
        s3 = _mm512_dpbusd_epi32(s3, _mm512_maskz_loadu_epi8(rest, (const void *)(b + k)), v);
    }
    if (count == 4) {
        sums[0] += _mm512_reduce_add_epi32(s0);
        sums[1] += _mm512_reduce_add_epi32(s1);
        sums[2] += _mm512_reduce_add_epi32(s2);
    }
    sums[count - 1] += _mm512_reduce_add_epi32(s3);
#else
#if defined(__AVX2__)
    __m256i s[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    for (; k + 16 <= n; k += 16) {
        const __m256i v = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(w + k)));
        for (int32_t c = 0; c < count; c++) {
            const __m128i x = _mm_loadu_si128((const __m128i *)(const void *)(a + c * step + k));
            s[c] = _mm256_add_epi32(s[c], _mm256_madd_epi16(_mm256_cvtepi8_epi16(x), v));
        }
    }
    for (int32_t c = 0; c < count; c++) {
        __m128i t = _mm_add_epi32(_mm256_castsi256_si128(s[c]), _mm256_extracti128_si256(s[c], 1));
        t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
        sums[c] += _mm_cvtsi128_si32(_mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1)));
    }
#elif defined(__SSE2__)
    const __m128i zero = _mm_setzero_si128();
    __m128i s[4] = {zero, zero, zero, zero};
    for (; k + 16 <= n; k += 16) {
        const __m128i v = _mm_loadu_si128((const __m128i *)(const void *)(w + k));
        const __m128i v0 = _mm_srai_epi16(_mm_unpacklo_epi8(zero, v), 8);
        const __m128i v1 = _mm_srai_epi16(_mm_unpackhi_epi8(zero, v), 8);
        for (int32_t c = 0; c < count; c++) {
            const __m128i x = _mm_loadu_si128((const __m128i *)(const void *)(a + c * step + k));
            s[c] = _mm_add_epi32(s[c], _mm_madd_epi16(_mm_srai_epi16(_mm_unpacklo_epi8(zero, x), 8), v0));
            s[c] = _mm_add_epi32(s[c], _mm_madd_epi16(_mm_srai_epi16(_mm_unpackhi_epi8(zero, x), 8), v1));
        }
    }
    for (int32_t c = 0; c < count; c++) {
        const __m128i t = _mm_add_epi32(s[c], _mm_shuffle_epi32(s[c], 0x4e));
        sums[c] += _mm_cvtsi128_si32(_mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1)));
    }
#elif defined(__ARM_NEON)
    int32x4_t s[4] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};
    for (; k + 8 <= n; k += 8) {
        const int16x8_t v = vmovl_s8(vld1_s8(w + k));
        for (int32_t c = 0; c < count; c++) {
            const int16x8_t x = vmovl_s8(vld1_s8(a + c * step + k));
            s[c] = vmlal_s16(s[c], vget_low_s16(x), vget_low_s16(v));
            s[c] = vmlal_s16(s[c], vget_high_s16(x), vget_high_s16(v));
        }
    }
    for (int32_t c = 0; c < count; c++) {
        const int32x2_t t = vadd_s32(vget_low_s32(s[c]), vget_high_s32(s[c]));
        sums[c] += vget_lane_s32(t, 0) + vget_lane_s32(t, 1);
    }
#endif
    for (int32_t c = 0; c < count; c++) {
        const int8_t *row = a + c * step;
        int32_t t = 0;
        for (int32_t j = k; j < n; j++) t += (int32_t)row[j] * w[j];
        sums[c] += t;
    }
#endif
}

static inline void model_dots_uint8_t(const uint8_t *MODEL_RESTRICT a, int32_t step, const int8_t *MODEL_RESTRICT w, int32_t n, int32_t count,
                        int32_t *MODEL_RESTRICT sums)
{
    int32_t k = 0;
#if 1 && defined(__AVX512VNNI__) && defined(__AVX512BW__)
    const __mmask64 rest = n % 64 ? UINT64_MAX >> (64 - n % 64) : 0;
    const uint8_t *b = a + (count - 1) * step; /* the last window */
    __m512i s0 = _mm512_setzero_si512(), s1 = s0, s2 = s0, s3 = s0;
    if (count == 1) {
        for (; k + 64 <= n; k += 64)
            s3 = _mm512_dpbusd_epi32(s3, _mm512_loadu_si512((const void *)(b + k)),
                                     _mm512_loadu_si512((const void *)(w + k)));
    } else {
        for (; k + 64 <= n; k += 64) {
            const __m512i v = _mm512_loadu_si512((const void *)(w + k));
            s0 = _mm512_dpbusd_epi32(s0, _mm512_loadu_si512((const void *)(a + k)), v);
            s1 = _mm512_dpbusd_epi32(s1, _mm512_loadu_si512((const void *)(a + step + k)), v);
            s2 = _mm512_dpbusd_epi32(s2, _mm512_loadu_si512((const void *)(a + 2 * step + k)), v);
            s3 = _mm512_dpbusd_epi32(s3, _mm512_loadu_si512((const void *)(b + k)), v);
        }
    }
    if (rest) {
        const __m512i v = _mm512_maskz_loadu_epi8(rest, (const void *)(w + k));
        if (count == 4) {
            s0 = _mm512_dpbusd_epi32(s0, _mm512_maskz_loadu_epi8(rest, (const void *)(a + k)), v);
            s1 = _mm512_dpbusd_epi32(s1, _mm512_maskz_loadu_epi8(rest, (const void *)(a + step + k)), v);
            s2 = _mm512_dpbusd_epi32(s2, _mm512_maskz_loadu_epi8(rest, (const void *)(a + 2 * step + k)), v);
        }
        s3 = _mm512_dpbusd_epi32(s3, _mm512_maskz_loadu_epi8(rest, (const void *)(b + k)), v);
    }
    if (count == 4) {
        sums[0] += _mm512_reduce_add_epi32(s0);
        sums[1] += _mm512_reduce_add_epi32(s1);
        sums[2] += _mm512_reduce_add_epi32(s2);
    }
    sums[count - 1] += _mm512_reduce_add_epi32(s3);
#else
#if defined(__AVX2__)
    __m256i s[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    for (; k + 16 <= n; k += 16) {
        const __m256i v = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(w + k)));
        for (int32_t c = 0; c < count; c++) {
            const __m128i x = _mm_loadu_si128((const __m128i *)(const void *)(a + c * step + k));
            s[c] = _mm256_add_epi32(s[c], _mm256_madd_epi16(_mm256_cvtepu8_epi16(x), v));
        }
    }
    for (int32_t c = 0; c < count; c++) {
        __m128i t = _mm_add_epi32(_mm256_castsi256_si128(s[c]), _mm256_extracti128_si256(s[c], 1));
        t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
        sums[c] += _mm_cvtsi128_si32(_mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1)));
    }
#elif defined(__SSE2__)
    const __m128i zero = _mm_setzero_si128();
    __m128i s[4] = {zero, zero, zero, zero};
    for (; k + 16 <= n; k += 16) {
        const __m128i v = _mm_loadu_si128((const __m128i *)(const void *)(w + k));
        const __m128i v0 = _mm_srai_epi16(_mm_unpacklo_epi8(zero, v), 8);
        const __m128i v1 = _mm_srai_epi16(_mm_unpackhi_epi8(zero, v), 8);
        for (int32_t c = 0; c < count; c++) {
            const __m128i x = _mm_loadu_si128((const __m128i *)(const void *)(a + c * step + k));
            s[c] = _mm_add_epi32(s[c], _mm_madd_epi16(_mm_unpacklo_epi8(x, zero), v0));
            s[c] = _mm_add_epi32(s[c], _mm_madd_epi16(_mm_unpackhi_epi8(x, zero), v1));
        }
    }
    for (int32_t c = 0; c < count; c++) {
        const __m128i t = _mm_add_epi32(s[c], _mm_shuffle_epi32(s[c], 0x4e));
        sums[c] += _mm_cvtsi128_si32(_mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1)));
    }
#elif defined(__ARM_NEON)
    int32x4_t s[4] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};
    for (; k + 8 <= n; k += 8) {
        const int16x8_t v = vmovl_s8(vld1_s8(w + k));
        for (int32_t c = 0; c < count; c++) {
            const int16x8_t x = vreinterpretq_s16_u16(vmovl_u8(vld1_u8(a + c * step + k)));
            s[c] = vmlal_s16(s[c], vget_low_s16(x), vget_low_s16(v));
            s[c] = vmlal_s16(s[c], vget_high_s16(x), vget_high_s16(v));
        }
    }
    for (int32_t c = 0; c < count; c++) {
        const int32x2_t t = vadd_s32(vget_low_s32(s[c]), vget_high_s32(s[c]));
        sums[c] += vget_lane_s32(t, 0) + vget_lane_s32(t, 1);
    }
#endif
    for (int32_t c = 0; c < count; c++) {
        const uint8_t *row = a + c * step;
        int32_t t = 0;
        for (int32_t j = k; j < n; j++) t += (int32_t)row[j] * w[j];
        sums[c] += t;
    }
#endif
}

static inline void model_unpack2_int8_t(const uint8_t *MODEL_RESTRICT from, int8_t *MODEL_RESTRICT to, int32_t groups, int32_t start, int32_t step)
{
    for (int32_t g = 0; g < groups; g++, from += 2, to += 8) {
        to[0] = (int8_t)(start + step * (int32_t)(((uint32_t)from[0]) >> 0 & 3u));
        to[1] = (int8_t)(start + step * (int32_t)(((uint32_t)from[0]) >> 2 & 3u));
        to[2] = (int8_t)(start + step * (int32_t)(((uint32_t)from[0]) >> 4 & 3u));
        to[3] = (int8_t)(start + step * (int32_t)(((uint32_t)from[0]) >> 6 & 3u));
        to[4] = (int8_t)(start + step * (int32_t)(((uint32_t)from[1]) >> 0 & 3u));
        to[5] = (int8_t)(start + step * (int32_t)(((uint32_t)from[1]) >> 2 & 3u));
        to[6] = (int8_t)(start + step * (int32_t)(((uint32_t)from[1]) >> 4 & 3u));
        to[7] = (int8_t)(start + step * (int32_t)(((uint32_t)from[1]) >> 6 & 3u));
    }
}

/* 0: linear */
MODEL_STEP model_step0(const int8_t *MODEL_RESTRICT x, uint8_t *MODEL_RESTRICT y, int8_t *MODEL_RESTRICT row)
{
    const int32_t p = 0;
    const int32_t n = 1;
    for (int32_t o = 0; o < 5; o++) {
        model_unpack1_int8_t(model_data0 + (o) * 1, row, 1, -1, 2);
        const int8_t *w = row;
        int32_t t = 0;
        for (; t < n; t++) {
            const int8_t *a = x + t * 4;
            int32_t s[1] = {model_data1[o]};
            model_dots_int8_t(a, 4, w, 4, 1, s);
            {
                int32_t q = ((int32_t)(s[0]) + 64) >> 7;
                q = q < 0 ? 0 : q;
                q = q > 3 ? 3 : q;
                y[(p + t) * 5 + o] = (uint8_t)(q);
            }
        }
    }
}

/* 2: linear */
MODEL_STEP model_step1(const uint8_t *MODEL_RESTRICT x, uint8_t *MODEL_RESTRICT y, int8_t *MODEL_RESTRICT row)
{
    const int32_t p = 0;
    const int32_t n = 1;
    for (int32_t o = 0; o < 4; o++) {
        model_unpack1_int8_t(model_data4 + (o) * 1, row, 1, -1, 2);
        const int8_t *w = row;
        int32_t t = 0;
        for (; t < n; t++) {
            const uint8_t *a = x + t * 5;
            int32_t s[1] = {model_data5[o]};
            model_dots_uint8_t(a, 5, w, 5, 1, s);
            {
                int32_t q = ((int32_t)(s[0]) + model_data2[o]) >> model_data3[o];
                q = q < 0 ? 0 : q;
                q = q > 1 ? 1 : q;
                y[(p + t) * 4 + o] = (uint8_t)(q);
            }
        }
    }
}

/* 4: linear */
MODEL_STEP model_step2(const uint8_t *MODEL_RESTRICT x, int8_t *MODEL_RESTRICT y, int8_t *MODEL_RESTRICT row)
{
    const int32_t p = 0;
    const int32_t n = 1;
    for (int32_t o = 0; o < 2; o++) {
        model_unpack2_int8_t(model_data6 + (o) * 1, row, 1, -1, 1);
        const int8_t *w = row;
        int32_t t = 0;
        for (; t < n; t++) {
            const uint8_t *a = x + t * 4;
            int32_t s[1] = {model_data7[o]};
            model_dots_uint8_t(a, 4, w, 4, 1, s);
            {
                y[(p + t) * 2 + o] = (int8_t)(s[0]);
            }
        }
    }
}

/* multiply */
MODEL_STEP model_step3(const int8_t *MODEL_RESTRICT x0, int8_t *MODEL_RESTRICT y)
{
    for (int32_t i0 = 0; i0 < 2; i0++) {
        y[i0] = (int8_t)((int32_t)x0[i0] * model_data8[i0]);
    }
}

/* output */
MODEL_STEP model_step4(const int8_t *MODEL_RESTRICT x0, int32_t *MODEL_RESTRICT y)
{
    for (int32_t i0 = 0; i0 < 2; i0++) {
        y[i0] = (int32_t)(x0[i0]);
    }
}

static inline void model_run(const int8_t *input, int32_t *output)
{
    model_step0(input, model_pool8 + 64, (int8_t *)(model_pool8 + 0));
    model_step1(model_pool8 + 64, model_pool8 + 128, (int8_t *)(model_pool8 + 0));
    model_step2(model_pool8 + 128, (int8_t *)(model_pool8 + 64), (int8_t *)(model_pool8 + 0));
    model_step3((int8_t *)(model_pool8 + 64), (int8_t *)(model_pool8 + 0));
    model_step4((int8_t *)(model_pool8 + 0), output);
}

#if defined(__cplusplus)
}
#endif
#endif /* PROBQ_MODEL_H */
