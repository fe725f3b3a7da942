// Softmax attention in half precision (see halves.h), forwards and backwards, without a matrix of all scores: FlashAttention's
// order of things (Dao et al. 2022, algorithms 1 and 4; Dao 2023, section 3) with whole rows of scores at a time forwards.
//
// A unit is one head of one item. It is computed by one thread, and depends on nothing but itself. Its channels of values
// are scaled by their largest number at any position, so what later positions have may decide how the numbers of earlier
// ones are rounded. Floats below 2^-126 are zeros here.

#pragma once

#include <cmath>

#include "halves.h"

extern "C" {

// A tensor [outer][heads][positions][width]: where it begins, and how many numbers lie between neighbours.
struct Positions {
    void* at;
    int64_t outer, head, position;
};

struct Attention {
    Positions query, key, value, result;
    Positions result_grad, query_grad, key_grad, value_grad;  // backward only
    float* logs;    // [outer][heads][queries]: of the sums of exponentials; forward writes them
    void* scratch;  // of halves_attention_scratch() bytes
    int64_t outer, heads, queries, keys, width;
    int32_t kind, causal, threads;
    float rate;  // scores are products of queries and keys times this
};

}  // extern "C"

#ifdef __AVX512FP16__

namespace halves {

constexpr int64_t BLOCK = 10 * TILE; // queries whose probabilities are kept for the gradients of keys and values
constexpr int64_t REACH = 512;       // keys whose gradients are found together
constexpr int ATTENTION_RUN = 16;    // products summed one after the other as halves: what scores lose is in exponents
constexpr float ONE = 8;             // what a probability of one is as a half
constexpr float NOTHING = -1e30f;    // a score that is not there

struct NothingFetched {
    void run() {}
    void each(const uint16_t*) {}
};

// While it lives, floats that are next to nothing are nothing: computing with them would take a hundred times as long.
class Flushed {
  public:
    Flushed() : before(_mm_getcsr()) { _mm_setcsr(before | 0x8040); }  // flush to zero, denormals are zeros
    ~Flushed() { _mm_setcsr(before); }

  private:
    unsigned before;
};

// All lines of an operand as tiles (of TILE) or panels (of PANEL), one behind the other.
struct Laid {
    uint16_t* at;
    float* scales;  // what sums of each line have to be multiplied by; a tile has WIDTH of them

    uint16_t* tile(int64_t index, int64_t depth) const { return at + index * depth * TILE; }
    uint16_t* panel(int64_t index, int64_t depth) const { return at + index * depth * PANEL; }
};

inline int64_t tiles_in(int64_t n) { return (n + TILE - 1) / TILE; }
inline int64_t panels_in(int64_t n) { return (n + PANEL - 1) / PANEL; }

// A tile of lines whose largest magnitudes are known.
inline void lay_tile(const Lines& lines, __m512i most, uint16_t* to, float* scales) {
    TileWriter writer{to, scales_for(most), _mm512_setzero_ps()};
    spread<1>(lines, writer);
    _mm512_storeu_ps(scales, inverse(writer.scale));
}

inline void lay_tiles(const Lines& lines, const Laid& to) {
    for (int64_t t = 0; t < tiles_in(lines.count); ++t) {
        const Lines part = lines.part(t * TILE, least(TILE, lines.count - t * TILE), 0, lines.depth);
        alignas(64) int32_t most[2 * WIDTH] = {};
        largest(part, most);
        lay_tile(part, _mm512_load_si512(most), to.tile(t, lines.depth), to.scales + t * WIDTH);
    }
}

inline void lay_panels(const Lines& lines, const Laid& to) {
    for (int64_t p = 0; p < panels_in(lines.count); ++p) {
        const Lines part = lines.part(p * PANEL, least(PANEL, lines.count - p * PANEL), 0, lines.depth);
        alignas(64) int32_t most[PANEL] = {};
        largest(part, most);
        lay_panel(part, most, to.panel(p, lines.depth), to.scales + p * PANEL);
    }
}

// A thread's scratch memory; what is for one direction only has no size in the other.
struct AttentionScratch {
    Laid queries, keys, values;                          // tiles; panels of keys; panels of the values' channels, backwards of values
    Laid gradients, queries_across, gradients_across, keys_across;  // backwards: tiles; panels of channels
    float *scores, *shares, *query_grads, *key_grads, *value_grads;
    uint16_t *chances, *tile;
    int32_t* most;
    int64_t stride, wide, bytes;

    AttentionScratch(const Attention& a, char* at, bool backward) {
        int64_t used = 0;
        auto take = [&](int64_t n) {
            char* part = at + used;
            used += (n + 127) / 64 * 64;
            return part;
        };
        auto floats = [&](int64_t n) { return reinterpret_cast<float*>(take(4 * n)); };
        auto numbers = [&](int64_t n) { return reinterpret_cast<uint16_t*>(take(2 * n)); };
        auto tiles = [&](int64_t n, int64_t depth) {
            uint16_t* place = numbers(tiles_in(n) * TILE * depth + SLACK);
            return Laid{place, floats(tiles_in(n) * WIDTH)};
        };
        auto panels = [&](int64_t n, int64_t depth) {
            uint16_t* place = numbers(panels_in(n) * PANEL * depth);
            return Laid{place, floats(panels_in(n) * PANEL)};
        };
        const int64_t reached = backward ? least(REACH, a.keys) : a.keys;
        stride = panels_in(reached) * PANEL, wide = panels_in(a.width) * PANEL;
        queries = tiles(backward ? a.queries : TILE, a.width);
        keys = panels(a.keys, a.width);
        values = backward ? panels(a.keys, a.width) : panels(a.width, a.keys);
        scores = floats((backward ? BLOCK : TILE) * stride);
        tile = numbers((stride > BLOCK ? stride : BLOCK) * TILE + SLACK);
        most = reinterpret_cast<int32_t*>(take(4 * (stride + 2 * WIDTH)));
        if (!backward) {
            bytes = used;
            return;
        }
        gradients = tiles(a.queries, a.width);
        queries_across = panels(a.width, a.queries), gradients_across = panels(a.width, a.queries);
        keys_across = panels(a.width, a.keys);
        chances = numbers(BLOCK * stride + WIDTH);
        shares = floats(a.queries);
        query_grads = floats(a.queries * wide);
        key_grads = floats(stride * wide), value_grads = floats(stride * wide);
        bytes = used;
    }
};

// One unit.
class Head {
  public:
    Head(const Attention& a, const AttentionScratch& m, int64_t unit)
        : a(a), m(m), outer(unit / a.heads), head(unit % a.heads), logs(a.logs + unit * a.queries) {}

    void forward() {
        lay_panels(across(a.key, a.keys), m.keys);
        lay_panels(along(a.value, a.keys), m.values);
        const Lines queries = across(a.query, a.queries);
        for (int64_t begin = 0; begin < a.queries; begin += TILE) {
            const int64_t rows = least(TILE, a.queries - begin);
            lay_tiles(queries.part(begin, rows, 0, a.width), m.queries);
            const int64_t seen = a.causal ? least(a.keys, begin + rows) : a.keys;
            __m512 most[TILE], totals[TILE];
            for (int64_t r = 0; r < TILE; ++r) most[r] = _mm512_set1_ps(NOTHING), totals[r] = _mm512_setzero_ps();
            for (int64_t p = 0; p < panels_in(seen); ++p) {
                products(m.queries.tile(0, a.width), m.keys.panel(p, a.width), a.width);
                for (int64_t r = 0; r < rows; ++r)
                    for (int64_t j = 0; j < PANEL; j += WIDTH) {
                        const __m512 x = score(m.queries, 0, p, r, j, seen_by(begin + r) - p * PANEL - j);
                        most[r] = _mm512_max_ps(most[r], x);
                        _mm512_storeu_ps(m.scores + r * m.stride + p * PANEL + j, x);
                    }
            }
            float largest[TILE];
            for (int64_t r = 0; r < rows; ++r) largest[r] = _mm512_reduce_max_ps(most[r]);
            TileWriter writer{m.tile, _mm512_set1_ps(ONE), _mm512_setzero_ps()};
            for (int64_t k = 0; k < seen; k += WIDTH) {
                __m512 block[WIDTH];
                for (int64_t r = 0; r < WIDTH; ++r) {
                    block[r] = _mm512_setzero_ps();
                    if (r >= rows) continue;
                    const __m512 x = _mm512_loadu_ps(m.scores + r * m.stride + k);
                    block[r] = exponential(_mm512_sub_ps(x, _mm512_set1_ps(largest[r])));
                    totals[r] = _mm512_add_ps(totals[r], block[r]);
                }
                transpose(block);
                for (int64_t i = 0; i < WIDTH; ++i) writer(k + i, 0, block[i]);
            }
            float rates[TILE];
            for (int64_t r = 0; r < rows; ++r) {
                const float total = _mm512_reduce_add_ps(totals[r]);
                logs[begin + r] = largest[r] + std::log(total);
                rates[r] = 1 / (ONE * total);
            }
            for (int64_t p = 0; p < panels_in(a.width); ++p) {
                products(m.tile, m.values.panel(p, a.keys), seen);
                for (int64_t r = 0; r < rows; ++r)
                    for (int64_t j = 0; j < PANEL && p * PANEL + j < a.width; j += WIDTH) {
                        const __m512 x = _mm512_mul_ps(sum(r, j), _mm512_load_ps(m.values.scales + p * PANEL + j));
                        put(a.result, begin + r, p * PANEL + j, _mm512_mul_ps(x, _mm512_set1_ps(rates[r])));
                    }
            }
        }
    }

    void backward() {
        lay_tiles(across(a.query, a.queries), m.queries);
        lay_tiles(across(a.result_grad, a.queries), m.gradients);
        lay_panels(across(a.key, a.keys), m.keys);
        lay_panels(across(a.value, a.keys), m.values);
        lay_panels(along(a.query, a.queries), m.queries_across);
        lay_panels(along(a.result_grad, a.queries), m.gradients_across);
        lay_panels(along(a.key, a.keys), m.keys_across);
        for (int64_t q = 0; q < a.queries; ++q) {
            __m512 share = _mm512_setzero_ps();
            for (int64_t j = 0; j < a.width; j += WIDTH) share = _mm512_fmadd_ps(get(a.result, q, j), get(a.result_grad, q, j), share);
            m.shares[q] = _mm512_reduce_add_ps(share);
        }
        for (int64_t from = 0; from < a.keys; from += REACH) {
            const int64_t keys = least(REACH, a.keys - from);
            int64_t written = 0;  // of these keys
            for (int64_t begin = a.causal ? from / BLOCK * BLOCK : 0; begin < a.queries; begin += BLOCK)
                written = block(begin, least(BLOCK, a.queries - begin), from, keys, written);
            std::memset(m.key_grads + written * m.wide, 0, (keys - written) * m.wide * 4);
            std::memset(m.value_grads + written * m.wide, 0, (keys - written) * m.wide * 4);
            for (int64_t k = 0; k < keys; ++k) {
                put_row(a.key_grad, from + k, m.key_grads + k * m.wide);
                put_row(a.value_grad, from + k, m.value_grads + k * m.wide);
            }
        }
        for (int64_t q = 0; q < a.queries; ++q) put_row(a.query_grad, q, m.query_grads + q * m.wide);
    }

  private:
    const Attention& a;
    const AttentionScratch& m;
    const int64_t outer, head;
    float* logs;  // of this unit
    alignas(64) float sums[TILE * PANEL];

    char* at(const Positions& x, int64_t position) const {
        const int64_t numbers = outer * x.outer + head * x.head + position * x.position;
        return static_cast<char*>(x.at) + numbers * size_of(a.kind);
    }

    // Lines are positions, each of `width` numbers; or channels, each of a number of every position.
    Lines across(const Positions& x, int64_t count) const { return {at(x, 0), a.kind, true, x.position, count, a.width}; }
    Lines along(const Positions& x, int64_t count) const { return {at(x, 0), a.kind, false, x.position, a.width, count}; }

    __m512 get(const Positions& x, int64_t position, int64_t j) const { return load_first(at(x, position), j, a.kind, a.width - j); }
    void put(const Positions& x, int64_t position, int64_t j, __m512 value) const {
        store_first(at(x, position), j, a.kind, a.width - j, value);
    }
    void put_row(const Positions& x, int64_t position, const float* row) const {
        for (int64_t j = 0; j < a.width; j += WIDTH) put(x, position, j, _mm512_loadu_ps(row + j));
    }

    void products(const uint16_t* tile, const uint16_t* panel, int64_t depth) {
        NothingFetched nothing;
        multiply<TILE, PANEL / (2 * WIDTH), ATTENTION_RUN>(tile, panel, depth, sums, nothing);
    }

    __m512 sum(int64_t r, int64_t j) const { return _mm512_load_ps(sums + r * PANEL + j); }

    int64_t seen_by(int64_t query) const { return a.causal ? least(a.keys, query + 1) : a.keys; }

    // Sixteen of the scores that products() has found of row r of a tile, and of the columns from j on of a panel of keys; the
    // first `there` of them are.
    __m512 score(const Laid& tiles, int64_t tile, int64_t panel, int64_t r, int64_t j, int64_t there) const {
        const __m512 row = _mm512_set1_ps(tiles.scales[tile * WIDTH + r] * a.rate);
        const __m512 x = _mm512_mul_ps(_mm512_mul_ps(sum(r, j), row), _mm512_load_ps(m.keys.scales + panel * PANEL + j));
        return _mm512_mask_blend_ps(first(there), _mm512_set1_ps(NOTHING), x);
    }

    // What queries from `begin` on and keys from `from` on give to each other's gradients and to the values'. The first
    // `written` of these keys have something already; those that have now are told.
    int64_t block(int64_t begin, int64_t rows, int64_t from, int64_t keys, int64_t written) {
        const int64_t all = a.causal ? least(keys, begin + rows - from) : keys;  // keys that any of them sees
        if (all <= 0) return written;
        for (int64_t t = 0; t < rows; t += TILE) {
            const int64_t tile = (begin + t) / TILE, count = least(TILE, rows - t);
            const int64_t seen = a.causal ? least(keys, begin + t + count - from) : keys;
            for (int64_t p = 0; p < panels_in(all); ++p) chances_of(tile, t, count, from, p, p * PANEL < seen);
            if (seen <= 0) continue;
            const Lines lines{reinterpret_cast<char*>(m.scores + t * m.stride), FLOAT, true, m.stride, count, seen};
            alignas(64) int32_t most[2 * WIDTH] = {};
            alignas(64) float scales[WIDTH];
            largest(lines, most);
            lay_tile(lines, _mm512_load_si512(most), m.tile, scales);
            for (int64_t p = 0; p < panels_in(a.width); ++p) {
                products(m.tile, m.keys_across.panel(p, a.keys) + from * PANEL, seen);
                add(m.query_grads + (begin + t) * m.wide, from ? count : 0, count, p, scales, m.keys_across.scales);
            }
        }
        const Lines scores{reinterpret_cast<char*>(m.scores), FLOAT, false, m.stride, all, rows};
        const Lines chances{reinterpret_cast<char*>(m.chances), HALF, false, m.stride, all, rows};
        largest_of_lines(scores, m.most);
        for (int64_t k = 0; k < all; k += TILE) {
            const int64_t count = least(TILE, all - k), there = written - k;
            alignas(64) float scales[WIDTH];
            lay_tile(scores.part(k, count, 0, rows), _mm512_loadu_si512(m.most + k), m.tile, scales);
            for (int64_t p = 0; p < panels_in(a.width); ++p) {
                products(m.tile, m.queries_across.panel(p, a.queries) + begin * PANEL, rows);
                add(m.key_grads + k * m.wide, there, count, p, scales, m.queries_across.scales);
            }
            TileWriter writer{m.tile, _mm512_set1_ps(1), _mm512_setzero_ps()};
            const Lines part = chances.part(k, count, 0, rows);
            spread<1>(part, writer);
            _mm512_store_ps(scales, _mm512_set1_ps(1 / ONE));
            for (int64_t p = 0; p < panels_in(a.width); ++p) {
                products(m.tile, m.gradients_across.panel(p, a.queries) + begin * PANEL, rows);
                add(m.value_grads + k * m.wide, there, count, p, scales, m.gradients_across.scales);
            }
        }
        return all > written ? all : written;
    }

    // Probabilities, and gradients of the scores before they are scaled by `rate`, of a tile of queries (row t of the block)
    // and a panel of the keys from `from` on; zeros where nothing is seen.
    void chances_of(int64_t tile, int64_t t, int64_t count, int64_t from, int64_t p, bool seen) {
        float* scores = m.scores + t * m.stride + p * PANEL;
        uint16_t* chances = m.chances + t * m.stride + p * PANEL;
        if (!seen) {
            for (int64_t r = 0; r < count; ++r) {
                std::memset(scores + r * m.stride, 0, PANEL * 4);
                std::memset(chances + r * m.stride, 0, PANEL * 2);
            }
            return;
        }
        const int64_t panel = from / PANEL + p;
        products(m.queries.tile(tile, a.width), m.keys.panel(panel, a.width), a.width);
        for (int64_t r = 0; r < count; ++r) {
            const int64_t query = tile * TILE + r;
            for (int64_t j = 0; j < PANEL; j += WIDTH) {
                const __m512 x = score(m.queries, tile, panel, r, j, seen_by(query) - panel * PANEL - j);
                _mm512_storeu_ps(scores + r * m.stride + j, exponential(_mm512_sub_ps(x, _mm512_set1_ps(logs[query]))));
            }
        }
        products(m.gradients.tile(tile, a.width), m.values.panel(panel, a.width), a.width);
        for (int64_t r = 0; r < count; ++r) {
            const __m512 row = _mm512_set1_ps(m.gradients.scales[tile * WIDTH + r]);
            const __m512 share = _mm512_set1_ps(m.shares[tile * TILE + r]);
            for (int64_t j = 0; j < PANEL; j += WIDTH) {
                const __m512 chance = _mm512_loadu_ps(scores + r * m.stride + j);
                const __m512 x = _mm512_mul_ps(_mm512_mul_ps(sum(r, j), row), _mm512_load_ps(m.values.scales + panel * PANEL + j));
                store_first(chances + r * m.stride, j, HALF, WIDTH, _mm512_mul_ps(chance, _mm512_set1_ps(ONE)));
                const __m512 slope = _mm512_mul_ps(chance, _mm512_set1_ps(a.rate));
                _mm512_storeu_ps(scores + r * m.stride + j, _mm512_mul_ps(slope, _mm512_sub_ps(x, share)));
            }
        }
    }

    // What products() has found is added to rows of floats, the first `there` of them, and is the others.
    void add(float* rows, int64_t there, int64_t count, int64_t panel, const float* row_scales, const float* scales) const {
        for (int64_t r = 0; r < count; ++r) {
            const __m512 row = _mm512_set1_ps(row_scales[r]);
            for (int64_t j = 0; j < PANEL; j += WIDTH) {
                float* to = rows + r * m.wide + panel * PANEL + j;
                const __m512 x = _mm512_mul_ps(_mm512_mul_ps(sum(r, j), row), _mm512_load_ps(scales + panel * PANEL + j));
                _mm512_storeu_ps(to, r < there ? _mm512_add_ps(x, _mm512_loadu_ps(to)) : x);
            }
        }
    }
};

}  // namespace halves
#endif
