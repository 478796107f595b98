// Scratch memory of the calling thread, given back in the opposite order: what a decoded token asks for anew hundreds of times.
#pragma once

#include <cstddef>

namespace keepsight {

void* takeScratch(std::size_t bytes); // a multiple of 64, aligned to 64; null: not to be had
void giveScratch(void* memory);       // what was taken last of all that is not given back yet, by the same thread

} // namespace keepsight
