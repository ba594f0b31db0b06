"""Eight windows meet the weights of sixteen outputs in C, four neighbours at a time, in the instructions there are."""

from collections.abc import Iterable, Iterator

from probq.export.c.code.values import U8, Type

WINDOWS, OUTPUTS, NEIGHBOURS = 8, 16, 4

# to[k] = w[k] for n weights, a multiple of 16, where the processor multiplies 16 bits.
_WIDEN = """\
static inline void NAME(const int8_t *restrict w, int32_t n)
{
#if USE_VNNI && defined(__AVX512VNNI__) && defined(__AVX512F__)
    (void)w, (void)n, (void)WIDE;
#elif defined(__SSE2__)
    const __m128i zero = _mm_setzero_si128();
    for (int32_t k = 0; k < n; k += 16) {
        const __m128i v = _mm_loadu_si128((const __m128i *)(const void *)(w + k));
        __m128i *to = (__m128i *)(void *)(WIDE + k);
        _mm_storeu_si128(to, _mm_srai_epi16(_mm_unpacklo_epi8(zero, v), 8));
        _mm_storeu_si128(to + 1, _mm_srai_epi16(_mm_unpackhi_epi8(zero, v), 8));
    }
#else
    (void)w, (void)n;
#endif
}
"""

# Bytes as 16 bits: signed, and unsigned.
_AVX = ("_mm256_srai_epi16(_mm256_unpacklo_epi8(zero, {0}), 8)", "_mm256_unpacklo_epi8({0}, zero)")
_SSE = ("_mm_srai_epi16(_mm_unpacklo_epi8(zero, y), 8)", "_mm_unpacklo_epi8(y, zero)")

# sums[j][o] = bias[o] + sum over q and i of x[j][at[q] + i] w[q][o][i].
_BLOCK = """\
STEP NAME(const TYPE *const *x, const int32_t *restrict at, int32_t quads, const int8_t *restrict w,
          const int32_t *restrict bias, int32_t *restrict sums)
{
#if USE_VNNI && defined(__AVX512VNNI__) && defined(__AVX512F__)
    const __m512i first = _mm512_loadu_si512((const void *)bias);
    @8 const TYPE *const y@ = x[@];
    @8 __m512i s@ = first;
    int32_t q = 0;
    do {
        const __m512i v = _mm512_loadu_si512((const void *)(w + 64 * q));
        const int32_t k = at[q];
        int32_t four;
        @8 memcpy(&four, y@ + k, 4); s@ = _mm512_dpbusd_epi32(s@, _mm512_set1_epi32(four), v);
    } while (++q < quads);
    @8 _mm512_storeu_si512((void *)(sums + 16 * @), s@);
#elif defined(__AVX2__)
    const __m256i zero = _mm256_setzero_si256();
    (void)w;
    for (int32_t j = 0; j < 8; j += 2, sums += 32) {
        const TYPE *const x0 = x[j], *const x1 = x[j + 1];
        @4 __m256i s@ = zero, t@ = zero;
        int32_t q = 0;
        do {
            const __m256i *v = (const __m256i *)(const void *)(WIDE + 64 * q);
            const int32_t k = at[q];
            int32_t four;
            memcpy(&four, x0 + k, 4);
            const __m256i y = _mm256_set1_epi32(four), a = AVX_FIRST;
            memcpy(&four, x1 + k, 4);
            const __m256i z = _mm256_set1_epi32(four), b = AVX_SECOND;
            @4 const __m256i v@ = _mm256_loadu_si256(v + @);
            @4 s@ = _mm256_add_epi32(s@, _mm256_madd_epi16(a, v@)); t@ = _mm256_add_epi32(t@, _mm256_madd_epi16(b, v@));
        } while (++q < quads);
        const __m256i first = _mm256_loadu_si256((const __m256i *)(const void *)bias);
        const __m256i next = _mm256_loadu_si256((const __m256i *)(const void *)(bias + 8));
        __m256i *to = (__m256i *)(void *)sums;
        _mm256_storeu_si256(to, _mm256_add_epi32(first, _mm256_permute4x64_epi64(_mm256_hadd_epi32(s0, s1), 0xd8)));
        _mm256_storeu_si256(to + 1, _mm256_add_epi32(next, _mm256_permute4x64_epi64(_mm256_hadd_epi32(s2, s3), 0xd8)));
        _mm256_storeu_si256(to + 2, _mm256_add_epi32(first, _mm256_permute4x64_epi64(_mm256_hadd_epi32(t0, t1), 0xd8)));
        _mm256_storeu_si256(to + 3, _mm256_add_epi32(next, _mm256_permute4x64_epi64(_mm256_hadd_epi32(t2, t3), 0xd8)));
    }
#elif defined(__SSE2__)
    const __m128i zero = _mm_setzero_si128();
    (void)w;
    for (int32_t j = 0; j < 8; j++, sums += 16) {
        @4 __m128i s@ = zero, t@ = zero;
        int32_t q = 0;
        do {
            const __m128i *v = (const __m128i *)(const void *)(WIDE + 64 * q);
            int32_t four;
            memcpy(&four, x[j] + at[q], 4);
            __m128i y = _mm_set1_epi32(four);
            y = SSE_FIRST;
            @4 s@ = _mm_add_epi32(s@, _mm_madd_epi16(y, _mm_loadu_si128(v + 2 * @)));
            @4 t@ = _mm_add_epi32(t@, _mm_madd_epi16(y, _mm_loadu_si128(v + 2 * @ + 1)));
        } while (++q < quads);
        const __m128i *first = (const __m128i *)(const void *)bias;
        __m128i *to = (__m128i *)(void *)sums;
        @4 const __m128 a@ = _mm_castsi128_ps(s@), b@ = _mm_castsi128_ps(t@);
        @4 s@ = _mm_castps_si128(_mm_shuffle_ps(a@, b@, 0x88));
        @4 t@ = _mm_castps_si128(_mm_shuffle_ps(a@, b@, 0xdd));
        @4 _mm_storeu_si128(to + @, _mm_add_epi32(_mm_loadu_si128(first + @), _mm_add_epi32(s@, t@)));
    }
#else
    for (int32_t j = 0; j < 8; j++, sums += 16) {
        for (int32_t o = 0; o < 16; o++) sums[o] = bias[o];
        for (int32_t q = 0; q < quads; q++) {
            const TYPE *y = x[j] + at[q];
            const int8_t *v = w + 64 * q;
            const int32_t y0 = y[0], y1 = y[1], y2 = y[2], y3 = y[3];
            for (int32_t o = 0; o < 16; o++)
                sums[o] += y0 * v[4 * o] + y1 * v[4 * o + 1] + y2 * v[4 * o + 2] + y3 * v[4 * o + 3];
        }
    }
#endif
}
"""


def widen(kind: Type, wide: str) -> str:
    """Return the text of the function that writes a block's weights to the array `wide`, if they are read there."""
    return _WIDEN.replace("WIDE", wide).replace("USE_VNNI", str(int(kind == U8)))


def block(kind: Type, step: str, wide: str) -> str:
    """Return the text of the function that multiplies a block.

    Args:
        kind: type of the inputs, of 8 bits.
        step: C macro that stands before the function's name.
        wide: C name of the array that has the weights in 16 bits.
    """
    unsigned = kind == U8
    words = {
        "AVX_FIRST": _AVX[unsigned].format("y"),
        "AVX_SECOND": _AVX[unsigned].format("z"),
        "SSE_FIRST": _SSE[unsigned],
        "STEP": step, "TYPE": kind.name, "WIDE": wide, "USE_VNNI": str(int(unsigned)),
    }  # fmt: skip
    text = "\n".join([*_repeated(_BLOCK.splitlines()), ""])
    for word, piece in words.items():
        text = text.replace(word, piece)
    return text


def _repeated(lines: Iterable[str]) -> Iterator[str]:
    """Yield lines; one that begins with `@8` comes eight times, with 0 to 7 for each further `@`."""
    # Compilers keep variables of their own in registers, elements of arrays in loops often not.
    for line in lines:
        space, text = line[: len(line) - len(line.lstrip())], line.lstrip()
        count = int(text[1]) if text.startswith("@") else 1
        yield from (space + text[3 * (count > 1) :].replace("@", str(k)) for k in range(count))
