// Products of a matrix with many rows in half precision, where the processor multiplies that twice as fast as float32
// (AVX512-FP16): panels as in panels.h, of numbers with 11 bits.
//
// A matrix's row and a row of input are each scaled by a power of two, so that their largest number lies in [8, 16):
// nothing can overflow, and what falls below half precision's range is less than a millionth of the largest. Sums are
// half precision over a run of products and two runs, beyond that float32. Each sum is one chain in one order whatever the tile, and a
// row's scale is its own, so what a row gets depends on nothing but the row.

#pragma once

#include "panels.h"

// A few rows as the products read them.
struct HalfRows {
    uint32_t* pairs;   // [rows][stride]: two neighbours of a row, the first in the lower half
    int64_t stride;
    float* scales;     // [rows]: what a row has been divided by
};

namespace {

// Two numbers beside each other in one place of a register are summed apart until the end, so a run is twice as many.
constexpr int RUN_PAIRS = 32;

inline int64_t pairs_of(int64_t n) { return (n + 1) / 2; }
inline int64_t half_panel_size(const Matrix& m) { return pairs_of(m.inputs) * PANEL; }  // in floats of memory

// The power of two that a row is divided by, from its largest number. It and its inverse are always finite.
inline float scale_for(float largest) {
    uint32_t bits;
    std::memcpy(&bits, &largest, 4);
    const uint32_t exponent = bits >> 23;
    bits = ((exponent < 4 ? 4 : exponent) - 3) << 23;
    float scale;
    return std::memcpy(&scale, &bits, 4), scale;
}

#ifdef __AVX512FP16__
constexpr bool HALVES = true;

template <class Number>
float largest_of(const Number* x, int n) {
    __m512 largest = _mm512_setzero_ps();
    for (int k = 0; k < n; k += LANES) {
        const Lanes each = n - k < LANES ? load_first(x + k, n - k) : load(x + k);
        largest = _mm512_max_ps(_mm512_abs_ps((__m512)each.part[0]), largest);
    }
    return _mm512_reduce_max_ps(largest);
}

// Up to 32 numbers, divided, as sixteen pairs; zeros behind them.
template <class Number>
inline Lanes pairs(const Number* x, int count, float inverse) {
    auto sixteen = [&](int from) {
        const int there = count - from < 0 ? 0 : count - from;
        const Lanes wide = there < LANES ? load_first(x + from, there) : load(x + from);
        return (__m256d)_mm512_cvtxps_ph(_mm512_mul_ps((__m512)wide.part[0], _mm512_set1_ps(inverse)));
    };
    Lanes made;
    made.part[0] = (Vector)_mm512_insertf64x4(_mm512_castpd256_pd512(sixteen(0)), sixteen(LANES), 1);
    return made;
}

// A row of n floats for the products; behind it is room for whole lanes.
inline void narrow(const float* x, int n, uint32_t* to, float* scale) {
    *scale = scale_for(largest_of(x, n));
    const float inverse = 1.0f / *scale;
    for (int k = 0; k < n; k += 2 * LANES) store(reinterpret_cast<float*>(to + k / 2), pairs(x + k, n - k, inverse));
}

// to[r][c] = Σ_i a[r][i] b[i][c], but for the scales, for R rows and the columns of a panel; `count` pairs of inputs.
template <int R>
__attribute__((noinline)) void multiply_halves(const uint32_t* a, int64_t a_stride, const uint32_t* b, int count,
                                               const float* ahead, int pace, float* to) {
    alignas(64) _Float16 runs[2 * R][2 * LANES];  // through memory, from where a half register is widened for nothing
    alignas(64) float sums[4 * R][LANES];
    for (int begin = 0; begin < count; begin += RUN_PAIRS) {
        const int end = count - begin < RUN_PAIRS ? count : begin + RUN_PAIRS;
        __m512h sum[R][2];
        for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = _mm512_setzero_ph();
        for (int i = begin; i < end; ++i) {
            const __m512h first = _mm512_loadu_ph(b + int64_t(i) * PANEL), second = _mm512_loadu_ph(b + int64_t(i) * PANEL + LANES);
            __builtin_prefetch(ahead + int64_t(i) * pace, 0, 2);
            if (pace > LANES) __builtin_prefetch(ahead + int64_t(i) * pace + LANES, 0, 2);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                const __m512h in = (__m512h)_mm512_set1_epi32(a[r * a_stride + i]);
                sum[r][0] = _mm512_fmadd_ph(in, first, sum[r][0]);
                sum[r][1] = _mm512_fmadd_ph(in, second, sum[r][1]);
            }
        }
        const bool second = begin / RUN_PAIRS % 2;
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
            for (int j = 0; j < 2; ++j) {
                if (second) sum[r][j] = _mm512_add_ph(sum[r][j], _mm512_load_ph(runs[2 * r + j]));
                _mm512_store_ph(runs[2 * r + j], sum[r][j]);
            }
        if (!second && end < count) continue;
        asm volatile("" ::"r"(runs) : "memory");  // or the compiler takes registers apart instead, by the port that multiplies
#pragma GCC unroll 8
        for (int j = 0; j < 4 * R; ++j) {
            const __m512 run = _mm512_cvtxph_ps(_mm256_load_ph(runs[0] + j * LANES));
            _mm512_store_ps(sums[j], begin >= 2 * RUN_PAIRS ? _mm512_add_ps(_mm512_load_ps(sums[j]), run) : run);
        }
    }
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    for (int j = 0; j < 2 * R; ++j) {
        const __m512 low = _mm512_load_ps(sums[2 * j]), high = _mm512_load_ps(sums[2 * j + 1]);
        const __m512 evens = _mm512_permutex2var_ps(low, even, high), odds = _mm512_permutex2var_ps(low, odd, high);
        _mm512_store_ps(to + j * LANES, _mm512_add_ps(evens, odds));
    }
}

using MultiplyHalves = void (*)(const uint32_t*, int64_t, const uint32_t*, int, const float*, int, float*);

template <int R>
inline MultiplyHalves multiply_halves_for(int rows) {
    if constexpr (R == 0) return nullptr;
    else return rows == R ? &multiply_halves<R> : multiply_halves_for<R - 1>(rows);
}

// use(row, its PANEL numbers) for rows of `a` times one panel `b` of `count` pairs, whose columns have been divided by `scales`.
template <class Use>
inline void times_half_panel(const HalfRows& a, int rows, const uint32_t* b, int count, const float* scales, const float* ahead,
                             Use use) {
    alignas(64) float made[GROUP * PANEL];
    const int groups = (rows + GROUP - 1) / GROUP, pace = ahead ? (PANEL + groups - 1) / groups : 0;
    for (int g = 0; g < groups; ++g) {
        const int begin = int64_t(rows) * g / groups, end = int64_t(rows) * (g + 1) / groups;
        const float* from = ahead ? ahead + int64_t(g) * count * pace : reinterpret_cast<const float*>(b);
        multiply_halves_for<GROUP>(end - begin)(a.pairs + begin * a.stride, a.stride, b, count, from, pace, made);
        for (int r = begin; r < end; ++r) {
            float* of = made + (r - begin) * PANEL;
            for (int c = 0; c < PANEL; ++c) of[c] *= scales[c] * a.scales[r];
            use(r, of);
        }
    }
}

// --------------------------------------------------------------------------------------------- laying panels

// use(column of a panel, row of the weight or -1 where there is none) for all columns.
template <class Use>
inline void columns_of(const Matrix& m, int panel, Use use) {
    const int first = panel * outputs_of_panel(m);
    for (int c = 0; c < PANEL; ++c) {
        const int output = first + (m.gated ? c % LANES : c);
        use(c, output >= m.outputs ? -1 : output + (m.gated && c >= LANES ? m.outputs : 0));
    }
}

template <class Weight>
void lay_half_panel_of(const Matrix& m, int panel, float* to) {
    Lanes row[LANES];
    const float* scales = m.scales + panel * PANEL;
    int rows[PANEL];
    columns_of(m, panel, [&](int c, int r) { rows[c] = r; });
    for (int half = 0; half < PANEL; half += LANES)
        for (int i = 0; i < m.inputs; i += 2 * LANES) {
            const int count = m.inputs - i < 2 * LANES ? m.inputs - i : 2 * LANES, there = int(pairs_of(count));
            for (int c = 0; c < LANES; ++c) {
                const int r = rows[half + c];
                row[c] = r < 0 ? Lanes{} : pairs(static_cast<const Weight*>(m.weight) + int64_t(r) * m.inputs + i, count,
                                                 1.0f / scales[half + c]);
            }
            float* place = to + int64_t(i / 2) * PANEL + half;
            if (there == LANES) {
                turned(row, place);
            } else {
                alignas(64) float last[LANES * PANEL];
                turned(row, last);
                for (int k = 0; k < there; ++k) std::memcpy(place + k * PANEL, last + k * PANEL, LANES * sizeof(float));
            }
        }
}

template <class Weight>
void find_scales_of(const Matrix& m, float* to) {
    for (int p = 0; p < panels_of(m); ++p)
        columns_of(m, p, [&](int c, int r) {
            const Weight* row = static_cast<const Weight*>(m.weight) + int64_t(r) * m.inputs;
            to[p * PANEL + c] = r < 0 ? 1.0f : scale_for(largest_of(row, m.inputs));
        });
}

inline void lay_half_panel(const Matrix& m, int panel, float* to) {
    m.kind == BFLOAT16 ? lay_half_panel_of<bf16>(m, panel, to) : lay_half_panel_of<float>(m, panel, to);
}

inline void find_scales(const Matrix& m, float* to) {
    m.kind == BFLOAT16 ? find_scales_of<bf16>(m, to) : find_scales_of<float>(m, to);
}

// As product(), of rows in half precision and a matrix with scales.
template <class Use>
void half_product(const Matrix& m, const HalfRows& a, int rows, float* room, int threads, Use use) {
    const int each = outputs_of_panel(m), all = panels_of(m), count = int(pairs_of(m.inputs));
    const int64_t size = half_panel_size(m);
#pragma omp for schedule(dynamic, 1)
    for (int p = 0; p < all; ++p) {
        const float* panel = m.panels ? m.panels + p * size : room;
        if (!m.panels) lay_half_panel(m, p, room);
        const float* ahead = m.panels ? panel + threads * size : nullptr;
        const int first = p * each, columns = m.outputs - first < each ? m.outputs - first : each;
        times_half_panel(a, rows, reinterpret_cast<const uint32_t*>(panel), count, m.scales + p * PANEL, ahead,
                         [&](int r, const float* made) { use(r, first, columns, made); });
    }
}

#else

// Other processors have no such products, and song_halves() says so: these are never reached.
constexpr bool HALVES = false;
inline void narrow(const float*, int, uint32_t*, float*) {}
inline void lay_half_panel(const Matrix&, int, float*) {}
inline void find_scales(const Matrix&, float*) {}
template <class Use>
void half_product(const Matrix&, const HalfRows&, int, float*, int, Use) {}

#endif

}  // namespace
