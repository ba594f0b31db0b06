"""Generated C programs have these functions in common: products of pairs, bits packed and counted."""

POPCOUNT = """\
static inline int32_t NAME(uint64_t v)
{
#if defined(__GNUC__) && (defined(__POPCNT__) || defined(__aarch64__))
    return (int32_t)__builtin_popcountll(v);
#else
    v -= v >> 1 & UINT64_C(0x5555555555555555);
    v = (v & UINT64_C(0x3333333333333333)) + (v >> 2 & UINT64_C(0x3333333333333333));
    v = (v + (v >> 4)) & UINT64_C(0x0f0f0f0f0f0f0f0f);
    return (int32_t)(v * UINT64_C(0x0101010101010101) >> 56);
#endif
}
"""

# Bit `plane` of n codes, eight to a byte, least significant first.
PACK = """\
static inline void NAME(const uint8_t *restrict from, int32_t n, int32_t plane, uint8_t *restrict to)
{
    int32_t i = 0;
#if defined(__SSE2__)
    for (; i + 16 <= n; i += 16) {
        const __m128i codes = _mm_loadu_si128((const __m128i *)(const void *)(from + i));
        const uint32_t bits = (uint32_t)_mm_movemask_epi8(_mm_sll_epi16(codes, _mm_cvtsi32_si128(7 - plane)));
        to[i / 8] = (uint8_t)(bits & 255u);
        to[i / 8 + 1] = (uint8_t)(bits >> 8);
    }
#endif
    for (; i < n; i += 8) {
        uint32_t bits = 0;
        for (int32_t j = 0; j < 8 && i + j < n; j++) bits |= ((uint32_t)from[i + j] >> plane & 1u) << j;
        to[i / 8] = (uint8_t)bits;
    }
}
"""

# sums[o] = sum over planes a, b of 2^(a + b) popcount(weights of plane a and output o, and x of plane b).
# The weights lie as [plane][word][output]; the order of bytes in a word does not matter to a count.
COUNT = """\
static inline void NAME(const uint64_t *restrict x, const uint8_t *restrict w, int32_t x_planes, int32_t w_planes,
                        int32_t words, int32_t outputs, int32_t *restrict sums)
{
    int32_t o = 0;
#if defined(__AVX512VPOPCNTDQ__) && defined(__AVX512F__)
    for (; o + 8 <= outputs; ) {
        const int32_t wide = outputs - o >= 32 ? 4 : 1;
        __m512i s[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
        for (int32_t level = x_planes + w_planes - 2; level >= 0; level--) {
            for (int32_t j = 0; j < 4; j++) s[j] = _mm512_add_epi64(s[j], s[j]);
            for (int32_t a = 0; a < w_planes; a++) {
                const int32_t b = level - a;
                if (b < 0 || b >= x_planes) continue;
                const uint8_t *row = w + 8 * ((ptrdiff_t)a * words * outputs + o);
                if (wide == 4) {
                    for (int32_t k = 0; k < words; k++, row += 8 * (ptrdiff_t)outputs) {
                        const __m512i v = _mm512_set1_epi64((long long)x[b * words + k]);
                        for (int32_t j = 0; j < 4; j++)
                            s[j] = _mm512_add_epi64(s[j], _mm512_popcnt_epi64(
                                _mm512_and_si512(v, _mm512_loadu_si512((const void *)(row + 64 * j)))));
                    }
                } else {
                    for (int32_t k = 0; k < words; k++, row += 8 * (ptrdiff_t)outputs) {
                        const __m512i v = _mm512_set1_epi64((long long)x[b * words + k]);
                        s[0] = _mm512_add_epi64(s[0], _mm512_popcnt_epi64(
                            _mm512_and_si512(v, _mm512_loadu_si512((const void *)row))));
                    }
                }
            }
        }
        for (int32_t j = 0; j < wide; j++, o += 8)
            _mm256_storeu_si256((__m256i *)(void *)(sums + o), _mm512_cvtepi64_epi32(s[j]));
    }
#elif defined(__AVX2__)
    const __m256i nibble = _mm256_set1_epi8(15), zero = _mm256_setzero_si256();
    const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,
                                           0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    for (; o + 4 <= outputs; o += 4) {
        __m256i s = zero;
        for (int32_t level = x_planes + w_planes - 2; level >= 0; level--) {
            s = _mm256_add_epi64(s, s);
            for (int32_t a = 0; a < w_planes; a++) {
                const int32_t b = level - a;
                if (b < 0 || b >= x_planes) continue;
                for (int32_t k = 0; k < words; k++) {
                    const uint8_t *at = w + 8 * (((ptrdiff_t)a * words + k) * outputs + o);
                    const __m256i v = _mm256_and_si256(_mm256_set1_epi64x((long long)x[b * words + k]),
                                                       _mm256_loadu_si256((const __m256i *)(const void *)at));
                    const __m256i low = _mm256_shuffle_epi8(table, _mm256_and_si256(v, nibble));
                    const __m256i high = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble));
                    s = _mm256_add_epi64(s, _mm256_sad_epu8(_mm256_add_epi8(low, high), zero));
                }
            }
        }
        const __m256i even = _mm256_permutevar8x32_epi32(s, _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6));
        _mm_storeu_si128((__m128i *)(void *)(sums + o), _mm256_castsi256_si128(even));
    }
#elif defined(__ARM_NEON) && defined(__aarch64__)
    for (; o + 2 <= outputs; o += 2) {
        uint64x2_t s = vdupq_n_u64(0);
        for (int32_t level = x_planes + w_planes - 2; level >= 0; level--) {
            s = vaddq_u64(s, s);
            for (int32_t a = 0; a < w_planes; a++) {
                const int32_t b = level - a;
                if (b < 0 || b >= x_planes) continue;
                for (int32_t k = 0; k < words; k++) {
                    const uint8x16_t v = vld1q_u8(w + 8 * (((ptrdiff_t)a * words + k) * outputs + o));
                    const uint8x16_t c = vcntq_u8(vandq_u8(v, vreinterpretq_u8_u64(vdupq_n_u64(x[b * words + k]))));
                    s = vpadalq_u32(s, vpaddlq_u16(vpaddlq_u8(c)));
                }
            }
        }
        sums[o] = (int32_t)vgetq_lane_u64(s, 0);
        sums[o + 1] = (int32_t)vgetq_lane_u64(s, 1);
    }
#endif
    const int32_t first = o;
    for (o = first; o < outputs; o++) sums[o] = 0;
    for (int32_t level = x_planes + w_planes - 2; level >= 0; level--) {
        for (o = first; o < outputs; o++) sums[o] *= 2;
        for (int32_t a = 0; a < w_planes; a++) {
            const int32_t b = level - a;
            if (b < 0 || b >= x_planes) continue;
            for (int32_t k = 0; k < words; k++) {
                const uint64_t v = x[b * words + k];
                const uint8_t *row = w + 8 * ((ptrdiff_t)a * words + k) * outputs;
                for (o = first; o < outputs; o++) {
                    uint64_t word;
                    memcpy(&word, row + 8 * (ptrdiff_t)o, 8);
                    sums[o] += POPCOUNT(word & v);
                }
            }
        }
    }
}
"""

# sums[o] += sum over runs r and pairs j of x[at[r] + 2 j] tile[r][j][o][0] + x[at[r] + 2 j + 1] tile[r][j][o][1];
# the number of outputs is a multiple of 16.
PAIRS = """\
static inline void NAME(const int16_t *restrict x, const int32_t *restrict at, int32_t runs, int32_t pairs,
                        const int16_t *restrict tile, int32_t outputs, int32_t *restrict sums)
{
    for (int32_t o = 0; o < outputs; o += 16) {
        const int16_t *w = tile + 2 * o;
#if defined(__AVX512BW__)
        __m512i s = _mm512_loadu_si512((const void *)(sums + o));
        for (int32_t r = 0; r < runs; r++)
            for (int32_t j = 0; j < pairs; j++, w += 2 * outputs) {
                int32_t pair;
                memcpy(&pair, x + at[r] + 2 * j, 4);
                const __m512i y = _mm512_madd_epi16(_mm512_set1_epi32(pair), _mm512_loadu_si512((const void *)w));
                s = _mm512_add_epi32(s, y);
            }
        _mm512_storeu_si512((void *)(sums + o), s);
#elif defined(__AVX2__)
        __m256i s[2];
        for (int32_t l = 0; l < 2; l++) s[l] = _mm256_loadu_si256((const __m256i *)(const void *)(sums + o + 8 * l));
        for (int32_t r = 0; r < runs; r++)
            for (int32_t j = 0; j < pairs; j++, w += 2 * outputs) {
                int32_t pair;
                memcpy(&pair, x + at[r] + 2 * j, 4);
                for (int32_t l = 0; l < 2; l++)
                    s[l] = _mm256_add_epi32(s[l], _mm256_madd_epi16(_mm256_set1_epi32(pair),
                        _mm256_loadu_si256((const __m256i *)(const void *)(w + 16 * l))));
            }
        for (int32_t l = 0; l < 2; l++) _mm256_storeu_si256((__m256i *)(void *)(sums + o + 8 * l), s[l]);
#elif defined(__SSE2__)
        __m128i s[4];
        for (int32_t l = 0; l < 4; l++) s[l] = _mm_loadu_si128((const __m128i *)(const void *)(sums + o + 4 * l));
        for (int32_t r = 0; r < runs; r++)
            for (int32_t j = 0; j < pairs; j++, w += 2 * outputs) {
                int32_t pair;
                memcpy(&pair, x + at[r] + 2 * j, 4);
                for (int32_t l = 0; l < 4; l++)
                    s[l] = _mm_add_epi32(s[l], _mm_madd_epi16(_mm_set1_epi32(pair),
                        _mm_loadu_si128((const __m128i *)(const void *)(w + 8 * l))));
            }
        for (int32_t l = 0; l < 4; l++) _mm_storeu_si128((__m128i *)(void *)(sums + o + 4 * l), s[l]);
#else
        for (int32_t r = 0; r < runs; r++)
            for (int32_t j = 0; j < pairs; j++, w += 2 * outputs) {
                const int32_t a = x[at[r] + 2 * j], b = x[at[r] + 2 * j + 1];
                for (int32_t l = 0; l < 16; l++) sums[o + l] += a * w[2 * l] + b * w[2 * l + 1];
            }
#endif
    }
}
"""
