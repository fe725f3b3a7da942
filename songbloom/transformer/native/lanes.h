// Sixteen floats at a time, on any machine in the same order: loads from three kinds of numbers, products, totals.

#pragma once

#include <cstdint>
#include <cstring>
#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace {

constexpr int LANES = 16;       // sums a product is split into, on every machine
// Floats of a register; 4 are SSE and NEON, elsewhere the compiler takes them apart.
#if defined(__AVX512F__)
constexpr int NATIVE = 16;
#elif defined(__AVX2__)
constexpr int NATIVE = 8;
#else
constexpr int NATIVE = 4;
#endif
constexpr int PARTS = LANES / NATIVE;
typedef float Vector __attribute__((vector_size(NATIVE * 4)));
typedef float LooseVector __attribute__((vector_size(NATIVE * 4), aligned(4), may_alias));

// Sixteen floats in as many registers as the machine needs for them.
struct Lanes {
    Vector part[PARTS];
};

using bf16 = uint16_t;  // the upper half of a float

inline float value(float x) { return x; }
inline float value(int8_t x) { return x; }
inline float value(bf16 x) {
    const uint32_t bits = uint32_t(x) << 16;
    float result;
    return std::memcpy(&result, &bits, 4), result;
}

inline void put(float x, float* to) { *to = x; }
inline void put(float x, bf16* to) {  // to nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    *to = bf16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

template <class Number>
inline Lanes load(const Number* from) {
    float wide[LANES];
    for (int i = 0; i < LANES; ++i) wide[i] = value(from[i]);
    Lanes x;
    std::memcpy(&x, wide, sizeof x);
    return x;
}

inline Lanes load(const float* from) {
    Lanes x;
    for (int p = 0; p < PARTS; ++p) x.part[p] = *reinterpret_cast<const LooseVector*>(from + p * NATIVE);
    return x;
}

#if defined(__AVX2__)

inline Lanes load(const bf16* from) {
    Lanes x;
#if defined(__AVX512F__)
    __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    x.part[0] = (Vector)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
#else
    for (int p = 0; p < PARTS; ++p) {
        __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + p * NATIVE));
        x.part[p] = (Vector)_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16);
    }
#endif
    return x;
}

inline Lanes load(const int8_t* from) {
    Lanes x;
#if defined(__AVX512F__)
    __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    x.part[0] = (Vector)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
#else
    for (int p = 0; p < PARTS; ++p) {
        __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + p * NATIVE));
        x.part[p] = (Vector)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    }
#endif
    return x;
}
#endif

// The first n only, zeros behind them.
template <class Number>
inline Lanes load_first(const Number* from, int n) {
    float wide[LANES] = {};
    for (int i = 0; i < n; ++i) wide[i] = value(from[i]);
    return load(wide);
}

inline void store(float* to, const Lanes& x) {
    for (int p = 0; p < PARTS; ++p) *reinterpret_cast<LooseVector*>(to + p * NATIVE) = x.part[p];
}

// sum += a b. The compiler is told to make one rounding of it where the machine can (-ffp-contract=fast).
inline void add_product(Lanes& sum, const Lanes& a, const Lanes& b) {
    for (int p = 0; p < PARTS; ++p) sum.part[p] += a.part[p] * b.part[p];
}

inline void add_product(Lanes& sum, const Lanes& a, float b) {
    for (int p = 0; p < PARTS; ++p) sum.part[p] += a.part[p] * b;
}

// Always the same tree: lane i and i + 8, then i + 4, i + 2, i + 1.
inline float total(const Lanes& x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)x.part[0]);
#else
    float lane[LANES];
    store(lane, x);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
    return lane[0];
#endif
}

}  // namespace
