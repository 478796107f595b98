// The only place where Qt and the engine meet: one thread runs jobs one after the other, a second one answers budget previews meanwhile.
#pragma once

#include "engine/engine.h"

#include <QObject>
#include <QString>
#include <memory>

namespace keepsight {

using JobId = quint64; // from 1; 0: none
using TracePtr = std::shared_ptr<const Trace>;
using MapPtr = std::shared_ptr<const AttentionMap>;

// Which choice of a lane is to be explained. Step 1 is read from the prefill that is held; for a later one the lane is repeated.
struct ExplainRequest {
    PolicySpec policy;
    std::vector<TokenId> fed; // after the prefill, up to the step
    Step step{1};
    LayerIndex layer;
    HeadIndex head;
    Position position = -1;
    std::size_t run = 0;      // tells apart what is otherwise alike
    bool operator==(const ExplainRequest&) const = default;
};
using ExplanationPtr = std::shared_ptr<const Explanation>;

enum class Running { keep, cancel }; // what submitting does to a running job of the same tag

// All signals are delivered in the thread this object lives in. Each started job ends in exactly one finished() or failed();
// after cancel(id) no progress and no snapshot of that id is delivered any more, only its end, with what was done until then.
class EngineWorker : public QObject {
    Q_OBJECT
public:
    explicit EngineWorker(QObject* parent = nullptr);
    ~EngineWorker() override; // cancels what runs, drops what waits, joins

    // While a run goes on it is also recorded here, so that a killed program can offer it; empty: not recorded.
    void setRecoveryFile(const QString& path);

    JobId open(const OpenOptions& options);                           // tag "model": cancels every other job first
    JobId submit(Job job, const QString& tag, Running running = Running::cancel); // a waiting job with the same tag is replaced
    JobId attention(TracePtr trace, const PromptSpec& prompt, LayerIndex layer, HeadIndex queryHead); // tag "attention"; finished() brings `trace` with the map
    bool cancel(JobId id); // thread-safe; true: it was still waiting, and disappears without a signal
    void cancelAll();
    bool isBusy() const;   // something runs or waits

    // Newest wins: an earlier request that was not begun is forgotten. Answered by previewed() or previewRefused().
    void preview(TracePtr base, LaneIndex lane, const PolicySpec& policy);
    void countTokens(const PromptSpec& prompt); // newest wins; answered by tokensCounted
    // Newest wins, also over one under way; previews and counts go first. Answered by explained(). A job that is submitted drops a repeated lane.
    void explain(quint64 ticket, const ExplainRequest& request);
    void stopExplaining();

Q_SIGNALS:
    void started(keepsight::JobId id, const QString& tag);
    void progressed(keepsight::JobId id, const keepsight::Progress& progress); // at most 20 a second
    void traceUpdated(keepsight::JobId id, const keepsight::TracePtr& trace);  // at most 15 a second, fewer where copying and showing them takes long
    void finished(keepsight::JobId id, keepsight::Outcome outcome, const keepsight::TracePtr& trace);
    void failed(keepsight::JobId id, const QString& reason);
    void modelOpened(const keepsight::ModelInfo& model);
    void previewed(int lane, const keepsight::TracePtr& trace, double milliseconds); // from request to trace
    void previewRefused(int lane, const QString& reason);
    void tokensCounted(int tokens);
    void explained(quint64 ticket, const keepsight::ExplanationPtr& explanation, const QString& reason); // nullptr: the reason why not
    void warned(const QString& sentence); // the recovery file could not be written; the run goes on

private:
    struct Private;
    std::unique_ptr<Private> d;
};

} // namespace keepsight

Q_DECLARE_METATYPE(keepsight::TracePtr)
Q_DECLARE_METATYPE(keepsight::ExplanationPtr)
Q_DECLARE_METATYPE(keepsight::Progress)
Q_DECLARE_METATYPE(keepsight::Outcome)
Q_DECLARE_METATYPE(keepsight::ModelInfo)
