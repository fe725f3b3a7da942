// Products of a matrix with many rows in half precision, where the processor multiplies that twice as fast as float32
// (AVX512-FP16): panels as in panels.h, rows and sums as in halves.h.
//
// A matrix's row and a row of input are each scaled by a power of two of their own, and each sum is made in one order
// whatever the tile, so what a row gets depends on nothing but the row.

#pragma once

#include "halves.h"
#include "panels.h"

// Rows as the products read them: in tiles, one behind the other; in each the numbers of one k lie together.
struct HalfRows {
    uint16_t* tiles;
    float* scales;  // of each row: what its sums have to be multiplied by
};

namespace {

inline int64_t half_panel_size(const Matrix& m) { return int64_t(m.inputs) * PANEL / 2; }  // in floats of memory
inline int64_t half_rows_size(int64_t rows, int64_t inputs) { return (rows * inputs + 1) / 2; }

#ifdef __AVX512FP16__
constexpr bool HALVES = true;
constexpr int TALL = 28;  // rows of a tile at most, whose sums of a panel's columns stay in registers
constexpr int RUN = 32;   // products summed one after the other as halves: what is drawn takes many looks one upon the other

static_assert(FLOAT32 == int(halves::FLOAT) && BFLOAT16 == int(halves::BF16));

inline int tiles_of(int rows) { return (rows + TALL - 1) / TALL; }
inline int first_of_tile(int rows, int tile) { return int(int64_t(rows) * tile / tiles_of(rows)); }

// Sixteen lines of a tile or a panel, `each` of which there are of one k.
struct HalfWriter {
    uint16_t* to;
    int64_t each;
    __m512 scale;
    __mmask16 there;

    void operator()(int64_t k, int, __m512 x) {
        _mm256_mask_storeu_epi16(to + k * each, there, (__m256i)_mm512_cvtxps_ph(_mm512_mul_ps(x, scale)));
    }
};

// What takes sixteen lines at most to where halves do not overflow; 1 for lines that are not there.
inline __m512 scales_of(const halves::Lines& lines) {
    alignas(64) int32_t most[LANES] = {};
    halves::largest(lines, most);
    return halves::scales_for(_mm512_load_si512(most));
}

// Rows of n floats, `stride` apart, for the products; shared out over the threads that all call this.
inline void lay_rows(const float* a, int64_t stride, int rows, int n, const HalfRows& to) {
#pragma omp for
    for (int unit = 0; unit < 2 * tiles_of(rows); ++unit) {
        const int begin = first_of_tile(rows, unit / 2), end = first_of_tile(rows, unit / 2 + 1);
        const int line = begin + unit % 2 * LANES, count = end - line < LANES ? end - line : LANES;
        if (count <= 0) continue;
        const halves::Lines lines{reinterpret_cast<const char*>(a + line * stride), halves::FLOAT, true, stride, count, n};
        const __m512 scale = scales_of(lines);
        const __mmask16 there = halves::first(count);
        _mm512_mask_storeu_ps(to.scales + line, there, halves::inverse(scale));
        HalfWriter writer{to.tiles + int64_t(begin) * n + line - begin, end - begin, scale, there};
        halves::spread<1>(lines, writer);
    }
}

// The panel that is read next, fetched into the second cache a little for each k, and what is read of this one soon into the
// first.
struct NextPanel {
    const char* from;
    int64_t step;

    void run() {}
    void each(const uint16_t* panel) {
        _mm_prefetch(from, _MM_HINT_T1);
        from += step;
        _mm_prefetch(reinterpret_cast<const char*>(panel + halves::AHEAD * PANEL), _MM_HINT_T0);
    }
};

using MultiplyHalves = void (*)(const uint16_t*, const uint16_t*, int64_t, float*, NextPanel&);

template <int R>
inline MultiplyHalves multiply_halves_for(int rows) {
    if constexpr (R == 0) return nullptr;
    else return rows == R ? &halves::multiply<R, 1, RUN, NextPanel> : multiply_halves_for<R - 1>(rows);
}

// use(row, its PANEL numbers) for rows of `a` times one panel `b` of `count` inputs, whose columns' sums have to be multiplied
// by `scales`.
template <class Use>
inline void times_half_panel(const HalfRows& a, int rows, const uint16_t* b, int count, const float* scales, const char* ahead,
                             Use use) {
    alignas(64) float made[TALL * PANEL];
    const int tiles = tiles_of(rows);
    const int64_t step = ahead ? (PANEL * 2 + tiles - 1) / tiles : 0;
    for (int t = 0; t < tiles; ++t) {
        const int begin = first_of_tile(rows, t), end = first_of_tile(rows, t + 1);
        NextPanel next{ahead ? ahead + t * count * step : reinterpret_cast<const char*>(b), step};
        multiply_halves_for<TALL>(end - begin)(a.tiles + int64_t(begin) * count, b, count, made, next);
        for (int r = begin; r < end; ++r) {
            float* of = made + (r - begin) * PANEL;
            for (int c = 0; c < PANEL; ++c) of[c] = of[c] * a.scales[r] * scales[c];
            use(r, of);
        }
    }
}

// --------------------------------------------------------------------------------------------- laying panels

// Half of a panel: up to sixteen of a matrix's rows, of a gated matrix gates or what they gate.
inline halves::Lines half_of_panel(const Matrix& m, int panel, int half) {
    const int each = m.gated ? LANES : PANEL, first = panel * each + (m.gated ? 0 : half * LANES);
    const int left = m.outputs - first, count = left < 0 ? 0 : (left < LANES ? left : LANES);
    const int64_t row = first + (m.gated ? int64_t(half) * m.outputs : 0);
    const char* from = static_cast<const char*>(m.weight) + row * m.inputs * halves::size_of(m.kind);
    return {from, m.kind, true, m.inputs, count, m.inputs};
}

inline void lay_half_panel(const Matrix& m, int panel, float* to) {
    for (int half = 0; half < 2; ++half) {
        const halves::Lines lines = half_of_panel(m, panel, half);
        const __m512 scale = halves::inverse(_mm512_loadu_ps(m.scales + panel * PANEL + half * LANES));
        HalfWriter writer{reinterpret_cast<uint16_t*>(to) + half * LANES, PANEL, scale, halves::first(LANES)};
        halves::spread<1>(lines, writer);
    }
}

// What sums of each column of the panels have to be multiplied by.
inline void find_scales(const Matrix& m, float* to) {
    for (int p = 0; p < panels_of(m); ++p)
        for (int half = 0; half < 2; ++half)
            _mm512_storeu_ps(to + p * PANEL + half * LANES, halves::inverse(scales_of(half_of_panel(m, p, half))));
}

// As product(), of rows in half precision and a matrix with scales.
template <class Use>
void half_product(const Matrix& m, const HalfRows& a, int rows, float* room, int threads, Use use) {
    const int each = outputs_of_panel(m), all = panels_of(m);
    const int64_t size = half_panel_size(m);
#pragma omp for schedule(dynamic, 1)
    for (int p = 0; p < all; ++p) {
        const float* panel = m.panels ? m.panels + p * size : room;
        if (!m.panels) lay_half_panel(m, p, room);
        const char* ahead = m.panels ? reinterpret_cast<const char*>(panel + threads * size) : nullptr;
        const int first = p * each, columns = m.outputs - first < each ? m.outputs - first : each;
        times_half_panel(a, rows, reinterpret_cast<const uint16_t*>(panel), m.inputs, m.scales + p * PANEL, ahead,
                         [&](int r, const float* made) { use(r, first, columns, made); });
    }
}

#else

// Other processors have no such products, and song_halves() says so: these are never reached.
constexpr bool HALVES = false;
inline void lay_rows(const float*, int64_t, int, int, const HalfRows&) {}
inline void lay_half_panel(const Matrix&, int, float*) {}
inline void find_scales(const Matrix&, float*) {}
template <class Use>
void half_product(const Matrix&, const HalfRows&, int, float*, int, Use) {}

#endif

}  // namespace
