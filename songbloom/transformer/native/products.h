// Products of weight rows as they lie with a few input rows, as fast as memory gives the weights, and e^x.
//
// Each product of a weight row and an input row is summed in 16 lanes in one fixed order, with one accumulator a product,
// whatever the tile that it is computed in.

#pragma once

#include "lanes.h"

namespace {

// Weight rows × input rows of a tile: as many sums as registers hold, several rows even for one input.
constexpr int TILE_ROWS = NATIVE == 16 ? 4 : 2;
constexpr int TILE_BATCH = NATIVE == 16 ? 4 : 2;

int64_t rounded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

// How far apart rows of n floats lie in scratch memory. A power of two would put all of them into the same few places
// of the nearest cache, where they would push each other out.
int64_t apart(int64_t n) { return rounded(n) + LANES; }

// result[b][r] = Σ_k w[r][k] x[b][k] for R weight rows and B input rows of n numbers; `fresh`: the weights come from
// memory, and those behind them next.
// Not inlined, so that it is compiled once a type and shape instead of once a use.
template <int R, int B, class Weight>
__attribute__((noinline)) void tile(const Weight* w, int64_t w_stride, const float* x, int64_t x_stride, int n, bool fresh,
                                    float result[B][R]) {
    constexpr int LINE = 64 / sizeof(Weight);                // weights of a line of the cache
    constexpr int AHEAD = sizeof(Weight) == 1 ? 3 : 1;       // tiles; one of 8-bit weights is over before the next comes
    Lanes sum[R][B];
    for (int r = 0; r < R; ++r)
        for (int b = 0; b < B; ++b) sum[r][b] = Lanes{};
    const int whole = n & -LANES;
    for (int k = 0; k < whole; k += LANES) {
        Lanes row[R];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            row[r] = load(w + r * w_stride + k);
            // What comes next in memory but one tile: a new row begins a new page, at which the processor's own
            // prefetching stops. Reading past the end of a weight this way is harmless.
            if (fresh && !(k & (LINE - 1))) __builtin_prefetch(w + (r + AHEAD * R) * w_stride + k, 0, 2);
        }
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b) {
            const Lanes in = load(x + b * x_stride + k);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) add_product(sum[r][b], row[r], in);
        }
    }
    if (whole < n) {  // what is left, in lanes as well: a loop of its own might be rounded otherwise in another tile
        Lanes row[R];
        for (int r = 0; r < R; ++r) row[r] = load_first(w + r * w_stride + whole, n - whole);
        for (int b = 0; b < B; ++b) {
            const Lanes in = load_first(x + b * x_stride + whole, n - whole);
            for (int r = 0; r < R; ++r) add_product(sum[r][b], row[r], in);
        }
    }
    for (int b = 0; b < B; ++b)
        for (int r = 0; r < R; ++r) result[b][r] = total(sum[r][b]);
}

template <int R, int B, class Weight, class Use>
inline void tile_of(const Weight* w, int64_t w_stride, const float* x, int64_t x_stride, int n, int b0, bool fresh, Use use) {
    float result[B][R];
    tile<R, B>(w, w_stride, x + b0 * x_stride, x_stride, n, fresh && b0 == 0, result);
    for (int b = 0; b < B; ++b)
        for (int r = 0; r < R; ++r) use(b0 + b, r, result[b][r]);
}

// use(b, r, w[r] · x[b]) for R weight rows and all input rows.
template <int R, class Weight, class Use>
inline void all_inputs(const Weight* w, int64_t w_stride, const float* x, int64_t x_stride, int batch, int n, bool fresh, Use use) {
    int b = 0;
    for (; b + TILE_BATCH <= batch; b += TILE_BATCH) tile_of<R, TILE_BATCH>(w, w_stride, x, x_stride, n, b, fresh, use);
    for (; b + 2 <= batch; b += 2) tile_of<R, 2>(w, w_stride, x, x_stride, n, b, fresh, use);
    for (; b < batch; ++b) tile_of<R, 1>(w, w_stride, x, x_stride, n, b, fresh, use);
}

// The same for rows `begin` to `end`.
template <class Weight, class Use>
void products(const Weight* w, int64_t w_stride, int begin, int end, const float* x, int64_t x_stride, int batch, int n,
              float* wide, Use use) {
    const int64_t row_stride = apart(n);
    int row = begin;
    for (; row + TILE_ROWS <= end; row += TILE_ROWS) {
        auto shifted = [&](int b, int r, float y) { use(b, row + r, y); };
        const Weight* from = w + row * w_stride;
        if (sizeof(Weight) < 4 && batch > TILE_BATCH && wide) {
            // More than one tile of inputs: the narrow weights are made floats once, which stay in the nearest cache.
            for (int r = 0; r < TILE_ROWS; ++r) {
                const Weight* narrow = from + r * w_stride;
                int k = 0;
                for (; k + LANES <= n; k += LANES) store(wide + r * row_stride + k, load(narrow + k));
                for (; k < n; ++k) wide[r * row_stride + k] = value(narrow[k]);
            }
            all_inputs<TILE_ROWS>(wide, row_stride, x, x_stride, batch, n, false, shifted);
        } else {
            all_inputs<TILE_ROWS>(from, w_stride, x, x_stride, batch, n, true, shifted);
        }
    }
    for (; row < end; ++row)
        all_inputs<1>(w + row * w_stride, w_stride, x, x_stride, batch, n, true,
                      [&](int b, int r, float y) { use(b, row + r, y); });
}

// e^x by a polynomial on [-ln 2 / 2, ln 2 / 2] (Cephes' coefficients, error about 1 unit in the last place), in a form
// that compilers turn into vector instructions, which calls of the C library are not.
inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
    const float magic = 12582912.0f;  // adding 1.5 · 2^23 rounds to a whole number
    float shifted = x * 1.44269504f + magic;
    float n = shifted - magic;
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits;
    std::memcpy(&bits, &shifted, 4);
    bits = (bits - 0x4b400000 + 127) << 23;
    float power;
    return std::memcpy(&power, &bits, 4), p * power;
}

// The same of lanes, in vectors as they are: of short loops compilers make scalars.
inline Lanes exponential(Lanes x) {
    typedef int32_t Whole __attribute__((vector_size(NATIVE * 4)));
    for (int i = 0; i < PARTS; ++i) {
        Vector v = x.part[i];
        v = v < -87.0f ? Vector{} - 87.0f : v;
        v = v > 88.0f ? Vector{} + 88.0f : v;
        const Vector shifted = v * 1.44269504f + 12582912.0f;
        const Vector n = shifted - 12582912.0f;
        const Vector r = v - n * 0.693359375f + n * 2.12194440e-4f;
        Vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
        p = p * r + 8.3334519073e-3f;
        p = p * r + 4.1665795894e-2f;
        p = p * r + 1.6666665459e-1f;
        p = p * r + 5.0000001201e-1f;
        p = p * r * r + r + 1.0f;
        x.part[i] = p * (Vector)(((Whole)shifted - 0x4b400000 + 127) << 23);
    }
    return x;
}

// silu(x) = x / (1 + e^-x), times y.
inline Lanes gated(const Lanes& x, const Lanes& y) {
    Lanes power;
    for (int i = 0; i < PARTS; ++i) power.part[i] = -x.part[i];
    power = exponential(power);
    for (int i = 0; i < PARTS; ++i) power.part[i] = x.part[i] / (1.0f + power.part[i]) * y.part[i];
    return power;
}

}  // namespace
