// The number of this thread of OpenMP; 0 where there is none.

#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

inline int thread() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

}  // namespace
