"""C multiplies channels with a kernel of their own here, eight of them and two places of the window at a time."""

from probq.export.c.code.values import U8, Type

# sums[c] = bias[c] + sum over pairs r of x[at[2 r] + c] w[r][c][0] + x[at[2 r + 1] + c] w[r][c][1].
_CHANNELS = """\
static inline void NAME(const TYPE *restrict x, const int32_t *restrict at, int32_t pairs, int32_t channels,
                        const int16_t *restrict w, const int32_t *restrict bias, int32_t *restrict sums)
{
#if defined(__SSE2__)
    const int32_t eights = channels - channels % 8;
#if !defined(__AVX2__)
    const __m128i zero = _mm_setzero_si128();
#endif
    for (int32_t c = 0; c < eights; c += 8) {
#if defined(__AVX2__)
        __m256i s = _mm256_loadu_si256((const __m256i *)(const void *)(bias + c));
#else
        __m128i s = _mm_loadu_si128((const __m128i *)(const void *)(bias + c));
        __m128i t = _mm_loadu_si128((const __m128i *)(const void *)(bias + c + 4));
#endif
        for (int32_t r = 0; r < pairs; r++) {
            const __m128i a = _mm_loadl_epi64((const __m128i *)(const void *)(x + at[2 * r] + c));
            const __m128i b = _mm_loadl_epi64((const __m128i *)(const void *)(x + at[2 * r + 1] + c));
            const __m128i y = _mm_unpacklo_epi8(a, b);
            const int16_t *v = w + 2 * (r * channels + c);
#if defined(__AVX2__)
            const __m256i u = _mm256_loadu_si256((const __m256i *)(const void *)v);
            s = _mm256_add_epi32(s, _mm256_madd_epi16(WIDEN(y), u));
#else
            s = _mm_add_epi32(s, _mm_madd_epi16(LOW, _mm_loadu_si128((const __m128i *)(const void *)v)));
            t = _mm_add_epi32(t, _mm_madd_epi16(HIGH, _mm_loadu_si128((const __m128i *)(const void *)(v + 8))));
#endif
        }
#if defined(__AVX2__)
        _mm256_storeu_si256((__m256i *)(void *)(sums + c), s);
#else
        _mm_storeu_si128((__m128i *)(void *)(sums + c), s);
        _mm_storeu_si128((__m128i *)(void *)(sums + c + 4), t);
#endif
    }
    for (int32_t c = eights; c < channels; c++) {
        int32_t s = bias[c];
        for (int32_t r = 0; r < pairs; r++) {
            const int16_t *v = w + 2 * (r * channels + c);
            s += x[at[2 * r] + c] * v[0] + x[at[2 * r + 1] + c] * v[1];
        }
        sums[c] = s;
    }
#else
    for (int32_t c = 0; c < channels; c++) sums[c] = bias[c];
    for (int32_t r = 0; r < pairs; r++) {
        const TYPE *a = x + at[2 * r], *b = x + at[2 * r + 1];
        const int16_t *v = w + 2 * r * channels;
        for (int32_t c = 0; c < channels; c++) sums[c] += a[c] * v[2 * c] + b[c] * v[2 * c + 1];
    }
#endif
}
"""


def channels(kind: Type) -> str:
    """Return the function's text for inputs of a type of 8 bits."""
    unsigned = kind == U8
    pieces = {
        "TYPE": kind.name,
        "WIDEN": "_mm256_cvtepu8_epi16" if unsigned else "_mm256_cvtepi8_epi16",
        "LOW": "_mm_unpacklo_epi8(y, zero)" if unsigned else "_mm_srai_epi16(_mm_unpacklo_epi8(zero, y), 8)",
        "HIGH": "_mm_unpackhi_epi8(y, zero)" if unsigned else "_mm_srai_epi16(_mm_unpackhi_epi8(zero, y), 8)",
    }
    text = _CHANNELS
    for name, piece in pieces.items():
        text = text.replace(name, piece)
    return text
