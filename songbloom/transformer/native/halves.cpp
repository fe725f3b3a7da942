// C = A B (+ bias) of large matrices in half precision; see halves.h. And layer norm, whose torch kernels are slow in
// bfloat16. Where a processor cannot multiply halves, halves_here() says so and nothing else does anything.

#include "halves.h"

#include <cmath>

#include "threads.h"

extern "C" {

// One product. Element (i, j) of a matrix is at i · row + j · column; one of the two is 1.
struct Product {
    const void* a;
    const void* b;
    void* c;            // its columns lie together
    const float* bias;  // of each column, or null
    float* row_sums;    // takes the sums of A's rows, or null
    // Both are laid out like C, or null. Quick-GELU is applied to C, and what it is applied to goes to `before`; C is
    // multiplied by the slope of quick-GELU at `slope_at`.
    void* before;
    const void* slope_at;
    void* scratch;
    int64_t a_row, a_column, b_row, b_column, c_row;
    int64_t rows, columns, depth;
    int32_t a_kind, b_kind, c_kind, threads;
};

// A layer norm over rows that lie one behind the other, and its gradients.
struct Norm {
    const void* x;
    const float* weight;
    const float* bias;
    void* y;          // of forward: the result; of backward: the gradient of it
    void* x_grad;     // backward only, like what follows
    float* own_grads;  // of each thread, weight's and then bias', 2 · width floats; they begin as zeros
    float* means;     // of each row; forward writes these two
    float* rates;     // 1 / standard deviation
    int64_t rows, width;
    int32_t kind, threads;
    float eps;
};

int64_t halves_size(int which) { return which ? sizeof(Norm) : sizeof(Product); }
}

#ifdef __AVX512FP16__

namespace {

using namespace halves;

constexpr int64_t LINE = 64;
constexpr int64_t DEPTH = 1024;          // of a block, where C can be added to
constexpr int64_t DEEPEST = 8192;        // of one where it cannot
constexpr int64_t SLICE = 512;            // of a tile that stays in the nearest cache while panels pass
constexpr int64_t CHUNK = 8;              // panels that stay, a slice of them, in the next cache while a group's tiles pass
constexpr int64_t SHARES = 10;            // groups that a thread gets at least, so that none waits long for another's last
constexpr int64_t GROUP_BYTES = 3 << 17;  // of a group's tiles, which stay there too

int64_t rounded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Whether C can be made of several blocks of the depth.
bool adds(const Product& p) { return p.c_kind == FLOAT && !p.before && !p.slope_at; }

// How a product is cut, and where its parts lie in its scratch memory.
struct Plan {
    int64_t depth, panels, tiles, group, groups, panel_bytes, tile_bytes, thread_bytes;
    char *panels_at, *scales_at, *threads_at;
    int64_t bytes;

    explicit Plan(const Product& p) {
        depth = adds(p) && p.depth > DEPTH ? DEPTH : p.depth;
        panels = (p.columns + PANEL - 1) / PANEL;
        tiles = (p.rows + TILE - 1) / TILE;
        panel_bytes = depth * PANEL * 2;
        tile_bytes = rounded((depth * TILE + SLACK) * 4, LINE);
        group = GROUP_BYTES / tile_bytes;
        group = group < 1 ? 1 : group;
        const int64_t fair = (tiles + SHARES * p.threads - 1) / (SHARES * p.threads);
        group = group > fair ? fair : group;
        groups = (tiles + group - 1) / group;
        thread_bytes = group * (tile_bytes + WIDTH * 4 + CHUNK * TILE * PANEL * 4);
        char* at = reinterpret_cast<char*>(rounded(reinterpret_cast<int64_t>(p.scratch), LINE));
        panels_at = at;
        scales_at = panels_at + panels * panel_bytes;
        threads_at = scales_at + panels * PANEL * 4;
        bytes = threads_at + p.threads * thread_bytes - at + LINE;
    }

    float* column_scales(int64_t panel) const { return reinterpret_cast<float*>(scales_at) + panel * PANEL; }
};

// `count` rows (columns) from `begin` on, `depth` numbers of each from k on.
template <int GROUPS>
Lines<GROUPS> part(const void* from, int kind, int64_t across, int64_t along, int64_t begin, int64_t count, int64_t k, int64_t depth) {
    const char* at = static_cast<const char*>(from) + (begin * across + k * along) * size_of(kind);
    return {at, kind, along == 1, along == 1 ? across : along, count, depth};
}

void lay_panel(const Product& p, const Plan& plan, int64_t panel, int64_t k, int64_t depth) {
    constexpr int GROUPS = PANEL / WIDTH;
    const int64_t begin = panel * PANEL, count = p.columns - begin < PANEL ? p.columns - begin : PANEL;
    const Lines<GROUPS> lines = part<GROUPS>(p.b, p.b_kind, p.b_column, p.b_row, begin, count, k, depth);
    __m512i most[GROUPS];
    lines.largest(most);
    PanelWriter writer{reinterpret_cast<uint16_t*>(plan.panels_at + panel * plan.panel_bytes), {}};
    for (int g = 0; g < GROUPS; ++g) {
        writer.scales[g] = scales_for(most[g]);
        _mm512_store_ps(plan.column_scales(panel) + g * WIDTH, inverse(writer.scales[g]));
    }
    lines.spread(writer);
}

// Also writes what the tile's sums have to be multiplied by.
void lay_tile(const Product& p, int64_t tile, int64_t k, int64_t depth, uint32_t* to, float* row_scales) {
    const int64_t begin = tile * TILE, count = p.rows - begin < TILE ? p.rows - begin : TILE;
    const Lines<1> lines = part<1>(p.a, p.a_kind, p.a_row, p.a_column, begin, count, k, depth);
    __m512i most;
    lines.largest(&most);
    const __m512 sums = k && p.row_sums ? load_first(p.row_sums, begin, FLOAT, count) : _mm512_setzero_ps();
    TileWriter writer{to, scales_for(most), sums};
    lines.spread(writer);
    _mm512_store_ps(row_scales, inverse(writer.scale));
    if (p.row_sums) store_first(p.row_sums, begin, FLOAT, count, writer.sums);
}

// What a tile and a panel have given goes to C, added to what is there unless it is the first block.
void put(const Product& p, const float* sums, int64_t row, int64_t column, const float* row_scales, const float* column_scales,
         bool first_block) {
    const int64_t rows = p.rows - row < TILE ? p.rows - row : TILE;
    for (int64_t j = 0; j < PANEL && column + j < p.columns; j += WIDTH) {
        const int64_t n = p.columns - column - j;
        const __m512 factors = _mm512_load_ps(column_scales + j);
        const __m512 bias =
            p.bias && first_block ? _mm512_maskz_loadu_ps(halves::first(n), p.bias + column + j) : _mm512_setzero_ps();
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t at = (row + r) * p.c_row + column + j;
            // One factor after the other: their product alone could be infinite where the sum is zero.
            const __m512 sum = _mm512_mul_ps(_mm512_load_ps(sums + r * PANEL + j), _mm512_set1_ps(row_scales[r]));
            __m512 x = _mm512_fmadd_ps(sum, factors, bias);
            if (!first_block) x = _mm512_add_ps(x, load_first(p.c, at, FLOAT, n));
            if (p.before) {
                store_first(p.before, at, p.c_kind, n, x);
                x = quick_gelu(x);
            }
            if (p.slope_at) x = _mm512_mul_ps(x, quick_gelu_slope(load_first(p.slope_at, at, p.c_kind, n)));
            store_first(p.c, at, p.c_kind, n, x);
        }
    }
}

void group_times_panels(const Product& p, const Plan& plan, int64_t group, int64_t k, int64_t depth) {
    char* own = plan.threads_at + thread() * plan.thread_bytes;
    float* row_scales = reinterpret_cast<float*>(own + plan.group * plan.tile_bytes);
    float* sums = row_scales + plan.group * WIDTH;
    const int64_t begin = group * plan.group;
    const int64_t count = plan.tiles - begin < plan.group ? plan.tiles - begin : plan.group;
    for (int64_t t = 0; t < count; ++t)
        lay_tile(p, begin + t, k, depth, reinterpret_cast<uint32_t*>(own + t * plan.tile_bytes), row_scales + t * WIDTH);
    for (int64_t chunk = 0; chunk < plan.panels; chunk += CHUNK) {
        const int64_t end = chunk + CHUNK < plan.panels ? chunk + CHUNK : plan.panels;
        auto sums_of = [&](int64_t t, int64_t panel) { return sums + (t * CHUNK + panel - chunk) * TILE * PANEL; };
        for (int64_t from = 0; from < depth; from += SLICE)
            for (int64_t t = 0; t < count; ++t)
                for (int64_t panel = chunk; panel < end; ++panel)
                    multiply(reinterpret_cast<uint32_t*>(own + t * plan.tile_bytes) + from * TILE,
                             reinterpret_cast<uint16_t*>(plan.panels_at + panel * plan.panel_bytes) + from * PANEL,
                             depth - from < SLICE ? depth - from : SLICE, !from, sums_of(t, panel));
        for (int64_t t = 0; t < count; ++t)
            for (int64_t panel = chunk; panel < end; ++panel)
                put(p, sums_of(t, panel), (begin + t) * TILE, panel * PANEL, row_scales + t * WIDTH,
                    plan.column_scales(panel), !k);
    }
}

void norm_forward(const Norm& p, int64_t row) {
    const int64_t begin = row * p.width;
    __m512 sums = _mm512_setzero_ps(), squares = sums;
    for (int64_t i = 0; i < p.width; i += WIDTH) sums = _mm512_add_ps(sums, load_first(p.x, begin + i, p.kind, p.width - i));
    const float mean = _mm512_reduce_add_ps(sums) / p.width;
    for (int64_t i = 0; i < p.width; i += WIDTH) {
        const __m512 x = load_first(p.x, begin + i, p.kind, p.width - i);
        const __m512 off = _mm512_maskz_sub_ps(halves::first(p.width - i), x, _mm512_set1_ps(mean));
        squares = _mm512_fmadd_ps(off, off, squares);
    }
    const float rate = 1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / p.width + p.eps);
    for (int64_t i = 0; i < p.width; i += WIDTH) {
        const int64_t n = p.width - i;
        const __m512 x = load_first(p.x, begin + i, p.kind, n);
        const __m512 normed = _mm512_mul_ps(_mm512_sub_ps(x, _mm512_set1_ps(mean)), _mm512_set1_ps(rate));
        store_first(p.y, begin + i, p.kind, n,
                    _mm512_fmadd_ps(normed, load_first(p.weight, i, FLOAT, n), load_first(p.bias, i, FLOAT, n)));
    }
    p.means[row] = mean;
    p.rates[row] = rate;
}

void norm_backward(const Norm& p, int64_t row, float* weight_grad, float* bias_grad) {
    const int64_t begin = row * p.width;
    const __m512 mean = _mm512_set1_ps(p.means[row]), rate = _mm512_set1_ps(p.rates[row]);
    __m512 sums = _mm512_setzero_ps(), products = sums;
    for (int64_t i = 0; i < p.width; i += WIDTH) {
        const int64_t n = p.width - i;
        const __m512 grad = load_first(p.y, begin + i, p.kind, n);  // zeros behind the end
        const __m512 normed = _mm512_mul_ps(_mm512_sub_ps(load_first(p.x, begin + i, p.kind, n), mean), rate);
        store_first(weight_grad, i, FLOAT, n, _mm512_fmadd_ps(grad, normed, load_first(weight_grad, i, FLOAT, n)));
        store_first(bias_grad, i, FLOAT, n, _mm512_add_ps(grad, load_first(bias_grad, i, FLOAT, n)));
        const __m512 weighted = _mm512_mul_ps(grad, load_first(p.weight, i, FLOAT, n));
        sums = _mm512_add_ps(sums, weighted);
        products = _mm512_fmadd_ps(weighted, normed, products);
    }
    const __m512 of_sum = _mm512_set1_ps(_mm512_reduce_add_ps(sums) / p.width);
    const __m512 of_product = _mm512_set1_ps(_mm512_reduce_add_ps(products) / p.width);
    for (int64_t i = 0; i < p.width; i += WIDTH) {
        const int64_t n = p.width - i;
        const __m512 weighted = _mm512_mul_ps(load_first(p.y, begin + i, p.kind, n), load_first(p.weight, i, FLOAT, n));
        const __m512 normed = _mm512_mul_ps(_mm512_sub_ps(load_first(p.x, begin + i, p.kind, n), mean), rate);
        const __m512 off = _mm512_fnmadd_ps(normed, of_product, _mm512_sub_ps(weighted, of_sum));
        store_first(p.x_grad, begin + i, p.kind, n, _mm512_mul_ps(off, rate));
    }
}

}  // namespace

extern "C" {

int halves_here(void) { return 1; }

// Bytes of scratch memory, or -1 where C would have to be added to but cannot.
int64_t halves_scratch(const Product* p) { return !adds(*p) && p->depth > DEEPEST ? -1 : Plan(*p).bytes; }

void halves_multiply(const Product* product) {
    const Product& p = *product;
    const Plan plan(p);
#pragma omp parallel num_threads(p.threads)
    for (int64_t k = 0; k < p.depth; k += plan.depth) {
        const int64_t depth = p.depth - k < plan.depth ? p.depth - k : plan.depth;
#pragma omp for schedule(dynamic)
        for (int64_t panel = 0; panel < plan.panels; ++panel) lay_panel(p, plan, panel, k, depth);
#pragma omp for schedule(dynamic)
        for (int64_t group = 0; group < plan.groups; ++group) group_times_panels(p, plan, group, k, depth);
    }
}

void halves_norm(const Norm* norm, int backward) {
    const Norm& p = *norm;
    // A thread's rows are those of its number, whatever the others do: sums of gradients are the same each time.
#pragma omp parallel for num_threads(p.threads) schedule(static, 1)
    for (int part = 0; part < p.threads; ++part) {
        float* grads = p.own_grads + part * 2 * p.width;
        for (int64_t row = p.rows * part / p.threads; row < p.rows * (part + 1) / p.threads; ++row)
            backward ? norm_backward(p, row, grads, grads + p.width) : norm_forward(p, row);
    }
}

}  // extern "C"

#else

extern "C" {
int halves_here(void) { return 0; }
int64_t halves_scratch(const Product*) { return -1; }
void halves_multiply(const Product*) {}
void halves_norm(const Norm*, int) {}
}

#endif
