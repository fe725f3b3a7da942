// How fast memory can be read: what the decoding step is held against.
//
// Each thread adds up its share of a buffer in four streams and asks for what comes 4 KiB later in each of them. One
// stream, or none of it asked for, is far slower where the processor does not look ahead by itself (a virtual machine).

#include <cstdint>

extern "C" float read_all(const float* from, int64_t count, int threads) {
    typedef float Lanes __attribute__((vector_size(64), aligned(4)));
    constexpr int64_t STREAMS = 4, STEP = 16, AHEAD = 1024;  // floats
    float all = 0.0f;
#pragma omp parallel for num_threads(threads) reduction(+ : all) schedule(static)
    for (int64_t part = 0; part < threads * int64_t(16); ++part) {
        const int64_t size = count / (threads * 16 * STREAMS);
        const float* begin = from + part * STREAMS * size;
        Lanes sum[STREAMS] = {};
        for (int64_t at = 0; at + STEP <= size; at += STEP)
            for (int64_t s = 0; s < STREAMS; ++s) {
                const float* here = begin + s * size + at;
                __builtin_prefetch(here + AHEAD, 0, 2);
                sum[s] += *reinterpret_cast<const Lanes*>(here);
            }
        for (int64_t s = 0; s < STREAMS; ++s)
            for (int i = 0; i < STEP; ++i) all += sum[s][i];
    }
    return all;
}
