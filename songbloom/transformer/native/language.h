// One position of a Llama-style language model through all of its layers, for the rows of a few songs at once.
//
// Rows that have the same conditions stand together ("runs") and read one copy of the conditions' keys and values, a head
// at a time: memory gives it once, however many songs there are. What is computed for a row depends on nothing but it.

#pragma once

#include <cmath>

#include "panels.h"
#include "products.h"

// These structures are written out again in songbloom/prior/songbloom/native.py.
struct LanguageLayer {
    Matrix query_key_value, output, gate_up, down;
    const float *norm, *mlp_norm;       // [width]
    const void* const* prefix_keys;     // of each condition [heads][head width][prefix]
    const void* const* prefix_values;   // of each condition [heads][prefix][head width]
    void *keys, *values;                // [rows][heads][capacity][head width]
};

struct Language {
    const LanguageLayer* layers;
    const float* norm;                  // the last one
    int32_t depth, rows, width, heads, hidden, entry_kind, threads, runs;
    int64_t prefix, capacity, position; // positions of the conditions; room for those of the song; which of them this is
    const int32_t* run;                 // [runs][3]: condition, first row, end row
    const float* table;                 // [2][head width]: cosines and sines of this position
    float* x;                           // [rows][width]: the input; the output is left here
    float* scratch;                     // of language_scratch() floats
};

// Two linear maps with silu between, with or without biases.
struct Maps {
    Matrix hidden, output;
    int32_t rows, threads;
    const float* x;                     // [rows][inputs]
    float* made;                        // [rows][outputs]
    float* scratch;                     // of maps_scratch() floats
};

namespace {

constexpr float RMS_EPS = 1e-6f;
constexpr int CHUNK = 32;    // weight rows that a thread takes at a time
constexpr int TOGETHER = 4;  // rows of a run that look at keys and values together
constexpr int CHANNELS = 8;  // channels of keys that are read in one go
constexpr int AHEAD = 2048;  // bytes of values that are fetched before they are needed

// use(row, output, number) for all outputs, shared out over the threads, which go on when all is done.
template <class Use>
void shared(const Matrix& m, int outputs, const float* x, int rows, Use use) {
    const int64_t stride = apart(m.inputs);
#pragma omp for schedule(dynamic, 1)
    for (int begin = 0; begin < outputs; begin += CHUNK) {
        const int end = begin + CHUNK < outputs ? begin + CHUNK : outputs;
        if (m.kind == BFLOAT16)
            products(static_cast<const bf16*>(m.weight), m.inputs, begin, end, x, stride, rows, m.inputs, nullptr, use);
        else
            products(static_cast<const float*>(m.weight), m.inputs, begin, end, x, stride, rows, m.inputs, nullptr, use);
    }
}

// score[r][j] = Σ_c query[r][c] key[c][j] for R rows and all j.
template <int R, class Entry>
void score_channels(const Entry* key, int64_t count, int head_width, const float* query, int64_t query_stride, float* score,
                    int64_t score_stride) {
    for (int c = 0; c < head_width; c += CHANNELS) {
        const int there = head_width - c < CHANNELS ? head_width - c : CHANNELS;
        for (int64_t j = 0; j < count; j += LANES) {
            const bool whole = j + LANES <= count;
            Lanes sum[R];
            for (int r = 0; r < R; ++r) sum[r] = c ? load(score + r * score_stride + j) : Lanes{};
            auto channel = [&](int i) {
                const Entry* from = key + (c + i) * count + j;
                if (!(j & (64 / sizeof(Entry) - 1))) __builtin_prefetch(from + CHANNELS * count, 0, 2);
                const Lanes keys = whole ? load(from) : load_first(from, int(count - j));
                for (int r = 0; r < R; ++r) add_product(sum[r], keys, query[r * query_stride + c + i]);
            };
            if (there == CHANNELS && whole) {
#pragma GCC unroll 8
                for (int i = 0; i < CHANNELS; ++i) channel(i);
            } else {
                for (int i = 0; i < there; ++i) channel(i);
            }
            for (int r = 0; r < R; ++r) store(score + r * score_stride + j, sum[r]);
        }
    }
}

// to[r][k] += Σ_j weight[r][j] value[j][k] for R rows.
template <int R, class Entry>
void add_values(const Entry* value, int64_t count, int head_width, const float* weight, int64_t weight_stride, float* to,
                int64_t to_stride) {
    constexpr int BESIDE = 4;  // lanes of channels that are summed in registers
    int k = 0;
    for (; k + BESIDE * LANES <= head_width; k += BESIDE * LANES) {
        Lanes sum[R][BESIDE];
        for (int r = 0; r < R; ++r)
            for (int i = 0; i < BESIDE; ++i) sum[r][i] = load(to + r * to_stride + k + i * LANES);
        for (int64_t j = 0; j < count; ++j) {
            Lanes values[BESIDE];
            const char* ahead = reinterpret_cast<const char*>(value + j * head_width + k) + AHEAD;
            for (size_t i = 0; i < BESIDE * LANES * sizeof(Entry); i += 64) __builtin_prefetch(ahead + i, 0, 2);
            for (int i = 0; i < BESIDE; ++i) values[i] = load(value + j * head_width + k + i * LANES);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
                for (int i = 0; i < BESIDE; ++i) add_product(sum[r][i], values[i], weight[r * weight_stride + j]);
        }
        for (int r = 0; r < R; ++r)
            for (int i = 0; i < BESIDE; ++i) store(to + r * to_stride + k + i * LANES, sum[r][i]);
    }
    for (; k < head_width; k += LANES) {  // rows of `to` have room for whole lanes
        const int there = head_width - k < LANES ? head_width - k : LANES;
        for (int r = 0; r < R; ++r) {
            Lanes sum = load(to + r * to_stride + k);
            for (int64_t j = 0; j < count; ++j) {
                const Entry* from = value + j * head_width + k;
                add_product(sum, there == LANES ? load(from) : load_first(from, there), weight[r * weight_stride + j]);
            }
            store(to + r * to_stride + k, sum);
        }
    }
}

// Parts of the scratch memory; those of a thread come last.
struct LanguageScratch {
    float *qkv, *attended, *hidden, *up, *own;
    int64_t row, row3, hidden_row, head, scores, inputs, own_size, size;
    LanguageScratch(const Language& s, float* at) {
        int64_t used = 0;
        auto take = [&](int64_t n) { float* part = at ? at + used : nullptr; used += rounded(n); return part; };
        row = apart(s.width), row3 = apart(3 * s.width), hidden_row = apart(s.hidden), head = apart(s.width / s.heads);
        qkv = take(s.rows * row3), attended = take(s.rows * row), hidden = take(s.rows * hidden_row);
        up = take(s.rows * hidden_row);
        scores = apart(s.prefix) + apart(s.capacity);
        inputs = s.rows * row;
        own_size = rounded(inputs + TOGETHER * (2 * head + scores));
        own = take(s.threads * own_size);
        size = used;
    }
};

class Position {
  public:
    Position(const Language& step, const LanguageScratch& scratch, int thread)
        : s(step), m(scratch), width(step.width), head_width(step.width / step.heads), normed(m.own + thread * m.own_size),
          query(normed + m.inputs), seen(query + TOGETHER * m.head), score(seen + TOGETHER * m.head) {}

    void run() {
        for (int l = 0; l < s.depth; ++l) s.entry_kind == BFLOAT16 ? layer<bf16>(s.layers[l]) : layer<float>(s.layers[l]);
#pragma omp for
        for (int r = 0; r < s.rows; ++r) norm_row(s.x + r * width, s.norm, s.x + r * width);
    }

  private:
    const Language& s;
    const LanguageScratch& m;
    const int64_t width;
    const int head_width;
    float *normed, *query, *seen, *score;  // this thread's own

    void norm_row(const float* x, const float* weight, float* to) const {
        Lanes sum = Lanes{};
        for (int k = 0; k < width; k += LANES) {
            const Lanes each = width - k < LANES ? load_first(x + k, width - k) : load(x + k);
            for (int p = 0; p < PARTS; ++p) sum.part[p] += each.part[p] * each.part[p];
        }
        const float rate = 1.0f / std::sqrt(total(sum) / width + RMS_EPS);
        for (int k = 0; k < width; ++k) to[k] = x[k] * rate * weight[k];
    }

    // Every thread does it for itself, which takes less time than meeting once more.
    void norm(const float* weight) {
        for (int r = 0; r < s.rows; ++r) norm_row(s.x + r * width, weight, normed + r * m.row);
    }

    template <class Entry>
    void layer(const LanguageLayer& layer) {
        norm(layer.norm);
        shared(layer.query_key_value, 3 * width, normed, s.rows, [&](int r, int o, float y) { m.qkv[r * m.row3 + o] = y; });
        attend<Entry>(layer);
        shared(layer.output, width, m.attended, s.rows, [&](int r, int o, float y) { s.x[r * width + o] += y; });
        norm(layer.mlp_norm);
        feed_forward(layer);
        shared(layer.down, width, m.hidden, s.rows, [&](int r, int o, float y) { s.x[r * width + o] += y; });
    }

    void feed_forward(const LanguageLayer& layer) {
        layer.gate_up.kind == BFLOAT16 ? gates(static_cast<const bf16*>(layer.gate_up.weight))
                                       : gates(static_cast<const float*>(layer.gate_up.weight));
    }

    template <class Weight>
    void gates(const Weight* w) {
#pragma omp for schedule(dynamic, 1)
        for (int begin = 0; begin < s.hidden; begin += CHUNK) {
            const int end = begin + CHUNK < s.hidden ? begin + CHUNK : s.hidden;
            auto gate = [&](int r, int o, float y) { m.hidden[r * m.hidden_row + o] = y; };
            auto up = [&](int r, int o, float y) { m.up[r * m.hidden_row + o] = y; };
            products(w, width, begin, end, normed, m.row, s.rows, width, nullptr, gate);
            products(w + int64_t(s.hidden) * width, width, begin, end, normed, m.row, s.rows, width, nullptr, up);
            for (int r = 0; r < s.rows; ++r)
                for (int64_t o = r * m.hidden_row + begin; o < r * m.hidden_row + end; o += LANES)
                    store(m.hidden + o, gated(load(m.hidden + o), load(m.up + o)));  // rows have room for whole lanes
        }
    }

    // One head of the rows of one run is a unit of work; it also writes the new keys and values.
    template <class Entry>
    void attend(const LanguageLayer& layer) {
#pragma omp for schedule(dynamic, 1)
        for (int unit = 0; unit < s.runs * s.heads; ++unit) {
            const int32_t* run = s.run + 3 * (unit / s.heads);
            const int head = unit % s.heads;
            int row = run[1];
            for (; row + 4 <= run[2]; row += 4) rows_of<4, Entry>(layer, run[0], head, row);
            for (; row + 2 <= run[2]; row += 2) rows_of<2, Entry>(layer, run[0], head, row);
            for (; row < run[2]; ++row) rows_of<1, Entry>(layer, run[0], head, row);
        }
    }

    void turn(const float* x, float rate, float* to) const {
        const int half = head_width / 2;
        const float *cosines = s.table, *sines = s.table + head_width;
        for (int i = 0; i < half; ++i) {
            to[i] = (x[i] * cosines[i] - x[half + i] * sines[i]) * rate;
            to[half + i] = (x[half + i] * cosines[half + i] + x[i] * sines[half + i]) * rate;
        }
    }

    // R rows from `row` on look at the conditions together and each at its own song.
    template <int R, class Entry>
    void rows_of(const LanguageLayer& layer, int condition, int head, int row) {
        const float rate = 1.0f / std::sqrt(float(head_width));
        const int64_t own = s.position + 1, prefix_room = apart(s.prefix), piece = s.prefix * head_width;
        for (int r = 0; r < R; ++r) {
            const float* from = m.qkv + (row + r) * m.row3 + head * head_width;
            Entry* key = entries<Entry>(layer.keys, row + r, head) + s.position * head_width;
            Entry* value = entries<Entry>(layer.values, row + r, head) + s.position * head_width;
            turn(from + width, 1.0f, seen);
            for (int k = 0; k < head_width; ++k) put(seen[k], key + k), put(from[2 * width + k], value + k);
            turn(from, rate, query + r * m.head);
        }
        score_channels<R>(static_cast<const Entry*>(layer.prefix_keys[condition]) + head * piece, s.prefix, head_width, query,
                          m.head, score, m.scores);
        float rates[R];
        for (int r = 0; r < R; ++r) {
            float* scores = score + r * m.scores;
            auto use = [&](int, int key, float y) { scores[prefix_room + key] = y; };
            products(entries<Entry>(layer.keys, row + r, head), head_width, 0, int(own), query + r * m.head, 0, 1, head_width,
                     nullptr, use);
            rates[r] = weights(scores, s.prefix, scores + prefix_room, own);
            for (int k = 0; k < m.head; ++k) seen[r * m.head + k] = 0.0f;
        }
        add_values<R>(static_cast<const Entry*>(layer.prefix_values[condition]) + head * piece, s.prefix, head_width, score,
                      m.scores, seen, m.head);
        for (int r = 0; r < R; ++r) {
            float* of = seen + r * m.head;
            add_values<1>(entries<Entry>(layer.values, row + r, head), own, head_width, score + r * m.scores + prefix_room,
                          m.scores, of, m.head);
            float* to = m.attended + (row + r) * m.row + head * head_width;
            for (int k = 0; k < head_width; ++k) to[k] = of[k] * rates[r];
        }
    }

    template <class Entry>
    Entry* entries(void* all, int row, int head) const {
        return static_cast<Entry*>(all) + (int64_t(row) * s.heads + head) * s.capacity * head_width;
    }

    // Scores become weights, not yet divided by their sum; returns one over it.
    static float weights(float* a, int64_t a_count, float* b, int64_t b_count) {
        float largest = b[0];
        for (int64_t j = 0; j < a_count; ++j) largest = a[j] > largest ? a[j] : largest;
        for (int64_t j = 0; j < b_count; ++j) largest = b[j] > largest ? b[j] : largest;
        return 1.0f / (raised(a, a_count, largest) + raised(b, b_count, largest));
    }

    static float raised(float* x, int64_t count, float largest) {
        for (int64_t j = 0; j < count; j += LANES) {  // behind them is room for whole lanes
            Lanes each = load(x + j);
            for (int p = 0; p < PARTS; ++p) each.part[p] -= largest;
            store(x + j, exponential(each));
        }
        Lanes sum = Lanes{};
        for (int64_t j = 0; j < count; j += LANES) {
            const Lanes each = count - j < LANES ? load_first(x + j, int(count - j)) : load(x + j);
            for (int p = 0; p < PARTS; ++p) sum.part[p] += each.part[p];
        }
        return total(sum);
    }
};

inline int64_t maps_floats(const Maps& m) { return m.rows * (apart(m.hidden.inputs) + apart(m.output.inputs)); }

inline void map(const Maps& m) {
    const int64_t in = apart(m.hidden.inputs), between = apart(m.output.inputs), out = m.output.outputs;
    float *x = m.scratch, *hidden = x + m.rows * in;
#pragma omp for
    for (int r = 0; r < m.rows; ++r) std::memcpy(x + r * in, m.x + int64_t(r) * m.hidden.inputs, m.hidden.inputs * sizeof(float));
    shared(m.hidden, m.hidden.outputs, x, m.rows, [&](int r, int o, float y) {
        const float biased = m.hidden.bias ? y + m.hidden.bias[o] : y;
        hidden[r * between + o] = biased / (1.0f + exponential(-biased));
    });
    shared(m.output, m.output.outputs, hidden, m.rows,
           [&](int r, int o, float y) { m.made[r * out + o] = m.output.bias ? y + m.output.bias[o] : y; });
}

}  // namespace
