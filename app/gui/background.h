// Work that is neither the engine's nor the window's: reading, saving and exporting files without holding up the event loop.
#pragma once

#include <QMetaObject>
#include <QObject>
#include <QPointer>
#include <QString>
#include <QThreadPool>
#include <exception>

namespace keepsight {

// Runs `work` in the pool, then in the context's thread either done(result) or fail(sentence); nothing if the context is gone.
template <class Work, class Done, class Fail>
void inBackground(QObject* context, Work work, Done done, Fail fail) {
    QThreadPool::globalInstance()->start([context = QPointer<QObject>(context), work = std::move(work), done = std::move(done), fail = std::move(fail)] {
        // The pointer is only followed inside invokeMethod's target thread; windows outlive their pool work (they wait for it when closing).
        try {
            auto result = work();
            if (context) QMetaObject::invokeMethod(context, [done, result = std::move(result)]() mutable { done(std::move(result)); }, Qt::QueuedConnection);
        } catch (const std::exception& e) {
            if (context) QMetaObject::invokeMethod(context, [fail, reason = QString::fromUtf8(e.what())] { fail(reason); }, Qt::QueuedConnection);
        }
    });
}

} // namespace keepsight
