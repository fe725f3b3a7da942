// How many products a processor adds up at most: multiplications with sums that never leave its registers.

#include <cstdint>

namespace {

constexpr int SUMS = 24;  // in flight at a time, each in a register; more than latency times units of any processor

#define EIGHT(f, a, b, c, d, e, g, h, i) f(a) f(b) f(c) f(d) f(e) f(g) f(h) f(i)
#define ALL(f) EIGHT(f, 0, 1, 2, 3, 4, 5, 6, 7) EIGHT(f, 8, 9, 10, 11, 12, 13, 14, 15) EIGHT(f, 16, 17, 18, 19, 20, 21, 22, 23)
#define CLEAR(i) "vpxord %%zmm" #i ", %%zmm" #i ", %%zmm" #i "\n"
#define FLOATS(i) "vfmadd231ps %%zmm30, %%zmm31, %%zmm" #i "\n"
#define HALVES(i) "vfmadd231ph %%zmm30, %%zmm31, %%zmm" #i "\n"
#define USED(i) "zmm" #i,
#define TURNS(what) \
    asm volatile(ALL(CLEAR) CLEAR(30) CLEAR(31) "1:\n" ALL(what) "dec %0\njnz 1b" : "+r"(times)::ALL(USED) "zmm30", "zmm31", "cc")

#ifdef __AVX512F__
void floats(int64_t times) { TURNS(FLOATS); }
#endif
#ifdef __AVX512FP16__
void halves(int64_t times) { TURNS(HALVES); }
#endif

}  // namespace

extern "C" {

// Products and sums in `times` turns of each of `threads` threads, as operations; 0 where there is no such instruction.
double operations(int half, int64_t times, int threads) {
    double counted = 0;
#ifdef __AVX512F__
    if (!half) counted = 2.0 * SUMS * 16 * times * threads;
#endif
#ifdef __AVX512FP16__
    if (half) counted = 2.0 * SUMS * 32 * times * threads;
#endif
    return counted;
}

void multiply_all(int half, int64_t times, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int i = 0; i < threads; ++i) {
#ifdef __AVX512F__
        if (!half) floats(times);
#endif
#ifdef __AVX512FP16__
        if (half) halves(times);
#endif
    }
}
}
