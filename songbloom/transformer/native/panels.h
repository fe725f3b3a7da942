// Products of a matrix with many rows, panel by panel: the matrix lies, or is laid, thirty-two outputs side by side, so
// that the sums of a tile stay in registers while the inputs' axis passes by once.
//
// Every sum is one chain along the inputs' axis, whatever the tile it is computed in, so what a row gets depends on
// nothing but the row.

#pragma once

#include <cstddef>

#include "lanes.h"

enum Kind : int32_t { FLOAT32, BFLOAT16, INT8 };

// Written out again in songbloom/prior/songbloom/native.py.
struct Matrix {
    const void* weight;   // [outputs][inputs], or of a gated one [2 outputs][inputs]: the gates, then what they gate
    const float* bias;    // [outputs], may be null
    const float* panels;  // all of them as lay_panel() lays them; null: each is laid where and when it is needed
    const float* scales;  // of each panel's columns, which makes them half precision (half_panels.h); null: float32
    int32_t outputs, inputs, kind, gated;
};

namespace {

constexpr int PANEL = 32;  // outputs of a panel; of a gated matrix 16 gates, then the 16 outputs that they gate
// Rows × lanes of columns of a tile: as many sums as registers hold beside what is multiplied.
constexpr int GROUP = NATIVE == 16 ? 14 : (NATIVE == 8 ? 6 : 2);
constexpr int WIDE = NATIVE == 16 ? 2 : 1;

// to[r][c] = Σ_i a[r][i] b[i][c] for R rows and the columns of a panel. `ahead` is fetched meanwhile, `pace` floats a turn.
template <int R>
__attribute__((noinline)) void multiply(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int count,
                                        const float* ahead, int pace, float* to) {
    for (int c = 0; c < PANEL; c += WIDE * LANES) {
        Lanes sum[R][WIDE];
        for (int r = 0; r < R; ++r)
            for (int j = 0; j < WIDE; ++j) sum[r][j] = Lanes{};
        for (int i = 0; i < count; ++i) {
            Lanes column[WIDE];
            for (int j = 0; j < WIDE; ++j) column[j] = load(b + i * b_stride + c + j * LANES);
            __builtin_prefetch(ahead + int64_t(i) * pace, 0, 2);
            if (pace > LANES) __builtin_prefetch(ahead + int64_t(i) * pace + LANES, 0, 2);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
                for (int j = 0; j < WIDE; ++j) add_product(sum[r][j], column[j], a[r * a_stride + i]);
        }
        for (int r = 0; r < R; ++r)
            for (int j = 0; j < WIDE; ++j) store(to + r * PANEL + c + j * LANES, sum[r][j]);
    }
}

using Multiply = void (*)(const float*, int64_t, const float*, int64_t, int, const float*, int, float*);

template <int R>
inline Multiply multiply_for(int rows) {
    if constexpr (R == 0) return nullptr;
    else return rows == R ? &multiply<R> : multiply_for<R - 1>(rows);
}

// use(row, its PANEL numbers) for rows of `a` times one panel `b` of `count` rows.
template <class Use>
inline void times_panel(const float* a, int64_t a_stride, int rows, const float* b, int64_t b_stride, int count,
                        const float* ahead, Use use) {
    alignas(64) float made[GROUP * PANEL];
    const int groups = (rows + GROUP - 1) / GROUP;
    const int pace = ahead ? (PANEL + groups - 1) / groups : 0;
    for (int g = 0; g < groups; ++g) {
        const int begin = int64_t(rows) * g / groups, end = int64_t(rows) * (g + 1) / groups;
        // Without anything to fetch, what is being read is named again, which costs nothing.
        const float* from = ahead ? ahead + int64_t(g) * count * pace : b;
        multiply_for<GROUP>(end - begin)(a + begin * a_stride, a_stride, b, b_stride, count, from, pace, made);
        for (int r = begin; r < end; ++r) use(r, made + (r - begin) * PANEL);
    }
}

// --------------------------------------------------------------------------------------------- laying panels

// Sixteen rows of sixteen numbers become columns that lie PANEL apart.
inline void turned(const Lanes* row, float* to) {
#if defined(__AVX512F__)
    __m512 x[16], y[16];
    for (int i = 0; i < 8; ++i) {
        const __m512 even = (__m512)row[2 * i].part[0], odd = (__m512)row[2 * i + 1].part[0];
        x[2 * i] = _mm512_unpacklo_ps(even, odd), x[2 * i + 1] = _mm512_unpackhi_ps(even, odd);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; ++j) {
            const __m512d low = (__m512d)x[i + j], high = (__m512d)x[i + 2 + j];
            y[i + 2 * j] = (__m512)_mm512_unpacklo_pd(low, high), y[i + 2 * j + 1] = (__m512)_mm512_unpackhi_pd(low, high);
        }
    for (int j = 0; j < 4; ++j) {  // y[4 i + j] has column 4 L + j of rows 4 i to 4 i + 3 in its quarter L
        const __m512 even[2] = {_mm512_shuffle_f32x4(y[j], y[4 + j], 0x88), _mm512_shuffle_f32x4(y[8 + j], y[12 + j], 0x88)};
        const __m512 odd[2] = {_mm512_shuffle_f32x4(y[j], y[4 + j], 0xdd), _mm512_shuffle_f32x4(y[8 + j], y[12 + j], 0xdd)};
        _mm512_storeu_ps(to + j * PANEL, _mm512_shuffle_f32x4(even[0], even[1], 0x88));
        _mm512_storeu_ps(to + (4 + j) * PANEL, _mm512_shuffle_f32x4(odd[0], odd[1], 0x88));
        _mm512_storeu_ps(to + (8 + j) * PANEL, _mm512_shuffle_f32x4(even[0], even[1], 0xdd));
        _mm512_storeu_ps(to + (12 + j) * PANEL, _mm512_shuffle_f32x4(odd[0], odd[1], 0xdd));
    }
#else
    float wide[LANES][LANES];
    for (int r = 0; r < LANES; ++r) store(wide[r], row[r]);
    for (int i = 0; i < LANES; ++i)
        for (int r = 0; r < LANES; ++r) to[i * PANEL + r] = wide[r][i];
#endif
}

// Sixteen rows from `first` on, of which those from `end` on are zeros, as one half of a panel.
template <class Weight>
void lay_half(const Weight* w, int first, int end, int inputs, float* to) {
    for (int i = 0; i < inputs; i += LANES) {
        const int count = inputs - i < LANES ? inputs - i : LANES;
        Lanes row[LANES];
        for (int r = 0; r < LANES; ++r) {
            const Weight* from = w + int64_t(first + r) * inputs + i;
            row[r] = first + r >= end ? Lanes{} : (count == LANES ? load(from) : load_first(from, count));
        }
        if (count == LANES) {
            turned(row, to + int64_t(i) * PANEL);
        } else {
            alignas(64) float last[LANES * PANEL];
            turned(row, last);
            for (int k = 0; k < count; ++k) std::memcpy(to + int64_t(i + k) * PANEL, last + k * PANEL, LANES * sizeof(float));
        }
    }
}

inline int outputs_of_panel(const Matrix& m) { return m.gated ? LANES : PANEL; }
inline int panels_of(const Matrix& m) { return (m.outputs + outputs_of_panel(m) - 1) / outputs_of_panel(m); }
inline int64_t panel_size(const Matrix& m) { return int64_t(m.inputs) * PANEL; }

template <class Weight>
void lay_panel_of(const Matrix& m, int panel, float* to) {
    const Weight* w = static_cast<const Weight*>(m.weight);
    const int first = panel * outputs_of_panel(m);
    lay_half(w, first, m.outputs, m.inputs, to);
    if (m.gated) lay_half(w + int64_t(m.outputs) * m.inputs, first, m.outputs, m.inputs, to + LANES);
    else lay_half(w, first + LANES, m.outputs, m.inputs, to + LANES);
}

inline void lay_panel(const Matrix& m, int panel, float* to) {
    m.kind == BFLOAT16 ? lay_panel_of<bf16>(m, panel, to) : lay_panel_of<float>(m, panel, to);
}

// use(row, first output, how many, their numbers) for each of a matrix's panels and all rows of `a`, shared out over the
// threads of the parallel region that all of them call this in; they go on when all is done. Bias and gates are the
// caller's matter. `room` is this thread's own, for one panel.
template <class Use>
void product(const Matrix& m, const float* a, int64_t a_stride, int rows, float* room, int threads, Use use) {
    const int each = outputs_of_panel(m), all = panels_of(m);
    const int64_t size = panel_size(m);
#pragma omp for schedule(dynamic, 1)
    for (int p = 0; p < all; ++p) {
        const float* panel = m.panels ? m.panels + p * size : room;
        if (!m.panels) lay_panel(m, p, room);
        // Behind the last panel lies the first of the matrix that is read next; to name what is not there does no harm.
        const float* ahead = m.panels ? panel + threads * size : nullptr;
        const int first = p * each, count = m.outputs - first < each ? m.outputs - first : each;
        times_panel(a, a_stride, rows, panel, PANEL, m.inputs, ahead, [&](int r, const float* made) { use(r, first, count, made); });
    }
}

}  // namespace
