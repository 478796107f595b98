#include "widgets/base/trace_view.h"

#include "view_headers.h" // an include for each line of views.def, written by CMake

#include <QtGlobal>

namespace keepsight {

const std::vector<ViewEntry>& views() {
    static const std::vector<ViewEntry> all = {
#define KEEPSIGHT_VIEW(id, Class, title, header)                                                                                           \
    {#id, QT_TRANSLATE_NOOP("View", title), [](QWidget* parent) -> TraceView* { return new Class(parent); }},
#include "widgets/base/views.def"
#undef KEEPSIGHT_VIEW
    };
    return all;
}

} // namespace keepsight
