"""A dot product of bytes in C meets the same weights with one or four windows, in the instructions there are."""

from probq.export.c.code.values import U8, Type

# sums[c] += sum over k of a[c * step + k] w[k], for c below count, which is 1 or 4.
_DOTS = """\
static inline void NAME(const TYPE *restrict a, int32_t step, const int8_t *restrict w, int32_t n, int32_t count,
                        int32_t *restrict sums)
{
    int32_t k = 0;
#if USE_VNNI && defined(__AVX512VNNI__) && defined(__AVX512BW__)
    const __mmask64 rest = n % 64 ? UINT64_MAX >> (64 - n % 64) : 0;
    const TYPE *b = a + (count - 1) * step; /* the last window */
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
            s[c] = _mm256_add_epi32(s[c], _mm256_madd_epi16(_mm256_WIDEN(x), v));
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
            s[c] = _mm_add_epi32(s[c], _mm_madd_epi16(LOW, v0));
            s[c] = _mm_add_epi32(s[c], _mm_madd_epi16(HIGH, v1));
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
            const int16x8_t x = NEON;
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
        const TYPE *row = a + c * step;
        int32_t t = 0;
        for (int32_t j = k; j < n; j++) t += (int32_t)row[j] * w[j];
        sums[c] += t;
    }
#endif
}
"""


def dots(kind: Type) -> str:
    """Return the function's text for inputs of a type of 8 bits."""
    unsigned = kind == U8
    pieces = {
        "TYPE": kind.name,
        "USE_VNNI": "1" if unsigned else "0",
        "WIDEN": "cvtepu8_epi16" if unsigned else "cvtepi8_epi16",
        "LOW": "_mm_unpacklo_epi8(x, zero)" if unsigned else "_mm_srai_epi16(_mm_unpacklo_epi8(zero, x), 8)",
        "HIGH": "_mm_unpackhi_epi8(x, zero)" if unsigned else "_mm_srai_epi16(_mm_unpackhi_epi8(zero, x), 8)",
        "NEON": "vreinterpretq_s16_u16(vmovl_u8(vld1_u8(a + c * step + k)))"
        if unsigned
        else "vmovl_s8(vld1_s8(a + c * step + k))",
    }
    text = _DOTS.replace("__ARM_NEON", "__ARM_@")
    for name, piece in pieces.items():
        text = text.replace(name, piece)
    return text.replace("__ARM_@", "__ARM_NEON")
