// One look of a diffusion transformer at the patches of a few songs: noisy latents and a time → velocities.
//
// The sequence of a patch is [time,] what is known of it, its own latents; every position sees all. What the first layer
// makes of the known positions is computed once a patch (`begin`), in the last layer only the latents' own positions
// have queries, output and feed-forward. Rows go through the products in blocks whose hidden values stay in the second
// cache. What is computed for a song depends on nothing but that song.

#pragma once

#include <cmath>
#include <vector>

#include "half_panels.h"
#include "products.h"

// These structures are written out again in songbloom/prior/songbloom/native.py.
struct DiffusionLayer {
    Matrix query, key_value, output, gate_up, down;
    const float *norm_weight, *norm_bias, *mlp_norm_weight, *mlp_norm_bias;  // [width]
};

struct Diffusion {
    const DiffusionLayer* layers;
    Matrix project_in, project_out;
    int32_t depth, songs, positions, own, latent, width, heads, hidden, rotated, prepended, threads;
    int32_t blind;          // songs from this one on have zeros for hidden vector and sketch, and their first layer's norm no shift
    const float* table;     // [2][positions][rotated]: cosines and sines of the rotary positions
    const float* known;     // [songs][positions - own - prepended][width]
    const float* time;      // [width], where it is prepended
    const float* gates;     // [depth][6][width]: 1 + scale, shift, gate of attention, then of the feed-forward; or null
    const float* x;         // [songs][own][latent]
    float* velocity;        // likewise
    float* first;           // of diffusion_kept() floats: what begin() keeps of the first layer
    float* scratch;         // of diffusion_scratch() floats
};

namespace {

constexpr int ROWS = 112;                   // rows of a block at most: a few megabytes of hidden values
constexpr float LAYER_NORM_EPS = 1e-5f;

inline float sum_of(const float* x, int n, float mean, bool squares) {
    Lanes sum = Lanes{};
    for (int k = 0; k < n; k += LANES) {
        Lanes each = n - k < LANES ? load_first(x + k, n - k) : load(x + k);
        const int there = n - k < LANES ? n - k : LANES;
        float lane[LANES];
        if (there < LANES) {  // what is not there is not to be told from the mean
            store(lane, each);
            for (int i = there; i < LANES; ++i) lane[i] = mean;
            each = load(lane);
        }
        for (int p = 0; p < PARTS; ++p) {
            each.part[p] -= mean;
            sum.part[p] += squares ? each.part[p] * each.part[p] : each.part[p];
        }
    }
    return total(sum);
}

// The gated half of a panel: silu(gate) times what it gates.
inline void gated(const float* made, int count, float* to) {
    const Lanes all = gated(load(made), load(made + LANES));
    if (count == LANES) return store(to, all);
    float last[LANES];
    store(last, all);
    std::memcpy(to, last, count * sizeof(float));
}

inline void add(const float* made, int count, float* to) {
    for (int c = 0; c < count; ++c) to[c] += made[c];
}

// Parts of the scratch memory; those of a thread come last.
struct DiffusionScratch {
    float *y, *qkv, *normed, *attended, *hidden, *own;
    HalfRows half;
    int64_t row, row3, hidden_row, head, panel, keys, own_size, size;
    DiffusionScratch(const Diffusion& d, float* at) {
        const int64_t rows = int64_t(d.songs) * d.positions, head_width = d.width / d.heads;
        int64_t used = 0;
        auto take = [&](int64_t n) { float* part = at ? at + used : nullptr; used += rounded(n); return part; };
        row = apart(d.width), row3 = apart(3 * d.width) + PANEL, hidden_row = apart(d.hidden);
        keys = (d.positions + PANEL - 1) / PANEL * PANEL;  // of a head's scores
        head = apart(head_width);
        y = take(rows * row), normed = take(rows * row), attended = take(rows * row);
        // Hidden values come when queries, keys and values have gone; memory that is used twice is still in the cache.
        const int64_t hidden_size = ROWS * hidden_row, qkv_size = rows * row3 + PANEL;
        qkv = hidden = take(hidden_size > qkv_size ? hidden_size : qkv_size);
        const int64_t inputs = d.width > d.hidden ? d.width : d.hidden;
        const bool halves = d.layers[0].query.scales;
        half.tiles = reinterpret_cast<uint16_t*>(take(halves ? half_rows_size(ROWS, inputs) : 0));
        half.scales = take(halves ? ROWS : 0);
        panel = (inputs > d.latent ? inputs : d.latent) * PANEL;
        own_size = rounded(panel + d.positions * head + rounded(d.positions * head_width) + head_width * keys + GROUP * keys);
        own = take(d.threads * own_size);
        size = used;
    }
};

class Look {
  public:
    Look(const Diffusion& d, const DiffusionScratch& m, int thread)
        : d(d), m(m), width(d.width), room(m.own + thread * m.own_size) {
        for (int song = 0; song < d.songs; ++song)
            for (int t = 0; t < d.positions; ++t) {
                const int row = song * d.positions + t;
                const bool own = t >= d.positions - d.own, time = d.prepended && t == 0;
                all.push_back(row);
                (own || time ? changing : constant).push_back(row);
                const bool again = song >= d.blind && t > d.prepended && t <= d.prepended + d.own;
                (again ? alike : distinct).push_back(row);
                if (own) owned.push_back(row);
            }
    }

    // What the first layer makes of the known positions.
    void begin() {
        known_rows();
        if (d.prepended) project(d.layers[0], nullptr, constant, d.first, true);
    }

    void run() {
        known_rows();
        enter();
        for (int l = 0; l < d.depth; ++l) {
            const DiffusionLayer& layer = d.layers[l];
            const float* gates = d.gates ? d.gates + l * 6 * width : nullptr;
            const bool last = l + 1 == d.depth;
            const bool kept = l == 0 && d.prepended;
            float* qkv = kept ? d.first : m.qkv;
            project(layer, gates, kept ? changing : (l == 1 ? distinct : all), qkv, !last);
            if (l == 1) repeat(qkv, m.row3, 3 * width);
            if (last) queries(layer, gates, owned, qkv);
            attend(qkv, last ? d.own : d.positions);
            finish(layer, gates, last ? owned : (l == 0 ? distinct : all));
            if (l == 0 && !last) repeat(m.y, m.row, width);
        }
        leave();
    }

  private:
    const Diffusion& d;
    const DiffusionScratch& m;
    const int64_t width;
    float* room;  // this thread's own
    // Rows of all positions, the latents' own, those that change with the step and those that don't; and, as zeros ask for
    // nothing in the first layer and all see the same, those that equal the blank one before them until the second layer's
    // attention, which tells positions apart, and all others.
    std::vector<int> all, owned, changing, constant, alike, distinct;

    float* y(int row) const { return m.y + row * m.row; }

    // Rows that are alike get what the first of them has.
    void repeat(float* rows, int64_t stride, int64_t size) {
#pragma omp for
        for (size_t i = 0; i < alike.size(); ++i) {
            const int first = alike[i] / d.positions * d.positions + d.prepended;
            std::memcpy(rows + alike[i] * stride, rows + first * stride, size * sizeof(float));
        }
    }

    void known_rows() {
        const int length = d.positions - d.own - d.prepended;
#pragma omp for
        for (int i = 0; i < d.songs * length; ++i)
            std::memcpy(y(i / length * d.positions + d.prepended + i % length), d.known + i * width, width * sizeof(float));
    }

    void enter() {
#pragma omp for
        for (int song = 0; song < d.songs; ++song)
            if (d.prepended) std::memcpy(y(song * d.positions), d.time, width * sizeof(float));
        times(d.project_in, d.x, d.latent, int(owned.size()), [&](int i, int first, int count, const float* made) {
            float* to = y(owned[i]) + first;
            for (int c = 0; c < count; ++c) to[c] = made[c] + d.project_in.bias[first + c];
        });
    }

    void leave() {
#pragma omp for
        for (size_t i = 0; i < owned.size(); ++i) std::memcpy(m.normed + i * m.row, y(owned[i]), width * sizeof(float));
        times(d.project_out, m.normed, m.row, int(owned.size()), [&](int i, int first, int count, const float* made) {
            float* to = d.velocity + int64_t(i) * d.latent + first;
            for (int c = 0; c < count; ++c) to[c] = made[c] + d.project_out.bias[first + c];
        });
    }

    // Rows of layers' matrices are ROWS at most.
    template <class Use>
    void times(const Matrix& matrix, const float* a, int64_t stride, int rows, Use use) {
        if (HALVES && matrix.scales) {
            lay_rows(a, stride, rows, matrix.inputs, m.half);
            return half_product(matrix, m.half, rows, room, d.threads, use);
        }
        product(matrix, a, stride, rows, room, d.threads, use);
    }

    // Rows normed, and scaled and shifted by the time, one behind the other in `normed`.
    void norm(const std::vector<int>& rows, size_t begin, size_t end, const float* weight, const float* bias, const float* gates) {
#pragma omp for
        for (size_t i = begin; i < end; ++i) {
            const float* x = y(rows[i]);
            float* to = m.normed + (i - begin) * m.row;
            const float mean = sum_of(x, width, 0.0f, false) / width;
            const float rate = 1.0f / std::sqrt(sum_of(x, width, mean, true) / width + LAYER_NORM_EPS);
            for (int k = 0; k < width; ++k) to[k] = (x[k] - mean) * rate * weight[k] + bias[k];
            if (gates)
                for (int k = 0; k < width; ++k) to[k] = to[k] * gates[k] + gates[width + k];
        }
    }

    // Keys and values of these rows, and their queries if wanted, into `qkv`.
    void project(const DiffusionLayer& layer, const float* gates, const std::vector<int>& rows, float* qkv, bool with_queries) {
        const size_t blocks = (rows.size() + ROWS - 1) / ROWS;
        for (size_t block = 0; block < blocks; ++block) {
            const size_t begin = rows.size() * block / blocks, end = rows.size() * (block + 1) / blocks;
            norm(rows, begin, end, layer.norm_weight, layer.norm_bias, gates);
            into(layer.key_value, rows, begin, end, qkv + width);
            if (with_queries) into(layer.query, rows, begin, end, qkv);
        }
    }

    void queries(const DiffusionLayer& layer, const float* gates, const std::vector<int>& rows, float* qkv) {
        const size_t blocks = (rows.size() + ROWS - 1) / ROWS;
        for (size_t block = 0; block < blocks; ++block) {
            const size_t begin = rows.size() * block / blocks, end = rows.size() * (block + 1) / blocks;
            norm(rows, begin, end, layer.norm_weight, layer.norm_bias, gates);
            into(layer.query, rows, begin, end, qkv);
        }
    }

    void into(const Matrix& matrix, const std::vector<int>& rows, size_t begin, size_t end, float* qkv) {
        times(matrix, m.normed, m.row, int(end - begin), [&](int i, int first, int count, const float* made) {
            std::memcpy(qkv + rows[begin + i] * m.row3 + first, made, count * sizeof(float));
        });
    }

    // The first `rotated` channels of a head turned by the position's angles, times `rate`; channel i with i + half.
    void turn(const float* __restrict x, int position, float rate, float* __restrict to) const {
        const int half = d.rotated / 2, head_width = d.width / d.heads;
        const float *cosines = d.table + int64_t(position) * d.rotated, *sines = cosines + int64_t(d.positions) * d.rotated;
        for (int i = 0; i < half; ++i) {
            to[i] = (x[i] * cosines[i] - x[half + i] * sines[i]) * rate;
            to[half + i] = (x[half + i] * cosines[half + i] + x[i] * sines[half + i]) * rate;
        }
        for (int i = d.rotated; i < head_width; ++i) to[i] = x[i] * rate;
    }

    // The attention of the last `wanted` positions of each song, one behind the other in `attended`.
    void attend(const float* qkv, int wanted) {
        const int head_width = d.width / d.heads, from = d.positions - wanted;
        const float rate = 1.0f / std::sqrt(float(head_width));
        float *query = room + m.panel, *turned_keys = query + d.positions * m.head;
        float *key = turned_keys + rounded(d.positions * head_width), *score = key + head_width * m.keys;
#pragma omp for schedule(dynamic, 1)
        for (int unit = 0; unit < d.songs * d.heads; ++unit) {
            const int song = unit / d.heads, channel = unit % d.heads * head_width;
            const float* rows = qkv + int64_t(song) * d.positions * m.row3 + channel;
            for (int t = 0; t < wanted; ++t) turn(rows + (from + t) * m.row3, from + t, rate, query + t * m.head);
            for (int t = 0; t < d.positions; ++t) turn(rows + t * m.row3 + width, t, 1.0f, turned_keys + t * head_width);
            for (int t = 0; t < m.keys; t += LANES)  // keys stand side by side, as a panel's columns
                lay_half(turned_keys, t, d.positions, head_width, key + t / PANEL * PANEL * head_width + t % PANEL);
            for (int begin = 0; begin < wanted; begin += GROUP) {
                const int count = wanted - begin < GROUP ? wanted - begin : GROUP;
                for (int c = 0; c < m.keys; c += PANEL)
                    times_panel(query + begin * m.head, m.head, count, key + c * head_width, PANEL, head_width, nullptr,
                                [&](int r, const float* made) { std::memcpy(score + r * m.keys + c, made, PANEL * sizeof(float)); });
                for (int r = 0; r < count; ++r) softmax(score + r * m.keys, d.positions);
                for (int c = 0; c < head_width; c += PANEL)
                    times_panel(score, m.keys, count, rows + 2 * width + c, m.row3, d.positions, nullptr, [&](int r, const float* made) {
                        const int columns = head_width - c < PANEL ? head_width - c : PANEL;
                        std::memcpy(m.attended + (int64_t(song) * wanted + begin + r) * m.row + channel + c, made, columns * sizeof(float));
                    });
            }
        }
    }

    // In place; behind the scores is room for whole lanes, which become next to nothing.
    static void softmax(float* score, int count) {
        for (int j = count; j % LANES; ++j) score[j] = -1e30f;
        Lanes largest = load(score), sum = Lanes{};
        for (int j = LANES; j < count; j += LANES) {
            const Lanes each = load(score + j);
            for (int p = 0; p < PARTS; ++p) largest.part[p] = each.part[p] > largest.part[p] ? each.part[p] : largest.part[p];
        }
        float lane[LANES];
        store(lane, largest);
        for (int i = 1; i < LANES; ++i) lane[0] = lane[i] > lane[0] ? lane[i] : lane[0];
        for (int j = 0; j < count; j += LANES) {
            Lanes each = load(score + j);
            for (int p = 0; p < PARTS; ++p) each.part[p] -= lane[0];
            each = exponential(each);
            for (int p = 0; p < PARTS; ++p) sum.part[p] += each.part[p];
            store(score + j, each);
        }
        const float rate = 1.0f / total(sum);
        for (int j = 0; j < count; ++j) score[j] *= rate;
    }

    // The rest of a layer over these rows, of which attention stands in `attended`.
    void finish(const DiffusionLayer& layer, const float* gates, const std::vector<int>& rows) {
        const size_t blocks = (rows.size() + ROWS - 1) / ROWS;
        for (size_t block = 0; block < blocks; ++block) {
            const size_t begin = rows.size() * block / blocks, end = rows.size() * (block + 1) / blocks;
            const int count = int(end - begin);
            auto onto = [&](const float* gate) {
                return [this, &rows, begin, gate](int i, int first, int columns, const float* made) {
                    float* to = y(rows[begin + i]) + first;
                    if (!gate) return add(made, columns, to);
                    for (int c = 0; c < columns; ++c) to[c] += made[c] * gate[first + c];
                };
            };
            const float* attended = m.attended + begin * m.row;
            if (&rows == &distinct && !alike.empty()) {
#pragma omp for
                for (size_t i = begin; i < end; ++i)
                    std::memcpy(m.normed + (i - begin) * m.row, m.attended + rows[i] * m.row, width * sizeof(float));
                attended = m.normed;
            }
            times(layer.output, attended, m.row, count, onto(gates ? gates + 2 * width : nullptr));
            norm(rows, begin, end, layer.mlp_norm_weight, layer.mlp_norm_bias, gates ? gates + 3 * width : nullptr);
            times(layer.gate_up, m.normed, m.row, count, [&](int i, int first, int columns, const float* made) {
                gated(made, columns, m.hidden + i * m.hidden_row + first);
            });
            times(layer.down, m.hidden, m.hidden_row, count, onto(gates ? gates + 5 * width : nullptr));
        }
    }
};

}  // namespace
