// The steps of a song: a token of its language model, a look of its diffusion transformer. See language.h and diffusion.h.
//
// There are no headers of torch or Python here: the functions have C's calling convention and take addresses (see
// songbloom/prior/songbloom/native.py for the same structures), which compiles in seconds and runs under any version of both.

#include <cstdint>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include "diffusion.h"
#include "language.h"
#include "threads.h"

namespace {

constexpr uintptr_t PAGE = 1 << 21;  // bytes of a large one

}  // namespace

extern "C" {

// How the structures are laid out, for the caller to compare with its own.
int64_t song_sizes(int which) {
    const int64_t sizes[] = {sizeof(Matrix), sizeof(DiffusionLayer), sizeof(Diffusion), sizeof(LanguageLayer),
                             sizeof(Language), sizeof(Maps)};
    return sizes[which];
}

// Ask for large pages for memory that will be filled, and read from end to end again and again.
void song_large_pages(void* from, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(from) + PAGE - 1) & -PAGE;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(from) + bytes) & -PAGE;
    if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Have memory that is filled already moved to large pages, where the system can (Linux 6.1 and later); what lies beside it
// in the same ones goes along. Addresses stay, and what is large already costs nothing.
void song_collapse_pages(void* from, int64_t bytes) {
#ifdef __linux__
    constexpr int COLLAPSE = 25;  // MADV_COLLAPSE, which older headers don't have
    const uintptr_t begin = reinterpret_cast<uintptr_t>(from) & -PAGE, end = reinterpret_cast<uintptr_t>(from) + bytes;
    for (uintptr_t page = begin; page < end; page += PAGE) madvise(reinterpret_cast<void*>(page), PAGE, COLLAPSE);
#endif
}

// Whether this processor multiplies in half precision; matrices without scales are multiplied in float32 on any.
int32_t song_halves() { return HALVES; }

// Scales of all columns of a matrix's panels, and the finding of them, before the panels are laid.
int64_t song_scales_size(const Matrix* m) { return panels_of(*m) * PANEL; }

void song_find_scales(const Matrix* m, float* to) { find_scales(*m, to); }

// Floats that all panels of a matrix take, and the laying of them.
int64_t song_panels_size(const Matrix* m) { return panels_of(*m) * (m->scales ? half_panel_size(*m) : panel_size(*m)); }

void song_lay_panels(const Matrix* m, float* to) {
    const int64_t size = m->scales ? half_panel_size(*m) : panel_size(*m);
    for (int p = 0; p < panels_of(*m); ++p) m->scales ? lay_half_panel(*m, p, to + p * size) : lay_panel(*m, p, to + p * size);
}

int64_t song_diffusion_scratch(const Diffusion* d) { return DiffusionScratch(*d, nullptr).size; }

int64_t song_diffusion_kept(const Diffusion* d) {
    return int64_t(d->songs) * d->positions * DiffusionScratch(*d, nullptr).row3 + PANEL;
}

// Once a patch, before its looks.
void song_diffusion_begin(const Diffusion* d) {
    const DiffusionScratch scratch(*d, d->scratch);
#pragma omp parallel num_threads(d->threads)
    Look(*d, scratch, thread()).begin();
}

void song_diffusion_velocity(const Diffusion* d) {
    const DiffusionScratch scratch(*d, d->scratch);
#pragma omp parallel num_threads(d->threads)
    Look(*d, scratch, thread()).run();
}

int64_t song_language_scratch(const Language* s) { return LanguageScratch(*s, nullptr).size; }

void song_language_step(const Language* s) {
    const LanguageScratch scratch(*s, s->scratch);
#pragma omp parallel num_threads(s->threads)
    Position(*s, scratch, thread()).run();
}

int64_t song_maps_scratch(const Maps* m) { return maps_floats(*m); }

void song_map(const Maps* m) {
#pragma omp parallel num_threads(m->threads)
    map(*m);
}

}  // extern "C"
