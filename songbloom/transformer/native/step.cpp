// One position of a causal transformer through all of its layers, for a few sequences at once.
//
// Such a step reads every weight once and computes little, so its limit is the speed at which memory is read. What it
// takes to come near: weights are streamed in the order in which they lie, several rows at a time so that several
// streams are under way; all threads stay in one parallel region for the whole step and meet at five barriers a layer;
// between the layers nothing is allocated, and norms, activations and sums happen where the numbers already are.
//
// Batch invariance: what is computed for one sequence does not depend on how many there are. Each product of a weight
// row and an input row is summed in 16 lanes in one fixed order, with one accumulator a product, whatever the tile that
// it is computed in; attention is cut into pieces of a fixed number of keys. Threads share the work out among
// themselves, but none of it is summed across them.
//
// There are no headers of torch or Python here: the functions at the end have C's calling convention and take addresses
// (see stepper.py for the same structures), which compiles in seconds and runs under any version of both.

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <sched.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "products.h"

namespace {

constexpr int KEYS = 128;       // keys a piece of attention looks at
constexpr int CHUNK_ROWS = 32;  // weight rows a thread takes at a time, at most
constexpr float EPS = 1e-5f;    // of the norms

// y scale + more. A function that is never inlined, so that it is rounded once or twice, but everywhere alike: what is
// done with a product's result is compiled once for each shape of tile, and the compiler chooses anew each time.
__attribute__((noinline)) float scaled(float y, float scale, float more) { return y * scale + more; }

// ------------------------------------------------------------------------------------- norms and activations

enum Activation { QUICK_GELU, GELU, SWISH, RELU };

void activate(float* x, int n, int activation) {
    switch (activation) {
        case QUICK_GELU:  // x σ(1.702 x)
            for (int i = 0; i < n; ++i) x[i] = x[i] / (1.0f + exponential(-1.702f * x[i]));
            break;
        case GELU:  // x σ(2 z), z = √(2/π) (x + 0.044715 x³), which is its tanh form
            for (int i = 0; i < n; ++i)
                x[i] = x[i] / (1.0f + exponential(-1.5957691216f * (x[i] + 0.044715f * x[i] * x[i] * x[i])));
            break;
        case SWISH:
            for (int i = 0; i < n; ++i) x[i] = x[i] / (1.0f + exponential(-x[i]));
            break;
        default:
            for (int i = 0; i < n; ++i) x[i] = x[i] < 0.0f ? 0.0f : x[i];
    }
}

float sum_of(const float* x, int n, float mean, bool squares) {
    Lanes sum = Lanes{};
    const int whole = n & -LANES;
    for (int k = 0; k < whole; k += LANES) {
        Lanes each = load(x + k);
        for (int p = 0; p < PARTS; ++p) {
            each.part[p] -= mean;
            sum.part[p] += squares ? each.part[p] * each.part[p] : each.part[p];
        }
    }
    float all = total(sum);
    for (int k = whole; k < n; ++k) all += squares ? (x[k] - mean) * (x[k] - mean) : x[k] - mean;
    return all;
}

void layer_norm(const float* x, const float* weight, const float* bias, int n, float* to) {
    const float mean = sum_of(x, n, 0.0f, false) / n;
    const float rate = 1.0f / std::sqrt(sum_of(x, n, mean, true) / n + EPS);
    for (int k = 0; k < n; ++k) to[k] = (x[k] - mean) * rate * weight[k] + bias[k];
}

// ------------------------------------------------------------------------------------------------ attention

// What a query sees of keys `first` to `last` of one sequence and head: Σ p v, not divided by Σ p; their largest score
// and Σ p lie behind it.
template <class Entry>
void attend_piece(const Entry* keys, int64_t stride, int64_t to_values, int first, int last, const float* query, int d,
                  float rate, float* to) {
    float score[KEYS];
    const int count = last - first;
    const Entry* from = keys + first * stride;
    products(from, stride, 0, count, query, 0, 1, d, nullptr, [&](int, int key, float y) { score[key] = y * rate; });
    float largest = score[0];
    for (int j = 1; j < count; ++j) largest = score[j] > largest ? score[j] : largest;
    for (int j = 0; j < count; ++j) score[j] = exponential(score[j] - largest);
    float all = 0.0f;
    for (int j = 0; j < count; ++j) all += score[j];
    const Entry* values = from + to_values;
    constexpr int WIDE = NATIVE == 16 ? 8 : 1;  // sums of lanes held in registers over all keys
    int k = 0;
    for (; k + WIDE * LANES <= d; k += WIDE * LANES) {
        Lanes sum[WIDE];
        for (int i = 0; i < WIDE; ++i) sum[i] = Lanes{};
        for (int j = 0; j < count; ++j)
#pragma GCC unroll 8
            for (int i = 0; i < WIDE; ++i) add_product(sum[i], load(values + j * stride + k + i * LANES), score[j]);
        for (int i = 0; i < WIDE; ++i) store(to + k + i * LANES, sum[i]);
    }
    for (; k + LANES <= d; k += LANES) {
        Lanes sum = Lanes{};
        for (int j = 0; j < count; ++j) add_product(sum, load(values + j * stride + k), score[j]);
        store(to + k, sum);
    }
    for (; k < d; ++k) {
        float sum = 0.0f;
        for (int j = 0; j < count; ++j) sum += score[j] * value(values[j * stride + k]);
        to[k] = sum;
    }
    to[d] = largest;
    to[d + 1] = all;
}

// The pieces of one sequence and head, weighed by their largest scores, into `to`.
void join_pieces(const float* pieces, int count, int d, float* to) {
    float largest = pieces[d];
    for (int i = 1; i < count; ++i) largest = std::fmax(largest, pieces[i * int64_t(d + 2) + d]);
    float all = 0.0f;
    for (int k = 0; k < d; ++k) to[k] = 0.0f;
    for (int i = 0; i < count; ++i) {
        const float* piece = pieces + i * int64_t(d + 2);
        const float share = exponential(piece[d] - largest);
        all += share * piece[d + 1];
        for (int k = 0; k < d; ++k) to[k] += share * piece[k];
    }
    for (int k = 0; k < d; ++k) to[k] /= all;
}

// --------------------------------------------------------------------------------------------- the whole step

}  // namespace

enum Kind : int32_t { FLOAT32, BFLOAT16, INT8 };

// These three structures are written out again in stepper.py.
struct Linear {
    const void* weight;   // [out][in]
    const float* scales;  // [out], int8 only
    const float* bias;    // [out], may be null
    int32_t outputs, inputs, kind, unused;
};

struct Layer {
    Linear project, output, up, down;
    const float *norm_weight, *norm_bias, *mlp_norm_weight, *mlp_norm_bias;  // [width]
    void* entries;       // [batch][slots][2][state]
    int64_t slots;
    int32_t function, unused;
};

struct Step {
    const Layer* layers;
    int32_t depth, batch, width, state, heads, hidden, entry_kind, activation;
    float residual_scale;
    int32_t threads;
    const int32_t* windows;  // [functions][3]: the slot to write or -1, first and last slot to see
    int64_t position;
    // The input: rows of a table and of the positions, or, without tokens, `x` as it is.
    const int64_t* tokens;    // [batch] or null
    const float* embedding;   // [bins][width]
    const float* positions;   // [n_ctx][width]
    const float* before;      // added to the input: [width] a sequence, or null
    int64_t before_stride;
    const float* after;       // added before the output layer, likewise
    int64_t after_stride;
    float* x;                 // [batch][width]; what the last layer gives is left here
    Linear head;              // without a weight: no logits
    float* logits;            // [batch][head.outputs]
    float* scratch;           // of step_scratch() floats
    int32_t* counters;        // [5 depth + 1]
};

namespace {

// Where threads wait for each other. It spins, as all come within microseconds, and lets others run if they do not.
class Barrier {
  public:
    void expect(int threads) { threads_ = threads; }
    void wait() {
        const int turn = turn_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            turn_.store(turn + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; turn_.load(std::memory_order_acquire) == turn; ++spins) {
            if (spins > 4000) sched_yield();
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        }
    }

  private:
    int threads_ = 1;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<int> turn_{0};
};

int64_t pieces_of(const Step& s) {
    int64_t most = 1;
    for (int l = 0; l < s.depth; ++l) most = most > s.layers[l].slots ? most : s.layers[l].slots;
    return (most + KEYS - 1) / KEYS + 1;
}

// Parts of the scratch memory. Those of a thread come last.
struct Scratch {
    float *qkv, *pieces, *y, *up, *own;
    int64_t own_size, inputs_size, size;
    Scratch(const Step& s, float* at) {
        const int64_t b = s.batch;
        int64_t used = 0;
        auto take = [&](int64_t n) { float* part = at ? at + used : nullptr; used += rounded(n); return part; };
        qkv = take(b * 3 * s.state);
        pieces = take(b * s.heads * pieces_of(s) * (s.state / s.heads + 2));
        y = take(b * s.width);
        up = take(b * apart(s.hidden));
        const int64_t input = apart(s.width > s.state ? s.width : s.state);
        own_size = b * input + TILE_ROWS * (apart(s.hidden) > input ? apart(s.hidden) : input);
        inputs_size = b * input;
        own = take(s.threads * own_size);
        size = used;
    }
};

class Worker {
  public:
    Worker(const Step& step, const Scratch& scratch, Barrier& barrier, std::atomic<int32_t>* counters, int thread)
        : s(step), m(scratch), barrier(barrier), counters(counters),
          h(scratch.own + thread * scratch.own_size), wide(h + scratch.inputs_size) {}

    void run() {
        for (int l = 0; l < s.depth; ++l)
            s.entry_kind == BFLOAT16 ? layer<bf16>(s.layers[l]) : layer<float>(s.layers[l]);
        if (!s.head.weight) return;
        const int64_t next_row = apart(s.width);
        for (int b = 0; b < s.batch; ++b)
            for (int k = 0; k < s.width; ++k)
                h[b * next_row + k] = s.x[b * int64_t(s.width) + k] + (s.after ? s.after[b * s.after_stride + k] : 0.0f);
        const int64_t bins = s.head.outputs;
        linear(s.head, h, [&](int b, int o, float y) { s.logits[b * bins + o] = y; }, [](int, int) {});
    }

  private:
    const Step& s;
    const Scratch& m;
    Barrier& barrier;
    std::atomic<int32_t>* counters;  // of each phase: how much of it has been taken
    float *h, *wide;                 // this thread's own: normed inputs; weight rows as floats

    int next(int count) { return counters->fetch_add(count, std::memory_order_relaxed); }
    void meet() {
        barrier.wait();
        ++counters;
    }

    // use(b, o, (W x[b] + bias)[o]), shared out over the threads, then done(begin, end) for each range of outputs.
    template <class Use, class Done>
    void linear(const Linear& map, const float* x, Use use, Done done) {
        if (map.kind == FLOAT32) return linear_of<float>(map, x, use, done);
        if (map.kind == BFLOAT16) return linear_of<bf16>(map, x, use, done);
        linear_of<int8_t>(map, x, use, done);
    }

    template <class Weight, class Use, class Done>
    void linear_of(const Linear& map, const float* x, Use use, Done done) {
        const Weight* w = static_cast<const Weight*>(map.weight);
        const int fair = map.outputs / (4 * s.threads) & -TILE_ROWS;  // several turns a thread: none waits for long
        const int chunk = fair < TILE_ROWS ? TILE_ROWS : (fair < CHUNK_ROWS ? fair : CHUNK_ROWS);
        for (int begin; (begin = next(chunk)) < map.outputs;) {
            const int end = begin + chunk < map.outputs ? begin + chunk : map.outputs;
            products(w, map.inputs, begin, end, x, apart(map.inputs), s.batch, map.inputs, wide, [&](int b, int o, float y) {
                const float bias = map.bias ? map.bias[o] : 0.0f;
                use(b, o, sizeof(Weight) == 1 ? scaled(y, map.scales[o], bias) : y + bias);
            });
            done(begin, end);
        }
    }

    // Every thread does it for itself, which takes less time than meeting once more.
    void norm(const float* x, const float* weight, const float* bias) {
        for (int b = 0; b < s.batch; ++b) layer_norm(x + b * int64_t(s.width), weight, bias, s.width, h + b * apart(s.width));
    }

    template <class Entry>
    void layer(const Layer& layer) {
        const int64_t width = s.width, row = layer.project.outputs;
        const int32_t* window = s.windows + 3 * layer.function;
        const bool sees = window[2] > window[1];
        norm(s.x, layer.norm_weight, layer.norm_bias);
        linear(layer.project, h, [&](int b, int o, float y) { m.qkv[b * row + o] = y; }, [](int, int) {});
        meet();
        attention<Entry>(layer, window);
        meet();
        if (sees) {
            const float* a = gathered(window);
            linear(layer.output, a, [&](int b, int o, float y) { m.y[b * width + o] = s.x[b * width + o] + y; }, [](int, int) {});
        } else {  // the attention of nothing is zeros
            for (int b = next(1); b < s.batch; b = next(1))
                for (int o = 0; o < width; ++o) m.y[b * width + o] = s.x[b * width + o] + layer.output.bias[o];
        }
        meet();
        norm(m.y, layer.mlp_norm_weight, layer.mlp_norm_bias);
        const int64_t hidden = apart(s.hidden);
        linear(layer.up, h, [&](int b, int o, float y) { m.up[b * hidden + o] = y; },
               [&](int begin, int end) {
                   for (int b = 0; b < s.batch; ++b) activate(m.up + b * hidden + begin, end - begin, s.activation);
               });
        meet();
        const float scale = s.residual_scale;
        linear(layer.down, m.up, [&](int b, int o, float y) {
            const int64_t at = b * width + o;
            s.x[at] = scale == 1.0f ? m.y[at] + y : scaled(m.y[at] - s.x[at] + y, scale, s.x[at]);
        }, [](int, int) {});
        meet();
    }

    int pieces(const int32_t* window) const { return (window[2] - window[1] + KEYS - 1) / KEYS; }

    // One unit of work is a piece of the keys of one head of one sequence. The unit that sees the new entry, or else
    // the first, writes it, so that nobody has to wait for it.
    template <class Entry>
    void attention(const Layer& layer, const int32_t* window) {
        const int64_t state = s.state, d = state / s.heads, row = layer.project.outputs, stride = 2 * state;
        const int slot = window[0], first = window[1], last = window[2];
        const int count = pieces(window), units = count ? count : 1;
        const int writer = slot >= first && slot < last ? (slot - first) / KEYS : 0;
        const float rate = 1.0f / std::sqrt(float(d));
        for (int unit = next(1); unit < s.batch * s.heads * units; unit = next(1)) {
            const int b = unit / (s.heads * units), head = unit / units % s.heads, piece = unit % units;
            const float* query = m.qkv + b * row + head * d;
            Entry* keys = static_cast<Entry*>(layer.entries) + b * layer.slots * stride + head * d;
            if (slot >= 0 && piece == writer) {
                Entry* entry = keys + slot * stride;
                for (int k = 0; k < d; ++k) put(query[state + k], entry + k), put(query[2 * state + k], entry + state + k);
            }
            if (!count) continue;
            const int begin = first + piece * KEYS, end = begin + KEYS < last ? begin + KEYS : last;
            attend_piece(keys, stride, state, begin, end, query, d, rate,
                         m.pieces + ((b * s.heads + head) * int64_t(count) + piece) * (d + 2));
        }
    }

    // All heads' pieces joined, in this thread's own memory: [batch][state].
    const float* gathered(const int32_t* window) {
        const int64_t d = s.state / s.heads;
        const int count = pieces(window);
        for (int b = 0; b < s.batch; ++b)
            for (int head = 0; head < s.heads; ++head)
                join_pieces(m.pieces + (b * s.heads + head) * count * (d + 2), count, d, h + b * apart(s.state) + head * d);
        return h;
    }
};

}  // namespace

extern "C" {

// Floats that `scratch` must hold.
int64_t songbloom_step_scratch(const Step* step) { return Scratch(*step, nullptr).size; }

// How the structures are laid out, for the caller to compare with its own.
int64_t songbloom_step_sizes() { return sizeof(Linear) + 1000 * sizeof(Layer) + 1000000 * sizeof(Step); }

void songbloom_step(const Step* step) {
    const Step& s = *step;
    if (s.tokens)
        for (int b = 0; b < s.batch; ++b) {
            const float *row = s.embedding + s.tokens[b] * s.width, *place = s.positions + s.position * s.width;
            for (int k = 0; k < s.width; ++k)
                s.x[b * int64_t(s.width) + k] = row[k] + place[k] + (s.before ? s.before[b * s.before_stride + k] : 0.0f);
        }
    const Scratch scratch(s, s.scratch);
    auto* counters = reinterpret_cast<std::atomic<int32_t>*>(s.counters);
    for (int i = 0; i < 5 * s.depth + 1; ++i) counters[i].store(0, std::memory_order_relaxed);
    Barrier barrier;
#ifdef _OPENMP
#pragma omp parallel num_threads(s.threads)
    {
#pragma omp single
        barrier.expect(omp_get_num_threads());  // there may be fewer than were asked for
        Worker(s, scratch, barrier, counters, omp_get_thread_num()).run();
    }
#else
    Worker(s, scratch, barrier, counters, 0).run();
#endif
}

}  // extern "C"
