// Matrix products in half precision on processors that multiply halves (AVX512-FP16), summed in floats.
//
// Such a processor multiplies twice as many halves as floats a cycle (and, where it has no matrix unit, four times as many
// as bfloat16s). Halves have 11 bits and reach from 2^-14 to 65504, so
//
// * each row of A and each column of B is multiplied by a power of two that takes its largest number to between 8 and 16;
//   what is 2^-17 of the largest still has all of its bits. A row's result depends on no other row;
// * sums of halves are short: after RUN products they are added to floats. The rounding of a run is about 2^-10 of its
//   size, less than what rounding the operands to bfloat16 (2^-9 each) has cost before.

#pragma once

#ifdef __AVX512FP16__
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace halves {

constexpr int TILE = 12;    // rows; with two registers of columns each they are 24 sums in registers
constexpr int PANEL = 64;   // columns
constexpr int RUN = 64;     // products summed as halves
constexpr int WIDTH = 16;   // floats of a register
constexpr int SLACK = WIDTH;
constexpr int AHEAD = 8;    // lines of a panel that are fetched before they are needed

enum Kind { FLOAT = 0, BF16 = 1, HALF = 2 };

inline int64_t size_of(int kind) { return kind == FLOAT ? 4 : 2; }

// Sixteen numbers of any kind as floats; the first `n` of them, zeros behind.
inline __m512 load(const void* from, int64_t at, int kind) {
    if (kind == FLOAT) return _mm512_loadu_ps(static_cast<const float*>(from) + at);
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const uint16_t*>(from) + at));
    if (kind == HALF) return _mm512_cvtxph_ps((__m256h)x);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

inline __mmask16 first(int64_t n) { return n >= WIDTH ? __mmask16(0xffff) : __mmask16((1u << (n > 0 ? n : 0)) - 1); }

inline __m512 load_first(const void* from, int64_t at, int kind, int64_t n) {
    if (n >= WIDTH) return load(from, at, kind);
    const __mmask16 mask = first(n);
    if (kind == FLOAT) return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(from) + at);
    const __m256i x = _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(from) + at);
    if (kind == HALF) return _mm512_cvtxph_ps((__m256h)x);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

inline void store_first(void* to, int64_t at, int kind, int64_t n, __m512 x) {
    const __mmask16 mask = first(n);
    if (kind == FLOAT) {
        _mm512_mask_storeu_ps(static_cast<float*>(to) + at, mask, x);
    } else if (kind == HALF) {
        _mm256_mask_storeu_epi16(static_cast<uint16_t*>(to) + at, mask, (__m256i)_mm512_cvtxps_ph(x));
    } else {
        _mm256_mask_storeu_epi16(static_cast<uint16_t*>(to) + at, mask, (__m256i)_mm512_cvtneps_pbh(x));
    }
}

// e^x by a polynomial of 2^f, f within a half (Cephes' exp2f), error some units in the last place.
inline __m512 exponential(__m512 x) {
    const __m512 t = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
    const __m512 n = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 f = _mm512_sub_ps(t, n);
    const float terms[] = {1.339887440266574e-3f, 9.618437357674640e-3f, 5.550332471162809e-2f, 2.402264791363012e-1f,
                           6.931472028550421e-1f, 1.0f};
    __m512 p = _mm512_set1_ps(1.535336188319500e-4f);
    for (int i = 0; i < 6; ++i) p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(terms[i]));
    return _mm512_scalef_ps(p, n);
}

// σ(1.702 x), of which quick-GELU is x times.
inline __m512 gate_of(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    return _mm512_div_ps(one, _mm512_add_ps(one, exponential(_mm512_mul_ps(x, _mm512_set1_ps(-1.702f)))));
}

inline __m512 quick_gelu(__m512 x) { return _mm512_mul_ps(x, gate_of(x)); }

inline __m512 quick_gelu_slope(__m512 x) {
    const __m512 gate = gate_of(x);
    const __m512 rest = _mm512_mul_ps(_mm512_mul_ps(_mm512_set1_ps(1.702f), x), _mm512_fnmadd_ps(gate, gate, gate));
    return _mm512_add_ps(gate, rest);
}

// The powers of two that take these magnitudes (as whole numbers) to between 8 and 16; 1 for nothing, infinities and NaN.
inline __m512 scales_for(__m512i largest) {
    const __m512i exponent = _mm512_srli_epi32(largest, 23);
    const __m512i wanted = _mm512_min_epi32(_mm512_sub_epi32(_mm512_set1_epi32(127 + 3 + 127), exponent), _mm512_set1_epi32(253));
    const __mmask16 usual = _mm512_cmplt_epu32_mask(_mm512_sub_epi32(exponent, _mm512_set1_epi32(1)), _mm512_set1_epi32(254));
    return _mm512_mask_blend_ps(usual, _mm512_set1_ps(1.0f), _mm512_castsi512_ps(_mm512_slli_epi32(wanted, 23)));
}

inline __m512 inverse(__m512 scales) { return _mm512_div_ps(_mm512_set1_ps(1.0f), scales); }

// Columns become rows: x[i] lane j <-> x[j] lane i.
inline void transpose(__m512 x[WIDTH]) {
    __m512 t[WIDTH];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        t[2 * i] = _mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const __m512d a = _mm512_castps_pd(t[4 * i]), b = _mm512_castps_pd(t[4 * i + 1]);
        const __m512d c = _mm512_castps_pd(t[4 * i + 2]), d = _mm512_castps_pd(t[4 * i + 3]);
        x[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
        x[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
        x[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
        x[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_f32x4(x[i], x[4 + i], 0x88);
        t[4 + i] = _mm512_shuffle_f32x4(x[i], x[4 + i], 0xdd);
        t[8 + i] = _mm512_shuffle_f32x4(x[8 + i], x[12 + i], 0x88);
        t[12 + i] = _mm512_shuffle_f32x4(x[8 + i], x[12 + i], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        x[i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0x88);
        x[8 + i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0xdd);
        x[4 + i] = _mm512_shuffle_f32x4(t[4 + i], t[12 + i], 0x88);
        x[12 + i] = _mm512_shuffle_f32x4(t[4 + i], t[12 + i], 0xdd);
    }
}

// Rows of A for a tile, or columns of B for a panel: `count` lines of `depth` numbers, GROUPS · 16 at most. Their numbers lie
// together (along_k: line i begins at i · stride), or those of one k do (they begin at k · stride).
template <int GROUPS>
struct Lines {
    const void* from;
    int kind;
    bool along_k;
    int64_t stride, count, depth;

    __m512 of_k(int64_t k, int group) const {
        return load_first(from, k * stride + group * WIDTH, kind, count - group * WIDTH);
    }

    // The largest magnitude of each line, as whole numbers, which are in the same order and have NaN above all.
    void largest(__m512i most[GROUPS]) const {
        const __m512i sign = _mm512_set1_epi32(0x7fffffff);
        auto larger = [&](__m512i& to, __m512 x) { to = _mm512_max_epi32(to, _mm512_and_si512(sign, _mm512_castps_si512(x))); };
        if (!along_k) {
            for (int g = 0; g < GROUPS; ++g) most[g] = _mm512_setzero_si512();
            for (int64_t k = 0; k < depth; ++k)
                for (int g = 0; g < GROUPS; ++g) larger(most[g], of_k(k, g));
            return;
        }
        alignas(64) int32_t found[GROUPS * WIDTH] = {};
        for (int64_t line = 0; line < count; ++line) {
            __m512i of_line = _mm512_setzero_si512();
            for (int64_t k = 0; k < depth; k += WIDTH) larger(of_line, load_first(from, line * stride + k, kind, depth - k));
            found[line] = _mm512_reduce_max_epi32(of_line);
        }
        for (int g = 0; g < GROUPS; ++g) most[g] = _mm512_load_si512(found + g * WIDTH);
    }

    // write(k, group, 16 lines' numbers) for all of them.
    template <class Writer>
    void spread(Writer& write) const {
        if (!along_k) {
            for (int64_t k = 0; k < depth; ++k)
                for (int g = 0; g < GROUPS; ++g) write(k, g, of_k(k, g));
            return;
        }
        for (int g = 0; g < GROUPS; ++g)
            for (int64_t k = 0; k < depth; k += WIDTH) {
                __m512 block[WIDTH];
                for (int i = 0; i < WIDTH; ++i) {
                    const int64_t line = g * WIDTH + i;
                    block[i] = line < count ? load_first(from, line * stride + k, kind, depth - k) : _mm512_setzero_ps();
                }
                transpose(block);
                const int64_t left = depth - k < WIDTH ? depth - k : WIDTH;
                for (int64_t i = 0; i < left; ++i) write(k + i, g, block[i]);
            }
    }
};

// The rows of a tile as they are multiplied: for each k TILE pairs of twice the same half, because a pair is spread over a
// register in the load itself and a single half is not. SLACK pairs behind the end are written too.
struct TileWriter {
    uint32_t* to;
    __m512 scale, sums;  // of each row, as it was given

    void operator()(int64_t k, int, __m512 x) {
        sums = _mm512_add_ps(sums, x);
        const __m512i wide = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtxps_ph(_mm512_mul_ps(x, scale)));
        _mm512_storeu_si512(to + k * TILE, _mm512_or_si512(wide, _mm512_slli_epi32(wide, 16)));
    }
};

struct PanelWriter {
    uint16_t* to;
    __m512 scales[PANEL / WIDTH];

    void operator()(int64_t k, int group, __m512 x) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + k * PANEL + group * WIDTH),
                            (__m256i)_mm512_cvtxps_ph(_mm512_mul_ps(x, scales[group])));
    }
};

// sums[TILE][PANEL], in floats, are or grow by (`fresh` or not) the products of a tile's rows and a panel's columns.
__attribute__((noinline)) inline void multiply(const uint32_t* a, const uint16_t* b, int64_t depth, bool fresh, float* sums) {
    for (int64_t begin = 0; begin < depth; begin += RUN) {
        const int64_t end = depth - begin < RUN ? depth - begin : RUN;
        __m512h run[TILE][2];
#pragma GCC unroll 12
        for (int r = 0; r < TILE; ++r) run[r][0] = run[r][1] = _mm512_setzero_ph();
        for (int64_t k = 0; k < end; ++k, a += TILE, b += PANEL) {
            const __m512h left = _mm512_loadu_ph(b), right = _mm512_loadu_ph(b + 32);
            _mm_prefetch(reinterpret_cast<const char*>(b + AHEAD * PANEL), _MM_HINT_T0);
            _mm_prefetch(reinterpret_cast<const char*>(b + AHEAD * PANEL + 32), _MM_HINT_T0);
#pragma GCC unroll 12
            for (int r = 0; r < TILE; ++r) {
                const __m512h x = (__m512h)_mm512_set1_epi32(int(a[r]));
                run[r][0] = _mm512_fmadd_ph(x, left, run[r][0]);
                run[r][1] = _mm512_fmadd_ph(x, right, run[r][1]);
            }
        }
#pragma GCC unroll 12
        for (int r = 0; r < TILE; ++r)
#pragma GCC unroll 2
            for (int side = 0; side < 2; ++side) {
                const __m512i x = (__m512i)run[r][side];
                const __m512 low = _mm512_cvtxph_ps((__m256h)_mm512_castsi512_si256(x));
                const __m512 high = _mm512_cvtxph_ps((__m256h)_mm512_extracti64x4_epi64(x, 1));
                float* to = sums + r * PANEL + side * 32;
                if (!fresh) {
                    _mm512_store_ps(to, _mm512_add_ps(_mm512_load_ps(to), low));
                    _mm512_store_ps(to + WIDTH, _mm512_add_ps(_mm512_load_ps(to + WIDTH), high));
                } else {
                    _mm512_store_ps(to, low);
                    _mm512_store_ps(to + WIDTH, high);
                }
            }
        fresh = false;
    }
}

}  // namespace halves
#endif
