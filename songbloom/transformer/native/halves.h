// Matrix products in half precision on processors that multiply halves (AVX512-FP16), summed in floats.
//
// Such a processor multiplies twice as many halves as floats a cycle (and, where it has no matrix unit, four times as many
// as bfloat16s). Halves have 11 bits and reach from 2^-14 to 65504, so
//
// * each row of A and each column of B is multiplied by a power of two that takes its largest number to between 4 and 8;
//   what is 2^-16 of the largest still has all of its bits. A row's result depends on no other row;
// * sums of halves are short: 64 products one after the other at most, whose rounding is about 2^-10 of their sum, less than
//   what rounding the operands to bfloat16 (2^-9 each) has cost before. Some of these sums are added as halves, which rounds
//   a few times more, and only then they are added to floats: widening takes as long as several products. 256 products of
//   less than 64 each cannot overflow.

#pragma once

#ifdef __AVX512FP16__
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace halves {

constexpr int TILE = 14;    // rows; with two registers of columns each they are 28 sums in registers
constexpr int PANEL = 64;   // columns
constexpr int SUMMED = 256;  // products summed as halves
constexpr int WIDTH = 16;   // floats of a register
constexpr int SLACK = WIDTH;
constexpr int AHEAD = 32;   // of its numbers k a panel's are fetched before they are needed: as the third cache answers

enum Kind { FLOAT = 0, BF16 = 1, HALF = 2 };

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t size_of(int kind) { return kind == FLOAT ? 4 : 2; }

// What these numbers of 16 bits are as floats, as whole numbers.
inline __m512i widened(__m256i x, int kind) {
    return kind == HALF ? _mm512_castps_si512(_mm512_cvtxph_ps((__m256h)x)) : _mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16);
}

// Sixteen numbers of any kind as floats; the first `n` of them, zeros behind.
inline __m512 load(const void* from, int64_t at, int kind) {
    if (kind == FLOAT) return _mm512_loadu_ps(static_cast<const float*>(from) + at);
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const uint16_t*>(from) + at));
    return _mm512_castsi512_ps(widened(x, kind));
}

inline __mmask16 first(int64_t n) { return n >= WIDTH ? __mmask16(0xffff) : __mmask16((1u << (n > 0 ? n : 0)) - 1); }

inline __m512 load_first(const void* from, int64_t at, int kind, int64_t n) {
    if (n >= WIDTH) return load(from, at, kind);
    const __mmask16 mask = first(n);
    if (kind == FLOAT) return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(from) + at);
    const __m256i x = _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(from) + at);
    return _mm512_castsi512_ps(widened(x, kind));
}

// 32 numbers of 16 bits, the first `n` of them, zeros behind.
inline __m512i load_pairs(const uint16_t* from, int64_t n) {
    if (n >= 2 * WIDTH) return _mm512_loadu_si512(from);
    return _mm512_maskz_loadu_epi16(n > 0 ? (1u << n) - 1 : 0, from);
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

// σ(x), between 2^-115 and 1, as smaller floats take a hundred times as long.
inline __m512 sigmoid(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f), most = _mm512_set1_ps(80.0f), zero = _mm512_setzero_ps();
    // Of the two operands the second is taken where one is NaN.
    const __m512 bounded = _mm512_max_ps(_mm512_sub_ps(zero, most), _mm512_min_ps(most, _mm512_sub_ps(zero, x)));
    const __m512 inverse = _mm512_add_ps(one, exponential(bounded));
    const __m512 guess = _mm512_rcp14_ps(inverse);  // and a step of Newton's: a division takes longer than all the rest
    return _mm512_mul_ps(guess, _mm512_fnmadd_ps(inverse, guess, _mm512_set1_ps(2.0f)));
}

// Of which quick-GELU is x times.
inline __m512 gate_of(__m512 x) { return sigmoid(_mm512_mul_ps(x, _mm512_set1_ps(1.702f))); }

inline __m512 quick_gelu(__m512 x) { return _mm512_mul_ps(x, gate_of(x)); }

inline __m512 quick_gelu_slope(__m512 x) {
    const __m512 gate = gate_of(x);
    const __m512 rest = _mm512_mul_ps(_mm512_mul_ps(_mm512_set1_ps(1.702f), x), _mm512_fnmadd_ps(gate, gate, gate));
    return _mm512_add_ps(gate, rest);
}

// The powers of two that take these magnitudes (as whole numbers) to between 4 and 8, but for the smallest, which there is
// no power for. Beside infinities and NaN, which stay what they are, whatever is finite becomes next to nothing.
inline __m512 scales_for(__m512i largest) {
    const __m512i exponent = _mm512_srli_epi32(largest, 23);
    const __m512i wanted = _mm512_sub_epi32(_mm512_set1_epi32(127 + 2 + 127), exponent);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_min_epi32(wanted, _mm512_set1_epi32(253)), 23));
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

// An operand of a product, or a block of it: `count` lines, which are rows of A or columns of B, of `depth` numbers. A line's
// numbers lie together (along_k: line i begins at i · stride), or those of one k do (they begin at k · stride).
struct Lines {
    const char* from;
    int kind;
    bool along_k;
    int64_t stride, count, depth;

    // `n` lines from `line` on, `numbers` of each from k on.
    Lines part(int64_t line, int64_t n, int64_t k, int64_t numbers) const {
        const int64_t at = along_k ? line * stride + k : k * stride + line;
        return {from + at * size_of(kind), kind, along_k, stride, n, numbers};
    }

    __m512 of_k(int64_t k, int64_t line) const { return load_first(from, k * stride + line, kind, count - line); }
};

inline __m512i magnitude_of(__m512 x) { return _mm512_and_si512(_mm512_set1_epi32(0x7fffffff), _mm512_castps_si512(x)); }

// The largest magnitudes of lines, as whole numbers, which are in the same order and have NaN above all.

// Of one line whose numbers lie together.
inline int32_t largest_of_line(const Lines& lines, int64_t line) {
    const int64_t begin = line * lines.stride;
    if (lines.kind == FLOAT) {
        __m512i most = _mm512_setzero_si512();
        for (int64_t k = 0; k < lines.depth; k += WIDTH) {
            const __m512 x = load_first(lines.from, begin + k, FLOAT, lines.depth - k);
            most = _mm512_max_epi32(most, magnitude_of(x));
        }
        return _mm512_reduce_max_epi32(most);
    }
    const uint16_t* at = reinterpret_cast<const uint16_t*>(lines.from) + begin;
    const __m512i magnitude = _mm512_set1_epi16(0x7fff);
    __m512i most = _mm512_setzero_si512();
    for (int64_t k = 0; k < lines.depth; k += 2 * WIDTH)
        most = _mm512_max_epu16(most, _mm512_and_si512(magnitude, load_pairs(at + k, lines.depth - k)));
    return _mm512_reduce_max_epi32(_mm512_max_epi32(widened(_mm512_castsi512_si256(most), lines.kind),
                                                    widened(_mm512_extracti64x4_epi64(most, 1), lines.kind)));
}

// Of all lines where those of one k lie together, read in the order in which they lie.
inline void largest_of_lines(const Lines& lines, int32_t* most) {
    for (int64_t line = 0; line < lines.count; line += WIDTH) _mm512_storeu_si512(most + line, _mm512_setzero_si512());
    if (lines.kind == FLOAT) {
        for (int64_t k = 0; k < lines.depth; ++k)
            for (int64_t line = 0; line < lines.count; line += WIDTH) {
                const __m512i x = magnitude_of(lines.of_k(k, line));
                _mm512_storeu_si512(most + line, _mm512_max_epi32(x, _mm512_loadu_si512(most + line)));
            }
        return;
    }
    // Numbers of 16 bits first, in the front half of their places.
    uint16_t* narrow = reinterpret_cast<uint16_t*>(most);
    const __m512i magnitude = _mm512_set1_epi16(0x7fff);
    for (int64_t k = 0; k < lines.depth; ++k) {
        const uint16_t* at = reinterpret_cast<const uint16_t*>(lines.from) + k * lines.stride;
        for (int64_t line = 0; line < lines.count; line += 2 * WIDTH) {
            const __m512i x = _mm512_and_si512(magnitude, load_pairs(at + line, lines.count - line));
            _mm512_storeu_si512(narrow + line, _mm512_max_epu16(x, _mm512_loadu_si512(narrow + line)));
        }
    }
    for (int64_t line = (lines.count - 1) / WIDTH * WIDTH; line >= 0; line -= WIDTH) {
        const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(narrow + line));
        _mm512_storeu_si512(most + line, widened(x, lines.kind));
    }
}

// Of any lines; there is room for whole registers of 16 bits behind them.
inline void largest(const Lines& lines, int32_t* most) {
    if (!lines.along_k) return largest_of_lines(lines, most);
    for (int64_t i = 0; i < lines.count; ++i) most[i] = largest_of_line(lines, i);
}

// write(k, group, 16 lines' numbers) for all groups of 16 lines, GROUPS at most.
template <int GROUPS, class Writer>
void spread(const Lines& lines, Writer& write) {
    if (!lines.along_k) {
        for (int64_t k = 0; k < lines.depth; ++k)
            for (int g = 0; g < GROUPS; ++g) write(k, g, lines.of_k(k, g * WIDTH));
        return;
    }
    for (int g = 0; g < GROUPS; ++g)
        for (int64_t k = 0; k < lines.depth; k += WIDTH) {
            __m512 block[WIDTH];
            for (int i = 0; i < WIDTH; ++i) {
                const int64_t line = g * WIDTH + i, at = line * lines.stride + k;
                block[i] = line < lines.count ? load_first(lines.from, at, lines.kind, lines.depth - k) : _mm512_setzero_ps();
            }
            transpose(block);
            const int64_t left = lines.depth - k < WIDTH ? lines.depth - k : WIDTH;
            for (int64_t i = 0; i < left; ++i) write(k + i, g, block[i]);
        }
}

// Memory that will soon be read: `runs` of `bytes`, `stride` apart, fetched some lines at a time.
struct Ahead {
    const char* from;
    int64_t bytes, stride, runs;
    int64_t pace = 0;  // lines at a time
    int64_t at = 0;

    // All of it in so many times.
    void spread_over(int64_t times) { pace = (runs * (bytes / 64 + 1) + times - 1) / times; }

    template <_mm_hint CACHE>
    void fetch() {
        for (int64_t i = 0; i < pace && runs > 0; ++i) {
            _mm_prefetch(from + at, CACHE);
            at += 64;
            if (at >= bytes) at = 0, from += stride, --runs;
        }
    }
};

// The rows of a tile as they are multiplied: TILE halves for each k. SLACK numbers behind the end are written too.
struct TileWriter {
    uint16_t* to;
    __m512 scale, sums;  // of each row, as it was given

    void operator()(int64_t k, int, __m512 x) {
        sums = _mm512_add_ps(sums, x);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + k * TILE), (__m256i)_mm512_cvtxps_ph(_mm512_mul_ps(x, scale)));
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

// Lines, PANEL at most, whose largest magnitudes are known (zeros for those that are not there) as a panel; and what sums of
// each have to be multiplied by.
inline void lay_panel(const Lines& lines, const int32_t* most, uint16_t* to, float* scales) {
    PanelWriter writer{to, {}};
    for (int g = 0; g < PANEL / WIDTH; ++g) {
        writer.scales[g] = scales_for(_mm512_loadu_si512(most + g * WIDTH));
        _mm512_storeu_ps(scales + g * WIDTH, inverse(writer.scales[g]));
    }
    spread<PANEL / WIDTH>(lines, writer);
}

// sums[ROWS][SIDES · 32], in floats, become the products of a tile's rows, ROWS for each k, and a panel's columns; RUN
// of them are summed one after the other as halves. For each RUN fetched.run() is called, for each k fetched.each() with the
// panel's numbers of it.
template <int ROWS, int SIDES, int RUN, class Fetched>
__attribute__((noinline)) void multiply(const uint16_t* tile, const uint16_t* panel, int64_t depth, float* sums, Fetched& fetched) {
    constexpr int SIDE = 2 * WIDTH, RUNS = SUMMED / RUN;
    alignas(64) uint16_t kept[ROWS][SIDES][SIDE];
    const _Float16* a[SIDES];
    for (int side = 0; side < SIDES; ++side) {
        a[side] = reinterpret_cast<const _Float16*>(tile);
        asm("" : "+r"(a[side]));  // or a number would be spread once for all sides: one instruction more for each row
    }
    for (int64_t begin = 0, runs = 0; begin < depth; begin += RUN, runs = (runs + 1) % RUNS) {
        const int64_t count = depth - begin < RUN ? depth - begin : RUN;
        fetched.run();
        __m512h run[ROWS][SIDES];
#pragma GCC unroll 32
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
            for (int side = 0; side < SIDES; ++side) run[r][side] = _mm512_setzero_ph();
        for (int64_t k = 0; k < count; ++k, panel += SIDES * SIDE) {
            fetched.each(panel);
            __m512h columns[SIDES];
#pragma GCC unroll 2
            for (int side = 0; side < SIDES; ++side) columns[side] = _mm512_loadu_ph(panel + side * SIDE);
#pragma GCC unroll 32
            for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
                for (int side = 0; side < SIDES; ++side)
                    run[r][side] = _mm512_fmadd_ph(_mm512_set1_ph(a[side][r]), columns[side], run[r][side]);
#pragma GCC unroll 2
            for (int side = 0; side < SIDES; ++side) a[side] += ROWS;
        }
        const bool widen = runs == RUNS - 1 || begin + RUN >= depth;
#pragma GCC unroll 32
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
            for (int side = 0; side < SIDES; ++side) {
                const __m512h sum = runs ? _mm512_add_ph(run[r][side], _mm512_load_ph(kept[r][side])) : run[r][side];
                if (!widen) {
                    _mm512_store_ph(kept[r][side], sum);
                    continue;
                }
                float* to = sums + (r * SIDES + side) * SIDE;
                __m512 low = _mm512_cvtxph_ps((__m256h)_mm512_castsi512_si256((__m512i)sum));
                __m512 high = _mm512_cvtxph_ps((__m256h)_mm512_extracti64x4_epi64((__m512i)sum, 1));
                if (begin >= SUMMED) {
                    low = _mm512_add_ps(low, _mm512_load_ps(to));
                    high = _mm512_add_ps(high, _mm512_load_ps(to + WIDTH));
                }
                _mm512_store_ps(to, low);
                _mm512_store_ps(to + WIDTH, high);
            }
    }
}

}  // namespace halves
#endif
