// C = A B (+ bias) of large matrices in half precision; see halves.h. With what half_attention.h and half_rows.h have, this
// is one library. Where a processor cannot multiply halves, halves_here() says so and nothing else does anything.

#include "halves.h"

#include "half_attention.h"
#include "half_rows.h"
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

int64_t halves_size(int which) {
    const int64_t sizes[] = {sizeof(Product), sizeof(Attention)};
    return sizes[which];
}
}

#ifdef __AVX512FP16__

namespace {

using namespace halves;

constexpr int64_t LINE = 64;
constexpr int RUN = 64;                   // products summed one after the other as halves
constexpr int64_t DEPTH = 1024;          // of a block, where C can be added to: a tile of it stays in the nearest cache
constexpr int64_t DEEPEST = 8192;        // of one where it cannot
constexpr int64_t CHUNK = 8;              // panels that stay in the next cache while a group's tiles pass
constexpr int64_t SHARES = 10;            // groups that a thread gets at least, so that none waits long for another's last
constexpr int64_t SLAB = 64;              // k whose lines' largest magnitudes are found together
constexpr int64_t TOGETHER = 8;           // tiles that are laid together where the numbers of one k lie together
constexpr int64_t GROUP_BYTES = 3 << 16;  // of a group's tiles, which stay there too

int64_t rounded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Whether C can be made of several blocks of the depth.
bool adds(const Product& p) { return p.c_kind == FLOAT && !p.before && !p.slope_at; }

Lines left_of(const Product& p) {
    const bool along = p.a_column == 1;
    return {static_cast<const char*>(p.a), p.a_kind, along, along ? p.a_row : p.a_column, p.rows, p.depth};
}

Lines right_of(const Product& p) {
    const bool along = p.b_row == 1;
    return {static_cast<const char*>(p.b), p.b_kind, along, along ? p.b_column : p.b_row, p.columns, p.depth};
}

// The largest magnitudes of an operand's lines in the slabs of a block; nothing where a line's numbers lie together.
struct Survey {
    int64_t slabs, width;
    int32_t* most;

    Survey(const Lines& lines, int64_t depth, char* at)
        : slabs(lines.along_k ? 0 : (depth + SLAB - 1) / SLAB), width(rounded(lines.count, 2 * WIDTH) + WIDTH),
          most(reinterpret_cast<int32_t*>(at)) {}

    int64_t bytes() const { return slabs * width * 4; }

    void make(const Lines& block, int64_t slab) const {
        const int64_t k = slab * SLAB, numbers = least(SLAB, block.depth - k);
        if (numbers > 0) largest_of_lines(block.part(0, block.count, k, numbers), most + slab * width);
    }

    // Of 16 lines from `line` on, in a block of this depth.
    __m512i of(int64_t line, int64_t depth) const {
        __m512i found = _mm512_setzero_si512();
        for (int64_t k = 0; k < depth; k += SLAB)
            found = _mm512_max_epi32(found, _mm512_loadu_si512(most + k / SLAB * width + line));
        return found;
    }
};

// Some k of a product, one block behind the other.
struct Block {
    int64_t index, k, depth;
};

// How a product is cut, and where its parts lie in its scratch memory. While a block is multiplied the next one's panels are
// laid and the largest magnitudes of the one after are found, so each has a place of its own.
struct Plan {
    int64_t depth, blocks, panels, tiles, group, groups, panel_bytes, tile_bytes, thread_bytes;
    Lines left, right;
    Survey left_survey, right_survey;  // the first block's
    char *panels_at, *scales_at, *threads_at;
    int64_t bytes;

    explicit Plan(const Product& p)
        : left(left_of(p)), right(right_of(p)), left_survey(left, 0, nullptr), right_survey(right, 0, nullptr) {
        depth = adds(p) && p.depth > DEPTH ? DEPTH : p.depth;
        blocks = (p.depth + depth - 1) / depth;
        panels = (p.columns + PANEL - 1) / PANEL;
        tiles = (p.rows + TILE - 1) / TILE;
        panel_bytes = depth * PANEL * 2;
        tile_bytes = rounded((depth * TILE + SLACK) * 2, LINE);
        group = GROUP_BYTES / tile_bytes;
        group = group < 1 ? 1 : group;
        const int64_t fair = (tiles + SHARES * p.threads - 1) / (SHARES * p.threads);
        group = group > fair ? fair : group;
        // As many for each thread, and all about the same.
        groups = least(rounded((tiles + group - 1) / group, p.threads), tiles);
        group = (tiles + groups - 1) / groups;
        thread_bytes = group * (tile_bytes + WIDTH * 4);
        char* at = reinterpret_cast<char*>(rounded(reinterpret_cast<int64_t>(p.scratch), LINE));
        left_survey = Survey(left, depth, at);
        right_survey = Survey(right, depth, at + left_survey.bytes());
        panels_at = at + rounded(least(3, blocks) * survey_bytes(), LINE);
        scales_at = panels_at + least(2, blocks) * panels * panel_bytes;
        threads_at = scales_at + least(2, blocks) * panels * PANEL * 4;
        bytes = threads_at + p.threads * thread_bytes - at + LINE;
    }

    Block block(int64_t index) const { return {index, index * depth, least(depth, left.depth - index * depth)}; }

    int64_t first_tile(int64_t of_group) const { return tiles * of_group / groups; }

    int64_t survey_bytes() const { return left_survey.bytes() + right_survey.bytes(); }
    Survey of(const Block& b, Survey first) const {
        first.most += b.index % 3 * survey_bytes() / 4;
        return first;
    }
    Survey left_most(const Block& b) const { return of(b, left_survey); }
    Survey right_most(const Block& b) const { return of(b, right_survey); }

    uint16_t* panel(const Block& b, int64_t panel) const {
        return reinterpret_cast<uint16_t*>(panels_at + (b.index % 2 * panels + panel) * panel_bytes);
    }
    float* column_scales(const Block& b, int64_t panel) const {
        return reinterpret_cast<float*>(scales_at) + (b.index % 2 * panels + panel) * PANEL;
    }
};

void survey(const Plan& plan, int64_t slab, const Block& b) {
    const int64_t slabs = plan.left_survey.slabs;
    slab < slabs ? plan.left_most(b).make(plan.left.part(0, plan.left.count, b.k, b.depth), slab)
                 : plan.right_most(b).make(plan.right.part(0, plan.right.count, b.k, b.depth), slab - slabs);
}

void lay_panel(const Plan& plan, int64_t panel, const Block& b) {
    const int64_t begin = panel * PANEL, all = plan.right.count, count = least(PANEL, all - begin);
    const Lines lines = plan.right.part(begin, count, b.k, b.depth);
    alignas(LINE) int32_t most[PANEL] = {};
    if (lines.along_k)
        largest(lines, most);
    else
        for (int64_t i = 0; i < count; i += WIDTH) _mm512_store_si512(most + i, plan.right_most(b).of(begin + i, b.depth));
    halves::lay_panel(lines, most, plan.panel(b, panel), plan.column_scales(b, panel));
}

// `count` tiles, one behind the other, TOGETHER at most, and what each one's sums have to be multiplied by.
void lay_tiles(const Product& p, const Plan& plan, int64_t tile, int64_t count, const Block& b, char* to,
               float* row_scales) {
    Lines lines[TOGETHER];
    TileWriter writers[TOGETHER];
    for (int64_t t = 0; t < count; ++t) {
        const int64_t begin = (tile + t) * TILE, rows = least(TILE, p.rows - begin);
        lines[t] = plan.left.part(begin, rows, b.k, b.depth);
        alignas(LINE) int32_t found[WIDTH] = {};
        if (lines[t].along_k) largest(lines[t], found);
        const __m512i most = lines[t].along_k ? _mm512_load_si512(found) : plan.left_most(b).of(begin, b.depth);
        const __m512 sums = b.k && p.row_sums ? load_first(p.row_sums, begin, FLOAT, rows) : _mm512_setzero_ps();
        writers[t] = {reinterpret_cast<uint16_t*>(to + t * plan.tile_bytes), scales_for(most), sums};
        _mm512_store_ps(row_scales + t * WIDTH, inverse(writers[t].scale));
        if (lines[t].along_k) spread<1>(lines[t], writers[t]);
    }
    for (int64_t i = 0; i < b.depth && !plan.left.along_k; ++i)
        for (int64_t t = 0; t < count; ++t) writers[t](i, 0, lines[t].of_k(i, 0));
    for (int64_t t = 0; t < count && p.row_sums; ++t)
        store_first(p.row_sums, (tile + t) * TILE, FLOAT, lines[t].count, writers[t].sums);
}

// What a thread reads of A when it lays this group of tiles.
Ahead rows_of_group(const Plan& plan, int64_t group, const Block& b) {
    if (group >= plan.groups) return {};
    const int64_t begin = plan.first_tile(group) * TILE, end = least(plan.first_tile(group + 1) * TILE, plan.left.count);
    const Lines lines = plan.left.part(begin, end - begin, b.k, b.depth);
    const int64_t size = size_of(lines.kind);
    if (lines.along_k) return {lines.from, b.depth * size, lines.stride * size, lines.count};
    return {lines.from, lines.count * size, lines.stride * size, b.depth};
}

// What a tile and a panel have given goes to C, added to what is there unless it is the first block.
void put(const Product& p, const float* sums, int64_t row, int64_t column, const float* row_scales, const float* column_scales,
         bool first_block) {
    const int64_t rows = least(TILE, p.rows - row);
    const int64_t columns = least(PANEL, p.columns - column);
    // Row by row: where a row is some power of two long, lines of few rows fit into the nearest cache together.
    for (int64_t r = 0; r < rows; ++r) {
        const __m512 row_factor = _mm512_set1_ps(row_scales[r]);
#pragma GCC unroll 4
        for (int64_t j = 0; j < PANEL; j += WIDTH) {
            if (j >= columns) break;
            const int64_t n = columns - j, at = (row + r) * p.c_row + column + j;
            // One factor after the other: their product alone could be infinite where the sum is zero.
            const __m512 sum = _mm512_mul_ps(_mm512_load_ps(sums + r * PANEL + j), row_factor);
            __m512 x = _mm512_mul_ps(sum, _mm512_load_ps(column_scales + j));
            if (!first_block) x = _mm512_add_ps(x, load_first(p.c, at, FLOAT, n));
            if (p.bias && first_block) x = _mm512_add_ps(x, load_first(p.bias, column + j, FLOAT, n));
            if (p.before) {
                store_first(p.before, at, p.c_kind, n, x);
                x = quick_gelu(x);
            }
            if (p.slope_at) x = _mm512_mul_ps(x, quick_gelu_slope(load_first(p.slope_at, at, p.c_kind, n)));
            store_first(p.c, at, p.c_kind, n, x);
        }
    }
}

// What is fetched while a tile and a panel are multiplied.
struct Fetched {
    Ahead rows;   // that a thread lays next; into the second cache
    Ahead there;  // what the products are added to or multiplied by; into the first

    void run() {
        rows.fetch<_MM_HINT_T1>();
        there.fetch<_MM_HINT_T0>();
    }

    void each(const uint16_t* panel) {
        for (int i = 0; i < PANEL; i += 32) _mm_prefetch(reinterpret_cast<const char*>(panel + AHEAD * PANEL + i), _MM_HINT_T0);
    }
};

void group_times_panels(const Product& p, const Plan& plan, int64_t group, const Block& b) {
    char* own = plan.threads_at + thread() * plan.thread_bytes;
    float* row_scales = reinterpret_cast<float*>(own + plan.group * plan.tile_bytes);
    alignas(LINE) float sums[TILE * PANEL];
    const int64_t begin = plan.first_tile(group), count = plan.first_tile(group + 1) - begin;
    for (int64_t t = 0; t < count; t += TOGETHER)
        lay_tiles(p, plan, begin + t, least(TOGETHER, count - t), b, own + t * plan.tile_bytes, row_scales + t * WIDTH);
    const int64_t runs = (b.depth + RUN - 1) / RUN, c_size = size_of(p.c_kind);
    const char* there = static_cast<const char*>(b.k ? p.c : p.slope_at);
    Fetched fetched{rows_of_group(plan, group + p.threads, b), {}};  // most likely this thread's next
    fetched.rows.spread_over(count * plan.panels * runs);
    for (int64_t chunk = 0; chunk < plan.panels; chunk += CHUNK)
        for (int64_t t = 0; t < count; ++t)
            for (int64_t panel = chunk; panel < chunk + CHUNK && panel < plan.panels; ++panel) {
                const int64_t row = (begin + t) * TILE, rows = least(TILE, p.rows - row);
                if (there) {
                    fetched.there = {there + (row * p.c_row + panel * PANEL) * c_size, PANEL * c_size, p.c_row * c_size, rows};
                    fetched.there.spread_over(runs);
                }
                multiply<TILE, PANEL / (2 * WIDTH), RUN>(
                    reinterpret_cast<uint16_t*>(own + t * plan.tile_bytes), plan.panel(b, panel), b.depth, sums, fetched);
                put(p, sums, row, panel * PANEL, row_scales + t * WIDTH, plan.column_scales(b, panel), !b.k);
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
    // Threads wait for each other once a block; who has no group left goes on with what the next blocks need.
    for (int64_t stage = -2; stage < plan.blocks; ++stage) {
        if (stage >= 0) {
            const Block b = plan.block(stage);
#pragma omp for schedule(dynamic) nowait
            for (int64_t group = 0; group < plan.groups; ++group) group_times_panels(p, plan, group, b);
        }
        if (stage >= -1 && stage + 1 < plan.blocks) {
            const Block b = plan.block(stage + 1);
#pragma omp for schedule(dynamic) nowait
            for (int64_t panel = 0; panel < plan.panels; ++panel) lay_panel(plan, panel, b);
        }
        if (stage + 2 < plan.blocks) {
            const Block b = plan.block(stage + 2);
#pragma omp for schedule(dynamic) nowait
            for (int64_t slab = 0; slab < plan.left_survey.slabs + plan.right_survey.slabs; ++slab) survey(plan, slab, b);
        }
#pragma omp barrier
    }
}

int64_t halves_attention_scratch(const Attention* a, int backward) {
    return a->threads * AttentionScratch(*a, nullptr, backward).bytes + LINE;
}

void halves_attention(const Attention* attention, int backward) {
    const Attention& a = *attention;
    char* scratch = reinterpret_cast<char*>(rounded(reinterpret_cast<int64_t>(a.scratch), LINE));
#pragma omp parallel num_threads(a.threads)
    {
        const Flushed flushed;
        const int64_t bytes = AttentionScratch(a, nullptr, backward).bytes;
        const AttentionScratch own(a, scratch + thread() * bytes, backward);
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < a.outer * a.heads; ++unit) {
            Head head(a, own, unit);
            backward ? head.backward() : head.forward();
        }
    }
}

}  // extern "C"

#else

extern "C" {
int halves_here(void) { return 0; }
int64_t halves_scratch(const Product*) { return -1; }
void halves_multiply(const Product*) {}
int64_t halves_attention_scratch(const Attention*, int) { return -1; }
void halves_attention(const Attention*, int) {}
}

#endif
