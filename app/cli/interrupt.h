// Ctrl-C and SIGTERM as a stop token. The first asks the work to end after its current cell, the second ends the program at once.
#pragma once

#include <pthread.h>

#include <atomic>
#include <stop_token>
#include <thread>

namespace keepsight::cli {

class Interrupt {
public:
    Interrupt(); // before any other thread is started: they inherit the blocked signals
    ~Interrupt();
    Interrupt(const Interrupt&) = delete;
    Interrupt& operator=(const Interrupt&) = delete;

    std::stop_token token() const { return m_stop.get_token(); }
    bool requested() const { return m_stop.stop_requested(); }

private:
    std::stop_source m_stop;
    std::atomic<bool> m_done{false};
    std::thread m_waiter;
};

} // namespace keepsight::cli
