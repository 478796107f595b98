#include "app/cli/interrupt.h"

#include "app/cli/exit_codes.h"

#include <csignal>
#include <unistd.h>

namespace keepsight::cli {

Interrupt::Interrupt() {
    sigset_t signals;
    sigemptyset(&signals);
    for (const int signal : {SIGINT, SIGTERM, SIGUSR1})
        sigaddset(&signals, signal);
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    // a waiting thread instead of a handler: stop tokens may not be used in one
    m_waiter = std::thread([this, signals] {
        for (;;) {
            int signal = 0;
            if (sigwait(&signals, &signal) != 0) continue;
            if (m_done) return;
            if (signal == SIGUSR1) continue;
            if (m_stop.stop_requested()) _exit(ExitCancelled);
            m_stop.request_stop();
        }
    });
}

Interrupt::~Interrupt() {
    m_done = true;
    pthread_kill(m_waiter.native_handle(), SIGUSR1);
    m_waiter.join();
}

} // namespace keepsight::cli
