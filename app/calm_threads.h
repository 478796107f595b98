// Included by both programs' main.cpp: OpenMP threads that wait give the processor back soon.
//
// libgomp's default is to spin for milliseconds at every barrier, which costs nothing on an idle machine and an order of magnitude
// beside other programs (measured on 2 cores, default model: a token takes
// 8.8 ms alone either way; beside two busy loops 33 to 86 ms by default, 18 ms with this). It reads its
// environment when it is loaded, before main and before any constructor of ours; so the program starts itself once more with the variable
// set, from the executable's .preinit_array, before any library was initialised. Who sets either variable is left alone.
#pragma once

#include <alloca.h>
#include <cstring>
#include <unistd.h>

namespace keepsight {

inline void calmThreads(int, char** argv, char** environment) {
    static char setting[] = "GOMP_SPINCOUNT=2000";
    std::size_t count = 0;
    for (; environment[count]; ++count)
        if (std::strncmp(environment[count], "GOMP_SPINCOUNT=", 15) == 0 || std::strncmp(environment[count], "OMP_WAIT_POLICY=", 16) == 0) return;
    char** extended = static_cast<char**>(alloca((count + 2) * sizeof(char*)));
    std::memcpy(extended, environment, count * sizeof(char*));
    extended[count] = setting;
    extended[count + 1] = nullptr;
    char program[4096]; // by its real path: as /proc/self/exe the process would be listed as "exe"
    const ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    if (length <= 0) return;
    program[length] = 0;
    execve(program, argv, extended); // returns only on failure: then things are as they were
}

} // namespace keepsight

__attribute__((section(".preinit_array"), used)) static void (*const keepsightCalmThreads)(int, char**, char**) = keepsight::calmThreads;
