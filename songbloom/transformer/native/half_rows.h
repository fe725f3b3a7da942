// What is done row by row between the large products of transformer layers, in bfloat16, forwards and backwards: norms,
// SwiGLU and rotary positions. All is computed in floats and rounded once; a row's result depends on no other row, and no
// result on the number of threads.

#pragma once

#include <cmath>
#include <cstdint>

#include "halves.h"

extern "C" {

// A norm over rows that lie one behind the other, and its gradients: a layer norm, or an RMS norm where there are no means.
struct Norm {
    const uint16_t* x;       // of backward: what the norm was of, the sum where there was one
    const uint16_t* branch;  // forward: added to x first, or null
    uint16_t* sum;           // takes this sum; of backward: the gradient that it has otherwise, or null
    const float* weight;
    const float* bias;  // of a layer norm
    uint16_t* y;        // of forward: the result; of backward: the gradient of it
    uint16_t* x_grad;   // backward only, like the next
    float* own_grads;   // of each part of the rows: weight's and, of a layer norm, then bias'; they begin as zeros
    float* means;       // of each row; forward writes these two
    float* rates;       // 1 / standard deviation, or 1 / root of the mean square
    int64_t rows, width;
    int32_t parts, threads;
    float eps;
};

// y = silu(gate) · up of rows [gate, up], or their gradient.
struct SwiGLU {
    const uint16_t* gate_up;
    uint16_t* y;             // of backward: the gradient of it
    uint16_t* gate_up_grad;  // backward only
    int64_t rows, hidden;
    int32_t threads;
};

// Queries, keys or values, and how many numbers lie between neighbours; those of one head and position lie together.
struct HeadsPart {
    uint16_t* at;
    int64_t song, head, position;
};

// Rows of queries, keys and values become heads, whose queries and keys are turned by their position's angles; or, backwards,
// the gradients of the heads that of the rows.
struct Heads {
    uint16_t* rows;      // [songs][positions][3][heads][width]
    HeadsPart parts[3];
    const float* table;  // cosines, then sines: [2][positions][turned]
    int64_t songs, positions, heads, width;
    int64_t turned;      // channels; the first half of them is turned with the second
    int32_t threads;
};

int64_t half_rows_size(int which) {
    const int64_t sizes[] = {sizeof(Norm), sizeof(SwiGLU), sizeof(Heads)};
    return sizes[which];
}

}  // extern "C"

#ifdef __AVX512FP16__

namespace halves {

inline __m512 number(float x) { return _mm512_set1_ps(x); }

inline __m512 sixteen(const uint16_t* from, int64_t n) { return load_first(from, 0, BF16, n); }

inline void put_sixteen(uint16_t* to, int64_t n, __m512 x) { store_first(to, 0, BF16, n, x); }

inline void add_to(float* to, int64_t n, __m512 x) { store_first(to, 0, FLOAT, n, _mm512_add_ps(load_first(to, 0, FLOAT, n), x)); }

template <bool CENTERED>
void norm_forward(const Norm& p, int64_t row) {
    const int64_t begin = row * p.width;
    const uint16_t* x = p.x + begin;
    __m512 sums = _mm512_setzero_ps(), squares = sums;
    if (p.branch) {
        uint16_t* sum = p.sum + begin;
        for (int64_t i = 0; i < p.width; i += WIDTH) {
            const int64_t n = p.width - i;
            put_sixteen(sum + i, n, _mm512_add_ps(sixteen(x + i, n), sixteen(p.branch + begin + i, n)));
        }
        x = sum;
    }
    float mean = 0;
    if (CENTERED) {
        for (int64_t i = 0; i < p.width; i += WIDTH) sums = _mm512_add_ps(sums, sixteen(x + i, p.width - i));
        p.means[row] = mean = _mm512_reduce_add_ps(sums) / p.width;
    }
    for (int64_t i = 0; i < p.width; i += WIDTH) {
        const __m512 off = _mm512_maskz_sub_ps(first(p.width - i), sixteen(x + i, p.width - i), number(mean));
        squares = _mm512_fmadd_ps(off, off, squares);
    }
    const float rate = 1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / p.width + p.eps);
    p.rates[row] = rate;
    for (int64_t i = 0; i < p.width; i += WIDTH) {
        const int64_t n = p.width - i;
        const __m512 normed = _mm512_mul_ps(_mm512_sub_ps(sixteen(x + i, n), number(mean)), number(rate));
        const __m512 scaled = _mm512_mul_ps(normed, load_first(p.weight, i, FLOAT, n));
        put_sixteen(p.y + begin + i, n, CENTERED ? _mm512_add_ps(scaled, load_first(p.bias, i, FLOAT, n)) : scaled);
    }
}

template <bool CENTERED>
void norm_backward(const Norm& p, int64_t row, float* weight_grad, float* bias_grad) {
    const int64_t begin = row * p.width;
    const uint16_t *x = p.x + begin, *grad = p.y + begin;
    const __m512 mean = number(CENTERED ? p.means[row] : 0.0f), rate = number(p.rates[row]);
    __m512 sums = _mm512_setzero_ps(), products = sums;
    for (int64_t i = 0; i < p.width; i += WIDTH) {
        const int64_t n = p.width - i;
        const __m512 of_y = sixteen(grad + i, n);  // zeros behind the end
        const __m512 normed = _mm512_mul_ps(_mm512_sub_ps(sixteen(x + i, n), mean), rate);
        add_to(weight_grad + i, n, _mm512_mul_ps(of_y, normed));
        const __m512 weighted = _mm512_mul_ps(of_y, load_first(p.weight, i, FLOAT, n));
        products = _mm512_fmadd_ps(weighted, normed, products);
        if (CENTERED) {
            add_to(bias_grad + i, n, of_y);
            sums = _mm512_add_ps(sums, weighted);
        }
    }
    const __m512 of_sum = number(CENTERED ? _mm512_reduce_add_ps(sums) / p.width : 0.0f);
    const __m512 of_product = number(_mm512_reduce_add_ps(products) / p.width);
    for (int64_t i = 0; i < p.width; i += WIDTH) {
        const int64_t n = p.width - i;
        const __m512 weighted = _mm512_mul_ps(sixteen(grad + i, n), load_first(p.weight, i, FLOAT, n));
        const __m512 normed = _mm512_mul_ps(_mm512_sub_ps(sixteen(x + i, n), mean), rate);
        const __m512 off = _mm512_fnmadd_ps(normed, of_product, _mm512_sub_ps(weighted, of_sum));
        const __m512 other = p.sum ? sixteen(p.sum + begin + i, n) : _mm512_setzero_ps();
        put_sixteen(p.x_grad + begin + i, n, _mm512_fmadd_ps(off, rate, other));
    }
}

template <bool CENTERED>
void norm_part(const Norm& p, int64_t part, bool backward) {
    float* grads = p.own_grads + part * (CENTERED ? 2 : 1) * p.width;
    for (int64_t row = p.rows * part / p.parts; row < p.rows * (part + 1) / p.parts; ++row)
        backward ? norm_backward<CENTERED>(p, row, grads, grads + p.width) : norm_forward<CENTERED>(p, row);
}

inline void swiglu_forward(const SwiGLU& p, int64_t row) {
    const uint16_t *gate = p.gate_up + row * 2 * p.hidden, *up = gate + p.hidden;
    for (int64_t i = 0; i < p.hidden; i += WIDTH) {
        const int64_t n = p.hidden - i;
        const __m512 x = sixteen(gate + i, n);
        put_sixteen(p.y + row * p.hidden + i, n, _mm512_mul_ps(_mm512_mul_ps(x, sigmoid(x)), sixteen(up + i, n)));
    }
}

inline void swiglu_backward(const SwiGLU& p, int64_t row) {
    const uint16_t *gate = p.gate_up + row * 2 * p.hidden, *up = gate + p.hidden;
    uint16_t *gate_grad = p.gate_up_grad + row * 2 * p.hidden, *up_grad = gate_grad + p.hidden;
    for (int64_t i = 0; i < p.hidden; i += WIDTH) {
        const int64_t n = p.hidden - i;
        const __m512 grad = sixteen(p.y + row * p.hidden + i, n), x = sixteen(gate + i, n), open = sigmoid(x);
        const __m512 silu = _mm512_mul_ps(x, open);
        const __m512 slope = _mm512_fmadd_ps(silu, _mm512_sub_ps(number(1.0f), open), open);
        put_sixteen(gate_grad + i, n, _mm512_mul_ps(_mm512_mul_ps(grad, sixteen(up + i, n)), slope));
        put_sixteen(up_grad + i, n, _mm512_mul_ps(grad, silu));
    }
}

// One head's numbers, turned by the angles of its position or, backwards, turned back.
template <bool BACK>
void turn(const uint16_t* from, uint16_t* to, const float* cosines, const float* sines, int64_t half) {
    for (int64_t i = 0; i < half; i += WIDTH) {
        const int64_t n = half - i;
        const __m512 a = sixteen(from + i, n), b = sixteen(from + half + i, n);
        const __m512 cosine_a = load_first(cosines, i, FLOAT, n), cosine_b = load_first(cosines, half + i, FLOAT, n);
        const __m512 sine_a = load_first(sines, i, FLOAT, n), sine_b = load_first(sines, half + i, FLOAT, n);
        const __m512 to_a = BACK ? _mm512_mul_ps(b, sine_b) : _mm512_mul_ps(b, sine_a);
        const __m512 to_b = BACK ? _mm512_mul_ps(a, sine_a) : _mm512_mul_ps(a, sine_b);
        put_sixteen(to + i, n, BACK ? _mm512_fmadd_ps(a, cosine_a, to_a) : _mm512_fmsub_ps(a, cosine_a, to_a));
        put_sixteen(to + half + i, n, BACK ? _mm512_fmsub_ps(b, cosine_b, to_b) : _mm512_fmadd_ps(b, cosine_b, to_b));
    }
}

template <bool BACK>
void turn_row(const Heads& p, int64_t row) {
    const int64_t song = row / p.positions, position = row % p.positions;
    const float *cosines = p.table + position * p.turned, *sines = cosines + p.positions * p.turned;
    uint16_t* at = p.rows + row * 3 * p.heads * p.width;
    for (int part = 0; part < 3; ++part) {
        const HeadsPart& of = p.parts[part];
        const int64_t turned = part < 2 ? p.turned : 0;  // values stay as they are
        for (int64_t head = 0; head < p.heads; ++head, at += p.width) {
            uint16_t* other = of.at + song * of.song + head * of.head + position * of.position;
            const uint16_t* from = BACK ? other : at;
            uint16_t* to = BACK ? at : other;
            turn<BACK>(from, to, cosines, sines, turned / 2);
            std::memcpy(to + turned, from + turned, (p.width - turned) * sizeof(uint16_t));
        }
    }
}

}  // namespace halves

extern "C" {

void half_rows_norm(const Norm* p, int backward) {
    // The parts are the same ones whatever the threads are, and so are the sums of gradients.
#pragma omp parallel for num_threads(p->threads) schedule(static)
    for (int64_t part = 0; part < p->parts; ++part)
        p->means ? halves::norm_part<true>(*p, part, backward) : halves::norm_part<false>(*p, part, backward);
}

void half_rows_swiglu(const SwiGLU* p, int backward) {
#pragma omp parallel for num_threads(p->threads) schedule(static)
    for (int64_t row = 0; row < p->rows; ++row) backward ? halves::swiglu_backward(*p, row) : halves::swiglu_forward(*p, row);
}

void half_rows_heads(const Heads* p, int backward) {
#pragma omp parallel for num_threads(p->threads) schedule(static)
    for (int64_t row = 0; row < p->songs * p->positions; ++row)
        backward ? halves::turn_row<true>(*p, row) : halves::turn_row<false>(*p, row);
}

}  // extern "C"

#else

extern "C" {
void half_rows_norm(const Norm*, int) {}
void half_rows_swiglu(const SwiGLU*, int) {}
void half_rows_heads(const Heads*, int) {}
}

#endif
