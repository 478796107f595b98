// What a view implements. Adding one: a folder with the view and its model, one line in views.def, one model test.
#pragma once

#include "engine/data/trace.h"
#include "widgets/base/figure.h"
#include "widgets/base/focus_model.h"

#include <QWidget>
#include <memory>

namespace keepsight {

class TraceView : public QWidget {
    Q_OBJECT
public:
    using QWidget::QWidget;
    virtual void setTrace(std::shared_ptr<const Trace> trace) = 0; // immutable snapshot, nullptr: empty; cheap, called up to 20 times a second
    virtual void follow(FocusModel& focus) = 0;                    // reads and sets the shared focus; called once
    virtual std::unique_ptr<Figure> figure() const { return {}; }  // what Export draws and writes of the current focus; null: nothing to export
};

struct ViewEntry {
    const char* id;     // --view NAME, settings
    const char* title;  // translated by the window
    TraceView* (*make)(QWidget* parent);
};
const std::vector<ViewEntry>& views(); // from views.def

} // namespace keepsight
